"""CIFAR-100 with the network and the steps of the gradient alignment paper's CIFAR-10 (arXiv 2106.13897, B.6)."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import CIFAR100
from raygrad.data.partition import IID
from raygrad.experiment import Evaluation, Experiment
from raygrad.local import Local
from raygrad.models import CIFARCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on CIFAR-100, ten clients with equal random shares, all of them in every round, under the paper's protocol.

    Network, random crops and flips, K = 20 steps on batches of 100 and weight decay 0.001 are the authors' for
    CIFAR-10; alpha and beta are those of `cifar10-iid`, not searched for. `partition=dirichlet` makes clients unequal.
    """
    return Experiment(
        data=CIFAR100(augment=True),
        partition=IID(clients=10),
        model=CIFARCNN(),
        algorithm=FedGA(lr=0.1, beta=0.1),
        local=Local(steps=20, batch_size=100, weight_decay=1e-3),
        sampler=Uniform(cohort=10),
        rounds=2000,
        evaluation=Evaluation(mode="paper", every=10),
    )
