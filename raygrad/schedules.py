"""Learning-rate schedules by round: the factor on an algorithm's step size. Each names its own length, so a run may be
extended.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Protocol

from raygrad.errors import BadInput


class Schedule(Protocol):
    """`factor(round)`, rounds counted from 1."""

    def factor(self, round: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same step size throughout."""

    def factor(self, round: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step:
    """The step size is multiplied by `gamma` after each of the rounds in `milestones`."""

    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise BadInput(f"schedule.gamma is {self.gamma}; it must be > 0 and <= 1")

    def factor(self, round: int) -> float:
        return self.gamma ** sum(round > m for m in self.milestones)


@dataclass(frozen=True)
class Exponential:
    """The step size is multiplied by `gamma` after every round."""

    gamma: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise BadInput(f"schedule.gamma is {self.gamma}; it must be > 0 and <= 1")

    def factor(self, round: int) -> float:
        return self.gamma ** (round - 1)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `floor` over `length` rounds, then `floor`."""

    length: int = 1000
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.floor <= 1:
            raise BadInput(
                f"schedule cosine has length {self.length} and floor {self.floor}; "
                "it needs length >= 1 and 0 <= floor <= 1"
            )

    def factor(self, round: int) -> float:
        t = min(1.0, (round - 1) / self.length)
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * t))


@dataclass(frozen=True)
class Warmup:
    """The step size rises in a straight line over the first `length` rounds, then stays."""

    length: int = 10

    def __post_init__(self) -> None:
        if self.length < 1:
            raise BadInput(f"schedule.length is {self.length}; it must be >= 1")

    def factor(self, round: int) -> float:
        return min(1.0, round / self.length)


SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "step": Step,
    "exponential": Exponential,
    "cosine": Cosine,
    "warmup": Warmup,
}
