"""Runs gangs one after another in this process, with one thread, as every host does."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch

from raygrad.gang import Gang, Phase
from raygrad.runner import GangRunner, HostSpec, difference, numerics, refused
from raygrad.talk import Done, Operation


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, the caller's setting afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class InProcess:
    """The executor behind `--on local`."""

    def __init__(self, spec: HostSpec, recorded: Mapping[str, str] | None = None, strict: bool = True) -> None:
        self.phases: list[Phase] = []
        self.odd_hosts: dict[str, str] = {}
        with one_thread():
            self.runner = GangRunner(spec)
            self.numerics = numerics(spec, self.runner.canary())
        if recorded is not None:
            error = refused("this process", recorded, self.numerics)
            if error is not None and strict:
                raise error
            if odd := difference(recorded, self.numerics):
                self.odd_hosts["this process"] = odd

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        self.phases = [*self.phases[: phase.number], phase]
        for gang in gangs:
            started = perf_counter()
            with one_thread():
                reply = self.runner.run(phase, gang, lambda: self.phases[:-1])
            wall = perf_counter() - started
            yield Done(gang.index, reply, Operation(gang.index, "local", 1, len(gang.working), started, wall, 0, 0))

    def close(self) -> None:
        """Nothing to give back."""
