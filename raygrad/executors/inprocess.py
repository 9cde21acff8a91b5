"""Runs gangs one after another in this process, with one thread, as every host does."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter

import torch

from raygrad.faults import HostLost
from raygrad.gang import Gang, Phase
from raygrad.runner import GangRunner, HostSpec, be_deterministic, difference, numerics, refused
from raygrad.talk import Done, Operation

ATTEMPTS = 3
"""On so many hosts a gang is lost before it is given up."""


@contextmanager
def as_on_a_host(device: str) -> Iterator[None]:
    """One torch thread inside and, on a GPU, deterministic algorithms; the caller's settings afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _deterministic() if device == "cuda" else nullcontext():  # what sets it imports torch's compiler: seconds
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _deterministic() -> Iterator[None]:
    strict, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    be_deterministic("cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark


class InProcess:
    """The executor behind `--on local`."""

    def __init__(self, spec: HostSpec, recorded: Mapping[str, str] | None = None, strict: bool = True) -> None:
        self.phases: list[Phase] = []
        self.odd_hosts: dict[str, str] = {}
        self._spec = spec
        self._loses_next = False
        with as_on_a_host(spec.device):
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
            for attempt in range(1, ATTEMPTS + 1):
                started = perf_counter()
                operation = Operation(gang.index, "local", attempt, len(gang.working), started, 0.0, 0, 0)
                try:
                    with as_on_a_host(self._spec.device):
                        reply = self.runner.run(phase, gang, lambda: self.phases[:-1])
                except HostLost:
                    self.lose_host()
                    outcome = "lost for good: injected" if attempt == ATTEMPTS else "lost: injected"
                    yield Done(gang.index, None, replace(operation, outcome=outcome))
                    continue
                if self._loses_next:
                    self._loses_next = False
                    yield Done(gang.index, None, replace(operation, outcome="lost: the answer (injected)"))
                    continue
                yield Done(gang.index, reply, replace(operation, wall_s=perf_counter() - started))
                break

    def lose_host(self) -> None:
        """Forget everything that a host that dies would lose: a planned fault."""
        with as_on_a_host(self._spec.device):
            self.runner = GangRunner(self._spec)

    lose_node = lose_host

    def lose_object(self) -> None:
        """The next answer is lost: a planned fault."""
        self._loses_next = True

    def close(self) -> None:
        """Nothing to give back."""
