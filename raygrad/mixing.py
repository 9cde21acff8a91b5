"""Mixing: what each worker of a network takes of which others' vectors.

    w_j <- sum_k P_jk w_k,    P [m, m] >= 0, every row and every column sums to 1

So mixing leaves the workers' mean where it is, and brings them together: their distance to it shrinks by the second
singular value of P, or more. Neighbours on a lattice get Metropolis weights, 1 / (1 + the larger number of neighbours),
and a worker keeps the rest. "exponential" is directed: worker j takes equal parts of j, j + 1, j + 2, j + 4, j + 8, …

Sums are float64, one neighbour after another in one thread, so that the server's cores change no bit.
"""

import json
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from raygrad.errors import BadInput
from raygrad.naming import unknown

Placement = Literal["fixed", "moved", "redrawn"]
"""Where workers are: always in the same places; in others each round, P <- Q^T P Q with a random permutation Q; or P <-
Q1^T P Q2 with two of them, by which a worker may keep nothing of its own.
"""

SUM_NUMBERS = 1 << 20
"""Vectors are mixed so many numbers at a time, which bounds the copies in float64."""


def lattice(rows: int, columns: int, wrap: bool) -> np.ndarray:
    """A grid, or with `wrap` a torus (a ring if it has one row), with Metropolis weights: [m, m]."""
    places = np.arange(rows * columns).reshape(rows, columns)
    near = np.zeros((places.size, places.size), bool)
    for axis in (0, 1):
        to = np.roll(places, -1, axis)
        here, there = (p if wrap else np.delete(p, -1, axis) for p in (places, to))
        near[here, there] = near[there, here] = True
    np.fill_diagonal(near, False)
    return metropolis(near)


def metropolis(near: np.ndarray) -> np.ndarray:
    """The mixing matrix of a graph whose edges are where `near` [m, m], symmetric, is true."""
    degree = near.sum(1)
    p = np.where(near, 1 / (1 + np.maximum(degree[:, None], degree)), 0.0)
    return p + np.diag(1 - p.sum(1))


def squarest(m: int) -> tuple[int, int]:
    """The factors of m that are nearest to each other, the smaller one first."""
    rows = max(r for r in range(1, int(m**0.5) + 1) if m % r == 0)
    return rows, m // rows


def star(m: int) -> np.ndarray:
    """Worker 0 is everybody's neighbour."""
    near = np.zeros((m, m), bool)
    near[0, 1:] = near[1:, 0] = True
    return metropolis(near)


def exponential(m: int) -> np.ndarray:
    """Equal parts of those 0, 1, 2, 4, 8, … < m further on."""
    offsets = [0, *(1 << i for i in range((m - 1).bit_length()))]
    return np.mean([np.roll(np.eye(m), offset, 1) for offset in offsets], 0)


def pairs(m: int) -> np.ndarray:
    """Two and two share equally; of an odd number the last one stays alone."""
    p = np.kron(np.eye(-(-m // 2)), np.full((2, 2), 0.5))[:m, :m]
    return p + np.diag(1 - p.sum(1))


TOPOLOGIES: dict[str, Callable[[int], np.ndarray]] = {
    "ring": lambda m: lattice(1, m, True),
    "grid": lambda m: lattice(*squarest(m), False),
    "torus": lambda m: lattice(*squarest(m), True),
    "exponential": exponential,
    "star": star,
    "pairs": pairs,
    "full": lambda m: np.full((m, m), 1 / m),
}
"""The mixing matrix [m, m] of so many workers, by name."""


MOST_WORKERS = 4096
"""Matrices are kept whole."""


def matrix(topology: str, m: int) -> np.ndarray:
    """The matrix of m workers: a name of `TOPOLOGIES`, or the matrix as JSON, [[0.5, 0.5], [0.5, 0.5]].

    Raises BadInput for an unknown name, another size, too many workers, or what is not doubly stochastic.
    """
    if m > MOST_WORKERS:
        raise BadInput(f"a network of {m:,} workers is asked for; at most {MOST_WORKERS:,}: take fewer clients")
    if not topology.lstrip().startswith("["):
        if topology not in TOPOLOGIES:
            raise unknown("topology", topology, TOPOLOGIES)
        return TOPOLOGIES[topology](m)
    p = given(topology)
    if len(p) != m:
        raise BadInput(f"algorithm.topology is a matrix of {len(p)} workers, but there are {m} clients")
    return p


def given(text: str) -> np.ndarray:
    """A mixing matrix written as JSON. Raises BadInput if it is none."""
    try:
        p = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError) as e:
        raise BadInput(f"algorithm.topology is not a matrix of numbers ({str(e).splitlines()[0]})") from e
    if p.ndim != 2 or p.shape[0] != p.shape[1]:
        raise BadInput(f"algorithm.topology has shape {p.shape}; a mixing matrix has a row and a column per worker")
    if not (p >= 0).all():
        j, k = np.argwhere(~(p >= 0))[0]
        raise BadInput(f"algorithm.topology has {p[j, k]:g} in row {j}, column {k}; parts of others are >= 0")
    for what, sums in (("row", p.sum(1)), ("column", p.sum(0))):
        if len(off := np.flatnonzero(np.abs(sums - 1) > 1e-9)):
            raise BadInput(
                f"algorithm.topology: {what} {off[0]} sums to {sums[off[0]]:.10g}; rows and columns sum to 1, or "
                "mixing would move the workers' mean"
            )
    return p


def contraction(p: np.ndarray) -> float:
    """The second singular value of a mixing matrix: one mixing brings the distances to the mean down to that part, or
    further.
    """
    return float(np.linalg.norm(p - 1 / len(p), 2))


def refuse_parts(p: np.ndarray, placement: Placement) -> None:
    """Raises BadInput for workers that never come together."""
    if len(p) > 1 and ((p == 0) | (p == 1)).all():
        raise BadInput("algorithm.topology only hands models on and never averages any; give rows with several parts")
    if placement == "fixed" and contraction(p) > 1 - 1e-9:
        raise BadInput(
            "algorithm.topology never brings all workers together: they stay in parts (second singular value 1); take "
            "another one, or algorithm.placement=moved"
        )


def placed(p: np.ndarray, placement: Placement, draw: np.random.Generator) -> np.ndarray:
    """The matrix of one round."""
    if placement == "fixed":
        return p
    first = draw.permutation(len(p))
    return p[np.ix_(first, first if placement == "moved" else draw.permutation(len(p)))]


def among(p: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The matrix where only those where `there` [m] is true exchange; a worker keeps what it would take of others.

    If P is symmetric, its rows and columns still sum to 1.
    """
    p = np.where(there[:, None] & there, p, 0.0)
    return p + np.diag(1 - p.sum(1))


def mixed(p: np.ndarray, w: Tensor) -> Tensor:
    """sum_k P_jk w_k of the rows of `w` [m, d], for each row of `p` [n, m]: [n, d], in the dtype of `w`."""
    sparse, columns = csr_array(p), max(1, SUM_NUMBERS // len(w))
    parts = [sparse @ part.double().numpy() for part in w.split(columns, 1)]
    return torch.cat([torch.from_numpy(part).to(w.dtype) for part in parts], 1)


def mean(w: Tensor) -> Tensor:
    """The mean [d] of the rows of `w` [m, d]."""
    return mixed(np.full((1, len(w)), 1 / len(w)), w)[0]


def variances(w: Tensor) -> np.ndarray:
    """The diagonal [d] of Xi = 1/m sum_j (w_j - x)(w_j - x)^T, x the mean of the rows of `w` [m, d]."""
    x, total = mean(w), np.zeros(w.shape[1])
    for row in w:
        total += np.square((row - x).double().numpy())
    return total / len(w)
