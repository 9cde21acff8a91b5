"""The few functions through which the files of a run are written and read.

A file appears under its name whole or not at all: it is written under a temporary name in the same folder, flushed to
the device and renamed. Tables and checkpoints open files only here, so that another kind of storage needs a change in
this module alone.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raygrad.errors import BadInput, Stopped

if TYPE_CHECKING:
    import pyarrow as pa

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}
_BROKEN = {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EHOSTDOWN}
_LOST = _FULL | _GONE | _BROKEN
_TEMPORARY = ".tmp"
_TRIES, _TRY_S = 4, 0.02  # for a lock that is not waited for


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of space."""
    return error.errno in _FULL


@dataclass(frozen=True)
class SavedFile:
    """A file that another file lists: its path relative to the listing folder, its size and its sha256.

    `rows` is the number of client states in it (0 for a file that holds none).
    """

    path: str
    bytes: int
    sha256: str
    rows: int = 0


class Sink(io.RawIOBase):
    """A file being written. It counts and hashes what passes through; nothing is read again for its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._file.write(data)
        self._hash.update(data)
        length = memoryview(data).nbytes
        self.bytes += length
        return length

    @property
    def sha256(self) -> str:
        """Of what was written so far, in lower-case hex."""
        return self._hash.hexdigest()


@contextmanager
def run_storage(path: Path) -> Iterator[None]:
    """Around writes made during a run: a lost, full or read-only storage becomes `Stopped`, naming the file.

    An `OSError` that says nothing about the storage (too many open files) passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _LOST:
            raise
        where = error.filename if isinstance(error.filename, str | Path) else path
        raise Stopped(
            f"storage lost while writing {where}: {error.strerror}; the run is resumable: "
            "when the storage is back, continue it with `raygrad resume`"
        ) from error


@contextmanager
def atomic(path: Path, durable: bool = True) -> Iterator[Sink]:
    """Write `path` as a stream: it appears under its name when the block ends without an error.

    With `durable` it also survives a power loss from then on. Raises OSError; the folder must exist.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            sink = Sink(file)
            yield sink
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Write `data` to `path`, whole or not at all. Raises OSError; the folder must exist."""
    with atomic(path, durable) as sink:
        sink.write(data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON. NaN and infinity are no JSON: they raise ValueError."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises BadInput that names the file when it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path} is missing: expected a JSON file there") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is damaged: expected JSON, but {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def open_input(path: Path) -> "pa.NativeFile":
    """A file opened for Arrow readers. Raises OSError."""
    import pyarrow as pa

    return pa.OSFile(str(path), "rb")


def sha256(path: Path) -> str:
    """The sha256 of a file, in lower-case hex, in bounded memory. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path) -> int | None:
    """The bytes of a file; None when it is not there."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none when there is no such folder."""
    try:
        return sorted(p.name for p in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_temporary(name: str) -> bool:
    """Whether a name is that of a file which was being written when its writer died."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def remove(path: Path) -> None:
    """Remove a file that may be gone already. Raises OSError."""
    path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make one folder in a folder that exists, durably; nothing happens when it is there. Raises OSError."""
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder; they order renames themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextmanager
def hold(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`, which is made. Gives False if another holder has it and `wait` is not set."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _taken(handle, wait)
    finally:
        os.close(handle)


def held(path: Path) -> bool:
    """Whether a process of this machine holds the lock file `path`. Changes nothing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name keeps nobody waiting
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def _taken(handle: int, wait: bool) -> bool:
    """Take the lock. Who only looks whether it is `held` has it for a moment, so one "no" is none."""
    for _ in range(1 if wait else _TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            time.sleep(0 if wait else _TRY_S)
        else:
            return True
    return False
