"""Run folders: made, found by name, listed, loaded. What is in one: docs/run-folder.md."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raygrad.errors import BadInput
from raygrad.experiment import SCHEMA_VERSION, Experiment, Where
from raygrad.files import mirror, remote, storage, tables
from raygrad.files.checkpoint import Checkpoint, latest
from raygrad.files.packing import BUFFERS_KEY, model_among
from raygrad.files.remote import Url, location
from raygrad.naming import unknown

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn


def check_name(name: str) -> None:
    """Refuse a name of runs that cannot be a folder's, or not be printed. Raises BadInput."""
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise BadInput(f"name {name!r} cannot name a folder")


def new_folder(run_root: Path, name: str, hash: str, id: str | None = None, shared: bool = False) -> Path:
    """An empty folder `run_root/name/id`; ids sort by time. With `shared` other machines do not choose the same.

    Given an `id`, what a start that failed left there is removed.
    """
    check_name(name)
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{hash[:6]}" + (f"-{uuid.uuid4().hex[:6]}" if shared else "")
    try:
        (run_root / name).mkdir(parents=True, exist_ok=True)
        if id is not None:
            folder = run_root / name / id
            if is_run(folder):
                raise BadInput(f"{folder} is a run already")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return folder
        for i in range(1, 1000):
            folder = run_root / name / (stem if i == 1 else f"{stem}-{i}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as e:
        raise BadInput(f"cannot make a run folder under {run_root}: {e.strerror}") from e
    raise BadInput(f"{run_root / name} already has 1,000 runs of this second")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "experiment.json").is_file()


def all_runs(run_root: str | Path | Url) -> list[Path]:
    """The folder of every run under `run_root`, by name and then by age; runs in an object store are fetched."""
    root = location(run_root)
    if isinstance(root, Url):
        return [folder for folder in all_folders(root) if is_run(folder)]
    return _local_runs(root)


def all_folders(root: Url) -> list[Path]:
    """The runs and sweeps right under an address, fetched without checkpoints."""
    with remote.at_start():
        return [mirror.fetch(u, tensors=False) for name in _names_in(root) for u in _remote_runs(root / name)]


def _local_runs(run_root: Path) -> list[Path]:
    return sorted(p.parent for p in run_root.glob("*/*/experiment.json") if not p.parent.name.startswith("."))


def _names_in(root: Url) -> list[str]:
    """The folders right under an address."""
    return [name for name, size in remote.children(root).items() if size is None and not name.startswith(".")]


def _remote_runs(at: Url) -> list[Url]:
    """The runs of a name, by age."""
    return [at / name for name in _names_in(at) if mirror.is_run(at / name)]


def newest(name: str, run_root: str | Path | Url) -> Path | Url | None:
    """Where the newest run of a name is (at an address: run or sweep); None if there is none."""
    root = location(run_root)
    if isinstance(root, Url):
        with remote.at_start():
            return next(
                (root / name / id for id in reversed(_names_in(root / name)) if mirror.is_run(root / name / id)), None
            )
    return next((r for r in reversed(_local_runs(root)) if r.parent.name == name), None)


def find_run(reference: str, run_root: str | Path | Url) -> Path:
    """The folder that RUN means: a path, `name/id`, or `name` (its newest run); or the address of one of these.

    A run in an object store is fetched, without its checkpoints. Raises BadInput.
    """
    found = find(reference, location(run_root))
    return _fetched(found, tensors=False) if isinstance(found, Url) else found


def _fetched(url: Url, tensors: bool = True) -> Path:
    folder = mirror.fetch(url, tensors)
    if not is_run(folder):
        raise BadInput(f"{url} is no run: it has no experiment.json")
    return folder


def find(reference: str, run_root: Path | Url) -> Path | Url:
    """Where the run is that RUN means; at an address it may be a sweep, too. Raises BadInput."""
    place = location(reference)
    if isinstance(place, Url):
        return _find_remote(place, reference, place.parent)
    if isinstance(run_root, Url):
        if is_run(place):
            return place
        if not place.parts or place.is_absolute() or ".." in place.parts:
            raise BadInput(f"{reference} is no run; looked in {run_root}")
        return _find_remote(run_root / place.as_posix(), reference, run_root)
    for folder in (place, run_root / reference):
        if is_run(folder):
            return folder
    named = [r for r in _local_runs(run_root) if r.parent.name == reference]
    if named:
        return named[-1]
    if Path(reference).is_dir():
        raise BadInput(f"{reference} is no run folder: it has no experiment.json")
    runs = _local_runs(run_root)
    known = {r.parent.name for r in runs} | {f"{r.parent.name}/{r.name}" for r in runs}
    error = unknown("run", reference, known if "/" in reference else {r.parent.name for r in runs})
    raise BadInput(f"{error}; looked in {run_root}")


def _find_remote(at: Url, reference: str, looked_in: Url) -> Url:
    """A run's address, or the newest run under it."""
    with remote.at_start():
        if mirror.is_run(at):
            return at
        for name in reversed(_names_in(at)):
            if mirror.is_run(at / name):
                return at / name
        raise BadInput(f"{unknown('run', reference, _names_in(looked_in))}; looked in {looked_in}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, so that no two processes write it. Raises BadInput if another one does."""
    with storage.hold(folder / ".lock", wait=False) as ours:
        if not ours:
            raise BadInput(f"{folder} is being written by another process; wait for it, or stop it")
        yield


def check_tables(folder: Path, rounds: int) -> None:
    """Refuse tables that are damaged or lack one of the rounds 1 to `rounds`. Raises BadInput."""
    found = {n: tables.read(folder, n, ["round"])["round"].to_numpy() for n in tables.BIT_STABLE}["rounds"]
    if not np.array_equal(found[:rounds], np.arange(1, rounds + 1)):
        raise BadInput(f"{folder / 'rounds'} lacks some of the rounds 1 to {rounds}; its parts were removed or changed")


@dataclass(frozen=True)
class LoadedRun:
    """A run as it stands on disk. One from an object store has a `url`; `folder` is then the local one."""

    folder: Path
    name: str
    experiment: Experiment
    where: Where
    url: Url | None = None

    @property
    def at(self) -> Path | Url:
        """Where it belongs: its address, or its folder."""
        return self.url or self.folder

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest checkpoint. Raises BadInput if there is none yet."""
        found = latest(self.folder)
        if found is None:
            raise BadInput(f"{self.folder} has no checkpoint yet; `raygrad resume` starts it again from the beginning")
        return found

    def _repr_html_(self) -> str:
        """A small table and the learning curves, for notebooks."""
        from raygrad.notebook import run_html

        return run_html(self.folder)

    def module(self) -> "nn.Module":
        """The trained model in evaluation mode, on the CPU, with its buffers."""
        import torch

        from raygrad.flat import FlatModel, initial_module

        data = storage.read_json(self.folder / "data.json")
        tensors = self.checkpoint.tensors()
        e = self.experiment
        module = initial_module(e.model, tuple(data["shape"]), data["classes"], e.seed)
        model = FlatModel(module, getattr(torch, self.experiment.dtype))
        model.load(model_among(tensors))
        if BUFFERS_KEY in tensors:
            model.load_buffers(tensors[BUFFERS_KEY])
        return module.eval()

    def table(self, name: str) -> "pa.Table":
        """One of the run's tables; `raygrad.files.tables.TABLES` lists them with their columns."""
        if name not in tables.TABLES:
            raise unknown("table", name, tables.TABLES)
        return tables.read(self.folder, name)

    def digest(self) -> str:
        """The sha256 of the newest checkpoint's tensors and of the bit-stable tables up to it."""
        import pyarrow.compute as pc

        checkpoint = self.checkpoint
        check_tables(self.folder, checkpoint.round)
        rows = {n: self.table(n).filter(pc.field("round") <= checkpoint.round) for n in tables.BIT_STABLE}
        return tables.digest(rows, checkpoint.tensors())


def load(run: str | Path, run_root: str | Path = "runs") -> LoadedRun:
    """The run that `run` means: a path, `name/id`, or `name`; or the address of one. Raises BadInput."""
    found = find(str(run), location(run_root))
    url = found if isinstance(found, Url) else None
    folder = _fetched(found) if isinstance(found, Url) else found
    record = storage.read_json(folder / "experiment.json")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise BadInput(
            f"{folder / 'experiment.json'} has schema_version {record.get('schema_version')}; "
            f"this raygrad reads {SCHEMA_VERSION}"
        )
    if lacking := [n for n in ("name", "experiment", "hash") if n not in record]:
        raise BadInput(f"{folder / 'experiment.json'} is damaged: it has no {', '.join(lacking)}")
    experiment = Experiment.from_json(record["experiment"])
    if experiment.hash != record["hash"]:
        lacking = sorted(_names(experiment.to_json()) - _names(record["experiment"]))
        why = f"was written before there was {lacking[0]}" if lacking else "was changed since the run started"
        raise BadInput(f"{folder / 'experiment.json'} {why}; start a new run instead")
    where = Where.from_json(storage.read_json(folder / "where.json"))
    return LoadedRun(folder, record["name"], experiment, where, url)


def _names(value: object, prefix: str = "") -> set[str]:
    """The dotted names of all settings in an experiment file."""
    if not isinstance(value, dict):
        return {prefix}
    return {name for key, inner in value.items() for name in _names(inner, f"{prefix}.{key}" if prefix else key)}
