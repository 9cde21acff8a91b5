"""What is learned about time: how long a gang takes, and how fast each host is beside the others.

A gang's seconds are taken per client, work by work; what is typical is the median of the newest answers, whoever gave
them. A host's speed is the typical time over its own, 1 for a typical host. Gangs of unequal clients make both noisy;
what depends on them costs time when they are wrong, never a bit.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

NEWEST = 33
"""So many of the newest answers say what is typical of a work."""
KEPT = 0.7
"""How much of what a host did before still counts after its next answer."""


@dataclass
class _Record:
    """What a host did, older answers counting less."""

    typical_s: float = 0.0
    own_s: float = 0.0
    heard_s: float = 0.0


class Pace:
    """Seconds by work and speeds by host."""

    def __init__(self) -> None:
        self._newest: dict[str, deque[float]] = {}  # per client
        self._typical: dict[str, float] = {}
        self._longest: dict[str, float] = {}
        self._hosts: dict[Hashable, _Record] = {}

    def learn(self, host: Hashable, work: str, clients: int, seconds: float, now: float) -> None:
        """`host` ran `work` at so many clients in so many seconds."""
        each = seconds / clients
        newest = self._newest.setdefault(work, deque(maxlen=NEWEST))
        newest.append(each)
        self._typical[work] = sorted(newest)[(len(newest) - 1) // 2]
        self._longest[work] = max(each, self._longest.get(work, 0.0))
        record = self._hosts.setdefault(host, _Record())
        record.typical_s = KEPT * record.typical_s + self._typical[work] * clients
        record.own_s = KEPT * record.own_s + seconds
        record.heard_s = now

    def forget(self, host: Hashable) -> None:
        """The host is gone."""
        self._hosts.pop(host, None)

    def speed(self, host: Hashable) -> float:
        """1 for a typical host and for one that is not known yet, 0.1 for one that takes ten times as long."""
        record = self._hosts.get(host)
        return record.typical_s / record.own_s if record is not None and record.own_s > 0 else 1.0

    def silent_s(self, host: Hashable, now: float) -> float:
        """Seconds since the host last answered; 0 if it never did."""
        record = self._hosts.get(host)
        return now - record.heard_s if record is not None else 0.0

    def expected_s(self, works: Sequence[str], clients: int) -> float | None:
        """How long a typical host takes for these works, one after another; None if the last was never answered."""
        if works[-1] not in self._typical:
            return None
        return clients * sum(self._typical.get(w, 0.0) for w in works)

    def longest_s(self, works: Sequence[str], clients: int) -> float | None:
        """The longest that anybody ever took for these works; None if the last was never answered."""
        if works[-1] not in self._longest:
            return None
        return clients * sum(self._longest.get(w, 0.0) for w in works)
