"""The states of the clients (SCAFFOLD's c_i), in a file on local disk, with rows only for clients seen.

The file is scratch: a place to keep what does not fit in memory. It is emptied when it is opened and never read after a
crash; checkpoints hold what must not be lost. Clients are numbered from 0, so memory is 9 bytes per client up to the
highest number seen, whatever the size of a state.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from raygrad.errors import BadInput, Stopped
from raygrad.files import storage
from raygrad.files.storage import SavedFile

_GROUP_BYTES = 4 << 20  # rows are moved in groups of about this size


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"


def refuse_if_too_large(population: int, row_bytes: int, limit_bytes: int) -> int:
    """The bytes that the states of all `population` clients need. Raises BadInput when they exceed `limit_bytes`."""
    need = population * row_bytes
    if need > limit_bytes:
        raise BadInput(
            f"the algorithm keeps a state of {row_bytes:,} bytes for each of {population:,} clients: "
            f"{_gigabytes(need)} ({need:,} bytes), more than the limit of {_gigabytes(limit_bytes)}; "
            "take fewer clients, a smaller model or an algorithm without client states, or raise the limit"
        )
    return need


class StateStore:
    """Client states by client number.

    `template` is the state of a client before its first round: name -> tensor; it gives names, shapes and dtypes. An
    empty template makes a store that keeps nothing and makes no file. `path` is the scratch file, removed by `close`;
    its folder is made. `limit_bytes` bounds the file: `put` raises BadInput beyond it. Methods that write raise Stopped
    when the storage is lost.

    The rows advance with the rounds. After a `put` that failed they may lie between two rounds, so that until `clear`
    every use raises Stopped: such rows never reach a checkpoint.
    """

    def __init__(self, path: Path, template: Mapping[str, Tensor], limit_bytes: int) -> None:
        self.path, self.limit_bytes = path, limit_bytes
        self.template = {name: _initial(name, value) for name, value in template.items()}
        self.row_bytes = sum(value.nbytes for value in self.template.values())
        self._handle: int | None = None
        if self.template:
            with storage.run_storage(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.clear()

    def clear(self) -> None:
        """Forget every client."""
        self._slots = np.empty(0, np.int64)  # client -> row of the file, -1 for a client never seen
        self._changed = np.empty(0, np.bool_)
        self._count = 0
        self._saved: tuple[SavedFile, ...] = ()
        self._torn = False

    @property
    def seen(self) -> np.ndarray:
        """The clients that have a row: [n] int64, sorted."""
        self._whole()
        return np.flatnonzero(self._slots >= 0)

    @property
    def dirty(self) -> np.ndarray:
        """The clients changed since the last `mark_clean`: [n] int64, sorted."""
        self._whole()
        return np.flatnonzero(self._changed)

    @property
    def saved(self) -> tuple[SavedFile, ...]:
        """The files, oldest first, from which the rows can be rebuilt that are not dirty; () when there are none."""
        return self._saved

    def mark_clean(self, saved: tuple[SavedFile, ...] = ()) -> None:
        """Say that every row is safe in the files `saved`. Without files the next checkpoint writes every row."""
        self._changed[:] = False
        self._saved = saved

    def get(self, clients: np.ndarray) -> dict[str, np.ndarray]:
        """The states of `clients` [m]: name -> [m, *shape]; the template's value for a client never seen."""
        self._whole()
        clients = _numbers(clients)
        slots = np.full(len(clients), -1, np.int64)
        inside = clients < len(self._slots)
        slots[inside] = self._slots[clients[inside]]
        fresh = slots < 0
        blocks = {name: np.empty((len(clients), value.nbytes), np.uint8) for name, value in self.template.items()}
        for name, value in self.template.items():
            blocks[name][fresh] = value.reshape(-1).view(np.uint8)
        for i in np.flatnonzero(~fresh).tolist() if blocks else ():
            row = np.frombuffer(self._read(int(slots[i])), np.uint8)
            start = 0
            for block in blocks.values():
                stop = start + block.shape[1]
                block[i] = row[start:stop]
                start = stop
        return {n: blocks[n].view(v.dtype).reshape(len(clients), *v.shape) for n, v in self.template.items()}

    def put(self, clients: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Adopt the states of `clients` [m], each once: name -> [m, *shape], in the template's dtype.

        Raises ValueError when names, shapes or dtypes are not the template's, BadInput beyond the limit.
        """
        self._whole()
        self._torn = True
        self._adopt(_numbers(clients), rows)
        self._torn = False

    def close(self) -> None:
        """Close and remove the scratch file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            storage.remove(self.path)

    def groups(self, clients: np.ndarray) -> list[np.ndarray]:
        """`clients` cut so that the states of one group take little memory."""
        size = max(1, _GROUP_BYTES // max(1, self.row_bytes))
        return [clients[start : start + size] for start in range(0, len(clients), size)]

    def _adopt(self, clients: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        if set(rows) != set(self.template):
            raise ValueError(f"client states {sorted(rows)} were given, the algorithm keeps {sorted(self.template)}")
        for name, value in self.template.items():
            expected = (len(clients), *value.shape)
            if rows[name].shape != expected or rows[name].dtype != value.dtype:
                given = f"{rows[name].dtype} {rows[name].shape}"
                raise ValueError(f"client states {name} are {given}, expected {value.dtype} {expected}")
        if not self.template or not len(clients):
            return
        self._admit(clients)
        blocks = [np.ascontiguousarray(rows[n]).reshape(len(clients), -1).view(np.uint8) for n in self.template]
        with storage.run_storage(self.path):
            for i, slot in enumerate(self._slots[clients].tolist()):
                self._write(slot, np.concatenate([block[i] for block in blocks]))
        self._changed[clients] = True

    def _admit(self, clients: np.ndarray) -> None:
        highest = int(clients.max()) + 1
        if highest > len(self._slots):
            longer = max(highest, 2 * len(self._slots)) - len(self._slots)
            self._slots = np.concatenate([self._slots, np.full(longer, -1, np.int64)])
            self._changed = np.concatenate([self._changed, np.zeros(longer, np.bool_)])
        fresh = np.unique(clients[self._slots[clients] < 0])
        count = self._count + len(fresh)
        if count * self.row_bytes > self.limit_bytes:
            raise BadInput(
                f"the states of {count:,} clients need {_gigabytes(count * self.row_bytes)} in {self.path}, "
                f"more than the limit of {_gigabytes(self.limit_bytes)}; raise the limit and resume"
            )
        self._slots[fresh] = np.arange(self._count, count)
        self._count = count

    def _whole(self) -> None:
        if self._torn:
            raise Stopped(
                "a round's client states were not adopted whole; the run is resumable from its last checkpoint"
            )

    def _open(self) -> int:
        if self._handle is None:
            raise ValueError(f"the store of client states {self.path} is closed")
        return self._handle

    def _read(self, slot: int) -> bytes | bytearray:
        handle, offset = self._open(), slot * self.row_bytes
        row = os.pread(handle, self.row_bytes, offset)
        if len(row) == self.row_bytes:
            return row
        whole = bytearray(row)  # one call moves at most 2 GB
        while len(whole) < self.row_bytes:
            more = os.pread(handle, self.row_bytes - len(whole), offset + len(whole))
            if not more:
                raise OSError(f"{self.path} ends in the middle of a client's state: something else has cut it")
            whole += more
        return whole

    def _write(self, slot: int, row: np.ndarray) -> None:
        handle, offset, rest = self._open(), slot * self.row_bytes, memoryview(row.data)
        while len(rest):
            done = os.pwrite(handle, rest, offset)
            rest, offset = rest[done:], offset + done


def _initial(name: str, value: Tensor) -> np.ndarray:
    try:
        array = np.array(value.detach().cpu().numpy(), order="C")
    except TypeError:
        array = None
    if array is None or array.dtype.kind not in "fiub":
        kind = str(value.dtype).removeprefix("torch.")
        raise BadInput(f"client state {name} is {kind}, which cannot be kept: use a float, integer or bool dtype")
    if not array.size:
        raise BadInput(f"client state {name} is empty (shape {tuple(value.shape)}): leave it out")
    return array


def _numbers(clients: np.ndarray) -> np.ndarray:
    clients = np.asarray(clients, np.int64)
    if len(clients) and clients.min() < 0:
        raise ValueError(f"client numbers start at 0, {clients.min()} was given")
    return clients
