"""What a communication phase costs a client, found by a rehearsal: its method runs once on a task that only counts.

Nothing is declared, so nothing can disagree with what the method does. It works because client methods have no branches
that depend on data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygrad.contract import Answer, Ask, Batch, parameters
from raygrad.local import Local

EVALUATION = 1 / 3
"""A forward pass, as a part of a forward and backward pass."""
HESSIAN = 2.0
"""A Hessian-vector product, in gradients."""


@dataclass(frozen=True)
class Cost:
    """What a client method does at every client.

    `steps`: gradients of mini-batches, divided by K. `passes`: gradients of the whole shard. `bytes_up`: what the
    answer takes. `update` and `scratch`: zeros in the shapes of what it answers and of what it keeps for a later phase.
    """

    steps: float
    passes: float
    bytes_up: int
    update: Mapping[str, Tensor]
    scratch: Mapping[str, Tensor]

    def examples(self, counts: np.ndarray, steps: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The gradient evaluations of clients with `counts` [m] examples, of `steps` [m] steps on `sizes` [m] examples:
        [m].
        """
        return self.steps * steps * sizes + self.passes * counts


def rehearse(ask: Ask, given: Mapping[str, Tensor], local: Local, counts: int, measures: list[str]) -> Cost:
    """Run the work of `ask` for its cost. `given` has its arguments by name; the task has a shard of `counts` examples.

    `measures` are the names that an evaluation gives besides "count".
    """
    work, task = ask.work, _Rehearsal(local, counts, measures, given)
    try:
        answer: Answer = work(task, **{name: given[name] for name in parameters(work) if name in given})
    except Exception as e:
        e.add_note(f"in a rehearsal of {work.__qualname__} with zero gradients, for what it costs a modelled device")
        raise
    up = sum(map(ask.bytes_of, answer.update.values()))
    up += task.loss_bytes if task.gradients or task.passes else 0
    update, scratch = ({n: torch.zeros_like(t) for n, t in d.items()} for d in (answer.update, answer.scratch or {}))
    return Cost(task.gradients / task.steps, task.passes, up, update, scratch)


class _Rehearsal:
    """A task (`raygrad.contract.Task`) without data: gradients are zero, and counted."""

    round = 1

    def __init__(self, local: Local, examples: int, measures: list[str], given: Mapping[str, Tensor]) -> None:
        self._given = given
        self.examples, self._measures = examples, measures
        self.steps = local.steps_for(examples)
        self.weight_decay, self.clip_norm, self.momentum = local.weight_decay, local.clip_norm, local.momentum
        self.gradients, self.passes = 0, 0.0
        self.loss_bytes = 0
        zeros = torch.zeros(examples if local.batch_size == "full" else local.batch_size)
        self._batch = Batch(zeros, zeros)

    @property
    def batches(self) -> Iterator[Batch]:
        return iter([self._batch] * self.steps)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        self.gradients += 1
        self.loss_bytes = x.element_size()
        return torch.zeros_like(x)

    def full_grad(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.loss_bytes = x.element_size()
        return torch.zeros_like(x)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        self.passes += HESSIAN
        return torch.zeros_like(x)

    def square_norms(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        if batch is None:
            self.passes += 1
        else:
            self.gradients += 1
        return x.new_zeros(())

    def evaluate(self, x: Tensor) -> Mapping[str, Tensor]:
        self.passes += EVALUATION
        return {name: torch.zeros((), dtype=torch.float64) for name in (*self._measures, "count")}

    def uniforms(self, number: int = 0) -> Tensor:
        return torch.zeros_like(next(t for t in self._given.values() if t.ndim))

    def lr(self, base: float) -> float:
        return base
