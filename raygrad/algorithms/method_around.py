"""A client method around another one: what wrappers of algorithms put in the place of the method inside."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature

from torch import Tensor

from raygrad.contract import Answer, ClientMethod, Task, parameters


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
