"""What holds for data sets of every kind: settings, downloads; and scikit-learn's digits."""

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import check

from raygrad.data.datasets import (
    CIFAR10,
    CIFAR100,
    DATASETS,
    EMNIST,
    EMNIST47,
    MNIST,
    Digits,
    FashionMNIST,
    Idx,
    ImageFolder,
    SyntheticLogistic,
    SyntheticQuadratic,
)
from raygrad.data.source import Dataset, HasFiles
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

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
    assert is_dataclass(dataset)
    again = type(dataset)(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(json.dumps(asdict(dataset))).items()}
    )
    assert again == dataset
    assert hash(again) == hash(dataset)
    assert all(f.init for f in fields(dataset))
    assert isinstance(dataset, Dataset)
    assert isinstance(dataset, HasFiles)


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


def test_with_a_data_root_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *a, **k: pytest.fail("downloads"))
    with pytest.raises(BadInput, match=r"4 of 4 files are missing.*MNIST/raw/t10k-images-idx3-ubyte.*\.gz"):
        MNIST().open(tmp_path, tmp_path / "cache", 0)
    with pytest.raises(BadInput, match=r"CIFAR10/cifar10-train\.parquet.*cifar-10-batches-py"):
        CIFAR10().open(tmp_path, tmp_path / "cache", 0)


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
