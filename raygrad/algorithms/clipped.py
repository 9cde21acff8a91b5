"""A client method whose vectors together are no longer than a bound."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raygrad.algorithms.method_around import MethodAround
from raygrad.contract import Answer, Task


@dataclass(frozen=True)
class ClippedMethod(MethodAround):
    """A client method whose vectors have together at most the norm `clip`."""

    clip: float = 1.0

    def __call__(self, task: Task, **given: Tensor) -> Answer:
        answer = self.inside(task, given)
        vectors = {name: u for name, u in answer.update.items() if u.ndim}
        norm = torch.stack([(u**2).sum() for u in vectors.values()]).sum().sqrt()
        scale = (self.clip / norm.clamp_min(self.clip)).to(norm.dtype)
        scaled = {name: u * scale for name, u in vectors.items()}
        return replace(answer, update={**answer.update, **scaled, "clipped": (scale < 1).to(norm.dtype)})
