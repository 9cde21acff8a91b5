"""What a data set is: a frozen dataclass whose `open` reads its files into a `Source` of training and test examples."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from raygrad.data.transform import Transform
from raygrad.rng import Purpose, rng


@dataclass(frozen=True)
class Examples:
    """`x` [n, *shape]: uint8 images [n, channels, height, width], or float32 or float64 features; may be a memory map.

    `y` [n]: int64 classes in 0..classes-1, or float64 targets.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def none(self) -> "Examples":
        """No examples, of the same shape and types."""
        return Examples(np.empty((0, *self.x.shape[1:]), self.x.dtype), np.empty(0, self.y.dtype))


@dataclass(frozen=True)
class Source:
    """An opened data set. `test` may be empty where a user's own data has no test set.

    `classes` is None for regression. `natural` [n_train] int64 says whose each training example is (ids 0..N-1, each
    used), None where the data set has no clients of its own. `fingerprint` changes with the content; it is
    the same for a file and its .gz.
    """

    train: Examples
    test: Examples
    classes: int | None
    class_names: tuple[str, ...]
    natural: np.ndarray | None
    transform: Transform
    fingerprint: str

    @staticmethod
    def of(
        train: Examples,
        test: Examples,
        class_names: tuple[str, ...] | None,
        transform: Transform,
        natural: np.ndarray | None = None,
    ) -> "Source":
        """A source with its fingerprint; `class_names` is None for regression."""
        classes = None if class_names is None else len(class_names)
        digest = _fingerprint(train, test, natural)
        return Source(train, test, classes, class_names or (), natural, transform, digest)


@runtime_checkable
class Dataset(Protocol):
    """A frozen dataclass whose fields are its settings (JSON types and tuples of them)."""

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """Read the data.

        `data_root`: the folder that holds the data sets, only read; None: torchvision downloads into `cache` where it
        can. `cache`: a folder for what has to be decoded. `seed`: the run's; only made data depend on it.

        Errors: BadInput for files that are missing or damaged, naming the file and what was expected.
        """
        ...


@runtime_checkable
class HasFiles(Protocol):
    """A data set that can say which files it would read, so that prepared shards are reused without opening them."""

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """Every file that `open` reads; None while they are not all there, or cannot be told."""
        ...


def numbered(classes: int) -> tuple[str, ...]:
    """The names of classes that have none: "0", "1" and so on."""
    return tuple(str(i) for i in range(classes))


def hold_out(y: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the kept and of the held-out examples: `fraction` of each class, the same in every run."""
    held = np.zeros(len(y), bool)
    for cls in np.unique(y):
        of_class = np.flatnonzero(y == cls)
        # A third number in the key keeps this draw apart from every validation split of a run.
        order = rng(0, Purpose.VALIDATION, int(cls), len(y)).permutation(of_class)
        held[order[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _fingerprint(train: Examples, test: Examples, natural: np.ndarray | None) -> str:
    """Over shapes, all labels and client ids, and the first and last MiB of the examples of each part."""
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(f"{part.x.shape}{part.x.dtype}{part.y.dtype}".encode())
        digest.update(np.ascontiguousarray(part.y).data)
        if part.x.size:
            rows = max(1, (1 << 20) * len(part.x) // part.x.nbytes)
            digest.update(np.ascontiguousarray(part.x[:rows]).data)
            digest.update(np.ascontiguousarray(part.x[-rows:]).data)
    if natural is not None:
        digest.update(np.ascontiguousarray(natural).data)
    return digest.hexdigest()
