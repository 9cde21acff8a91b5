"""The client's inner loop: K steps of SGD from a start point, on plain tensors without data-dependent branches.

    v <- momentum v + clip( direction( grad f_i(y; batch), y ) ) + weight_decay y
    y <- y - alpha v

Clipping acts on the corrected gradient, weight decay is applied on top, as in the gradient alignment paper's
experiments. The momentum v starts at 0 in every round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal

import torch
from torch import Tensor

from raygrad.contract import Descends, Task
from raygrad.errors import BadInput

Direction = Callable[[Tensor, Tensor], Tensor]
"""`direction(g, y) -> [d]`: what a method makes of the gradient `g` [d] at the iterate `y` [d]."""


@dataclass(frozen=True)
class Local:
    """What a client does in a round: `steps` (K) mini-batch steps of `batch_size` (B) examples, or as many as
    `epochs` take.

    Batches are cut from fresh permutations of the shard, laid end to end, so each has exactly B examples. "full" uses
    the whole shard in every step. `weight_decay` adds that multiple of the iterate to the step; `clip_norm` bounds
    the gradient's L2 norm. `momentum` is that of the local steps, begun anew in every round.
    """

    steps: int | None = 5
    epochs: float | None = None
    batch_size: int | Literal["full"] = 10
    weight_decay: float = 0.0
    clip_norm: float | None = None
    momentum: float = 0.0

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


def sgd(task: Task, start: Tensor, lr: float, direction: Direction | None = None) -> Tensor:
    """The iterate [d] after the task's K mini-batch steps from `start` [d] with step size `lr`."""
    if direction is None and isinstance(task, Descends) and (end := task.descend(start, lr)) is not None:
        return end
    y, v = start, None
    for batch in task.batches:
        g = task.grad(y, batch)
        g = _direction(task, y, g if direction is None else direction(g, y))
        v = g if v is None or not task.momentum else torch.add(g, v, alpha=task.momentum)
        y = torch.add(y, v, alpha=-lr)
    return y
