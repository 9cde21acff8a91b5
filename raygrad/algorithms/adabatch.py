"""AdaBatch: batches that double every few epochs, so that fewer updates see as many examples.

    a step takes m examples, in equal parts from the clients asked
    at the end of every F-th epoch:   m <- min(2 m, largest),   alpha grows as m does

Devarakonda, Naumov, Garland, "AdaBatch: Adaptive Batch Sizes for Training Deep Neural Networks" (arXiv 1712.02029).
With K = 1 a round is one update, as in the paper; an epoch ends when as many examples were seen as there are. One
communication per round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from raygrad import local
from raygrad.algorithms.base import check
from raygrad.contract import Answer, Ask, ClientMethod, ClientState, Cohort, Population, Replies, Round, Task


@dataclass(frozen=True)
class BatchState:
    """The model, m, and how far the epochs have got."""

    x: Tensor  # [d]
    m: Tensor  # []
    epoch: Tensor  # [], those that are over
    seen: Tensor  # [], examples of the one that goes on


@dataclass(frozen=True)
class AdaBatch:
    """`lr` is alpha for a batch of `batch_size` examples, kept for all if `rescale` is false; `every` is F."""

    lr: float = 0.1
    batch_size: int = 16
    max_batch_size: int = 256
    every: int = 1
    rescale: bool = True

    def __post_init__(self) -> None:
        check(self, lr=0, batch_size=1, max_batch_size=self.batch_size, every=1)

    def init(self, x: Tensor, population: Population) -> BatchState:
        zero = x.new_zeros(())
        return BatchState(x, x.new_tensor(float(self.batch_size)), zero, zero)

    def client_state(self, x: Tensor) -> ClientState:
        return {}

    def measures(self, state: BatchState) -> Mapping[str, float]:
        """The examples of a step, and the epochs that are over."""
        return {"batch_size": float(state.m), "epochs": float(state.epoch)}

    def local(self, task: Task, x: Tensor) -> Answer:
        delta = local.sgd(task, x, task.lr(self.lr)) - x
        return Answer({"delta": delta, "steps": torch.full_like(delta[0], task.steps)})

    def work(self, state: Any) -> ClientMethod:
        """What clients do in this epoch."""
        return self.local

    def observed(self, state: Any, r: Replies, m: int) -> Any:
        """The state after what clients have said of steps of `m` examples."""
        return state

    def grown(self, state: Any, n: float) -> float:
        """The next m, after an epoch in which `n` examples were seen."""
        return 2 * float(state.m)

    def round(self, state: Any, cohort: Cohort) -> Round:
        share = ceil(float(state.m) / max(1, len(cohort)))
        scaled = replace(self, lr=self.lr * float(state.m) / self.batch_size) if self.rescale else self
        r = yield Ask(scaled.work(state), cohort, {"x": state.x}, batch_size=share)
        after = self.observed(replace(state, x=state.x + r.mean("delta")), r, share * len(r.cohort))
        seen = state.seen + share * float(r.scalar("steps").sum())
        population = r.cohort.population
        n = float(population.examples[population.at(torch.arange(len(population)).numpy())].sum())
        if float(seen) < n:
            return replace(after, seen=seen)
        m, epoch = float(state.m), state.epoch + 1
        if float(epoch) % self.every == 0 and m < self.max_batch_size:
            m = float(int(min(max(self.grown(after, float(seen)), m), self.max_batch_size)))
        begun = self.init(after.x, population)
        return replace(begun, m=torch.full_like(seen, m), epoch=epoch)
