"""What has to be decoded (gzip, PNG, Parquet) is decoded once, into an uncompressed memory map in the cache.

Memory stays bounded: the decoders give chunks, which are written as they come.
"""

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from raygrad import logs
from raygrad.errors import BadInput


@contextmanager
def reading(where: str, expected: str) -> Iterator[None]:
    """Turns what a damaged file makes the decoders raise into BadInput."""
    try:
        yield
    except (OSError, EOFError, ValueError, SyntaxError, zlib.error, struct.error) as e:
        raise BadInput(f"{where}: {str(e) or type(e).__name__}; expected {expected}") from e


def file_digest(path: Path) -> str:
    """The content of a file in 24 letters, for the name of what is staged from it."""
    with reading(str(path), "a readable file"), path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:24]


def stage(
    cache: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    chunks: Iterable[np.ndarray],
    fresh: bool = False,
) -> np.ndarray:
    """`chunks`, one after another along the first axis, as the memory map `<cache>/<name>.npy`, written unless there.

    Unless `fresh`, `name` must say what the content is. The file is written under another name and renamed, so that it
    is complete or not there; it is written as a stream, since running out of disk under a memory map would kill the
    process.
    """
    path = cache / f"{name}.npy"
    dtype = np.dtype(dtype)
    if not fresh and (staged := _staged(path, shape, dtype)) is not None:
        return staged
    temporary = cache / f".{name}.{os.getpid()}-{uuid.uuid4().hex}"
    rows = 0
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(f, header)
            for chunk in chunks:
                f.write(np.ascontiguousarray(chunk, dtype).data)
                rows += len(chunk)
                logs.step("decoding examples", rows, shape[0], "examples")
        if rows != shape[0]:
            raise BadInput(f"{name}: {rows} examples were read, {shape[0]} expected; did a file change meanwhile?")
        temporary.replace(path)
    except OSError as e:
        raise BadInput(f"cannot write the decoded examples to {path}: {e}") from e
    finally:
        temporary.unlink(missing_ok=True)
    staged = _staged(path, shape, dtype)
    assert staged is not None
    return staged


def _staged(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The staged array, read-only; None when it is not there, or is damaged."""
    try:
        found = np.load(path, mmap_mode="r" if np.prod(shape) else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == dtype else None
