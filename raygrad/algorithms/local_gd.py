"""Local-GD: clients make K steps of gradient descent on their whole shards, and what they reach is averaged.

    client i:          y <- y - alpha ( grad f_i(y) + rho (y - x) ),   K times from y = x
    server:            x <- mean_i y_i
    server, anchored:  x <- (1 - a_k) x^0 + a_k mean_i y_i,   a_k = 1 - 1/(k + 1) in round k = 1, 2, ...

Zhu, Vardhan, Mazumdar, "Effectiveness of Distributed Gradient Descent with Local Steps for Overparameterized Models"
(arXiv 2412.07971): linear models on separable data go to the direction of the pooled maximum margin. Where clients
solve their problems (K large), plain averaging ends in another direction; the anchor, Halpern's iteration from x^0,
mends it. The weights a_k are not published; these are derived (docs/theory.md). Without anchor and rho it is FedAvg on
full batches. One communication per round.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import check
from raygrad.contract import Answer, Ask, ClientState, Cohort, Population, Round, Task


@dataclass(frozen=True)
class LocalGDState:
    """The model, the one that the run began with, and the number of rounds so far."""

    x: Tensor  # [d]
    x0: Tensor  # [d]
    k: Tensor  # []


@dataclass(frozen=True)
class LocalGD:
    """`lr` is alpha; `anchored` draws the mean to x^0, ever less; `penalty` is rho, which holds local steps near x."""

    lr: float = 0.1
    anchored: bool = False
    penalty: float = 0.0

    def __post_init__(self) -> None:
        check(self, lr=0, penalty=0)

    def init(self, x: Tensor, population: Population) -> LocalGDState:
        return LocalGDState(x, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def client_state(self, x: Tensor) -> ClientState:
        return {}

    def local(self, task: Task, x: Tensor, start: Tensor | None = None) -> Answer:
        start = x if start is None else start
        held = (lambda g, y: g + self.penalty * (y - x)) if self.penalty else None
        return Answer({"delta": local.gd(task, start, task.lr(self.lr), held) - start})

    def round(self, state: LocalGDState, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        k, x = state.k + 1, state.x + r.mean("delta")
        if self.anchored:
            x = state.x0 + (1 - 1 / (k + 1)) * (x - state.x0)
        return LocalGDState(x, state.x0, k)
