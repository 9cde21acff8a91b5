"""Sweeps on Ray Tune: it starts trials where there is room, lets a scheduler stop bad ones, and starts again what a
lost node took along.

Tune decides, raygrad remembers. A trial's state is in its run folders and what is over in trials.parquet; the snapshots
that Tune writes (pickles, in the sweep's folder `tune`) are never read. A sweep that goes on makes a new Tune
experiment of what is left, and tells its scheduler and its search what the trials before it have reported.
"""

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from raygrad import logs
from raygrad import run as engine
from raygrad.errors import BadInput, Stopped
from raygrad.experiment import Experiment, Where
from raygrad.files import remote, runs
from raygrad.files.remote import Url
from raygrad.logs import Say
from raygrad.metrics import of_sweep
from raygrad.onray.cluster import connected
from raygrad.onray.executor import ship_by_value
from raygrad.onray.metrics import record
from raygrad.onray.start import Lender
from raygrad.sweeps import population, space, sweep, trial
from raygrad.sweeps.sweep import Book, LoadedSweep, Maker, Point, Sweep
from raygrad.sweeps.trial import Job, Trial

REDUCTION = 3
"""ASHA and HyperBand keep one trial in so many."""
RUNGS = 3
"""So many times ASHA compares before the budget is spent."""
_OWN_TYPE = re.compile(r"node_[0-9a-f]{56}")
RECORD_S = 1.0
"""Between two exports of how many trials are in which state."""
_LOG = logging.getLogger(__name__)


# --- the trial's side -----------------------------------------------------------------------------------------------


class Playing(tune.Trainable):
    """Plays the trial (`raygrad.sweeps.trial`) that `start.trial(config, …)` gives, an evaluation at a time."""

    _trial: Trial | None = None

    def setup(self, config: dict[str, Any], start: "Starts | None" = None) -> None:
        """Called by Tune once per process."""
        assert start is not None
        self._start = start
        w = start.place
        number = w.host_range.fewest * start.at_once
        self._lender = Lender(number, w.gpus_per_host, w.cpus_per_host)
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._trial = self._start.trial(config, self.trial_id, self._lender)

    def step(self) -> dict[str, Any]:
        """On to the next evaluation."""
        assert self._trial is not None
        report = self._trial.next()
        values = report.values or self._start.worst
        return {
            **values, "communications": report.communications, "round": report.round, "outcome": report.outcome,
            "message": report.message, "culprit": report.seed, "done": report.over,
            "units": report.communications / self._start.unit,
        }  # fmt: skip

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing but a mark: the state is in the run folders, up to what was reported."""
        (Path(checkpoint_dir) / "in-the-run-folder").touch()

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing: the runs go on from their own checkpoints."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let the next trial use this process."""
        self._end()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """End the hosts and let go of the run folders."""
        self._end()
        self._lender.close()

    def _end(self) -> None:
        if self._trial is not None:
            self._trial.close()
            self._trial = None


@dataclass(frozen=True)
class SweepStart:
    """Starts the trials of the sweep at `at`."""

    at: Path | Url
    sweep: Sweep
    where: Where
    unit: int

    at_once: int  # seeds that have hosts at the same time

    @property
    def worst(self) -> dict[str, float]:
        """What a trial without values reports."""
        return {self.sweep.measure: self.sweep.worst}

    @property
    def place(self) -> Where:
        """Where a trial runs: each seed has its own hosts, which take turns on what is reserved for one."""
        share, gpus = 1 / self.at_once, self.where.gpus_per_host / self.at_once
        return replace(
            self.where, on="ray", hosts=self.sweep.hosts_per_trial, address=None, cpus_per_host=_down(share),
            gpus_per_host=_down(gpus) if gpus < 1 else self.where.gpus_per_host,
        )  # fmt: skip

    def trial(self, config: Mapping[str, Any], trial_id: str, lender: Lender) -> Trial:
        """The trial of a point."""
        s, point = self.sweep, config["point"]
        return Trial(
            point.jobs(self.at), self.place, budget_s=None if point.role == "winner" else s.time_budget_s,
            tested=point.role == "winner",
            until=point.until, charge=point.charge, lender=lender,
        )  # fmt: skip


@dataclass(frozen=True)
class OwnStart:
    """Starts the trials of a `Tuner` that somebody else made: the configuration holds fields and short names."""

    experiment: Experiment
    place: Where
    root: Path | Url
    name: str
    worst: dict[str, float]
    unit: int = 1
    at_once: int = 1

    def trial(self, config: Mapping[str, Any], trial_id: str, lender: Lender) -> Trial:
        """The trial of a configuration."""
        pairs = [(space.field_of(n), str(v)) for n, v in config.items()]
        experiment = self.experiment
        for path, text in sorted(pairs, key=lambda p: p[0].count(".")):
            experiment = experiment.set(path, text)
        return Trial([Job(experiment, self.root, self.name, trial_id)], self.place, lender=lender)


Starts = SweepStart | OwnStart


def trainable(
    experiment: Experiment, where: Where | None = None, *, run_root: str | Path = "runs", name: str = "tune"
) -> Any:
    """A trainable for a `ray.tune.Tuner` of one's own, with its resources.

    Tune's configuration holds fields of the experiment (`{"algorithm.beta": …}`) or short names (`{"beta": …}`). Each
    trial is a run `run_root/name/TRIAL_ID` on `where.hosts` hosts; started again, it goes on. After each evaluation it
    reports `communications`, `round` and the validation metrics; one that diverged ends with the worst values. Every
    node must reach `run_root`.
    """
    where = where or Where(hosts=1)
    evaluation, rounds = experiment.evaluation, experiment.rounds
    if evaluation.mode != "validation" or rounds < evaluation.every:
        raise BadInput(
            f"a trial reports validation metrics, and there are none with evaluation.mode={evaluation.mode}, "
            f"evaluation.every={evaluation.every} and {rounds} rounds"
        )
    root = engine.root_of(run_root)
    _check_hosts(where)
    place = replace(where, shard_root=where.shard_root or str(root / ".shards"), address=None)
    names = [m.rsplit(":", 1)[-1] for m in experiment.metrics]
    worst = {n: 0.0 if n == "accuracy" else -1e9 for n in names} | {"loss": 1e9}
    _ship(experiment)
    start = OwnStart(experiment, place, root, name, worst)
    return tune.with_resources(
        tune.with_parameters(Playing, start=start), group(where.host_range.fewest, where.gpus_per_host)
    )


def _check_hosts(where: Where) -> None:
    if where.on != "ray" or where.host_range.elastic:
        raise BadInput(f"a trial's hosts are reserved: give a number of hosts on ray, not {where.hosts} on {where.on}")


def group(hosts: int, gpus_per_host: float = 0.0) -> tune.PlacementGroupFactory:
    """What a trial reserves, all at once: its hosts. Its own process, which mostly waits for them, is not counted."""
    bundle = {"CPU": 1.0} | ({"GPU": gpus_per_host} if gpus_per_host else {})
    return tune.PlacementGroupFactory([{}] + [bundle] * hosts)


def _down(share: float) -> float:
    """Ray counts in steps of 0.0001: rounded down, so that all fit."""
    return int(share * 10_000 + 1e-6) / 10_000


def _ship(experiment: Experiment) -> None:
    """Send the user's own modules along, for nodes that cannot import them."""
    for f in fields(experiment):
        part = getattr(experiment, f.name)
        if is_dataclass(part):
            ship_by_value(type(part).__module__)


# --- before anything starts -----------------------------------------------------------------------------------------


def check(s: Sweep, where: Where) -> None:
    """Refuse what can be known to fail before a Ray is started or joined. Raises BadInput."""
    if where.on != "ray":
        raise BadInput("a sweep runs on Ray; leave out --on local")
    if s.search == "optuna":
        _optuna()
    elsewhere = (where.address or os.environ.get("RAY_ADDRESS")) not in (None, "", "local")
    if s.scheduler == "hyperband" and s.max_concurrent is not None and elsewhere:
        raise BadInput("scheduler hyperband begins a bracket's trials together; leave out max_concurrent, or use asha")
    if where.gpus_per_host and s.seeds > 1 and where.gpus_per_host * s.hosts_per_trial < 0.01:
        raise BadInput(f"gpus_per_host is {where.gpus_per_host}, too little for {s.seeds} seeds to take turns on it")
    engine.check_where(_reserved(s, where))


def _reserved(s: Sweep, where: Where) -> Where:
    """As many hosts as may be at work at once on a Ray that is started here."""
    cores = os.cpu_count() or 1
    trials = s.max_concurrent or max(1, cores // s.hosts_per_trial)
    return replace(where, hosts=s.hosts_per_trial * trials, cpus_per_host=1.0)


@contextmanager
def opened(s: Sweep, where: Where) -> Iterator[None]:
    """A Ray with room for a trial. Raises BadInput if it cannot be reached, or a trial could never start on it."""
    address = where.address or os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized() and address in (None, "", "local"):
        with connected(_reserved(s, where)):
            yield
        return
    # An elastic range is not held against the room that there is now: `_check_fits` asks for the room of one trial.
    with connected(replace(where, hosts=f"1..{s.hosts_per_trial}")):
        _check_fits(s, where)
        yield


def _check_fits(s: Sweep, where: Where) -> None:
    """Refuse a trial for which there can be no room. On a cluster with an autoscaler nobody knows that."""
    if may_grow():
        return
    have = ray.cluster_resources()
    needs = {"CPU": float(s.hosts_per_trial)} | (
        {"GPU": where.gpus_per_host * s.hosts_per_trial} if where.gpus_per_host else {}
    )
    for kind, number in needs.items():
        if number > have.get(kind, 0.0) + 1e-9:
            raise BadInput(
                f"a trial needs {number:g} {kind}, and this cluster has {have.get(kind, 0.0):g}; lower "
                "--hosts-per-trial" + (" or --gpus-per-host" if kind == "GPU" else "")
            )


def may_grow() -> bool:
    """Whether the cluster that we are in may have an autoscaler that can add nodes.

    Ray has no question for that. The first autoscaler, where it only watches its nodes, makes each a type of its own,
    `node_` and its id. The second (version 2, KubeRay's) does not always say, so it counts as one that can.
    """
    from ray.experimental import internal_kv

    if internal_kv._internal_kv_get(b"__autoscaler_v2_enabled", namespace=b"__autoscaler") == b"1":
        return True
    told = internal_kv._internal_kv_get(b"__autoscaling_status")
    types = (json.loads(told).get("autoscaler_report") or {}).get("active_nodes") or {} if told else {}
    return any(not _OWN_TYPE.fullmatch(name) for name in types)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as e:
        raise BadInput(f"search optuna needs Optuna, which is not installed: {sweep.EXTRA}") from e
    return optuna


# --- the search -----------------------------------------------------------------------------------------------------


class Points(Searcher):
    """Gives Tune the points that are to be played. It never needs to be restored."""

    def __init__(self, points: Iterable[Point]) -> None:
        super().__init__(metric=None, mode=None)
        self._waiting = list(points)
        self.given: dict[str, Point] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next point."""
        point = self._waiting.pop(0) if self._waiting else self.more(trial_id)
        if point is None:
            return Searcher.FINISHED
        self.given[trial_id] = point
        _ship(point.experiment)
        return {"point": point, **point.settings}

    def more(self, trial_id: str) -> Point | None:
        """A point that was not known beforehand."""
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what was given and what came of it is in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Guided(Points):
    """Points that Optuna's tree-structured Parzen estimator suggests from the values of those before."""

    def __init__(
        self, loaded: LoadedSweep, maker: Maker, waiting: list[Point], over: list[tuple[Point, float]]
    ) -> None:
        super().__init__(waiting)
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        s = self._sweep = loaded.sweep
        self._loaded, self._maker, self._optuna = loaded, maker, optuna
        self._distributions = {n: _distribution(optuna, e) for n, e in s.dimensions.items()}
        self._count = len(waiting) + len(over)
        sampler = optuna.samplers.TPESampler(seed=s.seed + len(over), n_startup_trials=10)
        direction = "maximize" if s.better == "max" else "minimize"
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._asked: dict[str, Any] = {}
        for point, value in over:
            self._tell(point, value)

    def more(self, trial_id: str) -> Point | None:
        """What Optuna suggests next."""
        if self._count >= self._sweep.samples:
            return None
        asked = self._study.ask(self._distributions)
        found = {n: space.short(v) if isinstance(v, float) else v for n, v in asked.params.items()}
        point = self._maker.point(self._count, self._count, found, repeat=True)
        assert point is not None
        self._asked[trial_id] = asked
        self._count += 1
        sweep.remember(self._loaded, point)
        return point

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what came of it."""
        value = (result or {}).get(self._sweep.measure)
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            if value is not None and trial_id in self.given:
                self._tell(self.given[trial_id], value)
        elif value is None:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)

    def _tell(self, point: Point, value: float) -> None:
        names = [n for n in self._distributions if n in point.settings]
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params={n: point.settings[n] for n in names},
                distributions={n: self._distributions[n] for n in names},
                value=value,
            )
        )


def _distribution(optuna: Any, e: space.Expression) -> Any:
    d = optuna.distributions
    if isinstance(e, space.Values):
        return d.CategoricalDistribution(e.values)
    low, high = e.ends
    if e.whole:
        return d.IntDistribution(int(low), int(high))
    return d.FloatDistribution(low, high, log=e.log, step=None if e.log else e.step)


class _EachAlone(FIFOScheduler):
    """Compares the trials of each algorithm among themselves: one that starts slowly shall have its best setting found,
    too.
    """

    def __init__(self, make: Callable[[], TrialScheduler]) -> None:
        super().__init__()
        self._make = make
        self._by_algorithm: dict[object, TrialScheduler] = {}

    def of(self, settings: Mapping[str, Any]) -> TrialScheduler:
        """The one for trials of these settings."""
        return self._by_algorithm.setdefault(settings.get("algorithm"), self._make())

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.of(trial.config).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        return self.of(trial.config).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        self.of(trial.config).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.of(trial.config).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.of(trial.config).on_trial_remove(tune_controller, trial)


def _scheduler(s: Sweep, maker: Maker) -> TrialScheduler:
    """What compares trials, at equal communications."""
    if s.scheduler in ("asha", "median"):
        return _EachAlone(lambda: _stopping(s, maker))
    if s.scheduler == "hyperband":
        units = max(1, -(-maker.most // maker.unit))
        return HyperBandScheduler("units", s.measure, s.better, max_t=units, reduction_factor=REDUCTION)
    return FIFOScheduler()


def _stopping(s: Sweep, maker: Maker) -> TrialScheduler:
    """What stops trials that are worse than those before them."""
    most, unit = maker.most, maker.unit
    first = min(most, unit * max(1, round(most / REDUCTION**RUNGS / unit)))
    if s.scheduler == "asha":
        return AsyncHyperBandScheduler(
            "communications", s.measure, s.better, max_t=most, grace_period=first, reduction_factor=REDUCTION
        )
    never: Any = float("inf")  # trials are not paused for others to have a turn: hosts would be started again
    return MedianStoppingRule("communications", s.measure, s.better, first, min_time_slice=never)


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier process, as schedulers know one."""

    trial_id: str
    config: Mapping[str, Any] = field(compare=False)


def _tell(scheduler: TrialScheduler, s: Sweep, past: Iterable[tuple[Point, str, list[trial.Evaluation]]]) -> None:
    """Tell a scheduler what trials reported in earlier processes. HyperBand's brackets are begun anew."""
    if not isinstance(scheduler, _EachAlone):
        return
    nobody: Any = None  # neither scheduler asks the controller for anything here
    for point, outcome, curve in past:
        then: Any = _Past(f"past-{point.trial}", point.settings)
        results = [{"communications": e.communications, s.measure: e.values[s.measure]} for e in curve]
        if outcome == "diverged":
            at = (results[-1]["communications"] if results else 0) + point.cadence
            results.append({"communications": min(point.budget, at), s.measure: s.worst})
        if not results:
            continue
        scheduler.on_trial_add(nobody, then)
        for result in results:
            scheduler.on_trial_result(nobody, then, result)
        scheduler.on_trial_complete(nobody, then, results[-1])


def search(loaded: LoadedSweep, maker: Maker, points: list[Point], book: Book, say: Say) -> list[Point]:
    """Play every point that is not over, and with a guided search as many more as the sweep has samples.

    Returns all points.
    """
    s = loaded.sweep
    over = [p for p in points if book.outcome(p)]
    waiting = [p for p in points if not book.outcome(p)]
    scheduler = _scheduler(s, maker)
    _tell(scheduler, s, ((p, book.outcome(p), sweep.curve(loaded, p)) for p in over))
    searcher, total = Points(waiting), len(points)
    if s.search == "optuna":
        values = [(p, v) for p in over if (v := book.value(p)) is not None]
        searcher, total = Guided(loaded, maker, waiting, values), max(s.samples, len(points))
    if over:
        say(f"{len(over)} of {total} trials are over; {total - len(over)} to go")
    _fit(loaded, maker, searcher, scheduler, total, len(over), book, say, s.seeds)
    return list({p.trial: p for p in (*points, *searcher.given.values())}.values())


def evolve(loaded: LoadedSweep, maker: Maker, points: list[Point], book: Book, say: Say) -> list[Point]:
    """Play a population from stop to stop. Returns all points, those that were forked on the way too."""
    s, points = loaded.sweep, list(points)
    stops = population.stops(s, points[0])
    for generation, until in enumerate(stops, 1):
        if not any(p.forked_at == until for p in points):  # else it is decided who goes on
            present = [replace(p, until=until) for p in population.members(points, until)]
            waiting = [
                p for p in present if not book.outcome(p) and not (p.goes_on and _arrived(loaded, p) is not None)
            ]
            if waiting:
                say(f"generation {generation} of {len(stops)}: {len(present)} trials, to round {until}")
            _fit(
                loaded, maker, Points(waiting), FIFOScheduler(), len(present), len(present) - len(waiting), book, say,
                s.seeds,
            )  # fmt: skip
            if until == stops[-1]:
                break
            values = {p.trial: v for p in present if (v := _arrived(loaded, p)) is not None}
            found = population.forks(s, present, values, until, len(points))
            sweep.remember(loaded, *found)  # before anything is done: from here on it stays so
            points += found
            for point in found:
                settings = " ".join(f"{sweep.SHOWN.get(n, n)} {v}" for n, v in point.settings.items())
                say(f"trial {point.trial} forks trial {point.parent}: {settings}")
        for point in (p for p in points if p.forked_at == until):
            _fork(loaded, point, points, book)
    return points


def _arrived(loaded: LoadedSweep, point: Point) -> float | None:
    """The mean over a trial's seeds of the metric where it stops; None if not all have come so far."""
    return next((e.values[loaded.sweep.measure] for e in sweep.curve(loaded, point) if e.round == point.until), None)


def _fork(loaded: LoadedSweep, point: Point, points: list[Point], book: Book) -> None:
    """Make the runs of a point that was forked, where they are not there, and end the trial whose place it takes."""
    parent = next(p for p in points if p.trial == point.parent)
    changed = point.experiment.changes[len(parent.experiment.changes) :]
    for job, origin in zip(point.jobs(loaded.at), parent.jobs(loaded.at), strict=True):
        if not job.fetch():
            engine.fork(
                runs.load(str(origin.at)), [c.partition(":")[2] for c in changed], run_root=loaded.at,
                name=job.name, id=job.id, round=point.forked_at,
            )  # fmt: skip
    before = [p for p in points if p.sample == point.sample and p.forked_at < point.forked_at][-1]
    if not book.rows(before):
        book.close(before, "stopped")


def replay(loaded: LoadedSweep, maker: Maker, winners: list[Point], book: Book, say: Say) -> None:
    """Run the best settings again with fresh seeds, to the end, and test them."""
    waiting = [p for p in winners if not book.outcome(p)]
    if waiting:
        say(f"the best settings run again with fresh seeds: {len(waiting)} runs")
    over = len(winners) - len(waiting)
    _fit(loaded, maker, Points(waiting), FIFOScheduler(), len(winners), over, book, say, 1, "testing the best settings")


def _fit(
    loaded: LoadedSweep, maker: Maker, points: Points, scheduler: TrialScheduler, total: int, over: int, book: Book,
    say: Say, at_once: int, doing: str = "searching",
) -> None:  # fmt: skip
    """Let Tune play points. Raises Stopped after SIGTERM and KeyboardInterrupt after Ctrl-C."""
    if over >= total:
        return
    s, snapshots = loaded.sweep, _snapshots(loaded)
    start = SweepStart(loaded.at, s, loaded.where, maker.unit, at_once)
    _ship(s.experiment)
    signals = _Signals()
    watcher = _Watcher(s, points, book, signals, total, over, say, loaded.name, doing)
    # HyperBand halves brackets: it has to know all trials from the beginning, those that wait for room as well.
    known = {"TUNE_MAX_PENDING_TRIALS_PG": str(total)} if s.scheduler == "hyperband" else {}
    with _quiet(known), signals.passed_on():
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Playing, start=start), group(s.hosts_per_trial, loaded.where.gpus_per_host)
            ),
            tune_config=tune.TuneConfig(
                search_alg=points, scheduler=scheduler, num_samples=total - over,
                max_concurrent_trials=None if s.scheduler == "hyperband" else s.max_concurrent, reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                **snapshots, verbose=0,
                failure_config=tune.FailureConfig(max_failures=s.retries),
                callbacks=[watcher],
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except Exception:
            if watcher.stopped is None:
                book.write()  # where the storage is lost, that is what it was
                raise
    left = points.given.keys() - watcher.ended
    if watcher.stopped is not None:
        raise watcher.stopped
    if signals.number == signal.SIGINT:
        raise KeyboardInterrupt
    if signals.number is not None:
        raise Stopped(f"stopped by SIGTERM with {len(left)} trials under way")
    if left:
        raise Stopped(f"Ray Tune gave up with {len(left)} trials under way")


def _snapshots(loaded: LoadedSweep) -> dict[str, Any]:
    """Where Tune puts its own: every node must reach it."""
    at = loaded.at / "tune"
    if isinstance(at, Url):
        number = len(remote.children(at)) + 1
        return {"name": str(number), "storage_path": at.path, "storage_filesystem": remote.filesystem(at, tries=5)}
    return {"name": str(len(list(at.glob("*"))) + 1), "storage_path": str(at)}


class _Watcher(tune.Callback):
    """Writes down what becomes of trials, and says so. Tune calls it."""

    def __init__(
        self,
        s: Sweep,
        points: Points,
        book: Book,
        signals: "_Signals",
        total: int,
        over: int,
        say: Say,
        name: str,
        doing: str,
    ) -> None:
        self._name, self._record_s = name, 0.0
        self._outcomes: dict[str, int] = {}
        self._sweep, self._points, self._book, self._signals = s, points, book, signals
        self._total, self._before, self._say = total, over, say
        self.ended: set[str] = set()
        self.stopped: Stopped | None = None
        self._best: tuple[float, int] | None = None
        self._doing = doing

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes down its callbacks to restore them; raygrad makes a new one, and a display has locks."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """A signal that came before Tune listened is passed on now."""
        self._signals.pass_on()
        if monotonic() >= self._record_s:
            self._record(trials)
        running = sum(t.status == "RUNNING" for t in trials)
        best, trial = (None, None) if self._best is None else self._best
        room = None if running else f"for room, a trial needs {self._sweep.hosts_per_trial} CPU at once"
        logs.step(
            self._doing, self._over, self._total, "trials", running=running, best=best, best_trial=trial,
            failed=self._outcomes.get("failed", 0), waiting=room,
        )  # fmt: skip

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Started again, after it lost its machine."""
        point = self._points.given[trial.trial_id]
        _LOG.warning("%s: attempt %d failed; it is started again", _shown(point), trial.num_failures)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Finished, or stopped by the scheduler."""
        last = trial.last_result
        point = self._points.given[trial.trial_id]
        outcome = last.get("outcome") or "stopped"
        self.ended.add(trial.trial_id)
        if outcome == "finished" and point.goes_on:
            outcome, value = "waits", last[self._sweep.measure]
        else:
            self._close(point, outcome, last.get("message", ""), last.get("culprit", -1))
            value = self._book.value(point)
        self._count(outcome)
        shown = f" · {self._sweep.measure} {value:.4g}" if value is not None and outcome != "diverged" else ""
        at = f" after {last['communications']} communications" if "communications" in last else ""
        best = self._noted(point, value) if outcome in ("finished", "time") and point.role == "search" else ""
        why = f" ({last['message']})" if outcome == "failed" else ""
        self._told(point, outcome, value, last.get("communications"))
        self._say(f"{self._over} of {self._total} · {_shown(point)} · {outcome}{shown}{at}{best}{why}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Given up, after as many attempts as the sweep allows."""
        point = self._points.given[trial.trial_id]
        why = _why(trial.get_error())
        self.ended.add(trial.trial_id)
        self._close(point, "failed", why)
        self._count("failed")
        self._told(point, "failed", None, None, why)
        self._say(f"{self._over} of {self._total} · {_shown(point)} · failed ({why})")

    def _told(
        self, point: Point, outcome: str, value: float | None, communications: int | None, message: str = ""
    ) -> None:
        """A trial is over, for programs."""
        logs.event(
            "trial", trial=point.trial, role=point.role, seeds=list(point.seeds), settings=dict(point.settings),
            outcome=outcome, metric=self._sweep.measure, value=value, communications=communications, message=message,
            over=self._over, of=self._total,
        )  # fmt: skip

    def _close(self, point: Point, outcome: str, message: str = "", culprit: int = -1) -> None:
        """Write it down. Where that cannot be done the sweep ends; Tune would make another error of it."""
        try:
            self._book.close(point, outcome, message, culprit)
        except Stopped as e:
            self.stopped = self.stopped or e
            self._signals.stop()

    def _count(self, outcome: str) -> None:
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        self._record_s = 0.0

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Nothing runs any more."""
        self._record(trials)

    def _record(self, trials: list[Any]) -> None:
        """Export how many trials are in which state."""
        self._record_s = monotonic() + RECORD_S
        running = sum(t.status == "RUNNING" and t.trial_id not in self.ended for t in trials)
        waiting = max(0, self._total - self._over - running)
        states = {"earlier": self._before, "running": running, "waiting": waiting, **self._outcomes}
        record(self._name, of_sweep(self._total, states, None if self._best is None else self._best[0]))

    @property
    def _over(self) -> int:
        return self._before + len(self.ended)

    def _noted(self, point: Point, value: float | None) -> str:
        sign = 1 if self._sweep.better == "max" else -1
        if value is not None and (self._best is None or sign * value > sign * self._best[0]):
            self._best = (value, point.trial)
        return "" if self._best is None else f" · best: trial {self._best[1]}, {self._best[0]:.4g}"


def _why(error: object) -> str:
    """The last line of what a trial died of, with its kind. Tune may know nothing, such as on a full disk."""
    if not isinstance(error, BaseException):
        return "no reason is known; is there room on the disk?"
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip() not in ("", "None")]
    kind = type(error).__name__
    return f"{kind}: {lines[-1]}" if lines and kind not in lines[-1] else lines[-1] if lines else kind


def _shown(point: Point) -> str:
    settings = " ".join(f"{sweep.SHOWN.get(n, n)} {v}" for n, v in point.settings.items())
    fresh = f" seed {point.seeds[0]}" if point.role == "winner" else ""
    return f"trial {point.trial}: {settings}{fresh}"


class _Signals:
    """Ctrl-C and SIGTERM, passed on to Tune as the signal after which it saves and returns."""

    def __init__(self) -> None:
        self.number: int | None = None

    def pass_on(self) -> None:
        """Raise Tune's signal if one of ours has come."""
        if self.number is not None:
            self.stop()

    def stop(self) -> None:
        """Let Tune save and return."""
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.number is not None, number
        if again:
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped("stopped by SIGTERM, twice")
        self.pass_on()

    @contextmanager
    def passed_on(self) -> Iterator[None]:
        """Inside, signals are passed on. Outside the main thread they cannot be handled; then nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        for n in (signal.SIGINT, signal.SIGTERM):
            signal.signal(n, self._handle)
        try:
            yield
        finally:
            for n, handler in former.items():
                signal.signal(n, handler)


_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials.parquet and the runs' tables say it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def _quiet(more: Mapping[str, str]) -> Iterator[None]:
    """Tune as raygrad wants it: no console output of its own, no files beside its snapshots."""
    settings = {**_SETTINGS, **more}
    former = {n: os.environ.get(n) for n in settings}
    os.environ.update(settings)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
