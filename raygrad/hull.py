"""The point of least norm in the convex hull of vectors."""

import numpy as np
import torch
from torch import Tensor


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
