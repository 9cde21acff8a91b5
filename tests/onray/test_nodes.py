"""Nodes that join are used, nodes that leave cost time only; hosts stay inside a placement group."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BadInput, Stopped
from raygrad.experiment import Experiment, Where
from raygrad.onray import cluster, pool
from raygrad.onray.executor import RayExecutor
from raygrad.plan import make_plan
from raygrad.verify import problem


def test_nodes_come_and_go(in_another_ray: Callable[..., Any]) -> None:
    found = in_another_ray("nodes.py")
    assert found["elastic"] == found["here"] == found["fixed"]
    assert found["b_used"] and found["rounds_after"] >= 1
    assert found["not_answered"] >= 1  # what the node that left owed


@pytest.mark.usefixtures("ray_local")
def test_hosts_stay_inside_a_placement_group(tmp_path: Path) -> None:
    """Three CPUs, of which the task that drives holds one."""
    spec = make_plan(fedga(), Where(on="local"), tmp_path).spec

    def drive() -> tuple[int, str, int, float, float]:
        room = cluster.group_room(0.0)
        assert room is not None
        refused = ""
        try:
            cluster.check_room(Where(hosts=3))
        except BadInput as e:
            refused = str(e)
        cluster.check_room(Where(hosts="2..8"))
        before = ray.available_resources().get("CPU", 0.0)
        executor = RayExecutor(spec, "auto")
        executor.pool.tend(100)
        hosts = len(executor.pool.hosts)
        while executor.pool.hellos:
            executor.pool.greet(ray.wait(list(executor.pool.hellos))[0][0])
        after = ray.available_resources().get("CPU", 0.0)
        executor.close()
        return room, refused, hosts, before, after

    group = placement_group([{"CPU": 1}] * 3)
    ray.get(group.ready(), timeout=60)
    try:
        task = ray.remote(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group))(drive)
        room, refused, hosts, before, after = ray.get(task.remote(), timeout=120)
    finally:
        remove_placement_group(group)
    assert (room, hosts) == (2, 2)
    assert refused == "hosts is 3, but the placement group has room for 2 beside this task; each needs 1 CPU"
    assert before == after  # outside of the group nothing was taken
    assert cluster.group_room(0.0) is None


def fedga() -> Experiment:
    return problem(FedGA())


@pytest.mark.usefixtures("ray_local")
def test_the_autoscaler_is_asked_and_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(cluster, "ask_for", lambda hosts, gpus: asked.append((hosts, gpus)))
    monkeypatch.setattr(pool, "LOOK_S", 0.0)
    spec = make_plan(fedga(), Where(on="local"), tmp_path).spec
    executor = RayExecutor(spec, "1..3")
    executor.pool.tend(2)
    executor.pool.tend(2)
    executor.pool.tend(50)
    executor.close()
    assert asked == [(3, 0.0), (2, 0.0), (3, 0.0), (0, 0.0)]
    asked.clear()
    RayExecutor(spec, 1).close()
    RayExecutor(spec, "auto", joined=False).close()
    assert asked == []


@pytest.mark.usefixtures("ray_local")
def test_where_the_autoscaler_grants_nothing_less_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grants all or nothing, and nobody knows how much there could be."""
    asked: list[int] = []
    monkeypatch.setattr(cluster, "ask_for", lambda hosts, gpus: asked.append(hosts))
    spec = make_plan(fedga(), Where(on="local"), tmp_path).spec
    executor = RayExecutor(spec, "auto")
    asked.clear()
    now = perf_counter()
    for have in (2, 2, 2, 4, 4):
        now += pool.ASK_S + 1
        executor.pool._ask(18, have, now)
    executor.close()
    assert asked == [10, 6, 4, 8, 6, 0]  # 2 + 8, 2 + 4, 2 + 2; then 4 + 4, 4 + 2


@pytest.mark.usefixtures("ray_local")
def test_too_few_hosts_stop_the_run_and_release_the_autoscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for four, so the first of six are ready at once; the others stay away."""
    asked: list[int] = []
    monkeypatch.setattr(cluster, "ask_for", lambda hosts, gpus: asked.append(hosts))
    monkeypatch.setattr(pool, "START_S", 0.5)
    spec = make_plan(fedga(), Where(on="local"), tmp_path).spec
    executor = RayExecutor.__new__(RayExecutor)
    with pytest.raises(Stopped, match=r"for 0 s there were \d hosts, fewer than 6; is there room for more"):
        executor.__init__(spec, "6..9")
        while True:
            executor.pool.tend(9)
            for ref in pool.wait(list(executor.pool.hellos), 0.1):
                executor.pool.greet(ref)
    executor.close()
    assert asked[0] >= 6 and asked[-1] == 0
