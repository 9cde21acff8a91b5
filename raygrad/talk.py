"""What passes between the driver, executors and the run, as values: what became of clients, gangs and rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from torch import Tensor

from raygrad.contract import Cohort
from raygrad.errors import BadInput
from raygrad.gang import Arrays, GangReply

ANSWERED, LATE, LEFT, UNAVAILABLE = "answered", "late", "left", "unavailable"
STALE, REJECTED, DAMAGED, KILLER, ABSENT = "stale", "rejected", "damaged", "killer", "absent"
OUTCOMES = (ANSWERED, LATE, LEFT, UNAVAILABLE, STALE, REJECTED, DAMAGED, KILLER, ABSENT)
"""What may become of a client that was asked."""


@dataclass(frozen=True)
class Operation:
    """One attempt at one gang, as it really went."""

    gang: int
    host: str
    attempt: int
    clients: int
    start_s: float  # perf_counter of this process
    wall_s: float
    bytes_down: int
    bytes_up: int
    outcome: str = "answered"
    phase: int = 0
    work: str = ""


@dataclass(frozen=True)
class Done:
    """A gang's reply and how it came about; `reply` is None for an attempt that failed or came second.

    A gang that has had no reply when its phase is over was lost too often to be tried again; the outcome of its last
    attempt then begins with "lost for good".
    """

    gang: int
    reply: GangReply | None
    operation: Operation


@dataclass(frozen=True)
class Failures:
    """What happens when a client fails for good: the run stops, or goes on without it for this round ("skip").

    `nan`: its update or loss is not finite. `data`: its stored shard is damaged. `killer`: it kills every host that
    runs it. A round with fewer than `quorum` answers ends the run; with 0 a round without answers changes nothing.
    """

    quorum: int = 1
    nan: Literal["stop", "skip"] = "stop"
    data: Literal["stop", "skip"] = "stop"
    killer: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.quorum < 0:
            raise BadInput(f"failures.quorum is {self.quorum}; it must be >= 0")


@dataclass(frozen=True)
class Flight:
    """The clients that are at work while an asynchronous server steps on."""

    clients: np.ndarray  # [c] int64
    begun: np.ndarray  # [c] int64, the round whose model they were given
    weights: np.ndarray  # [c] float64
    start_s: np.ndarray  # [c] float64, on the modelled clock
    end_s: np.ndarray  # [c] float64
    answers: np.ndarray  # [c] bool, False for those that will leave
    models: Mapping[int, Mapping[str, Tensor]]  # round -> what was sent down in it


@dataclass(frozen=True)
class ServerState:
    """What the server keeps between rounds: the algorithm's state, the model's buffers [b] (None if it has none), the
    modelled clock, what the sampler has learned, who is at work in an asynchronous run, and which clients are there
    (None: all).
    """

    algorithm: Any
    buffers: Tensor | None = None
    clock_s: float = 0.0
    sampler: Mapping[str, Tensor] = field(default_factory=dict)
    flight: Flight | None = None
    present: np.ndarray | None = None  # [n] int64, sorted


@dataclass(frozen=True)
class Fates:
    """What became of some clients [m] and how long they took, in seconds on the modelled clock."""

    clients: np.ndarray  # [m] int64
    weights: np.ndarray  # [m] float64
    outcome: np.ndarray  # [m] str
    seconds: np.ndarray  # [m] float64, from being asked until the last answer or until the server knew it was gone
    steps: np.ndarray  # [m] int64, local steps that count; 0 where nothing is modelled
    staleness: np.ndarray  # [m] int64
    losses: np.ndarray  # [m] float64, mean training loss; NaN if none was reported

    def only(self, which: np.ndarray) -> "Fates":
        """Those of the clients where `which` [m] is true."""
        return Fates(*(getattr(self, f.name)[which] for f in fields(self)))

    def with_others(self, others: "Fates") -> "Fates":
        """These and others, by number."""
        both = [np.concatenate([getattr(self, f.name), getattr(others, f.name)]) for f in fields(self)]
        order = np.argsort(both[0], kind="stable")
        return Fates(*(column[order] for column in both))


@dataclass(frozen=True)
class Talk:
    """A finished conversation: its result, what it charges, and what came with it."""

    result: Any
    cohort: Cohort  # those that were asked
    inside: np.ndarray  # [m] bool, whose answers have counted so far
    fates: Fates
    seconds: float = 0.0  # modelled
    phases: int = 0
    communications: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    buffers: Tensor | None = None
    states: list[tuple[np.ndarray, Arrays]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    asked: int = 0  # clients that were given work

    @property
    def answered(self) -> Cohort:
        """Those whose answers count."""
        return self.cohort.only(self.inside)


@dataclass(frozen=True)
class Played:
    """A round that was carried out and can be adopted."""

    index: int  # from 1
    state: ServerState
    talk: Talk
    lr_factor: float
    wall_s: float

    @property
    def train_loss(self) -> float | None:
        """The weighted mean training loss of those that answered."""
        inside = self.talk.fates.outcome == ANSWERED
        losses = self.talk.fates.losses[inside]
        if not len(losses) or np.isnan(losses).any():
            return None
        return float(np.average(losses, weights=self.talk.fates.weights[inside]))
