"""Who of the N clients is there: the population may grow and shrink while a run goes on.

The partition is made once, for all N clients; a client that is not there keeps its shard and its state. Besides these
schedules the caller may change the population between rounds: `Round.retire` and `Round.activate`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from raygrad.errors import BadInput


@runtime_checkable
class Membership(Protocol):
    """A schedule of the population."""

    def check(self, clients: int) -> None:
        """Refuse what cannot be with N clients. Raises BadInput."""
        ...

    def sizes(self, clients: int) -> tuple[int, int]:
        """How many of N = `clients` are there at least and at most."""
        ...

    def present(self, round: int, clients: int) -> np.ndarray | None:
        """Who of N = `clients` is there in round `round`: [n] int64, sorted; None: everybody."""
        ...


@dataclass(frozen=True)
class Everybody:
    """All N clients, in every round."""

    def check(self, clients: int) -> None:
        """Nothing to refuse."""

    def sizes(self, clients: int) -> tuple[int, int]:
        """Always N."""
        return clients, clients

    def present(self, round: int, clients: int) -> np.ndarray | None:
        """None."""
        return None


@dataclass(frozen=True)
class Steps:
    """From round `rounds[j]` on the clients 0 to `clients[j]` - 1 are there; before the first of them everybody."""

    rounds: tuple[int, ...] = (1,)
    clients: tuple[int, ...] = (10,)

    def __post_init__(self) -> None:
        if len(self.rounds) != len(self.clients) or not self.rounds:
            raise BadInput(
                f"membership has {len(self.rounds)} rounds and {len(self.clients)} numbers of clients; give one for "
                "each, such as membership.rounds=1,50 membership.clients=10,20"
            )
        if any(b <= a for a, b in zip((0, *self.rounds), self.rounds, strict=False)):
            raise BadInput(f"membership.rounds is {list(self.rounds)}; they must begin at 1 or later and ascend")
        if min(self.clients) < 1:
            raise BadInput(f"membership.clients is {list(self.clients)}; each must be >= 1")

    def check(self, clients: int) -> None:
        """There must be so many."""
        if max(self.clients) > clients:
            raise BadInput(
                f"membership.clients asks for {max(self.clients)} clients, but the partition has {clients}; make it "
                "for the largest population (partition.clients)"
            )

    def sizes(self, clients: int) -> tuple[int, int]:
        """The least and the most of the steps, and N where the first comes later than round 1."""
        sizes = [*self.clients, *([clients] if self.rounds[0] > 1 else [])]
        return min(sizes), max(sizes)

    def present(self, round: int, clients: int) -> np.ndarray | None:
        """The first so many."""
        begun = [count for start, count in zip(self.rounds, self.clients, strict=True) if start <= round]
        return np.arange(begun[-1]) if begun and begun[-1] < clients else None


MEMBERSHIPS: dict[str, type] = {"everybody": Everybody, "steps": Steps}
