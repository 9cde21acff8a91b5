"""Addressed randomness: every draw comes from a generator keyed by what it is for, so no generator state is carried.

A key is `(seed, purpose, *numbers)`; the numbers are usually the round and the client. Two draws with different keys
are independent, the same key always gives the same draw, on any host and after any restart.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a draw is for. The numbers are part of every key: never reuse or change one."""

    INIT = 1
    PARTITION = 2
    VALIDATION = 3
    SAMPLING = 4
    BATCHES = 5
    AUGMENT = 6
    AUGMENT_FULL = 7
    DROPOUT = 8
    PROBE = 9
    SYNTHETIC = 10
    CANARY = 11


def _sequence(seed: int, purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, int(purpose), *(int(k) for k in key)])


def rng(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """A numpy generator for `(seed, purpose, *key)`; all numbers are >= 0."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, key)))


def torch_seed(seed: int, purpose: Purpose, *key: int) -> int:
    """A 63-bit number for `torch.manual_seed`, a function of `(seed, purpose, *key)`."""
    return int(_sequence(seed, purpose, key).generate_state(1, np.uint64)[0] >> np.uint64(1))
