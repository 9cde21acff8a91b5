"""The tables of a run folder: Parquet parts that are appended to, cut at checkpoints, and read back as one.

`rounds`, `clients`, `metrics` and `probes` are bit-stable: the same experiment gives the same rows on any number of
hosts and after any restart, and `digest` compares them. `operations` and `seconds` hold wall time, hosts and attempts,
which may differ.

A part is named by the first round that it may hold. The open part is rewritten at most once a second, under a temporary
name and renamed, so a reader sees whole files only.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygrad.errors import BadInput
from raygrad.files import storage

if TYPE_CHECKING:
    from torch import Tensor

Columns = Mapping[str, "Sequence[Any] | np.ndarray | pa.Array"]
"""Rows given column by column, all of the same length."""


def _column(name: str, kind: pa.DataType, description: str, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"description": description})


_ROUND = _column("round", pa.int32(), "index of the round, from 1")

TABLES: dict[str, pa.Schema] = {
    "rounds": pa.schema(
        [
            _ROUND,
            _column("clients_present", pa.int32(), "clients of the population that are there", True),
            _column("clients_asked", pa.int32(), "clients that were given work in this round"),
            _column("clients_answered", pa.int32(), "clients whose answers count"),
            _column("clients_late", pa.int32(), "clients that answered too late, on the modelled clock", True),
            _column("clients_left", pa.int32(), "clients that left or were not there, on the modelled clock", True),
            _column("clients_failed", pa.int32(), "clients whose shard is damaged or that kill their hosts", True),
            _column("clients_rejected", pa.int32(), "clients whose update was not finite", True),
            _column("lr_factor", pa.float64(), "the schedule's factor on the step size"),
            _column("train_loss", pa.float64(), "weighted mean of the clients' training losses; NaN if none reported"),
            _column("communications", pa.int32(), "communications charged this round (2 for a two-phase method)"),
            _column("bytes_down", pa.int64(), "bytes charged from the server to the clients this round"),
            _column("bytes_up", pa.int64(), "bytes charged from the clients to the server this round"),
            _column("virtual_s", pa.float64(), "seconds of modelled time at the end of the round"),
            _column("validation_accuracy", pa.float64(), "on the validation parts; null where not measured", True),
            _column("validation_loss", pa.float64(), "on the validation parts; null where not measured", True),
            _column("test_accuracy", pa.float64(), "on the test set; only with evaluation=paper", True),
            _column("test_loss", pa.float64(), "on the test set; only with evaluation=paper", True),
        ]
    ),
    "clients": pa.schema(
        [
            _ROUND,
            _column("client", pa.int64(), "the client's id"),
            _column("weight", pa.float64(), "its weight in the aggregation"),
            _column("train_loss", pa.float64(), "mean loss over its local steps; null if not reported", True),
            _column("outcome", pa.string(), "answered, or why its answer does not count", True),
            _column("virtual_s", pa.float64(), "modelled seconds until it had answered or was gone", True),
            _column("steps", pa.int32(), "local steps that count; null if none, or nothing is modelled", True),
            _column("staleness", pa.int32(), "model versions that its answer was behind", True),
        ]
    ),
    "metrics": pa.schema(
        [
            _ROUND,
            _column("part", pa.string(), "validation, test, or algorithm"),
            _column(
                "metric", pa.string(), "loss, a metric of the experiment, examples, or what the algorithm measures"
            ),
            _column("value", pa.float64(), "its mean over the part's examples, or what was measured"),
        ]
    ),
    "probes": pa.schema(
        [
            _ROUND,
            _column("clients", pa.int32(), "clients that were measured"),
            _column("r", pa.float64(), "the alignment regulariser r(x), estimated for all clients"),
            _column("gradient_norm", pa.float64(), "norm of the mean gradient"),
            _column("diversity", pa.float64(), "gradient diversity times the number of clients"),
            _column("cosine", pa.float64(), "mean cosine of the client gradients to the mean gradient"),
            _column("r_gradient_norm", pa.float64(), "norm of the gradient of r(x); null if not measured", True),
            _column("client_gradient_norm", pa.float64(), "mean norm of the client gradients", True),
            _column("pairwise_cosine", pa.float64(), "mean cosine between the gradients of two clients", True),
            _column("drift", pa.float64(), "RMS distance of the clients' iterates from their mean after K steps", True),
            _column("client_accuracy", pa.float64(), "accuracy per client, the mean; null if not measured", True),
            _column("worst_accuracy", pa.float64(), "accuracy per client, the mean of the worst tenth", True),
            _column("weighted_diversity", pa.float64(), "the clients' gradient diversity, weighted by examples", True),
            _column("batch_bound", pa.float64(), "examples times their gradient diversity; null if not measured", True),
        ]
    ),
    "partition": pa.schema(
        [
            _column("round", pa.int32(), "0: the partition is made before the first round"),
            _column("client", pa.int64(), "the client's id"),
            _column("examples", pa.int64(), "training examples"),
            _column("validation_examples", pa.int64(), "examples cut off for validation"),
            _column("label_counts", pa.list_(pa.int64()), "training examples of each class; null for regression", True),
        ]
    ),
    "operations": pa.schema(
        [
            _ROUND,
            _column("phase", pa.int32(), "index of the communication phase in the round, from 0"),
            _column("work", pa.string(), "the client method that ran"),
            _column("gang", pa.int32(), "index of the gang in the cohort, from 0"),
            _column("host", pa.string(), "the host that ran it"),
            _column("attempt", pa.int32(), "number of the attempt, from 1"),
            _column("clients", pa.int32(), "clients in the gang"),
            _column("start_s", pa.float64(), "wall seconds since the process of the run began"),
            _column("wall_s", pa.float64(), "wall seconds that the gang took"),
            _column("bytes_down", pa.int64(), "bytes really sent to the host"),
            _column("bytes_up", pa.int64(), "bytes really sent back"),
            _column("outcome", pa.string(), "what became of the attempt"),
        ]
    ),
    "seconds": pa.schema(
        [
            _ROUND,
            _column("wall_s", pa.float64(), "wall seconds of the round"),
            _column("elapsed_s", pa.float64(), "wall seconds of the run so far, restarts included"),
            _column("process", pa.int32(), "how many times the run had been restarted"),
        ]
    ),
}
"""What each table holds. A column's description is in its metadata; every table has the column `round`."""

BIT_STABLE = ("rounds", "clients", "metrics", "probes")
"""The tables whose rows count in the digest."""

_FOLDERS = {"operations": Path("operations") / "gangs", "seconds": Path("operations") / "seconds"}
_COUNTED, _TIMES = ("round", "client", "process"), ("start_s", "wall_s", "elapsed_s")
_PART = re.compile(r"part-(\d{6,})\.parquet")
_DIGEST_ROWS = 1 << 16
_WRITE_SHARE = 20  # the open part is rewritten for at most one part in twenty of the time


def folder(run: Path, name: str) -> Path:
    """The folder of table `name` in run folder `run`."""
    return run / _FOLDERS.get(name, Path(name))


class TableWriter:
    """Appends rows to a table: one open part in memory, rewritten on disk now and then, closed at checkpoints.

    `first_round` is the first round that the open part may hold; what an earlier process left from there on must have
    been removed with `discard_from`. Makes `folder`. `every_s` is the least time between two rewrites by `flush()`.
    Every method may raise `Stopped` when the storage is lost.
    """

    def __init__(self, folder: Path, schema: pa.Schema, first_round: int, every_s: float = 1.0) -> None:
        self.folder, self.schema, self.first_round = folder, schema, first_round
        self._every_s, self._next_s = every_s, -float("inf")
        self._start(first_round)
        with storage.run_storage(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def _start(self, first_round: int) -> None:
        self.first_round = first_round
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._visible = self._durable = 0
        self._last_round = -1

    @property
    def path(self) -> Path:
        """The open part. It is on disk once rows were flushed."""
        return self.folder / f"part-{self.first_round:06d}.parquet"

    def append(self, rows: Sequence[Mapping[str, Any]] | Columns) -> None:
        """Add rows, given as a list of rows or as columns. What does not fit the schema raises ValueError."""
        batch = _batch(self.schema, rows)
        if not batch.num_rows:
            return
        rounds = batch.column("round").to_numpy()
        if rounds.min() < self.first_round:
            raise ValueError(f"round {rounds.min()} comes before the open part {self.path}")
        self._last_round = max(self._last_round, int(rounds.max()))
        self._batches.append(batch)
        self._rows += batch.num_rows

    def flush(self, force: bool = False) -> None:
        """Let readers see the rows so far: at once with `force`, and then durably, else at most every `every_s`."""
        if force:
            if self._durable < self._rows:
                self._write(durable=True)
                self._durable = self._rows
        elif self._visible < self._rows and (now := time.monotonic()) >= self._next_s:
            self._write(durable=False)
            done = time.monotonic()
            self._next_s = done + max(self._every_s, _WRITE_SHARE * (done - now))

    def close(self, next_round: int) -> None:
        """Write the open part durably and open the next one, named by `next_round`; no rows, no file."""
        if next_round < self.first_round or next_round <= self._last_round:
            raise ValueError(
                f"{self.path} holds rounds up to {self._last_round}: the next part cannot start at {next_round}"
            )
        self.flush(force=True)
        self._start(next_round)

    def _write(self, durable: bool) -> None:
        table = pa.Table.from_batches(self._batches, self.schema).combine_chunks()
        self._batches = table.to_batches()
        with storage.run_storage(self.path):
            storage.write_atomic(self.path, _encoded(table), durable)
        self._visible = self._rows


def discard_from(folder: Path, first_round: int) -> None:
    """Remove the rows of rounds >= `first_round`, and what a dying writer left; a resumed run writes them again.

    Raises BadInput when the last part that stays is damaged, Stopped when the storage is lost.
    """
    with storage.run_storage(folder):
        for name in storage.names(folder):
            if storage.is_temporary(name):
                storage.remove(folder / name)
        parts = _parts(folder)
        # The newest goes first, so that a reader always sees rounds without a gap.
        while parts and parts[-1][0] >= first_round:
            storage.remove(parts.pop()[1])
        if not parts:
            return
        path = parts[-1][1]
        table = _decoded(path, None)
        kept = table.filter(pa.array(table.column("round").to_numpy() < first_round))
        if kept.num_rows == 0:
            storage.remove(path)
        elif kept.num_rows < table.num_rows:
            storage.write_atomic(path, _encoded(kept))


def read(run: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Table `name` of run folder `run`, all parts in order, with the columns asked for (all by default).

    The run may be going on: what is returned is the table as it was at some moment. Without a folder it is empty. A
    nullable column that an older file lacks is null. Raises BadInput that names the file when a part is damaged.
    """
    whole = TABLES[name]
    schema = whole if columns is None else pa.schema([whole.field(column) for column in columns])
    tables = [schema.empty_table()]
    for _, path in _parts(folder(run, name)):
        try:
            tables.append(_fitted(_decoded(path, schema.names), schema, path))
        except FileNotFoundError:
            break  # A resumed run is removing parts, the newest first: those after this one are gone, too.
    return pa.concat_tables(tables)


def newest_first(run: Path, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The parts of a table one by one from its end, for who needs no more than the newest rows. As `read` otherwise."""
    schema = pa.schema([TABLES[name].field(column) for column in columns])
    for _, path in reversed(_parts(folder(run, name))):
        with suppress(FileNotFoundError):  # a resumed run is removing parts
            yield _fitted(_decoded(path, columns), schema, path)


def digest(tables: Mapping[str, pa.Table], tensors: "Mapping[str, Tensor | np.ndarray]") -> str:
    """The sha256, in lower-case hex, of the model's parameters and the rows of bit-stable tables.

    Equal rows give equal digests, however they were cut into parts and encoded. Bits count: 0.0 and -0.0 differ, and so
    do null and NaN; all NaNs in a table are one. A tensor counts with its name, dtype, shape and little-endian bytes.
    The order of the two mappings does not count. Works in bounded memory. Raises ValueError for another table.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        kind, array = _array(tensors[name])
        _header(total, "tensor", name, kind, list(array.shape))
        total.update(_little(array).data)
    for name in sorted(tables):
        if name not in BIT_STABLE:
            raise ValueError(f"table {name} is not bit-stable, only {', '.join(BIT_STABLE)} are")
        table = tables[name]
        _header(total, "table", name, table.num_rows)
        for field, column in zip(table.schema, table.columns, strict=True):
            _header(total, "column", field.name, str(field.type))
            texts = column if pa.types.is_string(column.type) else None
            if texts is not None:
                column = pc.call_function("binary_length", [texts])  # the lengths, then the letters
            for chunk in _slices(column):
                values = (chunk.fill_null(0) if chunk.null_count else chunk).to_numpy(zero_copy_only=False)
                if values.dtype.kind == "f":
                    values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)
                total.update(_little(values).data)
            for chunk in () if texts is None else texts.chunks:
                total.update("".join(text for text in chunk.to_pylist() if text is not None).encode())
            for chunk in _slices(column):
                total.update(_little(chunk.is_valid().to_numpy(zero_copy_only=False)).data)
    return total.hexdigest()


def _header(total: "hashlib._Hash", *what: object) -> None:
    # It fixes how many bytes follow, so that no two contents give the same stream.
    total.update(json.dumps(what).encode() + b"\n")


def _slices(column: pa.ChunkedArray) -> Any:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"a digest of columns of type {column.type} is not defined")
    for chunk in column.chunks:
        for start in range(0, len(chunk), _DIGEST_ROWS):
            yield chunk.slice(start, _DIGEST_ROWS)


def _array(tensor: "Tensor | np.ndarray") -> tuple[str, np.ndarray]:
    """The name of the dtype and the values; a dtype that numpy lacks (bfloat16) comes as integers of its width."""
    if isinstance(tensor, np.ndarray):
        return tensor.dtype.newbyteorder("=").name, tensor
    kind, tensor = str(tensor.dtype).removeprefix("torch."), tensor.detach().cpu()
    try:
        return kind, tensor.numpy()
    except TypeError:
        import torch  # here: readers of tables that take no digest start without it

        bits = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
        return kind, tensor.contiguous().view(bits).numpy()


def _little(array: np.ndarray) -> np.ndarray:
    """The little-endian bytes of an array, [bytes] uint8."""
    if sys.byteorder != "little" or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _batch(schema: pa.Schema, rows: Sequence[Mapping[str, Any]] | Columns) -> pa.RecordBatch:
    known = set(schema.names)
    if isinstance(rows, Mapping):
        columns: Columns = rows
        _same_names(known, set(rows))
    else:
        for row in rows:
            _same_names(known, set(row))
        columns = {name: [row[name] for row in rows] for name in schema.names}
    arrays = [_converted(field, columns[field.name]) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _same_names(known: set[str], given: set[str]) -> None:
    if given != known:
        missing, unknown = sorted(known - given), sorted(given - known)
        raise ValueError(f"a row does not fit the table: missing columns {missing}, unknown columns {unknown}")


def _converted(field: pa.Field, values: Any) -> pa.Array:
    """One column in its declared type. Nothing is rounded, parsed or cut on the way."""
    if isinstance(values, str):
        raise ValueError(f"column {field.name} was given one string, not a column")
    try:
        array = values if isinstance(values, pa.Array) else pa.array(values)
        if not _widens(array.type, field.type):
            raise ValueError(f"column {field.name} is {field.type}, but was given {array.type}")
        if array.type != field.type:
            array = array.cast(field.type)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"column {field.name} cannot hold what it was given: {error}") from error
    if array.null_count and not field.nullable:
        raise ValueError(f"column {field.name} must not be null")
    return array


def _widens(given: pa.DataType, declared: pa.DataType) -> bool:
    if given == declared or pa.types.is_null(given):
        return True
    if pa.types.is_integer(given):
        return pa.types.is_integer(declared) or pa.types.is_floating(declared)
    return pa.types.is_floating(given) and pa.types.is_floating(declared)


def _parts(folder: Path) -> list[tuple[int, Path]]:
    """The parts of a table, each with the first round it may hold, in order."""
    found = [(int(match[1]), folder / match[0]) for name in storage.names(folder) if (match := _PART.fullmatch(name))]
    return sorted(found)


def _encoded(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table, out, write_page_checksum=True)
    return out.getvalue().to_pybytes()


def _decoded(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """One part; of `columns` those that it has. Raises FileNotFoundError when it is gone, BadInput when damaged."""
    try:
        with storage.open_input(path) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            present = set(file.schema_arrow.names)
            return file.read(None if columns is None else [c for c in columns if c in present])
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path} is damaged: expected a Parquet part of a run's table, but {reason}") from error


def _fitted(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    present, columns = set(table.schema.names), []
    for field in schema:
        if field.name in present:
            column = table.column(field.name)
            if column.type != field.type:
                raise BadInput(f"{path} does not fit: column {field.name} is {column.type}, expected {field.type}")
        elif field.nullable:
            column = pa.nulls(table.num_rows, field.type)
        else:
            raise BadInput(f"{path} does not fit: column {field.name} is missing")
        _plausible(field.name, column, path)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _plausible(name: str, column: pa.ChunkedArray, path: Path) -> None:
    """Refuse what no writer writes and no reader can place: a round or client below 0, seconds that are none.

    Losses and other measurements may be NaN or infinite: runs diverge.
    """
    if name in _COUNTED:
        least = pc.call_function("min", [column]).as_py()
        if least is not None and least < 0:
            raise BadInput(f"{path} does not fit: column {name} holds {least}, expected none below 0")
    elif name in _TIMES and not np.isfinite(column.to_numpy()).all():
        raise BadInput(f"{path} does not fit: column {name} holds a value that is not finite, expected seconds")
