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
    DEVICES = 12
    TIES = 13
    FAULTS = 14
    SWEEP = 15
    POPULATION = 16
    WORK = 17
    ROUNDING = 18
    PRIVACY = 19
    PLACEMENT = 20
    SPECTRUM = 21
    TASKS = 22


def _sequence(seed: int, purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, int(purpose), *(int(k) for k in key)])


def rng(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """A numpy generator for `(seed, purpose, *key)`; all numbers are >= 0."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, key)))


def torch_seed(seed: int, purpose: Purpose, *key: int) -> int:
    """A 63-bit number for `torch.manual_seed`, a function of `(seed, purpose, *key)`."""
    return int(_sequence(seed, purpose, key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def uniforms(seed: int, purpose: Purpose, *key: int, clients: np.ndarray) -> np.ndarray:
    """One number in (0, 1) for each of `clients` [m] int64, a function of `(seed, purpose, *key)` and the client alone.

    For draws of one number per client where a generator each would be slow: a million take well under 0.1 s. Returns
    [m] float64 from a grid of 2^52 midpoints, so neither 0 nor 1. Two keys are never equal because one ends in zeros.

    Each value is a hash of the client's number under two random 64-bit words that the key gives: SplitMix64 started at
    the first word (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014), and its finaliser once
    more on the output mixed with the second word, so that two keys' numbers are not one sequence at two places.
    """
    words = _sequence(seed, purpose, (*key, len(key) + 1)).generate_state(2, np.uint64)
    z = np.asarray(clients).astype(np.uint64)  # a copy: it is worked on in place
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += words[:1]
    _finalise(z)
    z ^= words[1:]
    _finalise(z)
    z >>= np.uint64(12)
    return (z.astype(np.float64) + 0.5) * 2.0**-52


def _finalise(z: np.ndarray) -> None:
    """SplitMix64's bijection of 64-bit words, in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
