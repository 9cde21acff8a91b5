"""Parquet: encoded images, tables, natural partitions, what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_files import RNG, check, png, shared, write_image_parquet

from raygrad.data.datasets import ImageParquet, ParquetTable
from raygrad.errors import BadInput


def test_image_parquet_with_text_labels_and_grey_images(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (3, 6, 7), dtype=np.uint8)
    write_image_parquet(tmp_path / "a.parquet", list(grey), ["cat", "ant", "cat"], "image")
    cells = [{"bytes": png(grey[0]), "path": None}]
    pq.write_table(pa.table({"image": cells, "label": ["ant"]}), tmp_path / "b.parquet")
    source = ImageParquet("a.parquet", "b.parquet").open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert np.array_equal(source.train.x[:, 0], grey)
    assert np.array_equal(source.test.x[0, 0], grey[0])
    assert source.class_names == ("ant", "cat")
    assert source.train.y.tolist() == [1, 0, 1]
    pq.write_table(pa.table({"image": cells, "label": ["dog"]}), tmp_path / "b.parquet")
    with pytest.raises(BadInput, match=r"b\.parquet: label 'dog' does not occur in .*a\.parquet"):
        ImageParquet("a.parquet", "b.parquet").open(tmp_path, tmp_path / "cache", 0)


def test_parquet_with_a_client_column_is_a_natural_partition(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": ["zoe", "amy", "zoe", "bob"],
            "a": pa.array([1, 2, 3, 4], pa.float32()),
            "b": pa.array([5, 6, 7, 8], pa.int8()),
            "label": [0, 1, 2, 1],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = ParquetTable("t.parquet", client="user").open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert source.natural is not None
    assert source.natural.tolist() == [2, 0, 2, 1]
    assert source.train.x.dtype == np.float32
    assert source.train.x.tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]
    assert source.classes == 3
    source = ParquetTable("t.parquet", "a", "user", ("b",), "t.parquet").open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert source.classes is None
    assert source.test.x.tolist() == [[5], [6], [7], [8]]
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(BadInput, match=r"empty\.parquet: it has no rows"):
        ParquetTable("t.parquet", client="user", test="empty.parquet").open(tmp_path, tmp_path / "cache", 0)
    with pytest.raises(BadInput, match=r"unknown column in .*t\.parquet 'usr'; did you mean user\?"):
        ParquetTable("t.parquet", client="usr").open(tmp_path, tmp_path / "cache", 0)
    with pytest.raises(BadInput, match="'user' has type string; features must be numbers"):
        ParquetTable("t.parquet", client=None).open(tmp_path, tmp_path / "cache", 0)


def test_parquet_folders_lists_and_missing_values(tmp_path: Path) -> None:
    for i in range(2):
        rows = {"client": [i, i], "x": pa.array([[i, 1.5], [2.5, 3]], pa.list_(pa.float64())), "label": [0.5, i]}
        (tmp_path / "t").mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), tmp_path / f"t/{i}.parquet")
    source = ParquetTable("t").open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert source.train.x.tolist() == [[0, 1.5], [2.5, 3], [1, 1.5], [2.5, 3]]
    assert source.train.y.tolist() == [0.5, 0, 0.5, 1]
    assert source.natural is not None
    assert source.natural.tolist() == [0, 0, 1, 1]

    def refused(column: pa.Array, message: str, label: list[object] | None = None) -> None:
        pq.write_table(pa.table({"client": [0, 1], "x": column, "label": label or [0, 1]}), tmp_path / "u.parquet")
        with pytest.raises(BadInput, match=rf"u\.parquet.*{message}"):
            ParquetTable("u.parquet").open(tmp_path, tmp_path / "cache", 0)

    refused(pa.array([[1.0], [1.0, 2.0]]), "different lengths")
    refused(pa.array([[1.0, 2.0], None]), "different lengths, or are missing")
    refused(pa.array([1.0, None]), "1 values of the column 'x' are missing")
    refused(pa.array([1.0, float("nan")]), "NaN or infinite")
    refused(pa.array([1.0, 2.0]), "1 of 2 values of the column 'label' are missing", [0, None])
    refused(pa.array([1.0, 2.0]), "label -1", [-1, 0])


def test_real_cifar10_test_images(tmp_path: Path) -> None:
    path = shared("CIFAR10/cifar10-test.parquet") / "CIFAR10/cifar10-test.parquet"
    source = ImageParquet(str(path)).open(None, tmp_path, 0)
    check(source)
    assert source.train.x.shape == (10_000, 3, 32, 32)
    assert np.bincount(source.train.y).tolist() == [1000] * 10
    digest = hashlib.sha256(np.ascontiguousarray(source.train.x).tobytes()).hexdigest()
    assert digest == "1fe46ff47f5fb6c1b24f0b5448654cac0e0d3e1e0c16f9cbac842307814b553a"
