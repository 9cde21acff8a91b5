"""The point of least norm in the convex hull of vectors.

Everything is float64, and computed by one thread: products of matrices have other bits on another number of threads.
"""

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor


def common_direction(vectors: Tensor) -> Tensor | None:
    """The combination [d] of least norm of the `vectors` [n, d], each brought to length 1. None if one of them is 0."""
    with threadpool_limits(1):
        v = vectors.double().numpy()
        norms = np.sqrt((v * v).sum(1, keepdims=True))
        if not norms.all():
            return None
        u = v / norms
        weights, _ = least_norm(torch.from_numpy(u @ u.T))
        return torch.from_numpy(weights.numpy() @ u)


def along(step: Tensor, q: Tensor) -> Tensor:
    """The part [d] of `step` [d] along `q` [d]."""
    with threadpool_limits(1):
        a, b = step.double().numpy(), q.double().numpy()
        return torch.from_numpy((a @ b) / (b @ b) * b).to(step.dtype)


def length(q: Tensor) -> float:
    """The norm of `q` [d]."""
    with threadpool_limits(1):
        return float(np.linalg.norm(q.double().numpy()))


def least_norm(gram: Tensor) -> tuple[Tensor, float]:
    """The weights [N] on the simplex that minimise |sum_i w_i u_i|^2, and the duality gap, from <u_i, u_j> [N, N].

    The gap w^T G w - min_i (G w)_i is what the minimum may lie below the value found. The weights of a non-negative
    least-squares problem (Lawson and Hanson, scipy's) are proportional to those sought; on the vectors that it chooses
    the linear system is solved once more, which makes them exact where it has one solution.
    """
    from scipy.optimize import nnls

    g = gram.double().numpy()
    g = (g + g.T) / 2
    values, vectors = np.linalg.eigh(g)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T  # root^T root = G
    scale = max(float(np.sqrt(values[-1])), 1e-300) if values[-1] > 0 else 1.0
    found, _ = nnls(np.vstack([root / scale, np.ones(len(g))]), np.append(np.zeros(len(g)), 1.0))
    candidates = [found / found.sum()]
    chosen = found > 0
    try:
        exact = np.linalg.solve(g[np.ix_(chosen, chosen)], np.ones(chosen.sum()))
    except np.linalg.LinAlgError:
        exact = np.array([-1.0])
    if np.isfinite(exact).all() and (exact >= 0).all() and exact.sum() > 0:
        candidates.append(np.zeros(len(g)))
        candidates[-1][chosen] = exact / exact.sum()
    gaps = [float(w @ g @ w - (g @ w).min()) for w in candidates]
    best = int(np.argmin(gaps))
    return torch.from_numpy(candidates[best]), max(0.0, gaps[best])
