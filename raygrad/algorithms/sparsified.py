"""Updates of which a part is sent, around any algorithm.

    at random:  u -> d/k times k entries that are drawn, so that E = u;   k values go up, the server draws the places
    largest:    u + e -> its k largest entries;  e <- what is left;       k values and k places of 4 bytes go up

What is left of the largest would be lost, so the client keeps it, e, and adds it to its next update (error feedback).
That needs an algorithm whose clients send one vector in one communication. Each vector is encoded by itself; what
clients are sent is not. Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory" (arXiv 1809.07599). Communications as
the algorithm inside; with `largest` one vector of state per client more.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from raygrad.algorithms.around import Around, AroundState
from raygrad.algorithms.method_around import MethodAround
from raygrad.algorithms.quantised import refuse_encoded
from raygrad.contract import Answer, Ask, ClientState, Cohort, Population, Round, Task
from raygrad.errors import BadInput


def count(part: float, d: int) -> int:
    """k, of a vector of d numbers."""
    return max(1, round(part * d))


@dataclass(frozen=True)
class RandomPart(MethodAround):
    """A client method of whose vectors a `part` drawn at random is sent."""

    part: float = 1.0

    def __call__(self, task: Task, **given: Tensor) -> Answer:
        answer = self.inside(task, given)
        update, vectors = dict(answer.update), [name for name, u in answer.update.items() if u.ndim]
        for number, name in enumerate(vectors):
            u = update[name]
            k = count(self.part, u.numel())
            update[name] = _only(u, task.uniforms(number).topk(k).indices) * (u.numel() / k)
        return replace(answer, update=update)


@dataclass(frozen=True)
class LargestPart(MethodAround):
    """A client method of whose vector the largest entries are sent, and the rest is kept."""

    takes: tuple[str, ...] = ("error",)
    part: float = 1.0

    def __call__(self, task: Task, **given: Tensor) -> Answer:
        answer = self.inside(task, given)
        vectors = [name for name, u in answer.update.items() if u.ndim]
        if len(vectors) > 1:
            raise BadInput(f"algorithm.largest keeps what is left of one vector; clients send {', '.join(vectors)}")
        whole = answer.update[vectors[0]] + given["error"]
        sent = _only(whole, whole.abs().topk(count(self.part, whole.numel())).indices)
        state = {**(answer.state or {}), "error": whole - sent}
        return replace(answer, update={**answer.update, vectors[0]: sent}, state=state)


def _only(u: Tensor, places: Tensor) -> Tensor:
    return u * torch.zeros_like(u).scatter(0, places, 1.0)


@dataclass(frozen=True)
class Sparsified(Around):
    """`part` is k/d; `largest` sends the largest entries instead of random ones; `inner` is the algorithm inside."""

    changes_asks: ClassVar[bool] = True

    part: float = 0.1
    largest: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise BadInput(f"algorithm.part is {self.part}; it must be above 0 and at most 1")

    def init(self, x: Tensor, population: Population) -> AroundState:
        state = super().init(x, population)
        refuse_encoded(self.first_ask(state, population))
        return state

    def client_state(self, x: Tensor) -> ClientState:
        kept = {"error": torch.zeros_like(x)} if self.largest else {}
        return {**self.inner.client_state(x), **kept}

    def round(self, state: AroundState, cohort: Cohort) -> Round:
        asked: list[Ask] = []

        def changed(ask: Ask) -> Round:
            asked.append(ask)
            if self.largest and len(asked) > 1:
                raise BadInput(
                    f"algorithm.largest keeps what is left of one communication; {type(self.inner).__name__} has two"
                )
            kind = LargestPart if self.largest else RandomPart
            place = 4 if self.largest else 0

            def encoded(d: int, itemsize: int) -> int:
                return count(self.part, d) * (itemsize + place)

            return (yield replace(ask, work=kind(ask.work, part=self.part), encoded=encoded))

        return AroundState((yield from self.driven(state.inner, cohort, changed)))
