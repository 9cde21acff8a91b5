"""Made data with clients of their own: a heterogeneous logistic problem, and least squares with known minimisers.

Everything is drawn from the run's seed, client by client: client k has the same data however many clients there are.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raygrad.data.source import Examples, Source
from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng


@dataclass(frozen=True)
class SyntheticLogistic:
    """Synthetic(alpha, beta) of Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv:1812.06127).

    Client k: u_k ~ N(0, alpha), B_k ~ N(0, beta) (variances); W_k, b_k ~ N(u_k, 1), v_k ~ N(B_k, 1) entrywise;
    x ~ N(v_k, diag(j^-1.2)), y = argmax(W_k x + b_k). `examples` per client for training and a fifth as many, at least
    one, for the test set. Held in memory while it is prepared.
    """

    clients: int = 30
    examples: int = 100
    features: int = 60
    classes: int = 10
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("examples", 1), ("features", 1), ("classes", 2)):
            _check("synthetic-logistic", name, getattr(self, name), least)
        for name in ("alpha", "beta"):
            _check("synthetic-logistic", name, getattr(self, name), 0, 1e6)

    def files(self, data_root: Path | None, cache: Path) -> list[Path]:
        """See `HasFiles.files`."""
        return []

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        total = self.examples + max(1, self.examples // 5)
        x = np.empty((self.clients, total, self.features), np.float32)
        y = np.empty((self.clients, total), np.int64)
        spread = np.arange(1, self.features + 1) ** -0.6  # the standard deviations
        for k in range(self.clients):
            draw = rng(seed, Purpose.SYNTHETIC, k)
            u, b_mean = draw.standard_normal(2) * np.sqrt([self.alpha, self.beta])
            weight = u + draw.standard_normal((self.features, self.classes))
            bias = u + draw.standard_normal(self.classes)
            centre = b_mean + draw.standard_normal(self.features)
            inputs = centre + draw.standard_normal((total, self.features)) * spread
            x[k], y[k] = inputs, np.argmax(inputs @ weight + bias, axis=1)
        return _source(x, y, self.examples, tuple(str(i) for i in range(self.classes)))


@dataclass(frozen=True)
class SyntheticQuadratic:
    """Least squares with a different Hessian and a different minimiser at each client; the clients are the partition.

    Client i: f_i(w) = mean over its examples of (a.w - b)^2 / 2 has exactly the Hessian
    H_i = O_i^T diag(lambda exp(h u_i)) O_i, lambda from 1 down to 1/10, and the minimiser w_i = w* + h z_i with
    f_i(w_i) = 0; h is `heterogeneity`, u_i and z_i are standard normal, O_i a rotation that grows with h. At h = 0 all
    clients have the same objective. float64. `examples` per client for training, at least `features`, and a fifth as
    many, at least one, for the test set. Held in memory while it is prepared.
    """

    clients: int = 10
    examples: int = 50
    features: int = 10
    heterogeneity: float = 1.0

    def __post_init__(self) -> None:
        for name in ("clients", "examples", "features"):
            _check("synthetic-quadratic", name, getattr(self, name), 1)
        _check("synthetic-quadratic", "heterogeneity", self.heterogeneity, 0, 10)
        if self.examples < self.features:
            raise BadInput(
                f"data set synthetic-quadratic: examples = {self.examples} per client, fewer than the {self.features} "
                "features; a client's minimiser would not be unique"
            )

    def files(self, data_root: Path | None, cache: Path) -> list[Path]:
        """See `HasFiles.files`."""
        return []

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        p, n, h = self.features, self.examples, self.heterogeneity
        total = n + max(1, n // 5)
        x = np.empty((self.clients, total, p))
        y = np.empty((self.clients, total))
        eigenvalues = np.geomspace(1.0, 0.1, p)
        centre = rng(seed, Purpose.SYNTHETIC).standard_normal(p)
        for i in range(self.clients):
            draw = rng(seed, Purpose.SYNTHETIC, i)
            minimiser = centre + h * draw.standard_normal(p)
            scales = np.sqrt(eigenvalues * np.exp(h * draw.standard_normal(p)))
            rotation = np.linalg.qr(np.eye(p) + h * draw.standard_normal((p, p)))[0]
            directions = draw.standard_normal((total, p))
            # Orthonormal columns make the training Hessian exact; the test examples have it in expectation.
            directions[:n] = np.linalg.qr(directions[:n])[0] * np.sqrt(n)
            x[i] = directions @ (scales[:, None] * rotation)
            y[i] = x[i] @ minimiser
        return _source(x, y, n, None)


def _source(x: np.ndarray, y: np.ndarray, examples: int, class_names: tuple[str, ...] | None) -> Source:
    """From x [N, total, features] and y [N, total]; the first `examples` of each client are for training."""

    def part(rows: slice) -> Examples:
        return Examples(x[:, rows].reshape(-1, x.shape[2]), y[:, rows].reshape(-1))

    natural = np.repeat(np.arange(len(x)), examples)
    return Source.of(part(slice(examples)), part(slice(examples, None)), class_names, Transform(), natural)


def _check(kind: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise BadInput(f"data set {kind}: {name} = {value}; it must be {limits}")
