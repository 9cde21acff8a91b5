"""The composition root: experiment + where -> a run folder -> an iterator of rounds, new, resumed, extended or forked.

    for round in raygrad.rounds(experiment):
        print(round.index, round.validation)

There are no callbacks: whoever wants to act between rounds writes a `for`.
"""

import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raygrad.errors import BadInput, Stopped
from raygrad.experiment import SCHEMA_VERSION, Experiment, Where
from raygrad.files import checkpoint, mirror, remote, storage, tables
from raygrad.files.remote import Url, location
from raygrad.files.runs import LoadedRun, load, locked, new_folder
from raygrad.logs import Say
from raygrad.machine import environment
from raygrad.memory import keep_memory
from raygrad.plan import Plan, describe, make_plan
from raygrad.player import Injector, Player, Round
from raygrad.runner import check_device
from raygrad.talk import Failures
from raygrad.tracking import check as check_trackers

if TYPE_CHECKING:
    from raygrad.onray.start import EarlyStart, Lender


def rounds(
    experiment: Experiment,
    where: Where | None = None,
    *,
    run_root: str | Path = "runs",
    name: str = "run",
    say: Say = lambda line: None,
) -> Generator[Round, None, None]:
    """Run `experiment` in a new folder under `run_root/name`, round by round. `say` gets lines the user should see.

    `run_root` is a folder or an address in an object store (docs/storage.md).
    Leaving the loop early saves a checkpoint. Raises the errors of `raygrad.errors`; bad input before anything starts.
    """
    run = create(experiment, where or Where(), run_root=run_root, name=name, say=say)
    try:
        yield from play(run, say=say)
    except BadInput:
        discard_unplayed(run)
        raise


def resume(
    run: str | Path,
    *,
    rounds: int | None = None,
    failures: Failures | None = None,
    where: Where | None = None,
    run_root: str | Path = "runs",
    say: Say = lambda line: None,
) -> Generator[Round, None, None]:
    """Continue a run from its newest checkpoint, to `rounds` in total if given, bitwise as if it had never stopped.

    `failures` says what happens to failing clients from there on.
    """
    loaded = load(run, run_root)
    if rounds is not None:
        loaded = extend(loaded, rounds)
    if failures is not None:
        loaded = replace(loaded, experiment=replace(loaded.experiment, failures=failures))
    yield from play(replace(loaded, where=where or loaded.where), say=say)


def shard_root(where: Where, run: Path | Url) -> Path | Url:
    """Where the prepared shards are: `where.shard_root`, or `.shards` in the run root. `run` is where the run is."""
    return location(where.shard_root) if where.shard_root else run.parent.parent / ".shards"


def root_of(run_root: str | Path | Url) -> Path | Url:
    """The run root, resolved. Raises BadInput if it is in an object store in which we may not write."""
    root = location(run_root)
    if isinstance(root, Url):
        remote.check_writable(root)
        return root
    return root.resolve()


def create(
    experiment: Experiment,
    where: Where,
    *,
    run_root: str | Path | Url,
    name: str,
    id: str | None = None,
    say: Say = lambda line: None,
) -> LoadedRun:
    """Check everything, prepare the data and make the run folder. Raises BadInput before anything starts.

    The folder is `run_root/name/id`, with an `id` that sorts by time unless one is given.
    """
    root = root_of(run_root)
    check_where(where)
    plan, experiment = planned(experiment, where, shard_root(where, root / name / "x"))
    for note in plan.notes:
        say(note)
    if plan.state_bytes:
        say(f"clients keep {plan.state_bytes / 1e6:,.1f} MB of state between rounds, if every client is asked once")
    with _making(root, name, experiment, where, id) as made:
        storage.write_json(made.folder / "data.json", describe(plan))
        writer = tables.TableWriter(tables.folder(made.folder, "partition"), tables.TABLES["partition"], 0)
        writer.append(_partition_rows(plan))
        writer.close(1)
        _write_experiment(made.folder, name, experiment)
    return made


def planned(experiment: Experiment, where: Where, shards: Path | Url) -> tuple[Plan, Experiment]:
    """The plan of the experiment's first stage, and the whole experiment as its run records it.

    `shards` is the folder or address of prepared data. Raises BadInput, also for a later stage that cannot be.
    """
    first, *_ = [make_plan(stage, where, shards) for _, stage in experiment.stages()]
    return first, replace(first.experiment, rounds=experiment.rounds, changes=experiment.changes)


@contextmanager
def _making(
    root: Path | Url, name: str, experiment: Experiment, where: Where, id: str | None = None
) -> Iterator[LoadedRun]:
    """A run whose folder is filled inside, and then published if it belongs in an object store."""
    if isinstance(root, Url):
        if id is not None and not mirror.is_run(root / name / id):  # of a start that was not committed
            shutil.rmtree(mirror.local_root(root) / name / id, ignore_errors=True)
        folder = new_folder(mirror.local_root(root), name, experiment.hash, id, shared=True)
        url = root / name / folder.name
    else:
        folder, url = new_folder(root, name, experiment.hash, id), None
    try:
        with storage.run_storage(folder):
            storage.write_json(folder / "where.json", where.to_json())
            storage.write_json(folder / "environment.json", {"schema_version": SCHEMA_VERSION, **environment()})
            yield LoadedRun(folder, name, experiment, where, url)
        if url is not None:
            mirror.publish(url, folder)
    except Stopped as e:  # what is there is no run that could be resumed
        shutil.rmtree(folder, ignore_errors=True)
        why, where_to = e.what if isinstance(e, remote.Unreachable) else e.__cause__, url or folder
        raise Stopped(f"storage lost while making {where_to}: {why}; nothing was played: start the run again") from e


def check_where(where: Where) -> None:
    """Refuse a device, an address or a number of hosts that cannot be, before anything is prepared. Raises BadInput."""
    check_trackers(where.track)
    if where.on == "local":
        check_device(where.device_type)
    else:
        from raygrad.onray.cluster import check, is_up

        if check(where) is None and not is_up():  # another machine of a Ray that is up may have what we lack
            check_device(where.device_type)


def discard_unplayed(run: LoadedRun) -> None:
    """Remove a run's folder if not one round of it was played: a start that failed leaves nothing behind."""
    if checkpoint.latest(run.folder) is None and not tables.read(run.folder, "rounds", ["round"]).num_rows:
        if run.url is not None:
            mirror.discard(run.url)
        shutil.rmtree(run.folder, ignore_errors=True)


def extend(run: LoadedRun, rounds: int) -> LoadedRun:
    """The run with another total number of rounds. Raises BadInput if it is below what is done."""
    done = checkpoint.latest(run.folder)
    if done is not None and rounds < done.round:
        raise BadInput(f"rounds is {rounds}, but {run.at} already has {done.round}; ask for more")
    experiment = replace(run.experiment, rounds=rounds)
    return replace(run, experiment=experiment)


def _write_experiment(folder: Path, name: str, experiment: Experiment, **more: Any) -> None:
    record = {
        "schema_version": SCHEMA_VERSION, "name": name, "id": folder.name, "hash": experiment.hash,
        "experiment": experiment.to_json(), **more,
    }  # fmt: skip
    storage.write_json(folder / "experiment.json", record)


def fork(
    run: LoadedRun,
    settings: Iterable[str],
    *,
    run_root: str | Path | Url,
    name: str,
    where: Where | None = None,
    rounds: int | None = None,
    round: int | None = None,
    id: str | None = None,
) -> LoadedRun:
    """A new run that goes on from the checkpoint of `run` after `round` (None: the newest) with changed `settings`.

    `settings` are "FIELD=VALUE". What was played is copied, and the experiment has the settings as `changes`, so that
    a run of it from the start has the same digest. Raises BadInput if there is no such checkpoint.
    """
    found = checkpoint.latest(run.folder) if round is None else checkpoint.at(run.folder, round)
    if found is None or not found.round:
        raise BadInput(f"{run.folder} has no checkpoint after round {round or 1}: there is nothing to fork from")
    done = found.round
    kept = tuple(c for c in run.experiment.changes if int(c.partition(":")[0]) < done)
    changes = (*kept, *(f"{done}:{s}" for s in settings))
    experiment = replace(run.experiment, changes=changes, rounds=rounds or run.experiment.rounds)
    if experiment.rounds < done:
        raise BadInput(f"rounds is {rounds}, but {run.folder} already has {done}; ask for more")
    where = where or run.where
    with _making(root_of(run_root), name, experiment, where, id) as made:
        for file in ("data.json", "numerics.json"):
            storage.write_json(made.folder / file, storage.read_json(run.folder / file))
        for table in tables.TABLES:
            if (source := tables.folder(run.folder, table)).is_dir():
                shutil.copytree(source, tables.folder(made.folder, table))
                tables.discard_from(tables.folder(made.folder, table), done + 1)
        checkpoint.copy(found, made.folder, found.extra | {"hash": experiment.hash})
        origin = {"run": f"{run.name}/{run.folder.name}", "round": done, "hash": run.experiment.hash}
        _write_experiment(made.folder, name, experiment, forked_from=origin)
    return made


def _partition_rows(plan: Plan) -> dict[str, Any]:
    s = plan.shards
    counts = s.label_counts
    lists = None
    if counts is not None:
        flat = np.ascontiguousarray(counts, np.int64).reshape(-1)
        lists = pa.ListArray.from_arrays(np.arange(s.clients + 1, dtype=np.int32) * counts.shape[1], flat)
    return {
        "round": np.zeros(s.clients, np.int32),
        "client": np.arange(s.clients),
        "examples": np.asarray(s.examples, np.int64),
        "validation_examples": np.asarray(s.validation_examples, np.int64),
        "label_counts": pa.nulls(s.clients, pa.list_(pa.int64())) if lists is None else lists,
    }


def play(
    run: LoadedRun,
    say: Say = lambda line: None,
    early: "EarlyStart | None" = None,
    injector: Injector | None = None,
    lender: "Lender | None" = None,
) -> Generator[Round, None, None]:
    """The rounds that `run` still lacks, each saved before it is given out; the test evaluation follows the last.

    `early` is a local Ray that was begun to be started for this run. `lender` has hosts that others have used before,
    and will use after it.
    """
    check_where(run.where)
    keep_memory()
    with ExitStack() as outer:
        held = None
        if run.url is None:
            outer.enter_context(locked(run.folder))
        else:
            held = outer.enter_context(mirror.held(run.url, say))
        record = storage.read_json(run.folder / "experiment.json")
        if record["hash"] != run.experiment.hash:
            raise BadInput(f"{run.at / 'experiment.json'} was changed since the run started; start a new run instead")
        if run.experiment.to_json() != record["experiment"]:
            more = {"forked_from": record["forked_from"]} if "forked_from" in record else {}
            _write_experiment(run.folder, run.name, run.experiment, **more)
        data = storage.read_json(run.folder / "data.json")
        first: Plan | None = None
        for until, experiment in run.experiment.stages():
            found = checkpoint.latest(run.folder)
            if found is not None and found.extra["hash"] != run.experiment.hash:
                raise BadInput(f"{run.at} was started under another experiment; start a new run instead")
            last = until == run.experiment.rounds
            over = found is not None and found.round >= until and not last
            if over and first is not None:
                continue
            plan = make_plan(experiment, run.where, shard_root(run.where, run.at), data.get("shards"))
            if data["id"] != plan.shards.id:
                raise BadInput(
                    f"{plan.shards.path} holds other data than {run.at} started with; start a new run instead"
                )
            first = first or plan
            if over:
                continue
            if first is not plan:
                plan = replace(plan, spec=replace(plan.spec, began=first.spec))
            if injector is not None:
                plan = replace(plan, spec=replace(plan.spec, faults=injector.faults))
            with ExitStack() as stack:
                yield from Player(run, plan, found, stack, say, early, injector, lender, held).rounds(last)
