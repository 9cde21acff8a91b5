"""FedGA whose clients send a few bits per number, on digits with one class per client."""

from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.quantised import Quantised
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """Quantised FedGA on scikit-learn's 8 x 8 digits, ten clients of one class each: 8 bits per number that goes up."""
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=Quantised(FedGA(lr=0.1, beta=0.1), levels=127),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
