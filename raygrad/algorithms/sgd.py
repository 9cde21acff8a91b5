"""Sequential SGD on one client that holds all the data: K steps per round. The oracle of the paper's theorem 1.

    x <- x - alpha grad f(x; batch),   K times

Over orders of mini-batches a_1..a_K its expectation differs from K steps of gradient descent by -(K alpha^2 / 2) grad
r(x), so it implicitly descends f + (alpha/2) r (Dandi, Barba, Jaggi, arXiv 2106.13897; Smith et al., arXiv
2101.12176). Needs a partition with one client. One communication per round.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import State, Stateless, check
from raygrad.contract import Answer, Ask, Cohort, Population, Round, Task
from raygrad.errors import BadInput


@dataclass(frozen=True)
class SGD(Stateless):
    """`lr` is alpha, the step size."""

    lr: float = 0.1

    def __post_init__(self) -> None:
        check(self, lr=0)

    def init(self, x: Tensor, population: Population) -> State:
        if len(population) != 1:
            raise BadInput(
                f"algorithm sgd runs on one pooled client, the partition has {len(population)}; "
                "set partition.clients=1 and sampler.cohort=1"
            )
        return State(x)

    def local(self, task: Task, x: Tensor) -> Answer:
        return Answer({"delta": local.sgd(task, x, task.lr(self.lr)) - x})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=state.x + r.mean("delta"))
