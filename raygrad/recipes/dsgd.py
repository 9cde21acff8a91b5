"""D-SGD on digits: ten workers on a ring, one class each, and no server."""

from raygrad.algorithms.dsgd import DSGD
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """D-SGD on scikit-learn's 8 x 8 digits, ten workers of one class each, one step per round."""
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=DSGD(lr=0.1, topology="ring"),
        local=Local(steps=1, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
