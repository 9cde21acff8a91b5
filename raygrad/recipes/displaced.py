"""FedDyn from FedGA's displaced starts, on digits with one class per client."""

from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.feddyn import FedDyn
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """The displacement around FedDyn on scikit-learn's 8 x 8 digits, ten clients of one class each."""
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=Displaced(FedDyn(lr=0.1, penalty=0.3), beta=0.1),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
