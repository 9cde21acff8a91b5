"""Population-based training: at a few stops the worst trials end, and their places are taken by forks of the best ones
with other settings (Jaderberg et al., "Population Based Training of Neural Networks", arXiv 1711.09846).

All trials wait for each other at a stop. So what happens there is a function of the validation values, the sweep's seed
and the numbers of the trials, and the sweep comes to the same on any number of hosts and after any restart.
"""

import zlib
from collections.abc import Mapping, Sequence
from math import floor, isfinite

from raygrad.rng import Purpose, rng
from raygrad.sweeps.space import Range, Value
from raygrad.sweeps.sweep import Point, Sweep

QUANTILE = 0.25
"""So large a part of the population ends at a stop, and so large a part may be forked."""
RESAMPLE = 0.25
"""How likely a setting is drawn anew; otherwise it moves."""
FACTORS = (0.8, 1.2)
"""A number is multiplied by one of these; in a list the value before or after is taken."""


def stops(sweep: Sweep, point: Point) -> list[int]:
    """After which rounds the trials wait for each other; the last is the end."""
    every = point.experiment.evaluation.every
    evaluations = point.experiment.rounds // every
    between = {every * round(evaluations * g / sweep.generations) for g in range(1, sweep.generations)}
    return [*sorted(r for r in between if 0 < r < every * evaluations), point.experiment.rounds]


def members(points: Sequence[Point], until: int) -> list[Point]:
    """Those that play up to round `until`: the newest of each place that began before."""
    newest = {p.sample: p for p in points if p.forked_at < until}
    return [newest[sample] for sample in sorted(newest)]


def forks(sweep: Sweep, present: Sequence[Point], values: Mapping[int, float], after: int, first: int) -> list[Point]:
    """Those that take the places of the worst after round `after`; their trials are numbered from `first`.

    `values` are the validation values by trial, without those that diverged or failed: these are replaced as well.
    """
    sign = 1 if sweep.better == "max" else -1
    fit = [p for p in present if isfinite(values.get(p.trial, float("nan")))]
    fit.sort(key=lambda p: (-sign * values[p.trial], p.trial))
    dead = [p for p in present if p not in fit]
    number = max(1, floor(len(present) * QUANTILE))
    best = fit[:number]
    if not best:
        return []
    worst = [*dead, *reversed(fit[len(best) :])][: max(number, len(dead))]
    found = []
    for place in sorted(worst, key=lambda p: p.sample):
        parent = best[int(rng(sweep.seed, Purpose.POPULATION, after, place.sample).integers(len(best)))]
        settings = {n: _moved(sweep, n, v, after, place.sample) for n, v in parent.settings.items()}
        found.append(parent.fork(first + len(found), place.sample, settings, after))
    return found


def _moved(sweep: Sweep, name: str, value: Value, after: int, sample: int) -> Value:
    """Another value of dimension `name`, near `value` or anywhere."""
    expression = sweep.dimensions[name]
    anew, where, way = rng(sweep.seed, Purpose.POPULATION, after, sample, zlib.crc32(name.encode())).random(3).tolist()
    if isinstance(expression, Range):
        if anew < RESAMPLE or isinstance(value, str):
            return expression.at(where)
        moved = [expression.near(value, f) for f in (FACTORS if way < 0.5 else FACTORS[::-1])]
        return next((m for m in moved if m != value), value)  # at an end of the range the other way
    if anew < RESAMPLE or value not in expression.values:
        return expression.values[floor(where * len(expression.values))]
    at, last = expression.values.index(value), len(expression.values) - 1
    beside = [i for i in ((at - 1, at + 1) if way < 0.5 else (at + 1, at - 1)) if 0 <= i <= last]
    return expression.values[beside[0]] if beside else value
