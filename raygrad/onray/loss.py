"""Objects that are lost, as planned: Ray offers no way to take one out of its store."""

from time import perf_counter, sleep
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError

PATIENCE_S = 60.0
BIG_BYTES = 1 << 20
"""Smaller objects travel inside of messages, and are not lost with their owner."""


class _Owner:
    def put(self) -> list[ray.ObjectRef]:
        return [ray.put(np.zeros(BIG_BYTES, np.uint8))]


def _size(found: np.ndarray) -> int:
    return found.nbytes


def unreachable() -> ray.ObjectRef:
    """A reference to what a dead process put: nobody can fetch it.

    Raises TimeoutError if it can be fetched for too long.
    """
    owner_class: Any = ray.remote(num_cpus=0)(_Owner)
    owner = owner_class.remote()
    gone = ray.get(owner.put.remote())[0]
    ray.kill(owner)
    fetch: Any = ray.remote(num_cpus=0, max_retries=0)(_size)
    deadline = perf_counter() + PATIENCE_S
    while perf_counter() < deadline:
        try:
            ray.get(fetch.remote(gone))
        except ObjectLostError:
            return gone
        sleep(0.05)
    raise TimeoutError(f"after {PATIENCE_S:.0f} s what a dead process put can still be fetched")
