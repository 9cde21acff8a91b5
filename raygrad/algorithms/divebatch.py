"""DiveBatch: batches as large as the diversity of the examples' gradients makes them useful.

    a step takes m examples, in equal parts from the clients asked
    at the end of every F-th epoch:   m <- min(max(m, delta n D), largest),   alpha grows as m does
    D = sum_j |grad l_j|^2 / |sum_j grad l_j|^2   over the examples j of that epoch, at the moving iterates

D is the gradient diversity: n D is 1 if all n examples pull alike, n if their gradients are orthogonal, and bounds the
batch that pays (Yin et al., arXiv 1706.05699). Where shards differ in size it is that of what is minimised: of all
examples under `weights=examples`. Chen, Wang, Sundaram, "DiveBatch: Accelerating Model Training Through
Gradient-Diversity Aware Batch Size Adaptation" (arXiv 2509.16173). With K = 1 a round is one update, as in the paper;
each client's part of m is rounded up. One communication per round; clients send one vector more in the epochs that are
measured.
"""

from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from raygrad import local
from raygrad.algorithms.adabatch import AdaBatch, BatchState
from raygrad.algorithms.base import check
from raygrad.contract import Answer, Batch, ClientMethod, Population, Replies, Task


@dataclass(frozen=True)
class DiveState(BatchState):
    """And what was measured in this epoch."""

    a: Tensor  # [d], the sum of the steps' mean gradients
    q: Tensor  # [], the sum of |grad l_j|^2 / m^2 over the examples of the steps


@dataclass(frozen=True)
class DiveBatch(AdaBatch):
    """`lr` is alpha for a batch of `batch_size` examples, kept for all if `rescale` is false; `every` is F; `delta` is
    the part of the bound n D that is taken.
    """

    delta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, delta=0)

    def init(self, x: Tensor, population: Population) -> DiveState:
        begun = super().init(x, population)
        return DiveState(begun.x, begun.m, begun.epoch, begun.seen, torch.zeros_like(x), torch.zeros_like(begun.m))

    def measured(self, task: Task, x: Tensor) -> Answer:
        seen: list[tuple[Tensor, Tensor]] = []

        def watch(y: Tensor, batch: Batch, g: Tensor) -> None:
            seen.append((g, task.square_norms(y, batch)))

        delta = local.sgd(task, x, task.lr(self.lr), watch=watch) - x
        a, q = (torch.stack(parts).sum(0) for parts in zip(*seen, strict=True))
        return Answer({"delta": delta, "steps": torch.full_like(delta[0], task.steps), "a": a, "q": q})

    def measures_in(self, state: DiveState) -> bool:
        """Whether this epoch is measured."""
        return (float(state.epoch) + 1) % self.every == 0 and float(state.m) < self.max_batch_size

    def work(self, state: DiveState) -> ClientMethod:
        return self.measured if self.measures_in(state) else self.local

    def observed(self, state: DiveState, r: Replies, m: int) -> DiveState:
        if not self.measures_in(state):
            return state
        weights, share = r.cohort.weights, m / len(r.cohort)
        q = float((weights * r.scalar("q")).sum()) / r.cohort.divisor / share / m
        return replace(state, a=state.a + r.mean("a"), q=state.q + q)

    def grown(self, state: DiveState, n: float) -> float:
        square = float((state.a.double().numpy() ** 2).sum())
        bound = n * float(state.q) / square if square else float("inf")
        return self.delta * bound if isfinite(bound) else self.max_batch_size
