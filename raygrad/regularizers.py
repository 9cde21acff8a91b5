"""Terms of every client's loss that see the weights alone: f_i(y) + lambda R(y). y_0 is the initial model.

    l2            R = |y|^2
    l2-init       R = |y - y_0|^2
    wasserstein   R = sum over parameter tensors  sum_j (sort(y)_j - sort(y_0)_j)^2
    spectral      R = sum over weights (sigma(W)^k - 1)^2 + sum over biases |b|^(2k)
                      + sum over normalisation layers sum_j (scale_j^k - 1)^2 + shift_j^(2k)

A weight of more than two dimensions is the matrix (out, -1). Gradients are written out, so that one client and a gang
of them run the same lines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from raygrad.errors import BadInput
from raygrad.flat import FlatModel
from raygrad.rng import Purpose, rng

VALUE = "regularizer"
"""The name under which evaluations have the term's value."""


class Term(Protocol):
    """lambda R of one architecture."""

    def value(self, x: Tensor) -> Tensor:
        """At the models `x` [..., d] -> [...]."""
        ...

    def grad(self, x: Tensor) -> Tensor:
        """Its gradients at `x` [..., d] -> [..., d], differentiable in `x`."""
        ...


def hvp(term: Term, x: Tensor, v: Tensor) -> Tensor:
    """The term's Hessians at `x` [..., d], times `v` [..., d] -> [..., d]."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (product,) = torch.autograd.grad((term.grad(x) * v).sum(), x)
    return product


@runtime_checkable
class Regularizer(Protocol):
    """The settings of a term. With `weight` 0 there is none."""

    from_start: ClassVar[bool]
    """Whether it needs the initial model, which hosts make from the seed."""

    @property
    def weight(self) -> float:
        """lambda."""
        ...

    def on(self, model: FlatModel, seed: int) -> Term:
        """The term for `model`, which still has its initial weights."""
        ...


@dataclass(frozen=True)
class _Distance:
    """weight |x - target(x)|^2; the target [..., d] does not change with small changes of x."""

    weight: float
    target: Callable[[Tensor], Tensor]

    def value(self, x: Tensor) -> Tensor:
        return self.weight * ((x - self.target(x)) ** 2).sum(-1)

    def grad(self, x: Tensor) -> Tensor:
        return (2 * self.weight) * (x - self.target(x))


Steered = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A parameter [..., n] -> its part of R [...], and that part's gradient [..., n]."""


@dataclass(frozen=True)
class _Sum:
    """weight times the sum over parameters of one part each."""

    weight: float
    sizes: list[int]
    parts: list[Steered]

    def value(self, x: Tensor) -> Tensor:
        return self.weight * sum((value for value, _ in self._each(x)), x.new_zeros(x.shape[:-1]))

    def grad(self, x: Tensor) -> Tensor:
        return self.weight * torch.cat([gradient for _, gradient in self._each(x)], -1)

    def _each(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [part(p) for part, p in zip(self.parts, x.split(self.sizes, -1), strict=True)]


def _check_weight(weight: float) -> None:
    if not (isfinite(weight) and weight >= 0):
        raise BadInput(f"regularizer.weight is {weight}; it must be a finite number >= 0")


@dataclass(frozen=True)
class Unregularized:
    """The loss alone."""

    from_start: ClassVar[bool] = False

    @property
    def weight(self) -> float:
        """0: there is no term."""
        return 0.0

    def on(self, model: FlatModel, seed: int) -> Term:
        """See `Regularizer.on`."""
        return _Distance(0.0, torch.zeros_like)


@dataclass(frozen=True)
class L2:
    """The squared norm of all parameters: weights are drawn to 0.

    Its gradient is that of `local.weight_decay` = 2 `weight`, but part of the loss: it is clipped, displaced and
    carried by momentum as the loss is.
    """

    weight: float = 1e-4
    from_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def on(self, model: FlatModel, seed: int) -> Term:
        """See `Regularizer.on`."""
        return _Distance(self.weight, torch.zeros_like)


@dataclass(frozen=True)
class L2Init:
    """The squared distance of all parameters to their initial values.

    Kumar, Marklund, Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative Regularization" (arXiv
    2308.11958).
    """

    weight: float = 1e-4
    from_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def on(self, model: FlatModel, seed: int) -> Term:
        """See `Regularizer.on`."""
        start = model.vector()
        return _Distance(self.weight, lambda x: start)


@dataclass(frozen=True)
class Wasserstein:
    """The squared 2-Wasserstein distance of each parameter tensor's values to its initial ones, times their number.

    Weights may change places for nothing; their distribution is held. A sum over each tensor's order statistics, not a
    mean, so that `weight` means what it means for `l2-init`. Lewandowski et al., "Directions of Curvature as an
    Explanation for Loss of Plasticity" (arXiv 2312.00246).
    """

    weight: float = 1e-4
    from_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def on(self, model: FlatModel, seed: int) -> Term:
        """See `Regularizer.on`."""
        sizes, start = model.sizes, [p.sort().values for p in model.vector().split(model.sizes)]

        def matched(x: Tensor) -> Tensor:
            """The initial values in the order of those of `x`."""
            pairs = zip(x.split(sizes, -1), start, strict=True)
            return torch.cat(
                [torch.empty_like(p).scatter(-1, p.sort(-1).indices, s.expand_as(p)) for p, s in pairs], -1
            )

        return _Distance(self.weight, matched)


@dataclass(frozen=True)
class Spectral:
    """Each weight's largest singular value is drawn to 1, biases to 0; of normalisation layers each scale to 1 and each
    shift to 0. Any other vector counts as a bias.

    `power` is k. The singular value comes of `iterations` power iterations from a start vector of the layer's own, the
    same in every step, and its vectors count as constants in the gradient. Nothing is kept between steps, so the
    paper's one iteration is not enough: at the initial weights of raygrad's models it finds 14 to 19 % too little on
    average, ten find 1 to 3 % too little. Lewandowski et al., "Learning Continually by Spectral Regularization"
    (arXiv 2406.06811).
    """

    weight: float = 1e-3
    power: int = 2
    iterations: int = 10
    from_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        for name, value in (("power", self.power), ("iterations", self.iterations)):
            if value < 1:
                raise BadInput(f"regularizer.{name} is {value}; it must be >= 1")

    def on(self, model: FlatModel, seed: int) -> Term:
        """See `Regularizer.on`."""
        return _Sum(self.weight, model.sizes, [self._part(model, i, seed) for i in range(len(model.names))])

    def _part(self, model: FlatModel, i: int, seed: int) -> Steered:
        owner, _, name = model.names[i].rpartition(".")
        k, shape = self.power, model.shapes[i]
        if isinstance(model.module.get_submodule(owner), _NORMS):
            return partial(_entries, target=0.0 if name == "bias" else 1.0, k=k)
        if len(shape) < 2:
            return partial(_norm, k=k)
        start = rng(seed, Purpose.SPECTRUM, i).standard_normal(model.sizes[i] // shape[0])
        v = torch.from_numpy(start).to(model.device, model.dtype)
        return partial(_largest, rows=shape[0], start=v, k=k, iterations=self.iterations)


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def _largest(p: Tensor, rows: int, start: Tensor, k: int, iterations: int) -> tuple[Tensor, Tensor]:
    """(sigma(W)^k - 1)^2."""
    w = p.unflatten(-1, (rows, -1))
    v = start
    for _ in range(iterations):
        u = _unit(w @ v.unsqueeze(-1))  # [..., rows, 1]
        v = _unit(w.mT @ u).squeeze(-1)
    u = _unit(w @ v.unsqueeze(-1))
    sigma = (u * (w @ v.unsqueeze(-1))).sum((-2, -1))
    off = sigma**k - 1
    gradient = (2 * k * off * sigma ** (k - 1))[..., None, None] * u * v.unsqueeze(-2)
    return off**2, gradient.flatten(-2)


def _unit(column: Tensor) -> Tensor:
    return column / column.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(column.dtype).tiny)


def _norm(b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """|b|^(2k)."""
    square = (b**2).sum(-1)
    return square**k, (2 * k * square ** (k - 1)).unsqueeze(-1) * b


def _entries(p: Tensor, target: float, k: int) -> tuple[Tensor, Tensor]:
    """sum_j (p_j^k - target)^2, with the target 0 or 1."""
    off = p**k - target
    return (off**2).sum(-1), 2 * k * off * p ** (k - 1)


REGULARIZERS: dict[str, type] = {
    "none": Unregularized,
    "l2": L2,
    "l2-init": L2Init,
    "spectral": Spectral,
    "wasserstein": Wasserstein,
}
