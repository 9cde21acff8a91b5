"""MNIST with one class per client. Downloaded where there is a network, or read from --data-root."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import MNIST
from raygrad.data.partition import Labels
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import EMNISTCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on MNIST, a hundred clients of one class each, ten of them per round.

    The network and the local work are those of the paper's EMNIST experiments with smaller batches; not tuned.
    """
    return Experiment(
        data=MNIST(),
        partition=Labels(clients=100, labels=1),
        model=EMNISTCNN(),
        algorithm=FedGA(lr=0.05, beta=0.025),
        local=Local(steps=10, batch_size=60, weight_decay=1e-3),
        sampler=Uniform(cohort=10),
        rounds=500,
    )
