"""FedProx: FedAvg with a proximal term that holds the local iterates near the server's model.

    client i:  y <- y - alpha ( grad f_i(y; batch) + mu (y - x) ),   K times from y = x
    server:    x <- x + eta mean_i (y_i - x)

Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127). The local loss is f_i(y) + (mu/2) |y
- x|^2. One communication per round. mu = 0 is FedAvg.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Round, Task


@dataclass(frozen=True)
class FedProx(Stateless):
    """`lr` is alpha, `mu` the weight of the proximal term, `server_lr` is eta."""

    lr: float = 0.1
    mu: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check(self, lr=0, mu=0, server_lr=0)

    def local(self, task: Task, x: Tensor, start: Tensor | None = None) -> Answer:
        start = x if start is None else start
        y = local.sgd(task, start, task.lr(self.lr), lambda g, y: g + self.mu * (y - x))
        return Answer({"delta": y - start})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=state.x + self.server_lr * r.mean("delta"))
