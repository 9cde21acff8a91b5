"""Sweeps: many settings of one experiment, compared on validation data, and the best one run again with fresh seeds.

    sweep = Sweep(experiment, {"alpha": "loguniform(0.01, 0.5)", "K": "5,10,20"}, samples=40, scheduler="asha")
    done = raygrad.sweeps.sweep.run(sweep, name="digits-sweep")
    done.best()

A sweep leaves RUN_ROOT/NAME/ID with sweep.json, trials.parquet and the run folders of its trials. Everything that it
needs to go on is in there, and nothing of it is a pickle: points that are over are read from trials.parquet, the others
go on from their runs' checkpoints, and what a scheduler or a search has learned is told to a new one.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property
from math import isnan, lcm
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raygrad import config
from raygrad import run as engine
from raygrad.contract import Cohort, asks_first
from raygrad.devices import NotModelled
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import CHANGEABLE, EXCLUDED, SCHEMA_VERSION, Experiment, Where
from raygrad.files import mirror, runs, storage
from raygrad.files.remote import Url, location
from raygrad.files.runs import locked, new_folder
from raygrad.interrupts import Interrupts
from raygrad.logs import Say
from raygrad.naming import unknown
from raygrad.plan import Plan, check_cohort, make_plan
from raygrad.stragglers import WaitForAll
from raygrad.sweeps import space
from raygrad.sweeps.space import SHOWN, Expression, Range, Settings, Value
from raygrad.sweeps.trial import Evaluation, Job, evaluations
from raygrad.sweeps.trials import Book, Row, read_trials
from raygrad.talk import Failures

EXTRA = "pip install 'raygrad[tune]'"
"""What brings Optuna."""


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "search": ("random", "grid", "optuna"), "scheduler": ("none", "asha", "median", "hyperband", "pbt"),
    "mode": (None, "max", "min"),
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how.

    `space` gives each dimension's values (texts for `raygrad.sweeps.space`) by its field (`algorithm.beta`) or short
    name (`beta`). Where the algorithm itself is a dimension, fields that one of them lacks are left out for its trials,
    and settings that are the same then are played once. A grid plays every combination, whatever `samples` says.

    Each trial plays one setting with the seeds `experiment.seed`, +1, … of which there are `seeds`; its value is their
    mean of `metric` (None: accuracy, or the loss where accuracy is not measured). Its budget is `experiment.rounds`, or
    as many rounds as `communications` allow. `start` are settings that are tried first. `hosts_per_trial` hosts are
    reserved for each trial, and used by its seeds in turn. The best setting, or of each algorithm the best, is run
    again with `winner_seeds` seeds that the search has not seen, and only then tested.

    With the scheduler "pbt" the samples are a population: its trials are compared `generations` times, each but the
    last time the worst end, and forks of the best with settings nearby take their places (`raygrad.sweeps.population`).
    """

    experiment: Experiment
    space: dict[str, Any]
    samples: int = 10
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["none", "asha", "median", "hyperband", "pbt"] = "none"
    seeds: int = 1
    communications: int | None = None
    hosts_per_trial: int = 1
    max_concurrent: int | None = None
    time_budget_s: float | None = None
    start: tuple[dict[str, Any], ...] = ()
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    seed: int = 0
    winner_seeds: int = 3
    retries: int = 3
    generations: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", {space.field_of(n): _text(v) for n, v in self.space.items()})
        object.__setattr__(self, "start", tuple({space.field_of(n): v for n, v in p.items()} for p in self.start))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), [str(a) for a in allowed if a])
        for name, lowest in (
            ("samples", 1), ("seeds", 1), ("communications", 1), ("hosts_per_trial", 1), ("max_concurrent", 1),
            ("seed", 0), ("winner_seeds", 0), ("retries", 0), ("generations", 2),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise BadInput(f"{name} is {value!r}; it must be a whole number")
            if value is not None and value < lowest:
                raise BadInput(f"{name} is {value}; it must be >= {lowest}")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise BadInput(f"time_budget_s is {self.time_budget_s}; it must be > 0")
        if self.scheduler == "pbt":
            self._check_population()
        if self.scheduler == "hyperband" and self.search == "optuna":
            raise BadInput("scheduler hyperband has to know all trials from the beginning; use asha with search optuna")
        if "evaluation.mode" in self.space:
            raise BadInput("evaluation.mode cannot be a dimension: trials are compared on validation data")
        for path in ("seed", "rounds"):
            if path in self.space:
                raise BadInput(f"{path} cannot be a dimension; use seeds, and rounds or communications, of the sweep")
        if not self.space:
            raise BadInput("the search space is empty: give a dimension, such as alpha='loguniform(0.01, 0.5)'")
        if self.experiment.evaluation.mode != "validation":
            raise BadInput(
                "a sweep compares on validation data, and evaluation.mode is paper, which sets none apart: "
                "set evaluation.mode=validation"
            )
        measured = [*(m.rsplit(":", 1)[-1] for m in self.experiment.metrics), "loss"]
        if self.metric is not None and self.metric not in measured:
            raise unknown("metric", self.metric, measured)

    def _check_population(self) -> None:
        if self.search == "optuna":
            raise BadInput("scheduler pbt finds new settings itself, and so does search optuna: choose one of them")
        if self.time_budget_s is not None:
            raise BadInput("scheduler pbt compares trials after the same rounds; leave out time_budget_s")
        for name in self.space:
            part, _, field = name.partition(".")
            if not field or part not in CHANGEABLE:
                raise BadInput(
                    f"scheduler pbt changes settings of a run on the way, and {name} cannot change; dimensions may be "
                    f"fields of {', '.join(CHANGEABLE)}, such as alpha, beta and K"
                )

    @cached_property
    def dimensions(self) -> dict[str, Expression]:
        """What each field's values may be."""
        return {name: space.parse(text, SHOWN.get(name, name)) for name, text in self.space.items()}

    @property
    def grows(self) -> bool:
        """Whether settings are found on the way."""
        return self.search == "optuna" or self.scheduler == "pbt"

    @property
    def measure(self) -> str:
        """The metric's name."""
        names = [m.rsplit(":", 1)[-1] for m in self.experiment.metrics]
        return self.metric or ("accuracy" if "accuracy" in names else "loss")

    @property
    def better(self) -> Literal["max", "min"]:
        """Whether more of it is better."""
        return self.mode or ("min" if self.measure == "loss" else "max")

    @property
    def worst(self) -> float:
        """What a trial counts that diverged."""
        if self.better == "min":
            return 1e9
        return 0.0 if self.measure == "accuracy" else -1e9

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """The seeds of the search."""
        return tuple(self.experiment.seed + i for i in range(self.seeds))

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds with which the best settings are run again."""
        return tuple(self.experiment.seed + self.seeds + i for i in range(self.winner_seeds))

    @property
    def hash(self) -> str:
        """The sha256 of all that decides what is found; not of what may change where it goes on."""
        return hashlib.sha256(config.canonical({**self.to_json(), "max_concurrent": None, "retries": 0})).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back."""
        return config.dump(self)

    @staticmethod
    def from_json(data: Any) -> "Sweep":
        """From a JSON object. Raises BadInput naming the field."""
        return config.load(Sweep, data, "sweep")

    def with_settings(self, settings: Mapping[str, Value]) -> Experiment:
        """The experiment with a trial's settings. Raises BadInput naming the field."""
        pairs = [(n, space.text_of(v)) for n, v in sorted(settings.items(), key=lambda item: item[0].count("."))]
        pairs += [(o, "none") for n in settings for o in EXCLUDED.get(n, ()) if o not in settings]
        return config.assign_all(self.experiment, pairs)

    def fitting(self, settings: Settings) -> Settings:
        """The settings without the fields that a chosen kind lacks, such as beta for FedAvg."""
        lacking = set()
        for path in settings:
            part, _, name = path.rpartition(".")
            if part not in settings:
                continue
            chosen = getattr(self.with_settings({part: settings[part]}), part, None)
            if is_dataclass(chosen) and name not in config.names(chosen):
                lacking.add(path)
        return {n: v for n, v in settings.items() if n not in lacking}

    def settings(self) -> list[Settings]:
        """All settings of a random search or a grid, starting points first; of a guided search the starting points."""
        found = list(self.start)
        if self.search == "grid":
            found += space.grid(self.dimensions)
        elif self.search == "random":
            found += [space.draw(self.dimensions, self.seed, i) for i in range(self.samples - len(found))]
        return found


def _text(value: object) -> str:
    """What stands in a space, as text: an expression, a value or a list of values."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


@dataclass(frozen=True)
class Point:
    """A trial: its number, the sample that gave it, its settings, its seeds and the communications of a round.

    One of a population ends after round `until`, if that is not None, and may go on. One that was forked has its
    `parent`'s number, the round after which that was, and the sample whose place it has taken.
    """

    trial: int
    sample: int
    settings: Settings
    experiment: Experiment = field(repr=False)  # without a seed
    seeds: tuple[int, ...]
    charge: int  # communications of a round
    role: Literal["search", "winner"] = "search"
    until: int | None = None
    parent: int | None = None
    forked_at: int = 0

    def fork(self, trial: int, sample: int, settings: Settings, after: int) -> "Point":
        """A trial that plays what this one has, and other settings from after that round on."""
        changed = (f"{after}:{n}={space.text_of(v)}" for n, v in settings.items() if v != self.settings[n])
        experiment = replace(self.experiment, changes=(*self.experiment.changes, *changed))
        return replace(
            self, trial=trial, sample=sample, settings=settings, experiment=experiment, parent=self.trial,
            forked_at=after,
        )  # fmt: skip

    @property
    def goes_on(self) -> bool:
        """Whether rounds are left when it ends."""
        return self.until is not None and self.until < self.experiment.rounds

    def jobs(self, at: Path | Url) -> list[Job]:
        """Its runs in the sweep there, one for each seed."""
        made = [(s, replace(self.experiment, seed=s)) for s in self.seeds]
        return [Job(e, at, "trials", f"{self.trial:04d}-{s}") for s, e in made]

    @property
    def cadence(self) -> int:
        """Communications from one evaluation to the next."""
        return self.charge * self.experiment.evaluation.every

    @property
    def budget(self) -> int:
        """Communications that it may take."""
        return self.charge * self.experiment.rounds


class Maker:
    """Makes points from settings, and refuses what cannot be played. Raises BadInput before anything is started."""

    def __init__(self, sweep: Sweep, where: Where, run_root: Path | Url) -> None:
        self.sweep = sweep
        self._where = replace(where, on="local", hosts=1, address=None, gpus_per_host=0.0, device="cpu")
        self._shards = engine.shard_root(where, run_root / "name" / "id")
        self._charges: dict[str, int] = {}
        self._clients = 0  # where all trials have the same number of them
        self._seen: dict[str, int] = {}

    @property
    def unit(self) -> int:
        """The communications after which every trial has an evaluation."""
        return lcm(*self._charges.values()) * self.sweep.experiment.evaluation.every

    @property
    def most(self) -> int:
        """The communications of the longest trial."""
        return self.sweep.communications or max(self._charges.values()) * self.sweep.experiment.rounds

    def known(self, folder: Path | None = None) -> list[Point]:
        """The points that are known before anything is played, each once; those that were added to the sweep in
        `folder` on the way, too.
        """
        self._check_lacking()
        if self.sweep.grows:
            self._check_ends()
            if folder is not None and (recorded := remembered(folder)):
                return recorded_points(self, recorded)
        found = []
        for sample, settings in enumerate(self.sweep.settings()):
            if sample < len(self.sweep.start):
                self._check_start(settings)
            point = self.point(len(found), sample, settings)
            if point is not None:
                found.append(point)
        if self.sweep.scheduler == "pbt":
            if len(found) < 2:
                raise BadInput(f"scheduler pbt compares trials, and there is {len(found)}; give more samples")
            evaluation = found[0].experiment.evaluation
            if found[0].experiment.rounds < 2 * evaluation.every:
                raise BadInput(
                    f"scheduler pbt compares trials on the way, but with {found[0].experiment.rounds} rounds and "
                    f"evaluation.every={evaluation.every} they are judged once, at the end; allow more rounds"
                )
        return found

    def point(self, trial: int, sample: int, settings: Settings, repeat: bool = False) -> Point | None:
        """The point of these settings, None if they were played already and are not to be repeated."""
        sweep, settings = self.sweep, self.sweep.fitting(settings)
        key = json.dumps(settings, sort_keys=True)
        if key in self._seen and not repeat:
            return None
        self._seen[key] = trial
        experiment = sweep.with_settings(settings)
        charge = self._charge(settings)
        if sweep.communications is not None:
            rounds = sweep.communications // charge
            if not rounds:
                raise BadInput(f"communications is {sweep.communications}, but one round takes {charge}; allow more")
            experiment = replace(experiment, rounds=rounds)
        every = experiment.evaluation.every
        if experiment.rounds < every:
            raise BadInput(
                f"a trial has {experiment.rounds} rounds, but evaluation.every is {every}: it would never be judged; "
                f"allow more rounds, or set evaluation.every to at most {experiment.rounds}"
            )
        self._check_clients(experiment)
        return Point(trial, sample, settings, experiment, sweep.search_seeds, charge)

    def _check_clients(self, experiment: Experiment) -> None:
        clients = experiment.partition.clients or self._clients
        if clients:
            check_cohort(experiment, clients)

    def _check_lacking(self) -> None:
        """Refuse a dimension that none of the kinds has that are compared."""
        dimensions = self.sweep.dimensions
        for name in dimensions:
            part = name.rpartition(".")[0]
            if part in dimensions:
                kinds = _ends(dimensions[part])
                tried = [{part: k, name: _ends(dimensions[name])[0]} for k in kinds]
                if all(len(self.sweep.fitting(settings)) == 1 for settings in tried):
                    self.sweep.with_settings(tried[0])

    def _check_start(self, settings: Settings) -> None:
        dimensions = self.sweep.dimensions
        for name in settings:
            if name not in dimensions:
                raise unknown(
                    "dimension of a starting point", SHOWN.get(name, name), [SHOWN.get(n, n) for n in dimensions]
                )
        wanted = self.sweep.fitting({**{n: _ends(e)[0] for n, e in dimensions.items()}, **settings})
        lacking = [SHOWN.get(n, n) for n in wanted if n not in settings]
        if lacking:
            raise BadInput(f"a starting point lacks {', '.join(lacking)}: it gives a value to every dimension")
        if self.sweep.grows:
            for name, value in settings.items():
                expression = dimensions[name]
                if not (expression.holds(value) if isinstance(expression, Range) else value in expression.values):
                    raise BadInput(
                        f"a starting point has {SHOWN.get(name, name)}={value}, outside {self.sweep.space[name]}"
                    )

    def _check_ends(self) -> None:
        """Refuse fields and ends of ranges that cannot be, one dimension at a time."""
        dimensions = self.sweep.dimensions
        firsts = {n: _ends(e)[0] for n, e in dimensions.items()}
        for name, expression in dimensions.items():
            for value in _ends(expression):
                self._charge({**firsts, name: value})
                self._check_clients(self.sweep.with_settings(self.sweep.fitting({**firsts, name: value})))

    def _charge(self, settings: Settings) -> int:
        """The communications of a round under these kinds. The data of all seeds are prepared on the way."""
        kinds = {n: v for n, v in settings.items() if "." not in n}
        key = json.dumps(kinds, sort_keys=True)
        if key not in self._charges:
            experiment = self.sweep.with_settings(kinds)
            plans = [make_plan(replace(experiment, seed=s), self._where, self._shards) for s in self.sweep.search_seeds]
            if not plans[0].shards.validation_examples.any():
                raise BadInput(
                    "no client has validation examples, and a sweep compares on them; raise evaluation.validation"
                )
            self._charges[key] = charged(plans[0])
            if not any(n.partition(".")[0] in ("data", "partition") for n in self.sweep.dimensions):
                self._clients = plans[0].shards.clients
        return self._charges[key]


def remembered(folder: Path) -> list[dict[str, Any]]:
    """The points that a search which finds them on the way has come to, in order."""
    path = folder / "points.json"
    return storage.read_json(path)["points"] if path.is_file() else []


def remember(loaded: "LoadedSweep", *points: Point) -> None:
    """Add points to those that a search has come to."""
    folder = loaded.folder
    new = [{n: getattr(p, n) for n in ("trial", "sample", "settings", "parent", "forked_at")} for p in points]
    with storage.run_storage(folder):
        found = {"schema_version": SCHEMA_VERSION, "points": [*remembered(folder), *new]}
        storage.write_json(folder / "points.json", found)
    loaded.commit()


def recorded_points(maker: Maker, recorded: list[dict[str, Any]]) -> list[Point]:
    """Points as they were remembered."""
    found: dict[int, Point] = {}
    for r in recorded:
        if r["parent"] is not None:
            point = found[r["parent"]].fork(r["trial"], r["sample"], r["settings"], r["forked_at"])
        else:
            point = maker.point(r["trial"], r["sample"], r["settings"], repeat=True)
        if point is not None:
            found[point.trial] = point
    return list(found.values())


def _ends(expression: Expression) -> Sequence[Value]:
    return expression.ends if isinstance(expression, Range) else expression.values


@dataclass(frozen=True)
class _NoStates:
    """Clients that were never seen."""

    template: dict[str, np.ndarray]

    def get(self, clients: np.ndarray) -> dict[str, np.ndarray]:
        return {n: np.stack([a] * len(clients)) for n, a in self.template.items()}


def charged(plan: Plan) -> int:
    """The communications of a round: the conversation is carried with one client, in this process."""
    executor = InProcess(plan.spec)
    template = {n: t.numpy() for n, t in plan.client_state.items()}
    driver, state = plan.driver(executor, _NoStates(template)), plan.start()
    driver = replace(driver, devices=NotModelled(), policy=WaitForAll(), failures=Failures(quorum=0))
    cohort = Cohort(np.zeros(1, np.int64), np.ones(1), driver.population)
    asked = driver.algorithm.round(state.algorithm, cohort)
    return driver.converse(asked, ("round", 1), cohort, state.buffers).communications + asks_first(driver.sampler)


# --- what a sweep leaves --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep as it stands on disk. `recipe` are the words that name its experiment on a command line, if known. One
    from an object store has a `url`; `folder` is then the local one, and `commit` makes it what others see.
    """

    folder: Path
    name: str
    sweep: Sweep
    where: Where
    recipe: tuple[str, ...] = ()
    url: Url | None = None
    commit: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies in other processes cannot commit."""
        return LoadedSweep, (self.folder, self.name, self.sweep, self.where, self.recipe, self.url)

    @property
    def at(self) -> Path | Url:
        """Where it belongs: its address, or its folder."""
        return self.url or self.folder

    def run_folder(self, run: str) -> Path:
        """The folder of a trial's run (`run` in trials.parquet), without its checkpoints if it had to be fetched."""
        if self.url is None:
            return self.folder / run
        url = self.url
        for part in run.split("/"):
            url = url / part
        return mirror.fetch(url, tensors=False)

    def trials(self) -> pa.Table:
        """One row per trial and seed that is over."""
        return read_trials(self.folder)

    def over(self) -> int:
        """How many trials of the search are over."""
        if not (self.folder / "trials.parquet").is_file():
            return 0
        return len({r["trial"] for r in self.trials().to_pylist() if r["role"] == "search"})

    def best(self) -> dict[str, Any] | None:
        """The best setting (settings, value: the mean over its seeds on validation data, trial), None if there is none.

        Trials that were stopped, diverged or failed do not count.
        """
        ranked = best_settings(self)
        return ranked[0] if ranked else None

    def command(self, row: Row) -> str:
        """The command that repeats the run of a row of trials.parquet."""
        if not self.recipe or row["parent"] is not None:  # a fork's settings changed on the way
            return shlex.join(["raygrad", "run", str(self.run_folder(row["run"]) / "experiment.json")])
        words = ["raygrad", "run", *self.recipe]
        settings = {n: row[n] for n in self.sweep.dimensions if row[n] is not None}
        for name, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
            short = SHOWN.get(name)
            words += [f"--{short}", space.text_of(value)] if short else ["--set", f"{name}={space.text_of(value)}"]
        return shlex.join([*words, "--rounds", str(row["rounds"]), "--seed", str(row["seed"])])


def best_settings(loaded: LoadedSweep) -> list[dict[str, Any]]:
    """The best setting, or where algorithms are compared the best of each, the best first."""
    sweep, sign = loaded.sweep, 1 if loaded.sweep.better == "max" else -1
    if not (loaded.folder / "trials.parquet").is_file():
        return []
    by_trial: dict[int, list[Row]] = {}
    for row in loaded.trials().to_pylist():
        if row["role"] == "search":
            by_trial.setdefault(row["trial"], []).append(row)
    found = []
    for trial, rows in by_trial.items():
        whole = len(rows) == sweep.seeds and all(r["outcome"] in ("finished", "time") for r in rows)
        if not whole or any(r["validation"] is None or isnan(r["validation"]) for r in rows):
            continue
        settings = {n: rows[0][n] for n in sweep.dimensions if rows[0][n] is not None}
        value = float(np.mean([r["validation"] for r in rows]))
        found.append(
            {
                "trial": trial, "settings": settings, "value": value, "communications": rows[0]["communications"],
                "rounds": min(r["rounds"] for r in rows),
            }
        )  # fmt: skip
    found.sort(key=lambda f: (-sign * f["value"], f["trial"]))
    heads: dict[object, dict[str, Any]] = {}
    for one in found:
        heads.setdefault(one["settings"].get("algorithm"), one)
    return list(heads.values())


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / "sweep.json").is_file()


def find_sweep(reference: str, run_root: str | Path | Url) -> tuple[Path, Url | None]:
    """The folder that SWEEP means, and its address if it has one: a path, `name/id`, or `name` (its newest sweep); or
    the address of one. Raises BadInput.
    """
    root = location(run_root)
    if isinstance(root, Url) or isinstance(location(reference), Url):
        found = runs.find(reference, root)
        url = found if isinstance(found, Url) else None
        folder = mirror.fetch(found) if isinstance(found, Url) else found
        if not is_sweep(folder):
            raise BadInput(f"{found} is no sweep: it has no sweep.json")
        return folder, url
    return _find_here(reference, root), None


def newest(name: str, run_root: str | Path | Url) -> "LoadedSweep | None":
    """The newest sweep of a name, None if there is none. Raises BadInput."""
    root = location(run_root)
    if isinstance(root, Url):
        found = runs.newest(name, root)
        return None if found is None else load(found, root)
    sweeps = sorted(p.parent for p in (root / name).glob("*/sweep.json"))
    return load(sweeps[-1], root) if sweeps else None


def all_sweeps(run_root: str | Path | Url) -> list[Path]:
    """The folder of every sweep under `run_root`, by name and then by age; those in an object store are fetched."""
    root = location(run_root)
    if isinstance(root, Url):
        return [folder for folder in runs.all_folders(root) if is_sweep(folder)]
    return sorted(p.parent for p in root.glob("*/*/sweep.json"))


def _find_here(reference: str, run_root: Path) -> Path:
    for folder in (Path(reference), run_root / reference):
        if is_sweep(folder):
            return folder
    sweeps = all_sweeps(run_root)
    named = [s for s in sweeps if s.parent.name == reference]
    if named:
        return named[-1]
    error = unknown("sweep", reference, {s.parent.name for s in sweeps} | {f"{s.parent.name}/{s.name}" for s in sweeps})
    raise BadInput(f"{error}; looked in {run_root}")


def load(reference: str | Path | Url, run_root: str | Path | Url = "runs") -> LoadedSweep:
    """The sweep that `reference` means: a path, `name/id`, or `name`; or the address of one. Raises BadInput."""
    folder, url = find_sweep(str(reference), run_root)
    folder = folder.resolve()
    record = storage.read_json(folder / "sweep.json")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise BadInput(
            f"{folder / 'sweep.json'} has schema_version {record.get('schema_version')}; this raygrad reads "
            f"{SCHEMA_VERSION}"
        )
    if lacking := [n for n in ("name", "sweep", "hash") if n not in record]:
        raise BadInput(f"{folder / 'sweep.json'} is damaged: it has no {', '.join(lacking)}")
    sweep = Sweep.from_json(record["sweep"])
    if sweep.hash != record["hash"]:
        raise BadInput(f"{folder / 'sweep.json'} was changed since the sweep started; start a new sweep instead")
    where = Where.from_json(storage.read_json(folder / "where.json"))
    return LoadedSweep(folder, record["name"], sweep, where, tuple(record.get("recipe", ())), url)


# --- playing it -----------------------------------------------------------------------------------------------------


def run(
    sweep: Sweep,
    where: Where | None = None,
    *,
    run_root: str | Path = "runs",
    name: str = "sweep",
    recipe: Sequence[str] = (),
    say: Say = lambda line: None,
    began: "Callable[[LoadedSweep], None]" = lambda loaded: None,
) -> LoadedSweep:
    """Play a sweep in a new folder under `run_root/name` on a local Ray, or on the one at `where.address`.

    `recipe` are the words that name the experiment on a command line. `began` is told of the sweep once its folder is
    there. Raises BadInput before any trial starts, Stopped
    where it can be gone on with (`resume`).
    """
    from raygrad.onray import tuning

    where = where or Where()
    root = engine.root_of(run_root)
    maker = Maker(sweep, where, root)
    tuning.check(sweep, where)
    points = maker.known()
    shards = engine.shard_root(where, root / "name" / "id")
    where = replace(where, shard_root=str(shards.resolve() if isinstance(shards, Path) else shards))
    with tuning.opened(sweep, where):
        remote = isinstance(root, Url)
        folder = new_folder(mirror.local_root(root) if remote else root, name, sweep.hash, shared=remote)
        loaded = LoadedSweep(folder, name, sweep, where, tuple(recipe), root / name / folder.name if remote else None)
        storage.write_json(folder / "where.json", where.to_json())
        record = {
            "schema_version": SCHEMA_VERSION, "name": name, "id": folder.name, "hash": sweep.hash,
            "recipe": list(recipe), "sweep": sweep.to_json(),
        }  # fmt: skip
        storage.write_json(folder / "sweep.json", record)
        if sweep.grows:
            remember(loaded, *points)
        if loaded.url is not None:
            mirror.publish(loaded.url, folder)
        began(loaded)
        _play(loaded, maker, points, say)
    return loaded


def resume(
    reference: str | Path,
    *,
    run_root: str | Path = "runs",
    where: Where | None = None,
    max_concurrent: int | None = None,
    say: Say = lambda line: None,
) -> LoadedSweep:
    """Go on with a sweep: trials that are over stay as they are, the others go on from their newest checkpoints.

    `where` and `max_concurrent` may be others than those that it began with.
    """
    from raygrad.onray import tuning

    loaded = load(reference, run_root)
    loaded = replace(loaded, where=where or loaded.where)
    if max_concurrent is not None:
        loaded = replace(loaded, sweep=replace(loaded.sweep, max_concurrent=max_concurrent))
    maker = Maker(loaded.sweep, loaded.where, loaded.at.parent.parent)
    tuning.check(loaded.sweep, loaded.where)
    points = maker.known(loaded.folder)
    with tuning.opened(loaded.sweep, loaded.where):
        _play(loaded, maker, points, say)
    return loaded


def _play(loaded: LoadedSweep, maker: Maker, points: list[Point], say: Say) -> None:
    from raygrad.onray import tuning

    with Interrupts().installed(), _held(loaded, say) as loaded:
        book = Book(loaded)
        played = (tuning.evolve if loaded.sweep.scheduler == "pbt" else tuning.search)(loaded, maker, points, book, say)
        winners = winning_points(loaded, played)
        tuning.replay(loaded, maker, winners, book, say)


@contextmanager
def _held(loaded: LoadedSweep, say: Say) -> Iterator[LoadedSweep]:
    """The sweep, for this process alone."""
    if loaded.url is None:
        with locked(loaded.folder):
            yield loaded
    else:
        with mirror.held(loaded.url, lambda line: say(line)) as here:
            yield replace(loaded, commit=here.commit)


def winning_points(loaded: LoadedSweep, played: Iterable[Point]) -> list[Point]:
    """The best of those that were played, with fresh seeds and as many rounds: one trial for each seed."""
    by_trial, found = {p.trial: p for p in played}, []
    for best in best_settings(loaded):
        point = by_trial[best["trial"]]
        point = replace(point, role="winner", until=None, experiment=replace(point.experiment, rounds=best["rounds"]))
        found += [replace(point, seeds=(s,)) for s in loaded.sweep.fresh_seeds]
    return found


def curve(loaded: LoadedSweep, point: Point) -> list[Evaluation]:
    """The mean over a trial's seeds of its validations, as far as all of them have come."""
    curves = [evaluations(job.folder) if job.fetch() else [] for job in point.jobs(loaded.at)]
    found = []
    for each in zip(*curves, strict=False):
        values = {n: float(np.mean([e.values[n] for e in each])) for n in each[0].values}
        found.append(Evaluation(each[0].round, each[0].communications, values))
    return found
