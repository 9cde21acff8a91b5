"""The idx format of the MNIST family: a magic number, the sizes, then unsigned bytes; plain or gzipped."""

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from raygrad.data.staging import file_digest, reading, stage
from raygrad.errors import BadInput

CHUNK_BYTES = 1 << 24  # what is decoded at a time


def read_labels(path: Path) -> np.ndarray:
    """The whole of an idx file with one dimension: [n] uint8. Raises BadInput for a damaged file."""
    return np.concatenate([np.empty(0, np.uint8), *_chunks(path, (1,))])


def map_images(path: Path, cache: Path) -> np.ndarray:
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
