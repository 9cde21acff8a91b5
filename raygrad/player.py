"""One process's part of a run: an iterator of rounds, with tables, metrics and checkpoints around them."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

from raygrad import logs, metrics
from raygrad.alignment import Alignment, AlignmentProbe, Evaluator, fixed_cohort
from raygrad.contract import Cohort, Measures, Population
from raygrad.driver import Driver, Executor
from raygrad.errors import BadInput, Stopped
from raygrad.experiment import SCHEMA_VERSION, Where
from raygrad.faults import Fault
from raygrad.files import checkpoint, mirror, storage, tables
from raygrad.files.packing import pack_server, unpack_server
from raygrad.files.runs import LoadedRun, check_tables
from raygrad.files.states import StateStore
from raygrad.interrupts import Interrupts
from raygrad.logs import Say
from raygrad.plan import Plan
from raygrad.talk import (
    ABSENT,
    ANSWERED,
    DAMAGED,
    KILLER,
    LATE,
    LEFT,
    REJECTED,
    STALE,
    UNAVAILABLE,
    Played,
    ServerState,
)

if TYPE_CHECKING:
    from raygrad.onray.start import EarlyStart, Lender

_LOG = logging.getLogger(__name__)

_FAILED = {
    REJECTED: "an update was not finite",
    DAMAGED: "their shards are damaged",
    KILLER: "every host that runs them dies",
}
"""The outcomes that are logged, with what happened."""


@dataclass(frozen=True)
class Round:
    """What one round did. `communications`, bytes and `elapsed_s` are totals of the run so far."""

    index: int  # from 1
    of: int
    clients: np.ndarray  # [m] int64
    train_loss: float | None
    validation: dict[str, float] | None  # None in rounds that are not evaluated
    test: dict[str, float] | None  # only under evaluation.mode=paper
    alignment: Alignment | None  # None in rounds that are not probed
    communications: int
    bytes_down: int
    bytes_up: int
    wall_s: float
    elapsed_s: float
    folder: Path
    x: Tensor  # [d], the model
    virtual_s: float = 0.0  # on the modelled clock, at the end of the round
    answered: int = 0  # clients whose answers count
    algorithm: dict[str, float] = field(default_factory=dict)  # what it measures of its state, in evaluated rounds
    _request: Callable[[np.ndarray, bool], None] = field(default=lambda ids, there: None, repr=False, compare=False)
    _save: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def retire(self, clients: Iterable[int]) -> None:
        """From the next round on these clients are not there. Their shards and states are kept.

        Decide by what the round says and not by having been called before: after a restart rounds are played again.
        """
        self._request(_numbers(clients), False)

    def activate(self, clients: Iterable[int]) -> None:
        """From the next round on these clients are there (again)."""
        self._request(_numbers(clients), True)

    def save(self) -> None:
        """Write a checkpoint of the run as it stands now, besides those that the experiment asks for."""
        self._save()

    def to_json(self) -> dict[str, Any]:
        """Its numbers as a JSON object, without the model."""
        known = ("train_loss", "validation", "test", "communications", "bytes_down", "bytes_up", "virtual_s", "wall_s",
                 "elapsed_s", "answered")  # fmt: skip
        alignment = None if self.alignment is None else asdict(self.alignment)
        return {
            "run": self.run, "round": self.index, "of": self.of, "clients": len(self.clients),
            **{n: getattr(self, n) for n in known}, "alignment": alignment, "algorithm": dict(self.algorithm),
        }  # fmt: skip

    @property
    def run(self) -> str:
        """The run's name/id."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        from raygrad.notebook import round_html

        return round_html(self)


@dataclass(frozen=True)
class _Totals:
    """What a run adds up; saved in every checkpoint."""

    communications: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    elapsed_s: float = 0.0
    process: int = 0


class Injector(Protocol):
    """Lets planned faults happen to a run."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Those at clients."""
        ...

    def wrap(self, executor: Executor, folder: Path) -> Executor:
        """The executor with those that cost time."""
        ...


class Player:
    """One process's part of a run."""

    def __init__(
        self, run: LoadedRun, plan: Plan, found: checkpoint.Checkpoint | None, stack: ExitStack, say: Say,
        early: "EarlyStart | None" = None, injector: Injector | None = None, lender: "Lender | None" = None,
        held: mirror.Mirror | None = None,
    ) -> None:  # fmt: skip
        self._early, self._injector, self._lender, self._mirror = early, injector, lender, held
        self._run, self._plan, self._experiment, self._say = run, plan, plan.experiment, say
        self._folder, self._began = run.folder, perf_counter()
        self._name = f"{run.name}/{run.folder.name}"
        self._store = StateStore(run.folder / ".states", plan.client_state, run.where.state_limit_bytes)
        stack.callback(self._store.close)
        initial = plan.start()
        if found is None:
            self._state, self._done, self._totals = initial, 0, _Totals()
        else:
            self._state = unpack_server(initial, found.tensors())
            found.restore(self._store)
            totals = {f.name: found.extra[f.name] for f in fields(_Totals)}
            self._done, self._totals = found.round, _Totals(**totals)
            self._totals = replace(self._totals, process=self._totals.process + 1)
        self._saved = self._done if found is not None else -1
        self._elapsed_before = self._totals.elapsed_s
        self._writers: dict[str, tables.TableWriter] = {}
        self._stack = stack
        self._interrupts = Interrupts()
        self._wanted = self._state.present  # who shall be there in the next round

    def rounds(self, last: bool) -> Generator[Round, None, None]:
        """The plan's rounds; after the `last` ones comes the test evaluation."""
        if self._done >= self._experiment.rounds and self._final_is_current():
            return
        check_tables(self._folder, self._done)
        self._stack.enter_context(self._interrupts.installed())
        record = self._stack.enter_context(self._exporting())  # until the hosts have ended
        with logs.about(self._name):
            executor = self._stack.enter_context(
                open_executor(
                    self._plan, self._run.where, self._folder, self._interrupts, self._say, self._early, self._lender
                )
            )
        e, injector = self._experiment, self._injector
        if injector is not None:
            executor = injector.wrap(executor, self._folder)
        driver = self._plan.driver(executor, self._store)
        driver = replace(driver, population=replace(driver.population, present=self._state.present))
        for name in (*tables.BIT_STABLE, "operations", "seconds"):
            tables.discard_from(tables.folder(self._folder, name), self._done + 1)
            self._writers[name] = tables.TableWriter(
                tables.folder(self._folder, name), tables.TABLES[name], self._done + 1
            )
        self._stack.enter_context(self._committed_at_the_end())
        tell = self._stack.enter_context(self._tracked())
        slots = metrics.Slots()
        record(metrics.at_start(self._done, self._run.experiment.rounds, e.failures.quorum, time.time()))
        try:
            while self._done < e.rounds:
                with logs.about(self._name, self._done + 1):
                    driver = self._scheduled(driver)
                    played = driver.play(self._state, self._done + 1)
                    began = perf_counter()
                    measured = self._measure(driver, played)
                    measure_s = perf_counter() - began
                    with self._interrupts.shielded():
                        round = self._adopt(played, driver.population, *measured)
                    spent = (measure_s, perf_counter() - began - measure_s)
                    record(metrics.of_round(played, len(driver.population), *measured[:3], *spent, slots, time.time()))
                    _note(played)
                    tell(round.index, told(round))
                yield round
                driver = self._requested(driver)
            with self._interrupts.shielded():
                self._save()
            if last:
                with logs.about(self._name):
                    found = self._finish(driver)
                    tell(self._done, found)
                record(metrics.judged("test", {n.removeprefix("test/"): v for n, v in found.items()}))
                record([metrics.in_state("finished", time.time())])
        except BaseException as error:  # whatever it was, what is adopted and asked for is not lost
            self._interrupts.seen()
            state = metrics.state_after(error)
            record([metrics.in_state(state, time.time())])
            with suppress(Stopped, BadInput):
                self._requested(driver)
            with suppress(Stopped):
                self._save()
                if state != "stopped":
                    self._note_end(state, error)
            raise

    def _tracked(self) -> AbstractContextManager[Callable[[int, Mapping[str, float | None]], None]]:
        kinds, run = self._run.where.track, self._run
        if not kinds:
            return nullcontext(lambda round, values: None)
        from raygrad.reports.report import flatten
        from raygrad.tracking import tracked

        settings = {**flatten(run.experiment.to_json()), "hash": run.experiment.hash}
        return tracked(kinds, self._folder, run.name, settings, self._done, self._say)

    @contextmanager
    def _committed_at_the_end(self) -> Iterator[None]:
        """What trackers leave in the run's folder when they are closed belongs to a run in an object store, too."""
        try:
            yield
        except BaseException:
            with suppress(Stopped):
                self._commit()
            raise
        self._commit()

    def _commit(self) -> None:
        if self._mirror is not None:
            self._mirror.commit()

    def _exporting(self) -> AbstractContextManager[Callable[[Iterable[metrics.Reading]], None]]:
        """What exports metrics, where there is a Ray."""
        if self._run.where.on == "local":
            return nullcontext(lambda readings: None)
        from raygrad.onray.metrics import exporting

        return exporting(self._run.name)

    def _scheduled(self, driver: Driver) -> Driver:
        """The driver for the next round, after those left or joined whom the schedule names.

        Whom the caller has retired stays so.
        """
        e, clients = self._experiment, len(driver.population.examples)
        before, now = (e.membership.present(r, clients) if r else None for r in (self._done, self._done + 1))
        if _same_clients(before, now):
            return driver
        everybody = np.arange(clients)
        old, new, present = (everybody if ids is None else ids for ids in (before, now, self._state.present))
        there = np.union1d(np.setdiff1d(present, np.setdiff1d(old, new)), np.setdiff1d(new, old))
        return self._resize(driver, None if len(there) == clients else there)

    def _request(self, clients: np.ndarray, there: bool) -> None:
        """Note who shall come or go before the next round."""
        count = self._plan.shards.clients
        if len(clients) and not 0 <= clients[0] <= clients[-1] < count:
            raise BadInput(f"clients are numbered from 0 to {count - 1}; {clients[0]} to {clients[-1]} were given")
        before = np.arange(count) if self._wanted is None else self._wanted
        wanted = np.union1d(before, clients) if there else np.setdiff1d(before, clients)
        if not len(wanted):
            raise BadInput("no client would be left in the population; keep at least one")
        self._wanted = wanted

    def _requested(self, driver: Driver) -> Driver:
        """The driver with the population that the caller asked for, which is saved: no schedule knows of it."""
        wanted = self._wanted
        if wanted is not None and len(wanted) == len(driver.population.examples):
            wanted = None
        if _same_clients(wanted, driver.population.present):
            return driver
        with self._interrupts.shielded():
            driver = self._resize(driver, wanted)
            self._saved = -1
            self._save()
        return driver

    def _resize(self, driver: Driver, present: np.ndarray | None) -> Driver:
        if not _same_clients(present, driver.population.present):
            driver, self._state = driver.resized(self._state, present)
        self._wanted = self._state.present
        return driver

    def _measure(
        self, driver: Driver, played: Played
    ) -> tuple[dict[str, float] | None, dict[str, float] | None, Alignment | None, dict[str, float]]:
        """Evaluation and probe of the new model and what the algorithm measures, in the rounds that have them."""
        e, p = self._experiment, self._plan
        validation = test = alignment = None
        own: dict[str, float] = {}
        if played.index % e.evaluation.every == 0:
            if isinstance(e.algorithm, Measures):
                own = dict(e.algorithm.measures(played.state.algorithm))
            if e.evaluation.mode == "paper":
                test = evaluate(driver, p, played.state, "test", played.index)
            else:
                validation = evaluate(driver, p, played.state, "validation", played.index)
        if e.probe.every and played.index % e.probe.every == 0:
            cohort = fixed_cohort(driver.population, e.probe.clients, e.seed)
            alignment = driver.converse(
                alignment_probe(p).measure(played.state.algorithm.x, cohort),
                ("probe", played.index), cohort, played.state.buffers, played.lr_factor,
            ).result  # fmt: skip
        return validation, test, alignment, own

    def _adopt(
        self,
        played: Played,
        population: Population,
        validation: dict[str, float] | None,
        test: dict[str, float] | None,
        alignment: Alignment | None,
        own: dict[str, float],
    ) -> Round:
        """Make the round part of the run: client states, server state and table rows together."""
        talk, index, fates = played.talk, played.index, played.talk.fates
        for clients, rows in talk.states:
            self._store.put(clients, rows)
        self._state, self._done = played.state, index
        self._totals = replace(
            self._totals,
            communications=self._totals.communications + talk.communications,
            bytes_down=self._totals.bytes_down + talk.bytes_down,
            bytes_up=self._totals.bytes_up + talk.bytes_up,
            elapsed_s=self._elapsed_before + perf_counter() - self._began,
        )
        w, t = self._writers, self._totals
        w["rounds"].append(
            [
                {
                    "round": index,
                    "clients_present": len(population),
                    "clients_asked": talk.asked,
                    **counts(fates.outcome),
                    "lr_factor": played.lr_factor,
                    "train_loss": float("nan") if played.train_loss is None else played.train_loss,
                    "communications": talk.communications,
                    "bytes_down": talk.bytes_down,
                    "bytes_up": talk.bytes_up,
                    "virtual_s": played.state.clock_s,
                    "validation_accuracy": _get(validation, "accuracy"),
                    "validation_loss": _get(validation, "loss"),
                    "test_accuracy": _get(test, "accuracy"),
                    "test_loss": _get(test, "loss"),
                }
            ]
        )
        w["clients"].append({
            "round": np.full(len(fates.clients), index, np.int32), "client": fates.clients, "weight": fates.weights,
            "train_loss": pa.array(fates.losses, pa.float64(), mask=np.isnan(fates.losses)),
            "outcome": pa.array(fates.outcome, pa.string()), "virtual_s": fates.seconds,
            "steps": pa.array(fates.steps, pa.int32(), mask=fates.steps == 0),
            "staleness": fates.staleness.astype(np.int32),
        })  # fmt: skip
        w["metrics"].append(
            [
                {"round": index, "part": part, "metric": name, "value": value}
                for part, found in (("validation", validation), ("test", test), ("algorithm", own))
                for name, value in sorted((found or {}).items())
            ]
        )
        if alignment is not None:
            row = {f.name: getattr(alignment, f.name) for f in fields(alignment)}
            w["probes"].append([{"round": index, **row}])
        w["operations"].append([
            {"round": index, **{f.name: getattr(o, f.name) for f in fields(o)}, "start_s": o.start_s - self._began}
            for o in talk.operations
        ])  # fmt: skip
        w["seconds"].append([{"round": index, "wall_s": played.wall_s, "elapsed_s": t.elapsed_s, "process": t.process}])
        if index % self._experiment.checkpoints.every == 0:
            self._save()
        else:
            for writer in w.values():
                writer.flush()
        return Round(
            index=index,
            of=self._run.experiment.rounds,
            clients=talk.cohort.clients,
            train_loss=played.train_loss,
            validation=validation,
            test=test,
            alignment=alignment,
            communications=t.communications,
            bytes_down=t.bytes_down,
            bytes_up=t.bytes_up,
            wall_s=played.wall_s,
            elapsed_s=t.elapsed_s,
            folder=self._folder,
            x=played.state.algorithm.x,
            virtual_s=played.state.clock_s,
            answered=int(talk.inside.sum()),
            algorithm=own,
            _request=self._request,
            _save=self._save_whole,
        )

    def _save_whole(self) -> None:
        with self._interrupts.shielded():
            self._save()

    def _save(self) -> None:
        """Close the tables' parts, then write a checkpoint of the last adopted round."""
        if self._saved == self._done:
            return
        for writer in self._writers.values():
            writer.close(self._done + 1)
        tensors = pack_server(self._state)
        extra = {f.name: getattr(self._totals, f.name) for f in fields(_Totals)} | {"hash": self._run.experiment.hash}
        checkpoint.save(self._folder, self._done, tensors, self._store, extra, self._experiment.checkpoints.keep)
        self._saved = self._done
        self._commit()

    def _note_end(self, state: str, error: BaseException) -> None:
        """Why the run ended before its last round, to ended.json; it counts until a round more is played."""
        message = " ".join(str(error).split()) or type(error).__name__
        ended = {"schema_version": SCHEMA_VERSION, "round": self._done, "state": state, "message": message}
        with storage.run_storage(self._folder):
            storage.write_json(self._folder / "ended.json", ended)
        self._commit()

    def _final_is_current(self) -> bool:
        path = self._folder / "final.json"
        try:
            return path.is_file() and storage.read_json(path).get("round") == self._done
        except BadInput:  # damaged: it is made again
            return False

    def _finish(self, driver: Driver) -> dict[str, float]:
        """The one evaluation on the test set, to final.json. Returns what it found."""
        p, mode = self._plan, self._experiment.evaluation.mode
        final: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "round": self._done}
        if p.shards.test_examples:
            found = evaluate(driver, p, self._state, "test", self._done)
            final |= {
                "examples": int(found["examples"]), "loss": found["loss"],
                "metrics": {n: v for n, v in found.items() if n not in ("examples", "loss")},
            }  # fmt: skip
        if mode == "paper" and "accuracy" in final["metrics"]:
            curve = tables.read(self._folder, "rounds", ["round", "test_accuracy"]).drop_null().to_pylist()
            measured = [(row["test_accuracy"], row["round"]) for row in curve]
            accuracy, round = max([*measured, (final["metrics"]["accuracy"], self._done)], key=lambda m: (m[0], -m[1]))
            final["best"] = {"round": round, "accuracy": accuracy}
        elif p.shards.validation_examples.sum():
            found = evaluate(driver, p, self._state, "validation", self._done)
            final["validation"] = found
        with storage.run_storage(self._folder):
            storage.write_json(self._folder / "final.json", final)
        self._commit()
        found = {"loss": final.get("loss"), **final.get("metrics", {})}
        return {f"test/{n}": v for n, v in found.items() if v is not None}


def told(round: Round) -> dict[str, float | None]:
    """What trackers are told of a round."""
    numbers = ("train_loss", "communications", "bytes_down", "bytes_up", "virtual_s", "elapsed_s", "answered")
    found: dict[str, float | None] = {n: getattr(round, n) for n in numbers}
    for part, values in (("validation", round.validation), ("test", round.test), ("algorithm", round.algorithm)):
        found |= {f"{part}/{n}": v for n, v in (values or {}).items()}
    if round.alignment is not None:
        found |= {f"alignment/{f.name}": getattr(round.alignment, f.name) for f in fields(round.alignment)}
    return found


def _note(played: Played) -> None:
    """Log a round that is over, and the clients that failed in it."""
    fates = played.talk.fates
    for outcome, why in _FAILED.items():
        if len(clients := fates.clients[fates.outcome == outcome]):
            shown = ", ".join(map(str, clients[:10].tolist())) + (" …" if len(clients) > 10 else "")
            _LOG.warning("%d of %d clients left out, %s: %s", len(clients), played.talk.asked, why, shown)
    answered, late = (int((fates.outcome == outcome).sum()) for outcome in (ANSWERED, LATE))
    _LOG.info("done in %.3g s: %d clients answered, %d late", played.wall_s, answered, late)


def _get(values: dict[str, float] | None, name: str) -> float | None:
    value = None if values is None else values.get(name)
    return None if value is None or np.isnan(value) else value


def _numbers(clients: Iterable[int]) -> np.ndarray:
    """Client numbers, sorted. Raises BadInput for anything else."""
    try:
        found = np.asarray(clients if isinstance(clients, np.ndarray) else list(clients))
    except TypeError as e:
        raise BadInput(f"{clients!r} is no list of client numbers") from e
    if found.size and (found.dtype.kind not in "iu" or found.ndim != 1):
        raise BadInput(f"client numbers are whole numbers; {found.dtype} of shape {found.shape} was given")
    return np.unique(found.astype(np.int64))


def _same_clients(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def counts(outcome: np.ndarray) -> dict[str, int]:
    """How many clients [m] had each outcome, by column of the table of rounds."""
    columns = {
        "answered": (ANSWERED,), "late": (LATE, STALE), "left": (LEFT, UNAVAILABLE),
        "failed": (DAMAGED, KILLER, ABSENT), "rejected": (REJECTED,),
    }  # fmt: skip
    return {f"clients_{name}": int(np.isin(outcome, which).sum()) for name, which in columns.items()}


def evaluate(driver: Driver, plan: Plan, state: ServerState, part: str, round: int) -> dict[str, float]:
    """Mean loss and metrics of a model on the validation parts of the fixed clients, or on the test set.

    Where clients could not be measured and `failures` lets the run go on, `clients_missing` counts them.
    """
    if part == "test":
        batches = np.arange(plan.shards.test_batches)
        cohort = Cohort(batches, np.ones(len(batches)), Population(batches, np.ones(len(batches))))
    else:
        cohort = fixed_cohort(driver.population, plan.experiment.evaluation.clients, plan.experiment.seed)
    talk = driver.converse(Evaluator(part).measure(state.algorithm.x, cohort), (part, round), cohort, state.buffers)
    missing = int((~talk.inside).sum())
    return {**talk.result, "clients_missing": float(missing)} if missing else talk.result


def alignment_probe(plan: Plan) -> AlignmentProbe:
    """What a run's probes measure: drift where the algorithm has a step size `lr`, accuracy where it is a metric.

    Accuracy is of the validation parts, or of the training parts where none are cut off.
    """
    e = plan.experiment
    lr = getattr(e.algorithm, "lr", None)
    judged = any(name.rsplit(":", 1)[-1] == "accuracy" for name in e.metrics)
    part = "validation" if plan.shards.validation_examples.any() else "train"
    lr = float(lr) if isinstance(lr, int | float) and not isinstance(lr, bool) else None
    return AlignmentProbe(lr, part if judged else None, e.probe.examples)


@contextmanager
def open_executor(
    plan: Plan, where: Where, folder: Path, interrupts: Interrupts, say: Say, early: "EarlyStart | None" = None,
    lender: "Lender | None" = None,
) -> Iterator[Executor]:  # fmt: skip
    """The executor that `where` names, after its numerics were held against what the run recorded."""
    path = folder / "numerics.json"
    recorded = storage.read_json(path)["numerics"] if path.is_file() else None
    strict = where.numerics == "strict"
    with ExitStack() as stack:
        if where.on == "local":
            from raygrad.executors.inprocess import InProcess

            executor = InProcess(plan.spec, recorded, strict)
        else:
            from raygrad.onray.cluster import connected
            from raygrad.onray.executor import RayExecutor

            try:
                made = early.actors() if early is not None else []
                started = stack.enter_context(connected(where)) or early is not None
            except SystemExit as e:  # Ray's own handler of SIGTERM, while it starts
                raise Stopped("stopped by SIGTERM") from e
            interrupts.install()  # again, since Ray set its own
            executor = RayExecutor(
                plan.spec,
                where.hosts,
                where.gpus_per_host,
                recorded,
                strict,
                made,
                not started,
                where.cpus_per_host,
                lender,
                folder.parent.name,
            )
        stack.callback(executor.close)
        if recorded is None:
            with storage.run_storage(path):
                storage.write_json(path, {"schema_version": SCHEMA_VERSION, "numerics": executor.numerics})
        yield executor
        for host, what in executor.odd_hosts.items():
            say(f"host {host} computes other bits than the run began with: {what}")
