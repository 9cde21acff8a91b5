"""The (x, y) pairs of any map-style torch Dataset, read once into arrays."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from raygrad.data.source import Examples
from raygrad.data.staging import stage
from raygrad.errors import BadInput


@runtime_checkable
class _MapStyle(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


def read_items(items: object, where: str, cache: Path) -> Examples:
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
