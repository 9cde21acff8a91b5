"""FedAdam on digits with one class per client: a server optimiser around FedAvg."""

from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedopt import FedAdam
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedAdam around FedAvg on scikit-learn's 8 x 8 digits, ten clients of one class each, all of them in every round.

    eta is the best of 0.003, 0.01, 0.03 and 0.1 by validation accuracy after 60 rounds (alpha 0.1, seed 0).
    """
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=FedAdam(FedAvg(lr=0.1), eta=0.03),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
