"""What algorithms without a server's model share: each worker has its own, and mixes it with its neighbours'.

raygrad keeps the workers' models on its server and sends each its own, so tables charge that as traffic. In a real
network a worker would send its model to its neighbours instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raygrad import mixing
from raygrad.algorithms.base import check, per_client
from raygrad.contract import Change, ClientState, Population, Replies
from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng


@dataclass(frozen=True)
class NetworkState:
    """The mean of the workers' models, which is evaluated, and the models."""

    x: Tensor  # [d]
    w: Tensor  # [N, d]
    there: Tensor  # [N], 1 where a worker is in the network, else 0
    rounds: Tensor  # [], that were played


@dataclass(frozen=True)
class Networked:
    """`lr` is alpha, the local step size. `topology` is a name (`raygrad.mixing.TOPOLOGIES`) or a mixing matrix as
    JSON, `placement` where in it the workers are.
    """

    lr: float = 0.1
    topology: str = "ring"
    placement: mixing.Placement = "fixed"

    def __post_init__(self) -> None:
        check(self, lr=0)

    def init(self, x: Tensor, population: Population) -> NetworkState:
        """Every worker begins at `x` [d]."""
        mixing.refuse_parts(mixing.matrix(self.topology, len(population)), self.placement)
        (w,), there = per_client(x, population, type(self).__name__.lower()), x.new_zeros(len(population.examples))
        there[self._present(population)] = 1
        return NetworkState(x, w + x, there, x.new_zeros(()))

    def client_state(self, x: Tensor) -> ClientState:
        """The workers' models are on the server."""
        return {}

    def resize(self, state: Any, change: Change) -> Any:
        """The network of those who are there now; who joins begins at the mean."""
        mixing.matrix(self.topology, len(change.after))
        w, there = state.w.clone(), torch.zeros_like(state.there)
        w[torch.from_numpy(change.joined)] = state.x
        there[self._present(change.after)] = 1
        return replace(state, x=mixing.mean(w[there > 0]), w=w, there=there)

    def measures(self, state: Any) -> Mapping[str, float]:
        """The workers' distance from their mean, (tr Xi)^(1/2) for Xi = mean_j (w_j - x)(w_j - x)^T, and the largest
        standard deviation of a coordinate.
        """
        found = mixing.variances(state.w[state.there > 0])
        return {"consensus_distance": float(found.sum() ** 0.5), "largest_deviation": float(found.max() ** 0.5)}

    def _present(self, population: Population) -> Tensor:
        return torch.from_numpy(population.at(torch.arange(len(population)).numpy()))

    def network(self, state: NetworkState, population: Population) -> Any:
        """P of this round, [N, N] float64; those who are not there keep to themselves."""
        draw = rng(population.seed, Purpose.PLACEMENT, int(state.rounds))
        small = mixing.placed(mixing.matrix(self.topology, len(population)), self.placement, draw)
        p, there = torch.eye(len(state.w), dtype=torch.float64), self._present(population)
        p[there[:, None], there] = torch.from_numpy(small)
        return p.numpy()

    def steps(self, state: NetworkState, r: Replies) -> Tensor:
        """What each worker adds to its model [N, d]: nothing if it did not answer. It counts as much as its weight over
        the mean weight, so that the mean of all is the mean with the population's weights; weights of a sampler have no
        meaning here.
        """
        everybody, clients = r.cohort.population, r.cohort.clients
        factor = torch.from_numpy(everybody.weights[clients] * len(everybody) / everybody.weight).to(r.dtype)
        rows = factor[:, None] * r.rows("delta")
        return torch.zeros_like(state.w).index_copy(0, torch.from_numpy(clients), rows)

    def moved(self, state: Any, w: Tensor, **other: Tensor) -> Any:
        """The state after a round that leaves the workers at `w` [N, d]."""
        return replace(state, x=mixing.mean(w[state.there > 0]), w=w, rounds=state.rounds + 1, **other)


def movable(state: Any) -> Any:
    """The state of an algorithm, whose model may be moved. Raises BadInput if its workers have models of their own."""
    if isinstance(state, NetworkState):
        raise BadInput(
            "algorithm.inner has no model on the server that could be moved: its workers have their own, and x is only "
            "their mean; leave out what is around it"
        )
    return state
