"""What runs and sweeps there are under a run root, read by need and kept until a file changes.

Nothing is written, but for runs in an object store, which are fetched into the cache like everywhere else.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal, TypeVar

import numpy as np

from raygrad import report, storage, tables
from raygrad.errors import BadInput
from raygrad.remote import Url
from raygrad.report import RunView, describe, flatten

T = TypeVar("T")
Kind = Literal["run", "sweep"]
Fingerprint = tuple[tuple[int, int], ...]

_FILES = {"run": "experiment.json", "sweep": "sweep.json"}
_WATCHED = (
    "experiment.json", "data.json", "where.json", "final.json", "sweep.json", "trials.parquet",
    *(str(tables.folder(Path(), name)) for name in tables.TABLES),
)  # fmt: skip
_PART = re.compile(r"[^./\\\0][^/\\\0]*")
_KEPT = 64  # runs whose tables are kept in memory
_FETCH_EVERY_S = 10.0
_FETCH_SHARE = 10  # fetching takes at most one part in ten of the time


class NotFound(BadInput):
    """There is nothing under that name."""


@dataclass(frozen=True)
class Row:
    """A line of the list. Of a sweep `done` and `planned` count trials."""

    kind: Kind
    at: str  # the path under the run root: name/id
    name: str
    started: str  # as the id begins: 20261231-235959, in UTC; sorts by time
    state: str  # running, finished, stopped, or damaged
    message: str = ""  # what is damaged
    algorithm: str = ""
    data: str = ""
    seed: str = ""
    done: int = 0
    planned: int = 0
    measure: str = ""  # what `value` is: "validation accuracy"
    value: float | None = None  # the newest; of a sweep the best
    parent: str = ""  # the run from which it was forked: name/id


def fingerprint(folder: Path) -> Fingerprint:
    """Changes when a file that pages read changes; tables are renamed into their folders."""
    return tuple(_stamp(folder / name) for name in _WATCHED)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


class Kept:
    """Values by folder, each until the folder's fingerprint changes; the `most` that were last asked for."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found: OrderedDict[tuple[str, Path], tuple[Fingerprint, Any]] = OrderedDict()

    def known(self, what: str, folder: Path) -> Any | None:
        """The value if it is up to date."""
        with self._lock:
            found = self._found.get((what, folder))
        return found[1] if found is not None and found[0] == fingerprint(folder) else None

    def get(self, what: str, folder: Path, make: Callable[[Path], T]) -> T:
        """The value, made if it is not up to date."""
        now = fingerprint(folder)
        with self._lock:
            found = self._found.get((what, folder))
            if found is not None and found[0] == now:
                self._found.move_to_end((what, folder))
                return found[1]
        value = make(folder)
        with self._lock:
            self._found[what, folder] = now, value
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return value


class Catalog:
    """The runs and sweeps under a run root. May be used from several threads."""

    def __init__(self, root: Path | Url) -> None:
        self.root = root
        if isinstance(root, Url):
            from raygrad.mirror import local_root

            self.local = local_root(root)
        else:
            self.local = root.resolve()
        self.fetching = ""  # why runs of an object store could not be fetched, or that they are
        self._views, self._rows = Kept(_KEPT), Kept(1 << 20)
        self._pool = ThreadPoolExecutor(2, "catalog")
        self._pending: set[Path] = set()
        if isinstance(root, Url):
            self.fetching = f"fetching from {root}"
            threading.Thread(target=self._fetch_always, args=(root,), daemon=True).start()

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def folder(self, at: str, kind: Kind = "run") -> Path:
        """The folder of a run (`name/id`, of a trial `name/id/trials/id`) or sweep. Raises NotFound."""
        parts = at.split("/")
        if all(_PART.fullmatch(part) for part in parts):
            folder = self.local.joinpath(*parts)
            with suppress(OSError):  # a name that is too long for any file
                if (folder / _FILES[kind]).is_file() and folder.resolve().is_relative_to(self.local):
                    return folder
        raise NotFound(f"{self.root} has no {kind} {at}")

    def at(self, folder: Path) -> str:
        """What a page calls the run or sweep in a folder: its path under the root. Raises NotFound."""
        resolved = folder.resolve()
        if not resolved.is_relative_to(self.local):
            raise NotFound(f"{folder} is not under the run root {self.root}")
        return resolved.relative_to(self.local).as_posix()

    def view(self, folder: Path) -> RunView:
        """A run's report view. Raises BadInput."""
        return self._views.get("view", folder, report.view)

    def made(self, what: str, folder: Path, make: Callable[[Path], T]) -> T:
        """What `make` makes of a folder, kept until something in it changes."""
        return self._views.get(what, folder, make)

    def rows(self, wait_s: float = 0.0) -> tuple[list[Row], int]:
        """The lines of all runs and sweeps that are known so far, the newest first, and how many are still read.

        Waits up to `wait_s` for those.
        """
        folders = sorted(self._folders(), key=lambda folder: folder.name, reverse=True)
        for folder in folders:
            if folder not in self._pending and self._rows.known("row", folder) is None:
                self._pending.add(folder)
                self._pool.submit(self._read, folder)
        end = monotonic() + wait_s
        while self._pending and monotonic() < end:
            sleep(0.01)
        found = [(self._rows.known("row", folder), folder) for folder in folders]
        known = [_now(row, folder) for row, folder in found if row is not None]
        return known, len(folders) - len(known)

    def _read(self, folder: Path) -> None:
        try:
            self._rows.get("row", folder, self._line)
        finally:
            self._pending.discard(folder)

    def _line(self, folder: Path) -> Row:
        kind: Kind = "run" if (folder / _FILES["run"]).is_file() else "sweep"
        at = folder.relative_to(self.local).as_posix()
        try:
            at.encode()  # a name that is no UTF-8 stands in no address
            return (run_row if kind == "run" else sweep_row)(folder, at)
        except Exception as e:  # whatever a file that no raygrad wrote leads to, it hides no other run
            said = " ".join(str(e).split()) or type(e).__name__
            return Row(kind, at, folder.parent.name, started_of(folder.name), "damaged", said)

    def _folders(self) -> Iterator[Path]:
        for file in _FILES.values():
            for found in self.local.glob(f"*/*/{file}"):
                folder = found.parent
                hidden = any(part.startswith(".") for part in folder.relative_to(self.local).parts)
                if not hidden and folder.resolve().is_relative_to(self.local):
                    yield folder

    def _fetch_always(self, root: Url) -> None:
        from raygrad import runs

        while True:
            began = monotonic()
            try:
                runs.all_folders(root)
                self.fetching = ""
            except Exception as e:  # whatever it was, the next time may go well
                self.fetching = " ".join(f"{root} cannot be fetched: {e}".split())
            sleep(max(_FETCH_EVERY_S, _FETCH_SHARE * (monotonic() - began)))


def is_running(folder: Path) -> bool:
    """Whether a process of this machine is writing the run or sweep."""
    return storage.held(folder / ".lock")


def _now(row: Row, folder: Path) -> Row:
    """The line with the state as it is now: that a process begins or ends changes no file."""
    return replace(row, state="running") if row.state != "damaged" and is_running(folder) else row


def started_of(id: str) -> str:
    """The time in a run's id, 20261231-235959; of another id nothing."""
    found = re.match(r"\d{8}-\d{6}", id)
    return found[0] if found else ""


def run_row(folder: Path, at: str) -> Row:
    """A run's line: from its settings and the newest part of its rounds. Raises BadInput."""
    record = storage.read_json(folder / "experiment.json")
    if not isinstance(experiment := record.get("experiment"), dict):
        raise BadInput(f'{folder / "experiment.json"} is damaged: expected the settings under "experiment"')
    settings = flatten(experiment)
    final = folder / "final.json"
    part = "test" if settings.get("evaluation.mode") == "paper" else "validation"
    done, measure, value = _newest(folder, part)
    if value is None and final.is_file():
        found = flatten(storage.read_json(final))
        measure = f"{part} {'accuracy' if f'{part}.accuracy' in found else 'loss'}"
        last = found.get(measure.replace(" ", "."))
        value = float(last) if isinstance(last, int | float) else None
    planned = settings.get("rounds")
    planned = planned if isinstance(planned, int) else done
    origin = record.get("forked_from") or {}
    return Row(
        "run", at, folder.parent.name, started_of(folder.name),
        "finished" if final.is_file() and done >= planned else "stopped",
        algorithm=describe(settings, "algorithm"), data=describe(settings, "data"), seed=str(settings.get("seed", "")),
        done=done, planned=planned, measure=measure, value=value, parent=str(origin.get("run", "")),
    )  # fmt: skip


def _newest(folder: Path, part: str) -> tuple[int, str, float | None]:
    """The rounds that are done, and the newest measured accuracy, or loss: what it is and its value."""
    names, done = [f"{part}_accuracy", f"{part}_loss"], 0
    for table in tables.newest_first(folder, "rounds", ["round", *names]):
        done = max(done, int(table["round"].to_numpy().max(initial=0)))
        for name in names:
            values = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
            if np.isfinite(values).any():
                return done, name.replace("_", " "), float(values[np.isfinite(values)][-1])
    return done, "", None


def sweep_row(folder: Path, at: str) -> Row:
    """A sweep's line. Raises BadInput."""
    from raygrad.sweep import SHOWN, best_settings, load

    loaded = load(folder)
    rows = trials_of(folder)
    done = len({row["trial"] for row in rows if row["role"] == "search"})
    heads = best_settings(loaded)
    again = sum(row["role"] == "winner" for row in rows)
    planned = len(loaded.sweep.settings()) if loaded.sweep.search == "grid" else loaded.sweep.samples
    whole = again >= len(heads) * loaded.sweep.winner_seeds and (again > 0 or done >= planned)
    return Row(
        "sweep", at, folder.parent.name, started_of(folder.name), "finished" if whole else "stopped",
        algorithm=f"sweep over {', '.join(SHOWN.get(n, n) for n in loaded.sweep.dimensions)}",
        data=describe(flatten(loaded.sweep.experiment.to_json()), "data"), done=done, planned=max(planned, done),
        measure=f"best validation {loaded.sweep.measure}", value=heads[0]["value"] if heads else None,
    )  # fmt: skip


def trials_of(folder: Path) -> Sequence[dict[str, Any]]:
    """The rows of a sweep's trials that are over; none before the first."""
    from raygrad.trials import read_trials

    return read_trials(folder).to_pylist() if (folder / "trials.parquet").is_file() else []
