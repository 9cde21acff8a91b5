"""Where examples come from: each data set is a frozen dataclass whose `open` reads its files into a `Source`.

`open` never writes under the data root. What has to be decoded (gzip, PNG, Parquet) is staged once as an uncompressed
memory map in `cache`, in bounded memory, under a name that is a function of the content of the files.

Sources of the data: MNIST, LeCun, Cortes and Burges; Fashion-MNIST, Xiao et al. (arXiv:1708.07747); EMNIST, Cohen et
al. (arXiv:1702.05373); CIFAR, Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); digits,
Alpaydin and Kaynak, UCI machine learning repository, as shipped with scikit-learn; the logistic problem, Li et al.,
"Federated Optimization in Heterogeneous Networks" (arXiv:1812.06127).
"""

import difflib
import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import os
import string
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

import numpy as np

from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

CHUNK_BYTES = 1 << 24  # what is decoded at a time
UNIT = 1 / 255  # the scale of 8-bit images
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
EMNIST_SPLITS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DIGITS = tuple(string.digits)
# Fifteen letters whose upper and lower case look alike are one class in ByMerge and Balanced.
MERGED_47 = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")
EMNIST_CLASSES = {
    "byclass": tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase),
    "bymerge": MERGED_47,
    "balanced": MERGED_47,
    "letters": tuple(string.ascii_lowercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}


@dataclass(frozen=True)
class Examples:
    """`x` [n, *shape]: uint8 images [n, channels, height, width], or float32 or float64 features; may be a memory map.

    `y` [n]: int64 classes in 0..classes-1, or float64 targets.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


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


# ---------------------------------------------------------------------------------------------------------------------
# The data sets


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits, 8x8, 10 classes. Needs no files.

    Every fifth example of each class, drawn once and for all, is the test set: it does not depend on the run's seed.
    """

    def files(self, data_root: Path | None, cache: Path) -> list[Path]:
        """See `HasFiles.files`."""
        return []

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        from sklearn.datasets import load_digits

        pixels, target = load_digits(return_X_y=True)  # whole numbers in 0..16
        x = np.asarray(pixels).astype(np.uint8).reshape(-1, 1, 8, 8)
        y = np.asarray(target).astype(np.int64)
        train, test = _hold_out(y, 0.2)
        # The mean and standard deviation of the training pixels, of which the highest is 16.
        transform = Transform(scale=1 / 16, mean=(0.3048,), std=(0.3759,))
        return _source(Examples(x[train], y[train]), Examples(x[test], y[test]), DIGITS, transform)


@dataclass(frozen=True)
class MNIST:
    """MNIST: 60,000 + 10,000 images 28x28, 10 classes. Reads `MNIST/raw/train-images-idx3-ubyte[.gz]` and so on."""

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _locate(_root(data_root, cache), _mnist_names("MNIST/raw"))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = _obtain("mnist", "MNIST", _mnist_names("MNIST/raw"), data_root, cache)
        return _open_idx("mnist", paths, cache, DIGITS, Transform(UNIT, (0.1307,), (0.3081,)))


@dataclass(frozen=True)
class FashionMNIST:
    """Fashion-MNIST: 60,000 + 10,000 images 28x28, 10 classes.

    Reads `FashionMNIST/raw/train-images-idx3-ubyte[.gz]` and so on.
    """

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _locate(_root(data_root, cache), _mnist_names("FashionMNIST/raw"))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = _obtain("fashion-mnist", "FashionMNIST", _mnist_names("FashionMNIST/raw"), data_root, cache)
        return _open_idx("fashion-mnist", paths, cache, FASHION_CLASSES, Transform(UNIT, (0.2860,), (0.3530,)))


@dataclass(frozen=True)
class EMNIST:
    """EMNIST, any of its six splits; images 28x28, made upright; letters are classes 0..25.

    Reads `EMNIST/raw/emnist-<split>-train-images-idx3-ubyte[.gz]` and so on.
    """

    split: str = "balanced"

    def __post_init__(self) -> None:
        if self.split not in EMNIST_SPLITS:
            raise BadInput(
                f"data set emnist: unknown split {self.split!r}{_nearest(self.split, EMNIST_SPLITS)}; "
                f"there is {', '.join(EMNIST_SPLITS)}"
            )

    def _names(self) -> list[str]:
        return _emnist_names(f"EMNIST/raw/emnist-{self.split}")

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _locate(_root(data_root, cache), self._names())

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = _obtain("emnist", "EMNIST", self._names(), data_root, cache, split=self.split)
        names, first = EMNIST_CLASSES[self.split], 1 if self.split == "letters" else 0
        transform = Transform(UNIT, (0.5,), (0.5,))
        return _open_idx(f"emnist {self.split}", paths, cache, names, transform, first_label=first, transposed=True)


@dataclass(frozen=True)
class EMNIST47:
    """A 47-class subset of EMNIST in the ByMerge labelling with a split of its own: not EMNIST Balanced.

    Reads `EMNIST47/emnist47-train-images-idx3-ubyte[.gz]` and so on under the data root; cannot be downloaded.
    """

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _locate(_root(data_root, cache), _emnist_names("EMNIST47/emnist47"))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = _obtain("emnist47", None, _emnist_names("EMNIST47/emnist47"), data_root, cache)
        return _open_idx("emnist47", paths, cache, MERGED_47, Transform(UNIT, (0.5,), (0.5,)), transposed=True)


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10: 50,000 + 10,000 colour images 32x32, 10 classes.

    Reads `CIFAR10/cifar10-train.parquet` and `cifar10-test.parquet` (columns png, label), or torchvision's
    `cifar-10-batches-py`. `augment`: random crops and flips in training.
    """

    augment: bool = True

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _cifar_files("CIFAR10", data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        transform = Transform(
            UNIT, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "crop-flip" if self.augment else "none"
        )
        return _open_cifar("CIFAR10", CIFAR10_CLASSES, transform, data_root, cache)


@dataclass(frozen=True)
class CIFAR100:
    """CIFAR-100: 50,000 + 10,000 colour images 32x32, 100 classes.

    Reads `CIFAR100/cifar100-train.parquet` and `cifar100-test.parquet` (columns png, label), or torchvision's
    `cifar-100-python`. `augment`: random crops and flips in training.
    """

    augment: bool = True

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _cifar_files("CIFAR100", data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        transform = Transform(
            UNIT, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615), "crop-flip" if self.augment else "none"
        )
        return _open_cifar("CIFAR100", tuple(str(i) for i in range(100)), transform, data_root, cache)


@dataclass(frozen=True)
class Idx:
    """The user's own idx files of unsigned bytes, plain or .gz: images [n, h, w] or [n, c, h, w], labels [n] from 0.

    Paths are relative to the data root where one is given. Without test files the test set is empty.
    """

    train_images: str
    train_labels: str
    test_images: str | None = None
    test_labels: str | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augment: bool = False

    def __post_init__(self) -> None:
        if (self.test_images is None) != (self.test_labels is None):
            raise BadInput("data set idx: give both test_images and test_labels, or neither")

    def _paths(self, data_root: Path | None) -> list[Path]:
        named = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return [_resolve(name, data_root) for name in named if name is not None]

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _if_all_exist(self._paths(data_root))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        return _open_idx("idx", _must_exist("idx", self._paths(data_root)), cache, None, _image_transform(self))


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, one subfolder per class (torchvision's ImageFolder layout), decoded to size x size pixels.

    With `path/train/<class>/` and `path/test/<class>/` these are the parts; otherwise `path/<class>/`, of which the
    fraction `holdout` of each class, drawn once and for all, is the test set. Images are scaled to cover the square
    and cut in the middle. `channels` is 3 (RGB) or 1 (grey).
    """

    path: str
    size: int = 32
    channels: int = 3
    holdout: float = 0.2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augment: bool = False

    def __post_init__(self) -> None:
        _at_least("image-folder", "size", self.size, 1)
        if self.channels not in (1, 3):
            raise BadInput(f"data set image-folder: channels = {self.channels}; it must be 1 (grey) or 3 (RGB)")
        if not 0 <= self.holdout < 1:
            raise BadInput(f"data set image-folder: holdout = {self.holdout}; it must be in [0, 1)")

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        root = _resolve(self.path, data_root)
        return _image_paths(root) if root.is_dir() else None

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        root = _resolve(self.path, data_root)
        has_test = (root / "train").is_dir() and (root / "test").is_dir()
        train_root = root / "train" if has_test else root
        names, train_paths, train_y = _scan_images(train_root)
        if has_test:
            test_names, test_paths, test_y = _scan_images(root / "test")
            if unknown := sorted(set(test_names) - set(names)):
                raise BadInput(f"{root / 'test'}: class folder {unknown[0]!r} is not among those of {root / 'train'}")
            test_y = np.array([names.index(test_names[label]) for label in test_y], np.int64)
            train, test = self._stage(train_paths, train_y, cache), self._stage(test_paths, test_y, cache)
        else:
            train, test = (
                self._stage([train_paths[i] for i in part], train_y[part], cache)
                for part in _hold_out(train_y, self.holdout)
            )
        return _source(train, test, names, _image_transform(self))

    def _stage(self, paths: list[Path], y: np.ndarray, cache: Path) -> Examples:
        shape = (self.channels, self.size, self.size)
        key = hashlib.sha256(repr(shape).encode())
        for path in paths:
            stat = path.stat()
            key.update(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())

        def decoded() -> Iterator[np.ndarray]:
            for path in paths:
                with _image(path, str(path)) as image:
                    yield _fitted(image, self.size, self.channels)[None]

        return Examples(_stage(cache, f"folder-{key.hexdigest()[:24]}", (len(paths), *shape), np.uint8, decoded()), y)


@dataclass(frozen=True)
class ImageParquet:
    """Parquet files with one encoded image per row: column `png` (or `image`, bytes), column `label` (integer or text).

    All images have the size of the first. Paths are relative to the data root where one is given. Without `test` the
    test set is empty.
    """

    train: str
    test: str | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augment: bool = False

    def _paths(self, data_root: Path | None) -> list[Path]:
        return [_resolve(name, data_root) for name in (self.train, self.test) if name is not None]

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return _if_all_exist(self._paths(data_root))

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        paths = _must_exist("image-parquet", self._paths(data_root))
        train, test, names = _open_image_parquet(paths, cache)
        return _source(train, test, names, _image_transform(self))


@dataclass(frozen=True)
class ParquetTable:
    """Rows of numbers in Parquet files (a file or a folder of them), with a client column: a natural partition.

    `features`: the feature columns (numbers, or one list of numbers per row), () for all but `client` and `label`.
    `label`: integers or text (classes) or floats (regression). `client`: None where there is no such column.
    Paths are relative to the data root where one is given. Without `test` the test set is empty.
    """

    path: str
    label: str = "label"
    client: str | None = "client"
    features: tuple[str, ...] = ()
    test: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        found = [path for name in self._names() for path in _parquet_files(_resolve(name, data_root))]
        return _if_all_exist(found)

    def _names(self) -> list[str]:
        return [name for name in (self.path, self.test) if name is not None]

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        parts = [_must_exist("parquet", _parquet_files(_resolve(name, data_root))) for name in self._names()]
        labels = [_column(files, self.label) for files in parts]
        y, names = _encode_labels(labels, [str(files[0]) for files in parts], regression=True)
        natural = None
        if self.client is not None:
            natural = np.unique(_column(parts[0], self.client), return_inverse=True)[1].astype(np.int64)
        drop = {self.label, self.client}
        schema = _parquet_schema(parts[0][0])
        columns = self.features or tuple(name for name in schema.names if name not in drop)
        dtype = _feature_dtype(schema, columns, parts[0][0])
        x = [_stage_table(files, columns, len(labels[i]), dtype, cache) for i, files in enumerate(parts)]
        train = Examples(x[0], y[0])
        test = Examples(x[1], y[1]) if len(parts) == 2 else _no_examples(train)
        return _source(train, test, names, Transform(), natural=natural)


@dataclass(frozen=True)
class TorchDataset:
    """Any torch Datasets: `factory="pkg.mod:callable"` returns (train, test), map-style, of (x, y) pairs.

    `x` is a tensor, array or PIL image, always of one shape, uint8 or float; `y` an integer (class) or a float
    (regression). `test` may be None. Items are read once; random transforms inside are frozen as they fall. Shards made
    from it are reused while the module's file and `version` stay the same: change `version` when the data changed.
    """

    factory: str
    version: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: bool = False

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        try:
            spec = importlib.util.find_spec(self.factory.partition(":")[0])
        except (ImportError, ValueError):
            return None
        return None if spec is None or not spec.origin else _if_all_exist([Path(spec.origin)])

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        factory = load_factory(self.factory)
        if not callable(factory):
            raise BadInput(f"data set torch: {self.factory} is not callable; it must return (train, test)")
        made = factory()
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise BadInput(
                f"data set torch: {self.factory}() returned {type(made).__name__}; it must return (train, test)"
            )
        train = _stage_items(made[0], f"{self.factory} train", cache)
        test = _no_examples(train) if made[1] is None else _stage_items(made[1], f"{self.factory} test", cache)
        if train.y.dtype != test.y.dtype:
            raise BadInput(
                f"data set torch: {self.factory}: the labels are {train.y.dtype} in train and {test.y.dtype} in test"
            )
        names = None
        if train.y.dtype == np.int64:
            classes = int(max(train.y.max(), test.y.max(initial=0))) + 1
            given = getattr(made[0], "classes", None)
            given = tuple(map(str, given)) if isinstance(given, list | tuple) and len(given) >= classes else None
            names = given or tuple(str(i) for i in range(classes))
        return _source(train, test, names, _image_transform(self, scale=UNIT if train.x.dtype == np.uint8 else 1.0))


@dataclass(frozen=True)
class SyntheticLogistic:
    """The heterogeneous logistic problem Synthetic(alpha, beta) of the FedProx paper; the clients are the partition.

    Client k: u_k ~ N(0, alpha), B_k ~ N(0, beta) (variances); W_k, b_k ~ N(u_k, 1), v_k ~ N(B_k, 1) entrywise;
    x ~ N(v_k, diag(j^-1.2)), y = argmax(W_k x + b_k). `examples` per client for training and a fifth as many, at least
    one, for the test set. Held in memory while it is prepared.
    """

    clients: int = 30
    examples: int = 100
    features: int = 60
    classes: int = 10
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("examples", 1), ("features", 1), ("classes", 2)):
            _at_least("synthetic-logistic", name, getattr(self, name), least)
        for name in ("alpha", "beta"):
            _in_range("synthetic-logistic", name, getattr(self, name), 0, 1e6)

    def files(self, data_root: Path | None, cache: Path) -> list[Path]:
        """See `HasFiles.files`."""
        return []

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        total = self.examples + max(1, self.examples // 5)
        x = np.empty((self.clients, total, self.features), np.float32)
        y = np.empty((self.clients, total), np.int64)
        spread = np.arange(1, self.features + 1) ** -0.6  # the standard deviations
        for k in range(self.clients):
            draw = rng(seed, Purpose.SYNTHETIC, k)
            u, b_mean = draw.standard_normal(2) * np.sqrt([self.alpha, self.beta])
            weight = u + draw.standard_normal((self.features, self.classes))
            bias = u + draw.standard_normal(self.classes)
            centre = b_mean + draw.standard_normal(self.features)
            inputs = centre + draw.standard_normal((total, self.features)) * spread
            x[k], y[k] = inputs, np.argmax(inputs @ weight + bias, axis=1)
        names = tuple(str(i) for i in range(self.classes))
        return _synthetic_source(x, y, self.examples, names)


@dataclass(frozen=True)
class SyntheticQuadratic:
    """Least squares with a different Hessian and a different minimiser at each client; the clients are the partition.

    Client i: f_i(w) = mean over its examples of (a.w - b)^2 / 2 has exactly the Hessian
    H_i = O_i^T diag(lambda exp(h u_i)) O_i, lambda from 1 down to 1/10, and the minimiser w_i = w* + h z_i with
    f_i(w_i) = 0; h is `heterogeneity`, u_i and z_i are standard normal, O_i a rotation that grows with h. At h = 0 all
    clients have the same objective. float64. `examples` per client for training, at least `features`, and a fifth as
    many, at least one, for the test set. Held in memory while it is prepared.
    """

    clients: int = 10
    examples: int = 50
    features: int = 10
    heterogeneity: float = 1.0

    def __post_init__(self) -> None:
        for name in ("clients", "examples", "features"):
            _at_least("synthetic-quadratic", name, getattr(self, name), 1)
        _in_range("synthetic-quadratic", "heterogeneity", self.heterogeneity, 0, 10)
        if self.examples < self.features:
            raise BadInput(
                f"data set synthetic-quadratic: examples = {self.examples} per client, fewer than the {self.features} "
                "features; a client's minimiser would not be unique"
            )

    def files(self, data_root: Path | None, cache: Path) -> list[Path]:
        """See `HasFiles.files`."""
        return []

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        p, n, h = self.features, self.examples, self.heterogeneity
        total = n + max(1, n // 5)
        x = np.empty((self.clients, total, p))
        y = np.empty((self.clients, total))
        eigenvalues = np.geomspace(1.0, 0.1, p)
        centre = rng(seed, Purpose.SYNTHETIC).standard_normal(p)
        for i in range(self.clients):
            draw = rng(seed, Purpose.SYNTHETIC, i)
            minimiser = centre + h * draw.standard_normal(p)
            root = (
                np.sqrt(eigenvalues * np.exp(h * draw.standard_normal(p)))[:, None]
                * np.linalg.qr(np.eye(p) + h * draw.standard_normal((p, p)))[0]
            )
            directions = draw.standard_normal((total, p))
            # Orthonormal columns make the training Hessian exact; the test examples have it in expectation.
            directions[:n] = np.linalg.qr(directions[:n])[0] * np.sqrt(n)
            x[i] = directions @ root
            y[i] = x[i] @ minimiser
        return _synthetic_source(x, y, n, None)


DATASETS: dict[str, type] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "emnist": EMNIST,
    "emnist47": EMNIST47,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "idx": Idx,
    "image-folder": ImageFolder,
    "image-parquet": ImageParquet,
    "parquet": ParquetTable,
    "torch": TorchDataset,
    "synthetic-logistic": SyntheticLogistic,
    "synthetic-quadratic": SyntheticQuadratic,
}
"""Every data set by the name that commands and experiments use."""


def load_factory(ref: str) -> object:
    """The object that `"pkg.mod:attribute"` names (the attribute may be dotted).

    Errors: BadInput when there is no such module or attribute (with the nearest name), or the import fails.
    """
    module_name, colon, attribute = ref.partition(":")
    if not (module_name and colon and attribute):
        raise BadInput(f"{ref!r} does not name an object; write package.module:name")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise BadInput(f"{ref!r}: there is no module {e.name!r} on Python's path; install it or set PYTHONPATH") from e
    except Exception as e:
        raise BadInput(f"{ref!r}: importing {module_name} failed with {type(e).__name__}: {e}") from e
    at = module_name
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise BadInput(f"{ref!r}: {at} has no {name!r}{_nearest(name, public)}")
        found, at = getattr(found, name), f"{at}.{name}"
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Sources


def _source(
    train: Examples,
    test: Examples,
    names: tuple[str, ...] | None,
    transform: Transform,
    natural: np.ndarray | None = None,
) -> Source:
    classes = None if names is None else len(names)
    return Source(train, test, classes, names or (), natural, transform, _fingerprint(train, test, natural))


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


def _no_examples(like: Examples) -> Examples:
    return Examples(np.empty((0, *like.x.shape[1:]), like.x.dtype), np.empty(0, like.y.dtype))


def _synthetic_source(x: np.ndarray, y: np.ndarray, examples: int, names: tuple[str, ...] | None) -> Source:
    """From x [N, total, features] and y [N, total]; the first `examples` of each client are for training."""

    def part(rows: slice) -> Examples:
        return Examples(x[:, rows].reshape(-1, x.shape[2]), y[:, rows].reshape(-1))

    natural = np.repeat(np.arange(len(x)), examples)
    return _source(part(slice(examples)), part(slice(examples, None)), names, Transform(), natural)


def _hold_out(y: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the kept and of the held-out examples: `fraction` of each class, the same in every run."""
    held = np.zeros(len(y), bool)
    for cls in np.unique(y):
        of_class = np.flatnonzero(y == cls)
        # A third number in the key keeps this draw apart from every validation split of a run.
        order = rng(0, Purpose.VALIDATION, int(cls), len(y)).permutation(of_class)
        held[order[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


class _ImageSettings(Protocol):
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def augment(self) -> bool: ...


def _image_transform(settings: _ImageSettings, scale: float = UNIT) -> Transform:
    return Transform(scale, tuple(settings.mean), tuple(settings.std), "crop-flip" if settings.augment else "none")


# ---------------------------------------------------------------------------------------------------------------------
# Finding files


def _mnist_names(folder: str) -> list[str]:
    return [f"{folder}/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def _emnist_names(prefix: str) -> list[str]:
    return [f"{prefix}-{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")]


def _root(data_root: Path | None, cache: Path) -> Path:
    return cache / "torchvision" if data_root is None else data_root


def _locate(root: Path, names: Sequence[str]) -> list[Path] | None:
    """Each file under `root`, plain or .gz; None when one is missing."""
    found = []
    for name in names:
        here = [path for path in (root / name, root / f"{name}.gz") if path.is_file()]
        if not here:
            return None
        found.append(here[0])
    return found


def _obtain(
    kind: str, torchvision_name: str | None, names: list[str], data_root: Path | None, cache: Path, **options: str
) -> list[Path]:
    """The files `names` of the data root, or of torchvision's download where no data root is given."""
    root = _root(data_root, cache)
    found = _locate(root, names)
    if found is not None:
        return found
    if data_root is not None:
        missing = [name for name in names if _locate(root, [name]) is None]
        raise BadInput(
            f"data set {kind}: {len(missing)} of {len(names)} files are missing under the data root {data_root}: "
            f"looked for {', '.join(missing)}, plain or with .gz"
        )
    if torchvision_name is None:
        raise BadInput(
            f"data set {kind} cannot be downloaded: give --data-root DIR, a folder with {', '.join(names)}, "
            "plain or with .gz"
        )
    _download(kind, torchvision_name, root, ", ".join(names) + ", plain or with .gz", **options)
    found = _locate(root, names)
    if found is None:
        raise BadInput(f"data set {kind}: torchvision's download into {root} left out some of {', '.join(names)}")
    return found


def _download(kind: str, torchvision_name: str, root: Path, layout: str, **options: str) -> None:
    import torchvision

    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, torchvision_name)(str(root), download=True, **options)
    except (OSError, RuntimeError, EOFError, ValueError, zlib.error) as e:
        reason = next(iter(str(e).strip().splitlines()[::-1]), type(e).__name__)
        raise BadInput(
            f"data set {kind} could not be downloaded ({reason}): give --data-root DIR, a folder with {layout}"
        ) from e


def _resolve(name: str, data_root: Path | None) -> Path:
    """A path that the user gave: relative to the data root where there is one."""
    path = Path(name).expanduser()
    return path if data_root is None else data_root / path


def _if_all_exist(paths: list[Path]) -> list[Path] | None:
    return paths if paths and all(path.is_file() for path in paths) else None


def _must_exist(kind: str, paths: list[Path]) -> list[Path]:
    for path in paths:
        if not path.is_file():
            raise BadInput(f"data set {kind}: there is no file {path}")
    return paths


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _at_least(kind: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise BadInput(f"data set {kind}: {name} = {value}; it must be at least {least}")


def _in_range(kind: str, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadInput(f"data set {kind}: {name} = {value}; it must be in [{low:g}, {high:g}]")


# ---------------------------------------------------------------------------------------------------------------------
# Staging


@contextmanager
def _reading(where: str, expected: str) -> Iterator[None]:
    """Turns what a damaged file makes the decoders raise into BadInput."""
    try:
        yield
    except (OSError, EOFError, ValueError, SyntaxError, zlib.error, struct.error) as e:
        raise BadInput(f"{where}: {str(e) or type(e).__name__}; expected {expected}") from e


def _file_digest(path: Path) -> str:
    with _reading(str(path), "a readable file"), path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:24]


def _stage(
    cache: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: "np.dtype | type",
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


# ---------------------------------------------------------------------------------------------------------------------
# idx files


def _open_idx(
    kind: str,
    paths: list[Path],
    cache: Path,
    names: tuple[str, ...] | None,
    transform: Transform,
    first_label: int = 0,
    transposed: bool = False,
) -> Source:
    """Train images, train labels and, where given, test images and test labels."""
    parts = []
    for images, labels in zip(paths[::2], paths[1::2], strict=True):
        x = _idx_images(images, cache)
        y = _idx_array(labels, (1,)).astype(np.int64) - first_label
        if len(x) != len(y):
            raise BadInput(f"{images} has {len(x)} images, but {labels} has {len(y)} labels")
        count = len(names) if names else 256
        if len(y) and not (y.min() >= 0 and y.max() < count):
            raise BadInput(
                f"{labels}: labels from {y.min() + first_label} to {y.max() + first_label}; "
                f"{kind} has labels {first_label}..{first_label + count - 1}"
            )
        x = x.swapaxes(-1, -2) if transposed else x
        parts.append(Examples(x[:, None] if x.ndim == 3 else x, y))
    if not len(parts[0]):
        raise BadInput(f"{paths[0]}: it has no images")
    train = parts[0]
    test = parts[1] if len(parts) == 2 else _no_examples(train)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise BadInput(f"{paths[2]}: images of shape {test.x.shape[1:]}, those of {paths[0]} have {train.x.shape[1:]}")
    if names is None:
        names = tuple(str(i) for i in range(int(max(train.y.max(), test.y.max(initial=0))) + 1))
    return _source(train, test, names, transform)


@contextmanager
def _idx(path: Path, dimensions: tuple[int, ...]) -> Iterator[tuple[BinaryIO, tuple[int, ...], bool]]:
    """An idx file of unsigned bytes, open after its header: the stream, its sizes, and whether it is gzipped."""
    expected = f"an idx file of unsigned bytes with {' or '.join(map(str, dimensions))} dimension(s), plain or .gz"
    with _reading(str(path), expected), path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in dimensions:
            raise BadInput(f"{path}: it starts with {magic.hex() or 'nothing'}; expected {expected}")
        yield stream, struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3])), zipped  # type: ignore[misc]


def _idx_chunks(path: Path, dimensions: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The file's examples, some at a time; BadInput unless it holds exactly as many as its header says."""
    with _idx(path, dimensions) as (stream, shape, _):
        row = max(1, int(np.prod(shape[1:])))
        rows = max(1, CHUNK_BYTES // row)
        for start in range(0, shape[0], rows):
            wanted = min(rows, shape[0] - start) * row
            data = stream.read(wanted)
            if len(data) != wanted:
                raise _idx_wrong_size(path, shape, start * row + len(data))
            yield np.frombuffer(data, np.uint8).reshape(-1, *shape[1:])
        if stream.read(1):
            raise _idx_wrong_size(path, shape, None)


def _idx_wrong_size(path: Path, shape: tuple[int, ...], found: int | None) -> BadInput:
    what = "there is more after them" if found is None else f"it ends after {found:,}: truncated"
    return BadInput(f"{path}: expected {int(np.prod(shape)):,} bytes for {' x '.join(map(str, shape))}, but {what}")


def _idx_array(path: Path, dimensions: tuple[int, ...]) -> np.ndarray:
    chunks = list(_idx_chunks(path, dimensions))
    return np.concatenate(chunks) if chunks else np.empty(0, np.uint8)


def _idx_images(path: Path, cache: Path) -> np.ndarray:
    """Images [n, h, w] or [n, c, h, w] as a read-only memory map: of the file itself, or staged where it is gzipped."""
    with _idx(path, (3, 4)) as (stream, shape, zipped):
        if zipped:
            name = f"idx-{_file_digest(path)}"
            return _stage(cache, name, shape, np.uint8, _idx_chunks(path, (3, 4)))
        offset, size = stream.tell(), path.stat().st_size
        if size - offset != np.prod(shape):
            raise _idx_wrong_size(path, shape, size - offset if size - offset < np.prod(shape) else None)
        return np.memmap(path, np.uint8, "r", offset, shape) if np.prod(shape) else np.empty(shape, np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Images


@contextmanager
def _image(file: "Path | BinaryIO", where: str) -> Iterator["Image"]:
    from PIL import Image

    with _reading(where, "an image that Pillow can read"):
        try:
            with Image.open(file) as image:
                image.load()
                yield image
        except Image.DecompressionBombError as e:
            raise BadInput(f"{where}: {e}") from e


def _pixels(image: "Image", channels: int) -> np.ndarray:
    """[channels, height, width] uint8."""
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _fitted(image: "Image", size: int, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    return _pixels(ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR), channels)


def _image_paths(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _scan_images(root: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Class names (the subfolders of `root`, sorted), image paths and the class of each image."""
    if not root.is_dir():
        raise BadInput(f"data set image-folder: there is no folder {root}; expected one with a subfolder per class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    per_class = [_image_paths(folder) for folder in folders]
    if not folders:
        raise BadInput(f"{root}: it has no subfolders; expected one folder of images per class")
    for folder, images in zip(folders, per_class, strict=True):
        if not images:
            raise BadInput(
                f"{folder}: it has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); expected at least one per class"
            )
    y = np.repeat(np.arange(len(folders)), [len(images) for images in per_class])
    return tuple(folder.name for folder in folders), [path for images in per_class for path in images], y


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR


def _cifar_parquets(name: str) -> list[str]:
    return [f"{name}/{name.lower()}-{part}.parquet" for part in ("train", "test")]


def _cifar_pickles(name: str) -> list[str]:
    if name == "CIFAR10":
        return [f"cifar-10-batches-py/{f}" for f in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
    return [f"cifar-100-python/{f}" for f in ("train", "test")]


def _cifar_files(name: str, data_root: Path | None, cache: Path) -> list[Path] | None:
    root = _root(data_root, cache)
    return _locate(root, _cifar_parquets(name)) or _locate(root, _cifar_pickles(name))


def _open_cifar(name: str, names: tuple[str, ...], transform: Transform, data_root: Path | None, cache: Path) -> Source:
    root, kind = _root(data_root, cache), name.lower()
    parquets = _locate(root, _cifar_parquets(name))
    if parquets is not None:
        train, test, _ = _open_image_parquet(parquets, cache, classes=len(names), shape=(3, 32, 32))
        return _source(train, test, names, transform)
    layouts = f"{' and '.join(_cifar_parquets(name))}, or torchvision's {_cifar_pickles(name)[0].partition('/')[0]}/"
    if _locate(root, _cifar_pickles(name)) is None:
        if data_root is not None:
            raise BadInput(f"data set {kind}: not found under the data root {data_root}: looked for {layouts}")
        _download(kind, name, root, layouts)

    import torchvision

    parts = []
    for train_part in (True, False):
        # torchvision checks the MD5 sum of each of these files before it unpickles it.
        with _reading(str(root / _cifar_pickles(name)[0]), "torchvision's files, unchanged (by their MD5 sums)"):
            try:
                made = getattr(torchvision.datasets, name)(str(root), train=train_part, download=False)
            except RuntimeError as e:
                raise BadInput(f"data set {kind}: {root}: {e}; looked for {layouts}") from e
        x = np.ascontiguousarray(made.data.transpose(0, 3, 1, 2))
        parts.append(Examples(x, np.asarray(made.targets, np.int64)))
    return _source(parts[0], parts[1], names, transform)


# ---------------------------------------------------------------------------------------------------------------------
# Parquet


def _parquet_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) or [path] if path.is_dir() else [path]


def _parquet_schema(path: Path) -> "pa.Schema":
    import pyarrow.parquet as pq

    with _reading(str(path), "a Parquet file"):
        return pq.read_schema(path)


def _check_column(schema: "pa.Schema", name: str, path: Path) -> None:
    if name not in schema.names:
        raise BadInput(
            f"{path}: it has no column {name!r}{_nearest(name, schema.names)}; it has {', '.join(schema.names)}"
        )


def _column(paths: list[Path], name: str) -> np.ndarray:
    """One whole column of all files: numbers or text [n]; BadInput when a value is missing."""
    import pyarrow.parquet as pq

    values = []
    for path in paths:
        _check_column(_parquet_schema(path), name, path)
        with _reading(str(path), f"a Parquet file with the column {name!r}"):
            column = pq.read_table(path, columns=[name])[name]
        if column.null_count:
            raise BadInput(f"{path}: {column.null_count} of {len(column)} values of the column {name!r} are missing")
        values.append(column.to_numpy())
    return np.concatenate(values)


def _parquet_batches(path: Path, columns: Sequence[str], rows: int) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet as pq

    for name in columns:
        _check_column(_parquet_schema(path), name, path)
    with _reading(str(path), f"a Parquet file with the columns {', '.join(columns)}"):
        file = pq.ParquetFile(path)
        yield from file.iter_batches(batch_size=rows, columns=list(columns))


def _encode_labels(
    parts: list[np.ndarray], where: list[str], regression: bool
) -> tuple[list[np.ndarray], tuple[str, ...] | None]:
    """Labels of one or two parts as int64 classes with their names, or as float64 targets (names: None)."""
    train = parts[0]
    if not len(train):
        raise BadInput(f"{where[0]}: it has no rows")
    if any(part.dtype.kind != train.dtype.kind and {part.dtype.kind, train.dtype.kind} != {"i", "u"} for part in parts):
        raise BadInput(f"{where[1]}: its labels are {parts[1].dtype}, those of {where[0]} are {train.dtype}")
    if train.dtype.kind == "f" and regression:
        return [part.astype(np.float64) for part in parts], None
    if train.dtype.kind in "iub":
        for part, path in zip(parts, where, strict=True):
            if len(part) and int(part.min()) < 0:
                raise BadInput(f"{path}: label {part.min()}; integer labels must be 0..classes-1")
        classes = max(int(part.max(initial=0)) for part in parts) + 1
        if classes > max(1_000_000, 10 * len(train)):
            raise BadInput(f"{where[0]}: label {classes - 1}; integer labels must be 0..classes-1")
        return [part.astype(np.int64) for part in parts], tuple(str(i) for i in range(classes))
    if train.dtype.kind in "OUS" and all(isinstance(value, str) for value in train):
        names = np.unique(train)
        for part, path in zip(parts, where, strict=True):
            if unknown := sorted(set(part) - set(names)):
                raise BadInput(f"{path}: label {unknown[0]!r} does not occur in {where[0]}")
        return [np.searchsorted(names, part).astype(np.int64) for part in parts], tuple(map(str, names))
    wanted = "integers, text or floats" if regression else "integers or text"
    raise BadInput(f"{where[0]}: labels of type {train.dtype}; expected {wanted}")


def _open_image_parquet(
    paths: list[Path], cache: Path, classes: int | None = None, shape: tuple[int, int, int] | None = None
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Train and, where given, test examples of columns png (or image) and label."""
    labels, names = _encode_labels(
        [_column([path], "label") for path in paths], list(map(str, paths)), regression=False
    )
    assert names is not None
    for path, y in zip(paths, labels, strict=True):
        if classes is not None and len(y) and int(y.max()) >= classes:
            raise BadInput(f"{path}: label {y.max()}; expected 0..{classes - 1}")
    column = "png" if "png" in _parquet_schema(paths[0]).names else "image"
    if shape is None:
        first, where = next(_image_cells(paths[0], column))
        with _image(first, where) as image:
            shape = (1 if image.mode in ("1", "L") else 3, image.height, image.width)
    parts = [
        Examples(_stage_images(path, column, len(y), shape, cache), y) for path, y in zip(paths, labels, strict=True)
    ]
    return parts[0], parts[1] if len(parts) == 2 else _no_examples(parts[0]), names


def _image_cells(path: Path, column: str) -> Iterator[tuple[BinaryIO, str]]:
    """Each row's encoded image as a stream, and what to call it in an error."""
    row = 0
    for batch in _parquet_batches(path, [column], rows=256):
        for cell in batch.column(0).to_pylist():
            where = f"{path}: row {row}, column {column!r}"
            # The usual layout of image columns elsewhere is a struct of bytes and path.
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(data, bytes):
                raise BadInput(f"{where}: {type(data).__name__}; expected the bytes of an encoded image")
            yield io.BytesIO(data), where
            row += 1


def _stage_images(path: Path, column: str, n: int, shape: tuple[int, int, int], cache: Path) -> np.ndarray:
    def decoded() -> Iterator[np.ndarray]:
        for data, where in _image_cells(path, column):
            with _image(data, where) as image:
                if (image.height, image.width) != shape[1:]:
                    raise BadInput(
                        f"{where}: {image.height}x{image.width} pixels; expected {shape[1]}x{shape[2]} like all others"
                    )
                yield _pixels(image, shape[0])[None]

    return _stage(cache, f"images-{_file_digest(path)}-{shape[0]}", (n, *shape), np.uint8, decoded())


def _feature_dtype(schema: "pa.Schema", columns: Sequence[str], path: Path) -> np.dtype:
    """uint8 where all columns are, otherwise the smallest of float32 and float64 that holds them."""
    import pyarrow.types as types

    if not columns:
        raise BadInput(f"{path}: it has no feature columns; it has {', '.join(schema.names)}")
    found = []
    for name in columns:
        _check_column(schema, name, path)
        kind = schema.field(name).type
        kind = kind.value_type if _is_list(kind) else kind
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise BadInput(
                f"{path}: the column {name!r} has type {kind}; features must be numbers: name them in features"
            )
        found.append(np.dtype(kind.to_pandas_dtype()))
    if all(dtype == np.uint8 for dtype in found):
        return np.dtype(np.uint8)
    return np.result_type(np.float32, *found)


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _stage_table(paths: list[Path], columns: Sequence[str], n: int, dtype: np.dtype, cache: Path) -> np.ndarray:
    """The feature columns side by side: [n, features]."""

    def rows(at_a_time: int) -> Iterator[np.ndarray]:
        for path in paths:
            for batch in _parquet_batches(path, columns, at_a_time):
                yield np.concatenate([_features(batch, name, path) for name in columns], axis=1).astype(
                    dtype, copy=False
                )

    width = next(rows(1)).shape[1]

    def checked() -> Iterator[np.ndarray]:
        for chunk in rows(4096):
            if chunk.shape[1] != width:
                raise BadInput(f"{paths[0].parent}: rows of {chunk.shape[1]} and of {width} features")
            yield chunk

    key = hashlib.sha256(json.dumps([*columns, str(dtype), *map(_file_digest, paths)]).encode()).hexdigest()[:24]
    return _stage(cache, f"table-{key}", (n, width), dtype, checked())


def _features(batch: "pa.RecordBatch", name: str, path: Path) -> np.ndarray:
    """One feature column [n, width], width 1 unless its values are lists."""
    column = batch.column(batch.schema.get_field_index(name))
    n = len(column)
    values = column
    if _is_list(column.type):
        values = column.flatten()
        lengths = {len(values) // max(n, 1)} | set(
            column.value_lengths().to_pylist() if hasattr(column, "value_lengths") else ()
        )
        if column.null_count or len(lengths) > 1:
            raise BadInput(f"{path}: the lists in the column {name!r} have different lengths, or are missing")
    if values.null_count:
        raise BadInput(f"{path}: {values.null_count} values of the column {name!r} are missing within {n} rows")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{path}: the column {name!r} holds a value that is NaN or infinite")
    return array.reshape(n, -1)


# ---------------------------------------------------------------------------------------------------------------------
# torch Datasets


class _Items(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> object: ...


def _stage_items(dataset: object, where: str, cache: Path) -> Examples:
    """All (x, y) pairs of a map-style torch Dataset."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise BadInput(
            f"data set torch: {where}: {type(dataset).__name__} has no length or no items; expected map-style"
        )
    items: _Items = dataset  # type: ignore[assignment]
    n = len(items)
    if n == 0:
        raise BadInput(f"data set torch: {where}: it is empty")
    first = _item(items, 0, where)[0]
    y: list[int | float] = []

    def read() -> Iterator[np.ndarray]:
        for i in range(n):
            x, label = _item(items, i, where)
            if x.shape != first.shape or x.dtype != first.dtype:
                raise BadInput(
                    f"data set torch: {where}[{i}]: {x.dtype} {x.shape}, but item 0 is {first.dtype} {first.shape}"
                )
            y.append(label)
            yield x[None]

    # The items are the user's code: only reading them says what they are now, so nothing staged before is trusted.
    name = f"torch-{hashlib.sha256(where.encode()).hexdigest()[:24]}"
    x = _stage(cache, name, (n, *first.shape), first.dtype, read(), fresh=True)
    kinds = {type(label) for label in y}
    if kinds == {int}:
        labels = np.asarray(y, np.int64)
        if labels.min() < 0:
            raise BadInput(f"data set torch: {where}: label {labels.min()}; classes must be 0..classes-1")
        return Examples(x, labels)
    if int in kinds:
        raise BadInput(f"data set torch: {where}: some labels are integers and some are floats")
    return Examples(x, np.asarray(y, np.float64))


def _item(items: _Items, i: int, where: str) -> tuple[np.ndarray, int | float]:
    try:
        pair = items[i]
    except Exception as e:  # the user's code may raise anything
        raise BadInput(f"data set torch: {where}[{i}] raised {type(e).__name__}: {e}") from e
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise BadInput(f"data set torch: {where}[{i}] is a {type(pair).__name__}; expected a pair (x, y)")
    raw, label = pair
    x = np.asarray(raw)
    if hasattr(raw, "getbands"):  # a PIL image: height, width, channels
        x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    if x.dtype not in (np.uint8, np.float32, np.float64):
        raise BadInput(f"data set torch: {where}[{i}]: x has type {x.dtype}; expected uint8, float32 or float64")
    scalar = np.asarray(label)
    if scalar.ndim or scalar.dtype.kind not in "iubf":
        raise BadInput(
            f"data set torch: {where}[{i}]: y is {scalar.dtype} of shape {scalar.shape}; "
            "expected an integer (class) or a float (target)"
        )
    return x, float(scalar) if scalar.dtype.kind == "f" else int(scalar)
