"""FedAvgM: momentum at the server, around any algorithm.

    D = x+ - x,  x+ the model after a round of the algorithm inside (FedAvg: x + mean_i (y_i - x))
    v <- mu v + D;   x <- x + eta v        (Nesterov: x + eta (D + mu v))

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification" (arXiv
1909.06335). Around FedGA it is FedGA with server momentum. Communications, and what clients keep, are those of the
algorithm inside; mu = 0 and eta = 1 is the algorithm inside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raygrad.algorithms.around import Around, AroundState, moved
from raygrad.algorithms.base import check
from raygrad.algorithms.networked import movable
from raygrad.contract import Cohort, Population, Round
from raygrad.errors import BadInput


@dataclass(frozen=True)
class MomentumState(AroundState):
    """The state inside, and the momentum."""

    v: Tensor  # [d]


@dataclass(frozen=True)
class FedAvgM(Around):
    """`momentum` is mu, `server_lr` is eta; `nesterov` looks ahead. `inner` is the algorithm inside."""

    server_lr: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check(self, server_lr=0, momentum=0)
        if self.momentum >= 1:
            raise BadInput(f"algorithm.momentum is {self.momentum}; it must be below 1")

    def init(self, x: Tensor, population: Population) -> MomentumState:
        return MomentumState(movable(self.inner.init(x, population)), torch.zeros_like(x))

    def round(self, state: MomentumState, cohort: Cohort) -> Round:
        after = yield from self.inner.round(state.inner, cohort)
        change = after.x - state.x
        v = self.momentum * state.v + change
        step = change + self.momentum * v if self.nesterov else v
        return MomentumState(moved(after, state.x + self.server_lr * step), v)
