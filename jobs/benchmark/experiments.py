"""The same work as raygrad's experiments: a data set, a model by name, and what is not timed made rare."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.benchmark import work
from raygrad import Experiment
from raygrad.algorithms.fedavg import FedAvg
from raygrad.data.partition import Natural, Repeated
from raygrad.data.source import Examples, Source
from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.experiment import Checkpoints, Evaluation, Probe
from raygrad.local import Local
from raygrad.models import Custom
from raygrad.samplers import Uniform

NEVER = 10**9
"""In every so many rounds: what is not timed."""


@dataclass(frozen=True)
class MadeShards:
    """`clients` clients with the shards of `work.shard`; one client more is the test set."""

    clients: int = 100

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise BadInput(f"data.clients is {self.clients}; it must be >= 1")

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `raygrad.data.source.Dataset.open`."""
        x = np.empty((self.clients + 1, work.EXAMPLES, *work.SHAPE), np.float32)
        y = np.empty((self.clients + 1, work.EXAMPLES), np.int64)
        for client in range(self.clients + 1):
            xs, ys = work.shard.__wrapped__(seed, client)
            x[client], y[client] = xs.numpy(), ys.numpy()
        train = Examples(x[:-1].reshape(-1, *work.SHAPE), y[:-1].reshape(-1))
        names = tuple(str(c) for c in range(work.CLASSES))
        whose = np.repeat(np.arange(self.clients), work.EXAMPLES)
        return Source.of(train, Examples(x[-1], y[-1]), names, Transform(), whose)


def experiment(network: str, clients: int, cohort: int, stored: int | None = None, seed: int = 0) -> Experiment:
    """FedAvg on the benchmark's work. `stored`: client i holds the shard of client i mod `stored`."""
    if network not in work.NETWORKS:
        raise BadInput(f"network is {network!r}; there is {' and '.join(work.NETWORKS)}")
    return Experiment(
        data=MadeShards(stored or clients),
        partition=Natural(clients) if stored is None else Repeated(clients),
        model=Custom(f"jobs.benchmark.work:{network}"),
        algorithm=FedAvg(lr=work.LR),
        local=Local(steps=work.STEPS, batch_size=work.BATCH),
        sampler=Uniform(cohort),
        rounds=NEVER,
        seed=seed,
        evaluation=Evaluation(mode="paper", every=NEVER),  # nothing of a shard is set apart
        probe=Probe(every=0),
        checkpoints=Checkpoints(every=NEVER),
    )


def recipe() -> Experiment:
    """100 of 1,000 clients, small network: `python -m raygrad benchmark gang jobs/benchmark/experiments.py`."""
    return experiment("small", clients=1000, cohort=100)
