"""Which host runs which gang, which gang is started again elsewhere, and which host hangs. Knows nothing of Ray.

Free hosts pull: each has at most two gangs in flight, and takes the waiting gang whose clients it served last, so that
shards stay warm. A gang whose scratch lies on a host goes back to that host while it lives. A slow host is not given
what it would finish after the others have done everything; an idle host starts again what would be late otherwise, and
the first answer wins. Since a gang is deterministic, none of this changes a bit.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raygrad.gang import Gang
from raygrad.onray.pace import Pace

IN_FLIGHT = 2
LONG_GANG_S = 0.2
"""From here on it costs more to wait behind another gang than to be sent later."""
LATE = 1.5
"""A gang is started again if that would take less than its remaining time divided by this. It doubles with each time
that the first attempt won nevertheless, which happens where gangs are unequal."""
GAIN_S = 0.2
"""What starting a gang again must save at least."""
SLOW = 0.5
"""Below this part of the fastest host's speed it is asked whether a host would finish in time."""
HUNG_S = 30.0
HUNG_TIMES = 20.0
"""A host hangs if its gang takes longer than HUNG_S and than so many times the longest one that was ever answered..."""
HUNG_UNKNOWN_S = 4 * 3600.0
"""... or than this before any such gang was answered. A gang's limits grow by HUNG_GROWTH with each host it is lost on:
maybe it really takes so long."""
HUNG_GROWTH = 5.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
"""Between two looks at what is late."""


@dataclass(eq=False)
class Host:
    """The driver's picture of one actor. `name` is None until it said hello; it works through `calls` in order, and
    `died_at` is the one that it died at.
    """

    actor: Any
    name: str | None = None
    calls: list["Call"] = field(default_factory=list)
    died_at: "Call | None" = None

    @property
    def machine(self) -> str:
        """Where it runs."""
        return (self.name or "").split(":")[0]

    @property
    def stuck(self) -> bool:
        """Whether it is busy with something that nobody waits for any more."""
        return any(not c.wanted for c in self.calls)

    @property
    def alone(self) -> bool:
        """Whether it runs a gang at which a host died: then no other beside it."""
        return any(c.job.losses for c in self.calls)


@dataclass(eq=False)
class Job:
    """A gang of the phase until it is answered, or lost for good."""

    gang: Gang
    tries: int = 0
    losses: int = 0
    calls: list["Call"] = field(default_factory=list)  # those that are wanted


@dataclass(eq=False)
class Call:
    """One attempt, in flight. Its host runs `works`: the phase's, after earlier ones if its scratch lies elsewhere."""

    job: Job
    host: Host
    attempt: int
    works: tuple[str, ...]
    sent_s: float
    began_s: float  # when the one before it was answered
    probe: bool = False
    ref: Any = None
    wanted: bool = True


class Schedule:
    """Decides; whoever calls it acts. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.hosts: Sequence[Host] = ()  # those that said hello, in order
        self.waiting: deque[Job] = deque()
        self.unread = 0  # how many more gangs are expected
        self.works: list[str] = []  # of the conversation's phases so far
        self._owners: dict[int, Host] = {}
        self._last: dict[int, Host] = {}
        self._late = LATE
        self._look_s = 0.0  # not before then is it asked what is late

    # --- what happens -----------------------------------------------------------------------------------------------

    def begin(self, number: int, work: str, again: bool = False) -> None:
        """Phase `number` of its conversation begins, or comes again for gangs that are owed once more."""
        if number == 0 and not again:
            self._owners = {}
        self.works = [*self.works[:number], work]

    def place(self, job: Job, host: Host, now: float, probe: bool = False) -> Call:
        """The call that gives `job` to `host`."""
        job.tries += 1
        call = Call(job, host, job.tries, self._works(job, host), now, now, probe)
        job.calls.append(call)
        host.calls.append(call)
        return call

    def ended(self, call: Call, now: float) -> None:
        """The host is through with a call, or dead."""
        call.host.calls.remove(call)
        if call.wanted:
            call.job.calls.remove(call)
        for c in call.host.calls[:1]:
            c.began_s = max(c.sent_s, now)

    def answered(self, call: Call, seconds: float, now: float) -> None:
        """It took so long. To be said before `ended`."""
        gang = call.job.gang
        if len(call.works) == 1:
            self.pace.learn(call.host, call.works[0], len(gang.working), seconds, now)
        if call.wanted:
            self._owners[gang.index] = call.host
            for c in gang.working.tolist():
                self._last[c] = call.host
            if len(call.job.calls) > 1 and not any(c.probe for c in call.job.calls):
                won = call is call.job.calls[-1]
                self._late = LATE if won else 2 * self._late

    def gone(self, host: Host) -> None:
        """The host is dead."""
        self.pace.forget(host)
        self._owners = {g: h for g, h in self._owners.items() if h is not host}
        self._last = {c: h for c, h in self._last.items() if h is not host}

    # --- what is to be done -----------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Job, Host] | None:
        """A waiting gang and who takes it.

        The last gangs are not queued behind others, unless they are short: who is free first takes them.
        """
        last = not self.unread and len(self.waiting) <= len(self.hosts)
        for host in sorted(self.hosts, key=lambda h: (len(h.calls), -self.pace.speed(h))):
            if len(host.calls) >= IN_FLIGHT or host.alone or host.stuck:
                continue
            pick = self._pick(host)
            if pick is None:
                continue
            job = self.waiting[pick]
            seconds = self.pace.expected_s(self.works[-1:], len(job.gang.working))
            if (last and host.calls and (seconds or 0.0) >= LONG_GANG_S) or self._too_late(job, host, now):
                continue
            del self.waiting[pick]
            return job, host
        return None

    def again(self, now: float) -> tuple[Job, Host, bool] | None:
        """What an idle host should do that waits for another host, or is with one: the gang that gains most by it.

        The last entry says whether it is done to learn the host's speed only.
        """
        idle = [h for h in self.hosts if not h.calls]
        if not idle or now < self._look_s:
            return None
        host = max(idle, key=self.pace.speed)
        found: list[tuple[float, Job]] = []
        for job, end_s in self._ends(host, now):
            anew_s = self._cost(job, host)
            if anew_s is not None and end_s > self._late * anew_s + GAIN_S:
                found.append((end_s - anew_s, job))
        if found:
            job = max(found, key=lambda f: f[0])[1]
            if not job.calls:
                self.waiting.remove(job)
            return job, host, False
        for host in idle:
            if self._slow(host) and self.pace.stale(host, now):
                # A copy of what another one runs shows how fast it is now.
                job = next((c.job for h in self.hosts for c in h.calls[:1] if _single(c)), None)
                if job is not None:
                    return job, host, True
        self._look_s = now + self.pause_s()
        return None

    def hung(self, hosts: Sequence[Host], now: float) -> list[Host]:
        """Hosts whose gang takes far longer than any before."""
        return [h for h in hosts if h.calls and now - h.calls[0].began_s > self._limit_s(h.calls[0])]

    def pause_s(self) -> float:
        """For how long nothing can become late, about, while nobody answers."""
        calls = [h.calls[0] for h in self.hosts if h.calls]
        if len(calls) == len(self.hosts):
            return LONGEST_PAUSE_S
        seconds = [self.pace.expected_s(c.works, len(c.job.gang.working)) or 0.0 for c in calls]
        return min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, min(seconds, default=LONGEST_PAUSE_S) / 20))

    # --- how --------------------------------------------------------------------------------------------------------

    def _pick(self, host: Host) -> int | None:
        """Which waiting gang `host` should take: its own scratch's first, then the one whose clients it served last.

        A gang at which a host died runs alone: no other is to be lost with it.
        """
        best, most = None, -1
        for i, job in enumerate(self.waiting):
            owner = self._owners.get(job.gang.index)
            if job.losses and host.calls:
                continue
            if owner is host:
                return i
            if owner is None:
                warm = sum(self._last.get(c) is host for c in job.gang.working.tolist())
                if warm > most:
                    best, most = i, warm
        return best

    def _works(self, job: Job, host: Host) -> tuple[str, ...]:
        """What `host` has to run for `job`, at most."""
        own = self._owners.get(job.gang.index) is host
        return tuple(self.works[-1:] if own else self.works)

    def _cost(self, job: Job, host: Host) -> float | None:
        """Seconds that `host` needs for `job`; None if that was not learned yet."""
        seconds = self.pace.expected_s(self._works(job, host), len(job.gang.working))
        return None if seconds is None else seconds / self.pace.speed(host)

    def _left_s(self, call: Call, now: float) -> float:
        """Seconds until a call is answered after those before it. What has taken long is expected to take as long
        again.
        """
        seconds = self.pace.expected_s(call.works, len(call.job.gang.working)) or 0.0
        seconds /= self.pace.speed(call.host)
        if call is not call.host.calls[0]:
            return seconds
        so_far = now - call.began_s
        return max(seconds - so_far, so_far if so_far > LATE * seconds else 0.0)

    def _busy_s(self, host: Host, now: float) -> float:
        return sum(self._left_s(c, now) for c in host.calls)

    def _ends(self, idle: Host, now: float) -> list[tuple[Job, float]]:
        """What `idle` might start again or take over, and in how many seconds it would be answered as it stands.

        A gang that was lost before is left alone: it may be what its hosts die of.
        """
        found: list[tuple[Job, float]] = []
        for host in self.hosts:
            end_s = 0.0
            for call in host.calls:
                end_s += self._left_s(call, now)
                if _single(call):
                    found.append((call.job, end_s))
            for job in self.waiting:
                if self._owners.get(job.gang.index) is host is not idle:
                    end_s += self._cost(job, host) or 0.0
                    if not job.losses:
                        found.append((job, end_s))
        return found

    def _slow(self, host: Host) -> bool:
        """Whether another host is much faster; never true of the fastest."""
        return self.pace.speed(host) < SLOW * max(self.pace.speed(h) for h in self.hosts if not h.stuck or h is host)

    def _too_late(self, job: Job, host: Host, now: float) -> bool:
        """Whether a slow host would finish `job` after the others could have done all that is left."""
        if self._owners.get(job.gang.index) is host or not self._slow(host):
            return False
        others = [h for h in self.hosts if h is not host and not h.stuck]
        each = self.pace.expected_s(self.works[-1:], 1)
        mine = self._cost(job, host)
        if each is None or mine is None:
            return False
        speeds = [self.pace.speed(h) for h in others]
        busy = [self._busy_s(h, now) for h in others]
        clients = len(job.gang.working)
        left = each * (sum(len(j.gang.working) for j in self.waiting) + self.unread * clients)
        all_of_it = (left + sum(b * v for b, v in zip(busy, speeds, strict=True))) / sum(speeds)
        this_one = min(b + each * clients / v for b, v in zip(busy, speeds, strict=True))
        return self._busy_s(host, now) + mine > max(all_of_it, this_one)

    def _limit_s(self, call: Call) -> float:
        longest = self.pace.longest_s(call.works, len(call.job.gang.working))
        if longest is None:
            return HUNG_UNKNOWN_S
        slowness = max(1.0, 1.0 / self.pace.speed(call.host))
        return max(HUNG_S, HUNG_TIMES * slowness * longest) * HUNG_GROWTH**call.job.losses


def _single(call: Call) -> bool:
    """Whether a call may be made again."""
    return call.wanted and len(call.job.calls) == 1 and not call.job.losses
