"""Asynchronous training: FedBuff on handwritten digits, with clients of very different speeds on a virtual clock."""

from raygrad.algorithms.fedavg import FedAvg
from raygrad.data.datasets import Digits
from raygrad.data.partition import Dirichlet
from raygrad.devices import LogNormal
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.samplers import Uniform
from raygrad.stragglers import Buffered


def recipe() -> Experiment:
    """FedBuff on scikit-learn's 8 x 8 digits: 20 of 50 clients are at work at any moment, a step takes 5 answers.

    Its 600 answers take 11.6 virtual seconds and reach a test accuracy of 0.98 (seed 0; about 15 s on one core). The
    same clients waiting for the slowest (`--set stragglers=wait`) take 178 s for as many answers at five per round, and
    reach 0.99; 73 s at twenty per round (`--set sampler.cohort=20 --rounds 30`), and reach 0.97. The price is the bias
    to fast clients that the summary measures. More answers per step, or a smaller `algorithm.server_lr`, steady it.
    """
    return Experiment(
        data=Digits(),
        partition=Dirichlet(clients=50, concentration=0.5),
        model=DigitsCNN(),
        algorithm=FedAvg(lr=0.1),
        local=Local(steps=5, batch_size=10),
        sampler=Uniform(cohort=5),  # the cohort counts with --set stragglers=wait only
        devices=LogNormal(sigma=1.0, examples_per_s=100.0),
        stragglers=Buffered(report_goal=5, concurrency=20),
        rounds=120,
    )
