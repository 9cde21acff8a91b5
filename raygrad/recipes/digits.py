"""The main job: handwritten digits, every client holds one class alone. Needs nothing from the network."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on scikit-learn's 8 x 8 digits, ten clients of one class each, all of them in every round.

    From a short search over alpha 0.05 to 0.2, beta 0.025 to 1, K 5 and 10, B 10 and 16 (seed 0), judged by validation
    accuracy: 0.90 after 10 rounds, 0.98 after 50. FedAvg (beta = 0) swings between 0.80 and 0.96.
    """
    return Experiment(
        data=Digits(),
        partition=Labels(clients=10, labels=1),
        model=DigitsCNN(),
        algorithm=FedGA(lr=0.1, beta=0.1),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=10),
        rounds=60,
    )
