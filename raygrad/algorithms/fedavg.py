"""FedAvg: local SGD and periodic averaging.

    client i:  y_i = K steps of SGD from x
    server:    x <- x + eta mean_i (y_i - x)

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629).
One communication per round.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Round, Task


@dataclass(frozen=True)
class FedAvg(Stateless):
    """`lr` is alpha, the local step size; `server_lr` is eta."""

    lr: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check(self, lr=0, server_lr=0)

    def local(self, task: Task, x: Tensor, start: Tensor | None = None) -> Answer:
        start = x if start is None else start
        return Answer({"delta": local.sgd(task, start, task.lr(self.lr)) - start})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=state.x + self.server_lr * r.mean("delta"))
