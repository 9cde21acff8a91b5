"""The displacement around other methods, with momentum, and with an old mean gradient."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from raygrad import config
from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedga_stale import StaleFedGA
from raygrad.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from raygrad.algorithms.fedprox import FedProx
from raygrad.contract import Algorithm, Ask, Replies
from raygrad.theory.alignment import displaced
from raygrad.theory.problems import Client, K, Problem, after, converse, everyone, grad, problem, rounds
from raygrad.theory.statement import Finding, expansion, of_order, statement


def mean_delta(algorithm: Algorithm, p: Problem, clients: Sequence[Client]) -> Tensor:
    """The mean [d] of what the clients call their delta, in one round from the problem's point."""
    seen: list[Tensor] = []

    def overheard(conversation: Generator[Ask, Replies, Any]) -> Generator[Ask, Replies, Any]:
        ask = next(conversation)
        while True:
            r = yield ask
            if "delta" in r.totals:
                seen.append(r.mean("delta"))
            try:
                ask = conversation.send(r)
            except StopIteration as stop:
                return stop.value

    cohort, kept = everyone(clients), [algorithm.client_state(p.x) for _ in clients]
    converse(overheard(algorithm.round(algorithm.init(p.x, cohort.population), cohort)), clients, kept)
    (delta,) = seen
    return delta


INSIDE = (FedProx(mu=0.5), FedDyn(penalty=0.5), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad())
"""What the displacement is measured around, besides FedAvg."""


@statement("displacement", "displaced - plain mean delta = -alpha beta K grad r + O(alpha^3), beta = 2 alpha")
def displacement(sign: float) -> Iterator[Finding]:
    """K full local steps, around FedProx, FedDyn and server optimisers; on the network, whose series does not end."""
    for inside in INSIDE:

        def remainder(p: Problem, alpha: float, sign: float, inside: Algorithm = inside) -> Tensor:
            inner = config.assign(Displaced(inside), "lr", repr(alpha)).inner
            found = mean_delta(displaced(Displaced(inner), sign * 2 * alpha), p, p.full(K))
            return found - mean_delta(inner, p, p.full(K)) + 2 * alpha**2 * K * grad(p.r)(p.x)

        p = problem("tanh network")
        yield of_order(3, replace(p, name=type(inside).__name__), remainder, sign)


def with_momentum(p: Problem, momentum: float) -> list[Client]:
    """K full local steps with momentum."""
    return [replace(client, momentum=momentum) for client in p.full(K)]


@expansion("local momentum", "FedGA - FedAvg = -alpha beta K s grad r, s = (1 - m (1-m^K) / (K (1-m))) / (1-m)")
def local_momentum(p: Problem, alpha: float, sign: float, m: float = 0.9) -> Tensor:
    """K full local steps whose momentum begins anew in every round; beta = 2 alpha, + O(alpha^3)."""
    factor = (1 - m * (1 - m**K) / (K * (1 - m))) / (1 - m)
    clients, beta = with_momentum(p, m), 2 * alpha
    moved = after(displaced(FedGA(alpha), sign * beta), p, clients) - after(FedAvg(alpha), p, clients)
    return moved + alpha * beta * K * factor * grad(p.r)(p.x)


@expansion("server momentum", "after R rounds FedGA - FedAvg = -alpha beta K grad r sum_t (1-m^t) / (1-m)")
def server_momentum(p: Problem, alpha: float, sign: float, m: float = 0.9, count: int = 4) -> Tensor:
    """R = 4 rounds of K full local steps, beta = 2 alpha, + O(alpha^3). A further round's factor goes to 1 / (1-m)."""
    factor = sum((1 - m**t) / (1 - m) for t in range(1, count + 1))

    def end(inner: Algorithm) -> Tensor:
        return next(islice(rounds(FedAvgM(inner, momentum=m), p.x, p.full(K)), count - 1, None))

    moved = end(displaced(FedGA(alpha), sign * 2 * alpha)) - end(FedAvg(alpha))
    return moved + 2 * alpha**2 * K * factor * grad(p.r)(p.x)


@expansion("stale FedGA", "second round: stale FedGA - FedAvg = -alpha beta K grad r + O(alpha^3), beta = 2 alpha")
def stale(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps of all clients; both start from what the first round has made of x."""
    both = rounds(displaced(StaleFedGA(alpha), sign * 2 * alpha), p.x, p.full(K))
    x, found = next(both), next(both)
    moved = found - after(FedAvg(alpha), replace(p, x=x), p.full(K))
    return moved + 2 * alpha**2 * K * grad(p.r)(x)


@statement(
    "displaced FedDyn",
    "ends where mean_i grad f_i(x + v_i) = 0, v_i = beta (g_i - g), not where grad f = 0",
    "grad f in its place",
)
def displaced_stationary(sign: float, alpha: float = 0.1, beta: float = 0.05, count: int = 400) -> Iterator[Finding]:
    """Duals are measured from the displaced start; had they been from x, it would end at neither."""
    p = problem("quadratics")
    x = next(islice(rounds(Displaced(FedDyn(alpha, 1.0), beta), p.x, p.full(K)), count - 1, None))
    g = p.gradients(x)
    points = x + beta * (g - g.mean(0)) if sign == 1 else x.expand_as(g)
    there = torch.stack([client.full_grad(point) for client, point in zip(p.full(1), points, strict=True)])
    error = float(there.mean(0).norm())
    yield Finding(f"{error:.0e}", error <= 1e-8)
