"""The gang: a fixed slice of the cohort, the unit of scheduling, of vectorisation and of summation.

A gang answers one weighted partial sum in float64; `TreeSum` combines partial sums along a fixed binary tree over the
gang index. So a result depends neither on the number of hosts nor on who finished first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import isfinite
from typing import Literal

import numpy as np
from torch import Tensor

from raygrad.contract import Answer

Arrays = dict[str, np.ndarray]

BUFFERS = "buffers"
"""The reserved name under which the model's buffers travel."""


@dataclass(frozen=True)
class Phase:
    """What every gang of one phase is told; sent once per phase. It was asked of m clients."""

    conversation: tuple[str, int]  # what for, and the round
    number: int  # of the phase in its conversation
    work: Callable[..., Answer]
    down: Arrays  # name -> [d]
    each: Arrays  # name -> [m, ...], in plan order
    rows: tuple[str, ...]
    part: str
    lr_factor: float
    buffers: np.ndarray | None  # [b]
    keep_buffers: bool  # whether what training does to the buffers is sent up
    shares: tuple[str, ...] = ()
    steps: np.ndarray | None = None  # [m] int64, local steps where they are fewer than the experiment's K
    batch_size: int | None = None  # where it is not the experiment's

    @property
    def round(self) -> int:
        """Whose draws (batches, dropout masks) count."""
        return self.conversation[1]

    @property
    def nbytes(self) -> int:
        """What its arrays take."""
        return sum(a.nbytes for a in (*self.down.values(), *self.each.values())) + (
            0 if self.buffers is None else self.buffers.nbytes
        )


@dataclass(frozen=True)
class Gang:
    """A slice of M clients of the cohort, in plan order, cut once and kept through all phases of a conversation.

    Who of them takes part may differ from phase to phase: clients answer late, leave or fail.
    """

    index: int
    clients: np.ndarray  # [M] int64
    weights: np.ndarray  # [M] float64
    shares: np.ndarray  # [M] float64, the weights in the population
    parts: tuple["Part", ...]  # one for each phase so far
    states: Arrays = field(default_factory=dict)  # name -> [M, ...]

    @property
    def working(self) -> np.ndarray:
        """Those that take part in the newest phase: [m] int64."""
        return self.clients[self.parts[-1].mask] if self.parts else self.clients


@dataclass(frozen=True)
class Part:
    """Who of a gang takes part in a phase."""

    mask: np.ndarray  # [M] bool
    rows: np.ndarray  # [m] int64, where they stand among the phase's clients


@dataclass(frozen=True)
class Failure:
    """Why a gang has no answer: `what` went wrong at `client`; `kind` says which setting decides what follows."""

    kind: Literal["nan", "data", "killer"]
    what: str
    client: int


@dataclass(frozen=True)
class GangReply:
    """What a gang answers. After a `failure` the rest is empty."""

    totals: Arrays  # name -> [d] float64
    scalars: Arrays  # name -> [m] float64
    rows: Arrays  # name -> [m, d]
    states: Arrays  # name -> [m, ...]
    wall_s: float = 0.0
    failure: Failure | None = None


def finite(u: Tensor) -> bool:
    """Whether all entries are finite. One sum tells, except where finite entries add up to infinity."""
    return isfinite(u.sum()) or bool(u.isfinite().all())


def cut(clients: np.ndarray, weights: np.ndarray, shares: np.ndarray, size: int) -> list[Gang]:
    """The cohort in gangs of at most `size`, as even as can be."""
    count = -(-len(clients) // size)
    ends = [len(clients) * i // max(1, count) for i in range(count + 1)]
    return [Gang(i, clients[a:b], weights[a:b], shares[a:b], ()) for i, (a, b) in enumerate(pairwise(ends))]


def parted(gangs: list[Gang], asked: np.ndarray, inside: np.ndarray) -> list[Gang]:
    """The gangs with one phase more. Its clients are those for which `asked` [all clients] is true; those for which
    `inside` is true, too, take part.
    """
    found, position, rows = [], 0, np.cumsum(asked) - 1
    for gang in gangs:
        mine = slice(position, position + len(gang.clients))
        mask = inside[mine]
        found.append(replace(gang, parts=(*gang.parts, Part(mask, rows[mine][mask]))))
        position = mine.stop
    return found


def without(gang: Gang, client: int) -> Gang:
    """The gang with a client less in the newest phase in which it takes part."""
    keep = gang.clients != client
    for i, part in reversed(list(enumerate(gang.parts))):
        if not part.mask[~keep].any():
            continue
        less = Part(part.mask & keep, part.rows[keep[part.mask]])
        return replace(gang, parts=(*gang.parts[:i], less, *gang.parts[i + 1 :]))
    return gang


class TreeSum:
    """Sums of arrays along the fixed binary tree over `leaves` indices, whatever the order in which they come.

    At each level neighbours 2i and 2i+1 are added; one without a neighbour moves up as it is. Holds O(arrivals out of
    order + log leaves) partial sums.
    """

    def __init__(self, leaves: int) -> None:
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append(-(-self._widths[-1] // 2))
        self._waiting: dict[tuple[int, int], tuple[Arrays, bool]] = {}  # sums, and whether they were made here
        self.total: Arrays | None = {} if leaves == 0 else None

    def add(self, index: int, values: Arrays) -> None:
        """Add the partial sums of leaf `index`, which are left as they are. A leaf without sums counts as zero."""
        mine = False
        for level, width in enumerate(self._widths):
            if width == 1:
                self.total = values
                return
            sibling = index ^ 1
            if sibling < width:
                if (level, sibling) not in self._waiting:
                    self._waiting[level, index] = values, mine
                    return
                other, others_mine = self._waiting.pop((level, sibling))
                if not (values and other):
                    values, mine = (values, mine) if values else (other, others_mine)
                    index //= 2
                    continue
                into = values if mine else other if others_mine else {}
                values, mine = {n: np.add(a, other[n], out=into.get(n)) for n, a in values.items()}, True
            index //= 2
