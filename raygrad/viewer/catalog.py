"""What runs and sweeps there are under a run root, read by need and kept until a file changes.

Nothing is written, but for runs in an object store, which are fetched into the cache like everywhere else.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal, TypeVar

import numpy as np

from raygrad.errors import BadInput
from raygrad.files import storage, tables
from raygrad.files.remote import Url
from raygrad.reports import report
from raygrad.reports.report import RunView, describe, flatten

T = TypeVar("T")
Kind = Literal["run", "sweep"]
Fingerprint = tuple[tuple[int, int], ...]

_FILES = {"run": "experiment.json", "sweep": "sweep.json"}
_WATCHED = (
    "experiment.json", "data.json", "where.json", "final.json", "ended.json", "sweep.json", "trials.parquet",
    *(str(tables.folder(Path(), name)) for name in tables.TABLES),
)  # fmt: skip
_PART = re.compile(r"[^./\\\0][^/\\\0]*")
NEWEST = 200  # lines that are shown before the others are read, as many as static/list.js shows
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
    state: str  # running, finished, stopped, diverged, below_quorum, failed, or damaged
    message: str = ""  # what is damaged, or why it ended early
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


class _Look:
    """One look around under the run root."""

    def __init__(self) -> None:
        self.newest, self.whole = threading.Event(), threading.Event()  # these lines are read


class Catalog:
    """The runs and sweeps under a run root. May be used from several threads."""

    def __init__(self, root: Path | Url) -> None:
        self.root = root
        if isinstance(root, Url):
            from raygrad.files.mirror import local_root

            self.local = local_root(root)
        else:
            self.local = root.resolve()
        self.fetching = ""  # why runs of an object store could not be fetched, or that they are
        self._views, self._rows = Kept(_KEPT), Kept(1 << 20)
        self._lines: dict[Path, Row | None] | None = None  # the newest first; None is not read yet
        self._shut: dict[str, str] = {}  # what may not be looked into, and why
        self._looks = ThreadPoolExecutor(1, "look")  # more would fight over the interpreter
        self._next: _Look | None = None  # that has not begun yet
        self._lock, self._closed = threading.Lock(), False
        if isinstance(root, Url):
            self.fetching = f"fetching from {root}"
            threading.Thread(target=self._fetch_always, args=(root,), daemon=True).start()

    @property
    def note(self) -> str:
        """What is to be said of the run root: that it is fetched, or what in it cannot be read and why."""
        shut = [f"{name} cannot be read: {why}" for name, why in self._shut.items()]
        return " · ".join([self.fetching, *shut] if self.fetching else shut)

    def close(self) -> None:
        """Stop reading."""
        self._closed = True
        self._looks.shutdown(wait=False, cancel_futures=True)

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

    def rows(self, wait_s: float, whole: bool = True) -> tuple[list[Row], int]:
        """The lines of all runs and sweeps, the newest first, and how many are not read yet.

        Waits up to `wait_s` until all lines are as they are now; without `whole`, until the newest are.
        """
        look = self._look()
        (look.whole if whole else look.newest).wait(wait_s)
        if self._lines is None:
            return [], 1
        lines = list(self._lines.values())
        known = [row for row in lines if row is not None]
        return known, len(lines) - len(known)

    def _look(self) -> _Look:
        """The next look around: one that has begun may have passed what has changed since."""
        with self._lock:
            if self._next is None:
                self._next = _Look()
                self._looks.submit(self._look_around, self._next)
            return self._next

    def _look_around(self, look: _Look) -> None:
        """Read the lines that have changed, the newest first."""
        with self._lock:
            self._next = None
        try:
            shut: dict[str, str] = {}
            folders = sorted(self._folders(shut), key=attrgetter("name"), reverse=True)
            self._shut = shut
            before = self._lines or {}
            lines = self._lines = {folder: before.get(folder) for folder in folders}
            for i, folder in enumerate(folders):
                lines[folder] = self._row(folder)
                if i + 1 == NEWEST:
                    look.newest.set()
                if self._closed:
                    break
        finally:
            look.newest.set()
            look.whole.set()

    def _row(self, folder: Path) -> Row:
        """A line with the state as it is now: that a process begins or ends changes no file."""
        row = self._rows.get("row", folder, self._line)
        return replace(row, state="running") if row.state != "damaged" and is_running(folder) else row

    def _line(self, folder: Path) -> Row:
        kind: Kind = "run"
        at = folder.relative_to(self.local).as_posix()
        try:
            at.encode()  # a name that is no UTF-8 stands in no address
            kind = "run" if (folder / _FILES["run"]).is_file() else "sweep"
            return (run_row if kind == "run" else sweep_row)(folder, at)
        except Exception as e:  # whatever a file that no raygrad wrote leads to, it hides no other run
            said = " ".join(str(e).split()) or type(e).__name__
            return Row(kind, at, folder.parent.name, started_of(folder.name), "damaged", said)

    def _folders(self, shut: dict[str, str]) -> Iterator[Path]:
        for folder in (run for name in self._inside(self.local, shut) for run in self._inside(name, shut)):
            try:
                there = any((folder / file).is_file() for file in _FILES.values())
            except OSError:  # it may not be looked into: its line says so
                there = True
            if there:
                yield folder

    def _inside(self, folder: Path, shut: dict[str, str]) -> Iterator[Path]:
        """The folders in a folder, but for hidden ones and links out of the root; why it is shut goes into `shut`."""
        try:
            found = list(os.scandir(folder))
        except OSError as e:
            if folder == self.local and not isinstance(self.root, Url):
                shut[f"the run root {self.root}"] = e.strerror or str(e)
            elif folder != self.local and not isinstance(e, FileNotFoundError):
                shut[f"the folder {folder.name}"] = e.strerror or str(e)
            return
        for entry in found:
            with suppress(OSError):  # a link to itself
                safe = not entry.is_symlink() or Path(os.path.realpath(entry)).is_relative_to(self.local)
                if not entry.name.startswith(".") and safe and entry.is_dir():
                    yield folder / entry.name

    def _fetch_always(self, root: Url) -> None:
        from raygrad.files import runs

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
    done, measured, measure, value = _newest(folder, part)
    if final.is_file():
        end = report.measured_at_end(flatten(storage.read_json(final)))
        for metric in ("loss", "accuracy"):
            index, last = end.get((part, metric), (0, np.nan))
            if index > measured and np.isfinite(last):
                measure, value = f"{part} {metric}", last
    planned = settings.get("rounds")
    planned = planned if isinstance(planned, int) else done
    origin = record.get("forked_from")
    finished = final.is_file() and done >= planned
    ended = {} if finished else report.ended(folder, done)
    parent = str(origin.get("run", "")) if isinstance(origin, dict) else ""
    return Row(
        "run", at, folder.parent.name, started_of(folder.name),
        "finished" if finished else str(ended.get("state", "stopped")), str(ended.get("message", "")),
        algorithm=describe(settings, "algorithm"), data=describe(settings, "data"), seed=str(settings.get("seed", "")),
        done=done, planned=planned, measure=measure, value=value, parent=parent,
    )  # fmt: skip


def _newest(folder: Path, part: str) -> tuple[int, int, str, float | None]:
    """The rounds that are done, and the newest accuracy, or loss, in the tables: its round, its name and its value."""
    names, done = [f"{part}_accuracy", f"{part}_loss"], 0
    for table in tables.newest_first(folder, "rounds", ["round", *names]):
        rounds = table["round"].to_numpy()
        done = max(done, int(rounds.max(initial=0)))
        for name in names:
            values = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
            if (known := np.flatnonzero(np.isfinite(values))).size:
                return done, int(rounds[known[-1]]), name.replace("_", " "), float(values[known[-1]])
    return done, 0, "", None


def sweep_row(folder: Path, at: str) -> Row:
    """A sweep's line. Raises BadInput."""
    from raygrad.sweeps.sweep import SHOWN, best_settings, load

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
    from raygrad.sweeps.trials import read_trials

    return read_trials(folder).to_pylist() if (folder / "trials.parquet").is_file() else []
