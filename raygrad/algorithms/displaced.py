"""FedGA's displacement around an algorithm that asks its clients once, and lets them start elsewhere.

    communication 1:  g_i = grad f_i(x), each client's whole shard, without weight decay;   g = mean_i g_i
    communication 2:  what the algorithm inside does, from  x - beta (g - g_i)  instead of x

Dandi, Barba, Jaggi (arXiv 2106.13897) name FedProx, FedDyn and the server optimisers as methods that it can be combined
with. Only the start is displaced: the centre of a proximal term stays x, and whatever a client sends or keeps (deltas,
duals) is measured from its displaced start. So the mean of the clients' deltas changes by -alpha beta K grad r(x) +
O(alpha^3) for beta = c alpha; a server optimiser then does with it what it does with any step. Around FedAvg it is
FedGA. One communication more than the algorithm inside.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from raygrad.algorithms.around import Around, AroundState
from raygrad.algorithms.base import check
from raygrad.algorithms.method_around import MethodAround
from raygrad.contract import Answer, Ask, Cohort, Population, Round, Task, parameters
from raygrad.errors import BadInput


@dataclass(frozen=True)
class DisplacedMethod(MethodAround):
    """A client method from a displaced start."""

    takes: tuple[str, ...] = ("x", "g_mean", "g")
    gives: tuple[str, ...] = ("start",)
    beta: float = 0.0

    def __call__(self, task: Task, **given: Tensor) -> Answer:
        start = given["x"] - self.beta * (given["g_mean"] - given["g"])
        return self.inside(task, given, start=start)


@dataclass(frozen=True)
class Displaced(Around):
    """`beta` is the size of the displacement; `inner` is the algorithm inside."""

    changes_asks: ClassVar[bool] = True

    beta: float = 0.05

    def __post_init__(self) -> None:
        check(self, beta=0)

    def init(self, x: Tensor, population: Population) -> AroundState:
        state = super().init(x, population)
        _check(self.first_ask(state, population))
        return state

    def gradient(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"g": g}, scratch={"g": g})

    def round(self, state: AroundState, cohort: Cohort) -> Round:
        conversation = self.inner.round(state.inner, cohort)
        ask = next(conversation)
        _check(ask)
        g = yield Ask(self.gradient, cohort, {"x": state.x})
        r = yield replace(
            ask, work=DisplacedMethod(ask.work, beta=self.beta), cohort=g.cohort,
            down={"x": state.x, **ask.down, "g_mean": g.mean("g")},
        )  # fmt: skip
        try:
            conversation.send(r)
        except StopIteration as stop:
            return AroundState(stop.value)
        raise BadInput(f"algorithm.inner cannot be displaced: {ask.work.__qualname__} is not all that it asks for")


def _check(ask: Ask) -> None:
    if "start" not in parameters(ask.work, optional=True):
        raise BadInput(
            f"algorithm.inner cannot be displaced: {ask.work.__qualname__} takes no start=None to begin its local "
            "steps from; fedavg, fedprox, feddyn, fedaware, local-gd and server optimisers around them can be"
        )
    if ask.each:
        raise BadInput(f"algorithm.inner cannot be displaced: {ask.work.__qualname__} gets a row for each client")
