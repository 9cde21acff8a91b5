"""What a statement is: a prediction that is measured, and a broken twin that must be seen to fail."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import log2

from torch import Tensor

from raygrad.theory.problems import Problem, problems

HALVED = [2.0**-j for j in range(6, 12)]  # alpha or beta: remainders of order 3 end near 1e-9
SLACK, ROUNDING, EXACT = 0.15, 1e-12, 1e-12


@dataclass(frozen=True)
class Finding:
    """One measurement: as it is read, and whether it is what was predicted."""

    text: str
    holds: bool


Measure = Callable[[float], Iterable[Finding]]
"""`measure(sign)`: sign 1 is the statement, -1 its broken twin; other factors of the predicted term are wrong, too."""


@dataclass(frozen=True)
class Verdict:
    """What was measured of a statement and of its broken twin; `ok` if the one holds and the other fails throughout."""

    measured: str
    broken: str
    ok: bool


@dataclass(frozen=True)
class Statement:
    """A prediction that can be measured, and what is broken in its twin."""

    name: str
    predicted: str
    measure: Measure
    wrong: str

    def verdict(self) -> Verdict:
        """Measure both. An error inside is a failure."""
        try:
            right, wrong = list(self.measure(1.0)), list(self.measure(-1.0))
        except Exception as e:
            message = str(e).partition("\n")[0]
            return Verdict(f"{type(e).__name__}: {message}", "", False)
        ok = all(f.holds for f in right) and not any(f.holds for f in wrong)
        text = ["; ".join(f.text for f in findings) for findings in (right, wrong)]
        return Verdict(text[0], f"{self.wrong}: {text[1]}", ok)


def statement(name: str, predicted: str, wrong: str = "sign flipped") -> Callable[[Measure], Statement]:
    """Turns the function that measures a prediction into its `Statement`."""
    return lambda measure: Statement(name, predicted, measure, wrong)


Remainder = Callable[[Problem, float, float], Tensor]
"""`remainder(p, size, sign) -> [d]`: the measured difference of two rounds minus `sign` times the predicted one."""


def of_order(expected_slope: int, p: Problem, remainder: Remainder, sign: float) -> Finding:
    """Whether the remainder's slope over HALVED ends at `expected_slope`; shows the worst of the last three."""
    norms = [float(remainder(p, size, sign).norm()) for size in HALVED]
    if min(norms) < ROUNDING * float(p.x.norm()):
        return Finding(f"remainder {min(norms):.0e}, lost in rounding ({p.name})", False)
    slopes = [log2(a / b) for a, b in pairwise(norms)][-3:]
    worst = max(slopes, key=lambda slope: abs(slope - expected_slope))
    return Finding(f"slope {worst:.3f} ({p.name})", abs(worst - expected_slope) <= SLACK)


def expansion(name: str, predicted: str) -> Callable[[Remainder], Statement]:
    """Turns a remainder into the statement that it is of order 3 in alpha, on every one of `problems`."""

    def of(remainder: Remainder) -> Statement:
        return statement(name, predicted)(lambda sign: (of_order(3, p, remainder, sign) for p in problems()))

    return of


def exact(what: str, error: float, limit: float = EXACT) -> Finding:
    """Whether an error is rounding."""
    return Finding(f"error {error:.0e} ({what})", error <= limit)
