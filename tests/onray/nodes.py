"""Nodes come and go during runs on a cluster whose head has no CPUs. Prints JSON: digests and which nodes answered.

python tests/onray/nodes.py FOLDER
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Timer

import ray
from ray.cluster_utils import Cluster
from torch import Tensor

from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Answer, Task
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.runs import LoadedRun, load
from raygrad.verify import problem

FAST_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 3,
}
ROUNDS = 60
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Rests(FedGA):
    """Each client takes a moment, so that nodes can leave while it works."""

    rest_s: float = 0.02

    def local(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        time.sleep(self.rest_s)
        return super().local(task, x, g_mean, g)


def experiment() -> Experiment:
    return replace(problem(Rests()), rounds=ROUNDS, gangs=Gangs(1, "loop"))


def answered(run: LoadedRun) -> list[int]:
    """The process ids of the hosts that answered, as far as the table is written."""
    rows = load(run.folder).table("operations").to_pylist()
    return [int(r["host"].split(":")[1]) for r in rows if r["outcome"] == "answered"]


def raylet(node: "object") -> int:
    return node.all_processes["raylet"][0].process.pid  # pyright: ignore[reportAttributeAccessIssue]


def parent(pid: int) -> int | None:
    """The parent of a process, None if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def wait_for_cpus(number: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while ray.cluster_resources().get("CPU", 0) != number and time.monotonic() < deadline:
        time.sleep(0.1)


def main(folder: Path) -> None:
    made = engine.create(experiment(), Where(on="local"), run_root=folder, name="here")
    for _ in engine.play(made):
        pass
    found: dict[str, object] = {"here": load(made.folder).digest()}

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH},
    )
    a = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)

    made = engine.create(experiment(), Where(hosts="auto"), run_root=folder, name="elastic")
    b, used, gone = None, False, ROUNDS
    for round in engine.play(made):
        if round.index == 2:
            b = cluster.add_node(num_cpus=2)
            wait_for_cpus(4)
        if round.index > 2 and not used:
            time.sleep(0.5)
            used = any(parent(pid) == raylet(b) for pid in answered(made))
            if used:
                gone = round.index
                Timer(0.05, lambda: cluster.remove_node(a, allow_graceful=False)).start()
    assert b is not None
    found |= {"elastic": load(made.folder).digest(), "b_used": used, "a_gone_after": gone}
    outcomes = load(made.folder).table("operations")["outcome"].to_pylist()
    found |= {"not_answered": sum(o != "answered" for o in outcomes), "rounds_after": ROUNDS - gone}

    c = cluster.add_node(num_cpus=1)
    wait_for_cpus(3)
    made = engine.create(experiment(), Where(hosts=3), run_root=folder, name="fixed")
    for round in engine.play(made):
        if round.index == 3:
            Timer(0.05, lambda: cluster.remove_node(c, allow_graceful=False)).start()
    found["fixed"] = load(made.folder).digest()

    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
