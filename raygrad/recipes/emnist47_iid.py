"""The gradient alignment paper's IID setting on 47 classes of EMNIST (arXiv 2106.13897, Table 1)."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import EMNIST47
from raygrad.data.partition import IID
from raygrad.experiment import Evaluation, Experiment
from raygrad.local import Local
from raygrad.models import EMNISTCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on the 47-class EMNIST subset, 47 clients with equal random shares, ten per round, the paper's protocol.

    The paper uses EMNIST Balanced (`--set data=emnist`); the subset in EMNIST47 is another split with the same classes.
    Network, weight decay 0.001, no clipping and no momentum are the authors'; alpha, K and the batch size are those of
    `emnist47-het`. The paper's values for this case are not known. beta = alpha K / 2 gives as much alignment as
    sequential SGD has; it comes from theory, not from a search. The table's other rows: `algorithm=fedavg`,
    `scaffold-fresh`, `fedprox`.
    """
    return Experiment(
        data=EMNIST47(),
        partition=IID(clients=47),
        model=EMNISTCNN(),
        algorithm=FedGA(lr=0.05, beta=0.25),
        local=Local(steps=10, batch_size=240, weight_decay=1e-3),
        sampler=Uniform(cohort=10),
        rounds=2000,
        evaluation=Evaluation(mode="paper", every=5),
    )
