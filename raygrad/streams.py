"""Data that change on the way: a stream of tasks, each for `every` rounds.

Task 0 is the data as they are. Each later one has a permutation of its own, drawn for (seed, task) and the same for all
clients; it holds for what clients train on, for validation and for the test set alike. What is measured after a round
is measured on that round's task. Nothing is stored: hosts permute examples when they read them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng


@runtime_checkable
class Tasks(Protocol):
    """What a round makes of examples. Rounds count from 1."""

    def inputs(self, x: Tensor, seed: int, round: int) -> Tensor:
        """Examples [n, ...] as they are in the round's task."""
        ...

    def targets(self, y: Tensor, classes: int, seed: int, round: int) -> Tensor:
        """Class labels [n] in 0..classes-1 as they are in the round's task."""
        ...

    def check(self, classes: int | None) -> None:
        """Raises BadInput where data with this number of classes (None: regression) cannot change so."""
        ...


@dataclass(frozen=True)
class One:
    """One task for ever: the data stay as they are."""

    def inputs(self, x: Tensor, seed: int, round: int) -> Tensor:
        """See `Tasks.inputs`."""
        return x

    def targets(self, y: Tensor, classes: int, seed: int, round: int) -> Tensor:
        """See `Tasks.targets`."""
        return y

    def check(self, classes: int | None) -> None:
        """See `Tasks.check`."""


@dataclass(frozen=True)
class _Every:
    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise BadInput(f"tasks.every is {self.every}; it must be >= 1")

    def number(self, round: int) -> int:
        """The task of a round, from 0."""
        return max(0, round - 1) // self.every


@dataclass(frozen=True)
class PermutedPixels(_Every):
    """A new task every `every` rounds: pixels change places, in all channels alike; or features, where there are no
    images.
    """

    def inputs(self, x: Tensor, seed: int, round: int) -> Tensor:
        """See `Tasks.inputs`."""
        flat = x.flatten(2 if x.ndim == 4 else 1)
        order = _order(seed, self.number(round), flat.shape[-1])
        return x if order is None else flat.index_select(-1, order).view(x.shape)

    def targets(self, y: Tensor, classes: int, seed: int, round: int) -> Tensor:
        """See `Tasks.targets`."""
        return y

    def check(self, classes: int | None) -> None:
        """See `Tasks.check`."""


@dataclass(frozen=True)
class LabelFlips(_Every):
    """A new task every `every` rounds: classes exchange their labels."""

    def inputs(self, x: Tensor, seed: int, round: int) -> Tensor:
        """See `Tasks.inputs`."""
        return x

    def targets(self, y: Tensor, classes: int, seed: int, round: int) -> Tensor:
        """See `Tasks.targets`."""
        order = _order(seed, self.number(round), classes)
        return y if order is None else order[y]

    def check(self, classes: int | None) -> None:
        """See `Tasks.check`."""
        if classes is None:
            raise BadInput(
                "tasks=label-flips needs class labels; this data has numbers as targets: use permuted-pixels"
            )


@lru_cache(maxsize=16)
def _order(seed: int, task: int, count: int) -> Tensor | None:
    """The task's permutation of 0..count-1; None for the first task."""
    return torch.from_numpy(rng(seed, Purpose.TASKS, task).permutation(count)) if task else None


TASKS: dict[str, type] = {"one": One, "permuted-pixels": PermutedPixels, "label-flips": LabelFlips}
