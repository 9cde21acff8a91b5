"""Data sets: what they read, what they make of it, and what they say about damaged files."""

import gzip
import io
import json
import pickle
import struct
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raygrad.data.datasets import (
    CIFAR10,
    CIFAR100,
    DATASETS,
    EMNIST,
    EMNIST47,
    MNIST,
    Dataset,
    Digits,
    FashionMNIST,
    HasFiles,
    Idx,
    ImageFolder,
    ImageParquet,
    ParquetTable,
    Source,
    SyntheticLogistic,
    SyntheticQuadratic,
    TorchDataset,
    load_factory,
)
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RNG = np.random.Generator(np.random.PCG64(7))


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


def listing(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*"))


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


# --- the registry ---------------------------------------------------------------------------------------------------


REQUIRED = {
    "idx": {"train_images": "a", "train_labels": "b"},
    "image-folder": {"path": "a"},
    "image-parquet": {"train": "a"},
    "parquet": {"path": "a"},
    "torch": {"factory": "a:b"},
}


@pytest.mark.parametrize("kind", DATASETS)
def test_settings_survive_json(kind: str) -> None:
    dataset = DATASETS[kind](**REQUIRED.get(kind, {}))
    again = type(dataset)(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(json.dumps(asdict(dataset))).items()}
    )
    assert again == dataset
    assert hash(again) == hash(dataset)
    assert all(f.init for f in fields(dataset))
    assert isinstance(dataset, Dataset)
    assert isinstance(dataset, HasFiles)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_is_stratified_and_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    source, other = Digits().open(None, tmp_path, seed=0), Digits().open(None, tmp_path, seed=9)
    check(source)
    assert source.fingerprint == other.fingerprint
    assert np.array_equal(source.test.x, other.test.x)
    assert source.train.x.shape == (1438, 1, 8, 8)
    assert source.test.x.shape == (359, 1, 8, 8)
    assert source.train.x.max() == 16
    total = np.bincount(source.train.y) + np.bincount(source.test.y)
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (np.abs(np.bincount(source.test.y) - 0.2 * total) <= 0.5).all()
    normalised = source.transform(source.train.x, torch.float64, None)
    assert abs(normalised.mean().item()) < 1e-3
    assert abs(normalised.std().item() - 1) < 1e-3
    assert not list(tmp_path.iterdir())


# --- idx and the MNIST family ---------------------------------------------------------------------------------------


def test_mnist_plain_and_gz_are_the_same_and_the_root_is_only_read(tmp_path: Path) -> None:
    sources = []
    for zipped in (False, True):
        root, cache = tmp_path / f"root{zipped}", tmp_path / f"cache{zipped}"
        x, y = write_mnist(root, zipped)
        before = listing(root)
        source = MNIST().open(root, cache, seed=0)
        check(source)
        assert np.array_equal(source.train.x[:, 0], x[:40])
        assert np.array_equal(source.test.y, y[40:])
        assert isinstance(source.train.x.base, np.memmap) or isinstance(source.train.x, np.memmap)
        assert listing(root) == before
        staged = listing(cache) if cache.exists() else []
        assert len(staged) == (2 if zipped else 0)
        again = MNIST().open(root, cache, seed=1)
        assert again.fingerprint == source.fingerprint
        assert (listing(cache) if cache.exists() else []) == staged  # reused, not written again
        sources.append(source)
    assert sources[0].fingerprint == sources[1].fingerprint


def test_a_damaged_staged_file_is_made_again(tmp_path: Path) -> None:
    x, _ = write_mnist(tmp_path / "root", True)
    MNIST().open(tmp_path / "root", tmp_path / "cache", 0)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    source = MNIST().open(tmp_path / "root", tmp_path / "cache", 0)
    assert np.array_equal(source.train.x[:, 0], x[:40])


def test_another_content_has_another_fingerprint(tmp_path: Path) -> None:
    x, _ = write_mnist(tmp_path / "root", True)
    before = MNIST().open(tmp_path / "root", tmp_path / "cache", 0)
    write_idx(tmp_path / "root/MNIST/raw/train-images-idx3-ubyte", 255 - x[:40], True)
    after = MNIST().open(tmp_path / "root", tmp_path / "cache", 0)
    assert before.fingerprint != after.fingerprint
    assert np.array_equal(after.train.x[:, 0], 255 - x[:40])


def test_fashion_mnist_is_read_from_its_own_folder(tmp_path: Path) -> None:
    x, _ = write_mnist(tmp_path, False, "FashionMNIST/raw")
    source = FashionMNIST().open(tmp_path, tmp_path / "cache", 0)
    assert np.array_equal(source.train.x[:, 0], x[:40])
    assert source.class_names[9] == "ankle boot"
    assert source.transform.mean == (0.2860,)


@pytest.mark.parametrize(
    ("dataset", "folder", "first", "names"),
    [
        (EMNIST("letters"), "EMNIST/raw/emnist-letters", 1, 26),
        (EMNIST("digits"), "EMNIST/raw/emnist-digits", 0, 10),
        (EMNIST("mnist"), "EMNIST/raw/emnist-mnist", 0, 10),
        (EMNIST("balanced"), "EMNIST/raw/emnist-balanced", 0, 47),
        (EMNIST("bymerge"), "EMNIST/raw/emnist-bymerge", 0, 47),
        (EMNIST("byclass"), "EMNIST/raw/emnist-byclass", 0, 62),
        (EMNIST47(), "EMNIST47/emnist47", 0, 47),
    ],
)
def test_emnist_is_made_upright_with_labels_from_0(
    tmp_path: Path, dataset: Dataset, folder: str, first: int, names: int
) -> None:
    upright = RNG.integers(0, 256, (names, 28, 28), dtype=np.uint8)
    labels = (np.arange(names) + first).astype(np.uint8)
    for part in ("train", "test"):
        write_idx(tmp_path / f"{folder}-{part}-images-idx3-ubyte", upright.transpose(0, 2, 1), part == "train")
        write_idx(tmp_path / f"{folder}-{part}-labels-idx1-ubyte", labels, part == "train")
    source = dataset.open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert np.array_equal(source.train.x[:, 0], upright)
    assert np.array_equal(source.test.x[:, 0], upright)
    assert source.train.y.tolist() == list(range(names))
    assert source.classes == names


def test_an_unknown_emnist_split_names_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"leters.*did you mean 'letters'"):
        EMNIST("leters")


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


HARMS = ("truncated", "empty", "garbage", "longer", "gone")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    ("zipped", "how"),
    [*((zipped, how) for zipped in (False, True) for how in HARMS), (True, "flipped")],  # a plain file has no check sum
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, zipped: bool, name: str, how: str) -> None:
    root = tmp_path / "root"
    write_mnist(root, zipped)
    break_file(root / "MNIST/raw" / (name + ".gz" if zipped else name), how)
    with pytest.raises(BadInput, match=name) as error:
        MNIST().open(root, tmp_path / "cache", 0)
    assert "expected" in str(error.value) or "looked for" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob(".*"))  # no half-written file stays


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path, False)
    write_idx(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", np.zeros(11, np.uint8), False)
    with pytest.raises(BadInput, match=r"10 images.*11 labels"):
        MNIST().open(tmp_path, tmp_path / "cache", 0)
    write_idx(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", np.full(10, 10, np.uint8), False)
    with pytest.raises(BadInput, match=r"t10k-labels.*mnist has labels 0\.\.9"):
        MNIST().open(tmp_path, tmp_path / "cache", 0)


def test_a_failed_download_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def fails(root: str, **options: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried somewhere, got:\nno network")

    for name in ("MNIST", "FashionMNIST", "EMNIST", "CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, fails)
    for dataset, layout in (
        (MNIST(), "MNIST/raw/train-images-idx3-ubyte"),
        (FashionMNIST(), "FashionMNIST/raw"),
        (EMNIST(), "EMNIST/raw/emnist-balanced-train"),
        (CIFAR10(), "cifar-10-batches-py"),
        (CIFAR100(), "cifar-100-python"),
        (EMNIST47(), "EMNIST47/emnist47-train"),
    ):
        with pytest.raises(BadInput, match=f"--data-root DIR.*{layout}") as error:
            dataset.open(None, tmp_path, 0)
        assert "\n" not in str(error.value)
        assert dataset.files(None, tmp_path) is None


def test_a_download_goes_to_the_cache_and_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    calls = []

    def download(root: str, **options: object) -> None:
        calls.append(options)
        write_mnist(Path(root), False)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    first = MNIST().open(None, tmp_path, 0)
    second = MNIST().open(None, tmp_path, 0)
    assert calls == [{"download": True}]
    assert first.fingerprint == second.fingerprint
    files = MNIST().files(None, tmp_path)
    assert files is not None
    assert len(files) == 4


def test_with_a_data_root_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *a, **k: pytest.fail("downloads"))
    with pytest.raises(BadInput, match=r"4 of 4 files are missing.*MNIST/raw/t10k-images-idx3-ubyte.*\.gz"):
        MNIST().open(tmp_path, tmp_path / "cache", 0)
    with pytest.raises(BadInput, match=r"CIFAR10/cifar10-train\.parquet.*cifar-10-batches-py"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)


def test_the_users_own_idx_files(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
    write_idx(tmp_path / "x", x, True)
    write_idx(tmp_path / "y", np.array([0, 1, 2, 2, 1, 0], np.uint8), False)
    source = Idx("x.gz", "y").open(tmp_path, tmp_path / "cache", 0)
    check(source)
    assert np.array_equal(source.train.x, x)
    assert source.classes == 3
    assert len(source.test) == 0
    with pytest.raises(BadInput, match=r"there is no file .*nowhere"):
        Idx("x.gz", "nowhere").open(tmp_path, tmp_path / "cache", 0)


# --- CIFAR, images in Parquet and in folders ------------------------------------------------------------------------


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
    import hashlib

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


def write_folder(root: Path, per_class: int = 5) -> None:
    for level, name in ((40, "ants"), (200, "bees")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(np.full((9, 12, 3), level + i, np.uint8)).save(root / name / f"{i}.png")


def test_image_folder_holds_out_a_part_or_uses_the_test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    source = ImageFolder("a", size=8).open(tmp_path, tmp_path / "cache", seed=0)
    check(source)
    assert source.train.x.shape == (8, 3, 8, 8)
    assert source.class_names == ("ants", "bees")
    assert np.bincount(source.test.y).tolist() == [1, 1]
    levels = [*source.train.x[:, 0, 0, 0], *source.test.x[:, 0, 0, 0]]
    assert sorted(levels) == [*range(40, 45), *range(200, 205)]
    assert ImageFolder("a", size=8).open(tmp_path, tmp_path / "cache", seed=5).fingerprint == source.fingerprint

    write_folder(tmp_path / "b" / "train")
    write_folder(tmp_path / "b" / "test", 2)
    source = ImageFolder("b", size=4, channels=1).open(tmp_path, tmp_path / "cache", seed=0)
    assert source.train.x.shape == (10, 1, 4, 4)
    assert source.test.x.shape == (4, 1, 4, 4)
    (tmp_path / "b/train/bees/3.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"b/train/bees/3\.png.*expected an image"):
        ImageFolder("b", size=4).open(tmp_path, tmp_path / "cache", seed=0)
    with pytest.raises(BadInput, match=r"there is no folder .*nowhere"):
        ImageFolder("nowhere").open(tmp_path, tmp_path / "cache", seed=0)


# --- Parquet tables -------------------------------------------------------------------------------------------------


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
    with pytest.raises(BadInput, match=r"no column 'usr' \(did you mean 'user'\?\)"):
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


# --- torch Datasets and factories -----------------------------------------------------------------------------------


MODULE = """
import torch
from torch.utils.data import TensorDataset

X = torch.arange(24.0).reshape(6, 1, 2, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])

def both(): return TensorDataset(X, Y), TensorDataset(X[:2], Y[:2])
def no_test(): return TensorDataset((X * 10).to(torch.uint8), Y), None
def regression(): return TensorDataset(X, Y.double()), None
def ragged(): return [(X[0], 0), (X[0, 0], 1)], None
def one(): return TensorDataset(X, Y)
def tokens(): return TensorDataset(Y, Y), None
class Broken:
    def __len__(self): return 3
    def __getitem__(self, i): return (X[i], int(Y[i])) if i < 2 else {}["lost"]
def broken(): return Broken(), None
NOT_CALLABLE = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "raygrad_test_factories.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "raygrad_test_factories", raising=False)
    return "raygrad_test_factories"


def test_any_torch_dataset(tmp_path: Path, module: str) -> None:
    source = TorchDataset(f"{module}:both").open(None, tmp_path / "cache", 0)
    check(source)
    assert source.train.x.dtype == np.float32
    assert source.train.x.reshape(-1).tolist() == list(range(24))
    assert source.classes == 3
    assert len(source.test) == 2
    assert source.transform == Transform()
    source = TorchDataset(f"{module}:no_test").open(None, tmp_path / "cache", 0)
    assert source.train.x.dtype == np.uint8
    assert source.transform.scale == 1 / 255
    assert len(source.test) == 0
    assert TorchDataset(f"{module}:regression").open(None, tmp_path / "cache", 0).classes is None
    files = TorchDataset(f"{module}:both").files(None, tmp_path)
    assert files == [tmp_path / "raygrad_test_factories.py"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ragged", r"train\[1\]: float32 \(2, 2\), but item 0 is"),
        ("one", r"must return \(train, test\)"),
        ("tokens", "x has type int64; expected uint8"),
        ("broken", r"train\[2\] raised KeyError: 'lost'"),
        ("NOT_CALLABLE", "not callable"),
        ("bth", "did you mean 'both'"),
    ],
)
def test_a_torch_dataset_that_does_not_fit(tmp_path: Path, module: str, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TorchDataset(f"{module}:{name}").open(None, tmp_path / "cache", 0)


def test_load_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_factory("pathlib:Path.cwd") == Path.cwd
    for ref, message in (
        ("pathlib.Path", "write package.module:name"),
        ("nowhere_at_all:x", "no module 'nowhere_at_all'"),
        ("pathlib:Paht", "pathlib has no 'Paht' .did you mean 'Path'"),
        ("pathlib:Path.cwdd", "pathlib.Path has no 'cwdd'"),
    ):
        with pytest.raises(BadInput, match=message):
            load_factory(ref)
    (tmp_path / "raygrad_test_breaks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match="importing raygrad_test_breaks failed with ZeroDivisionError"):
        load_factory("raygrad_test_breaks:x")


# --- made data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [SyntheticLogistic(5, 20, 6, 4), SyntheticQuadratic(5, 20, 6)])
def test_made_data_are_a_function_of_the_seed_and_a_client_of_its_number(tmp_path: Path, dataset: Dataset) -> None:
    source, same, other = (dataset.open(None, tmp_path, seed) for seed in (1, 1, 2))
    check(source)
    assert source.fingerprint == same.fingerprint != other.fingerprint
    assert source.natural is not None
    assert np.bincount(source.natural).tolist() == [20] * 5
    fewer = type(dataset)(**{**asdict(dataset), "clients": 3}).open(None, tmp_path, 1)  # type: ignore[call-overload]
    assert np.array_equal(fewer.train.x, source.train.x[:60])
    assert len(source.test) == 20


def test_logistic_heterogeneity_grows_with_beta(tmp_path: Path) -> None:
    def spread_of_means(beta: float) -> float:
        x = SyntheticLogistic(40, 50, 10, 5, 0.0, beta).open(None, tmp_path, 0).train.x.reshape(40, 50, 10)
        return float(x.mean(axis=(1, 2)).var())

    # The mean over features and examples is B_k plus noise of variance 1/10 from v_k and some from x.
    assert spread_of_means(0.0) < 0.3
    assert 4 < spread_of_means(9.0) < 16


@pytest.mark.parametrize("h", [0.0, 0.5, 2.0])
def test_quadratic_hessians_and_minimisers_are_as_documented(tmp_path: Path, h: float) -> None:
    source = SyntheticQuadratic(4, 30, 6, h).open(None, tmp_path, 3)
    x, y = source.train.x.reshape(4, 30, 6), source.train.y.reshape(4, 30)
    hessians = np.einsum("cni,cnj->cij", x, x) / 30
    minimisers = np.stack([np.linalg.solve(hessians[c], x[c].T @ y[c] / 30) for c in range(4)])
    assert np.allclose(np.einsum("cni,ci->cn", x, minimisers), y, atol=1e-9)
    base = np.geomspace(0.1, 1.0, 6)
    same = [np.allclose(hessians[0], hessians[c], atol=1e-10) for c in range(1, 4)]
    agree = [np.allclose(minimisers[0], minimisers[c], atol=1e-8) for c in range(1, 4)]
    if h == 0:
        assert all(same)
        assert all(agree)
        assert np.allclose(np.linalg.eigvalsh(hessians[0]), base)
    else:
        assert not any(same)
        assert not any(agree)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyntheticLogistic(clients=0),
        lambda: SyntheticLogistic(alpha=float("nan")),
        lambda: SyntheticQuadratic(heterogeneity=-1),
        lambda: SyntheticQuadratic(examples=5, features=6),
        lambda: ImageFolder("a", channels=2),
        lambda: ImageFolder("a", holdout=1.0),
        lambda: Idx("a", "b", "c"),
        lambda: Transform(mean=(0.5,)),
        lambda: Transform(mean=(0.5,), std=(0.0,)),
        lambda: Transform(augment="flip"),
    ],
)
def test_wrong_settings(make: object) -> None:
    with pytest.raises(BadInput):
        make()  # type: ignore[operator]


# --- the transform --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_transform_is_the_formula_channel_by_channel(dtype: torch.dtype) -> None:
    x = RNG.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    made = Transform(1 / 255, mean, std)(x, dtype, None)
    wanted = (x / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert made.dtype == dtype
    assert np.allclose(made.double().numpy(), wanted, atol=tolerance)
    one = Transform(1 / 255, (0.5,), (0.5,))(x, torch.float64, None).numpy()
    assert np.allclose(one, x / 127.5 - 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("transform", [Transform(), Transform(2.0), Transform(1.0, (0.0,), (1.0,))])
def test_transform_never_gives_a_view(dtype: type, transform: Transform) -> None:
    x = np.ones((3, 4), dtype)
    x.flags.writeable = False
    for wanted in (torch.float32, torch.float64):
        made = transform(x, wanted, None)
        made.zero_()
        assert (x == 1).all()


def test_augmentation_crops_and_flips_and_is_addressed() -> None:
    x = RNG.integers(1, 256, (200, 2, 10, 10), dtype=np.uint8)
    transform = Transform(augment="crop-flip")

    def generator() -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(5))

    made = transform(x, torch.float32, generator()).numpy()
    assert np.array_equal(made, transform(x, torch.float32, generator()).numpy())
    assert np.array_equal(transform(x, torch.float32, None).numpy(), x)
    padded = np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4)))
    found = set()
    for i in range(len(x)):
        windows = {
            (dy, dx, flip): padded[i, :, dy : dy + 10, dx : dx + 10][..., :: -1 if flip else 1]
            for dy in range(9)
            for dx in range(9)
            for flip in (False, True)
        }
        matches = [key for key, window in windows.items() if np.array_equal(window, made[i])]
        assert len(matches) == 1
        found.add(matches[0])
    assert {dy for dy, _, _ in found} == {dx for _, dx, _ in found} == set(range(9))
    assert {flip for _, _, flip in found} == {False, True}
    with pytest.raises(BadInput, match="crop-flip needs images"):
        transform(np.zeros((3, 4), np.uint8), torch.float32, generator())


def test_transform_survives_json_and_refuses_other_channels() -> None:
    transform = Transform(1 / 255, (0.1, 0.2), (0.3, 0.4), "crop-flip")
    assert Transform.from_json(json.loads(json.dumps(asdict(transform)))) == transform
    with pytest.raises(BadInput, match="2 channels"):
        transform(np.zeros((3, 3, 4, 4), np.uint8), torch.float32, None)


# --- the real data beside the repository ----------------------------------------------------------------------------


def shared(*names: str) -> Path:
    for name in names:
        if not (SHARED / name).exists():
            pytest.skip(f"{SHARED / name} is not there")
    return SHARED


def test_real_mnist(tmp_path: Path) -> None:
    source = MNIST().open(shared("MNIST/raw"), tmp_path, 0)
    check(source)
    assert source.train.x.shape == (60_000, 1, 28, 28)
    assert source.test.x.shape == (10_000, 1, 28, 28)
    assert abs(source.train.x.mean() / 255 - 0.13066) < 1e-5
    assert np.bincount(source.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_real_emnist_letters(tmp_path: Path) -> None:
    import hashlib

    source = EMNIST("letters").open(shared("EMNIST/raw"), tmp_path, 0)
    check(source)
    assert source.train.x.shape == (124_800, 1, 28, 28)
    assert np.bincount(source.train.y).tolist() == [4800] * 26
    assert np.bincount(source.test.y).tolist() == [800] * 26
    official = bytes.fromhex("00000803") + struct.pack(">3I", 20_800, 28, 28) + source.test.x.swapaxes(2, 3).tobytes()
    assert hashlib.sha256(official).hexdigest() == "d5895e82d14765b22a84342337bc5c25f1affd61cc97d3821d4e65504bbf8dbc"
    # Upright: the mean letter L (11) has its foot, not its head, along the horizontal stroke.
    mean_l = source.test.x[source.test.y == 11].mean(axis=(0, 1))
    assert mean_l[18:].sum() > mean_l[:10].sum()
    with pytest.raises(BadInput, match="emnist-balanced-train-images-idx3-ubyte"):
        EMNIST("balanced").open(SHARED, tmp_path, 0)


def test_real_emnist47(tmp_path: Path) -> None:
    source = EMNIST47().open(shared("EMNIST47"), tmp_path, 0)
    check(source)
    fewer = {"A": 1932, "B": 1147, "D": 1339, "E": 1535, "G": 771, "H": 967, "Q": 717, "R": 1483}
    fewer |= {"b": 1611, "f": 726, "g": 1045, "q": 920}
    assert np.bincount(source.train.y).tolist() == [fewer.get(name, 2400) for name in source.class_names]
    assert np.bincount(source.test.y).tolist() == [200] * 47
    mapping = [line.split() for line in (SHARED / "EMNIST47/emnist47-mapping.txt").read_text().splitlines()]
    assert source.class_names == tuple(chr(int(code)) for _, code in mapping)


def test_real_cifar10_test_images(tmp_path: Path) -> None:
    import hashlib

    path = shared("CIFAR10/cifar10-test.parquet") / "CIFAR10/cifar10-test.parquet"
    source = ImageParquet(str(path)).open(None, tmp_path, 0)
    check(source)
    assert source.train.x.shape == (10_000, 3, 32, 32)
    assert np.bincount(source.train.y).tolist() == [1000] * 10
    digest = hashlib.sha256(np.ascontiguousarray(source.train.x).tobytes()).hexdigest()
    assert digest == "1fe46ff47f5fb6c1b24f0b5448654cac0e0d3e1e0c16f9cbac842307814b553a"


@pytest.mark.slow
def test_real_cifar10(tmp_path: Path) -> None:
    import hashlib

    source = CIFAR10().open(shared("CIFAR10"), tmp_path, 0)
    check(source)
    assert np.bincount(source.train.y).tolist() == [5000] * 10
    digest = hashlib.sha256(np.ascontiguousarray(source.train.x).tobytes()).hexdigest()
    assert digest == "76e7a2460a01af40f0d1c78185e70b0fbe9026d07eab1cc6dc705349bed73371"
