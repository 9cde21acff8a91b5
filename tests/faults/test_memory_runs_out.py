"""A host that Ray kills for its memory costs time only; in a process of its own, with another Ray."""

from collections.abc import Callable
from typing import Any


def test_a_host_that_is_killed_for_its_memory_changes_no_bit(in_another_ray: Callable[..., Any]) -> None:
    found = in_another_ray("out_of_memory.py")
    assert found["same_bits"] and "lost: OutOfMemoryError" in found["outcomes"]
