"""FedAWARE on digits whose classes are unevenly spread, few of many clients per round."""

from raygrad.algorithms.fedaware import FedAware
from raygrad.data.datasets import Digits
from raygrad.data.partition import Dirichlet
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Cyclic


def recipe() -> Experiment:
    """FedAWARE on scikit-learn's 8 x 8 digits, thirty clients by Dirichlet(0.1), six per round, three local epochs.

    eta is the best of 0.3, 1 and 2 by validation accuracy over the last 25 rounds (alpha 0.05, seed 10).
    """
    return Experiment(
        data=Digits(),
        partition=Dirichlet(clients=30, concentration=0.1),
        model=DigitsCNN(),
        algorithm=FedAware(lr=0.05, server_lr=2.0, mix=0.5),
        local=Local(steps=None, epochs=3, batch_size=10),
        sampler=Cyclic(cohort=6),
        rounds=60,
    )
