"""Parquet files: whole columns, labels as classes, numeric features side by side, encoded images."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from raygrad.data.images import decoded, pixels
from raygrad.data.locate import if_all_exist, must_exist, resolve
from raygrad.data.source import Examples, Source
from raygrad.data.staging import file_digest, reading, stage
from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.naming import unknown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE_ROWS, IMAGE_ROWS = 4096, 256  # how many are decoded at a time
MOST_CLASSES = 1_000_000  # integer labels beyond this, in a table with fewer than a tenth as many rows, are no classes


@dataclass(frozen=True)
class ImageParquet:
    """Parquet files with one encoded image per row: column `png` (or `image`, bytes), column `label` (integer or text).

    All images have the size of the first. Paths are relative to the data root where one is given. Without `test` the
    test set is empty.
    """

    train: str
    test: str | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augment: bool = False

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return if_all_exist(self._paths(data_root))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        train, test, names = image_examples(must_exist("image-parquet", self._paths(data_root)), cache)
        return Source.of(train, test, names, Transform.of_images(self.mean, self.std, self.augment))

    def _paths(self, data_root: Path | None) -> list[Path]:
        return [resolve(name, data_root) for name in (self.train, self.test) if name is not None]


@dataclass(frozen=True)
class ParquetTable:
    """Rows of numbers in Parquet files (a file or a folder of them), with a client column: a natural partition.

    `features`: the feature columns (numbers, or one list of numbers per row), () for all but `client` and `label`.
    `label`: integers or text (classes) or floats (regression). `client`: None where there is no such column.
    Paths are relative to the data root where one is given. Without `test` the test set is empty.
    """

    path: str
    label: str = "label"
    client: str | None = "client"
    features: tuple[str, ...] = ()
    test: str | None = None

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return if_all_exist([path for files in self._parts(data_root) for path in files])

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        parts = [must_exist("parquet", files) for files in self._parts(data_root)]
        labels, names = _encode_labels(
            [_read_column(files, self.label) for files in parts], [files[0] for files in parts], regression=True
        )
        natural = None
        if self.client is not None:
            natural = np.unique(_read_column(parts[0], self.client), return_inverse=True)[1].astype(np.int64)
        first = parts[0][0]
        columns = self.features or [name for name in _column_names(first) if name not in (self.label, self.client)]
        dtype = _feature_dtype(first, columns)
        examples = [
            Examples(_stage_features(files, columns, len(y), dtype, cache), y)
            for files, y in zip(parts, labels, strict=True)
        ]
        test = examples[1] if len(examples) == 2 else examples[0].none()
        return Source.of(examples[0], test, names, Transform(), natural)

    def _parts(self, data_root: Path | None) -> list[list[Path]]:
        return [_parquet_files(resolve(name, data_root)) for name in (self.path, self.test) if name is not None]


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder, sorted, or the file itself."""
    return sorted(path.glob("*.parquet")) or [path] if path.is_dir() else [path]


def _column_names(path: Path) -> list[str]:
    """The names of a file's columns."""
    return _opened(path).schema_arrow.names


def _read_column(paths: Sequence[Path], name: str) -> np.ndarray:
    """One whole column of all files: numbers or text [n]. Raises BadInput when a value is missing."""
    values = []
    for path in paths:
        file = _opened(path, name)
        with reading(str(path), f"a Parquet file with the column {name!r}"):
            column = file.read(columns=[name])[name]
        if column.null_count:
            raise BadInput(f"{path}: {column.null_count} of {len(column)} values of the column {name!r} are missing")
        values.append(column.to_numpy())
    return np.concatenate(values)


def _encode_labels(
    parts: Sequence[np.ndarray], where: Sequence[Path], regression: bool
) -> tuple[list[np.ndarray], tuple[str, ...] | None]:
    """Labels of one or two parts as int64 classes with their names, or as float64 targets (names: None).

    Integers are classes 0.., text is sorted, floats are targets, where `regression` allows them. `where` names each
    part in errors. Raises BadInput.
    """
    train = parts[0]
    for part, path in zip(parts, where, strict=True):
        if not len(part):
            raise BadInput(f"{path}: it has no rows")
        if part.dtype.kind != train.dtype.kind and {part.dtype.kind, train.dtype.kind} != {"i", "u"}:
            raise BadInput(f"{path}: its labels are {part.dtype}, those of {where[0]} are {train.dtype}")
    if train.dtype.kind == "f" and regression:
        return [part.astype(np.float64) for part in parts], None
    if train.dtype.kind in "iub":
        classes = max(int(part.max()) for part in parts) + 1
        for part, path in zip(parts, where, strict=True):
            least, most = int(part.min()), int(part.max())
            if least < 0 or most >= max(MOST_CLASSES, 10 * len(train)):
                raise BadInput(f"{path}: label {least if least < 0 else most}; integer labels must be 0..classes-1")
        return [part.astype(np.int64) for part in parts], tuple(str(i) for i in range(classes))
    if train.dtype.kind in "OUS" and all(isinstance(value, str) for value in train):
        names = np.unique(train)
        for part, path in zip(parts, where, strict=True):
            if new := sorted(set(part) - set(names)):
                raise BadInput(f"{path}: label {new[0]!r} does not occur in {where[0]}")
        return [np.searchsorted(names, part).astype(np.int64) for part in parts], tuple(map(str, names))
    wanted = "integers, text or floats" if regression else "integers or text"
    raise BadInput(f"{where[0]}: labels of type {train.dtype}; expected {wanted}")


def image_examples(
    paths: Sequence[Path], cache: Path, classes: int | None = None, shape: tuple[int, int, int] | None = None
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Train and, where there is a second file, test examples of the columns png (or image) and label; class names.

    `shape`: channels, height, width; None: those of the first image. Raises BadInput for damaged or unlike images.
    """
    labels, names = _encode_labels([_read_column([path], "label") for path in paths], paths, regression=False)
    assert names is not None
    for path, y in zip(paths, labels, strict=True):
        if classes is not None and y.max() >= classes:
            raise BadInput(f"{path}: label {y.max()}; expected 0..{classes - 1}")
    column = "png" if "png" in _column_names(paths[0]) else "image"
    if shape is None:
        first, where = next(_image_cells(paths[0], column))
        with decoded(first, where) as image:
            shape = (1 if image.mode in ("1", "L") else 3, image.height, image.width)
    parts = [
        Examples(_stage_images(path, column, len(y), shape, cache), y) for path, y in zip(paths, labels, strict=True)
    ]
    return parts[0], parts[1] if len(parts) == 2 else parts[0].none(), names


def _feature_dtype(path: Path, columns: Sequence[str]) -> np.dtype:
    """uint8 where all columns are, otherwise the smallest of float32 and float64 that holds them. Raises BadInput."""
    import pyarrow.types as types

    schema = _opened(path, *columns).schema_arrow
    if not columns:
        raise BadInput(f"{path}: it has no feature columns; it has {', '.join(schema.names)}")
    found = []
    for name in columns:
        kind = schema.field(name).type
        kind = kind.value_type if _is_list(kind) else kind
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise BadInput(
                f"{path}: the column {name!r} has type {kind}; features must be numbers: name them in features"
            )
        found.append(np.dtype(kind.to_pandas_dtype()))
    if all(dtype == np.uint8 for dtype in found):
        return np.dtype(np.uint8)
    return np.result_type(np.float32, *found)


def _stage_features(paths: Sequence[Path], columns: Sequence[str], n: int, dtype: np.dtype, cache: Path) -> np.ndarray:
    """The columns of all files side by side, as a memory map [n, features]. Raises BadInput for missing values."""

    def rows(at_a_time: int, width: int | None = None) -> Iterator[np.ndarray]:
        for path in paths:
            for batch in _batches(path, columns, at_a_time):
                chunk = np.concatenate([_features(batch, name, path) for name in columns], axis=1)
                if width not in (None, chunk.shape[1]):
                    raise BadInput(f"{path}: rows of {chunk.shape[1]} features, the first row has {width}")
                yield chunk

    width = next(rows(1)).shape[1]
    key = hashlib.sha256(json.dumps([*columns, str(dtype), *map(file_digest, paths)]).encode()).hexdigest()[:24]
    return stage(cache, f"table-{key}", (n, width), dtype, rows(TABLE_ROWS, width))


def _opened(path: Path, *columns: str) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    with reading(str(path), "a Parquet file"):
        file = pq.ParquetFile(path)
    for name in columns:
        if name not in file.schema_arrow.names:
            raise unknown(f"column in {path}", name, file.schema_arrow.names)
    return file


def _batches(path: Path, columns: Sequence[str], rows: int) -> "Iterator[pa.RecordBatch]":
    file = _opened(path, *columns)
    with reading(str(path), f"a Parquet file with the columns {', '.join(columns)}"):
        yield from file.iter_batches(batch_size=rows, columns=list(columns))


def _image_cells(path: Path, column: str) -> Iterator[tuple[BinaryIO, str]]:
    """Each row's encoded image as a stream, and what to call it in an error."""
    cells = (cell for batch in _batches(path, [column], IMAGE_ROWS) for cell in batch.column(0).to_pylist())
    for row, cell in enumerate(cells):
        where = f"{path}: row {row}, column {column!r}"
        # The usual layout of image columns elsewhere is a struct of bytes and path.
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise BadInput(f"{where}: {type(data).__name__}; expected the bytes of an encoded image")
        yield io.BytesIO(data), where


def _stage_images(path: Path, column: str, n: int, shape: tuple[int, int, int], cache: Path) -> np.ndarray:
    def rows() -> Iterator[np.ndarray]:
        for data, where in _image_cells(path, column):
            with decoded(data, where) as image:
                if (image.height, image.width) != shape[1:]:
                    raise BadInput(
                        f"{where}: {image.height}x{image.width} pixels; expected {shape[1]}x{shape[2]} like all others"
                    )
                yield pixels(image, shape[0])[None]

    return stage(cache, f"images-{file_digest(path)}-{shape[0]}", (n, *shape), np.uint8, rows())


def _features(batch: "pa.RecordBatch", name: str, path: Path) -> np.ndarray:
    """One feature column [n, width], width 1 unless its values are lists."""
    import pyarrow.compute as pc

    column = values = batch.column(name)
    if _is_list(column.type):
        if column.null_count or len(pc.call_function("list_value_length", [column]).unique()) > 1:
            raise BadInput(f"{path}: the lists in the column {name!r} have different lengths, or are missing")
        values = column.flatten()
    if values.null_count:
        raise BadInput(
            f"{path}: {values.null_count} values of the column {name!r} are missing within {len(batch)} rows"
        )
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{path}: the column {name!r} holds a value that is NaN or infinite")
    return array.reshape(len(column), -1)


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
