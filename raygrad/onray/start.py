"""Starting a Ray on this machine, also before it is known what will run on it.

Until the first round of a small run most of the time goes into starting processes and importing torch in each. So the
`raygrad run` command starts Ray and its hosts in a thread while it imports torch itself and prepares the data. This
module imports no torch.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from raygrad.errors import Stopped
from raygrad.hosts import HostRange


def start_ray(cpus: int, gpus: int | None) -> None:
    """Start a Ray with `cpus` and `gpus` (None: those that there are) on this machine. Raises Stopped if it does not
    come up.
    """
    import ray

    try:
        with _for_children(PYTHONPATH=_own_paths()):
            ray.init(
                address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
    except Exception as e:
        if type(e) is not Exception:  # so Ray says that processes of its own did not come up
            raise
        line = str(e).strip().partition("\n")[0]
        raise Stopped(f"Ray did not start on this machine ({line}); is it short of memory, disk or time?") from e


def host_class(gpus_per_host: float = 0.0, cpus_per_host: float = 1.0) -> Any:
    """The host actor's class, wrapped for Ray. In a placement group its actors belong to it, else they are spread."""
    import ray
    from ray.util import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from raygrad.onray.host import ClientHost

    group = get_current_placement_group()
    place = "SPREAD" if group is None else PlacementGroupSchedulingStrategy(group, -1, True)
    return ray.remote(
        num_cpus=cpus_per_host, num_gpus=gpus_per_host, max_restarts=0, max_task_retries=0, scheduling_strategy=place
    )(ClientHost)


class Lender:
    """Host actors that outlive a run: those that one gives back are the next one's. `number` are started at once.

    They belong to the placement group that we are in, if we are in one.
    """

    def __init__(self, number: int, gpus_per_host: float = 0.0, cpus_per_host: float = 1.0) -> None:
        make = host_class(gpus_per_host, cpus_per_host)
        self._idle: list[Any] = [make.remote() for _ in range(number)]

    def take(self, most: int) -> list[Any]:
        """At most so many of the idle ones. Whether they are alive, the taker finds out."""
        taken, self._idle = self._idle[:most], self._idle[most:]
        return taken

    def give(self, actors: list[Any]) -> None:
        """Actors that do nothing now."""
        self._idle += actors

    def close(self) -> None:
        """End the idle ones."""
        import ray

        for actor in self._idle:
            ray.kill(actor)
        self._idle = []


class EarlyStart:
    """A Ray with hosts, as `Where.hosts` says, being started in a thread. Whoever makes one closes it, whatever
    happens.
    """

    def __init__(self, hosts: int | str) -> None:
        self._hosts = HostRange.of(hosts)
        self._actors: list[Any] = []
        self._error: BaseException | None = None
        self._ready, self._closed = Event(), Event()
        Thread(target=self._start, name="raygrad-early-start", daemon=True).start()

    def _start(self) -> None:
        try:
            cpus = self._hosts.cpus(os.cpu_count() or 1)
            start_ray(cpus, 0)
            make = host_class()
            self._actors = [make.remote() for _ in range(self._hosts.first(cpus))]
        except BaseException as e:  # it is raised where the hosts are asked for
            self._error = e
        self._ready.set()
        self._closed.wait()  # Linux ends Ray's processes with the thread that started them

    def actors(self) -> list[Any]:
        """The host actors, once Ray is up; each is given out once. Raises what the start raised."""
        self._ready.wait()
        if self._error is not None:
            raise self._error
        actors, self._actors = self._actors, []
        return actors

    def close(self) -> None:
        """Shut this Ray down."""
        import ray

        self._ready.wait()
        ray.shutdown()
        self._closed.set()


def _own_paths() -> str:
    """What makes the modules that this process finds importable elsewhere, the user's own among them."""
    paths = [Path(p).resolve() for p in (*sys.path, "")]
    own = [str(p) for p in paths if not (p.is_relative_to(sys.prefix) or p.is_relative_to(sys.base_prefix))]
    return os.pathsep.join(dict.fromkeys(own))


@contextmanager
def _for_children(**variables: str) -> Iterator[None]:
    """Environment variables for the processes that are started inside."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
