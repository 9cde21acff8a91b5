"""Devices whose availability and speed are read from a file: what was recorded, or made by `diurnal_trace`.

A trace is a table with the columns `client`, `time` (seconds), `available` and `speed`: from `time` on the client is
available, or not, and computes `speed` * `examples_per_s` examples a second, until its next row. Before its first row
it is as in its first row; after its last row as in its last, or, with `repeat`, the trace begins again.

A phase that starts at time t takes down / down_bytes_per_s + T + up / up_bytes_per_s seconds, where the computing
begins at b = t + down / down_bytes_per_s and T solves

    integral from b to b + T of speed(s) ds = examples / examples_per_s.

A client that becomes unavailable before that has left at that moment.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from raygrad.devices.base import Address, Finish, Load, check_above, transfer_s
from raygrad.devices.timelines import Timelines, read_rows
from raygrad.errors import BadInput

TRACES_KEPT = 4
"""How many traces a process keeps in memory."""


@dataclass(frozen=True)
class Trace:
    """Availability and speed from a Parquet or CSV file with the columns client, time, available and speed.

    `speed` is relative to `examples_per_s`. With `repeat` the trace begins again after `period_s` seconds, by default
    after its last time. `sha256` is recorded when a run starts: another file under the same name is refused.
    """

    modelled: ClassVar[bool] = True

    path: str
    examples_per_s: float = 1000.0
    down_bytes_per_s: float | None = None
    up_bytes_per_s: float | None = None
    repeat: bool = True
    period_s: float | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        check_above("examples_per_s", self.examples_per_s)
        check_above("down_bytes_per_s", self.down_bytes_per_s)
        check_above("up_bytes_per_s", self.up_bytes_per_s)
        check_above("period_s", self.period_s)
        if self.period_s is not None and not self.repeat:
            raise BadInput(f"devices.period_s is {self.period_s}, but devices.repeat is false; use one or the other")

    def pinned(self) -> Self:
        """With the file's sha256 recorded; see `Devices.pinned`."""
        found = _sha256(_read(self.path))
        if self.sha256 not in (None, found):
            raise _another(self.path, found)
        return replace(self, path=str(Path(self.path).resolve()), sha256=found)

    def check(self, clients: int) -> None:
        """See `Devices.check`. Raises BadInput when the file is missing or damaged or lacks some of the clients."""
        missing = np.setdiff1d(np.arange(clients), self.timelines.clients, assume_unique=True)
        if len(missing):
            raise BadInput(
                f"devices.path: the trace {self.path} lacks {len(missing)} of {clients} clients, "
                f"the first is {missing[0]}"
            )
        if not self.timelines.ever_available(np.arange(clients)):
            raise BadInput(f"devices.path: in the trace {self.path} none of {clients} clients is ever available")

    def run(self, clients: np.ndarray, load: Load, start_s: float, address: Address) -> Finish:
        """See `Devices.run`. Nothing is drawn: `address` does not matter."""
        lines = self.timelines
        which = self._find(clients)
        start = np.full(len(which), float(start_s))
        leaves_s = lines.leaves_s(which, start)
        down_s = transfer_s(load.down, self.down_bytes_per_s)
        work = np.asarray(load.examples, np.float64) / self.examples_per_s
        seconds = down_s + lines.compute_s(which, start + down_s, work) + transfer_s(load.up, self.up_bytes_per_s)
        return Finish(np.minimum(seconds, leaves_s), (seconds <= leaves_s) & (leaves_s > 0))

    def available(self, clients: np.ndarray, time_s: float, address: Address) -> np.ndarray:
        """See `Devices.available`."""
        which = self._find(clients)
        return self.timelines.leaves_s(which, np.full(len(which), float(time_s))) > 0

    @property
    def timelines(self) -> Timelines:
        """The trace in memory: read once per process when `sha256` is set, else when the file has changed."""
        sha256 = self.sha256 or _sha256(_read(self.path))
        return _timelines(self.path, sha256, self.repeat, self.period_s)

    def _find(self, clients: np.ndarray) -> np.ndarray:
        """The places [m] of the clients in the trace."""
        known = self.timelines.clients
        which = np.minimum(np.searchsorted(known, clients), len(known) - 1)
        if len(lost := np.flatnonzero(known[which] != clients)):
            raise BadInput(
                f"devices.path: the trace {self.path} lacks {len(lost)} of the {len(which)} clients asked, "
                f"the first is {clients[lost[0]]}"
            )
        return which


@lru_cache(TRACES_KEPT)
def _timelines(path: str, sha256: str, repeat: bool, period_s: float | None) -> Timelines:
    """The trace whose file has this sha256."""
    data = _read(path)
    if (found := _sha256(data)) != sha256:
        raise _another(path, found)
    rows = read_rows(f"devices.path: the trace {path}", Path(path).suffix.lower(), data)
    last = float(rows.time.max())
    if period_s is not None and period_s < last:
        raise BadInput(
            f"devices.period_s is {period_s:g}, but the trace {path} goes on until {last:g} s; it must be >= {last:g}"
        )
    return Timelines.of(rows, (period_s or last or inf) if repeat else inf)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise BadInput(f"devices.path: cannot read the trace {path} ({e.strerror})") from e


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _another(path: str, found: str) -> BadInput:
    return BadInput(f"devices.path: {path} is not the trace this experiment started with (its sha256 is {found[:12]}…)")
