"""CIFAR-10 and CIFAR-100: both layouts, damage, pickles."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_files import RNG, break_file, check, listing, png, shared, write_image_parquet

from raygrad.data.datasets import CIFAR10, CIFAR100
from raygrad.data.source import Dataset
from raygrad.errors import BadInput


def write_cifar(root: Path, name: str = "CIFAR10", size: int = 32) -> dict[str, np.ndarray]:
    images = {
        part: RNG.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for part, n in (("train", 12), ("test", 4))
    }
    for part, x in images.items():
        write_image_parquet(root / name / f"{name.lower()}-{part}.parquet", list(x), [i % 10 for i in range(len(x))])
    return images


@pytest.mark.parametrize(("name", "dataset", "classes"), [("CIFAR10", CIFAR10(), 10), ("CIFAR100", CIFAR100(), 100)])
def test_cifar_from_parquet(tmp_path: Path, name: str, dataset: Dataset, classes: int) -> None:
    images = write_cifar(tmp_path / "root", name)
    source = dataset.open(tmp_path / "root", tmp_path / "cache", 0)
    check(source)
    assert np.array_equal(source.train.x, images["train"].transpose(0, 3, 1, 2))
    assert np.array_equal(source.test.x, images["test"].transpose(0, 3, 1, 2))
    assert source.classes == classes
    assert source.transform.augment == "crop-flip"
    staged = listing(tmp_path / "cache")
    dataset.open(tmp_path / "root", tmp_path / "cache", 0)
    assert listing(tmp_path / "cache") == staged


def test_damaged_cifar_parquet_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path, size=31)
    with pytest.raises(BadInput, match=r"cifar10-train\.parquet: row 0.*31x31 pixels; expected 32x32"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    table = pa.table({"png": [png(pixels), png(pixels)[:900]], "label": [0, 1]})
    path = tmp_path / "CIFAR10/cifar10-train.parquet"
    pq.write_table(table, path)
    with pytest.raises(BadInput, match=r"cifar10-train\.parquet: row 1, column 'png'"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)
    write_image_parquet(path, [pixels], [10])
    with pytest.raises(BadInput, match=r"cifar10-train\.parquet: label 10; expected 0\.\.9"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)
    break_file(path, "truncated")
    with pytest.raises(BadInput, match=r"cifar10-train\.parquet.*expected a Parquet file"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)


def test_a_pickle_that_is_not_cifars_is_never_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadInput, match="corrupted"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)
    assert not (tmp_path / "executed").exists()


def test_cifar_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x = RNG.integers(0, 256, (6, 5, 3072), dtype=np.uint8)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    sums = [
        [name, write(name, {"data": x[i], "labels": [0, 1, 2, 3, i]})]
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    ]
    meta_sum = write("batches.meta", {"label_names": ["n"] * 10})
    monkeypatch.setattr(TorchvisionCIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(TorchvisionCIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(TorchvisionCIFAR10, "meta", {**TorchvisionCIFAR10.meta, "md5": meta_sum})
    before = listing(tmp_path / "root")
    source = CIFAR10(augment=False).open(tmp_path / "root", tmp_path / "cache", 0)
    check(source)
    assert np.array_equal(source.train.x.reshape(25, -1), x[:5].reshape(25, -1))
    assert np.array_equal(source.test.x.reshape(5, -1), x[5])
    assert source.test.y.tolist() == [0, 1, 2, 3, 5]
    assert listing(tmp_path / "root") == before


def test_cifar100_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive's own files: pickles of flat images, with fine and coarse labels."""
    from torchvision.datasets import CIFAR100 as TorchvisionCIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    x, fine = RNG.integers(0, 256, (2, 4, 3072), dtype=np.uint8), [[99, 0, 7, 98], [1, 2, 3, 99]]
    sums = {}
    for i, name in enumerate(("train", "test", "meta")):
        labels = {"data": x[i], "fine_labels": fine[i], "coarse_labels": [5] * 4} if name != "meta" else {}
        data = pickle.dumps(labels or {"fine_label_names": ["n"] * 100})
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(TorchvisionCIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(TorchvisionCIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(TorchvisionCIFAR100, "meta", {**TorchvisionCIFAR100.meta, "md5": sums["meta"]})
    source = CIFAR100().open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert source.train.y.tolist() == fine[0] and source.test.y.tolist() == fine[1]
    assert np.array_equal(source.train.x.reshape(4, -1), x[0])
    black = source.transform(np.zeros((1, 3, 32, 32), np.uint8), torch.float64, None)[0, :, 0, 0]
    torch.testing.assert_close(black.tolist(), [-0.50708 / 0.26733, -0.48655 / 0.25644, -0.44092 / 0.27615])


@pytest.mark.slow
def test_real_cifar10(tmp_path: Path) -> None:
    source = CIFAR10().open(shared("CIFAR10"), tmp_path, 0)
    check(source)
    assert np.bincount(source.train.y).tolist() == [5000] * 10
    digest = hashlib.sha256(np.ascontiguousarray(source.train.x).tobytes()).hexdigest()
    assert digest == "76e7a2460a01af40f0d1c78185e70b0fbe9026d07eab1cc6dc705349bed73371"
