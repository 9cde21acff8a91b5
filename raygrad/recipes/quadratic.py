"""Least squares on made clients with their own Hessians and minimisers, where theory says exactly what to expect."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import SyntheticQuadratic
from raygrad.data.partition import Natural
from raygrad.experiment import Experiment
from raygrad.local import Local
from raygrad.models import Linear
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA on ten heterogeneous quadratics in ten dimensions, full batches, float64; judged by the loss."""
    return Experiment(
        data=SyntheticQuadratic(clients=10, examples=50, features=10, heterogeneity=1.0),
        partition=Natural(),
        model=Linear(bias=False),
        algorithm=FedGA(lr=0.05, beta=0.05),
        local=Local(steps=5, batch_size="full"),
        sampler=Uniform(cohort=10),
        rounds=100,
        loss="squared_error",
        metrics=(),
        dtype="float64",
    )
