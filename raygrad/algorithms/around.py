"""What algorithms around another one share: they drive its rounds, and own what it keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from raygrad import config
from raygrad.algorithms.base import ALGORITHMS
from raygrad.algorithms.fedavg import FedAvg
from raygrad.contract import (
    Algorithm,
    Ask,
    Change,
    ClientState,
    Cohort,
    Measures,
    Population,
    Resizes,
    Round,
)
from raygrad.errors import BadInput


@dataclass(frozen=True)
class AroundState:
    """The state of the algorithm inside."""

    inner: Any

    @property
    def x(self) -> Tensor:
        """The model [d]."""
        return self.inner.x


def moved(state: Any, x: Tensor) -> Any:
    """The state of an algorithm with the model `x` [d] instead of its own."""
    return replace(state, **({"inner": moved(state.inner, x)} if isinstance(state, AroundState) else {"x": x}))


@dataclass(frozen=True)
class Around:
    """An algorithm around `inner`. Clients keep what `inner` lets them keep."""

    changes_asks: ClassVar[bool] = False
    """Whether it changes what clients do or send; what is `sealed` allows that nobody."""

    inner: Algorithm = config.one_of(ALGORITHMS, FedAvg())

    @property
    def lr(self) -> float | None:
        """The local step size, where the algorithm inside has one."""
        return getattr(self.inner, "lr", None)

    def init(self, x: Tensor, population: Population) -> AroundState:
        """What the algorithm inside begins with. Raises BadInput if it may not be changed so."""
        inside = self.inner
        while self.changes_asks and inside is not None:
            if getattr(inside, "sealed", False):
                raise BadInput(
                    f"algorithm.inner holds {type(inside).__name__}, whose promise would not hold if clients sent "
                    f"something else: put it around {type(self).__name__} instead"
                )
            inside = getattr(inside, config.INNER, None)
        return AroundState(self.inner.init(x, population))

    def first_ask(self, state: AroundState, population: Population) -> Ask:
        """What the algorithm inside asks first, of one client."""
        conversation = self.inner.round(state.inner, population.one())
        ask = next(conversation)
        conversation.close()
        return ask

    def client_state(self, x: Tensor) -> ClientState:
        """What clients keep for the algorithm inside."""
        return self.inner.client_state(x)

    def measures(self, state: Any) -> Mapping[str, float]:
        """What the algorithm inside measures."""
        return self.inner.measures(state.inner) if isinstance(self.inner, Measures) else {}

    def driven(self, inner: Any, cohort: Cohort, changed: Callable[[Ask], Round]) -> Round:
        """A round of the algorithm inside from its state `inner`; `changed(ask)` is the conversation about each ask."""
        conversation = self.inner.round(inner, cohort)
        try:
            ask = next(conversation)
            while True:
                ask = conversation.send((yield from changed(ask)))
        except StopIteration as stop:
            return stop.value

    def resize(self, state: Any, change: Change) -> Any:
        """The algorithm inside learns who left and who joined, where it has to know."""
        if not isinstance(self.inner, Resizes):
            return state
        return replace(state, inner=self.inner.resize(state.inner, change))
