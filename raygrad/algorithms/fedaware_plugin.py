"""FedAWARE as a plug-in: of what another algorithm makes of x, the part along the clients' common direction.

    D = x+ - x,  x+ the model after a round of the algorithm inside
    q = the combination of least norm of the clients' normalised momenta (see fedaware)
    x <- x + (<D, q> / |q|^2) q      (x + D while some client was never asked, or where q is 0)

Zeng et al., "Tackling Hybrid Heterogeneity on Federated Optimization via Gradient Diversity Maximization" (arXiv
2310.02702). The clients' deltas are sent to the server one by one, and it keeps one vector per client. Communications
are those of the algorithm inside, whose clients must answer a `delta`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from raygrad import hull
from raygrad.algorithms.around import Around, AroundState, moved
from raygrad.algorithms.base import per_client
from raygrad.algorithms.fedaware import averaged, check_mix, direction, total
from raygrad.algorithms.networked import movable
from raygrad.contract import Cohort, Population, Round

COMMON = 1e-6
"""Unit vectors whose combination of least norm is shorter have no direction in common; it would be noise."""


@dataclass(frozen=True)
class AwarePlugInState(AroundState):
    """The state inside, and a momentum of each client."""

    m: Tensor  # [N, d]


@dataclass(frozen=True)
class FedAwarePlugIn(Around):
    """`mix` is the weight of a client's newest delta in its momentum; `inner` is the algorithm inside."""

    changes_asks: ClassVar[bool] = True

    mix: float = 0.5

    def __post_init__(self) -> None:
        check_mix(self)

    def init(self, x: Tensor, population: Population) -> AwarePlugInState:
        (m,) = per_client(x, population, "fedaware-plugin")
        return AwarePlugInState(movable(super().init(x, population).inner), m)

    def round(self, state: AwarePlugInState, cohort: Cohort) -> Round:
        conversation, m = self.inner.round(state.inner, cohort), state.m
        ask = next(conversation)
        while True:
            r = yield replace(ask, rows=(*ask.rows, "delta"))
            if "delta" in r.stacked:
                m = averaged(m, r, self.mix)
                if "delta" not in ask.rows:
                    r = replace(r, totals={**r.totals, "delta": total(r, "delta" in ask.shares)})
            try:
                ask = conversation.send(r)
            except StopIteration as stop:
                after = stop.value
                break
        q = direction(m, cohort.population)
        if q is not None and hull.length(q) > COMMON:
            after = moved(after, state.x + hull.along(after.x - state.x, q))
        return AwarePlugInState(after, m)
