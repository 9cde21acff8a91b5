"""FedAdagrad, FedAdam, FedYogi: adaptive server optimisers around any algorithm.

    D = x+ - x,  x+ the model after a round of the algorithm inside (FedAvg: x + mean_i (y_i - x))
    m <- b1 m + (1 - b1) D
    FedAdagrad:  v <- v + D^2
    FedAdam:     v <- b2 v + (1 - b2) D^2
    FedYogi:     v <- v - (1 - b2) D^2 sign(v - D^2)
    x <- x + eta m / (sqrt(v) + tau)

Reddi et al., "Adaptive Federated Optimization" (arXiv 2003.00295). There is no bias correction; v starts at 0.
Communications, and what clients keep, are those of the algorithm inside.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from raygrad.algorithms.around import Around, AroundState, moved
from raygrad.algorithms.base import check
from raygrad.algorithms.networked import movable
from raygrad.contract import Cohort, Population, Round
from raygrad.errors import BadInput


@dataclass(frozen=True)
class AdaptiveState(AroundState):
    """The state inside, and the running first and second moments of its steps."""

    m: Tensor  # [d]
    v: Tensor  # [d]


@dataclass(frozen=True)
class Adaptive(Around):
    """What the three adaptive server optimisers share. `eta` is the server's step size; it has a name of its own, since
    a step is normalised: a `server_lr` of 1 that served another algorithm would be far too long.
    """

    eta: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    _decays: ClassVar[tuple[str, ...]] = ("beta1",)

    def __post_init__(self) -> None:
        check(self, eta=0, tau=0, **dict.fromkeys(self._decays, 0.0))
        for name in self._decays:
            if getattr(self, name) >= 1:
                raise BadInput(f"algorithm.{name} is {getattr(self, name)}; it must be below 1")
        if not self.tau:
            raise BadInput("algorithm.tau is 0; it must be above 0, since steps are divided by it where nothing moves")

    def init(self, x: Tensor, population: Population) -> AdaptiveState:
        return AdaptiveState(movable(self.inner.init(x, population)), torch.zeros_like(x), torch.zeros_like(x))

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment [d] after a step whose entries have the squares `square` [d]."""
        raise NotImplementedError

    def round(self, state: AdaptiveState, cohort: Cohort) -> Round:
        after: Any = yield from self.inner.round(state.inner, cohort)
        change = after.x - state.x
        m = self.beta1 * state.m + (1 - self.beta1) * change
        v = self.second(state.v, change**2)
        return AdaptiveState(moved(after, state.x + self.eta * m / (v.sqrt() + self.tau)), m, v)


@dataclass(frozen=True)
class FedAdagrad(Adaptive):
    """`eta` is the server's step size, `beta1` is b1, `tau` the least divisor. `inner` is the algorithm inside."""

    eta: float = 0.1
    beta1: float = 0.0

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """`eta` is the server's step size, `beta1`, `beta2` are b1, b2, `tau` the least divisor. `inner` is the algorithm
    inside.
    """

    beta2: float = 0.99
    _decays: ClassVar[tuple[str, ...]] = ("beta1", "beta2")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(Adaptive):
    """`eta` is the server's step size, `beta1`, `beta2` are b1, b2, `tau` the least divisor. `inner` is the algorithm
    inside.
    """

    beta2: float = 0.99
    _decays: ClassVar[tuple[str, ...]] = ("beta1", "beta2")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * torch.sign(v - square)
