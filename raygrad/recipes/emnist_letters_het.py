"""The gradient alignment paper's heterogeneous setting, on the letters split of EMNIST."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import EMNIST
from raygrad.data.partition import Labels
from raygrad.experiment import Evaluation, Experiment
from raygrad.local import Local
from raygrad.models import EMNISTCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on EMNIST Letters, 26 clients of one letter each, ten per round, under the paper's protocol.

    The paper's network and settings for EMNIST (arXiv 2106.13897) on a split that it does not use.
    """
    return Experiment(
        data=EMNIST(split="letters"),
        partition=Labels(clients=26, labels=1),
        model=EMNISTCNN(),
        algorithm=FedGA(lr=0.05, beta=0.025),
        local=Local(steps=10, batch_size=240, weight_decay=1e-3),
        sampler=Uniform(cohort=10),
        rounds=2000,
        evaluation=Evaluation(mode="paper", every=5),
    )
