"""The client's inner loop: K steps of SGD from a start point, on plain tensors without data-dependent branches.

    v <- momentum v + clip( direction( grad f_i(y; batch), y ) ) + weight_decay y
    y <- y - alpha v

Clipping acts on the corrected gradient, weight decay is applied on top, as in the gradient alignment paper's
experiments. The momentum v starts at 0 in every round.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import repeat
from math import ceil, isfinite
from typing import Literal

import torch
from torch import Tensor

from raygrad.contract import Batch, Descends, Task
from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng

Direction = Callable[[Tensor, Tensor], Tensor]
"""`direction(g, y) -> [d]`: what a method makes of the gradient `g` [d] at the iterate `y` [d]."""
Watch = Callable[[Tensor, Batch, Tensor], None]
"""`watch(y, batch, g)` sees every step: the iterate `y` [d], its batch, the gradient `g` [d] there."""


@dataclass(frozen=True)
class Local:
    """What a client does in a round: `steps` (K) mini-batch steps of `batch_size` (B) examples, or as many as
    `epochs` take.

    Batches are cut from fresh permutations of the shard, laid end to end, so each has exactly B examples. "full" uses
    the whole shard in every step. `weight_decay` adds that multiple of the iterate to the step; `clip_norm` bounds
    the gradient's L2 norm. `momentum` is that of the local steps, begun anew in every round.

    Clients that work unequally: with `epochs_to` each client makes, in every round anew, a number of epochs drawn from
    the whole numbers `epochs` to `epochs_to`; with `batch_size_to` its batch size is drawn from `batch_size` up to that
    many examples ("full": up to its shard).
    """

    steps: int | None = 5
    epochs: float | None = None
    batch_size: int | Literal["full"] = 10
    weight_decay: float = 0.0
    clip_norm: float | None = None
    momentum: float = 0.0
    epochs_to: int | None = None
    batch_size_to: int | Literal["full"] | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise BadInput("give local.steps or local.epochs, and set the other one to none")
        if self.steps is not None and self.steps < 1:
            raise BadInput(f"local.steps is {self.steps}; it must be >= 1")
        if self.epochs is not None and not (isfinite(self.epochs) and self.epochs > 0):
            raise BadInput(f"local.epochs is {self.epochs}; it must be a finite number > 0")
        if self.batch_size != "full" and self.batch_size < 1:
            raise BadInput(f"local.batch_size is {self.batch_size}; it must be >= 1, or full")
        if not (isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise BadInput(f"local.weight_decay is {self.weight_decay}; it must be a finite number >= 0")
        if self.clip_norm is not None and not (isfinite(self.clip_norm) and self.clip_norm > 0):
            raise BadInput(f"local.clip_norm is {self.clip_norm}; it must be a finite number > 0, or none")

        if not 0 <= self.momentum < 1:
            raise BadInput(f"local.momentum is {self.momentum}; it must be >= 0 and below 1")
        if self.epochs_to is not None and not (self.epochs and self.epochs % 1 == 0 and self.epochs_to >= self.epochs):
            raise BadInput(
                f"local.epochs_to is {self.epochs_to}; it needs a whole number of local.epochs, no more than itself"
            )
        if self.batch_size_to is not None:
            if self.batch_size == "full":
                raise BadInput("local.batch_size_to needs a number as local.batch_size, the least; it is full")
            if self.batch_size_to != "full" and self.batch_size_to < self.batch_size:
                raise BadInput(
                    f"local.batch_size_to is {self.batch_size_to}; it must be >= local.batch_size ({self.batch_size})"
                )

    @property
    def varies(self) -> bool:
        """Whether clients draw how they work."""
        return self.epochs_to is not None or self.batch_size_to is not None

    def batches_of(self, size: int | None) -> "Local":
        """With batches of `size` examples, if an algorithm says so."""
        return self if size is None else replace(self, batch_size=size, batch_size_to=None)

    def at(self, seed: int, round: int, client: int, examples: int) -> "Local":
        """What a client with `examples` examples does in a round, with nothing left to draw."""
        if not self.varies:
            return self
        draw, epochs, size = rng(seed, Purpose.WORK, round, client), self.epochs, self.batch_size
        if self.epochs_to is not None:
            assert epochs is not None
            epochs = float(draw.integers(int(epochs), self.epochs_to, endpoint=True))
        if self.batch_size_to is not None:
            assert size != "full"
            most = examples if self.batch_size_to == "full" else min(self.batch_size_to, examples)
            size = int(draw.integers(min(size, most), most, endpoint=True)) if most else size
        return replace(self, epochs=epochs, batch_size=size, epochs_to=None, batch_size_to=None)

    def steps_for(self, examples: int) -> int:
        """K for a client with `examples` examples; an epoch's last batch is filled up from the next permutation."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        per_epoch = 1 if self.batch_size == "full" else examples / self.batch_size
        return max(1, ceil(round(self.epochs * per_epoch, 9)))


def step(task: Task, y: Tensor, g: Tensor, lr: float) -> Tensor:
    """One step from `y` [d] along the gradient `g` [d] with step size `lr`, with clipping and weight decay."""
    return torch.add(y, _direction(task, y, g), alpha=-lr)


def travel(task: Task, lr: float) -> float:
    """How far the K steps go along a gradient of 1 that stays: K lr, with momentum m
    lr (K - m (1 - m^K) / (1 - m)) / (1 - m).
    """
    m, steps = task.momentum, task.steps
    return lr * steps if not m else lr * (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)


def _direction(task: Task, y: Tensor, g: Tensor) -> Tensor:
    if task.clip_norm is not None:
        g = g * torch.clamp(task.clip_norm / (g.norm() + 1e-6), max=1.0)
    if task.weight_decay:
        g = torch.add(g, y, alpha=task.weight_decay)
    return g


def sgd(task: Task, start: Tensor, lr: float, direction: Direction | None = None, watch: Watch | None = None) -> Tensor:
    """The iterate [d] after the task's K mini-batch steps from `start` [d] with step size `lr`."""
    if direction is watch is None and isinstance(task, Descends) and (end := task.descend(start, lr)) is not None:
        return end
    return _descend(task, start, lr, direction, task.batches, watch)


def gd(task: Task, start: Tensor, lr: float, direction: Direction | None = None) -> Tensor:
    """The iterate [d] after K steps of gradient descent on the client's whole shard from `start` [d]."""
    return _descend(task, start, lr, direction, repeat(None, task.steps))


def _descend(
    task: Task, y: Tensor, lr: float, direction: Direction | None, batches: Iterable[Batch | None],
    watch: Watch | None = None,
) -> Tensor:  # fmt: skip
    v = None
    for batch in batches:
        g = task.full_grad(y) if batch is None else task.grad(y, batch)
        if watch is not None and batch is not None:
            watch(y, batch, g)
        g = _direction(task, y, g if direction is None else direction(g, y))
        v = g if v is None or not task.momentum else torch.add(g, v, alpha=task.momentum)
        y = torch.add(y, v, alpha=-lr)
    return y
