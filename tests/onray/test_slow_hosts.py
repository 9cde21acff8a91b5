"""A host that is ten times slower than four others costs no bit and holds nobody up."""

from collections.abc import Callable
from typing import Any


def test_the_slow_host_is_not_waited_for(in_another_ray: Callable[..., Any]) -> None:
    found = in_another_ray("stragglers.py", "--sleep", "0.5", "--rounds", "3")
    assert found["same_bits"] and found["answered_once"]
    assert found["answered"] == found["gangs"] == 48
    assert found["answered_by_slow"] <= 4
    assert found["superseded"] >= 1 and found["second_attempts"] >= 1
