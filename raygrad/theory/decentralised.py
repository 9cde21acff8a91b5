"""Networks of workers without a server: D-SGD and decentralised alignment."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygrad import mixing
from raygrad.algorithms.dga import DGA
from raygrad.algorithms.dsgd import DSGD
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.lbsgd import LargeBatchSGD
from raygrad.contract import Batch
from raygrad.rng import Purpose, rng
from raygrad.theory.alignment import displaced
from raygrad.theory.problems import Client, K, Problem, converse, everyone, grad, problem, rounds
from raygrad.theory.statement import Finding, exact, expansion, of_order, statement


def mixed_from(algorithm: DSGD, x: Tensor, w: Tensor, clients: Sequence[Client]) -> Any:
    """The state after a round of workers whose models are `w` [m, d] around `x` [d]."""
    cohort = everyone(clients)
    start = replace(algorithm.init(x, cohort.population), w=w)
    return converse(algorithm.round(start, cohort), clients, [{} for _ in clients])[0]


@statement(
    "full network",
    "with every neighbour the same, D-SGD = SGD on all data, K > 1 FedAvg, decentralised alignment FedGA",
    "D-SGD that mixes before it steps; beta's sign flipped",
)
def full_network(sign: float, alpha: float = 0.1, beta: float = 0.2, count: int = 3) -> Iterator[Finding]:
    """The third round, adapt-then-combine, full local steps."""
    p = problem("tanh network")
    dsgd = DSGD(alpha, "full", form="adapt-then-combine" if sign == 1 else "combine-while-adapt")
    aligned = displaced(DGA(alpha, "full"), sign * beta)
    for what, here, there, steps in (
        ("SGD", dsgd, LargeBatchSGD(alpha), 1),
        ("FedAvg", dsgd, FedAvg(alpha), K),
        ("FedGA", aligned, FedGA(alpha, beta), K),
    ):
        a, b = (next(islice(rounds(algorithm, p.x, p.full(steps)), count - 1, None)) for algorithm in (here, there))
        yield exact(what, float((a - b).abs().max()), 1e-14)


@statement("consensus", "without gradients the distance to x shrinks by the second singular value of P, at worst")
def consensus(sign: float, m: int = 10, count: int = 3) -> Iterator[Finding]:
    """From the direction in which it shrinks least; the exponential graph is directed, but P P^T = P^T P."""
    p = problem("quadratics", clients=m)
    for topology in ("ring", "grid", "torus", "star", "exponential"):
        matrix, algorithm = mixing.matrix(topology, m), DSGD(0.0, topology)
        worst = np.linalg.svd(matrix - 1 / m)[2][0]
        w = p.x + torch.from_numpy(worst)[:, None] * p.x
        for _ in range(count):
            w = mixed_from(algorithm, p.x, w, p.full(1)).w
        shrunk = float((w - p.x).norm() / p.x.norm())
        yield exact(topology, abs(shrunk / mixing.contraction(matrix) ** count - sign))


def spread(p: Problem, size: float) -> Tensor:
    """Workers' models [m, d] around the problem's point, of standard deviation about `size`, skewed."""
    e = torch.from_numpy(rng(0, Purpose.SYNTHETIC, 1).standard_exponential((len(p.clients), len(p.x))))
    return p.x + size * (e - e.mean(0))


def exponentials(x: Tensor, batch: Batch) -> Tensor:
    """The mean of exp(a.x): E exp(a.(x + e)) = exp(a.x + a.Xi a / 2) for e ~ N(0, Xi)."""
    return torch.exp(batch.x @ x).mean()


@statement("average-direction SAM", "one loss: D-SGD = x - alpha E grad f(x + e) + O(s^3), e ~ N(0, Xi), Xi = O(s^2)")
def smoothed(sign: float, alpha: float = 1.0) -> Iterator[Finding]:
    """One step of workers that are a distance s off their mean x; s is halved, Xi is their covariance."""
    draw = rng(0, Purpose.SYNTHETIC)
    batch = Batch(torch.from_numpy(draw.standard_normal((6, 4))), torch.zeros(6, dtype=torch.float64))
    p = Problem("exponentials", exponentials, [[batch]] * 5, torch.from_numpy(draw.standard_normal(4)))

    def remainder(p: Problem, size: float, sign: float) -> Tensor:
        w, a = spread(p, size), batch.x
        xi = torch.cov(w.T, correction=0)
        plain, smooth = (torch.exp(a @ p.x + part) @ a / len(a) for part in (0.0, ((a @ xi) * a).sum(1) / 2))
        moved = mixed_from(DSGD(alpha), p.x, w, p.full(1)).x - (p.x - alpha * plain)
        return moved + sign * alpha * (smooth - plain)

    yield of_order(3, p, remainder, sign)


@statement("unequal losses", "D-SGD = x - alpha grad f(x) - (alpha / m) sum_j H_j (w_j - x) + O(s^2)")
def unequal(sign: float, alpha: float = 1.0) -> Iterator[Finding]:
    """One step of workers that are a distance s off their mean x; s is halved. With one loss the sum is zero."""

    def remainder(p: Problem, size: float, sign: float) -> Tensor:
        w, clients = spread(p, size), p.full(1)
        first = torch.stack([c.hvp(p.x, w_j - p.x) for c, w_j in zip(clients, w, strict=True)]).mean(0)
        return mixed_from(DSGD(alpha), p.x, w, clients).x - p.x + alpha * grad(p.f)(p.x) + sign * alpha * first

    for name in ("log cosh", "tanh network"):
        yield of_order(2, problem(name), remainder, sign)


def disagreement(p: Problem, matrix: np.ndarray, x: Tensor) -> Tensor:
    """r_P(x) = 1/(4m) sum_jk P_jk |g_j - g_k|^2, by which those differ who exchange; r if P is full."""
    g = p.gradients(x)
    return (torch.from_numpy(matrix) * ((g[:, None] - g) ** 2).sum(2)).sum() / (4 * len(g))


def toward(p: Problem, estimate: str, alpha: float, beta: float, count: int) -> Tensor:
    """The model [d] after so many rounds of K full local steps on a ring."""
    algorithm = displaced(DGA(alpha, "ring", estimate=estimate), beta)  # pyright: ignore[reportArgumentType]
    return next(islice(rounds(algorithm, p.x, p.full(K)), count - 1, None))


@expansion("neighbours", "gossip: aligned - plain D-SGD = -alpha beta K grad r_P + O(alpha^3), beta = 2 alpha")
def neighbours(p: Problem, alpha: float, sign: float) -> Tensor:
    """The first round on a ring of four, of which no worker knows all; r_P(x) = 1/(4m) sum_jk P_jk |g_j - g_k|^2."""
    ring = mixing.matrix("ring", len(p.clients))
    moved = toward(p, "gossip", alpha, sign * 2 * alpha, 1) - toward(p, "gossip", alpha, 0.0, 1)
    return moved + 2 * alpha**2 * K * grad(lambda x: disagreement(p, ring, x))(p.x)


@expansion("tracking", "round t of tracking adds -alpha beta K grad r_Q, Q = P^(t-1), which goes to r; + O(alpha^3)")
def tracking(p: Problem, alpha: float, sign: float, count: int = 4) -> Tensor:
    """Four rounds on a ring of four, beta = 2 alpha."""
    ring = mixing.matrix("ring", len(p.clients))
    powers = [np.linalg.matrix_power(ring, t) for t in range(count)]
    moved = toward(p, "tracking", alpha, sign * 2 * alpha, count) - toward(p, "tracking", alpha, 0.0, count)
    return moved + 2 * alpha**2 * K * grad(lambda x: torch.stack([disagreement(p, q, x) for q in powers]).sum())(p.x)
