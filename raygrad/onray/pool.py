"""The host actors: made, greeted, replaced, and with elastic hosts as many as there is room and work for.

A host that died at work is replaced at once; what it died of is the executor's question. One that could not even start
is tried again, later each time.
"""

import logging
from collections.abc import Iterable, Mapping
from time import perf_counter, sleep
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raygrad import logs
from raygrad.errors import BadInput, RaygradError, Stopped
from raygrad.hosts import FIRST, HostRange
from raygrad.onray import cluster
from raygrad.onray.schedule import Host
from raygrad.onray.start import host_class
from raygrad.runner import HostSpec, difference, refused

_LOG = logging.getLogger(__name__)
LOST = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError)
START_S = 120.0
"""How long there may be no host, or with elastic hosts fewer than the fewest, before the run stops."""
FETCH_BYTES_PER_S = 5e6
"""How slow an object store may be at giving a machine the shards; that much longer a start may take."""
STARTS = 8
"""How many times in a row every place may fail to get a host that starts."""
LOOK_S = 1.0
"""Between two looks at how many hosts there should be."""
ASK_S = 60.0
"""So long after an ask that brought no node, less is asked of the autoscaler."""
ANY_NUMBER = 1 << 20


class Pool:
    """Hosts by what `hosts` asks for. `numerics` is what the run computes with, once a host said hello.

    With `joined` the Ray was not started for this run: an elastic one asks the cluster's autoscaler for room.
    """

    def __init__(
        self,
        spec: HostSpec,
        hosts: HostRange,
        gpus_per_host: float,
        numerics: Mapping[str, str] | None,
        strict: bool,
        made: Iterable[Any],
        joined: bool,
        cpus_per_host: float = 1.0,
    ) -> None:
        self.hosts: list[Host] = []
        self.hellos: dict[Any, Host] = {}
        self.lost: list[str] = []  # machines of hosts that died since they were counted, "" if it never said hello
        self.numerics: dict[str, str] | None = dict(numerics) if numerics else None
        self.odd_hosts: dict[str, str] = {}
        self._range, self._gpus, self._strict = hosts, gpus_per_host, strict
        self._fetch_s = spec.fetch_bytes / FETCH_BYTES_PER_S
        self._group_room = cluster.group_room(gpus_per_host, cpus_per_host)
        self._actor_class = host_class(gpus_per_host, cpus_per_host)
        self._spec = ray.put(spec)
        self._asks = hosts.elastic and joined and self._group_room is None
        self._asked = self._had = 0
        self._step, self._step_s = ANY_NUMBER, perf_counter()
        self._gangs = self._wanted = 0
        self._look_s = 0.0
        self._short_s: float | None = None
        self._refused = 0
        self._failed_starts, self._start_s = 0, 0.0
        self._hello = (self._spec, logs.current().run, logs.level_name())
        for actor in made:
            self._start(actor)
        self.tend(FIRST)

    @property
    def ready(self) -> list[Host]:
        """Those that said hello, in the order in which they were made."""
        return [h for h in self.hosts if h.name]

    def await_first(self) -> None:
        """Wait until a host is ready. Raises Stopped or what refuses a host."""
        while not self.ready:
            self.tend(FIRST)
            for ref in wait(list(self.hellos), LOOK_S):
                self.greet(ref)

    def tend(self, gangs: int) -> None:
        """See to it that there are as many hosts as there should be for so many gangs per phase.

        Raises Stopped if for too long there were too few.
        """
        now = perf_counter()
        if now < self._look_s and gangs < 2 * self._gangs:
            return
        self._look_s, self._gangs = now + LOOK_S, gangs
        room, useful = self._room(gangs), max(self._range.fewest, self._range.at_most(gangs))
        if self._asks:
            self._ask(useful, max(room, len(self.hosts)), now)
        if now >= self._start_s:
            self._wanted = max(self._range.fewest, min(useful, room)) - self._refused
            for _ in range(self._wanted - len(self.hosts)):
                self._start(self._actor_class.remote())
        fewest = self._range.fewest if self._range.elastic else 1
        if len(self.ready) >= fewest:
            self._short_s = None
        elif self._short_s is None:
            self._short_s = now
        elif now - self._short_s > START_S + self._fetch_s and not wait(list(self.hellos), 0):
            raise Stopped(_too_few(fewest, len(self.ready)))

    def greet(self, ref: Any) -> None:
        """A host said hello, or died before it could."""
        host = self.hellos.pop(ref)
        try:
            name, numerics = ray.get(ref)
        except LOST as e:
            self._failed_starts += 1
            self.lost.append("")
            self.bury(host)
            _LOG.warning("a host could not start (%s); another is tried", type(e).__name__)
            # First at once, then after 1 s, 2 s, 4 s and so on, each time for about as many as there should be.
            times = self._failed_starts // max(1, self._wanted)
            self._start_s = perf_counter() + (min(60.0, 2.0 ** (times - 2)) if times > 1 else 0.0)
            if times >= STARTS and not self.ready:
                raise Stopped(
                    f"{self._failed_starts} hosts in a row could not start; the last: {type(e).__name__}"
                ) from e
            return
        except RayTaskError as e:
            if isinstance(e.cause, RaygradError):
                raise e.cause from None
            raise
        self._failed_starts = 0
        recorded = self.numerics = self.numerics or numerics
        error = refused(f"host {name}", recorded, numerics)
        if error is not None and self._strict:
            self._refuse(host, error)
            return
        if odd := difference(recorded, numerics):
            self.odd_hosts[name] = odd
            _LOG.warning("computes other bits than the run began with: %s", odd, extra={"host": name})
        host.name = name
        self._tell_ready(name)

    def _tell_ready(self, name: str) -> None:
        ready, wanted = len(self.ready), max(len(self.hosts), self._wanted)
        _LOG.info("ready, %d of %d", ready, wanted, extra={"host": name})
        logs.step("starting hosts", ready, wanted, "up")

    def bury(self, host: Host) -> None:
        """Take a dead host out; whoever is still there of it is ended."""
        self.hosts.remove(host)
        ray.kill(host.actor)
        self._look_s = 0.0

    def close(self) -> None:
        """End the host actors, and take back what was asked of the autoscaler."""
        for host in self.hosts:
            ray.kill(host.actor)
        self.hosts = []
        if self._asked:
            cluster.ask_for(0, self._gpus)
            self._asked = 0

    def release(self) -> list[Any]:
        """The actors of hosts that have nothing to do, which are no longer ours."""
        idle = [h for h in self.ready if not h.calls]
        self.hosts = [h for h in self.hosts if h not in idle]
        return [h.actor for h in idle]

    def _start(self, actor: Any) -> None:
        host = Host(actor)
        self.hosts.append(host)
        self.hellos[actor.hello.remote(*self._hello)] = host

    def _refuse(self, host: Host, error: BadInput) -> None:
        """Go on without a host that would compute other bits; raise if none is left."""
        self._refused += 1
        self.bury(host)
        _LOG.warning("a host is refused: %s", error)
        if not self.hosts:
            raise error

    def _room(self, gangs: int) -> int:
        """How many hosts there is room for, those that we have included."""
        wanted = self._range
        if not wanted.elastic or len(self.hosts) >= wanted.at_most(gangs):
            return len(self.hosts)
        if self._group_room is not None:
            return self._group_room
        # Those that are starting may hold their room already or not, so they are not counted.
        return len(self.ready) + cluster.free_room(self._gpus)

    def _ask(self, useful: int, have: int, now: float) -> None:
        """Ask the autoscaler for what is of use. It grants all or nothing: where nothing comes, ask for half as much
        more.
        """
        if have > self._had:
            self._step, self._step_s = 2 * self._step, now
        elif have < useful and now - self._step_s > ASK_S:
            self._step, self._step_s = max(1, min(self._step, useful - have) // 2), now
        self._had = have
        wanted = max(self._range.fewest, min(useful, have + self._step))
        if wanted != self._asked:
            cluster.ask_for(wanted, self._gpus)
            self._asked = wanted


def wait(references: list[Any], timeout_s: float) -> list[Any]:
    """The first of them that is ready, if one is within that time."""
    if references:
        return ray.wait(references, num_returns=1, timeout=timeout_s)[0]
    sleep(min(timeout_s, 0.1))
    return []


def _too_few(fewest: int, ready: int) -> str:
    if fewest == 1:
        return f"no host became ready within {START_S:.0f} s; is there room for one more actor on the cluster?"
    return f"for {START_S:.0f} s there were {ready} hosts, fewer than {fewest}; is there room for more on the cluster?"
