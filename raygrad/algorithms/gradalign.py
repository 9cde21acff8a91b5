"""GradAlign (Algorithm 1): one large-batch step whose gradients are taken at displaced points.

    v_i = -beta (g - g_i),   g_i = grad f_i(x),   g = mean_i g_i
    x <- x - alpha mean_i grad f_i(x + v_i)

Dandi, Barba, Jaggi, "Implicit Gradient Alignment in Distributed and Federated Learning" (arXiv 2106.13897). To first
order it descends f + beta r with r(x) = 1/(2n) sum_i |g_i - g|^2 (theorem 2). Two communications per round. beta = 0
is large-batch SGD.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Round, Task


@dataclass(frozen=True)
class GradAlign(Stateless):
    """`lr` is alpha, the step size; `beta` the size of the displacement."""

    lr: float = 0.1
    beta: float = 0.05

    def __post_init__(self) -> None:
        check(self, lr=0, beta=0)

    def gradient(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"g": g}, scratch={"g": g})

    def aligned(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        start = x - self.beta * (g_mean - g)
        return Answer({"delta": local.step(task, start, task.full_grad(start), task.lr(self.lr)) - start})

    def round(self, state: State, cohort: Cohort) -> Round:
        g = yield Ask(self.gradient, cohort, {"x": state.x})
        r = yield Ask(self.aligned, g.cohort, {"x": state.x, "g_mean": g.mean("g")})
        return replace(state, x=state.x + r.mean("delta"))
