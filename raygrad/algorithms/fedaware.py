"""FedAWARE: the server steps along the direction in which the clients' momenta agree most.

    client i:  y_i = K steps of SGD from x;   d_i = y_i - x
    server:    m_i <- (1 - a) m_i + a d_i     for the clients asked
               u_i = m_i / |m_i|              for all clients
               q = sum_i w_i u_i,   w = argmin over the simplex of |sum_i w_i u_i|^2
               x <- x + eta q                 (x + eta mean_i d_i while some client was never asked)

At equal norms the combination of least norm has the greatest gradient diversity. Clients that work more, or whose data
many others have, do not outweigh the rest, however often they are asked. Zeng et al., "Tackling Hybrid Heterogeneity on
Federated Optimization via Gradient Diversity Maximization" (arXiv 2310.02702). The server keeps one vector per client.
One communication per round. With `sampler=cyclic` everybody has been asked soonest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raygrad import hull, local
from raygrad.algorithms.base import check, per_client
from raygrad.contract import Answer, Ask, ClientState, Cohort, Population, Replies, Round, Task
from raygrad.errors import BadInput


def averaged(m: Tensor, r: Replies, mix: float) -> Tensor:
    """The momenta [N, d] after the deltas of those who answered."""
    asked = torch.from_numpy(r.cohort.clients)
    return m.index_copy(0, asked, (1 - mix) * m[asked] + mix * r.rows("delta"))


def direction(m: Tensor, population: Population) -> Tensor | None:
    """q [d], from the momenta [N, d] of the clients that are there; None while one of them was never asked."""
    there = m if population.present is None else m[torch.from_numpy(population.present)]
    q = hull.common_direction(there)
    return None if q is None else q.to(m.dtype)


def check_mix(algorithm: object, **lowest: float) -> None:
    """Refuse settings that cannot be; `mix` is a part of 1."""
    check(algorithm, mix=0, **lowest)
    if not 0 < algorithm.mix <= 1:  # pyright: ignore[reportAttributeAccessIssue]
        raise BadInput(f"algorithm.mix is {algorithm.mix}; it must be above 0 and at most 1")  # pyright: ignore


@dataclass(frozen=True)
class AwareState:
    """The model, and a momentum of each client."""

    x: Tensor  # [d]
    m: Tensor  # [N, d]


@dataclass(frozen=True)
class FedAware:
    """`lr` is alpha, `server_lr` is eta, the length of a step along q; `mix` is a, the weight of a client's newest
    delta in its momentum.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    mix: float = 0.5

    def __post_init__(self) -> None:
        check_mix(self, lr=0, server_lr=0)

    def init(self, x: Tensor, population: Population) -> AwareState:
        return AwareState(x, *per_client(x, population, "fedaware"))

    def client_state(self, x: Tensor) -> ClientState:
        return {}

    def local(self, task: Task, x: Tensor, start: Tensor | None = None) -> Answer:
        start = x if start is None else start
        return Answer({"delta": local.sgd(task, start, task.lr(self.lr)) - start})

    def round(self, state: AwareState, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x}, rows=("delta",))
        m = averaged(state.m, r, self.mix)
        q = direction(m, r.cohort.population)
        step = (total(r) / r.cohort.divisor).to(r.dtype) if q is None else q
        return AwareState(state.x + self.server_lr * step, m)


def total(r: Replies, shared: bool = False) -> Tensor:
    """The weighted sum [d] of the deltas that came client by client, with the population's weights if `shared`."""
    weights = r.cohort.population.weights[r.cohort.clients] if shared else r.cohort.weights
    found = torch.zeros_like(r.rows("delta")[0], dtype=torch.float64)
    for weight, row in zip(weights.tolist(), r.rows("delta"), strict=True):
        found.add_(row, alpha=weight)
    return found
