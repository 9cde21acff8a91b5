"""When a phase closes, and whose answers count: policies on the modelled clock.

A policy is asked before anything is computed, since the device model tells every client's time beforehand. So only work
that will count is done. Real slow hosts never decide who counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from raygrad.devices.base import Finish
from raygrad.errors import BadInput

Attempt = Callable[[np.ndarray], Finish]
"""`attempt(steps)`: when the phase's m clients would be done with `steps` [m] local steps each."""


@dataclass(frozen=True)
class Closing:
    """The end of a phase for its m clients."""

    counts: np.ndarray  # [m] bool, whose answers count
    seconds: float  # from the phase's start
    steps: np.ndarray  # [m] int64


@runtime_checkable
class Policy(Protocol):
    """How slow clients are dealt with."""

    needs_devices: ClassVar[bool]

    def check(self, cohort: int) -> None:
        """Refuse what cannot be with `cohort` wanted clients. Raises BadInput."""
        ...

    def asks(self, cohort: int) -> int:
        """How many clients are asked where `cohort` shall answer."""
        ...

    def answers(self, cohort: int) -> int:
        """How many answers a phase has at most."""
        ...

    def close(self, attempt: Attempt, steps: np.ndarray, wanted: int, tie: np.ndarray) -> Closing:
        """The end of a phase.

        `steps` [m] are the full numbers of local steps, `wanted` of the clients shall answer, `tie` [m] orders those
        who finish at the same moment.
        """
        ...


def first(finish: Finish, count: int, tie: np.ndarray) -> np.ndarray:
    """The mask [m] of the `count` clients that answer first, of all if fewer answer."""
    order = np.lexsort((tie, finish.seconds, ~finish.answers))[: min(count, int(finish.answers.sum()))]
    mask = np.zeros(len(tie), np.bool_)
    mask[order] = True
    return mask


def last(seconds: np.ndarray) -> float:
    """The greatest of `seconds`, 0 where there are none."""
    return float(seconds.max(initial=0.0))


@dataclass(frozen=True)
class _Synchronous:
    """What policies have in common that ask whom they want."""

    needs_devices: ClassVar[bool] = True

    def check(self, cohort: int) -> None:
        """Nothing to refuse."""

    def asks(self, cohort: int) -> int:
        """Exactly those that shall answer."""
        return cohort

    def answers(self, cohort: int) -> int:
        """All of them."""
        return cohort


@dataclass(frozen=True)
class WaitForAll(_Synchronous):
    """A phase ends when every client has answered or left."""

    needs_devices: ClassVar[bool] = False

    def close(self, attempt: Attempt, steps: np.ndarray, wanted: int, tie: np.ndarray) -> Closing:
        """At the last answer."""
        finish = attempt(steps)
        return Closing(finish.answers, last(finish.seconds), steps)


@dataclass(frozen=True)
class Deadline(_Synchronous):
    """A phase ends after `deadline_s`; with a `report_goal` as soon as so many have answered."""

    deadline_s: float = 60.0
    report_goal: int | None = None

    def __post_init__(self) -> None:
        _positive("deadline_s", self.deadline_s)
        if self.report_goal is not None and self.report_goal < 1:
            raise BadInput(f"stragglers.report_goal is {self.report_goal}; it must be >= 1")

    def check(self, cohort: int) -> None:
        """The goal must be within reach."""
        if self.report_goal is not None and self.report_goal > cohort:
            raise BadInput(
                f"stragglers.report_goal is {self.report_goal}, but only {cohort} clients are asked per round "
                f"(sampler.cohort); ask for at most {cohort}"
            )

    def answers(self, cohort: int) -> int:
        """The goal, if there is one."""
        return cohort if self.report_goal is None else self.report_goal

    def close(self, attempt: Attempt, steps: np.ndarray, wanted: int, tie: np.ndarray) -> Closing:
        """At the deadline, or earlier when the goal is reached or nobody is left to wait for."""
        finish = attempt(steps)
        in_time = Finish(finish.seconds, finish.answers & (finish.seconds <= self.deadline_s))
        goal = len(tie) if self.report_goal is None else min(self.report_goal, wanted)
        counts = first(in_time, goal, tie)
        if self.report_goal is not None and counts.sum() == goal:
            return Closing(counts, last(finish.seconds[counts]), steps)
        return Closing(counts, min(self.deadline_s, last(finish.seconds)), steps)


@dataclass(frozen=True)
class OverSelect(_Synchronous):
    """`factor` times as many clients are asked as are wanted; the first that answer count."""

    factor: float = 1.3

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= 1000:
            raise BadInput(f"stragglers.factor is {self.factor}; it must be >= 1 and <= 1000")

    def asks(self, cohort: int) -> int:
        """ceil(factor * cohort)."""
        return ceil(round(self.factor * cohort, 9))

    def close(self, attempt: Attempt, steps: np.ndarray, wanted: int, tie: np.ndarray) -> Closing:
        """When as many have answered as are wanted, or nobody is left to wait for."""
        finish = attempt(steps)
        counts = first(finish, wanted, tie)
        enough = counts.sum() == wanted
        return Closing(counts, last(finish.seconds[counts] if enough else finish.seconds), steps)


@dataclass(frozen=True)
class PartialWork(_Synchronous):
    """A phase ends after `deadline_s`; a client that cannot make all its local steps by then makes as many as it can.

    At least `least` steps count; a client that cannot make so many is late.
    """

    deadline_s: float = 60.0
    least: int = 1

    def __post_init__(self) -> None:
        _positive("deadline_s", self.deadline_s)
        if self.least < 1:
            raise BadInput(f"stragglers.least is {self.least}; it must be >= 1")

    def close(self, attempt: Attempt, steps: np.ndarray, wanted: int, tie: np.ndarray) -> Closing:
        """At the deadline, or when everybody is done."""

        def in_time(tried: np.ndarray) -> np.ndarray:
            finish = attempt(tried)
            return finish.answers & (finish.seconds <= self.deadline_s)

        few, many = np.minimum(self.least, steps), steps.copy()  # the most that fit lie between them, if any do
        counts = in_time(few)
        while (few < many).any():
            middle = (few + many + 1) // 2
            fits = in_time(middle)
            few, many = np.where(fits, middle, few), np.where(fits, many, middle - 1)
        made = np.where(counts, few, steps)  # who leaves does so while it makes all of them
        finish = attempt(made)
        return Closing(counts, min(self.deadline_s, last(finish.seconds)), made)


@dataclass(frozen=True)
class Buffered:
    """Asynchronous: `concurrency` clients are at work at any moment; each begins with the newest model, and whoever is
    done is replaced at once, by a client that has not yet answered in this step: there must be at least
    `concurrency` + `report_goal` - 1. The server steps when `report_goal` answers are there (FedBuff; 1: FedAsync).

    An answer that is `staleness` model versions old counts with the weight (1 + staleness)^-exponent ("polynomial"),
    fully ("constant"), or fully up to `hinge` versions and with 1 / (exponent (staleness - hinge) + 1) beyond
    ("hinge"). One that is older than `max_staleness` is thrown away. Fast clients answer more often than slow ones, so
    the model leans to their data.

    Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (arXiv 2106.06639); the discounts are
    those of Xie et al., "Asynchronous Federated Optimization" (arXiv 1903.03934).
    """

    needs_devices: ClassVar[bool] = True

    report_goal: int = 10
    concurrency: int = 100
    max_staleness: int | None = None
    discount: Literal["polynomial", "constant", "hinge"] = "polynomial"
    exponent: float = 0.5
    hinge: int = 4

    def __post_init__(self) -> None:
        for name in ("report_goal", "concurrency"):
            if getattr(self, name) < 1:
                raise BadInput(f"stragglers.{name} is {getattr(self, name)}; it must be >= 1")
        if self.max_staleness is not None and self.max_staleness < 0:
            raise BadInput(f"stragglers.max_staleness is {self.max_staleness}; it must be >= 0, or none")
        if not (isfinite(self.exponent) and self.exponent >= 0):
            raise BadInput(f"stragglers.exponent is {self.exponent}; it must be a finite number >= 0")
        if self.hinge < 0:
            raise BadInput(f"stragglers.hinge is {self.hinge}; it must be >= 0")

    def check(self, cohort: int) -> None:
        """Nothing depends on the cohort: sampler.cohort is not used."""

    def asks(self, cohort: int) -> int:
        """As many as are at work together."""
        return self.concurrency

    def answers(self, cohort: int) -> int:
        """The goal."""
        return self.report_goal

    def close(self, attempt: Attempt, steps: np.ndarray, wanted: int, tie: np.ndarray) -> Closing:
        """Phases of a synchronous conversation (a sampler's): everybody is waited for."""
        return WaitForAll().close(attempt, steps, wanted, tie)

    def weight(self, staleness: np.ndarray) -> np.ndarray:
        """What answers [m] count that are so many versions old."""
        late = staleness.astype(np.float64)
        if self.discount == "constant":
            return np.ones(len(late))
        if self.discount == "polynomial":
            return (1 + late) ** -self.exponent
        return np.where(late <= self.hinge, 1.0, 1 / (self.exponent * np.maximum(0, late - self.hinge) + 1))


POLICIES: dict[str, type] = {
    "wait": WaitForAll,
    "deadline": Deadline,
    "over-select": OverSelect,
    "partial-work": PartialWork,
    "buffered": Buffered,
}


def _positive(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise BadInput(f"stragglers.{name} is {value}; it must be a finite number > 0")
