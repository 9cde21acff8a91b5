"""Lets the faults of a plan happen to hosts, the driver and the storage, around any executor."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from raygrad.driver import Executor
from raygrad.faults import Fault
from raygrad.gang import Gang, Phase
from raygrad.talk import Done


@runtime_checkable
class Hosts(Executor, Protocol):
    """An executor that can be made to lose what real ones lose."""

    def lose_host(self) -> None:
        """A host that is at work, or any, dies. What it owed must be done elsewhere."""
        ...

    def lose_node(self) -> None:
        """All hosts of the machine of such a host die at once."""
        ...

    def lose_object(self) -> None:
        """The next answer cannot be fetched, nor what was put for the hosts. The hosts are well."""
        ...


def where(phase: Phase) -> tuple[int, int] | None:
    """The round and the phase of a fault that strikes here; None where clients are asked for something else."""
    return (phase.round, phase.number) if phase.conversation[0] in ("round", "begun") else None


class DriverKilled(BaseException):
    """Stands for kill -9: nothing may be saved on the way out."""


class Faulty:
    """An executor to which the faults of `plan` happen that cost time; each is taken out of it then.

    `kill` and `fill` are what happens to the driver and to the storage.
    """

    def __init__(self, inner: Hosts, plan: list[Fault], kill: Callable[[], None], fill: Callable[[], None]) -> None:
        self._inner, self._plan = inner, plan
        self._strike = {
            "host": inner.lose_host, "node": inner.lose_node, "object": inner.lose_object,
            "driver": kill, "storage": fill,
        }  # fmt: skip

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        """See `Executor.run`."""
        here = where(phase)
        answered = 0
        self._happen(here, 0)
        for done in self._inner.run(phase, gangs):
            yield done
            answered += done.reply is not None
            self._happen(here, answered)

    def _happen(self, here: tuple[int, int] | None, answered: int) -> None:
        for fault in [f for f in self._plan if (f.round, f.phase) == here and f.gang <= answered]:
            if fault.what in self._strike:
                self._plan.remove(fault)
                self._strike[fault.what]()


class Watched:
    """An executor that notes where faults could strike: by round and phase, the clients of each gang, for every time
    that it ran.
    """

    def __init__(self, inner: Executor, places: dict[tuple[int, int], list[list[tuple[int, ...]]]]) -> None:
        self._inner, self._places = inner, places

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        """See `Executor.run`."""
        here = where(phase)
        found: list[tuple[int, ...]] = []
        if here is not None:
            self._places.setdefault(here, []).append(found)

        def noted() -> Iterator[Gang]:
            for gang in gangs:
                found.append(tuple(gang.working.tolist()))
                yield gang

        yield from self._inner.run(phase, noted())
