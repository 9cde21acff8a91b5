"""Search spaces: for each field what values it may take, as a short text, and the settings that are drawn from them.

    loguniform(0.01, 0.5)    log-uniform between the two, for step sizes
    uniform(0, 0.4)          uniform; quniform(a, b, q) and qloguniform(a, b, q) in multiples of q
    randint(5, 20)           a whole number, both ends included
    1,5,10,20                one of a list; so is choice(1, 5, 10, 20)
    linspace(0, 0.4, 5)      a list of evenly spaced numbers; logspace(a, b, n) on a logarithmic scale
    0.1                      one value

A drawn value is a function of the sweep's seed, the number of the sample and the field's name, and nothing else: a
field more or less in the space leaves the values of the others as they were. Drawn numbers have six significant digits,
so that the command that repeats a trial is short and exact.
"""

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, exp, floor, isfinite, log

from raygrad.errors import BadInput
from raygrad.naming import unknown
from raygrad.rng import Purpose, rng

Value = int | float | str
Settings = dict[str, Value]
"""Values by the dotted names of their fields."""

ALIASES = {"alpha": "algorithm.lr", "beta": "algorithm.beta", "K": "local.steps"}
"""Short names of dimensions."""
SHOWN = {field: name for name, field in ALIASES.items()}
"""Short names by field, as they are printed."""
MOST_POINTS = 100_000
"""So many settings a grid may have."""
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Values:
    """One of a list."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included: uniform, or uniform on a logarithmic scale, or a multiple of `step`
    (None: any number). `whole` numbers have a step of 1.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def at(self, u: float) -> int | float:
        """The value at the fraction `u` in [0, 1) of the range."""
        if self.step is None:
            drawn = exp(log(self.low) + u * (log(self.high) - log(self.low))) if self.log else self._between(u)
            return min(self.high, max(self.low, short(drawn)))
        if self.log:
            half = self.step / 2
            low, high = log(max(self.low - half, self.low / 2)), log(self.high + half)
            steps = round(exp(low + u * (high - low)) / self.step)
        else:
            steps = self._first + floor(u * (self._last - self._first + 1))
        steps = min(self._last, max(self._first, steps))
        return steps if self.whole else short(steps * self.step)

    def near(self, value: int | float, factor: float) -> int | float:
        """`value` times `factor` as a value of the range; where there are steps it moves by one at least."""
        found = value * factor
        if self.step is not None:
            steps, to = round(value / self.step), round(found / self.step)
            if to == steps and value:
                to += 1 if factor > 1 else -1
            steps = min(self._last, max(self._first, to))
            return steps if self.whole else short(steps * self.step)
        return min(self.high, max(self.low, short(found)))

    @property
    def _first(self) -> int:
        return ceil(self.low / (self.step or 1) - 1e-9)

    @property
    def _last(self) -> int:
        return floor(self.high / (self.step or 1) + 1e-9)

    def _between(self, u: float) -> float:
        return self.low + u * (self.high - self.low)

    def holds(self, value: Value) -> bool:
        """Whether a value lies in the range."""
        return not isinstance(value, str) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The smallest and the largest value."""
        return self.at(0.0), self.at(1.0 - 2**-53)


Expression = Values | Range


def short(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{value:.6g}")


def parse(text: str, name: str) -> Expression:
    """What the values of dimension `name` may be. Nothing is evaluated but what the module's text lists.

    Raises BadInput with the dimension, the text and what is allowed.
    """
    call = _CALL.fullmatch(text)
    if call is None:
        return Values(_listed(text, text, name))
    kind, arguments = call[1], call[2]
    if kind == "choice":
        return Values(_listed(arguments, text, name))
    if kind not in _KINDS:
        raise unknown(f"expression for {name},", kind, [*_KINDS, "choice"])
    wanted = _KINDS[kind]
    given = [a.strip() for a in arguments.split(",")]
    if len(given) != len(wanted):
        raise _refused(name, text, f"{kind} takes {len(wanted)} numbers: {kind}({', '.join(wanted)})")
    try:
        numbers = [float(a) for a in given]
    except ValueError as e:
        raise _refused(name, text, f"{kind} takes numbers: {kind}({', '.join(wanted)})") from e
    if not all(map(isfinite, numbers)):
        raise _refused(name, text, "the numbers must be finite")
    low, high = numbers[:2]
    if not low < high and not (kind in ("randint", "linspace", "logspace") and low == high):
        raise _refused(name, text, f"the first number must be less than the second, {low:g} is not less than {high:g}")
    if "log" in kind and low <= 0:
        raise _refused(name, text, f"{kind} needs numbers above 0, the first is {low:g}")
    if kind in ("linspace", "logspace"):
        return Values(_spaced(numbers, kind == "logspace", name, text))
    if kind == "randint":
        if not (low.is_integer() and high.is_integer()):
            raise _refused(name, text, "randint takes whole numbers")
        return Range(low, high, step=1.0, whole=True)
    step = numbers[2] if kind.startswith("q") else None
    found = Range(low, high, "log" in kind, step)
    if step is not None and (step <= 0 or found._last < found._first):
        raise _refused(name, text, f"no multiple of {step:g} lies between {low:g} and {high:g}")
    return found


_KINDS = {
    "loguniform": ("low", "high"), "uniform": ("low", "high"), "quniform": ("low", "high", "step"),
    "qloguniform": ("low", "high", "step"), "randint": ("low", "high"), "linspace": ("low", "high", "number"),
    "logspace": ("low", "high", "number"),
}  # fmt: skip


def _spaced(numbers: list[float], by_log: bool, name: str, text: str) -> tuple[Value, ...]:
    low, high, count = numbers
    if not (count.is_integer() and 1 <= count <= MOST_POINTS):
        raise _refused(name, text, f"the third number says how many: a whole number from 1 to {MOST_POINTS:,}")
    if count == 1:
        return (short(low),)
    steps = [i / (count - 1) for i in range(int(count))]
    if by_log:
        return tuple(short(exp(log(low) + u * (log(high) - log(low)))) for u in steps)
    return tuple(short(low + u * (high - low)) for u in steps)


def _listed(text: str, whole: str, name: str) -> tuple[Value, ...]:
    if "(" in text or ")" in text:
        raise _refused(name, whole, f"it must be a value, a list such as 1,5,10, or one of {', '.join(_KINDS)}(…)")
    parts = [p.strip() for p in text.split(",")]
    if not all(parts):
        raise _refused(name, whole, "a value is missing in the list")
    values = tuple(value_of(p) for p in parts)
    if len(set(values)) < len(values):
        raise _refused(name, whole, "a value stands in the list twice")
    return values


def value_of(text: str) -> Value:
    """A number where the text is one, else the text."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    return number if isfinite(number) else text


def text_of(value: Value) -> str:
    """A value as it stands on a command line: `value_of` of it is the value."""
    return value if isinstance(value, str) else repr(value)


def _refused(name: str, text: str, why: str) -> BadInput:
    return BadInput(f"{name} is {text!r}: {why}")


def field_of(name: str) -> str:
    """The dotted field that a dimension's name means: `alpha` is algorithm.lr."""
    return ALIASES.get(name, name)


def draw(space: Mapping[str, Expression], seed: int, sample: int) -> Settings:
    """The settings of sample number `sample` (from 0): an independent draw from each dimension.

    The algorithms of a list are taken in turn, so that each gets the same number of samples.
    """
    found: Settings = {}
    for name, expression in space.items():
        u = float(rng(seed, Purpose.SWEEP, sample, zlib.crc32(name.encode())).random())
        if isinstance(expression, Range):
            found[name] = expression.at(u)
        else:
            values = expression.values
            found[name] = values[sample % len(values) if name == "algorithm" else floor(u * len(values))]
    return found


def grid(space: Mapping[str, Expression]) -> list[Settings]:
    """Every combination, the last dimension changing fastest. Raises BadInput where a dimension is no list."""
    lists: list[Iterable[Value]] = []
    count = 1
    for name, expression in space.items():
        if isinstance(expression, Range):
            raise BadInput(
                f"{name} is a range, and a grid needs lists: give values such as 0.1,0.2, linspace(low, high, number) "
                "or logspace(low, high, number), or search at random"
            )
        lists.append(expression.values)
        count *= len(expression.values)
    if count > MOST_POINTS:
        raise BadInput(f"the grid has {count:,} settings; at most {MOST_POINTS:,} are allowed")
    return [dict(zip(space, values, strict=True)) for values in product(*lists)]


def point(text: str) -> dict[str, Value]:
    """A starting point, `alpha=0.1,beta=0.05,K=5`: values by field. Raises BadInput."""
    found: dict[str, Value] = {}
    for part in text.split(","):
        name, equals, value = (s.strip() for s in part.partition("="))
        if not (name and equals and value):
            raise BadInput(f"starting point {text!r} is not of the form alpha=0.1,beta=0.05,K=5")
        if field_of(name) in found:
            raise BadInput(f"starting point {text!r} names {name} twice")
        found[field_of(name)] = value_of(value)
    return found
