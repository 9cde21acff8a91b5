"""A node is removed and another added during an ASHA sweep on a cluster whose head has no CPUs. Prints JSON.

python tests/onray/sweeping.py FOLDER
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import ray
from ray.cluster_utils import Cluster
from torch import Tensor

from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Answer, Task
from raygrad.errors import BadInput
from raygrad.sweeps import sweep as sweeps
from raygrad.verify import problem

FAST_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class Rests(FedGA):
    """Each client takes a moment, so that nodes can leave while it works."""

    rest_s: float = 0.03

    def local(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        time.sleep(self.rest_s)
        return super().local(task, x, g_mean, g)


def main(folder: Path) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH},
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    found: dict[str, object] = {"removed": False}
    s = sweeps.Sweep(
        replace(problem(Rests()), rounds=27), {"alpha": "0.3,0.2,1e-6"}, search="grid", scheduler="asha",
        winner_seeds=0, max_concurrent=2,
    )  # fmt: skip
    try:
        sweeps.run(replace(s, hosts_per_trial=64), run_root=folder, name="nodes")
    except BadInput as e:
        found["refused"] = str(e)

    def disturb() -> None:
        """When both nodes have played a round, one goes and another comes."""
        while len(list(folder.glob("nodes/*/trials/*/checkpoints/*/meta.json"))) < 2:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        found["removed"] = True
        cluster.add_node(num_cpus=1)

    Thread(target=disturb, daemon=True).start()
    done = sweeps.run(s, run_root=folder, name="nodes", say=lambda line: print(line, file=sys.stderr, flush=True))
    rows = done.trials().to_pylist()
    found |= {
        "outcomes": [r["outcome"] for r in rows],
        "trials": [[r["algorithm.lr"], r["rounds"], r["digest"]] for r in rows],
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
