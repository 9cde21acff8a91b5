"""Who is asked. A sampler's draw is a function of (seed, round) alone."""

from dataclasses import dataclass

import numpy as np

from raygrad.contract import Cohort, Population
from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng


@dataclass(frozen=True)
class Uniform:
    """`cohort` clients drawn uniformly without replacement, anew in every round."""

    cohort: int = 10

    def __post_init__(self) -> None:
        if self.cohort < 1:
            raise BadInput(f"sampler.cohort is {self.cohort}; it must be >= 1")

    def draw(self, round: int, seed: int, population: Population) -> Cohort:
        """The clients of round `round`, in ascending order."""
        clients = np.sort(
            rng(seed, Purpose.SAMPLING, round).choice(len(population), self.cohort, replace=False, shuffle=False)
        )
        return Cohort(clients, population.weights[clients], population)


SAMPLERS: dict[str, type] = {"uniform": Uniform}
