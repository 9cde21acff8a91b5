"""Next characters of tiny Shakespeare, every client a speaker: `raygrad run shakespeare --data-root DIR`."""

from raygrad.algorithms.fedga import FedGA
from raygrad.data.datasets import Shakespeare
from raygrad.data.partition import Natural
from raygrad.experiment import Evaluation, Experiment, Probe
from raygrad.local import Local
from raygrad.models import CharLSTM
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    """FedGA with a character LSTM on the 28 speakers of tiny Shakespeare who say most, eight per round.

    Short windows, every 20 characters, keep a run to a minute or two on one core; the usual ones are `data.length=80`
    and `data.stride=1`. alpha and beta are the best of (3, 0.3), (6, 0.3), (6, 2) and (10, 1) by validation loss (seed
    10); FedAvg does best with 6, too, of 3, 6 and 10.
    """
    return Experiment(
        data=Shakespeare(length=20, stride=20, least=500),
        partition=Natural(),
        model=CharLSTM(),
        algorithm=FedGA(lr=6.0, beta=0.3),
        local=Local(steps=10, batch_size=20, clip_norm=5.0),
        sampler=Uniform(cohort=8),
        rounds=30,
        evaluation=Evaluation(every=5),
        probe=Probe(every=30, clients=4),
    )
