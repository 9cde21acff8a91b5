"""SCAFFOLD: control variates take the client drift out of every local step.

    client i:  y <- y - alpha ( grad f_i(y; batch) + c - c_i ),   K times from y = x
    option I:   c_i+ = grad f_i(x), one more pass over the shard
    option II:  c_i+ = c_i - c + (x - y_i) / (K alpha)
    server:    x <- x + eta mean_i (y_i - x);   c <- c + (1/N) sum_{i asked} (c_i+ - c_i)

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (arXiv 1910.06378). c stays the
weighted mean of all c_i. One communication per round, two vectors each way; one vector of state per client. c = c_i =
0 is FedAvg.

`ScaffoldFresh` is the form that the gradient alignment paper runs (arXiv 2106.13897): c_i = grad f_i(x) and c their
mean are computed anew at the current model, at the price of a second communication; nobody keeps anything. With K = 1
on full batches it is large-batch SGD.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Change, ClientState, Cohort, Population, Round, Task
from raygrad.errors import BadInput


@dataclass(frozen=True)
class ScaffoldState:
    """The model and the server's control variate."""

    x: Tensor  # [d]
    c: Tensor  # [d]


@dataclass(frozen=True)
class Scaffold:
    """`lr` is alpha, `option` is I or II, `server_lr` is eta."""

    lr: float = 0.1
    option: str = "II"
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check(self, lr=0, server_lr=0)
        if self.option not in ("I", "II"):
            raise BadInput(f"algorithm.option is {self.option!r}; it must be I or II")
        if self.option == "II" and self.lr == 0:
            raise BadInput("algorithm.lr is 0; option II divides by it")

    def init(self, x: Tensor, population: Population) -> ScaffoldState:
        return ScaffoldState(x, torch.zeros_like(x))

    def client_state(self, x: Tensor) -> ClientState:
        return {"c_i": torch.zeros_like(x)}

    def local(self, task: Task, x: Tensor, c: Tensor, c_i: Tensor) -> Answer:
        lr = task.lr(self.lr)
        delta = local.sgd(task, x, lr, lambda g, y: g + (c - c_i)) - x
        if self.option == "I":
            new = task.full_grad(x)
        elif lr == 0:  # a schedule may end there
            new = c_i
        else:
            new = c_i - c - delta / local.travel(task, lr)
        return Answer({"delta": delta, "change": new - c_i}, state={"c_i": new})

    def round(self, state: ScaffoldState, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x, "c": state.c}, shares=("change",))
        return replace(state, x=state.x + self.server_lr * r.mean("delta"), c=state.c + r.share("change"))

    def resize(self, state: ScaffoldState, change: Change) -> ScaffoldState:
        return replace(state, c=change.mean(state.c, "c_i"))


@dataclass(frozen=True)
class ScaffoldFresh(Stateless):
    """`lr` is alpha, `server_lr` is eta."""

    lr: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check(self, lr=0, server_lr=0)

    def variate(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"c_i": g}, scratch={"c_i": g})

    def local(self, task: Task, x: Tensor, c: Tensor, c_i: Tensor) -> Answer:
        return Answer({"delta": local.sgd(task, x, task.lr(self.lr), lambda g, y: g + (c - c_i)) - x})

    def round(self, state: State, cohort: Cohort) -> Round:
        v = yield Ask(self.variate, cohort, {"x": state.x})
        r = yield Ask(self.local, v.cohort, {"x": state.x, "c": v.mean("c_i")})
        return replace(state, x=state.x + self.server_lr * r.mean("delta"))
