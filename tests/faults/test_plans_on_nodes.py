"""Plans of faults on several nodes that come and go, in a process of its own: that is another Ray."""

from collections.abc import Callable
from typing import Any


def test_plans_on_nodes_that_come_and_go(in_another_ray: Callable[..., Any]) -> None:
    found = in_another_ray("plans_on_nodes.py")
    assert [p for p in found["plans"] if not p["ok"]] == []
    assert len(found["plans"]) == 2 and found["changes"] >= 1
