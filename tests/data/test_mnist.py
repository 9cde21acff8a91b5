"""MNIST and its family, idx files: plain and zipped, damaged, downloaded."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from made_files import RNG, SHARED, break_file, check, listing, shared, write_idx, write_mnist

from raygrad.data.datasets import EMNIST, EMNIST47, MNIST, FashionMNIST, Idx
from raygrad.data.source import Dataset
from raygrad.errors import BadInput

HARMS = ("truncated", "empty", "garbage", "longer", "gone")


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
    with pytest.raises(BadInput, match=r"leters.*did you mean letters\?"):
        EMNIST("leters")


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


def test_real_mnist(tmp_path: Path) -> None:
    source = MNIST().open(shared("MNIST/raw"), tmp_path, 0)
    check(source)
    assert source.train.x.shape == (60_000, 1, 28, 28)
    assert source.test.x.shape == (10_000, 1, 28, 28)
    assert abs(source.train.x.mean() / 255 - 0.13066) < 1e-5
    assert np.bincount(source.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_real_emnist_letters(tmp_path: Path) -> None:
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
