"""Random plans of faults on a cluster whose nodes come and go all the time. Prints JSON: how each plan went.

python tests/faults/plans_on_nodes.py FOLDER
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

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
CHANGE_S = 15.0  # a host needs some seconds to start


def come_and_go(cluster: Cluster, stop: Event, changes: list[int]) -> None:
    """A new node joins, then the oldest is taken away, abruptly every other time."""
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    while not stop.wait(CHANGE_S):
        nodes.append(cluster.add_node(num_cpus=1))
        cluster.remove_node(nodes.pop(0), allow_graceful=len(changes) % 2 == 0)
        changes.append(len(nodes))


def main(folder: Path) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH},
    )
    stop, changes = Event(), list[int]()
    nodes = Thread(target=come_and_go, args=(cluster, stop, changes))
    nodes.start()
    ray.init(address=cluster.address, log_to_driver=False)
    e = replace(problem(FedGA(), 6), sampler=Uniform(5), gangs=Gangs(1, "loop"))
    found = [
        {"ok": t.ok, "plan": [str(f) for f in t.plan], "detail": t.detail}
        for t in trials(e, Where(hosts="1..2"), folder, plans=4, seed=2)
    ]
    stop.set()
    nodes.join()
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({"plans": found, "changes": len(changes)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
