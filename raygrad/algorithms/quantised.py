"""Updates that are rounded to a few levels on their way up, around any algorithm.

    u_k -> |u| sign(u_k) l / s,   l/s one of the two of 0, 1/s, ..., 1 next to |u_k| / |u|, drawn so that E = u_k

Each vector that a client sends is encoded by itself, as its norm and ceil(log2(2 s + 1)) bits for each entry; what
clients are sent is not. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding"
(arXiv 1610.02132). Communications as the algorithm inside.
"""

from dataclasses import dataclass, replace
from math import ceil, log2
from typing import ClassVar

import torch
from torch import Tensor

from raygrad.algorithms.around import Around, AroundState
from raygrad.algorithms.base import check
from raygrad.algorithms.method_around import MethodAround
from raygrad.contract import Answer, Ask, Cohort, Population, Round, Task
from raygrad.errors import BadInput


@dataclass(frozen=True)
class QuantisedMethod(MethodAround):
    """A client method whose vectors are rounded to `levels` levels."""

    levels: int = 1

    def __call__(self, task: Task, **given: Tensor) -> Answer:
        answer = self.inside(task, given)
        update, vectors = dict(answer.update), [name for name, u in answer.update.items() if u.ndim]
        for number, name in enumerate(vectors):
            update[name] = quantised(update[name], self.levels, task.uniforms(number))
        return replace(answer, update=update)


def quantised(u: Tensor, levels: int, uniforms: Tensor) -> Tensor:
    """`u` [d] rounded at random to the `levels` s, with `uniforms` [d] in [0, 1)."""
    norm = u.norm()
    places = torch.floor(u.abs() / torch.where(norm > 0, norm, 1.0) * levels + uniforms)
    return norm * u.sign() * places / levels


def refuse_encoded(ask: Ask) -> None:
    """Raises BadInput if what is asked for is encoded already."""
    if ask.encoded is not None:
        raise BadInput("algorithm.inner encodes what clients send already: quantise or sparsify, not both")


@dataclass(frozen=True)
class Quantised(Around):
    """`levels` is s; `inner` is the algorithm inside."""

    changes_asks: ClassVar[bool] = True

    levels: int = 7

    def __post_init__(self) -> None:
        check(self, levels=1)
        if self.levels > 2**16:
            raise BadInput(f"algorithm.levels is {self.levels}; it must be at most {2**16}: more save no bytes")

    def init(self, x: Tensor, population: Population) -> AroundState:
        state = super().init(x, population)
        refuse_encoded(self.first_ask(state, population))
        return state

    def round(self, state: AroundState, cohort: Cohort) -> Round:
        bits = ceil(log2(2 * self.levels + 1))

        def changed(ask: Ask) -> Round:
            work = QuantisedMethod(ask.work, levels=self.levels)
            return (yield replace(ask, work=work, encoded=lambda n, itemsize: itemsize + ceil(n * bits / 8)))

        return AroundState((yield from self.driven(state.inner, cohort, changed)))
