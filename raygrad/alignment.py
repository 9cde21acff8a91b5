"""What is measured at a model: how well clients' gradients agree, and how good the model is. Conversations that only
measure.

    r(x) = 1/(2n) sum_i |g_i - g|^2                       half the trace of the covariance of the clients' gradients
    grad r(x) = (1/n) sum_i H_i (g_i - g)                 by Hessian-vector products
    n Delta(x) = (1/n) sum_i |g_i|^2 / |g|^2              gradient diversity times n; 1 + 2 r / |g|^2
    cosine(x) = mean_i cos(g_i, g)                        to the mean gradient
    pairwise cosine(x) = mean_{i != j} cos(g_i, g_j) = (|sum_i u_i|^2 - n) / (n (n-1)),  u_i = g_i / |g_i|
    drift(x) = sqrt( mean_i |y_i - y|^2 ),                y_i: K steps of plain SGD from x,  y = mean_i y_i
    Lambda(x) = sum_i q_i |g_i|^2 / |sum_i q_i g_i|^2     the same weighted by examples, q_i = n_i / n; 1 if all agree
    B(x) = n sum_j |grad l_j|^2 / |sum_j grad l_j|^2      over the n examples: larger batches no longer pay

r: Dandi, Barba, Jaggi (arXiv 2106.13897, section 3). Gradient diversity and B: Yin et al. (arXiv
1706.05699). Lambda: Haddadpour, Mahdavi (arXiv 1910.14425). In all but the last two clients weigh the same.

The measured cohort S has m of the N clients, and E[r_S] = (1 - 1/m) N/(N-1) r. So r_S and grad r_S are divided by that
factor: r and the vector grad r are estimated without bias (the norm of the vector is not: it comes out too large where
the cohort is small). Everything else is of the measured clients as they are.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygrad import local
from raygrad.contract import Answer, Ask, Cohort, Population, Replies, Task
from raygrad.rng import Purpose, rng

_TINY = 1e-300  # below any square of a norm that counts


@dataclass(frozen=True)
class Alignment:
    """The alignment of the full gradients g_i of `clients` clients at one model, and what else was measured there.

    None stands for what cannot be measured.
    """

    clients: int  # m
    r: float  # of the population
    gradient_norm: float  # |g|, of the mean
    diversity: float  # n Delta with n = m; inf where g = 0
    cosine: float  # to the mean gradient, over the clients with a gradient; NaN if there is none
    r_gradient_norm: float | None = None  # |grad r|; None where the model has no second derivative
    client_gradient_norm: float | None = None  # mean of the |g_i|
    pairwise_cosine: float | None = None  # None if fewer than two clients have a gradient
    drift: float | None = None  # None if the algorithm has no local step size; inf where local steps diverge
    client_accuracy: float | None = None  # mean over clients; None without an accuracy
    worst_accuracy: float | None = None  # mean over the worst tenth of the clients
    weighted_diversity: float | None = None  # sum_j q_j |g_j|^2 / |sum_j q_j g_j|^2, q_j = n_j / n; inf where that is 0
    batch_bound: float | None = None  # n times the gradient diversity of the n examples; None if not asked for


def fixed_cohort(population: Population, size: int, seed: int) -> Cohort:
    """min(n, size) of the n present clients with equal weights, the same in every round."""
    count = min(len(population), size)
    chosen = np.sort(rng(seed, Purpose.PROBE).choice(len(population), count, replace=False, shuffle=False))
    clients = population.at(chosen)
    return Cohort(clients, np.ones(count), population)


def debiasing(clients: int, population: int) -> float:
    """By what r of a random cohort of `clients` is to be multiplied, to be right on average for the `population`.

    NaN for one client of several, which says nothing of r.
    """
    m, n = clients, population
    if m == n:
        return 1.0
    return m / (m - 1) * (n - 1) / n if m > 1 else float("nan")


def worst_decile(values: np.ndarray) -> float:
    """The mean of the ceil(m/10) least of `values` [m]."""
    return float(np.sort(values)[: -(-len(values) // 10)].mean())


@dataclass(frozen=True)
class AlignmentProbe:
    """Measures `Alignment` at `x` over a cohort, in two phases, and a third one for the accuracy.

    `lr` is the step size of the local steps whose drift is measured, None for no drift. `accuracy_part` names the part
    of the shards on which clients' accuracy is measured, None for no accuracy. With `examples` the gradients of single
    examples are measured, too.
    """

    lr: float | None = None
    accuracy_part: str | None = None
    examples: bool = False

    def gradient(self, task: Task, x: Tensor) -> Answer:
        """g_i, its direction, and where K steps of SGD lead."""
        g = task.full_grad(x)
        square = _square(g)
        count = torch.as_tensor(task.examples, dtype=torch.float64, device=g.device)
        update = {"g": g, "square": square, "unit": g.double() / square.sqrt().clamp_min(_TINY)}
        update |= {"count": count, "sum": g.double() * count}
        if self.examples:
            update["squares"] = task.square_norms(x).double()
        if self.lr is not None:
            moved = local.sgd(task, x, task.lr(self.lr)) - x
            moved_square = _square(moved)
            finite = torch.isfinite(moved_square)  # a probe must not stop a run: what diverged is counted
            update["moved"] = torch.where(finite, moved, 0.0)
            update["moved_square"] = torch.where(finite, moved_square, 0.0)
            update["astray"] = (~finite).double()
        return Answer(update, scratch={"g": g})

    def agreement(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        """How far g_i is from the mean, and H_i (g_i - g)."""
        difference = g.double() - g_mean.double()
        norms = (_square(g) * _square(g_mean)).sqrt()
        try:
            turned = task.hvp(x, g - g_mean)
        except NotImplementedError:
            turned = torch.full_like(g, float("nan"))
        finite = torch.isfinite(turned).all()
        return Answer(
            {
                "deviation": (difference**2).sum(),
                "cosine": (g.double() * g_mean.double()).sum() / norms.clamp_min(_TINY),
                "turned": torch.where(finite, turned, 0.0),
                "curved": finite.double(),
            }
        )

    def evaluate(self, task: Task, x: Tensor) -> Answer:
        """Sums over one part of the shard."""
        return Answer(task.evaluate(x))

    def measure(self, x: Tensor, cohort: Cohort) -> Generator[Ask, Replies, Alignment]:
        """The conversation about `x` [d] with clients of equal weights."""
        a = yield Ask(self.gradient, cohort, {"x": x}, charged=False)
        m, debias = len(a.cohort), debiasing(len(a.cohort), len(cohort.population))
        g, g_mean = a.totals["g"] / m, a.mean("g")
        b = yield Ask(self.agreement, a.cohort, {"x": x, "g_mean": g_mean}, charged=False)
        # The clients took differences to a rounded mean: its own distance to the mean is part of theirs.
        spread = max(0.0, float(b.scalar("deviation").mean()) - _squared(g - g_mean))
        square, squares = _squared(g), a.scalar("square")
        directed = squares > 0
        counts, whole = a.scalar("count"), _squared(a.totals["sum"])
        accuracies = np.empty(0)
        if self.accuracy_part is not None:
            e = yield Ask(self.evaluate, b.cohort, {"x": x}, part=self.accuracy_part, charged=False)
            judged = e.scalar("count")
            accuracies = e.scalar("accuracy")[judged > 0] / judged[judged > 0]
        return Alignment(
            clients=m,
            r=debias * spread / 2,
            gradient_norm=square**0.5,
            diversity=1 + spread / square if square > 0 else float("inf"),
            cosine=float(b.scalar("cosine")[directed].mean()) if directed.any() else float("nan"),
            r_gradient_norm=debias * _squared(b.totals["turned"] / m) ** 0.5 if b.scalar("curved").all() else None,
            client_gradient_norm=float(np.sqrt(squares).mean()),
            pairwise_cosine=_pairwise(_squared(a.totals["unit"]), int(directed.sum())),
            drift=None if self.lr is None else _drift(a, m),
            client_accuracy=float(accuracies.mean()) if len(accuracies) else None,
            worst_accuracy=worst_decile(accuracies) if len(accuracies) else None,
            weighted_diversity=_over(float(counts.sum() * (counts * squares).sum()), whole),
            batch_bound=_over(float(counts.sum() * a.scalar("squares").sum()), whole) if self.examples else None,
        )


def _over(a: float, b: float) -> float:
    """a / b, inf where b is 0."""
    return a / b if b else float("inf")


def _square(v: Tensor) -> Tensor:
    """|v|^2 in float64, at a client."""
    return (v.double() ** 2).sum()


def _squared(v: Tensor) -> float:
    """|v|^2 of a float64 vector, on the server: numpy adds in the same order whatever threads torch has there."""
    return float(np.square(v.numpy()).sum())


def _pairwise(square: float, count: int) -> float | None:
    """The mean cosine of `count` unit vectors, two different ones at a time, whose sum's square is `square`."""
    return (square - count) / (count * (count - 1)) if count > 1 else None


def _drift(a: Replies, m: int) -> float:
    """The root mean square distance of the m clients' iterates from their mean."""
    if a.scalar("astray").any():
        return float("inf")
    return max(0.0, float(a.scalar("moved_square").mean()) - _squared(a.totals["moved"] / m)) ** 0.5


@dataclass(frozen=True)
class Evaluator:
    """The mean loss and metrics at `x` over one part of a cohort's shards, each example weighing the same."""

    part: str = "validation"

    def evaluate(self, task: Task, x: Tensor) -> Answer:
        return Answer(task.evaluate(x))

    def measure(self, x: Tensor, cohort: Cohort) -> Generator[Ask, Replies, dict[str, float]]:
        e = yield Ask(self.evaluate, cohort, {"x": x}, part=self.part, charged=False)
        count = float(e.scalar("count").sum())
        means = {n: float(v.sum()) / count if count else float("nan") for n, v in e.scalars.items() if n != "count"}
        return {**means, "examples": count}
