"""FedDyn on digits with one class per client."""

from raygrad.algorithms.feddyn import FedDyn
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedDyn on scikit-learn's 8 x 8 digits, ten clients of one class each, all of them in every round.

    The penalty is the best of 0.03, 0.1, 0.3 and 1 by validation loss over the last 25 rounds (alpha 0.1, seed 10).
    """
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=FedDyn(lr=0.1, penalty=0.3),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
