"""Runs gangs on host actors: carries out what the schedule decides.

A phase is put once and gang calls name the reference; a small one travels in the calls themselves. Calls are at most
once: what a lost or hung host owed is asked again elsewhere, until three hosts died at it. A call outlives its phase
if its gang was answered by another host: then its host is busy until it answers, and that answer is dropped.
"""

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayTaskError, TaskCancelledError

from raygrad.errors import RaygradError
from raygrad.gang import Gang, GangReply, Phase
from raygrad.hosts import HostRange
from raygrad.metrics import Reading
from raygrad.onray.loss import unreachable
from raygrad.onray.metrics import record
from raygrad.onray.pool import LOST, Pool, wait
from raygrad.onray.schedule import IN_FLIGHT, Call, Host, Job, Schedule
from raygrad.onray.start import Lender
from raygrad.runner import HostSpec
from raygrad.talk import Done, Operation

_LOG = logging.getLogger(__name__)
ATTEMPTS = 3
"""So many hosts die or hang at a gang before it is given up..."""
TRIES = 12
"""... or so many tries come to nothing, whatever the reason: objects may be lost, or hosts die at other gangs."""
SMALL_PHASE = 256 * 2**10
"""Up to so many bytes a phase goes along with each call: a put and its fetches cost more than sending it twice."""
RECORD_S = 0.5
"""Between two exports of how much is under way."""
LOOK_S = 1.0
"""Between two looks for hosts that hang."""
REMEMBERED = 16
"""Over so many phases the greatest number of gangs says how many hosts can be of use."""


@cache
def ship_by_value(name: str) -> None:
    """Send code of a user's own module along, since hosts may not be able to import it. Installed packages they can."""
    module = sys.modules.get(name)
    if module is None:  # it came here by value itself, and goes on so
        return
    file = getattr(module, "__file__", None)
    if name != "__main__" and not name.startswith("raygrad.") and file and "site-packages" not in Path(file).parts:
        cloudpickle.register_pickle_by_value(module)


class RayExecutor:
    """Host actors behind one `run`.

    `hosts` is as in `Where`. `numerics` is what an earlier part of the run recorded, if there was one. `made` are host
    actors to use first; a `lender` has more of them, and is given back what is idle at the end. With `joined` this Ray
    was not started for the run: the user's own modules travel along, for hosts that cannot import them, and elastic
    hosts ask the cluster's autoscaler for room. `run` is the run's name, for its metrics.
    """

    def __init__(
        self,
        spec: HostSpec,
        hosts: int | str,
        gpus_per_host: float = 0.0,
        numerics: Mapping[str, str] | None = None,
        strict: bool = True,
        made: Iterable[Any] = (),
        joined: bool = True,
        cpus_per_host: float = 1.0,
        lender: Lender | None = None,
        run: str = "run",
    ) -> None:
        self._run_name, self._record_s = run, 0.0
        self._lender = lender
        if lender is not None:
            made = [*made, *lender.take(HostRange.of(hosts).fewest)]
        self._joined = joined
        if joined:
            ship_by_value(type(spec.model).__module__)
        self._schedule = Schedule()
        self._calls: dict[Any, Call] = {}  # by reference, in flight
        self._news: list[Done] = []
        self._phases: list[Phase] = []  # of this conversation
        self._references: dict[int, Any] = {}  # to those that were put, by number
        self._gangs: deque[int] = deque(maxlen=REMEMBERED)  # of the newest phases
        self._gangs_of: dict[str, int] = {}  # by work
        self._unanswered = 0
        self._loses_next = False
        self._away_s = 0.0  # what others did between our steps: hosts are not to blame for it
        self._left_s = self._look_s = 0.0
        self.pool = Pool(spec, HostRange.of(hosts), gpus_per_host, numerics, strict, made, joined, cpus_per_host)
        try:
            self.pool.await_first()
        except BaseException:
            self.close()
            raise

    @property
    def numerics(self) -> dict[str, str] | None:
        """What the run computes with."""
        return self.pool.numerics

    @property
    def odd_hosts(self) -> dict[str, str]:
        """Hosts that compute other bits and were admitted, and in what they differ."""
        return self.pool.odd_hosts

    def lose_host(self) -> None:
        """A host dies, one at work if there is one: a planned fault."""
        for host in self._busiest[:1]:
            ray.kill(host.actor)

    def lose_node(self) -> None:
        """All hosts of such a host's machine die: a planned fault."""
        busiest = self._busiest
        for host in busiest:
            if host.machine == busiest[0].machine:
                ray.kill(host.actor)

    def lose_object(self) -> None:
        """The next answer is lost, and the phases that were put: a planned fault."""
        self._loses_next = True
        if self._references:
            self._references = dict.fromkeys(self._references, unreachable())

    @property
    def _busiest(self) -> list[Host]:
        return sorted(self.pool.ready, key=lambda h: -len(h.calls))

    def close(self) -> None:
        """End the host actors; those that were lent and are idle go back."""
        if self._lender is not None:
            self._lender.give(self.pool.release())
        self.pool.close()
        self._record_s = 0.0
        self._record()

    # --- one phase --------------------------------------------------------------------------------------------------

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        """The gangs' replies, as they come, and failed attempts without one.

        A gang at which three hosts died has no reply; the outcome of its last attempt begins with "lost for good".
        Raises Stopped if there are no hosts for too long.
        """
        self._begin(phase)
        schedule, source, read, exhausted = self._schedule, iter(gangs), 0, False
        work = schedule.works[-1]
        try:
            while True:
                while not exhausted and len(schedule.waiting) < 2 * IN_FLIGHT * max(1, len(self.pool.hosts)):
                    gang = next(source, None)
                    exhausted = gang is None
                    if gang is not None:
                        read, self._unanswered = read + 1, self._unanswered + 1
                        schedule.waiting.append(Job(gang))
                schedule.unread = 0 if exhausted else max(0, self._gangs_of.get(work, 0) - read)
                self.pool.tend(max(read + (not exhausted), *self._gangs, 0))
                self._submit()
                self._record()
                if self._news:
                    yield from self._told()
                if not self._unanswered and exhausted:
                    break
                for ref in wait([*self._calls, *self.pool.hellos], schedule.pause_s()):
                    if ref in self._calls:
                        self._take(ref)
                    else:
                        self.pool.greet(ref)
                self._end_hung()
            self._gangs.append(read)
            self._gangs_of[work] = read
        finally:
            schedule.waiting.clear()
            for call in self._calls.values():
                self._give_up(call)
            self._left_s = perf_counter()

    def _record(self) -> None:
        """Export how much is under way, now and then, and which hosts were lost since."""
        now = perf_counter()
        if now < self._record_s:
            return
        self._record_s = now + RECORD_S
        lost, self.pool.lost = self.pool.lost, []
        values = {
            "raygrad_hosts_ready": len(self.pool.ready),
            "raygrad_gangs_in_flight": sum(c.wanted for c in self._calls.values()),
            "raygrad_gangs_waiting": len(self._schedule.waiting),
        }
        record(self._run_name, [Reading(name, value) for name, value in values.items()])
        record(self._run_name, [Reading("raygrad_hosts_lost_total", 1, {"machine": m or "unknown"}) for m in lost])

    def _begin(self, phase: Phase) -> None:
        number = phase.number
        again = len(self._phases) > number and self._phases[number] is phase
        self._phases = [*self._phases[:number], phase]
        if not again:
            self._references = {n: ref for n, ref in self._references.items() if n < number}
        if self._joined:
            for owner in (phase.work, type(getattr(phase.work, "__self__", None))):  # a method may be inherited
                ship_by_value(owner.__module__)
        self._news, self._unanswered = [], 0
        self._away_s += perf_counter() - self._left_s
        self._schedule.begin(number, f"{phase.work.__qualname__} on {phase.part}", again)

    def _told(self) -> Iterator[Done]:
        news, self._news = self._news, []
        self._left_s = perf_counter()
        yield from news
        self._away_s += perf_counter() - self._left_s

    @property
    def _now(self) -> float:
        """The clock on which hosts are measured: it stands still while it is not our turn."""
        return perf_counter() - self._away_s

    def _submit(self) -> None:
        """Give gangs to hosts, and to idle ones what would be late."""
        schedule, now = self._schedule, self._now
        schedule.hosts = self.pool.ready
        while (found := schedule.next(now)) is not None:
            self._send(*found)
        while (late := schedule.again(now)) is not None:
            job, host, probe = late
            for call in job.calls:
                if call is not call.host.calls[0] and not probe:
                    self._supersede(call)  # it only waited there
            self._send(job, host, probe)

    def _send(self, job: Job, host: Host, probe: bool = False) -> None:
        call = self._schedule.place(job, host, self._now, probe)
        phase = self._phases[-1]
        sent = phase if phase.nbytes <= SMALL_PHASE else self._reference(phase.number)
        earlier = [self._reference(k) for k in range(len(call.works) - 1)]
        call.ref = host.actor.run.remote(sent, job.gang, earlier)
        self._calls[call.ref] = call

    def _reference(self, number: int) -> Any:
        """A reference to phase `number` of this conversation."""
        if number not in self._references:
            self._references[number] = ray.put(self._phases[number])
        return self._references[number]

    # --- what comes back --------------------------------------------------------------------------------------------

    def _take(self, ref: Any) -> None:
        call, now = self._calls.pop(ref), self._now
        try:
            if self._loses_next and call.wanted:
                self._loses_next = False
                raise ObjectLostError(ref.hex(), None, "")
            reply: GangReply = ray.get(ref)
        except TaskCancelledError:  # it never began
            self._schedule.ended(call, now)
        except ObjectLostError as e:
            if isinstance(e, RayTaskError):  # what the host was sent is gone: send it again
                self._references.clear()
            self._failed(call, type(e).__name__ if not isinstance(e, RayTaskError) else type(e.cause).__name__)
        except LOST as e:
            self._bury(call.host)
            self._failed(call, type(e).__name__)
        except RayTaskError as e:
            self._schedule.ended(call, now)
            if not call.wanted:
                return
            if isinstance(e.cause, RaygradError):
                raise e.cause from None
            raise
        else:
            self._schedule.answered(call, max(reply.wall_s, now - call.began_s), now)
            others = [c for c in call.job.calls if c is not call]
            self._schedule.ended(call, now)
            if call.wanted:
                for other in others:
                    self._supersede(other)
                self._unanswered -= 1
                parts = (reply.totals, reply.rows, reply.states, reply.scalars)
                up = sum(a.nbytes for part in parts for a in part.values())
                self._tell(call, "answered", reply.wall_s, reply, up)

    def _tell(
        self, call: Call, outcome: str, wall_s: float | None = None, reply: GangReply | None = None, up: int = 0
    ) -> None:
        gang = call.job.gang
        down = sum(a.nbytes for a in gang.states.values())
        wall_s = self._now - call.sent_s if wall_s is None else wall_s
        started = call.sent_s + self._away_s
        operation = Operation(
            gang.index, call.host.name or "?", call.attempt, len(gang.working), started, wall_s, down, up, outcome
        )
        self._news.append(Done(gang.index, reply, operation))

    def _supersede(self, call: Call) -> None:
        """Another attempt takes its place: it is not waited for any more."""
        call.job.calls.remove(call)
        host = {"host": call.host.name or "?"}
        _LOG.info(
            "attempt %d at gang %d superseded: another host is faster", call.attempt, call.job.gang.index, extra=host
        )
        self._tell(call, "superseded")
        self._give_up(call)

    def _give_up(self, call: Call) -> None:
        if call.wanted and call.host.calls[:1] != [call]:
            ray.cancel(call.ref)  # it has not begun: it never will
        call.wanted = False

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def _failed(self, call: Call, why: str, outcome: str = "lost") -> None:
        """An attempt has come to nothing: the gang is owed again, unless another attempt is under way.

        Only the gang at which its host died is blamed for it: not one that waited there, nor one whose answer was lost.
        """
        job = call.job
        self._schedule.ended(call, self._now)
        if not call.wanted:
            return
        job.losses += call.host.died_at is call
        if (job.losses >= ATTEMPTS or job.tries >= TRIES) and not job.calls:
            self._unanswered -= 1
            outcome = "lost for good"
        elif not job.calls:
            self._schedule.waiting.appendleft(job)
        then = "it is given up" if outcome == "lost for good" else "it runs again"
        host = {"host": call.host.name or "?"}
        _LOG.warning("attempt %d at gang %d %s (%s); %s", call.attempt, job.gang.index, outcome, why, then, extra=host)
        self._tell(call, f"{outcome}: {why}")

    def _bury(self, host: Host) -> None:
        if host in self.pool.hosts:
            host.died_at = host.calls[0]
            self.pool.lost.append(host.machine)
            self.pool.bury(host)
            self._schedule.gone(host)

    def _end_hung(self) -> None:
        """Kill hosts that hang."""
        now = self._now
        if now < self._look_s:
            return
        self._look_s = now + LOOK_S
        for host in self._schedule.hung(self.pool.hosts, now):
            head, *behind = host.calls
            if ray.wait([head.ref], timeout=0)[0]:
                continue
            self._bury(host)
            for call in (head, *behind):
                del self._calls[call.ref]
                after = f"for {now - head.began_s:.0f} s"
                self._failed(call, after, "hung" if call is head else "lost behind one that hung")
