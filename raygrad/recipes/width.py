"""A wide network on one pooled client, with the bound on the batch that pays measured on the way."""

from raygrad.algorithms.sgd import SGD
from raygrad.data.datasets import Digits
from raygrad.data.partition import IID
from raygrad.experiment import Evaluation, Experiment, Probe
from raygrad.local import Local
from raygrad.models import MLP
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """Sequential SGD on scikit-learn's 8 x 8 digits, a network of one hidden layer of 64 units (4,810 parameters).

    Nearly as many (4,768) in five hidden layers: `--set model.hidden=26,26,26,26,26`. L. Chen et al., "The Effect
    of Network Width on the Performance of Large-batch Training" (arXiv 1806.03791).
    """
    return Experiment(
        data=Digits(),
        partition=IID(clients=1),
        model=MLP(hidden=(64,), activation="relu"),
        algorithm=SGD(lr=0.1),
        local=Local(steps=20, batch_size=16),
        sampler=Uniform(cohort=1),
        rounds=60,
        evaluation=Evaluation(every=1),
        probe=Probe(every=10, clients=2, examples=True),
    )
