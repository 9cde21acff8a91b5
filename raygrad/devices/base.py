"""What every kind of modelled devices takes and gives.

m is the number of clients asked. Times are seconds on the virtual clock, which begins at 0 with the run.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from raygrad.errors import BadInput


class Draw(IntEnum):
    """What a draw of `Purpose.DEVICES` is for. The numbers are part of every key: never reuse or change one."""

    SLOWNESS = 1
    SLOWNESS_ANGLE = 2
    AVAILABLE = 3
    LEAVES = 4
    DAY_PHASE = 5
    DAY_STATE = 6
    DAY_KEEPS = 7
    DAY_SPEED = 8
    DAY_SPEED_ANGLE = 9


@dataclass(frozen=True)
class Load:
    """What a phase costs each of m clients.

    `examples` counts gradients of one example: K B for K local steps on batches of B, n_i for a pass over the shard. An
    evaluation without gradient counts a third.
    """

    examples: np.ndarray  # [m] float64
    down: np.ndarray  # [m] bytes received
    up: np.ndarray  # [m] bytes sent


@dataclass(frozen=True)
class Address:
    """Whose draws these are: a run's seed, a round and a phase of it, all >= 0."""

    seed: int
    round: int
    phase: int


@dataclass(frozen=True)
class Finish:
    """How a phase ends for each of m clients.

    `seconds` run from the start of the phase until the client has answered, or has left: the server notices then. A
    client that is not there at the start never answers; its seconds are 0.
    """

    seconds: np.ndarray  # [m] float64
    answers: np.ndarray  # [m] bool


@runtime_checkable
class Devices(Protocol):
    """The devices of all N clients: a frozen dataclass whose fields are its settings. Costs O(m) per call."""

    modelled: ClassVar[bool]
    """Whether there is a virtual clock; False for the kind `none` only."""

    def pinned(self) -> Self:
        """With the contents of the files it reads recorded, so that other contents are another experiment.

        Errors: BadInput when a file is missing, or is not the one recorded.
        """
        ...

    def check(self, clients: int) -> None:
        """Raises BadInput when these cannot be the devices of the clients 0..`clients`-1."""
        ...

    def run(self, clients: np.ndarray, load: Load, start_s: float, address: Address) -> Finish:
        """How a phase that starts at virtual time `start_s` ends for `clients` [m] int64."""
        ...

    def available(self, clients: np.ndarray, time_s: float, address: Address) -> np.ndarray:
        """Which of `clients` [m] int64 are there at virtual time `time_s`: [m] bool."""
        ...


def transfer_s(size: np.ndarray, bytes_per_s: float | None) -> np.ndarray:
    """How long each of `size` [m] bytes takes: [m] float64 seconds; none at all where no bandwidth is given."""
    return np.zeros(len(size)) if bytes_per_s is None else np.asarray(size, np.float64) / bytes_per_s


_SMALLEST = 1e-12


def check_above(field: str, value: float | None, lowest: float = 0.0) -> None:
    """Raises BadInput unless `devices.<field>` is greater than `lowest` and of a sensible size; None passes."""
    if value is not None and not (value > lowest and _SMALLEST <= value <= 1 / _SMALLEST):
        raise BadInput(f"devices.{field} is {value}; it must be > {lowest:g} (1e-12 to 1e+12)")
