"""Gradient diversity as a bound on the batch that pays, for a network in closed form; averages over drawn clients."""

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

from raygrad.algorithms.fedavg import FedAvg
from raygrad.alignment import Alignment, AlignmentProbe
from raygrad.contract import Batch, Cohort, Population
from raygrad.rng import Purpose, rng
from raygrad.samplers import Uniform, Weighted
from raygrad.theory.problems import Client, K, Loss, Problem, converse, everyone, problem
from raygrad.theory.statement import Finding, exact, statement


def measured(loss: Loss, x: Tensor, data: Batch) -> Alignment:
    """What the probe says of one client with `data` at `x` [d]."""
    client = Client(loss, data, [data])
    return converse(AlignmentProbe(examples=True).measure(x, everyone([client])), [client], [{}])[0]


def bound(loss: Loss, x: Tensor, data: Batch) -> float:
    """B(x) as the probe measures it."""
    found = measured(loss, x, data).batch_bound
    assert found is not None
    return found


def to_points(x: Tensor, batch: Batch) -> Tensor:
    """Half the mean squared distance to points [B, d]: every example's Hessian is 1."""
    return ((x - batch.x) ** 2).sum(1).mean() / 2


@statement(
    "batch bound",
    "B = 1 if gradients are equal, n if orthogonal; the best step with batch m gains m B / (m + B - 1) times as much",
    "of B - 1",
)
def batch_bound(sign: float) -> Iterator[Finding]:
    """B = n sum_j |grad l_j|^2 / |sum_j grad l_j|^2. All n^m batches with replacement; the best step of each m."""
    x = torch.zeros(5, dtype=torch.float64)
    for what, points, b in (("equal", torch.ones(5, 5), 1.0), ("orthogonal", torch.eye(5), 5.0)):
        points = points.double()
        found = bound(to_points, x, Batch(points, points[:, 0]))
        yield exact(what, abs(found - (b if sign == 1 else b + 1 - sign)))
    drawn = torch.from_numpy(rng(0, Purpose.SYNTHETIC).standard_normal((5, 5)))
    data = Batch(drawn, drawn[:, 0])
    b = 1 + sign * (bound(to_points, x, data) - 1)
    for m in (2, 3, 4):
        predicted = m * b / (m + b - 1)
        yield exact(f"m = {m}", abs(gain(x, data, m) / gain(x, data, 1) / predicted - 1))


def gain(x: Tensor, data: Batch, m: int) -> float:
    """By how much the best step along the gradient of a random batch of `m` decreases the mean distance."""
    g = x - data.x
    batches = torch.stack([g[list(some)].mean(0) for some in product(range(len(g)), repeat=m)])

    def after(step: float) -> float:
        return float(torch.stack([to_points(x - step * along, data) for along in batches]).mean())

    start, half, whole = after(0.0), after(0.5), after(1.0)  # a parabola in the step
    curve, slope = 2 * (whole - 2 * half + start), 4 * half - 3 * start - whole
    return slope**2 / (4 * curve)


def linear_network(x: Tensor, batch: Batch) -> Tensor:
    """Half the squared error of v . (W a); `x` [h (features + 1)] holds W, then v."""
    units = x.numel() // (batch.x.shape[1] + 1)
    w, v = x[:-units].view(units, -1), x[-units:]
    return ((batch.x @ w.T @ v - batch.y) ** 2).mean() / 2


def linear_network_bound(w: Tensor, v: Tensor, teacher: Tensor, noise: float, sign: float) -> float:
    """B of a two-layer linear network with `w` [h, D] and `v` [h] on inputs of independent signs.

    Targets are teacher . a plus independent noise. e is the error along each input, |W_k| the norm of a column.
    """
    e, columns = w.T @ v - teacher, (w**2).sum(0)
    turned, straight = ((w @ e) ** 2).sum(), (v**2).sum() * (e**2).sum()
    squares = len(e) * straight + (e**2).sum() * columns.sum() + 2 * turned - 2 * ((e**2) * columns).sum()
    squares = squares + noise**2 * (len(e) * (v**2).sum() + columns.sum())
    return 1 + sign * (float(squares / (straight + turned)) - 1)


@statement(
    "width",
    "two linear layers: B = (D |v|^2 |e|^2 + |e|^2 |W|^2 + 2 |We|^2 - 2 sum e_k^2 |W_k|^2 + s^2 (D |v|^2 + |W|^2)) / "
    "(|v|^2 |e|^2 + |We|^2), e = W'v - u",
    "of B - 1",
)
def width(sign: float, features: int = 4, noise: float = 0.3) -> Iterator[Finding]:
    """On all sign vectors, each with both signs of the noise; networks of several widths h."""
    draw = rng(0, Purpose.SYNTHETIC, 1)
    teacher = torch.from_numpy(draw.standard_normal(features))
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=features + 1)), dtype=torch.float64)
    data = Batch(signs[:, :-1], signs[:, :-1] @ teacher + noise * signs[:, -1])
    for units in (2, 4, 8):
        w, v = (torch.from_numpy(draw.standard_normal(shape)) for shape in ((units, features), (units,)))
        found = bound(linear_network, torch.cat([w.flatten(), v]), data)
        yield exact(f"h = {units}", abs(found / linear_network_bound(w, v, teacher, noise, sign) - 1))


@statement(
    "drawn clients",
    "E[mean over drawn clients] = sum_j q_j y_j: m draws by q_j with replacement, or m of N uniformly with weights",
    "weights of the wrong scheme mixed in",
)
def drawn_clients(sign: float) -> Iterator[Finding]:
    """All draws of m of N = 4 clients with their probabilities; K full local steps of FedAvg."""
    p = problem("quadratics")
    clients, weights = p.full(K), np.array([1.0, 2.0, 3.0, 4.0])
    population, n = Population(np.full(4, 12), weights), 4
    q = weights / weights.sum()
    whole = ended(p, clients, Cohort(np.arange(n), weights, population))
    for m in (2, 3):
        one = [
            float(q[list(d)].prod()) * ended(p, clients, Weighted(m).of(np.array(d), population))
            for d in product(range(n), repeat=m)
        ]
        sets = list(combinations(range(n), m))
        two = [ended(p, clients, Uniform(m, unbiased=True).of(np.array(s), population)) / len(sets) for s in sets]
        ratio = [ended(p, clients, Uniform(m).of(np.array(s), population)) / len(sets) for s in sets]
        wrong = torch.stack(ratio).sum(0) - whole
        for scheme, parts in (("I", one), ("II", two)):
            error = torch.stack(parts).sum(0) - whole + (1 - sign) * wrong
            yield exact(f"scheme {scheme}, m = {m}", float(error.norm() / whole.norm()))


def ended(p: Problem, clients: list[Client], cohort: Cohort) -> Tensor:
    """The model [d] after a round of FedAvg with `cohort`."""
    conversation = FedAvg(0.05).round(FedAvg(0.05).init(p.x, cohort.population), cohort)
    some = [clients[i] for i in cohort.clients.tolist()]
    return converse(conversation, some, [{}] * len(some))[0].x
