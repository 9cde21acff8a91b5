"""Small files in every format that a data set reads, and what every source promises."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raygrad.data.source import Source

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RNG = np.random.Generator(np.random.PCG64(7))


def check(source: Source) -> None:
    """What every source promises."""
    for part in (source.train, source.test):
        assert len(part.x) == len(part.y)
        assert part.x.dtype in (np.uint8, np.float32, np.float64)
        assert part.x.dtype == source.train.x.dtype
        assert part.x.shape[1:] == source.train.x.shape[1:]
        if source.classes is None:
            assert part.y.dtype == np.float64
        else:
            assert part.y.dtype == np.int64
            assert len(part.y) == 0 or (part.y.min() >= 0 and part.y.max() < source.classes)
    assert len(source.class_names) == (source.classes or 0)
    if source.natural is not None:
        assert source.natural.shape == source.train.y.shape
        assert set(source.natural) == set(range(int(source.natural.max()) + 1))


def listing(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*"))


def shared(*names: str) -> Path:
    for name in names:
        if not (SHARED / name).exists():
            pytest.skip(f"{SHARED / name} is not there")
    return SHARED


def break_file(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(b"<html>not found</html>" * 10)
    elif how == "flipped":
        path.write_bytes(data[:-6] + bytes(255 - b for b in data[-6:-4]) + data[-4:])
    elif how == "longer":
        path.write_bytes(gzip.compress(gzip.decompress(data) + b"x") if path.suffix == ".gz" else data + b"x")
    elif how == "gone":
        path.unlink()


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(path: Path, array: np.ndarray, zipped: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = idx_bytes(array)
    (path.with_name(path.name + ".gz") if zipped else path).write_bytes(gzip.compress(data, 1) if zipped else data)


def write_mnist(root: Path, zipped: bool, folder: str = "MNIST/raw") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(3))
    x = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    y = (np.arange(50) % 10).astype(np.uint8)
    for part, rows in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        write_idx(root / folder / f"{part}-images-idx3-ubyte", x[rows], zipped)
        write_idx(root / folder / f"{part}-labels-idx1-ubyte", y[rows], zipped)
    return x, y


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_image_parquet(path: Path, images: list[np.ndarray], labels: list[object], column: str = "png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [png(image) for image in images], "label": labels}), path)
