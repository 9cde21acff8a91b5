"""Local-GD with a linear model and the logistic loss, on data that is separable and on data that is not.

w* is the hard-margin solution on all clients' examples together, the shortest w with y a.w >= 1 for each example a with
label y of -1 or 1. An example is stored as y a.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import log, log2

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import softplus

from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.local_gd import LocalGD
from raygrad.contract import Algorithm, Ask, Batch, Cohort, Population, Replies
from raygrad.rng import Purpose, rng
from raygrad.theory.problems import CLIENTS, K, Problem, after, grad
from raygrad.theory.statement import SLACK, Finding, of_order, statement

RATE = 0.05
"""Up to this relative error a limit counts as reached: after 1000 rounds a tenth more or less is not."""


@dataclass(frozen=True)
class Shards:
    """Separable examples [n, m, d], each times its label, of n clients; fewer than features, so w* is exact."""

    name: str
    a: Tensor

    @property
    def pooled(self) -> Tensor:
        """All examples [n m, d]."""
        return self.a.flatten(0, 1)

    @property
    def margin(self) -> Tensor:
        """w* [d]."""
        return projection(self.pooled, self.a.new_zeros(self.a.shape[2]))

    def f(self, w: Tensor) -> float:
        """The mean logistic loss."""
        return float(softplus(-self.pooled @ w).mean())


def shards(examples: int, features: int, iid: bool = False, seed: int = 0) -> Shards:
    """Clients whose examples lie about means of their own, at scales of their own; with `iid` the same ones, dealt."""
    draw = rng(seed, Purpose.SYNTHETIC)
    scale = np.geomspace(0.7, 1.4, CLIENTS)[:, None, None] / features**0.5
    means, own = draw.standard_normal((CLIENTS, 1, features)), draw.standard_normal((CLIENTS, examples, features))
    a = scale * (means / 2 + own)
    if iid:
        a = draw.permutation(a.reshape(-1, features)).reshape(a.shape)
    return Shards("IID" if iid else "heterogeneous", torch.from_numpy(a))


def projection(a: Tensor, w: Tensor) -> Tensor:
    """The point [d] nearest to `w` [d] of those with a.w >= 1 for each of the independent examples `a` [m, d].

    It is w + sum_j u_j a_j with u >= 0 that minimises |sum_j u_j a_j - b|^2, a b = 1 - a w (Lawson and Hanson).
    """
    examples = a.numpy()
    b = np.linalg.lstsq(examples, 1 - examples @ w.numpy(), rcond=None)[0]
    return w + a.T @ torch.from_numpy(nnls(examples.T, b)[0])


def logistic_grad(a: Tensor, x: Tensor) -> Tensor:
    """The gradients [n, d] of the clients' mean logistic losses on `a` [n, m, d] at `x` [n, d]."""
    slope = torch.sigmoid(-(a @ x.unsqueeze(-1)).squeeze(-1))
    return -(slope.unsqueeze(1) @ a).squeeze(1) / a.shape[1]


@dataclass(frozen=True)
class Together:
    """The work of all clients at once (`raygrad.contract.Task`): iterates and gradients are [n, d]."""

    a: Tensor  # [n, m, d]
    steps: int
    round: int = 1
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float | None = None

    @property
    def batches(self) -> Iterator[Batch]:
        """Batches of one example, in turn."""
        return (Batch(self.a[:, [k % self.a.shape[1]]], self.a.new_empty(0)) for k in range(self.steps))

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        return logistic_grad(batch.x, x)

    def full_grad(self, x: Tensor) -> Tensor:
        return logistic_grad(self.a, x)

    def lr(self, base: float) -> float:
        return base


def models(algorithm: Algorithm, s: Shards, answers: Callable[[Ask], Tensor]) -> Iterator[Tensor]:
    """The model [d] after each round from 0; `answers(ask)` are the clients' deltas [n, d]."""
    n, m, d = s.a.shape
    cohort = Cohort(np.arange(n), np.ones(n), Population(np.full(n, m), np.ones(n)))
    state = algorithm.init(s.a.new_zeros(d), cohort.population)
    while True:
        conversation = algorithm.round(state, cohort)
        ask = next(conversation)
        try:
            conversation.send(Replies(cohort, {"delta": answers(ask).sum(0)}, {}, {}, torch.float64))
        except StopIteration as stop:
            state = stop.value
        yield state.x


def descending(algorithm: Algorithm, s: Shards, steps: int) -> Iterator[Tensor]:
    """The model after each round in which clients do what the algorithm says."""
    task = Together(s.a, steps)

    def answers(ask: Ask) -> Tensor:
        return ask.work(task, ask.down["x"].expand(len(s.a), -1)).update["delta"]

    return models(algorithm, s, answers)


def solving(algorithm: Algorithm, s: Shards) -> Iterator[Tensor]:
    """The model after each round in which clients solve their weakly regularised problems exactly: the limit rho -> 0
    is the projection of x onto what has their margins (Evron et al., arXiv 2306.03534).
    """

    def answers(ask: Ask) -> Tensor:
        x = ask.down["x"]
        return torch.stack([projection(a, x) for a in s.a]) - x

    return models(algorithm, s, answers)


def at(rounds: Iterator[Tensor], *counts: int) -> list[Tensor]:
    """The models after some numbers of rounds, in order."""
    found = list(islice(rounds, max(counts)))
    return [found[k - 1] for k in counts]


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / (a.norm() * b.norm()))


def both() -> tuple[Shards, Shards]:
    """8 examples in 100 features, all of them support vectors: others would fade as a power of k, and slowly."""
    return shards(2, 100), shards(2, 100, iid=True)


@statement("Local-GD direction", "w(10 k) - w(k) -> ln 10 w*, so the direction's error is O(1 / log k), at k = 100")
def direction(sign: float, count: int = 100, steps: int = 4) -> Iterator[Finding]:
    """alpha = 20: Local-GD on unlike and on like clients, local SGD (FedAvg) on batches of one example."""
    for name, algorithm, s in (*(("GD", LocalGD(20.0), s) for s in both()), ("SGD", FedAvg(20.0), both()[0])):
        target = s.margin
        before, after = at(descending(algorithm, s, steps), count, 10 * count)
        error = float(((after - before) / log(10) - sign * target).norm() / target.norm())
        cosines = f"cosine {cosine(before, target):.4f}, {cosine(after, target):.4f}"
        yield Finding(f"{error:.1%} off, {cosines} ({name}, {s.name})", error <= RATE)


@statement("Local-GD loss", "alpha K k f(w(k)) -> |w*|^2, whatever alpha and K: O(1 / (K k)), at k = 1000")
def loss(sign: float, count: int = 1000) -> Iterator[Finding]:
    """alpha = 5 and 50, K = 1 and 4. With alpha = 500 the first round leaps far below, and 1000 rounds are too few."""
    s, iid = both()
    for alpha, steps, of in ((5.0, 1, s), (5.0, 4, s), (5.0, 4, iid), (50.0, 4, s)):
        (w,) = at(descending(LocalGD(alpha), of, steps), count)
        found = alpha * steps * count * of.f(w) / float(of.margin @ of.margin)
        yield Finding(f"{found:.3f} of it (alpha {alpha:g}, K {steps}, {of.name})", abs(found - sign) <= RATE)


@statement("exact local solutions", "anchored: w(k) - w* = O(1 / k); plain averaging stops in another direction")
def solutions(sign: float, count: int = 200) -> Iterator[Finding]:
    """12 examples in 20 features; every client's problem is solved exactly in every round."""
    for s in (shards(3, 20), shards(3, 20, iid=True)):
        target = s.margin
        half, end = at(solving(LocalGD(anchored=True), s), count, 2 * count)
        slope = log2(float((half - sign * target).norm() / (end - sign * target).norm()))
        almost, plain = at(solving(LocalGD(), s), 2 * count - 1, 2 * count)
        stopped = float((plain - almost).norm() / plain.norm()) <= 1e-12 and cosine(plain, target) < 0.999
        text = f"slope {slope:.3f}, cosine {cosine(end, target):.6f}, plain {cosine(plain, target):.5f} ({s.name})"
        yield Finding(text, abs(slope - 1) <= SLACK and stopped)


def inseparable() -> Problem:
    """Logistic regression on 12 examples per client in 4 features, with labels of chance."""

    def mean_loss(x: Tensor, batch: Batch) -> Tensor:
        return softplus(-batch.x @ x).mean()

    draw = rng(0, Purpose.SYNTHETIC)
    a = torch.from_numpy(draw.standard_normal((CLIENTS, 12, 4)))
    return Problem("logistic", mean_loss, [[Batch(each, each[:, 0])] for each in a], a.new_zeros(4))


def fixed_point(algorithm: Algorithm, p: Problem, steps: int) -> Tensor:
    """Where a round ends at the point it began at, by Newton's method from the problem's point."""

    def moved(x: Tensor) -> Tensor:
        return after(algorithm, replace(p, x=x), p.full(steps)) - x

    x = p.x
    for _ in range(8):
        x = x - torch.linalg.solve(torch.autograd.functional.jacobian(moved, x), moved(x))
    return x


@statement("Local-GD, not separable", "comes to rest where grad f = (alpha (K-1) / 2) grad r + O(alpha^2)")
def at_rest(sign: float) -> Iterator[Finding]:
    """A finite point, and the pooled minimiser only as far as the clients' gradients agree: K = 3."""
    p = inseparable()

    def remainder(p: Problem, alpha: float, sign: float) -> Tensor:
        x = fixed_point(LocalGD(alpha), p, K)
        return grad(p.f)(x) - sign * alpha * (K - 1) / 2 * grad(p.r)(x)

    yield of_order(2, replace(p, x=fixed_point(LocalGD(1.0), p, 1)), remainder, sign)
