"""Which gang is fastest here: a recipe's round, timed in this process for every mode and size of gang.

A host's speed depends on how its clients are bundled: one after another ("loop") or stacked into one computation
("vmap"), few or many at once. The default is a fixed rule, so that it never depends on the machine; this module
measures, for a person who then writes the best choice into the recipe. Nothing here runs in a training run.
"""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.remote import Url
from raygrad.files.states import StateStore
from raygrad.gang import Gang, cut
from raygrad.plan import VMAP_GANG_BYTES, Plan, plan_on, prepare_data
from raygrad.talk import Operation

Mode = Literal["loop", "vmap"]


@dataclass(frozen=True)
class Choice:
    """One way to cut the cohort. `size` is the largest gang's; the fixed rule's own choice has `by_rule`."""

    mode: Mode
    size: int
    gangs: int
    by_rule: bool

    @property
    def settings(self) -> str:
        """What to add to a command so that it is used."""
        return f"--set gangs.mode={self.mode} --set gangs.size={self.size}"


@dataclass(frozen=True)
class Candidates:
    """What can be tried for a plan, and why something cannot."""

    plan: Plan
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One timed round: clients per second of one process, and of several hosts that share the gangs."""

    choice: Choice
    clients_per_s: float
    on_hosts: float


@dataclass(frozen=True)
class Timing:
    """A choice's samples: medians, and the spread of one process's clients per second."""

    choice: Choice
    clients_per_s: float
    lowest: float
    highest: float
    on_hosts: float


def candidates(experiment: Experiment, where: Where, shard_root: Path | Url) -> Candidates:
    """Loop and vmap with gangs of 1, 2, 4, … clients up to the largest that the cohort is cut into.

    The recipe's own gangs are set aside. Raises BadInput for an experiment that could not run.
    """
    experiment = replace(experiment.pinned(), gangs=Gangs())
    shards = prepare_data(experiment, where, shard_root)
    plan = plan_on(experiment, where, shards)
    tried = plan_on(replace(experiment, gangs=Gangs(1, "vmap")), where, shards)
    rule, cohort = plan.experiment.gangs, experiment.sampler.cohort
    assert rule.size != "auto"
    notes: list[str] = []
    found: list[Choice] = []
    for mode in ("loop", "vmap"):
        if mode == "vmap" and tried.spec.mode != "vmap":
            notes += [f"no vmap: {note.split(': ', 1)[-1]}" for note in tried.notes]
            continue
        sizes: dict[int, int] = {}  # by the number of gangs
        for size in sorted({*(2**i for i in range(cohort.bit_length())), cohort, rule.size}):
            gangs = _cut(cohort, size)
            sizes.setdefault(len(gangs), rule.size if size == rule.size else max(len(g.clients) for g in gangs))
        for count, size in sizes.items():
            if mode == "vmap" and size > 1 and size * _batch_bytes(plan) > VMAP_GANG_BYTES:
                notes.append(f"no vmap of {size}: its mini-batches take more than {VMAP_GANG_BYTES >> 20} MiB")
                continue
            by_rule = rule.mode == mode and count == len(_cut(cohort, rule.size))
            found.append(Choice(mode, size, count, by_rule))
    return Candidates(plan, tuple(found), tuple(notes))


def _cut(cohort: int, size: int) -> list[Gang]:
    return cut(np.arange(cohort), np.ones(cohort), np.ones(cohort), size)


def _batch_bytes(plan: Plan) -> int:
    """What one client's mini-batches take, at most."""
    local, largest = plan.experiment.local, int(plan.population.examples.max())
    seen = largest if local.batch_size == "full" else local.batch_size * local.steps_for(largest)
    return seen * max(1, prod(plan.spec.shape)) * plan.x.dtype.itemsize


def samples(found: Candidates, hosts: int, repeats: int) -> Iterator[Sample]:
    """Time a round of every choice, by turns, `repeats` times; a round of each before that is not counted.

    Every round starts from the initial model, with the same clients for all choices. `hosts` share the gangs of a
    phase as they become free; messages are not modelled.
    """
    plan = found.plan
    start = plan.start()
    executors = {mode: InProcess(replace(plan.spec, mode=mode)) for mode in {c.mode for c in found.choices}}
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(StateStore(Path(folder) / "states", plan.client_state, max(1, plan.state_bytes))) as states,
    ):
        for index in range(1, repeats + 2):
            for choice in found.choices:
                driver = replace(plan.driver(executors[choice.mode], states), gang_size=choice.size)
                talk = driver.play(start, index).talk
                seconds = sum(o.wall_s for o in talk.operations)
                if index > 1:
                    shared = sum(makespan(phase, hosts) for phase in _phases(talk.operations))
                    yield Sample(choice, len(talk.cohort) / seconds, len(talk.cohort) / shared)


def _phases(operations: Iterable[Operation]) -> Iterator[list[float]]:
    """The seconds of every gang, phase by phase."""
    for _, group in groupby(operations, key=lambda o: o.phase):
        yield [o.wall_s for o in group]


def makespan(seconds: Iterable[float], hosts: int) -> float:
    """How long `hosts` need for pieces of work of these seconds, if whoever is free takes the next."""
    free = [0.0] * hosts
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def timings(measured: Iterable[Sample]) -> list[Timing]:
    """The samples, choice by choice, in the order in which the choices came."""
    by_choice: dict[Choice, list[Sample]] = {}
    for sample in measured:
        by_choice.setdefault(sample.choice, []).append(sample)
    return [
        Timing(
            choice,
            median(s.clients_per_s for s in group),
            min(s.clients_per_s for s in group),
            max(s.clients_per_s for s in group),
            median(s.on_hosts for s in group),
        )
        for choice, group in by_choice.items()
    ]
