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

import pyarrow.compute as pc

from raygrad.driver import Executor
from raygrad.errors import Stopped
from raygrad.executors.faulty import DriverKilled, Faulty, Hosts, Watched
from raygrad.experiment import Checkpoints, Experiment, Where
from raygrad.faults import REMOVES_CLIENT, Fault, Place, random_plan
from raygrad.files import storage, tables
from raygrad.files.runs import LoadedRun, load
from raygrad.run import create, play
from raygrad.talk import DAMAGED, KILLER, REJECTED, Failures

WHY = ("outcome", "clients_failed", "clients_rejected")
"""The columns that say why a client is missing."""


@dataclass(frozen=True)
class Trial:
    """One plan and how it went."""

    number: int
    plan: tuple[Fault, ...]
    ok: bool
    detail: str
    missed: int = 0
    """So many of the plan's faults never happened: earlier ones changed the run."""


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
        """See `raygrad.player.Injector`."""
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


@dataclass
class _Observer:
    """Lets nothing happen; `seen` is as in `Watched`."""

    seen: dict[tuple[int, int], list[list[tuple[int, ...]]]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def wrap(self, executor: Executor, folder: Path) -> Executor:
        """See `raygrad.player.Injector`."""
        return Watched(executor, self.seen)


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
    whole, places = undisturbed(experiment, where, folder)
    for number in range(1, plans + 1):
        plan = random_plan(seed, number, places, removes=number % 2 == 0)
        yield trial(experiment, where, folder, number, plan, whole)


def undisturbed(experiment: Experiment, where: Where, folder: Path) -> tuple[LoadedRun, list[Place]]:
    """The run to which nothing happens, and where something could."""
    observer = _Observer()
    whole = create(experiment, where, run_root=folder, name="undisturbed")
    for _ in play(whole, injector=observer):
        pass
    places = [
        Place(round, phase, max(map(len, runs)), tuple(sorted({c for gangs in runs for gang in gangs for c in gang})))
        for (round, phase), runs in sorted(observer.seen.items())
        if any(runs)
    ]
    return load(whole.folder), places


def trial(
    experiment: Experiment, where: Where, folder: Path, number: int, plan: tuple[Fault, ...], whole: LoadedRun
) -> Trial:
    """One plan. `whole` is the undisturbed run."""
    removed = tuple(replace(f, what="absent") for f in plan if f.what in REMOVES_CLIENT)
    try:
        expected = whole
        if removed:
            expected, _ = disturbed(experiment, replace(where, on="local"), folder, f"absent-{number}", list(removed))
        left = list(plan)
        found, stops = disturbed(experiment, where, folder, f"plan-{number}", left)
    except Exception as e:
        return Trial(number, plan, False, f"{type(e).__name__}: {e}")
    leave_out = WHY if removed else ()
    same = contents(found, leave_out) == contents(expected, leave_out)
    what = f"resumed {stops} times, " if stops else ""
    missed = _missed(left, found)
    what += f"{missed} of {len(plan)} faults never happened, " if missed else ""
    what += "the bits it must have" if same else "other bits than it must have"
    return Trial(number, plan, same, what, missed)


def _missed(left: list[Fault], run: LoadedRun) -> int:
    """How many of the faults in `left` the run did not meet."""
    rows = run.table("clients").to_pylist()
    out = {r["client"] for r in rows if r["outcome"] in (REJECTED, DAMAGED, KILLER)}
    return sum(f.client not in out for f in left)


def disturbed(
    experiment: Experiment, where: Where, folder: Path, name: str, left: list[Fault]
) -> tuple[LoadedRun, int]:
    """A run to which the faults in `left` happen, resumed after every stop; and how often it was.

    Those that happened and cost time are taken out of `left`.
    """
    run = create(experiment, where, run_root=folder, name=name)
    stash = folder / f".{name}-stash"
    stops = 0
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
