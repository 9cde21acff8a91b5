"""MNIST and what followed it in the same files, which torchvision can download.

MNIST, LeCun, Cortes and Burges; Fashion-MNIST, Xiao et al. (arXiv:1708.07747); EMNIST, Cohen et al. (arXiv:1702.05373).
"""

import string
from dataclasses import dataclass
from pathlib import Path

from raygrad.data.idx import idx_source
from raygrad.data.locate import locate, obtain
from raygrad.data.source import Source, numbered
from raygrad.data.transform import Transform
from raygrad.naming import unknown

FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
# Fifteen letters whose upper and lower case look alike are one class in ByMerge and Balanced.
MERGED_47 = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")
EMNIST_CLASSES = {
    "byclass": tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase),
    "bymerge": MERGED_47,
    "balanced": MERGED_47,
    "letters": tuple(string.ascii_lowercase),
    "digits": numbered(10),
    "mnist": numbered(10),
}
"""The classes of each split of EMNIST, in the order of the labels."""


@dataclass(frozen=True)
class MNIST:
    """MNIST: 60,000 + 10,000 images 28x28, 10 classes. Reads `MNIST/raw/train-images-idx3-ubyte[.gz]` and so on."""

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return locate(_idx_names("MNIST/raw/", "t10k"), data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = obtain("mnist", "MNIST", _idx_names("MNIST/raw/", "t10k"), data_root, cache)
        return idx_source("mnist", paths, cache, numbered(10), Transform.of_images((0.1307,), (0.3081,)))


@dataclass(frozen=True)
class FashionMNIST:
    """Fashion-MNIST: 60,000 + 10,000 images 28x28, 10 classes.

    Reads `FashionMNIST/raw/train-images-idx3-ubyte[.gz]` and so on.
    """

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return locate(_idx_names("FashionMNIST/raw/", "t10k"), data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = obtain("fashion-mnist", "FashionMNIST", _idx_names("FashionMNIST/raw/", "t10k"), data_root, cache)
        return idx_source("fashion-mnist", paths, cache, FASHION_CLASSES, Transform.of_images((0.2860,), (0.3530,)))


@dataclass(frozen=True)
class EMNIST:
    """EMNIST, any of its six splits; images 28x28, made upright; letters are classes 0..25.

    Reads `EMNIST/raw/emnist-<split>-train-images-idx3-ubyte[.gz]` and so on.
    """

    split: str = "balanced"

    def __post_init__(self) -> None:
        if self.split not in EMNIST_CLASSES:
            raise unknown("emnist split", self.split, EMNIST_CLASSES)

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return locate(_idx_names(f"EMNIST/raw/emnist-{self.split}-"), data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        names = _idx_names(f"EMNIST/raw/emnist-{self.split}-")
        paths = obtain("emnist", "EMNIST", names, data_root, cache, split=self.split)
        classes, first = EMNIST_CLASSES[self.split], 1 if self.split == "letters" else 0
        transform = Transform.of_images((0.5,), (0.5,))
        return idx_source(f"emnist {self.split}", paths, cache, classes, transform, first, transposed=True)


@dataclass(frozen=True)
class EMNIST47:
    """A 47-class subset of EMNIST in the ByMerge labelling with a split of its own: not EMNIST Balanced.

    Reads `EMNIST47/emnist47-train-images-idx3-ubyte[.gz]` and so on under the data root; cannot be downloaded.
    """

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return locate(_idx_names("EMNIST47/emnist47-"), data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = obtain("emnist47", None, _idx_names("EMNIST47/emnist47-"), data_root, cache)
        return idx_source("emnist47", paths, cache, MERGED_47, Transform.of_images((0.5,), (0.5,)), transposed=True)


def _idx_names(prefix: str, test: str = "test") -> list[str]:
    """Train images, train labels, test images, test labels."""
    return [f"{prefix}{part}-{kind}-ubyte" for part in ("train", test) for kind in ("images-idx3", "labels-idx1")]
