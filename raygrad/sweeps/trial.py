"""One trial of a sweep: the runs of one setting, one for each seed, played to the same number of evaluations in turn.

It knows no Ray: where the hosts are is `Where`'s matter, and who compares trials is its caller's. A trial's runs are
ordinary run folders; it goes on from their newest checkpoints, and a checkpoint is written before each report, so that
whoever stops or kills it loses nothing that was reported.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from raygrad import run as engine
from raygrad.errors import BadInput, BelowQuorum, CheckFailed, Diverged
from raygrad.experiment import Experiment, Where
from raygrad.files import checkpoint, mirror, storage, tables
from raygrad.files.remote import Url
from raygrad.files.runs import LoadedRun, is_run, locked
from raygrad.player import Round

if TYPE_CHECKING:
    from raygrad.onray.start import Lender

Outcome = Literal["", "finished", "stopped", "diverged", "failed", "time"]
"""How a trial ended; empty while it goes on. `stopped`: by the scheduler; `time`: its time budget was spent."""
LOCK_S = 60.0
"""So long the process that had a run before may take to let go of it."""


@dataclass(frozen=True)
class Job:
    """A run that a trial plays: `root/name/id`, in a folder or in an object store."""

    experiment: Experiment
    root: Path | Url
    name: str
    id: str

    @property
    def at(self) -> Path | Url:
        """Where the run is."""
        return self.root / self.name / self.id

    @property
    def folder(self) -> Path:
        """Where it is played and read on this machine."""
        return mirror.local_folder(self.at) if isinstance(self.at, Url) else self.at

    def fetch(self) -> bool:
        """Bring the folder to what is committed, if the run is in an object store. False if there is no run yet."""
        if isinstance(self.at, Url):
            if not mirror.is_run(self.at):
                return False
            mirror.fetch(self.at)
        return is_run(self.folder)

    def open(self, where: Where) -> LoadedRun:
        """The run, made if it is not there. Raises BadInput."""
        if not self.fetch():
            return engine.create(self.experiment, where, run_root=self.root, name=self.name, id=self.id)
        _wait_until_free(self.folder)
        record = storage.read_json(self.folder / "experiment.json")
        _, experiment = engine.planned(self.experiment, where, engine.shard_root(where, self.at))
        if record.get("hash") != experiment.hash:
            raise BadInput(f"{self.folder} is a run of another experiment; remove it, or start a new sweep")
        url = self.at if isinstance(self.at, Url) else None
        return LoadedRun(self.folder, self.name, experiment, where, url)


@dataclass(frozen=True)
class Evaluation:
    """The validation metrics of a run after a round; `communications` is a total."""

    round: int
    communications: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """What a trial has come to: the mean over its seeds of each metric, at equal communications.

    With an `outcome` it is the last one; `message` says why, and `seed` is the position of the run that failed or
    diverged, -1 if none did.
    """

    round: int
    communications: int
    values: Mapping[str, float]
    outcome: Outcome = ""
    message: str = ""
    seed: int = -1

    @property
    def over(self) -> bool:
        """Whether the trial has ended."""
        return self.outcome != ""


def evaluations(run: Path, until: int | None = None) -> list[Evaluation]:
    """The validations of a run up to round `until` (None: to its newest checkpoint)."""
    if until is None:
        found = checkpoint.latest(run)
        until = 0 if found is None else found.round
    if not until:
        return []
    rounds = tables.read(run, "rounds", ["round", "communications"])
    totals = dict(
        zip(rounds["round"].to_pylist(), np.cumsum(rounds["communications"].to_numpy()).tolist(), strict=True)
    )
    by_round: dict[int, dict[str, float]] = {}
    for row in tables.read(run, "metrics").to_pylist():
        if row["part"] == "validation" and row["round"] <= until and row["metric"] != "examples":
            by_round.setdefault(row["round"], {})[row["metric"]] = row["value"]
    return [Evaluation(r, totals[r], values) for r, values in sorted(by_round.items())]


class Trial:
    """Plays jobs. `budget_s` is the wall time that all of them may take, None for any. With `tested` each finished run
    is evaluated on the test set, else the test set is not touched. With `until` it ends after that round, and may be
    gone on with. `charge` is the communications of a round, for the
    report of a trial that ends before its first evaluation. `lender` has hosts for it.
    """

    def __init__(
        self, jobs: Sequence[Job], where: Where, *, budget_s: float | None = None, tested: bool = False,
        until: int | None = None, charge: int = 1, lender: "Lender | None" = None,
    ) -> None:  # fmt: skip
        self._seeds = [_Seed(job, where, lender, until or job.experiment.rounds) for job in jobs]
        self._budget_s, self._tested, self._charge = budget_s, tested, charge
        self._told = 0
        self._last: Report | None = None

    def next(self) -> Report:
        """Go on to the next evaluation. What an earlier process had evaluated is reported again first.

        Raises Stopped if hosts or storage are lost; the trial may then be made again and goes on.
        """
        if self._last is not None and self._last.over:
            return self._last
        self._last = self._next()
        if self._last.over:
            self.close()
        return self._last

    def _next(self) -> Report:
        position = 0
        try:
            for position, seed in enumerate(self._seeds):  # noqa: B007  (the handlers below say whose it was)
                seed.open()
                while len(seed.evaluations) <= self._told and not seed.done:
                    if self._spent:
                        return self._end("time", f"its time budget of {self._budget_s:g} s is spent")
                    seed.advance()
            if any(len(s.evaluations) <= self._told for s in self._seeds):
                return self._end("finished", "")
            last = all(len(s.evaluations) == self._told + 1 and s.last_evaluation for s in self._seeds)
            if last:
                for position, seed in enumerate(self._seeds):  # noqa: B007
                    while not seed.done:
                        seed.advance()
                    if self._tested:
                        seed.test()
        except Diverged as e:
            return self._end("diverged", str(e), position)
        except (BadInput, BelowQuorum, CheckFailed) as e:
            return self._end("failed", str(e), position)
        shown = [s.evaluations[self._told] for s in self._seeds]
        self._told += 1
        values = {n: sum(e.values[n] for e in shown) / len(shown) for n in shown[0].values}
        return Report(shown[0].round, shown[0].communications, values, "finished" if last else "")

    def _end(self, outcome: Outcome, message: str, seed: int = -1) -> Report:
        """The last report of a trial that did not reach another evaluation."""
        if outcome in ("finished", "time") and self._last is not None:
            return Report(self._last.round, self._last.communications, self._last.values, outcome, message, seed)
        first = self._seeds[0]
        rounds = min(first.until, (self._told + 1) * first.job.experiment.evaluation.every)
        charge = self._last.communications / self._last.round if self._last is not None else self._charge
        return Report(rounds, max(1, round(rounds * charge)), {}, outcome, message, seed)

    @property
    def _spent(self) -> bool:
        return self._budget_s is not None and sum(s.elapsed_s for s in self._seeds) >= self._budget_s

    def close(self) -> None:
        """Save and let go of everything. The last opened is closed first, as the handlers of signals ask for."""
        for seed in reversed(self._seeds):
            seed.close()


class _Seed:
    """One run of a trial, up to round `until`."""

    def __init__(self, job: Job, where: Where, lender: "Lender | None", until: int) -> None:
        self.job, self._where, self._lender, self.until = job, where, lender, until
        self.evaluations: list[Evaluation] = []
        self.elapsed_s = 0.0
        self._run: LoadedRun | None = None
        self._rounds: Generator[Round, None, None] | None = None
        self._round = 0

    @property
    def done(self) -> bool:
        """Whether its last round is played."""
        return self._round >= self.until

    @property
    def last_evaluation(self) -> bool:
        """Whether no evaluation follows."""
        every = self.job.experiment.evaluation.every
        return self.evaluations[-1].round + every > self.until

    def open(self) -> None:
        if self._run is not None:
            return
        self._run = self.job.open(self._where)
        found = checkpoint.latest(self._run.folder)
        if found is not None:
            self._round, self.elapsed_s = found.round, found.extra["elapsed_s"]
            self.evaluations = evaluations(self._run.folder)

    def advance(self) -> None:
        """One round more."""
        round = next(self._playing)
        self._round, self.elapsed_s = round.index, round.elapsed_s
        if round.validation is not None:
            values = {n: v for n, v in round.validation.items() if n != "examples"}
            self.evaluations.append(Evaluation(round.index, round.communications, values))
        if round.validation is not None or self.done:
            round.save()

    def test(self) -> None:
        """The evaluation on the test set, which follows the last round."""
        for _ in self._playing:
            pass

    @property
    def _playing(self) -> Generator[Round, None, None]:
        assert self._run is not None
        if self._rounds is None:
            self._rounds = engine.play(self._run, lender=self._lender)
        return self._rounds

    def close(self) -> None:
        """End its hosts and let go of its folder; without its last round's successor nothing is tested."""
        if self._rounds is not None:
            self._rounds.close()
            self._rounds = None


def _wait_until_free(folder: Path) -> None:
    """Wait while another process, which is about to end, holds the run."""
    until = time.monotonic() + LOCK_S
    while time.monotonic() < until:
        with suppress(BadInput), locked(folder):
            return
        time.sleep(0.2)
