"""DP-FedAvg on digits: differential privacy of clients, its epsilon measured on the way."""

from raygrad.algorithms.dp import Private
from raygrad.algorithms.fedavg import FedAvg
from raygrad.data.datasets import Digits
from raygrad.data.partition import IID
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedAvg on scikit-learn's 8 x 8 digits, 200 clients of 6 or 7 examples, 40 per round, clipped and with noise."""
    return Experiment(
        data=Digits(),
        partition=IID(clients=200),
        model=DigitsCNN(),
        algorithm=Private(FedAvg(lr=0.1), clip=0.5, noise=2.0),
        local=Local(steps=5, batch_size=5),
        sampler=Uniform(cohort=40),
        rounds=60,
    )
