"""FedGA (Algorithm 2): FedAvg from displaced starts, which aligns the clients' gradients.

    communication 1:  g_i = grad f_i(x), each client's whole shard, without weight decay;   g = mean_i g_i
    communication 2:  y_i = K steps of SGD from  x - beta (g - g_i)
    server:           x <- x + eta mean_i (y_i - start_i)

Dandi, Barba, Jaggi, "Implicit Gradient Alignment in Distributed and Federated Learning" (arXiv 2106.13897). Against
FedAvg a round adds -alpha beta K grad r(x) + O(alpha beta^2 + alpha^2 beta) (theorem 4). The same weights serve both
means, so the displacements cancel; what goes up excludes the displacement, so a client lost between the phases leaves
none behind. Two communications per round. beta = 0 is FedAvg; K = 1 on full batches is GradAlign.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Round, Task


@dataclass(frozen=True)
class FedGA(Stateless):
    """`lr` is alpha, the local step size; `beta` the size of the displacement; `server_lr` is eta."""

    lr: float = 0.1
    beta: float = 0.05
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check(self, lr=0, beta=0, server_lr=0)

    def gradient(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"g": g}, scratch={"g": g})

    def local(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        start = x - self.beta * (g_mean - g)
        return Answer({"delta": local.sgd(task, start, task.lr(self.lr)) - start})

    def round(self, state: State, cohort: Cohort) -> Round:
        g = yield Ask(self.gradient, cohort, {"x": state.x})
        r = yield Ask(self.local, g.cohort, {"x": state.x, "g_mean": g.mean("g")})
        return replace(state, x=state.x + self.server_lr * r.mean("delta"))
