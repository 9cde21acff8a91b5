"""Losses and metrics by name. Each is a function `(output, target) -> [B]`, one value per example.

A name is a key of `LOSSES` or `METRICS`, or `package.module:function` of the user's own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raygrad.naming import load_attribute, unknown

PerExample = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Softmax cross-entropy of logits [B, C] against class labels [B]."""
    return F.cross_entropy(output, target, reduction="none")


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error of predictions [B] or [B, 1] against targets [B]."""
    return 0.5 * (output.reshape(target.shape) - target) ** 2


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 where the largest of the logits [B, C] is the label [B], else 0."""
    return (output.argmax(dim=-1) == target).to(torch.float64)


LOSSES: dict[str, PerExample] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
METRICS: dict[str, PerExample] = {"accuracy": accuracy}


def load_loss(name: str) -> PerExample:
    """The loss called `name`. Raises BadInput for an unknown one."""
    return _load(name, LOSSES, "loss")


def load_metrics(names: Sequence[str]) -> dict[str, PerExample]:
    """The metrics called `names`, keyed by their short names. Raises BadInput for an unknown one."""
    return {name.rsplit(":", 1)[-1]: _load(name, METRICS, "metric") for name in names}


def _load(name: str, known: dict[str, PerExample], what: str) -> PerExample:
    if ":" in name:
        return load_attribute(name, what)  # pyright: ignore[reportReturnType]
    if name not in known:
        raise unknown(what, name, known)
    return known[name]
