"""Local descent with periodic averaging on full gradients (LFGD), clients of unequal sizes drawn by their weights."""

from raygrad.algorithms.fedavg import FedAvg
from raygrad.data.datasets import Digits
from raygrad.data.partition import Dirichlet
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Weighted


def recipe() -> Experiment:
    """LFGD under sampling scheme I: K full-gradient steps at 5 of 20 clients, drawn with replacement by their examples.

    Both schemes are of Haddadpour and Mahdavi (arXiv 1910.14425); the partition is Dirichlet(0.5). Scheme II:
    `--set sampler=uniform --set sampler.unbiased=true`.
    """
    return Experiment(
        data=Digits(),
        partition=Dirichlet(clients=20, concentration=0.5),
        model=DigitsCNN(),
        algorithm=FedAvg(lr=0.1),
        local=Local(steps=5, batch_size="full"),
        sampler=Weighted(cohort=5),
        weights="examples",
        rounds=60,
    )
