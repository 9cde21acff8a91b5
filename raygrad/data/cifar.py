"""CIFAR-10 and CIFAR-100: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raygrad.data.locate import download, locate, root_of
from raygrad.data.parquet import image_examples
from raygrad.data.source import Examples, Source, numbered
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10: 50,000 + 10,000 colour images 32x32, 10 classes.

    Reads `CIFAR10/cifar10-train.parquet` and `cifar10-test.parquet` (columns png, label), or torchvision's
    `cifar-10-batches-py`. `augment`: random crops and flips in training.
    """

    augment: bool = True

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _files("CIFAR10", data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        transform = Transform.of_images(mean, std, self.augment)
        return _source("CIFAR10", CIFAR10_CLASSES, transform, data_root, cache)


@dataclass(frozen=True)
class CIFAR100:
    """CIFAR-100: 50,000 + 10,000 colour images 32x32, 100 classes.

    Reads `CIFAR100/cifar100-train.parquet` and `cifar100-test.parquet` (columns png, label), or torchvision's
    `cifar-100-python`. `augment`: random crops and flips in training.
    """

    augment: bool = True

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _files("CIFAR100", data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        mean, std = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
        transform = Transform.of_images(mean, std, self.augment)
        return _source("CIFAR100", numbered(100), transform, data_root, cache)


def _layouts(name: str) -> tuple[list[str], list[str]]:
    """The files of CIFAR10 or CIFAR100 as Parquet, and as torchvision keeps them."""
    parquets = [f"{name}/{name.lower()}-{part}.parquet" for part in ("train", "test")]
    if name == "CIFAR100":
        return parquets, ["cifar-100-python/train", "cifar-100-python/test"]
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return parquets, [f"cifar-10-batches-py/{batch}" for batch in batches]


def _files(name: str, data_root: Path | None, cache: Path) -> list[Path] | None:
    parquets, pickles = _layouts(name)
    return locate(parquets, data_root, cache) or locate(pickles, data_root, cache)


def _source(
    name: str, class_names: tuple[str, ...], transform: Transform, data_root: Path | None, cache: Path
) -> Source:
    parquets, pickles = _layouts(name)
    if (found := locate(parquets, data_root, cache)) is not None:
        train, test, _ = image_examples(found, cache, classes=len(class_names), shape=(3, 32, 32))
        return Source.of(train, test, class_names, transform)
    kind, layouts = name.lower(), f"{' and '.join(parquets)}, or torchvision's {pickles[0].partition('/')[0]}/"
    if locate(pickles, data_root, cache) is None:
        if data_root is not None:
            raise BadInput(f"data set {kind}: not found under the data root {data_root}: looked for {layouts}")
        download(kind, name, cache, layouts)

    import torchvision

    root, parts = root_of(data_root, cache), []
    for train_part in (True, False):
        # torchvision checks the MD5 sum of each of these files before it unpickles it.
        try:
            made = getattr(torchvision.datasets, name)(str(root), train=train_part, download=False)
        except (OSError, RuntimeError) as e:
            raise BadInput(f"data set {kind}: {root}: {e}; looked for {layouts}") from e
        x = np.ascontiguousarray(made.data.transpose(0, 3, 1, 2))
        parts.append(Examples(x, np.asarray(made.targets, np.int64)))
    return Source.of(parts[0], parts[1], class_names, transform)
