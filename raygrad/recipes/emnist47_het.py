"""The gradient alignment paper's heterogeneous setting on 47 classes of EMNIST (arXiv 2106.13897, Table 1)."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import EMNIST47
from raygrad.data.partition import Labels
from raygrad.experiment import Evaluation, Experiment
from raygrad.local import Local
from raygrad.models import EMNISTCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on the 47-class EMNIST subset, 47 clients of one class each, ten per round, the paper's protocol.

    The paper uses EMNIST Balanced (`--set data=emnist`); the subset in EMNIST47 is another split with the same classes.
    beta = alpha / 2 and the rest are the authors' settings, with batches of a tenth of a client's examples.
    """
    return Experiment(
        data=EMNIST47(),
        partition=Labels(clients=47, labels=1),
        model=EMNISTCNN(),
        algorithm=FedGA(lr=0.05, beta=0.025),
        local=Local(steps=10, batch_size=240, weight_decay=1e-3),
        sampler=Uniform(cohort=10),
        rounds=2000,
        evaluation=Evaluation(mode="paper", every=5),
    )
