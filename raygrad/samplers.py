"""Who is asked. A draw is a function of (seed, round), of who is there, and of what the sampler has learned.

Whatever is drawn, clients at work are never drawn again, and the cohort comes in ascending order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from raygrad.contract import Answer, Ask, Cohort, Draw, Pool, Population, Task, Told
from raygrad.errors import BadInput


def _check(sampler: object, **lowest: float) -> None:
    for name, least in {"cohort": 1, **lowest}.items():
        value = getattr(sampler, name)
        if not (isfinite(value) and value >= least):
            raise BadInput(f"sampler.{name} is {value}; it must be >= {least:g}")


def eligible(pool: Pool) -> np.ndarray | None:
    """The present clients that are not at work, [e] int64, sorted; None: all N."""
    present = pool.population.present
    if not len(pool.excluded):
        return present
    everybody = np.arange(len(pool.population)) if present is None else present
    return np.setdiff1d(everybody, pool.excluded, assume_unique=True)


def uniform(pool: Pool, count: int) -> np.ndarray:
    """`count` of the eligible clients, uniformly without replacement, all if there are not so many; sorted.

    Takes O(count) where few are excluded, whatever the population.
    """
    n, busy = len(pool.population), len(pool.excluded)
    if busy and 4 * (busy + count) <= n:
        taken, found = set(pool.excluded.tolist()), []
        generator = pool.rng()
        while len(found) < count:
            for client in pool.population.at(generator.integers(n, size=count - len(found))).tolist():
                if client not in taken:
                    taken.add(client)
                    found.append(client)
        return np.sort(np.array(found, np.int64))
    ids = eligible(pool)
    size = n if ids is None else len(ids)
    chosen = pool.rng().choice(size, min(count, size), replace=False, shuffle=False)
    return np.sort(chosen if ids is None else ids[chosen])


def plain(clients: np.ndarray, population: Population) -> Cohort:
    """A cohort with the population's weights."""
    return Cohort(clients, population.weights[clients], population)


@dataclass(frozen=True)
class Uniform:
    """`cohort` clients drawn uniformly without replacement, anew in every round.

    `unbiased`: means become (n/m) sum_{i in S} q_i u_i with q_i = w_i / W, which is right on average where clients'
    weights differ (scheme II of Haddadpour and Mahdavi, arXiv 1910.14425); otherwise they are divided by the weights
    of those that answered.
    """

    cohort: int = 10
    unbiased: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def draw(self, pool: Pool) -> Cohort:
        """Every client with the same probability."""
        return self.of(uniform(pool, pool.count), pool.population)

    def of(self, clients: np.ndarray, population: Population) -> Cohort:
        """The cohort of these clients, if they are drawn."""
        cohort = plain(clients, population)
        return replace(cohort, mean_weight=population.weight / len(population)) if self.unbiased else cohort


@dataclass(frozen=True)
class Weighted:
    """Clients drawn with probabilities proportional to their weights q_i = w_i / W.

    With replacement, one that is drawn twice is asked once and counts twice: the mean over the m draws is right on
    average for sum_i q_i u_i (scheme I of Haddadpour and Mahdavi, arXiv 1910.14425). Without replacement (`replace`
    false) m different clients are drawn one after another and the answers are averaged alike, which favours large
    clients less than their weights do.
    """

    cohort: int = 10
    replace: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def draw(self, pool: Pool) -> Cohort:
        """Large clients more often."""
        ids = eligible(pool)
        everybody = np.arange(len(pool.population)) if ids is None else ids
        everybody = everybody[pool.population.weights[everybody] > 0]
        if not len(everybody):
            return plain(everybody, pool.population)
        weights = pool.population.weights[everybody]
        if self.replace:
            ends = np.cumsum(weights)
            drawn = np.searchsorted(ends, pool.rng().random(pool.count) * ends[-1], side="right")
            drawn = np.minimum(drawn, len(ends) - 1)
        else:
            count = min(pool.count, len(everybody))
            drawn = pool.rng().choice(len(everybody), count, replace=False, p=weights / weights.sum())
        return self.of(everybody[drawn], pool.population)

    def of(self, drawn: np.ndarray, population: Population) -> Cohort:
        """The cohort of these draws, in which a client may come more than once."""
        clients, counts = np.unique(drawn, return_counts=True)
        return Cohort(clients, counts.astype(np.float64), population)


@dataclass(frozen=True)
class Cyclic:
    """The present clients in order of a fixed random permutation, the next `cohort` in every round.

    Each client is asked once before anybody is asked again, while nobody leaves or joins.
    """

    cohort: int = 10
    shuffled: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def draw(self, pool: Pool) -> Cohort:
        """Positions (round - 1) m to round m - 1 of the order."""
        n = len(pool.population)
        order = np.arange(n)
        if self.shuffled:
            order = replace(pool, round=0, draw=0).rng().permutation(n)
        start = (pool.round - 1) * pool.count + pool.draw
        places = np.arange(start, start + n) % n
        clients = pool.population.at(order[places])
        if len(pool.excluded):
            clients = clients[~np.isin(clients, pool.excluded)]
        return plain(np.sort(clients[: pool.count]), pool.population)


@dataclass(frozen=True)
class Available:
    """`cohort` clients drawn uniformly from those that the device model says are there now, as many as there are."""

    cohort: int = 10

    def __post_init__(self) -> None:
        _check(self)

    def draw(self, pool: Pool) -> Cohort:
        """Clients that sleep are not asked in vain; those that are there more often are asked more often."""
        ids = eligible(pool)
        everybody = np.arange(len(pool.population)) if ids is None else ids
        there = everybody[pool.available(everybody)]
        chosen = pool.rng().choice(len(there), min(pool.count, len(there)), replace=False, shuffle=False)
        return plain(np.sort(there[chosen]), pool.population)


@dataclass(frozen=True)
class PowerOfChoice:
    """`candidates` clients are drawn by weight without replacement and asked for their loss; the `cohort` with the
    greatest train.

    The loss phase is a communication of its own. Faster at first, and biased to hard clients. Cho, Wang, Joshi,
    "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies" (arXiv
    2010.01243).
    """

    cohort: int = 10
    candidates: int = 20

    def __post_init__(self) -> None:
        _check(self)
        if self.candidates < self.cohort:
            raise BadInput(
                f"sampler.candidates is {self.candidates}; it must be at least sampler.cohort = {self.cohort}"
            )

    def loss(self, task: Task, x: Tensor) -> Answer:
        sums = task.evaluate(x)
        return Answer({"loss": sums["loss"] / sums["count"]})

    def draw(self, pool: Pool) -> Draw:
        """A conversation of one phase."""
        more = max(0, pool.count - self.cohort)  # over-selection
        drawn = Weighted(self.candidates, replace=False).draw(replace(pool, count=self.candidates + more))
        asked = yield Ask(self.loss, plain(drawn.clients, pool.population), {"x": pool.x})
        best = np.lexsort((asked.cohort.clients, -asked.scalar("loss")))[: pool.count]
        return plain(np.sort(asked.cohort.clients[best]), pool.population)


@dataclass(frozen=True)
class Oort:
    """Clients whose answers have helped most for their time, with some that were never tried.

    utility of i: n_i * loss_i + sqrt(0.1 ln(round) / last_i), divided by (seconds_i / `preferred_s`)^`penalty` where it
    took longer; loss_i is the mean training loss when it last answered in round last_i. A part `explore` of the cohort
    (on average, where it is no whole number), shrinking by `decay` per round down to `least`, is drawn from clients
    without a utility. The others are drawn, with
    probabilities proportional to utility, from those above `cutoff` times the utility of the last one that would be
    chosen. After Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection" (arXiv 2010.06081),
    with the mean loss in place of the root mean square over examples, and a fixed preferred time.
    """

    cohort: int = 10
    explore: float = 0.9
    decay: float = 0.98
    least: float = 0.2
    cutoff: float = 0.95
    penalty: float = 2.0
    preferred_s: float | None = None

    def __post_init__(self) -> None:
        _check(self, penalty=0)
        if self.penalty > 100:
            raise BadInput(f"sampler.penalty is {self.penalty}; it must be <= 100")
        for name in ("explore", "decay", "least", "cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"sampler.{name} is {getattr(self, name)}; it must be a number between 0 and 1")
        if self.preferred_s is not None and not 1e-6 <= self.preferred_s <= 1e12:
            raise BadInput(f"sampler.preferred_s is {self.preferred_s}; it must be >= 1e-6 and <= 1e12, or none")

    def start(self, population: Population) -> Mapping[str, Tensor]:
        n = len(population.examples)
        return {
            "loss": torch.full((n,), torch.nan, dtype=torch.float64),
            "seconds": torch.zeros(n, dtype=torch.float64),
            "last": torch.zeros(n, dtype=torch.int64),
        }

    def learn(self, memory: Mapping[str, Tensor], told: Told) -> Mapping[str, Tensor]:
        if told.losses is None:
            return memory
        clients = torch.from_numpy(told.cohort.clients)
        known = {name: t.clone() for name, t in memory.items()}
        known["loss"][clients] = torch.from_numpy(told.losses)
        known["seconds"][clients] = torch.from_numpy(told.seconds)
        known["last"][clients] = told.round
        return known

    def utility(self, clients: np.ndarray, pool: Pool) -> np.ndarray:
        """The utility of `clients` [m]; NaN for those that never answered."""
        loss, seconds, last = (pool.memory[n].numpy()[clients] for n in ("loss", "seconds", "last"))
        stale = np.sqrt(0.1 * np.log(pool.round) / np.maximum(last, 1))
        utility = pool.population.examples[clients] * np.maximum(loss, 0) + stale
        if self.preferred_s is not None:
            utility /= np.maximum(1.0, seconds / self.preferred_s) ** self.penalty
        return utility

    def draw(self, pool: Pool) -> Cohort:
        ids = eligible(pool)
        everybody = np.arange(len(pool.population)) if ids is None else ids
        there = everybody[pool.available(everybody)]
        utility = self.utility(there, pool)
        new, tried = there[np.isnan(utility)], there[~np.isnan(utility)]
        utility = utility[~np.isnan(utility)]
        share = max(self.least, self.explore * self.decay ** (pool.round - 1))
        generator = pool.rng()
        fresh = min(len(new), max(int(share * pool.count + generator.random()), pool.count - len(tried)))
        proven = min(len(tried), pool.count - fresh)
        explored = new[generator.choice(len(new), fresh, replace=False)]
        exploited = tried[:0]
        if proven:
            bar = self.cutoff * np.sort(utility)[-proven]
            best = np.flatnonzero(utility >= bar)
            weights = utility[best] + 1e-12
            exploited = tried[best[generator.choice(len(best), proven, replace=False, p=weights / weights.sum())]]
        return plain(np.sort(np.concatenate([explored, exploited])), pool.population)


SAMPLERS: dict[str, type] = {
    "uniform": Uniform,
    "weighted": Weighted,
    "cyclic": Cyclic,
    "available": Available,
    "power-of-choice": PowerOfChoice,
    "oort": Oort,
}
