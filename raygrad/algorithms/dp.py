"""Differential privacy of clients, around any algorithm whose server sees sums only.

    client i:  what it sends, all vectors together, is scaled down to norm C
    server:    sum_i u_i + N(0, (s C)^2)   in the place of each sum

DP-FedAvg is this around FedAvg: McMahan et al., "Learning Differentially Private Recurrent Language Models" (arXiv
1710.06963). Every communication is a release of its own; those of a round are of the same clients, so that drawing few
hides them only once. `measures` has the epsilon that the releases so far have come to, for clients drawn uniformly
without replacement in every round (`raygrad.privacy`; arXiv 1702.07476, arXiv 1808.00087), and the part of the clients
that were scaled.
It is a simulation: the noise is drawn from the experiment's seed, and losses and metrics in the tables are not private.
Communications and state as the algorithm inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from raygrad import privacy
from raygrad.algorithms.around import Around, AroundState
from raygrad.algorithms.base import check
from raygrad.algorithms.clipped import ClippedMethod
from raygrad.contract import Ask, Cohort, Population, Replies, Round
from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng


@dataclass(frozen=True)
class PrivateState(AroundState):
    """And what the accountant has to know."""

    releases: Tensor  # []
    rounds: Tensor  # []
    most: Tensor  # [], the most releases that a round had
    asked: Tensor  # [], the most clients that a release was of
    present: Tensor  # [], the fewest clients that there were
    clipped: Tensor  # [], the part of the clients that were scaled in the newest release


@dataclass(frozen=True)
class Private(Around):
    """`clip` is C, `noise` is s, `delta` that of (epsilon, delta); `inner` is the algorithm inside."""

    sealed: ClassVar[bool] = True

    clip: float = 1.0
    noise: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        check(self, clip=1e-12, noise=0)
        if not 0 < self.delta < 1:
            raise BadInput(f"algorithm.delta is {self.delta}; it must be between 0 and 1")

    def init(self, x: Tensor, population: Population) -> PrivateState:
        privacy.check()
        if len(set(population.weights.tolist())) > 1:
            raise BadInput("algorithm dp bounds what each client adds to a sum alike: it needs weights=equal")
        state, zero = super().init(x, population), x.new_zeros(())
        self._refuse(self.first_ask(state, population))
        return PrivateState(state.inner, zero, zero, zero, zero, x.new_tensor(float(len(population))), zero)

    def measures(self, state: PrivateState) -> Mapping[str, float]:
        """epsilon so far, and the part of the clients that were scaled."""
        found = {**super().measures(state), "clipped": float(state.clipped)}
        if self.noise and state.releases:
            numbers = (int(t) for t in (state.rounds, state.most, state.asked, state.present))
            found["epsilon"] = privacy.epsilon(self.noise, *numbers, self.delta)
        return found

    def round(self, state: PrivateState, cohort: Cohort) -> Round:
        seen = [state]

        def changed(ask: Ask) -> Round:
            self._refuse(ask)
            r = yield replace(ask, work=ClippedMethod(ask.work, clip=self.clip))
            if seen_alone := r.scalars.keys() - {"train_loss", "clipped"}:
                raise BadInput(
                    f"algorithm dp hides clients in sums; {type(self.inner).__name__} is told "
                    f"{', '.join(sorted(seen_alone))} of each"
                )
            seen.append(_released(seen[-1], r, len(ask.cohort)))
            return self._noisy(r, int(seen[-1].releases))

        inner = yield from self.driven(state.inner, cohort, changed)
        most = torch.maximum(state.most, seen[-1].releases - state.releases)
        return replace(seen[-1], inner=inner, rounds=state.rounds + 1, most=most)

    def _refuse(self, ask: Ask) -> None:
        if ask.rows or ask.shares or ask.each:
            raise BadInput(f"algorithm dp hides clients in sums; {type(self.inner).__name__} wants more than a sum")

    def _noisy(self, r: Replies, release: int) -> Replies:
        scale = self.noise * self.clip * float(r.cohort.weights.max())
        draw = rng(r.cohort.population.seed, Purpose.PRIVACY, release)
        noise = {name: torch.from_numpy(draw.standard_normal(len(r.totals[name]))) for name in sorted(r.totals)}
        return replace(r, totals={name: t + scale * noise[name] for name, t in r.totals.items()})


def _released(state: PrivateState, r: Replies, asked: int) -> PrivateState:
    m, n = (torch.full_like(state.releases, float(count)) for count in (asked, len(r.cohort.population)))
    return replace(
        state, releases=state.releases + 1, asked=torch.maximum(state.asked, m),
        present=torch.minimum(state.present, n), clipped=torch.full_like(m, r.scalar("clipped").mean()),
    )  # fmt: skip
