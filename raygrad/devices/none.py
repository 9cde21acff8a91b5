"""No device model: everybody is there and answers at once, and the virtual clock stands still."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from raygrad.devices.base import Address, Finish, Load


@dataclass(frozen=True)
class NotModelled:
    """Nothing is modelled: every client answers, in no time."""

    modelled: ClassVar[bool] = False

    def pinned(self) -> Self:
        """See `Devices.pinned`."""
        return self

    def check(self, clients: int) -> None:
        """See `Devices.check`."""

    def run(self, clients: np.ndarray, load: Load, start_s: float, address: Address) -> Finish:
        """See `Devices.run`."""
        return Finish(np.zeros(len(clients)), np.ones(len(clients), np.bool_))

    def available(self, clients: np.ndarray, time_s: float, address: Address) -> np.ndarray:
        """See `Devices.available`."""
        return np.ones(len(clients), np.bool_)
