"""Faults are data: what goes wrong, where and when. A plan of faults drives an injector, in one process and on Ray.

Those of `COSTS_TIME` must leave every bit as it was: a host dies (`host`), all hosts of a machine die at once (`node`),
an answer and what was put for the hosts cannot be fetched any more (`object`), the driver is killed with -9 (`driver`),
the storage is full or gone (`storage`). Those of `REMOVES_CLIENT` take a client out of one round: its update is not
finite (`nan`), its shard is damaged (`data`), it kills every host that runs it (`killer`). A run with such a fault must
equal one in which the client was absent from that phase on (`absent`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from raygrad.rng import Purpose, rng

T = TypeVar("T")
What = Literal["host", "node", "object", "driver", "storage", "nan", "data", "killer", "absent"]
COSTS_TIME: tuple[What, ...] = ("host", "node", "object", "driver", "storage")
REMOVES_CLIENT: tuple[What, ...] = ("nan", "data", "killer")


@dataclass(frozen=True)
class Fault:
    """`what` goes wrong in phase `phase` of round `round`: at `client`, or when `gang` gangs have been answered.

    Each happens once, but a killer kills every host. In an asynchronous run the round is that in which the clients
    began whose work it strikes.
    """

    what: What
    round: int
    phase: int = 0
    client: int | None = None
    gang: int = 0

    def __str__(self) -> str:
        where = f"client {self.client}" if self.client is not None else f"{self.gang} gangs answered"
        return f"{self.what} at {where} in round {self.round}, phase {self.phase}"


class HostLost(Exception):
    """What an injected fault raises in place of a host's death, where there is no host to kill."""


def at_clients(faults: Sequence[Fault], round: int, phase: int) -> dict[int, What]:
    """What goes wrong at which client in a phase of a round."""
    return {f.client: f.what for f in faults if f.client is not None and (f.round, f.phase) == (round, phase)}


@dataclass(frozen=True)
class Place:
    """Where a run can be struck: a phase of a round, in so many gangs of these clients."""

    round: int
    phase: int
    gangs: int
    clients: tuple[int, ...]


def random_plan(seed: int, number: int, places: Sequence[Place], removes: bool) -> tuple[Fault, ...]:
    """Plan `number` of `seed`: one to four faults at places that a run has. With `removes` the last one takes a client
    out.
    """
    draw = rng(seed, Purpose.FAULTS, number)
    found: list[Fault] = []
    for _ in range(int(draw.integers(1, 4))):
        place, what = _any(draw, places), _any(draw, COSTS_TIME)
        found.append(Fault(what, place.round, place.phase, gang=int(draw.integers(place.gangs))))
    if removes:
        place, what = _any(draw, places), _any(draw, REMOVES_CLIENT)
        found.append(Fault(what, place.round, place.phase, _any(draw, place.clients)))
    return tuple(found)


def _any(draw: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(draw.integers(len(items)))]
