"""FedGA in one communication per round, on digits with one class per client."""

from raygrad.algorithms.fedga_stale import StaleFedGA
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA with an old mean gradient on scikit-learn's 8 x 8 digits, ten clients of one class each."""
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=StaleFedGA(lr=0.1, beta=0.1),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
