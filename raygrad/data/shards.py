"""Each client's examples as one record batch of an uncompressed Arrow IPC file, mapped into memory by every process.

A folder of shards holds

    train.arrow       one record batch per client, in the order of the clients
    validation.arrow  the same; a client's batch may have no rows
    test.arrow        batches of 1000 examples
    examples.npy      [2, n] int64, examples per client: train, validation
    checksums.npy     [batches] uint32, the CRC-32 of every record batch: train, validation, test
    labels.npy        [n, classes] int32, training examples per client and class (classification only)
    meta.json         everything else, written last

for n stored clients, which are all N of them unless the partition is `repeated`: then client i reads shard i mod n. The
files have the columns `x`, a fixed-size list of uint8, float32 or float64, and `y`, int64 or float64. Processes on one
machine share the pages. Nothing in the folder is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from raygrad import logs
from raygrad.config import kind_of
from raygrad.data.datasets import DATASETS
from raygrad.data.partition import PARTITIONERS, Natural, Partitioner, Repeated
from raygrad.data.source import Dataset, HasFiles, Source
from raygrad.data.transform import Transform
from raygrad.errors import BadInput, DamagedShard, Stopped
from raygrad.files import storage
from raygrad.rng import Purpose, rng

SCHEMA_VERSION = 2  # of the folder; part of its name, so that a new version never reads an old folder
TEST_BATCH = 1000  # examples per record batch of test.arrow
PARTS = ("train", "validation", "test")
LEFTOVER_AGE_S = 2 * 24 * 3600
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{32}")  # .<name>.<process id>-<uuid>, here and in the cache

Progress = Callable[[int, int], None]
"""Called with (clients written, clients) now and then."""


class Shards:
    """A folder of prepared shards, open for reading. Pickles as its path.

    `clients`: N. `examples`, `validation_examples` [N] int64: how many each client has of each part. `test_examples`
    examples lie in `test_batches` batches. `shape` is one example's, `dtype` as stored. `classes` is None for
    regression. `id` says what the shards hold: equal ids mean equal examples at equal clients, on any machine.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any], examples: np.ndarray, checksums: np.ndarray) -> None:
        """Use `Shards.open`."""
        classes = meta["classes"]
        self.path = path
        self.address = str(path)  # for hosts; of shards from an object store their address there
        self.meta = meta
        self.id = str(meta["id"])
        self.shape: tuple[int, ...] = tuple(meta["shape"])
        self.dtype = np.dtype(str(meta["dtype"]))
        self.classes: int | None = None if classes is None else int(classes)
        self.class_names: tuple[str, ...] = tuple(meta["class_names"])
        self.transform = Transform.from_json(meta["transform"])
        self.clients = int(meta["clients"])
        self.stored = examples.shape[1]
        self.examples: np.ndarray = self._for_all(examples[0])
        self.validation_examples: np.ndarray = self._for_all(examples[1])
        self.test_examples = int(meta["test_examples"])
        self.test_batches = -(-self.test_examples // TEST_BATCH)
        self._readers: dict[str, pa.ipc.RecordBatchFileReader] = {}
        sums = np.split(checksums, [self.stored, 2 * self.stored])
        self._checksums: dict[str, np.ndarray] = dict(zip(PARTS, sums, strict=True))
        self._checked = {part: np.zeros(len(values), np.bool_) for part, values in self._checksums.items()}

    @classmethod
    def open(cls, path: Path) -> "Shards":
        """Open a folder that `prepare` wrote: reads meta.json and the counts, looks at the sizes of the other files.

        Errors: BadInput naming the file that is missing or damaged.
        """
        path = Path(path)
        meta = _read_meta(path)
        try:
            for name, recorded in meta["files"].items():
                _check_size(path / name, int(recorded["bytes"]))
            examples = np.load(path / "examples.npy", allow_pickle=False)
            return cls(path, meta, examples, np.load(path / "checksums.npy", allow_pickle=False))
        except (KeyError, TypeError, ValueError, EOFError, OSError) as e:
            raise BadInput(f"{path / 'meta.json'}: not a shard folder's description ({e!r}); {_AGAIN}") from e

    def __reduce__(self) -> tuple[Callable[[Path], "Shards"], tuple[Path]]:
        return Shards.open, (self.path,)

    def __repr__(self) -> str:
        return f"Shards({str(self.path)!r}, clients={self.clients})"

    def _for_all(self, rows: np.ndarray) -> np.ndarray:
        """What is stored once for each shard [n, ...], client by client [N, ...]."""
        return rows if self.clients == self.stored else np.resize(rows, (self.clients, *rows.shape[1:]))

    @property
    def bytes(self) -> int:
        """What the folder's files take."""
        return sum(int(file["bytes"]) for file in self.meta["files"].values())

    @cached_property
    def label_counts(self) -> np.ndarray | None:
        """Training examples per client and class [N, classes] int32, a read-only memory map; None for regression."""
        if self.classes is None:
            return None
        return self._for_all(np.load(self.path / "labels.npy", mmap_mode="r", allow_pickle=False))

    def read(self, part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Record batch `index` of a part: x [n, *shape] and y [n], read-only views of the mapped file.

        `part` is "train" or "validation" (`index` is the client) or "test" (0..test_batches-1). The file stays mapped
        as long as this object or a view of it lives.

        What is read for the first time is held against its checksum.

        Errors: DamagedShard for a damaged record batch, BadInput for a damaged file, IndexError for an index out of
        range.
        """
        reader = self._readers.get(part)
        if reader is None:
            reader = self._open_part(part)
        batches = self.test_batches if part == "test" else self.clients
        if not 0 <= index < batches:
            raise IndexError(f"{part} has {batches} batches, there is none with number {index}")
        number = int(index) if part == "test" else int(index) % self.stored
        try:
            batch = reader.get_batch(number)
            x = batch.column(0).values.to_numpy(zero_copy_only=True, writable=False)
            y = batch.column(1).to_numpy(zero_copy_only=True, writable=False)
            x = x.reshape(len(y), *self.shape)
        except (OSError, ValueError) as e:
            raise self._damaged(part, index, str(e)) from e
        if not self._checked[part][number]:
            if _crc(x, y) != self._checksums[part][number]:
                raise self._damaged(part, index, "its checksum is not the recorded one")
            self._checked[part][number] = True
        return x, y

    def _damaged(self, part: str, index: int, why: str) -> DamagedShard:
        what = f"record batch {index}" if part == "test" else f"the shard of client {index}"
        return DamagedShard(f"{self.path / part}.arrow: {what} is damaged ({why}); {_AGAIN}", int(index))

    def verify(self) -> None:
        """Read every file and compare its SHA-256 sum with the recorded one. Errors: BadInput naming the file."""
        for name, recorded in self.meta["files"].items():
            if _sha256(self.path / name) != recorded["sha256"]:
                raise BadInput(f"{self.path / name}: its SHA-256 sum is not the recorded one; {_AGAIN}")

    def _open_part(self, part: str) -> "pa.ipc.RecordBatchFileReader":
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; there is {', '.join(PARTS)}")
        path = self.path / f"{part}.arrow"
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        except (OSError, ValueError) as e:
            raise BadInput(f"{path}: not an Arrow IPC file, or damaged ({e}); {_AGAIN}") from e
        expected = self.test_batches if part == "test" else self.stored
        if reader.num_record_batches != expected:
            raise BadInput(f"{path}: {reader.num_record_batches} record batches, expected {expected}; {_AGAIN}")
        self._readers[part] = reader
        return reader


def prepare(
    dataset: Dataset,
    partitioner: Partitioner,
    *,
    shard_root: Path,
    data_root: Path | None,
    seed: int,
    validation: float,
    progress: Progress | None = None,
    bring: Callable[[Path], None] | None = None,
) -> Shards:
    """The shards of `dataset` under `partitioner`, written to `<shard_root>/<data set>-<hash>` unless they are there.

    `validation` in [0, 1) is the fraction of each client's examples that is set apart, stratified by label; a client
    keeps at least one training example. The folder's name depends on the settings of both, on `seed`, `validation` and
    the sizes and times of the files read, so that shards are reused without reading the data. Memory is bounded by one
    client's examples (and what the data set itself holds). Several processes may prepare the same shards: one of the
    equal results is kept. `bring` is called with the folder if it is not there: it may copy it from elsewhere.

    Errors: BadInput for data that are missing or damaged, more clients than examples, a folder that cannot be written.
    """
    if not 0 <= validation < 1:
        raise BadInput(f"validation = {validation}; the fraction of each client's examples must be in [0, 1)")
    shard_root = Path(shard_root)
    cache = shard_root / "cache"
    if data_root is not None and not data_root.is_dir():
        raise BadInput(f"the data root {data_root} is not a folder")
    settings = {
        "dataset": _settings(dataset, DATASETS),
        "partition": _settings(partitioner, PARTITIONERS),
        "seed": seed,
        "validation": validation,
    }
    source = None
    stamp = _stamp(dataset, data_root, cache)
    if stamp is None:
        # The files are not there before the download, or the data set cannot name them: its content does.
        source = dataset.open(data_root, cache, seed)
        stamp = _stamp(dataset, data_root, cache) or source.fingerprint
    key = hashlib.sha256(_json({"schema_version": SCHEMA_VERSION, **settings, "files": stamp}).encode()).hexdigest()
    name = str(settings["dataset"]["kind"]).replace(":", "-")
    folder = shard_root / f"{name}-{key[:12]}"
    if (there := reusable(folder, key)) is not None:
        return there
    if bring is not None:
        bring(folder)
        if (there := reusable(folder, key)) is not None:
            return there
    if source is None:
        source = dataset.open(data_root, cache, seed)
    _check_source(source, name)
    assignment = _assign(partitioner, source, seed, name)
    for place in (shard_root, cache):
        remove_leftovers(place)
    temporary = shard_root / f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        clients = partitioner.clients if isinstance(partitioner, Repeated) else len(assignment)
        _write(temporary, source, assignment, clients, {**settings, "key": key}, seed, validation, progress)
        return put_in_place(temporary, folder, key)
    except OSError as e:
        if storage.is_full(e):
            raise Stopped(f"shards cannot be written under {shard_root}: {e.strerror}; free some and repeat it") from e
        raise BadInput(f"cannot write shards under {shard_root}: {e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_AGAIN = "delete the folder and prepare the shards again"


def _settings(chosen: object, registry: Mapping[str, type]) -> dict[str, object]:
    """The kind and the fields of a data set or partitioner, as JSON. A user's own is called by its module and class."""
    kind = kind_of(chosen, registry).replace("<", "").replace(">", "")
    fields = asdict(chosen) if is_dataclass(chosen) and not isinstance(chosen, type) else {}
    settings = {"kind": kind, **fields}
    try:
        _json(settings)
    except (TypeError, ValueError) as e:
        raise BadInput(f"{kind}: its fields must be numbers, text, None or tuples of them ({e})") from e
    return settings


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _stamp(dataset: Dataset, data_root: Path | None, cache: Path) -> list[tuple[str, int, int]] | None:
    """Path, size and time of each file that a built-in data set reads; None when they cannot be told."""
    if type(dataset) not in DATASETS.values() or not isinstance(dataset, HasFiles):
        return None
    files = dataset.files(data_root, cache)
    if files is None:
        return None
    stats = [(path.resolve(), path.stat()) for path in files]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _check_source(source: Source, name: str) -> None:
    """What a user's own data set may get wrong."""
    train = source.train
    for part, examples in (("train", train), ("test", source.test)):
        x, y = examples.x, examples.y
        where = f"data set {name}: {part}"
        if x.dtype not in (np.uint8, np.float32, np.float64):
            raise BadInput(f"{where}: x has type {x.dtype}; expected uint8, float32 or float64")
        if len(x) != len(y) or y.ndim != 1:
            raise BadInput(f"{where}: x has shape {x.shape} and y {y.shape}; expected [n, ...] and [n]")
        if x.dtype != train.x.dtype or x.shape[1:] != train.x.shape[1:] or not all(x.shape[1:]):
            raise BadInput(
                f"{where}: x is {x.dtype} {x.shape[1:]}; expected {train.x.dtype} {train.x.shape[1:]} as in train"
            )
        if source.classes is None:
            if y.dtype != np.float64 or not np.isfinite(y).all():
                raise BadInput(f"{where}: targets of type {y.dtype}; expected finite float64 (regression)")
        elif y.dtype != np.int64 or (len(y) and not (y.min() >= 0 and y.max() < source.classes)):
            found = f"{y.dtype} from {y.min()} to {y.max()}" if len(y) else str(y.dtype)
            raise BadInput(f"{where}: labels are {found}; expected int64 in 0..{source.classes - 1}")
    if source.classes is not None and len(source.class_names) != source.classes:
        raise BadInput(f"data set {name}: {len(source.class_names)} class names for {source.classes} classes")
    if not len(train.y):
        raise BadInput(f"data set {name}: it has no training examples")


def _assign(partitioner: Partitioner, source: Source, seed: int, name: str) -> list[np.ndarray]:
    if isinstance(partitioner, Natural | Repeated):
        if source.natural is None:
            kind = kind_of(partitioner, PARTITIONERS)
            raise BadInput(
                f"partition {kind}: the data set {name} has no clients of its own; choose another partitioner"
            )
        return partitioner.group(source.natural)
    assignment = partitioner.assign(source.train.y, source.classes or 0, seed)
    if len(assignment) != partitioner.clients or not all(len(indices) for indices in assignment):
        raise BadInput(
            f"partition {type(partitioner).__name__}: it must give each of its {partitioner.clients} clients an example"
        )
    given, times = np.unique(np.concatenate(assignment), return_counts=True)
    indices = np.arange(len(source.train))
    if not np.array_equal(given, indices) or times.max() > 1:
        raise BadInput(
            f"partition {type(partitioner).__name__}: of {len(indices)} examples {len(np.setdiff1d(indices, given))} "
            f"were given to no client and {np.count_nonzero(times > 1)} more than once; "
            f"each of the indices 0..{len(indices) - 1} must be given once"
        )
    return assignment


def validation_rows(labels: np.ndarray, fraction: float, seed: int, client: int) -> np.ndarray:
    """Which of a client's examples are set apart: a mask [n], stratified by `labels` [n] (integers >= 0).

    How many is n * fraction rounded up or down at random, with that mean, so that clients with few examples give
    some, too; at most n - 1. Each label gives its share rounded down, and the largest remainders one more.
    """
    n = len(labels)
    held = np.zeros(n, bool)
    if fraction == 0 or n < 2:
        return held
    draw = rng(seed, Purpose.VALIDATION, client)
    total = min(int(n * fraction + draw.random()), n - 1)
    order = draw.permutation(n)
    order = order[np.argsort(labels[order], kind="stable")]  # by label, at random within each
    sizes = np.bincount(labels)
    sizes = sizes[sizes > 0]
    share = sizes * fraction
    take = np.floor(share).astype(np.int64)
    # The exact share of all labels may exceed `total` only by rounding errors of the floor; ties fall at random.
    ranked = np.lexsort((draw.random(len(sizes)), take - share))
    take[ranked[: max(0, total - int(take.sum()))]] += 1
    rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held[order[rank < np.repeat(take, sizes)]] = True
    return held


class _PartWriter:
    """Writes one Arrow file and sums up what it holds; unlike the file's own, this sum is not a matter of format."""

    def __init__(self, path: Path, source: Source) -> None:
        x, y = source.train.x, source.train.y
        self._shape = x.shape[1:]
        self._width = int(np.prod(self._shape))
        value = pa.field("item", pa.from_numpy_dtype(x.dtype))
        self._schema = pa.schema([("x", pa.list_(value, self._width)), ("y", pa.from_numpy_dtype(y.dtype))])
        self._sink = pa.output_stream(str(path), buffer_size=1 << 20)  # a small client's batch is many small writes
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self.content = hashlib.sha256()
        self.checksums: list[int] = []

    def __enter__(self) -> "_PartWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._sink.close()

    def write(self, x: np.ndarray, y: np.ndarray, where: str) -> None:
        """Append one record batch: x [n, *shape], y [n]."""
        x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise BadInput(f"{where}: an example holds a value that is NaN or infinite")
        self.content.update(len(y).to_bytes(8, "little"))
        self.content.update(x.data)
        self.content.update(y.data)
        self.checksums.append(_crc(x, y))
        values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), self._width)
        self._writer.write_batch(pa.RecordBatch.from_arrays([values, pa.array(y)], schema=self._schema))


def _crc(x: np.ndarray, y: np.ndarray) -> int:
    """The CRC-32 of a record batch's examples."""
    return zlib.crc32(y.view(np.uint8).data, zlib.crc32(x.reshape(-1).view(np.uint8).data))


def _write(
    folder: Path,
    source: Source,
    assignment: list[np.ndarray],
    clients: int,
    settings: Mapping[str, object],
    seed: int,
    validation: float,
    progress: Progress | None,
) -> None:
    """Every file of the folder, meta.json last, flushed to the disk."""
    x, y = source.train.x, source.train.y
    stored, classes = len(assignment), source.classes
    examples = np.zeros((2, stored), np.int64)
    with ExitStack() as stack:
        train, held_out, test = (stack.enter_context(_PartWriter(folder / f"{part}.arrow", source)) for part in PARTS)
        label_file = None if classes is None else stack.enter_context((folder / "labels.npy").open("wb"))
        if label_file is not None:
            header = {"descr": "<i4", "fortran_order": False, "shape": (stored, classes)}
            np.lib.format.write_array_header_1_0(label_file, header)
        for client, indices in enumerate(assignment):
            strata = np.zeros(len(indices), np.int64) if classes is None else y[indices]
            held = validation_rows(strata, validation, seed, client)
            kept, apart = indices[~held], indices[held]
            train.write(x[kept], y[kept], f"client {client}")
            held_out.write(x[apart], y[apart], f"client {client}")
            examples[:, client] = len(kept), len(apart)
            if label_file is not None:
                label_file.write(np.bincount(y[kept], minlength=classes or 0).astype("<i4").data)
            if (client + 1) % max(1, stored // 100) == 0 or client + 1 == stored:
                logs.step("writing shards", client + 1, stored, "clients")
                if progress is not None:
                    progress(client + 1, stored)
        for start in range(0, len(source.test), TEST_BATCH):
            rows = slice(start, start + TEST_BATCH)
            test.write(source.test.x[rows], source.test.y[rows], f"test examples from {start}")
    np.save(folder / "examples.npy", examples, allow_pickle=False)
    sums = [*train.checksums, *held_out.checksums, *test.checksums]
    np.save(folder / "checksums.npy", np.array(sums, np.uint32), allow_pickle=False)

    content: dict[str, object] = {
        "shape": x.shape[1:],
        "dtype": str(x.dtype),
        "classes": classes,
        "transform": asdict(source.transform),
        "content": {
            part: writer.content.hexdigest() for part, writer in zip(PARTS, (train, held_out, test), strict=True)
        },
    }
    if clients != stored:
        content["clients"] = clients
    meta = {
        "schema_version": SCHEMA_VERSION,
        **settings,
        **content,
        "id": hashlib.sha256(_json(content).encode()).hexdigest(),
        "class_names": source.class_names,
        "fingerprint": source.fingerprint,
        "clients": clients,
        "train_examples": int(examples[0].sum()),
        "validation_examples": int(examples[1].sum()),
        "test_examples": len(source.test),
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path, flush=True)}
            for path in sorted(folder.iterdir())
        },
    }
    with (folder / "meta.json").open("w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1, sort_keys=True, allow_nan=False)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())


def put_in_place(temporary: Path, folder: Path, key: str) -> Shards:
    """Rename the finished folder into place; where equal shards appeared meanwhile, those are used."""
    while True:
        try:
            temporary.rename(folder)
            return Shards.open(folder)
        except OSError:
            if not folder.is_dir():
                raise
        if (there := reusable(folder, key)) is not None:
            return there
        # Damaged shards make way; processes that have mapped them keep their pages.
        aside = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex}")
        try:
            folder.rename(aside)
        except FileNotFoundError:
            continue
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(place: Path) -> None:
    """Remove what killed processes were writing here, once it is so old that nobody can be at it."""
    if not place.is_dir():
        return
    for path in place.iterdir():
        try:
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # another process removes it, or it is not ours to remove
            continue


def reusable(folder: Path, key: str) -> Shards | None:
    """The complete shards with this key in the folder; None when there are none."""
    if not folder.is_dir():
        return None
    try:
        shards = Shards.open(folder)
    except BadInput:
        return None
    return shards if shards.meta.get("key") == key else None


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror or e}; expected a folder that raygrad prepared") from e
    except ValueError as e:
        raise BadInput(f"{path}: not JSON ({e}); {_AGAIN}") from e
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(f"{path}: schema_version {version}, this raygrad reads {SCHEMA_VERSION}; {_AGAIN}")
    return meta


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror or e}; {_AGAIN}") from e
    if size != expected:
        raise BadInput(f"{path}: {size:,} bytes, expected {expected:,}; it is truncated or changed: {_AGAIN}")


def _sha256(path: Path, flush: bool = False) -> str:
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        if flush:
            os.fsync(f.fileno())
    return digest
