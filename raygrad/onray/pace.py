"""What is learned about time: how long a gang takes, and how fast each host is beside the others.

A gang's seconds are taken per client, work by work; what is typical is the median of the newest answers, whoever gave
them. A host's speed is the typical time over its own, 1 for a typical host. Its first answer to a work takes longer (it
reads shards, imports and builds what it needs) and counts only where there is no better one. Gangs of unequal clients
make both noisy; what depends on them costs time when they are wrong, never a bit.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

NEWEST = 33
"""So many of the newest answers say what is typical of a work."""
KEPT = 0.9
"""How much of what a host did before still counts after its next answer."""
STALE = 20.0
"""A host's speed is to be measured anew when it was silent for so many times its newest gang."""


@dataclass
class _Record:
    """What a host did, older answers counting less."""

    typical_s: float = 0.0
    own_s: float = 0.0
    provisional: bool = True  # only a first answer counts so far
    newest_s: float = 0.0
    heard_s: float = 0.0  # when
    known: set[str] = field(default_factory=set)  # works that it answered before


class Pace:
    """Seconds by work and speeds by host."""

    def __init__(self) -> None:
        self._newest: dict[str, deque[float]] = {}  # per client
        self._typical: dict[str, float] = {}
        self._longest: dict[str, float] = {}
        self._provisional: set[str] = set()  # works of which only hosts' first answers are known
        self._hosts: dict[Hashable, _Record] = {}

    def learn(self, host: Hashable, work: str, clients: int, seconds: float, now: float) -> None:
        """`host` ran `work` at so many clients in so many seconds."""
        record = self._hosts.setdefault(host, _Record())
        first = work not in record.known
        self._learn_work(work, seconds / clients, first)
        record.newest_s, record.heard_s = seconds, now
        if not first or not record.known:
            if record.provisional:
                record.typical_s = record.own_s = 0.0
                record.provisional = first
            record.typical_s = KEPT * record.typical_s + self._typical[work] * clients
            record.own_s = KEPT * record.own_s + seconds
        record.known.add(work)

    def _learn_work(self, work: str, each_s: float, first: bool) -> None:
        """A client took so long; `first` if that was new to its host."""
        newest = self._newest.setdefault(work, deque(maxlen=NEWEST))
        self._longest[work] = max(each_s, self._longest.get(work, 0.0))
        if first and not newest:
            self._provisional.add(work)
        elif not first and work in self._provisional:
            newest.clear()
            self._provisional.remove(work)
        if not first or work in self._provisional:
            newest.append(each_s)
            self._typical[work] = sorted(newest)[(len(newest) - 1) // 2]

    def forget(self, host: Hashable) -> None:
        """The host is gone."""
        self._hosts.pop(host, None)

    def speed(self, host: Hashable) -> float:
        """1 for a typical host and for one that is not known yet, 0.1 for one that takes ten times as long."""
        record = self._hosts.get(host)
        return record.typical_s / record.own_s if record is not None and record.own_s > 0 else 1.0

    def stale(self, host: Hashable, now: float) -> bool:
        """Whether what is known of a host's speed may be wrong by now."""
        record = self._hosts.get(host)
        return record is not None and (record.provisional or now - record.heard_s > STALE * record.newest_s)

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
