"""Five hosts whose work is sleeping, one of them ten times slower, beside the other four alone.

    python tests/onray/stragglers.py FOLDER [--sleep SECONDS] [--rounds N]

Prints a JSON object: the seconds of a round after the first (in which the hosts are learned) with four and with five
hosts, their ratio, and what became of the gangs.
"""

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch
from torch import Tensor

from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Answer, Task
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Gangs, Where
from raygrad.files.states import StateStore
from raygrad.onray.executor import RayExecutor
from raygrad.onray.start import host_class
from raygrad.plan import Plan, make_plan
from raygrad.samplers import Uniform
from raygrad.talk import Operation
from raygrad.verify import problem

SLOWER = 10


@dataclass(frozen=True)
class Sleeps(FedGA):
    """Each client sleeps in both phases, ten times as long on the host whose process id stands in the file `slow`."""

    sleep_s: float = 0.0
    slow: str = ""

    def _rest(self) -> None:
        slow = self.slow and Path(self.slow).read_text() == str(os.getpid())
        time.sleep(self.sleep_s * (SLOWER if slow else 1))

    def gradient(self, task: Task, x: Tensor) -> Answer:
        self._rest()
        return super().gradient(task, x)

    def local(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        self._rest()
        return super().local(task, x, g_mean, g)


def planned(folder: Path, sleep_s: float, slow: str = "") -> Plan:
    """Eight gangs of one client each."""
    e = problem(Sleeps(sleep_s=sleep_s, slow=slow), clients=8)
    return make_plan(replace(e, sampler=Uniform(cohort=8), gangs=Gangs(1, "loop")), Where(on="local"), folder)


def play(
    plan: Plan, executor: RayExecutor | InProcess, rounds: int, folder: Path
) -> tuple[Tensor, list[float], list[list[Operation]]]:
    """The last model, each round's seconds and operations."""
    store = StateStore(folder, plan.client_state, 10**9)
    driver = plan.driver(executor, store)
    state, walls, operations = plan.start(), [], []
    for index in range(1, rounds + 1):
        played = driver.play(state, index)
        state = played.state
        walls.append(played.wall_s)
        operations.append(played.talk.operations)
    store.close()
    return state.algorithm.x, walls, operations


def greeted(plan: Plan, actors: list[Any]) -> RayExecutor:
    """An executor on these host actors, all of which said hello."""
    executor = RayExecutor(plan.spec, len(actors), made=actors)
    while executor.pool.hellos:
        executor.pool.greet(ray.wait(list(executor.pool.hellos))[0][0])
    return executor


def main(folder: Path, sleep_s: float, rounds: int) -> None:
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False)
    marker = folder / "slow"
    marker.write_text("")
    here, there = planned(folder, 0.0), planned(folder, sleep_s, str(marker))
    expected, _, _ = play(here, InProcess(here.spec), rounds, folder / "here")

    make = host_class()
    actors = [make.remote() for _ in range(5)]
    _, alone, _ = play(there, greeted(there, actors[1:]), rounds, folder / "four")
    five = greeted(there, actors)
    slow = five.pool.hosts[0].name
    assert slow is not None
    marker.write_text(slow.split(":")[1])
    found, together, operations = play(there, five, rounds, folder / "five")
    five.close()
    ray.shutdown()

    done = [o for of_round in operations for o in of_round]
    answers = Counter(
        (i, o.phase, o.gang) for i, of_round in enumerate(operations) for o in of_round if o.outcome == "answered"
    )
    print(
        json.dumps(
            {
                "four_s": median(alone[1:]),
                "five_s": median(together[1:]),
                "ratio": median(together[1:]) / median(alone[1:]),
                "ratio_of_first_round": together[0] / alone[0],
                "same_bits": torch.equal(found, expected),
                "gangs": 16 * rounds,
                "answered": sum(o.outcome == "answered" for o in done),
                "answered_once": set(answers.values()) == {1},
                "answered_by_slow": sum(o.outcome == "answered" and o.host == slow for o in done),
                "superseded": sum(o.outcome == "superseded" for o in done),
                "second_attempts": sum(o.attempt == 2 for o in done),
                "rounds_s": together,
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds of a client's work (default 1)")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    main(given.folder, given.sleep, given.rounds)
