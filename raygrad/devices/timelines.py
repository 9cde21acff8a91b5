"""A trace in memory: reading its rows from a file, and answering for many clients at once what happens when.

A client's timeline is a row of times at each of which its state (available or not, speed) changes.
"""

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from raygrad.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """The rows of a trace, sorted by client and time, all of them valid."""

    client: np.ndarray  # [R] int64
    time: np.ndarray  # [R] float64 seconds >= 0
    available: np.ndarray  # [R] bool
    speed: np.ndarray  # [R] float64 > 0


@dataclass(frozen=True)
class Timelines:
    """C clients with R rows in all. Client c of them has the rows `first`[c] up to `first`[c + 1], the first at time 0.

    With a finite period every timeline begins again after `period_s` seconds.
    """

    clients: np.ndarray  # [C] int64, ascending
    first: np.ndarray  # [C + 1] int64
    time: np.ndarray  # [R] float64 seconds, ascending within a client
    available: np.ndarray  # [R] bool
    speed: np.ndarray  # [R] float64
    work: np.ndarray  # [R] float64, the integral of speed from 0 to the row's time
    away: np.ndarray  # [R] float64, the time of the first row at or after this one that is unavailable; inf: none
    period_s: float

    @staticmethod
    def of(rows: Rows, period_s: float) -> "Timelines":
        """The timelines of a trace. Rows at or after the period are never reached."""
        # Before its first row a client is as in its first row: that one begins at 0.
        time = np.where(_starts(rows.client), 0.0, rows.time)
        kept = time < period_s
        client, time, available, speed = rows.client[kept], time[kept], rows.available[kept], rows.speed[kept]
        first = np.append(np.flatnonzero(_starts(client)), len(client))
        work = np.zeros(len(time))
        done = speed[:-1] * np.diff(time)
        for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
            # Client by client: a running total over all of them would lose digits.
            np.cumsum(done[begin : end - 1], out=work[begin + 1 : end])
        unavailable = np.where(available, len(time), np.arange(len(time)))
        unavailable = np.minimum.accumulate(unavailable[::-1])[::-1]
        own = unavailable < np.repeat(first[1:], np.diff(first))
        away = np.where(own, time[np.minimum(unavailable, len(time) - 1)], inf)
        return Timelines(client[first[:-1]], first, time, available, speed, work, away, period_s)

    def leaves_s(self, which: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Seconds until the clients at places `which` [m] are unavailable, from the times `at` [m] on: [m] float64.

        0 where they are unavailable already, inf where they never will be.
        """
        local = np.mod(at, self.period_s)
        row = self._last(self.time, which, local)
        this_time = self.away[row] - local
        next_time = self.away[self.first[which]] + self.period_s - local
        return np.where(self.available[row], np.where(np.isfinite(this_time), this_time, next_time), 0.0)

    def compute_s(self, which: np.ndarray, at: np.ndarray, work: np.ndarray) -> np.ndarray:
        """Seconds T [m] with: the integral of speed from `at` [m] to `at` + T is `work` [m], whether available or not.

        `work` is in seconds at speed 1.
        """
        local = np.mod(at, self.period_s)
        row = self._last(self.time, which, local)
        following = np.minimum(row + 1, len(self.time) - 1)
        end = np.where(row + 1 < self.first[which + 1], self.time[following], self.period_s) - local
        at_once = work / self.speed[row]  # exact, and all there is where the speed does not change meanwhile

        last = self.first[which + 1] - 1
        whole = self.work[last] + self.speed[last] * (self.period_s - self.time[last])
        cycles, rest = np.divmod(self.work[row] + self.speed[row] * (local - self.time[row]) + work, whole)
        there = self._last(self.work, which, rest)
        later = self.time[there] + (rest - self.work[there]) / self.speed[there] - local
        later += np.multiply(cycles, self.period_s, out=np.zeros_like(rest), where=cycles > 0)
        return np.where(at_once <= end, at_once, np.maximum(later, end))

    def ever_available(self, clients: np.ndarray) -> bool:
        """Whether any of `clients` is available at any time."""
        some = self.available & np.repeat(np.isin(self.clients, clients), np.diff(self.first))
        return bool(some.any())

    def _last(self, values: np.ndarray, which: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """The last row [m] of each client at places `which` [m] whose `values` [R] are at most `limit` [m].

        It is a client's first row if there is none.
        """
        low, high = self.first[which], self.first[which + 1]
        while (high - low > 1).any():
            middle = (low + high) // 2
            below = values[middle] <= limit
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low


def read_rows(where: str, suffix: str, data: bytes) -> Rows:
    """The rows of a trace file of kind `suffix` (.csv or .parquet), from its bytes.

    Raises BadInput, beginning with `where`, that names the first bad row and how many there are.
    """
    table = _table(where, suffix, data)
    if not len(table):
        raise BadInput(f"{where} has no rows")
    unit, offset = ("line", 2) if suffix == ".csv" else ("row", 1)

    def refuse(bad: np.ndarray, why: str) -> None:
        if len(rows := np.flatnonzero(bad)):
            raise BadInput(
                f"{where} {unit} {rows[0] + offset}: {why} ({len(rows)} of {len(table)} {unit}s are like this)"
            )

    for name in ("client", "time", "available"):
        refuse(table[name].is_null().to_numpy(), f"{name} is empty")
    client, time, available = (table[name].to_numpy() for name in ("client", "time", "available"))
    speed = table["speed"].fill_null(1.0).to_numpy() if "speed" in table.column_names else np.ones(len(table))
    refuse(client < 0, "client is negative; clients are numbered from 0")
    refuse(~(np.isfinite(time) & (time >= 0)), "time is not a number of seconds >= 0")
    refuse(~((available == 0) | (available == 1)), "available is neither 0 nor 1")
    refuse(~(np.isfinite(speed) & (speed > 0)), "speed is not a number > 0; leave it empty for 1")
    order = np.lexsort((time, client))
    same = np.zeros(len(table), np.bool_)
    same[order[1:]] = (np.diff(client[order]) == 0) & (np.diff(time[order]) == 0)
    refuse(same, "another row has the same client and time")
    return Rows(client[order], time[order], available[order].astype(np.bool_), speed[order])


def _starts(client: np.ndarray) -> np.ndarray:
    """Whether each row is the first of its client [R], in sorted rows."""
    return np.append(True, client[1:] != client[:-1])


def _table(where: str, suffix: str, data: bytes) -> "pa.Table":
    """The columns of a trace as they are in the file, with their types checked and made wide."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    wide = {"client": pa.int64(), "time": pa.float64(), "available": pa.float64(), "speed": pa.float64()}
    try:
        if suffix == ".csv":
            # Without threads its errors name the line. An empty field alone is null: "nan" is to be refused.
            table = csv.read_csv(
                pa.BufferReader(data),
                read_options=csv.ReadOptions(use_threads=False),
                convert_options=csv.ConvertOptions(column_types=wide | {"available": pa.bool_()}, null_values=[""]),
            )
        elif suffix == ".parquet":
            table = parquet.read_table(pa.BufferReader(data))
        else:
            raise BadInput(f"{where} must be a .parquet or a .csv file; its name ends in {suffix!r}")
    except (pa.ArrowException, OSError) as e:
        raise BadInput(f"{where} is damaged or not {suffix[1:]}: {' '.join(str(e).split())}") from e
    has = table.column_names
    if lacking := [n for n in ("client", "time", "available") if n not in has]:
        raise BadInput(
            f"{where} lacks {', '.join(lacking)}; it needs the columns client, time and available, and may have speed "
            f"(it has {', '.join(has) or 'none'})"
        )
    columns = {}
    for name, to in wide.items():
        if has.count(name) > 1:
            raise BadInput(f"{where} has {has.count(name)} columns called {name}")
        if name in has:
            kind = table.schema.field(name).type
            number = pa.types.is_integer(kind) or (name != "client" and pa.types.is_floating(kind))
            if not (number or (name, kind) in (("available", pa.bool_()), ("speed", pa.null()))):
                raise BadInput(f"{where} has {kind} in the column {name}; it must hold numbers")
            columns[name] = table[name].cast(to)
    return pa.table(columns)
