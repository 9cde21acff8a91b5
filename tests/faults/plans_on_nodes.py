"""Random plans of faults on a cluster whose nodes come and go all the time. Prints JSON: how each plan went.

python tests/faults/plans_on_nodes.py FOLDER
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from raygrad.algorithms.fedga import FedGA
from raygrad.experiment import Gangs, Where
from raygrad.samplers import Uniform
from raygrad.verify import problem
from raygrad.verify_faults import trials

FAST_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 3,
}
CHANGE_S = 12.0  # a host needs some seconds to start


def plans(folder: Path) -> list[dict[str, object]]:
    e = replace(problem(FedGA(), 6), sampler=Uniform(5), gangs=Gangs(1, "loop"))
    return [
        {"ok": t.ok, "plan": [str(f) for f in t.plan], "detail": t.detail}
        for t in trials(e, Where(hosts="1..2"), folder, plans=2, seed=11)
    ]


def main(folder: Path) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH},
    )
    ray.init(address=cluster.address, log_to_driver=False)  # while there is only the head: it must not go
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    changes = 0
    with ThreadPoolExecutor() as pool:
        found = pool.submit(plans, folder)
        while not wait([found], timeout=CHANGE_S).done:  # nodes are made in the main thread only
            nodes.append(cluster.add_node(num_cpus=1))
            cluster.remove_node(nodes.pop(0), allow_graceful=changes % 2 == 0)
            changes += 1
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({"plans": found.result(), "changes": changes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
