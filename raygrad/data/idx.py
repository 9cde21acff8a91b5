"""The idx format of the MNIST family: a magic number, the sizes, then unsigned bytes; plain or gzipped."""

import gzip
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from raygrad.data.locate import if_all_exist, must_exist, resolve
from raygrad.data.source import Examples, Source, numbered
from raygrad.data.staging import file_digest, reading, stage
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

CHUNK_BYTES = 1 << 24  # what is decoded at a time


@dataclass(frozen=True)
class Idx:
    """The user's own idx files of unsigned bytes, plain or .gz: images [n, h, w] or [n, c, h, w], labels [n] from 0.

    Paths are relative to the data root where one is given. Without test files the test set is empty.
    """

    train_images: str
    train_labels: str
    test_images: str | None = None
    test_labels: str | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augment: bool = False

    def __post_init__(self) -> None:
        if (self.test_images is None) != (self.test_labels is None):
            raise BadInput("data set idx: give both test_images and test_labels, or neither")

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return if_all_exist(self._paths(data_root))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = must_exist("idx", self._paths(data_root))
        transform = Transform.of_images(self.mean, self.std, self.augment)
        return idx_source("idx", paths, cache, None, transform)

    def _paths(self, data_root: Path | None) -> list[Path]:
        named = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return [resolve(name, data_root) for name in named if name is not None]


def idx_source(
    kind: str,
    paths: Sequence[Path],
    cache: Path,
    class_names: tuple[str, ...] | None,
    transform: Transform,
    first_label: int = 0,
    transposed: bool = False,
) -> Source:
    """From train images, train labels and, where there are any, test images and test labels.

    `first_label` is class 0; `transposed` images are made upright. Raises BadInput for files that do not fit.
    """
    parts = []
    for images, labels in zip(paths[::2], paths[1::2], strict=True):
        x = _map_images(images, cache)
        y = _read_labels(labels).astype(np.int64) - first_label
        if len(x) != len(y):
            raise BadInput(f"{images} has {len(x)} images, but {labels} has {len(y)} labels")
        classes = len(class_names) if class_names else 256
        if len(y) and not (y.min() >= 0 and y.max() < classes):
            raise BadInput(
                f"{labels}: labels from {y.min() + first_label} to {y.max() + first_label}; "
                f"{kind} has labels {first_label}..{first_label + classes - 1}"
            )
        x = x.swapaxes(-1, -2) if transposed else x
        parts.append(Examples(x[:, None] if x.ndim == 3 else x, y))
    train, test = parts[0], parts[1] if len(parts) == 2 else parts[0].none()
    if not len(train):
        raise BadInput(f"{paths[0]}: it has no images")
    if train.x.shape[1:] != test.x.shape[1:]:
        raise BadInput(f"{paths[2]}: images of shape {test.x.shape[1:]}, those of {paths[0]} have {train.x.shape[1:]}")
    names = class_names or numbered(int(max(train.y.max(), test.y.max(initial=0))) + 1)
    return Source.of(train, test, names, transform)


def _read_labels(path: Path) -> np.ndarray:
    """The whole of an idx file with one dimension: [n] uint8. Raises BadInput for a damaged file."""
    return np.concatenate([np.empty(0, np.uint8), *_chunks(path, (1,))])


def _map_images(path: Path, cache: Path) -> np.ndarray:
    """Images [n, h, w] or [n, c, h, w] as a read-only memory map: of the file itself, or staged where it is gzipped.

    Errors: BadInput for a damaged file.
    """
    with _opened(path, (3, 4)) as (stream, shape, zipped):
        if zipped:
            return stage(cache, f"idx-{file_digest(path)}", shape, np.uint8, _chunks(path, (3, 4)))
        found, expected = path.stat().st_size - stream.tell(), int(np.prod(shape))
        if found != expected:
            raise _wrong_size(path, shape, found if found < expected else None)
        return np.memmap(path, np.uint8, "r", stream.tell(), shape) if expected else np.empty(shape, np.uint8)


@contextmanager
def _opened(path: Path, dimensions: tuple[int, ...]) -> Iterator[tuple[BinaryIO, tuple[int, ...], bool]]:
    """An idx file, open after its header: the stream, its sizes, and whether it is gzipped."""
    expected = f"an idx file of unsigned bytes with {' or '.join(map(str, dimensions))} dimension(s), plain or .gz"
    with reading(str(path), expected), path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in dimensions:
            raise BadInput(f"{path}: it starts with {magic.hex() or 'nothing'}; expected {expected}")
        yield stream, struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3])), zipped


def _chunks(path: Path, dimensions: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The file's examples, some at a time; BadInput unless it holds exactly as many as its header says."""
    with _opened(path, dimensions) as (stream, shape, _):
        row = max(1, int(np.prod(shape[1:])))
        rows = max(1, CHUNK_BYTES // row)
        for start in range(0, shape[0], rows):
            wanted = min(rows, shape[0] - start) * row
            data = stream.read(wanted)
            if len(data) != wanted:
                raise _wrong_size(path, shape, start * row + len(data))
            yield np.frombuffer(data, np.uint8).reshape(-1, *shape[1:])
        if stream.read(1):
            raise _wrong_size(path, shape, None)


def _wrong_size(path: Path, shape: tuple[int, ...], found: int | None) -> BadInput:
    what = "there is more after them" if found is None else f"it ends after {found:,}: truncated"
    return BadInput(f"{path}: expected {int(np.prod(shape)):,} bytes for {' x '.join(map(str, shape))}, but {what}")
