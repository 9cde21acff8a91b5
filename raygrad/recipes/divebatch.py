"""Batches that grow with the diversity of gradients, on handwritten digits."""

from raygrad.algorithms.divebatch import DiveBatch
from raygrad.data.datasets import Digits
from raygrad.data.partition import IID
from raygrad.experiment import Evaluation, Experiment, Probe
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """DiveBatch on scikit-learn's 8 x 8 digits, four workers with equal random shares, one update per round.

    Of largest batches of 256 and 64 (alpha 0.02 for 8 examples, seeds 10 and 11) the greater one was unstable: its step
    size is 0.64.
    """
    return Experiment(
        data=Digits(),
        partition=IID(clients=4),
        model=DigitsCNN(),
        algorithm=DiveBatch(lr=0.02, batch_size=8, max_batch_size=64, every=1, delta=0.1),
        local=Local(steps=1, batch_size=2),
        sampler=Uniform(cohort=4),
        rounds=400,
        evaluation=Evaluation(every=25),
        probe=Probe(every=100),
    )
