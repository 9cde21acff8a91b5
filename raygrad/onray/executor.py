"""Runs gangs on host actors.

A phase is put once and gang calls name the reference; a small one travels in the calls themselves. Free hosts pull:
each has at most two gangs in flight, and takes the waiting gang whose clients it served last, so that shards stay warm.
A gang whose scratch lies on a host goes back to that host while it lives. Calls are at most once: what a dead host owed
is asked again elsewhere, three times at most. Since a gang is deterministic, none of this changes a bit.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raygrad.errors import BadInput, RaygradError, Stopped
from raygrad.gang import Gang, GangReply, Phase
from raygrad.onray.start import host_class
from raygrad.runner import HostSpec, difference, refused
from raygrad.talk import Done, Operation

LOST = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError)
ATTEMPTS = 3
IN_FLIGHT = 2
LONG_GANG_S = 0.2
"""From here on it costs more to wait behind another gang than to be sent later."""
START_S = 120.0
"""How long no host may be ready before the run stops."""
SMALL_PHASE = 256 * 2**10
"""Up to so many bytes a phase goes along with each call: a put and its fetches cost more than sending it twice."""
REPLACEMENTS = 8
"""How many times a host's place is filled again before it stays empty."""


@dataclass
class _Host:
    """The driver's picture of one actor. `name` is None until it said hello."""

    actor: Any
    name: str | None = None
    flight: int = 0
    alone: bool = False  # it runs a gang that was lost before, with no other beside it
    restarts: int = 0  # since a host in its place last answered


@dataclass
class _Call:
    """A gang in flight."""

    gang: Gang
    host: _Host
    attempt: int
    started: float


@cache
def _ship_by_value(name: str) -> None:
    """Send code of a user's own module along, since hosts may not be able to import it. Installed packages they can."""
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    if name != "__main__" and not name.startswith("raygrad.") and file and "site-packages" not in Path(file).parts:
        cloudpickle.register_pickle_by_value(module)


class RayExecutor:
    """Host actors behind one `run`.

    `numerics` is what an earlier part of the run recorded, if there was one. `made` are host actors to use first.
    With `ship_code` the user's own modules travel along, for hosts that cannot import them.
    """

    def __init__(
        self,
        spec: HostSpec,
        hosts: int,
        gpus_per_host: float = 0.0,
        numerics: Mapping[str, str] | None = None,
        strict: bool = True,
        made: Iterable[Any] = (),
        ship_code: bool = True,
    ) -> None:
        self._actor_class = host_class(gpus_per_host)
        self._made = list(made)
        self._ship_code = ship_code
        if ship_code:
            _ship_by_value(type(spec.model).__module__)
        self._spec = ray.put(spec)
        self._strict = strict
        self.numerics: dict[str, str] | None = dict(numerics) if numerics else None
        self.odd_hosts: dict[str, str] = {}
        self._gang_s = 0.0  # what the newest answer took
        self._phases: list[Phase] = []  # of this conversation
        self._references: dict[int, Any] = {}  # to those that were put, by number
        self._owners: dict[int, _Host] = {}
        self._last: dict[int, _Host] = {}
        self._hellos: dict[Any, _Host] = {}
        self.hosts: list[_Host] = []
        for _ in range(hosts):
            self._start()
        self._await_first()

    # --- hosts ------------------------------------------------------------------------------------------------------

    def _start(self, restarts: int = 0) -> None:
        host = _Host(self._made.pop() if self._made else self._actor_class.remote(), restarts=restarts)
        self.hosts.append(host)
        self._hellos[host.actor.hello.remote(self._spec)] = host

    def _await_first(self) -> None:
        deadline = perf_counter() + START_S
        while not any(h.name for h in self.hosts):
            if not self._hellos or perf_counter() > deadline:
                raise Stopped(
                    f"no host became ready within {START_S:.0f} s; is there room for one more actor on the cluster?"
                )
            ready, _ = ray.wait(list(self._hellos), num_returns=1, timeout=1.0)
            for ref in ready:
                self._greet(ref)

    def _greet(self, ref: Any) -> None:
        """A host said hello, or died before it could."""
        host = self._hellos.pop(ref)
        try:
            name, numerics = ray.get(ref)
        except LOST as e:
            self._bury(host, f"could not start ({type(e).__name__})")
            return
        except RayTaskError as e:
            if isinstance(e.cause, RaygradError):
                raise e.cause from None
            raise
        recorded = self.numerics = self.numerics or numerics
        error = refused(f"host {name}", recorded, numerics)
        if error is not None and self._strict:
            self._refuse(host, error)
            return
        if odd := difference(recorded, numerics):
            self.odd_hosts[name] = odd
        host.name = name

    def _refuse(self, host: _Host, error: BadInput) -> None:
        """Go on without a host that would compute other bits; raise if none is left."""
        self.hosts.remove(host)
        ray.kill(host.actor)
        if not self.hosts:
            raise error

    def _bury(self, host: _Host, why: str) -> None:
        """Take a dead host out and fill its place."""
        if host not in self.hosts:
            return
        self.hosts.remove(host)
        self._owners = {g: h for g, h in self._owners.items() if h is not host}
        self._last = {c: h for c, h in self._last.items() if h is not host}
        if host.restarts < REPLACEMENTS:
            self._start(host.restarts + 1)
        elif not self.hosts:
            raise Stopped(f"every host died {REPLACEMENTS} times; the last one {why}")

    # --- gangs ------------------------------------------------------------------------------------------------------

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        """The gangs' replies, as they come. Raises Stopped if a gang fails three times or no host is left."""
        if phase.number == 0:
            self._phases, self._references, self._owners = [], {}, {}
        self._phases.append(phase)
        if self._ship_code:
            _ship_by_value(phase.work.__module__)
        sent = phase if phase.nbytes <= SMALL_PHASE else self._reference(phase.number)
        source = iter(gangs)
        waiting: list[tuple[Gang, int]] = []
        calls: dict[Any, _Call] = {}
        idle_since = perf_counter()
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < 2 * IN_FLIGHT * max(1, len(self.hosts)):
                    gang = next(source, None)
                    exhausted = gang is None
                    if gang is not None:
                        waiting.append((gang, 0))
                self._submit(waiting, calls, sent, exhausted)
                if not (waiting or calls):
                    return
                ready, _ = ray.wait([*calls, *self._hellos], num_returns=1, timeout=1.0)
                if ready or calls:
                    idle_since = perf_counter()
                elif perf_counter() - idle_since > START_S:
                    raise Stopped(f"no host became ready within {START_S:.0f} s")
                for ref in ready:
                    if ref in self._hellos:
                        self._greet(ref)
                    else:
                        yield self._take(ref, calls.pop(ref), waiting, phase)
        finally:
            for call in calls.values():
                call.host.flight -= 1
                call.host.alone = False

    def _reference(self, number: int) -> Any:
        """A reference to phase `number` of this conversation."""
        if number not in self._references:
            self._references[number] = ray.put(self._phases[number])
        return self._references[number]

    def _submit(self, waiting: list[tuple[Gang, int]], calls: dict[Any, _Call], sent: Any, exhausted: bool) -> None:
        """Give waiting gangs to hosts with room.

        The last gangs are not queued behind others, unless they are short: who is free first takes them.
        """
        while True:
            ready = [h for h in self.hosts if h.name]
            last = exhausted and len(waiting) <= len(ready)
            depth = 1 if last and self._gang_s >= LONG_GANG_S else IN_FLIGHT
            free = sorted((h for h in ready if h.flight < depth and not h.alone), key=lambda h: h.flight)
            for host in free:
                pick = self._pick(host, waiting)
                if pick is not None:
                    gang, attempts = waiting.pop(pick)
                    numbers = () if self._owners.get(gang.index) is host else range(len(self._phases) - 1)
                    ref = host.actor.run.remote(sent, gang, [self._reference(k) for k in numbers])
                    host.flight += 1
                    host.alone = attempts > 0
                    calls[ref] = _Call(gang, host, attempts + 1, perf_counter())
                    break
            else:
                return

    def _pick(self, host: _Host, waiting: list[tuple[Gang, int]]) -> int | None:
        """Which waiting gang `host` should take: its own scratch's first, then the one whose clients it served last.

        A gang that was lost before runs alone, so that if its host dies again no other gang is blamed.
        """
        best, most = None, -1
        for i, (gang, attempts) in enumerate(waiting):
            owner = self._owners.get(gang.index)
            if attempts and host.flight:
                continue
            if owner is host:
                return i
            if owner is None:
                warm = sum(self._last.get(c) is host for c in gang.clients.tolist())
                if warm > most:
                    best, most = i, warm
        return best

    def _take(self, ref: Any, call: _Call, waiting: list[tuple[Gang, int]], phase: Phase) -> Done:
        host, gang = call.host, call.gang
        host.flight -= 1
        host.alone = False
        wall = perf_counter() - call.started
        down = sum(a.nbytes for a in gang.states.values())
        operation = Operation(
            gang.index, host.name or "?", call.attempt, len(gang.clients), call.started, wall, down, 0
        )
        try:
            reply: GangReply = ray.get(ref)
        except LOST as e:
            self._bury(host, "was lost")
            if call.attempt >= ATTEMPTS:
                raise Stopped(
                    f"gang {gang.index} (clients {', '.join(map(str, gang.clients.tolist()[:8]))}"
                    f"{'…' if len(gang.clients) > 8 else ''}) of round {phase.round} was lost on {ATTEMPTS} hosts "
                    "in a row, the last: "
                    f"{type(e).__name__}"
                ) from e
            waiting.insert(0, (gang, call.attempt))
            return Done(gang.index, None, replace(operation, outcome=f"lost: {type(e).__name__}"))
        except RayTaskError as e:
            if isinstance(e.cause, RaygradError):
                raise e.cause from None
            raise
        host.restarts, self._gang_s = 0, reply.wall_s
        self._owners[gang.index] = host
        for c in gang.clients.tolist():
            self._last[c] = host
        up = sum(a.nbytes for part in (reply.totals, reply.rows, reply.states, reply.scalars) for a in part.values())
        return Done(gang.index, reply, replace(operation, bytes_up=up, wall_s=reply.wall_s))

    def close(self) -> None:
        """End the host actors."""
        for host in self.hosts:
            ray.kill(host.actor)
        self.hosts = []
