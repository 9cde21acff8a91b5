"""Large-batch SGD: one step along the mean of the cohort's full gradients, with and without linear scaling.

    none:     x <- x - alpha g,                       g = mean_i grad f_i(x)
    linear:   x <- x - m alpha g                      (m clients stand for m sequential mini-batches)
    aligned:  x <- x - alpha sum_i grad f_i( x - (alpha/2) (m g - g_i) )

One linearly scaled step misses the gradient alignment that m sequential steps of SGD have. Evaluating each gradient
half a step along all the other mini-batches restores it: the aligned step equals E[SGD] up to O(alpha^3). The result
is announced in Dandi, Barba, Jaggi (arXiv 2106.13897, A.2); this form is derived from it. One communication per
round, two when aligned.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Round, Task
from raygrad.errors import BadInput

SCALINGS = ("none", "linear", "aligned")


@dataclass(frozen=True)
class LargeBatchSGD(Stateless):
    """`lr` is alpha, the step size of one mini-batch; `scaling` is none, linear or aligned."""

    lr: float = 0.1
    scaling: str = "none"

    def __post_init__(self) -> None:
        check(self, lr=0)
        if self.scaling not in SCALINGS:
            raise BadInput(f"algorithm.scaling is {self.scaling!r}; it must be one of {', '.join(SCALINGS)}")

    def gradient(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"g": g}, scratch={"g": g})

    def step(self, task: Task, x: Tensor) -> Answer:
        return Answer({"delta": local.step(task, x, task.full_grad(x), task.lr(self.lr)) - x})

    def aligned(self, task: Task, x: Tensor, g_sum: Tensor, g: Tensor) -> Answer:
        lr = task.lr(self.lr)
        point = x - (lr / 2) * (g_sum - g)
        return Answer({"delta": local.step(task, x, task.full_grad(point), lr) - x})

    def round(self, state: State, cohort: Cohort) -> Round:
        if self.scaling == "aligned":
            g = yield Ask(self.gradient, cohort, {"x": state.x})
            r = yield Ask(self.aligned, g.cohort, {"x": state.x, "g_sum": len(g.cohort) * g.mean("g")})
        else:
            r = yield Ask(self.step, cohort, {"x": state.x})
        scale = 1 if self.scaling == "none" else len(r.cohort)
        return replace(state, x=state.x + scale * r.mean("delta"))
