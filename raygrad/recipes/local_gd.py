"""Local-GD on separable data: more features than examples, every client with data of its own. Needs no network."""

from raygrad.algorithms.local_gd import LocalGD
from raygrad.data.datasets import SyntheticLogistic
from raygrad.data.partition import Natural
from raygrad.experiment import Experiment, Probe
from raygrad.local import Local
from raygrad.models import Linear
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """Local-GD with a linear model on ten unlike clients, 200 examples in 1000 features, ten steps per round.

    So many features separate the classes: the loss goes to zero (docs/theory.md says how fast).
    `algorithm.anchored=true` draws the averages to the first model.
    """
    return Experiment(
        data=SyntheticLogistic(clients=10, examples=20, features=1000, classes=2, alpha=1.0, beta=1.0),
        partition=Natural(),
        model=Linear(bias=False),
        algorithm=LocalGD(lr=0.01),
        local=Local(steps=10, batch_size="full"),
        sampler=Uniform(cohort=10),
        rounds=50,
        probe=Probe(every=25),
    )
