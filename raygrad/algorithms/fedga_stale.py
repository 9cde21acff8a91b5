"""FedGA in one communication per round: the mean gradient is that of the round before.

    server:    c = -mean_i (y_i - start_i) / (K alpha), of the round before;   sends  z = x - beta c
    client i:  g_i = grad f_i(z);   y_i = K steps of SGD from  z + beta g_i
    server:    x <- x + eta mean_i (y_i - start_i)

The paper (Dandi, Barba, Jaggi, arXiv 2106.13897) proposes such a saving as future work. What its first communication is
for, the mean gradient c, comes here from the updates of the round before, and the server takes it off the model before
it sends it. So a client receives one vector and sends one: half of FedGA's communications and bytes.

The displacements v_i = beta (g_i - c) no longer cancel, since c is old and of another cohort. Their sum does not move
the model, because what a client sends is measured from its own start; but gradients are taken at points that are off by
beta (mean g_i - c) on average. Where c = grad f(x) + O(alpha), as after a round with all clients, that is O(alpha^3)
for beta = c alpha, and a round adds FedGA's -alpha beta K grad r(x). The first round, which has no c, is FedAvg's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import check
from raygrad.contract import Answer, Ask, ClientState, Cohort, Population, Round, Task


@dataclass(frozen=True)
class StaleState:
    """The model, and the mean gradient of the round before (zeros before the first)."""

    x: Tensor  # [d]
    c: Tensor  # [d]


@dataclass(frozen=True)
class StaleFedGA:
    """`lr` is alpha, the local step size; `beta` the size of the displacement; `server_lr` is eta."""

    lr: float = 0.1
    beta: float = 0.05
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check(self, lr=0, beta=0, server_lr=0)

    def init(self, x: Tensor, population: Population) -> StaleState:
        return StaleState(x, torch.zeros_like(x))

    def client_state(self, x: Tensor) -> ClientState:
        return {}

    def plain(self, task: Task, z: Tensor) -> Answer:
        return self._from(z, task)

    def local(self, task: Task, z: Tensor) -> Answer:
        return self._from(z + self.beta * task.full_grad(z), task)

    def _from(self, start: Tensor, task: Task) -> Answer:
        lr = task.lr(self.lr)
        delta = local.sgd(task, start, lr) - start
        return Answer({"delta": delta, "travel": torch.full_like(delta[0], local.travel(task, lr))})

    def round(self, state: StaleState, cohort: Cohort) -> Round:
        work = self.local if state.c.any() else self.plain
        r = yield Ask(work, cohort, {"z": state.x - self.beta * state.c})
        delta, travel = r.mean("delta"), float(r.scalar("travel").mean())
        c = -delta / travel if travel else state.c  # a schedule may end at 0
        return StaleState(state.x + self.server_lr * delta, c)
