"""Any torch Datasets: their (x, y) pairs are read once into arrays."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from raygrad.data.source import Examples, Source, numbered
from raygrad.data.staging import stage
from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.naming import load_attribute


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
        self._load()
        origin = getattr(sys.modules[self.factory.partition(":")[0]], "__file__", None)
        return None if origin is None else [Path(origin)]

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        factory = self._load()
        if not callable(factory):
            raise BadInput(f"data set torch: {self.factory} is not callable; it must return (train, test)")
        with _users_code(f"{self.factory}()"):
            made = factory()
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise BadInput(
                f"data set torch: {self.factory}() returned {type(made).__name__}; it must return (train, test)"
            )
        train = _read_items(made[0], f"{self.factory} train", cache)
        test = train.none() if made[1] is None else _read_items(made[1], f"{self.factory} test", cache)
        if train.y.dtype != test.y.dtype:
            raise BadInput(
                f"data set torch: {self.factory}: the labels are {train.y.dtype} in train and {test.y.dtype} in test"
            )
        names = None
        if train.y.dtype == np.int64:
            classes = int(max(train.y.max(), test.y.max(initial=0))) + 1
            given = getattr(made[0], "classes", None)
            if not (isinstance(given, list | tuple) and len(given) >= classes):
                given = numbered(classes)
            names = tuple(map(str, given))
        scale = 1 / 255 if train.x.dtype == np.uint8 else 1.0
        return Source.of(train, test, names, Transform.of_images(self.mean, self.std, self.augment, scale))

    def _load(self) -> object:
        return load_attribute(self.factory, "factory of the torch data set")


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Turns whatever the user's code raises into BadInput."""
    try:
        yield
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(f"data set torch: {what} raised {type(e).__name__}: {e}") from e


@runtime_checkable
class _MapStyle(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


def _read_items(items: object, where: str, cache: Path) -> Examples:
    """All items, x as a memory map in `cache`; `where` is what an error calls them.

    Errors: BadInput for items that are no pairs of array and number, or not all alike; what the user's code raises.
    """
    if not isinstance(items, _MapStyle):
        raise BadInput(f"data set torch: {where}: {type(items).__name__} has no length or no items; expected map-style")
    if len(items) == 0:
        raise BadInput(f"data set torch: {where}: it is empty")
    first = _item(items, 0, where)[0]
    y: list[int | float] = []

    def read() -> Iterator[np.ndarray]:
        for i in range(len(items)):
            x, label = _item(items, i, where)
            if x.shape != first.shape or x.dtype != first.dtype:
                raise BadInput(
                    f"data set torch: {where}[{i}]: {x.dtype} {x.shape}, but item 0 is {first.dtype} {first.shape}"
                )
            y.append(label)
            yield x[None]

    # The items are the user's code: only reading them says what they are now, so nothing staged before is trusted.
    name = f"torch-{hashlib.sha256(where.encode()).hexdigest()[:24]}"
    x = stage(cache, name, (len(items), *first.shape), first.dtype, read(), fresh=True)
    kinds = {type(label) for label in y}
    if len(kinds) > 1:
        raise BadInput(f"data set torch: {where}: some labels are integers and some are floats")
    if kinds == {int} and min(y) < 0:
        raise BadInput(f"data set torch: {where}: label {min(y)}; classes must be 0..classes-1")
    return Examples(x, np.asarray(y, np.int64 if kinds == {int} else np.float64))


def _item(items: _MapStyle, i: int, where: str) -> tuple[np.ndarray, int | float]:
    with _users_code(f"{where}[{i}]"):
        pair = items[i]
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
