"""What is measured at a model: how well clients' gradients agree, and how good the model is. Conversations that only
measure.

    r(x) = 1/(2n) sum_i |g_i - g|^2                     half the trace of the covariance of the clients' gradients
    n Delta(x) = (1/n) sum_i |g_i|^2 / |g|^2            gradient diversity times n; 1 + 2 r / |g|^2
    cosine(x) = (1/n) sum_i <g_i, g> / (|g_i| |g|)

r: Dandi, Barba, Jaggi (arXiv 2106.13897, section 3). Gradient diversity: Yin et al. (arXiv 1706.05699). All clients
weigh the same.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raygrad.contract import Answer, Ask, Cohort, Population, Replies, Task
from raygrad.rng import Purpose, rng


@dataclass(frozen=True)
class Alignment:
    """The alignment of `clients` clients' full gradients at one model."""

    clients: int
    r: float
    gradient_norm: float
    diversity: float
    cosine: float


def fixed_cohort(population: Population, size: int, seed: int) -> Cohort:
    """min(N, size) clients with equal weights, the same in every round."""
    count = min(len(population), size)
    clients = np.sort(rng(seed, Purpose.PROBE).choice(len(population), count, replace=False, shuffle=False))
    return Cohort(clients, np.ones(count), population)


def _squares(g: Tensor) -> Tensor:
    return (g.double() ** 2).sum()


@dataclass(frozen=True)
class AlignmentProbe:
    """Measures `Alignment` at `x` over a cohort."""

    def gradient(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"g": g, "square": _squares(g)}, scratch={"g": g})

    def agreement(self, task: Task, g_mean: Tensor, g: Tensor) -> Answer:
        dot = (g.double() * g_mean.double()).sum()
        norms = (_squares(g) * _squares(g_mean)).sqrt()
        return Answer({"cosine": dot / norms.clamp_min(1e-300)})

    def measure(self, x: Tensor, cohort: Cohort) -> Generator[Ask, Replies, Alignment]:
        a = yield Ask(self.gradient, cohort, {"x": x}, charged=False)
        g = a.totals["g"] / len(cohort)
        b = yield Ask(self.agreement, cohort, {"g_mean": a.mean("g")}, charged=False)
        squares, square = float(a.scalar("square").mean()), float((g * g).sum())
        return Alignment(
            clients=len(cohort),
            r=max(0.0, (squares - square) / 2),
            gradient_norm=square**0.5,
            diversity=squares / square if square > 0 else float("inf"),
            cosine=float(b.scalar("cosine").mean()),
        )


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
