"""Devices whose speed, dropout and availability are drawn.

A client's phase takes

    down / down_bytes_per_s + slowness * examples / examples_per_s + up / up_bytes_per_s

seconds. The slowness S > 0 is what the kinds differ in; E[S] = 1 except for `classes`, so `examples_per_s` fixes the
mean duration and the kind its spread. S multiplies the computing only: bandwidth is the same for all clients.

Per (round, client): with probability 1 - `availability` the client is not there, in any phase of the round. Per
(round, phase, client): with probability `dropout` it leaves, at a moment uniform in the phase's duration.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal, Self

import numpy as np

from raygrad.devices.base import Address, Draw, Finish, Load, check_above, transfer_s
from raygrad.errors import BadInput
from raygrad.rng import Purpose, uniforms

SIGMA_MAX = 5.0
"""At sigma = 5 half of all clients are faster than the mean by 270000; beyond it nothing is modelled any more."""


@dataclass(frozen=True)
class Drawn(ABC):
    """What all these kinds share; a kind adds its `factors`.

    `vary` says whether slowness is drawn once per client or anew per (round, client); it is the same in all phases of
    a round. A bandwidth of None means that transfers take no time.
    """

    modelled: ClassVar[bool] = True

    examples_per_s: float = 1000.0
    down_bytes_per_s: float | None = None
    up_bytes_per_s: float | None = None
    dropout: float = 0.0
    availability: float = 1.0
    vary: Literal["client", "round"] = "client"

    def __post_init__(self) -> None:
        check_above("examples_per_s", self.examples_per_s)
        check_above("down_bytes_per_s", self.down_bytes_per_s)
        check_above("up_bytes_per_s", self.up_bytes_per_s)
        if not 0 <= self.dropout < 1:
            raise BadInput(f"devices.dropout is {self.dropout}; it must be a probability >= 0 and < 1")
        if not 0 < self.availability <= 1:
            raise BadInput(f"devices.availability is {self.availability}; it must be a probability > 0 and <= 1")
        if self.vary not in ("client", "round"):
            raise BadInput(f"devices.vary is {self.vary!r}; it must be client or round")

    @abstractmethod
    def factors(self, clients: np.ndarray, address: Address) -> np.ndarray:
        """The slowness S of each of `clients` [m]: [m] float64 > 0."""

    def uniform(self, what: Draw, clients: np.ndarray, address: Address) -> np.ndarray:
        """One number in (0, 1) for each of `clients` [m], drawn as often as `vary` says: [m] float64."""
        when = (address.round,) if self.vary == "round" else ()
        return uniforms(address.seed, Purpose.DEVICES, what, *when, clients=clients)

    def pinned(self) -> Self:
        """See `Devices.pinned`."""
        return self

    def check(self, clients: int) -> None:  # noqa: B027 (no kind has anything to refuse)
        """Every number of clients will do; see `Devices.check`."""

    def run(self, clients: np.ndarray, load: Load, start_s: float, address: Address) -> Finish:
        """See `Devices.run`. The same at any `start_s`."""
        seconds = transfer_s(load.down, self.down_bytes_per_s)
        seconds += np.asarray(load.examples, np.float64) / self.examples_per_s * self.factors(clients, address)
        seconds += transfer_s(load.up, self.up_bytes_per_s)
        answers = np.ones(len(clients), np.bool_)
        if self.dropout:
            u = uniforms(address.seed, Purpose.DEVICES, Draw.LEAVES, address.round, address.phase, clients=clients)
            answers = u >= self.dropout
            seconds[~answers] *= u[~answers] / self.dropout  # given u < dropout this is uniform in (0, 1)
        there = self.available(clients, start_s, address)
        return Finish(np.where(there, seconds, 0.0), answers & there)

    def available(self, clients: np.ndarray, time_s: float, address: Address) -> np.ndarray:
        """See `Devices.available`. The same at any time of a round."""
        if self.availability == 1:
            return np.ones(len(clients), np.bool_)
        u = uniforms(address.seed, Purpose.DEVICES, Draw.AVAILABLE, address.round, clients=clients)
        return u < self.availability


@dataclass(frozen=True)
class Constant(Drawn):
    """All clients have the same speed: S = 1."""

    def factors(self, clients: np.ndarray, address: Address) -> np.ndarray:
        """See `Drawn.factors`."""
        return np.ones(len(clients))


@dataclass(frozen=True)
class Exponential(Drawn):
    """Exponential durations: S = -ln U. Of m clients that compute for 1 s on average the slowest takes H_m s."""

    def factors(self, clients: np.ndarray, address: Address) -> np.ndarray:
        """See `Drawn.factors`."""
        return _single(-np.log(self.uniform(Draw.SLOWNESS, clients, address)))


@dataclass(frozen=True)
class LogNormal(Drawn):
    """Log-normal durations: S = exp(sigma Z - sigma^2 / 2) with Z standard normal."""

    sigma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma <= SIGMA_MAX:
            raise BadInput(f"devices.sigma is {self.sigma}; it must be >= 0 and <= {SIGMA_MAX:g}")

    def factors(self, clients: np.ndarray, address: Address) -> np.ndarray:
        """See `Drawn.factors`."""
        u = self.uniform(Draw.SLOWNESS, clients, address)
        return _single(lognormal(u, self.uniform(Draw.SLOWNESS_ANGLE, clients, address), self.sigma))


@dataclass(frozen=True)
class Pareto(Drawn):
    """Durations with a heavy tail: S = (shape - 1) / shape * U^(-1 / shape). Its variance is infinite up to shape 2."""

    shape: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("shape", self.shape, 1.0)

    def factors(self, clients: np.ndarray, address: Address) -> np.ndarray:
        """See `Drawn.factors`."""
        u = self.uniform(Draw.SLOWNESS, clients, address)
        return _single((self.shape - 1) / self.shape * np.exp(-np.log(u) / self.shape))


@dataclass(frozen=True)
class Classes(Drawn):
    """Fixed classes of devices: S = `slowness`[c] with probability `shares`[c].

    The factors are used as they are: a client of slowness 4 takes four times as long as `examples_per_s` says. They
    scale the computing only, not the transfers.
    """

    slowness: tuple[float, ...] = (1.0, 4.0)
    shares: tuple[float, ...] = (0.8, 0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.slowness or len(self.slowness) != len(self.shares):
            raise BadInput(
                f"devices.slowness has {len(self.slowness)} values and devices.shares {len(self.shares)}; "
                "they must have one each for every class"
            )
        for factor in self.slowness:
            check_above("slowness", factor)
        if not all(share >= 0 for share in self.shares) or not abs(sum(self.shares) - 1) <= 1e-6:
            listed = ", ".join(f"{s:g}" for s in self.shares)
            raise BadInput(
                f"devices.shares is {listed}, which sums to {sum(self.shares):g}; they must be >= 0 and sum to 1"
            )

    def factors(self, clients: np.ndarray, address: Address) -> np.ndarray:
        """See `Drawn.factors`."""
        u = self.uniform(Draw.SLOWNESS, clients, address)
        ends = np.cumsum(self.shares)
        return np.array(self.slowness, np.float64)[np.searchsorted(ends[:-1], u, side="right")]


def lognormal(u: np.ndarray, angle: np.ndarray, sigma: float) -> np.ndarray:
    """Log-normal numbers [m] of mean 1 from two independent uniform ones each (Box and Muller, 1958)."""
    z = np.sqrt(-2 * np.log(u)) * np.cos(2 * pi * angle)
    return np.exp(sigma * z - sigma**2 / 2)


def _single(values: np.ndarray) -> np.ndarray:
    """Rounded to single precision: the last bits of logarithms differ from CPU to CPU."""
    return values.astype(np.float32).astype(np.float64)
