"""What algorithms around another one share: they drive its rounds, and own what it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from typing import Any

from torch import Tensor

from raygrad import config
from raygrad.algorithms.base import ALGORITHMS
from raygrad.algorithms.fedavg import FedAvg
from raygrad.contract import Algorithm, Answer, Change, ClientMethod, ClientState, Population, Resizes, Task, parameters


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

    inner: Algorithm = config.one_of(ALGORITHMS, FedAvg())

    @property
    def lr(self) -> float | None:
        """The local step size, where the algorithm inside has one."""
        return getattr(self.inner, "lr", None)

    def init(self, x: Tensor, population: Population) -> AroundState:
        """What the algorithm inside begins with."""
        return AroundState(self.inner.init(x, population))

    def client_state(self, x: Tensor) -> ClientState:
        """What clients keep for the algorithm inside."""
        return self.inner.client_state(x)

    def resize(self, state: Any, change: Change) -> Any:
        """The algorithm inside learns who left and who joined, where it has to know."""
        if not isinstance(self.inner, Resizes):
            return state
        return replace(state, inner=self.inner.resize(state.inner, change))


@dataclass(frozen=True)
class MethodAround:
    """A client method around another one. `takes` are the names of its own parameters, `gives` those of the method
    inside that it fills.

    It passes for a method of the same object, so that who knows client methods need not know of it.
    """

    work: ClientMethod
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        inside = [n for n in parameters(self.work) if n not in self.gives]
        names = dict.fromkeys(("task", *inside, *self.takes))
        options = [n for n in parameters(self.work, optional=True) if n not in (*self.gives, *names)]
        required = [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names]
        optional = [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD, default=None) for n in options]
        for name, value in {
            "__self__": getattr(self.work, "__self__", None),
            "__name__": self.work.__name__,
            "__qualname__": f"{type(self).__name__}({self.work.__qualname__})",
            "__signature__": Signature([*required, *optional]),
        }.items():
            object.__setattr__(self, name, value)

    def __call__(self, task: Task, **given: Tensor) -> Answer:
        """What a client answers. `given` has everything by name."""
        raise NotImplementedError

    def inside(self, task: Task, given: Mapping[str, Tensor], **filled: Tensor) -> Answer:
        """What the method inside answers."""
        known = {**given, **filled}
        names = (*parameters(self.work), *(n for n in parameters(self.work, optional=True) if n in known))
        return self.work(task, **{n: known[n] for n in names})
