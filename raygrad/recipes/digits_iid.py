"""Handwritten digits spread evenly over the clients: what `digits` is without heterogeneity."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import Digits
from raygrad.data.partition import IID
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on scikit-learn's 8 x 8 digits, ten clients with equal random shares.

    The settings are those of `digits`, so that the two differ in their partition only.
    """
    return Experiment(
        data=Digits(),
        partition=IID(clients=10),
        model=DigitsCNN(),
        algorithm=FedGA(lr=0.1, beta=0.1),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
