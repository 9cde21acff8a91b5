"""An autoscaler adds nodes for a sweep and removes them after it; in a process of its own, with another Ray."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_an_autoscaler_adds_nodes_for_a_sweep(in_another_ray: Callable[..., Any]) -> None:
    found = in_another_ray("autoscaling.py")
    assert found["outcomes"] == ["finished"] * 3
    assert (found["before"], found["after"]) == (0, 0) and 1 <= found["during"] <= 2
    assert found["may_grow"]
