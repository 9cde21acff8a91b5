"""Theorems 1 to 5 of the gradient alignment paper, and what follows from them (arXiv 2106.13897)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, islice

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.gradalign import GradAlign
from raygrad.algorithms.lbsgd import LargeBatchSGD
from raygrad.algorithms.scaffold import Scaffold, ScaffoldFresh
from raygrad.algorithms.sgd import SGD
from raygrad.contract import Algorithm
from raygrad.theory.problems import K, Problem, after, descent, expected, grad, probed, problem, problems, rounds, whole
from raygrad.theory.statement import ROUNDING, Finding, exact, expansion, of_order, statement


def displaced(algorithm: Algorithm, beta: float) -> Algorithm:
    """`algorithm` with displacement `beta`, also a negative one, which its settings refuse."""
    object.__setattr__(algorithm, "beta", beta)
    return algorithm


@expansion("theorem 1", "E[K SGD steps] - K GD steps = -(K alpha^2 / 2) grad r + O(alpha^3)")
def theorem_1(p: Problem, alpha: float, sign: float) -> Tensor:
    """K mini-batches in all K! orders; r is the covariance of their gradients."""
    steps = len(p.clients)
    predicted = -steps * alpha**2 / 2 * grad(p.r)(p.x)
    return expected(SGD(alpha), p.pooled()) - descent(p, alpha, steps) - sign * predicted


@statement("theorem 2", "GradAlign - GD step = -alpha beta grad r + O(alpha beta^2), exact on quadratics")
def theorem_2(sign: float, alpha: float = 0.1) -> Iterator[Finding]:
    """One step; alpha is fixed and beta halved."""

    def predicted(p: Problem, beta: float) -> Tensor:
        return -alpha * beta * grad(p.r)(p.x)

    def remainder(p: Problem, beta: float, sign: float) -> Tensor:
        aligned = after(displaced(GradAlign(alpha), sign * beta), p, p.full(1))
        return aligned - after(LargeBatchSGD(alpha), p, p.full(1)) - predicted(p, beta)

    quadratics, network = problems()
    error = remainder(quadratics, 0.5, sign).norm() / predicted(quadratics, 0.5).norm()
    yield exact("quadratics, beta = 0.5", float(error))
    yield of_order(2, network, remainder, sign)


@statement("theorem 3", "unless grad f = grad r = 0, some beta = 2^-j makes a GradAlign step decrease f + beta r")
def theorem_3(sign: float) -> Iterator[Finding]:
    """At minimisers of f, where only grad r is left, and around them; alpha = 1 / (4 L1), j <= 8."""
    descends, still = [], []
    for p in (problem(name, seed) for name in ("quadratics", "log cosh") for seed in range(10)):
        a = torch.cat([whole(batches).x for batches in p.clients])
        l1 = float(torch.linalg.matrix_norm(a, 2)) ** 2 / len(a)  # both Hessians are at most mean a a^T
        alpha = 1 / (4 * l1)
        for x in points(p):
            still.append(float(grad(p.f)(x).norm()) < 1e-12 and float(grad(p.r)(x).norm()) > 1e-3)
            descends.append(any(decreases(replace(p, x=x), alpha, 2.0**-j, sign) for j in range(9)))
    met = sum(d for d, s in zip(descends, still, strict=True) if s)
    text = f"{sum(descends)} of {len(descends)} points, {met} of the {sum(still)} with grad f = 0"
    yield Finding(text, all(descends) and any(still))


def points(p: Problem) -> list[Tensor]:
    """The minimiser of a convex f by Newton's method, and points [d] at growing distances from it."""
    x = torch.zeros_like(p.x)
    for _ in range(8):
        x = x - torch.linalg.solve(hessian(p.f, x), grad(p.f)(x))
    return [x + distance * p.x for distance in (0, 1e-3, 0.1, 1, 10)]


def decreases(p: Problem, alpha: float, beta: float, sign: float) -> bool:
    """Whether a GradAlign step, displaced by `sign` times `beta`, decreases f + beta r."""
    x = after(displaced(GradAlign(alpha), sign * beta), p, p.full(1))
    before, now = (float(p.f(at) + beta * p.r(at)) for at in (p.x, x))
    return now < before * (1 - ROUNDING)


@expansion("theorem 4", "FedGA - FedAvg = -alpha beta K grad r + O(alpha beta^2 + alpha^2 beta), beta = 2 alpha")
def theorem_4(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps."""
    beta = 2 * alpha
    predicted = -alpha * beta * K * grad(p.r)(p.x)
    fedga = displaced(FedGA(alpha), sign * beta)
    return after(fedga, p, p.full(K)) - after(FedAvg(alpha), p, p.full(K)) - predicted


@expansion("theorem 5", "fresh SCAFFOLD - FedAvg = -alpha^2 K(K-1)/2 grad r + O(alpha^3)")
def theorem_5(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps."""
    predicted = -(alpha**2) * K * (K - 1) / 2 * grad(p.r)(p.x)
    return after(ScaffoldFresh(alpha), p, p.full(K)) - after(FedAvg(alpha), p, p.full(K)) - sign * predicted


@expansion("FedAvg", "FedAvg - K GD steps = +alpha^2 K(K-1)/2 grad r + O(alpha^3)")
def fedavg(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps: the clients' drift raises r."""
    predicted = alpha**2 * K * (K - 1) / 2 * grad(p.r)(p.x)
    return after(FedAvg(alpha), p, p.full(K)) - descent(p, alpha, K) - sign * predicted


@expansion("within clients", "E[FedAvg on mini-batches] - FedAvg = -(K alpha^2 / 2) mean_i grad r_i + O(alpha^3)")
def within_clients(p: Problem, alpha: float, sign: float) -> Tensor:
    """K mini-batches at each client in all K! orders, against K full local steps; r_i is the covariance in client i."""
    grad_r = torch.stack([grad(p.within(i).r)(p.x) for i in range(len(p.clients))]).mean(0)
    predicted = -K * alpha**2 / 2 * grad_r
    return expected(FedAvg(alpha), p) - after(FedAvg(alpha), p, p.full(K)) - sign * predicted


@expansion("linear scaling", "E[m SGD steps] - linear step = (aligned step - linear step) + O(alpha^3)")
def linear_scaling(p: Problem, alpha: float, sign: float) -> Tensor:
    """One step m times as long for m mini-batches in all m! orders. With sign 0 it is the linear step's remainder."""
    linear, aligned = (after(LargeBatchSGD(alpha, scaling), p, p.full(1)) for scaling in ("linear", "aligned"))
    predicted = aligned - linear
    return expected(SGD(alpha), p.pooled()) - linear - sign * predicted


@statement("r on a cohort", "E[r on m of N clients] = (1 - 1/m) N/(N-1) r", "both signs flipped")
def cohort_bias(sign: float) -> Iterator[Finding]:
    """All cohorts of m of N = 6 clients, as the alignment probe measures them."""
    p = problem("quadratics", clients=6)
    n, r = len(p.clients), float(p.r(p.x))
    for m in (2, 3, 5):
        found = [probed(replace(p, clients=cohort)).r for cohort in combinations(p.clients, m)]
        yield exact(f"m = {m}", abs(sum(found) / len(found) / ((1 - sign / m) * n / (n - sign) * r) - 1))


@statement("diversity", "n sum_i |g_i|^2 / |sum_i g_i|^2 = 1 + 2 r / |g|^2")
def diversity(sign: float) -> Iterator[Finding]:
    """n times the gradient diversity (Yin et al., arXiv 1706.05699) by definition; r and |g| from the probe."""
    for p in problems():
        g, alignment = p.gradients(p.x), probed(p)
        measured = len(g) * float((g**2).sum() / (g.sum(0) ** 2).sum())
        yield exact(p.name, abs(measured / (1 + sign * 2 * alignment.r / alignment.gradient_norm**2) - 1))


@statement(
    "degenerate cases",
    "FedGA(beta=0) = FedAvg = FedProx(mu=0) = FedAvgM(m=0); with K = 1 FedGA = GradAlign, fresh SCAFFOLD = GD step",
    "beta = mu = m = 1e-3, K = 2",
)
def degenerate_cases(sign: float) -> Iterator[Finding]:
    """The first two on mini-batches, the others on full batches."""
    p = problem("tanh network")
    zero, one = (0.0, 1) if sign == 1 else (1e-3, 2)
    alpha, clients, single = 0.1, p.ordered(range(K)), p.full(1)
    ahead = FedAvgM(FedAvg(alpha), momentum=zero, nesterov=True)
    for what, special, general in (
        ("beta", after(FedAvg(alpha), p, clients), after(FedGA(alpha, zero), p, clients)),
        ("mu", after(FedAvg(alpha), p, clients), after(FedProx(alpha, zero), p, clients)),
        (
            "FedAvgM m",
            after(FedAvg(alpha), p, clients),
            after(ahead, p, clients),
        ),
        ("FedGA K", after(GradAlign(alpha, 0.3), p, single), after(FedGA(alpha, 0.3), p, p.full(one))),
        ("SCAFFOLD K", after(LargeBatchSGD(alpha), p, single), after(ScaffoldFresh(alpha), p, p.full(one))),
    ):
        yield exact(what, float((general - special).abs().max()), 1e-15)


@statement(
    "stationary points",
    "SCAFFOLD and FedDyn end at |grad f| <= 1e-8 on quadratics with unequal Hessians, FedAvg above 1e-3",
    "FedAvg in their place",
)
def stationary(sign: float, alpha: float = 0.1, count: int = 120) -> Iterator[Finding]:
    """`count` rounds of K full local steps."""
    p = problem("quadratics")

    def end(algorithm: Algorithm) -> float:
        x = next(islice(rounds(algorithm, p.x, p.full(K)), count - 1, None))
        return float(grad(p.f)(x).norm())

    plain = end(FedAvg(alpha))
    for name, algorithm in (
        ("option I", Scaffold(alpha, "I")), ("option II", Scaffold(alpha, "II")), ("FedDyn", FedDyn(alpha, 1.0)),
    ):  # fmt: skip
        found = end(algorithm) if sign == 1 else plain
        yield Finding(f"{name} {found:.0e}, FedAvg {plain:.0e}", found <= 1e-8 and plain >= 1e-3)
