"""`raygrad verify faults`: random plans of faults happen to a run, and its result must be what it should be.

Faults that cost time (`raygrad.faults.COSTS_TIME`) must leave the digest of the undisturbed run. Faults that take a
client out must leave what a run leaves in which that client was absent: the same model, states and rows, but for the
columns that say why it is missing.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raygrad import storage, tables
from raygrad.driver import Executor
from raygrad.errors import Stopped
from raygrad.executors.faulty import DriverKilled, Faulty, Hosts
from raygrad.experiment import Checkpoints, Experiment, Where
from raygrad.faults import REMOVES_CLIENT, Fault, random_plan
from raygrad.run import create, play
from raygrad.runs import LoadedRun, load
from raygrad.talk import Failures

WHY = ("outcome", "clients_failed", "clients_rejected")
"""The columns that say why a client is missing."""


@dataclass(frozen=True)
class Trial:
    """One plan and how it went."""

    number: int
    plan: tuple[Fault, ...]
    ok: bool
    detail: str


@dataclass
class FaultInjector:
    """Lets the faults of a plan happen; `left` are those that have not."""

    left: list[Fault]
    stash: Path
    broken: bool = False
    faults: tuple[Fault, ...] = field(default=())

    def __post_init__(self) -> None:
        self.faults = tuple(f for f in self.left if f.client is not None)

    def wrap(self, executor: Executor, folder: Path) -> Executor:
        """See `raygrad.run.Injector`."""
        assert isinstance(executor, Hosts)
        return Faulty(executor, self.left, lambda: self._kill(folder), self._fill)

    def _kill(self, folder: Path) -> None:
        """The driver dies: what is in the folder now is what is left."""
        shutil.copytree(folder, self.stash)
        raise DriverKilled

    def _fill(self) -> None:
        self.broken = True

    @contextmanager
    def storage(self) -> Iterator[None]:
        """Inside, nothing can be written once the storage is full."""
        write = storage.Sink.write

        def limited(sink: storage.Sink, data: Any, /) -> int:
            if self.broken:
                raise OSError(errno.ENOSPC, "No space left on device (injected)")
            return write(sink, data)

        storage.Sink.write = limited
        try:
            yield
        finally:
            storage.Sink.write = write


def small(experiment: Experiment, rounds: int) -> Experiment:
    """The experiment with so many rounds, a checkpoint after every other one, that goes on without failed clients."""
    return replace(
        experiment, rounds=rounds, checkpoints=Checkpoints(every=2), failures=Failures(0, "skip", "skip", "skip")
    )


def trials(
    experiment: Experiment, where: Where, folder: Path, plans: int, seed: int, rounds: int = 4
) -> Iterator[Trial]:
    """Play `plans` random plans, every other one with a client that is taken out. Raises BadInput as a run does."""
    experiment = small(experiment, rounds)
    where = replace(where, shard_root=where.shard_root or str(folder / ".shards"))
    whole = create(experiment, where, run_root=folder, name="undisturbed")
    for _ in play(whole):
        pass
    whole = load(whole.folder)
    clients = whole.table("clients")
    cohorts = [np.unique(clients.filter(pc.field("round") == r)["client"].to_numpy()) for r in range(1, rounds + 1)]
    done = whole.table("operations").filter(pc.field("outcome") == "answered")
    phases, gangs = (1 + int(done[name].to_numpy().max()) for name in ("phase", "gang"))
    for number in range(1, plans + 1):
        plan = random_plan(seed, number, cohorts, phases, gangs, removes=number % 2 == 0)
        yield trial(experiment, where, folder, number, plan, whole)


def trial(
    experiment: Experiment, where: Where, folder: Path, number: int, plan: tuple[Fault, ...], whole: LoadedRun
) -> Trial:
    """One plan. `whole` is the undisturbed run."""
    removed = tuple(replace(f, what="absent") for f in plan if f.what in REMOVES_CLIENT)
    try:
        expected = whole
        if removed:
            expected, _ = disturbed(experiment, replace(where, on="local"), folder, f"absent-{number}", removed)
        found, stops = disturbed(experiment, where, folder, f"plan-{number}", plan)
    except Exception as e:
        return Trial(number, plan, False, f"{type(e).__name__}: {e}")
    leave_out = WHY if removed else ()
    same = contents(found, leave_out) == contents(expected, leave_out)
    what = f"resumed {stops} times, " if stops else ""
    return Trial(number, plan, same, what + ("the bits it must have" if same else "other bits than it must have"))


def disturbed(
    experiment: Experiment, where: Where, folder: Path, name: str, plan: tuple[Fault, ...]
) -> tuple[LoadedRun, int]:
    """A run to which the plan happens, resumed after every stop; and how often it was."""
    run = create(experiment, where, run_root=folder, name=name)
    stash = folder / f".{name}-stash"
    left, stops = list(plan), 0
    while True:
        injector = FaultInjector(left, stash)
        try:
            with injector.storage():
                for _ in play(run, injector=injector):
                    pass
            return load(run.folder), stops
        except DriverKilled:
            shutil.rmtree(run.folder)
            stash.rename(run.folder)
        except Stopped:
            if not injector.broken:
                raise
        stops += 1


def contents(run: LoadedRun, leave_out: tuple[str, ...] = ()) -> str:
    """The digest of a run, without some columns."""
    checkpoint = run.checkpoint
    rows = {n: run.table(n).filter(pc.field("round") <= checkpoint.round) for n in tables.BIT_STABLE}
    rows = {n: t.drop_columns([c for c in leave_out if c in t.column_names]) for n, t in rows.items()}
    return tables.digest(rows, checkpoint.tensors())
