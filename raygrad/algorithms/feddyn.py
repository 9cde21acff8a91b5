"""FedDyn: a dynamic regulariser makes the clients' stationary points agree with the server's.

    client i:  y_i = K steps of SGD on  f_i(y) - <dual_i, y> + (a/2) |y - x|^2  from x
               dual_i <- dual_i - a (y_i - x)
    server:    h <- h - (a/N) sum_{i asked} (y_i - x);   x <- mean_i y_i - h / a

Acar et al., "Federated Learning Based on Dynamic Regularization" (ICLR 2021, arXiv 2111.04263). Where it comes to rest,
dual_i = grad f_i(x) and h = mean_i dual_i = 0, so x is stationary for f itself, however much the clients differ. One
communication per round; one vector of state per client. With clients' weights, h is their weighted mean.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import check
from raygrad.contract import Answer, Ask, Change, ClientState, Cohort, Population, Round, Task
from raygrad.errors import BadInput


@dataclass(frozen=True)
class FedDynState:
    """The model, and the mean of all clients' duals."""

    x: Tensor  # [d]
    h: Tensor  # [d]


@dataclass(frozen=True)
class FedDyn:
    """`lr` is alpha, the local step size; `penalty` is a, the weight of the quadratic term."""

    lr: float = 0.1
    penalty: float = 0.1

    def __post_init__(self) -> None:
        check(self, lr=0, penalty=0)
        if not self.penalty:
            raise BadInput("algorithm.penalty is 0; FedDyn divides by it (fedavg is what is left without it)")

    def init(self, x: Tensor, population: Population) -> FedDynState:
        return FedDynState(x, torch.zeros_like(x))

    def client_state(self, x: Tensor) -> ClientState:
        return {"dual": torch.zeros_like(x)}

    def local(self, task: Task, x: Tensor, dual: Tensor, start: Tensor | None = None) -> Answer:
        start = x if start is None else start
        y = local.sgd(task, start, task.lr(self.lr), lambda g, y: g - dual + self.penalty * (y - x))
        delta = y - start
        return Answer({"delta": delta}, state={"dual": dual - self.penalty * delta})

    def round(self, state: FedDynState, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x}, shares=("delta",))
        share, population = r.share("delta"), r.cohort.population
        h = state.h - self.penalty * share
        asked = float(population.weights[r.cohort.clients].sum())  # one sum serves both means: it is sent once
        mean = share * (r.discount * population.weight / asked)
        return replace(state, x=state.x + mean - h / self.penalty, h=h)

    def resize(self, state: FedDynState, change: Change) -> FedDynState:
        return replace(state, h=change.mean(state.h, "dual"))
