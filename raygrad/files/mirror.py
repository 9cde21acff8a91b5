"""A run in an object store: played in a local folder, committed to the store.

    <run>/commit.json    what the run consists of, and in it the contents of small JSON files
    <run>/lease.json     who writes the run now
    <run>/files/…        everything else: names that hold the content's sha256, never written over
    <run>/report.html

A commit uploads the files that are new, then writes commit.json, then removes the files that are no longer listed.
Readers take what commit.json lists, with sizes and checksums, and nothing else. So a commit happens whole or not at
all, whenever its writer dies and whatever the store does in between; and no writer can write over what is committed,
because other contents have other names.

The local folder is in the cache, at runs/<root>/<name>/<id>. It is played in and read as any run folder. Where it
differs from what is committed, the store is right.
"""

import hashlib
import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePosixPath
from time import monotonic, sleep
from typing import Any

from raygrad.errors import BadInput, Stopped
from raygrad.files import remote, storage
from raygrad.files.remote import Patience, Unreachable, Url, at_start
from raygrad.logs import Say

SCHEMA_VERSION = 1
COMMIT, LEASE, FILES, REPORT = "commit.json", "lease.json", "files", "report.html"
LEASE_S = 60.0
"""A lease that was not renewed for so long is nobody's."""
RENEW_S = 15.0
LOOK_S = 2.0
INLINE_BYTES = 16 << 10
"""JSON files up to so many bytes stand in commit.json itself."""
_AGAIN = 5  # so often a reader starts again because the run went on meanwhile


@dataclass(frozen=True)
class Entry:
    """A file of a run: its size, its sha256, and its content if that stands in commit.json."""

    bytes: int
    sha256: str
    text: str | None = field(default=None, repr=False)

    def key(self, path: str) -> str:
        """The name under `files/` for the file that is called `path` in the run folder."""
        stem, dot, suffix = path.replace("/", ".").rpartition(".")
        return f"{stem}.{self.sha256[:16]}{dot}{suffix}" if dot else f"{suffix}.{self.sha256[:16]}"


@dataclass(frozen=True)
class Commit:
    """What a run consists of. `number` counts commits; `writer` is the token of the lease that it was made under."""

    number: int = 0
    writer: str = ""
    files: dict[str, Entry] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The objects under `files/` that it needs."""
        return {entry.key(path) for path, entry in self.files.items() if entry.text is None}

    def encoded(self) -> bytes:
        """As commit.json."""
        files = {}
        for path, e in sorted(self.files.items()):
            files[path] = {"bytes": e.bytes, "sha256": e.sha256, **({} if e.text is None else {"text": e.text})}
        record = {"schema_version": SCHEMA_VERSION, "number": self.number, "writer": self.writer, "files": files}
        return json.dumps(record, indent=1, ensure_ascii=False).encode()

    @staticmethod
    def decoded(record: dict[str, Any], url: Url) -> "Commit":
        """From commit.json. Raises BadInput."""
        where = url / COMMIT
        try:
            if record["schema_version"] != SCHEMA_VERSION:
                raise BadInput(
                    f"{where} has schema_version {record['schema_version']}; this raygrad reads {SCHEMA_VERSION}"
                )
            files = {
                str(path): Entry(int(e["bytes"]), str(e["sha256"]), e.get("text"))
                for path, e in record["files"].items()
            }
            commit = Commit(int(record["number"]), str(record["writer"]), files)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadInput(f"{where} is damaged: expected the description of a run ({e!r})") from e
        for path in files:  # they become files here
            parts = PurePosixPath(path).parts
            if not parts or path != "/".join(parts) or any(p.startswith(".") or not p.isprintable() for p in parts):
                raise BadInput(f"{where} is damaged: it lists a file {path[:80]!r}")
        return commit


def read_commit(url: Url, patience: Patience = "short") -> Commit:
    """What is committed of a run. Raises FileNotFoundError, BadInput, Unreachable."""
    return Commit.decoded(remote.read_json(url / COMMIT, patience), url)


def is_run(url: Url) -> bool:
    """Whether a run is committed at this address. Raises Unreachable."""
    try:
        remote.read(url / COMMIT, patience="short")
    except FileNotFoundError:
        return False
    return True


def local_root(root: Url) -> Path:
    """Where the runs of a run root are played and read."""
    return remote.cache_folder("runs", root.label)


def local_folder(url: Url) -> Path:
    """Where a run is played and read."""
    return local_root(url.parent.parent) / url.parent.name / url.name


# --- reading --------------------------------------------------------------------------------------------------------


def fetch(url: Url, tensors: bool = True) -> Path:
    """The local folder of a run, brought to what is committed; without `tensors` checkpoints are left as they are.

    A run that is being played on this machine is given as it stands. Raises BadInput, and Stopped when the local disk
    is full.
    """
    folder = local_folder(url)
    with storage.run_storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with storage.hold(folder / ".fetch", wait=True), storage.hold(folder / ".lock", wait=False) as ours:
        if ours:
            with at_start():
                _bring(url, folder, tensors)
    return folder


def _bring(url: Url, folder: Path, tensors: bool = True) -> Commit:
    """Make the local folder what is committed. What is there with the right checksum is not copied again."""
    lost: set[str] = set()
    try:
        commit = read_commit(url)
        for _ in range(_AGAIN):
            lost = _copy(url, folder, commit, tensors)
            newer = read_commit(url) if lost else commit
            if newer == commit:
                break
            commit = newer  # the run went on, and removed what it needs no longer
        else:
            raise BadInput(f"{url} goes on faster than it can be read; try again")
    except FileNotFoundError:
        raise BadInput(f"{url} is no run: it has no {COMMIT}") from None
    # A checkpoint that lacks a file is passed over for the one before, as on a disk; for other files there is no other.
    if needed := sorted(path for path in lost if not path.startswith("checkpoints/")):
        raise BadInput(f"{url} is damaged: {needed[0]} is missing or has not the sha256 that {COMMIT} lists")
    with storage.run_storage(folder):
        for path in _files(folder):
            if path not in commit.files and (tensors or not path.startswith("checkpoints/")):
                storage.remove(folder / path)
    return commit


def _copy(url: Url, folder: Path, commit: Commit, tensors: bool) -> set[str]:
    """Copy what the local folder lacks. Returns what could not be had."""
    lost: set[str] = set()

    def copy(path: str) -> None:
        entry, target = commit.files[path], folder / path
        with storage.run_storage(target):
            if storage.size(target) == entry.bytes and storage.sha256(target) == entry.sha256:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.text is not None:
                storage.write_atomic(target, entry.text.encode(), durable=False)
                return
        try:
            if remote.download(url / FILES / entry.key(path), target) == entry.sha256:
                return
        except FileNotFoundError:
            pass
        lost.add(path)
        storage.remove(target)

    wanted = {p: entry.bytes for p, entry in commit.files.items() if tensors or not p.startswith("checkpoints/")}
    remote.each(copy, wanted, f"fetching {url.name}")
    return lost


def _files(folder: Path) -> list[str]:
    """What of a run folder belongs to the run: no hidden files, which are locks and what is being written."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))


# --- writing --------------------------------------------------------------------------------------------------------


class Mirror:
    """Commits a local run folder to its address. One writer at a time: see `held`."""

    def __init__(self, url: Url, folder: Path, committed: Commit, lease: "Lease | None" = None) -> None:
        self.url, self.folder = url, folder
        self._committed, self._lease = committed, lease
        self._seen: dict[str, tuple[tuple[int, int, int], Entry]] = {}  # so that nothing is hashed twice
        self._unneeded: set[str] = set()

    def commit(self) -> None:
        """Make what is in the folder what readers see. Nothing but trackers may be writing in it.

        Raises Stopped when the store does not answer or another driver has the run: what was committed before is
        whole, and what is in the folder is left to the next fetch.
        """
        before = self._committed
        with storage.run_storage(self.folder):
            found = ((path, self._entry(path)) for path in _files(self.folder) if path != REPORT)
            files = {path: entry for path, entry in found if entry is not None}
        if files == before.files:
            return
        there = before.keys
        new = [path for path, e in files.items() if e.text is None and e.key(path) not in there]
        sizes = {path: files[path].bytes for path in new}
        remote.each(
            lambda path: remote.upload(self.folder / path, self.url / FILES / files[path].key(path)), sizes,
            f"saving {self.url.name}",
        )  # fmt: skip
        for path in (p for p in new if _signature(self.folder / p) != self._seen[p][0]):  # a tracker goes on writing it
            self._unneeded.add(files[path].key(path))
            files[path] = self._as_it_is(path)
        commit = Commit(before.number + 1, self._lease.token if self._lease else "", files)
        remote.again(lambda: self._put(commit))
        self._committed = commit
        self._unneeded |= there
        self.tidy()

    def tidy(self, look: bool = False) -> None:
        """Remove the files that are no longer listed; with `look` also those that a dying writer left.

        What cannot be removed now is tried again after the next commit.
        """
        with suppress(Unreachable):
            if look:
                self._unneeded |= set(remote.children(self.url / FILES))
            self._unneeded -= self._committed.keys
            for key in sorted(self._unneeded):
                remote.remove(self.url / FILES / key, patience="short")
                self._unneeded.discard(key)

    def _entry(self, path: str) -> Entry | None:
        """What a file is; None if a tracker has removed it."""
        file, signature = self.folder / path, _signature(self.folder / path)
        if signature is None:
            return None
        _, size, _ = signature
        seen = self._seen.get(path)
        if seen is None or seen[0] != signature:
            if path.endswith(".json") and size <= INLINE_BYTES:
                data = file.read_bytes()
                entry = Entry(len(data), hashlib.sha256(data).hexdigest(), data.decode())
            else:
                entry = Entry(size, storage.sha256(file))
            seen = self._seen[path] = (signature, entry)
        return seen[1]

    def _as_it_is(self, path: str) -> Entry:
        """Upload a file that has changed since it was looked at, as it is now."""
        with storage.run_storage(self.folder):
            copy = self.folder / ".growing"
            shutil.copyfile(self.folder / path, copy)
            entry = Entry(copy.stat().st_size, storage.sha256(copy))
        remote.upload(copy, self.url / FILES / entry.key(path))
        copy.unlink()
        return entry

    def _put(self, commit: Commit) -> None:
        """Look whether the run is still ours, and commit. Nothing is tried again in between: that would take time."""
        if self._lease is not None:
            self._lease.check()
        try:
            found = read_commit(self.url, "none")
        except FileNotFoundError:
            found = Commit()
        if found == commit:  # it arrived, only the answer was lost
            return
        if (found.number, found.writer) != (self._committed.number, self._committed.writer):
            raise Stopped(f"{self.url} was continued by another driver meanwhile; this one stops, nothing is torn")
        remote.write(self.url / COMMIT, commit.encoded(), "none")


def _signature(file: Path) -> tuple[int, int, int] | None:
    """Differs when a file was changed or replaced; None if there is none."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def publish(url: Url, folder: Path) -> None:
    """Commit a new run. Raises Stopped."""
    Mirror(url, folder, Commit()).commit()


def discard(url: Url) -> None:
    """Remove a run, as far as the store lets us."""
    with suppress(Unreachable):
        remote.remove_all(url)
    shutil.rmtree(local_folder(url), ignore_errors=True)


def put_report(url: Url, page: Path) -> None:
    """Copy a run's report beside it. Raises Stopped."""
    remote.upload(page, url / REPORT)


@contextmanager
def held(url: Url, say: Say = lambda line: None) -> Iterator[Mirror]:
    """The run, for this process alone: its local folder is locked and brought to what is committed.

    Raises BadInput if another driver has it, here or elsewhere.
    """
    folder = local_folder(url)
    with ExitStack() as stack:
        with storage.run_storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with storage.hold(folder / ".fetch", wait=True):  # whoever only reads has the lock for a moment
            if not stack.enter_context(storage.hold(folder / ".lock", wait=False)):
                raise BadInput(f"{url} is being written by another process here; wait for it, or stop it")
        with at_start():
            lease = stack.enter_context(Lease(url).taken(say))
            mirror = Mirror(url, folder, _bring(url, folder), lease)
        mirror.tidy(look=True)
        yield mirror


# --- the lease ------------------------------------------------------------------------------------------------------


@cache
def _machine() -> str:
    """Tells machines, and containers on one, apart: where it is the same, process ids mean the same."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


class Lease:
    """Says in the store who writes a run; renewed by a thread as long as its process lives.

    An object store has no locks. Two drivers that take a lease in the same moment may both believe that they have it,
    until the first of them commits: the other one then stops at its next commit. Before a commit the lease is renewed,
    so that nobody else takes it within the request; only a process that stands still for a minute between the two
    requests can write over what another one committed meanwhile, and may list files that are removed by then.
    """

    def __init__(self, url: Url) -> None:
        self._url, self.token = url / LEASE, uuid.uuid4().hex
        self._run, self._ended, self._renewals, self._machine = url, threading.Event(), 0, _machine()

    @contextmanager
    def taken(self, say: Say) -> Iterator["Lease"]:
        """Have it inside. Raises BadInput if another driver has it and lives."""
        self._await_free(say)
        self._write()
        if (found := self._read()) is None or found["token"] != self.token:
            raise BadInput(_busy(self._run, found))
        thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            with suppress(Unreachable):
                if (found := self._read()) is not None and found["token"] == self.token:
                    remote.remove(self._url, patience="short")

    def check(self) -> None:
        """Renew it, so that it is ours for the next minute. Raises Stopped if another driver has taken it."""
        found = self._read("none")
        if found is None or found["token"] != self.token:
            by = f" by {found['who']}" if found else ""
            raise Stopped(f"{self._run} was taken over{by}; this driver stops, nothing is torn")
        self._write("none")

    def _await_free(self, say: Say) -> None:
        first = found = self._read()
        until = None
        while found is not None and not _dead(found):
            if found != first:
                raise BadInput(_busy(self._run, found))
            if until is None:
                try:
                    left = LEASE_S - remote.age_s(self._url)
                except FileNotFoundError:
                    return
                until = monotonic() + left
                if left > 0:
                    say(f"{found['who']} wrote this run last; waiting up to {left:.0f} s to see whether it lives")
            if monotonic() >= until:
                return
            sleep(min(LOOK_S, max(0.0, until - monotonic())))
            found = self._read()

    def _read(self, patience: Patience = "short") -> dict[str, Any] | None:
        try:
            found = remote.read_json(self._url, patience)
        except (FileNotFoundError, BadInput):
            return None
        return found if {"token", "who", "machine", "process"} <= found.keys() else None

    def _write(self, patience: Patience = "short") -> None:
        self._renewals += 1
        record = {
            "schema_version": SCHEMA_VERSION, "token": self.token, "renewals": self._renewals,
            "who": f"process {os.getpid()} on {socket.gethostname()}", "machine": self._machine, "process": os.getpid(),
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        remote.write(self._url, json.dumps(record, indent=1).encode(), patience)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with suppress(Unreachable):
                found = self._read()
                if found is None or found["token"] != self.token:
                    return  # it is another's: it must not be written over, and the next commit will say so
                self._write()


def _dead(lease: dict[str, Any]) -> bool:
    """Whether the process that has it was on this machine and is gone."""
    if lease["machine"] != _machine():
        return False
    try:
        if int(lease["process"]) == os.getpid():  # one of the same number before us: we hold the folder's lock
            return True
        os.kill(int(lease["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _busy(url: Url, lease: dict[str, Any] | None) -> str:
    who = f" by {lease['who']}" if lease else ""
    return (
        f"{url} is being written{who}; wait for it, or stop it (a driver that died is forgotten after {LEASE_S:.0f} s)"
    )
