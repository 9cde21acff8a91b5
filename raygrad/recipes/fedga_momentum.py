"""FedGA with momentum at the server, on digits with one class per client."""

from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA inside FedAvgM on scikit-learn's 8 x 8 digits, ten clients of one class each."""
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=FedAvgM(FedGA(lr=0.1, beta=0.1), momentum=0.9),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
