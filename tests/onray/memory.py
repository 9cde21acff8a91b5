"""Prints how many bytes this process (the driver) grew by while a cohort of a given size trained on two hosts."""

import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch
from torch import Tensor

from raygrad.algorithms.fedavg import FedAvg
from raygrad.contract import Answer, Task
from raygrad.experiment import Gangs, Where
from raygrad.files.states import StateStore
from raygrad.models import MLP
from raygrad.onray.executor import RayExecutor
from raygrad.plan import make_plan
from raygrad.samplers import Uniform
from raygrad.talk import ServerState
from raygrad.verify import problem


@dataclass(frozen=True)
class Cheap(FedAvg):
    """A whole model goes up from every client, but nothing is computed."""

    def local(self, task: Task, x: Tensor) -> Answer:
        return Answer({"delta": x * (0.001 * task.round)})


def anonymous_bytes() -> int:
    """This process's private memory; the object store's shared pages are not counted."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main(clients: int, folder: Path) -> None:
    torch.set_num_threads(1)
    e = replace(
        problem(Cheap(), clients), model=MLP(hidden=(20_000,)), sampler=Uniform(cohort=clients),
        gangs=Gangs(4, "loop"), dtype="float32",
    )  # fmt: skip
    plan = make_plan(e, Where(on="local"), folder)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    executor = RayExecutor(plan.spec, 2)
    store = StateStore(folder / "states", {}, 10**9)
    driver = plan.driver(executor, store)
    state = ServerState(e.algorithm.init(plan.x, plan.population))
    before, peak, over = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    driver.play(state, 1)
    over.set()
    watcher.join()
    print(plan.x.nbytes, peak - before)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
