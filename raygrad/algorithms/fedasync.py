"""FedAsync: the server mixes the client's model into its own.

    client i:  y_i = K steps of SGD from x, on f_i(y) + (mu/2) |y - x|^2
    server:    x <- (1 - a s) x + a s y_i,   s <= 1 the discount of an answer that is some versions old

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization" (arXiv 1903.03934). It is meant for `stragglers=buffered` with
`report_goal` 1; several answers are averaged. Without staleness and with a = 1 it is FedProx, with mu = 0 FedAvg. One
communication per round.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Round, Task


@dataclass(frozen=True)
class FedAsync(Stateless):
    """`lr` is alpha, `mix` is a, the weight of a fresh answer, `mu` the weight of the proximal term."""

    lr: float = 0.1
    mix: float = 0.6
    mu: float = 0.0

    def __post_init__(self) -> None:
        check(self, lr=0, mix=0, mu=0)

    def local(self, task: Task, x: Tensor) -> Answer:
        pull = (lambda g, y: g + self.mu * (y - x)) if self.mu else None
        return Answer({"y": local.sgd(task, x, task.lr(self.lr), pull)})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=state.x + self.mix * (r.mean("y") - r.discount * state.x))
