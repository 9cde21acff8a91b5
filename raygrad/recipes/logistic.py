"""Logistic regression on made clients that differ in their data and in their labels. Needs nothing from the network."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import SyntheticLogistic
from raygrad.data.partition import Natural
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import Linear
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on Synthetic(1, 1) of the FedProx paper (arXiv 1812.06127): 30 clients, 10 per round, a convex problem."""
    return Experiment(
        data=SyntheticLogistic(clients=30, examples=100, features=60, classes=10, alpha=1.0, beta=1.0),
        partition=Natural(),
        model=Linear(),
        algorithm=FedGA(lr=0.05, beta=0.05),
        local=Local(steps=10, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=100,
    )
