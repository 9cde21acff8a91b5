"""What a sweep tells: the page, and the comparison that is printed.

Maps of the step size and the displacement for each K, how much each setting matters, accuracy against communications,
parallel coordinates, and the best setting of each algorithm, run again with fresh seeds and compared with FedAvg's best
pair by pair. Everything is read from trials.parquet and the trials' tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from raygrad import citations
from raygrad.files import mirror
from raygrad.files.remote import Url
from raygrad.reports import pictures, provenance, publish
from raygrad.reports.document import Code, Document, Folded, Heading, Part, Picture, Table, Words
from raygrad.reports.report import Leaf, flatten, leaf, spread, view
from raygrad.sweeps.space import SHOWN, Range
from raygrad.sweeps.sweep import LoadedSweep, best_settings
from raygrad.sweeps.trial import evaluations
from raygrad.sweeps.trials import Row

ALPHA, BETA, K = "algorithm.lr", "algorithm.beta", "local.steps"
REFERENCE = "fedavg"
"""With whose best setting the others are compared."""
STRETCHES = 8
"""Into so many stretches a continuous setting is cut where the best of each is sought."""
MOST_MAPS = 12


@dataclass(frozen=True)
class Trial:
    """One setting of the search: the mean over its seeds. `value` is NaN if it diverged, failed or has none."""

    number: int
    settings: Mapping[str, Any]
    outcome: str
    value: float
    communications: int
    runs: Mapping[str, int] = field(repr=False)  # and the rounds of each
    parent: int | None = None

    @property
    def algorithm(self) -> str:
        """Its algorithm where that is searched, else nothing."""
        return str(self.settings.get("algorithm") or "")


def trials(loaded: LoadedSweep) -> list[Trial]:
    """The search's trials, in order."""
    by_number: dict[int, list[Row]] = {}
    for row in loaded.trials().to_pylist():
        if row["role"] == "search":
            by_number.setdefault(row["trial"], []).append(row)
    found = []
    for number, rows in sorted(by_number.items()):
        outcomes = [r["outcome"] for r in rows]
        bad = next((o for o in outcomes if o in ("diverged", "failed")), "")
        values = [r["validation"] for r in rows if r["validation"] is not None]
        value = float(np.mean(values)) if values and not bad else float("nan")
        found.append(
            Trial(
                number, {n: rows[0][n] for n in loaded.sweep.dimensions if rows[0][n] is not None}, bad or outcomes[0],
                value, max(r["communications"] for r in rows), {r["run"]: r["rounds"] for r in rows if r["run"]},
                rows[0]["parent"],
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class Best:
    """The best setting of an algorithm and what it came to with fresh seeds. `against` is the comparison with FedAvg's
    best: mean difference, 95% confidence interval, p of the paired t-test, pairs.
    """

    algorithm: str
    trial: int
    settings: Mapping[str, Any]
    searched: float
    validation: tuple[float, ...]
    test: tuple[float, ...]
    against: tuple[float, float, float, float, int] | None
    command: str


def best(loaded: LoadedSweep) -> list[Best]:
    """The best setting of each algorithm, the best first."""
    rows = loaded.trials().to_pylist()
    fresh: dict[int, dict[int, Row]] = {}
    for row in rows:
        if row["role"] == "winner":
            fresh.setdefault(row["trial"], {})[row["seed"]] = row
    heads = best_settings(loaded)
    reference = next((h["trial"] for h in heads if h["settings"].get("algorithm") == REFERENCE), None)
    found = []
    for head in heads:
        again = [fresh.get(head["trial"], {})[s] for s in sorted(fresh.get(head["trial"], {}))]
        pairs = None
        if reference is not None and reference != head["trial"]:
            pairs = paired(fresh.get(head["trial"], {}), fresh.get(reference, {}))
        first = again[0] if again else next(r for r in rows if r["trial"] == head["trial"])
        found.append(
            Best(
                str(head["settings"].get("algorithm") or ""), head["trial"], head["settings"], head["value"],
                _known(again, "validation"), _known(again, "test"), pairs, loaded.command(first),
            )
        )  # fmt: skip
    return found


def paired(ours: Mapping[int, Row], theirs: Mapping[int, Row]) -> tuple[float, float, float, float, int] | None:
    """Mean difference of the test metric over the seeds that both have, its 95% interval and the paired t-test's p.

    None with fewer than two pairs.
    """
    from scipy.stats import ttest_rel

    seeds = [s for s in sorted(ours) if s in theirs and None not in (ours[s]["test"], theirs[s]["test"])]
    if len(seeds) < 2:
        return None
    a, b = (np.array([rows[s]["test"] for s in seeds]) for rows in (ours, theirs))
    difference = a - b
    if np.ptp(difference) == 0:
        mean = float(difference[0])
        return mean, mean, mean, 1.0 if mean == 0 else 0.0, len(seeds)
    result = ttest_rel(a, b)
    interval = result.confidence_interval(0.95)
    return float(difference.mean()), float(interval.low), float(interval.high), float(result.pvalue), len(seeds)


def table(loaded: LoadedSweep) -> tuple[list[str], list[list[str]]]:
    """The best setting of each algorithm as header and rows of text."""
    measure, heads = loaded.sweep.measure, best(loaded)
    compared = any(h.against for h in heads)
    header = ["best of", "settings", f"{measure} in the search", "fresh seeds", "test"]
    rows = []
    for h in heads:
        said = ", ".join(f"{SHOWN.get(n, n)} {leaf(v)}" for n, v in h.settings.items() if n != "algorithm")
        row = [h.algorithm or loaded.name, said, f"{h.searched:.4f}", spread(h.validation), spread(h.test)]
        if compared:
            row.append("" if h.against is None else _compared(h.against))
        rows.append(row)
    return [*header, *([f"test against {REFERENCE}'s best"] if compared else [])], rows


def write(loaded: LoadedSweep, out: Path | None = None, format: publish.Format | None = None) -> Path:
    """Write the sweep's report, to report.html in its folder by default; else see `publish.destination`. The same sweep
    gives the same bytes.
    """
    publish.destination(out or loaded.folder, format)
    return publish.write(document(loaded), out or loaded.folder, format)


def document(loaded: LoadedSweep) -> Document:
    """The report about a sweep."""
    sweep, found = loaded.sweep, trials(loaded)
    what = searched(loaded, found)
    header, rows = table(loaded)
    commands = "\n".join(h.command for h in best(loaded))
    again = [Words("Each line trains one of the best settings again."), Code(commands)] if rows else []
    chosen = "Chosen on validation data, run again with seeds that the search has not seen"
    parts = [
        Table([], what, "What was searched"),
        Heading("The best settings"),
        Table(header, rows, chosen),
        Words(_protocol(loaded), note=True) if rows else Words("No trial has finished."),
        *_maps(loaded, found),
        *_sensitivity(loaded, found),
        *_learning(loaded, found),
        *_parallel(loaded, found),
        Heading("Trials"),
        listed(loaded, found),
        Heading("Settings"),
        Folded("What all trials share", _shared(loaded)),
        *_environment(loaded),
        Heading("How to repeat it"),
        *again,
        *_cited(loaded, found),
    ]
    sub = f"sweep {loaded.name}/{loaded.folder.name} · {sweep.hash[:12]}"
    return Document(loaded.name, loaded.name, sub, parts)


def searched(loaded: LoadedSweep, found: Sequence[Trial]) -> list[tuple[str, str]]:
    """What was searched and how, as (label, value)."""
    sweep = loaded.sweep
    outcomes = [t.outcome for t in found]
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
    c, rounds = sweep.communications, sweep.experiment.rounds
    budget = f"{c:,} communications" if c else f"{rounds:,} rounds"
    return [
        ("trials", f"{len(found):,}: {counts}"),
        ("search", f"{sweep.search}, seed {sweep.seed}; scheduler {sweep.scheduler}" + (
            f", {sweep.generations} generations" if sweep.scheduler == "pbt" else "")),
        ("budget of a trial", budget),
        ("compared by", f"{sweep.measure} on validation data, mean of {sweep.seeds} seeds" if sweep.seeds > 1 else
         f"{sweep.measure} on validation data"),
        *((SHOWN.get(n, n), text) for n, text in sweep.space.items()),
    ]  # fmt: skip


def _shared(loaded: LoadedSweep) -> dict[str, Leaf]:
    """The settings of the experiment that are not searched."""
    searched = loaded.sweep.dimensions
    settings = flatten(loaded.sweep.experiment.to_json())
    named = [n for n in searched if n != "algorithm"]
    left_out = ["algorithm."] if "algorithm" in searched else []
    return {k: v for k, v in settings.items() if k not in named and k != "seed" and not k.startswith(tuple(left_out))}


def _environment(loaded: LoadedSweep) -> list[Part]:
    """What the runs were computed with, as the first of them has it."""
    for row in loaded.trials().to_pylist():
        folder = loaded.run_folder(row["run"]) if row["run"] else None
        if folder is not None and (folder / "experiment.json").is_file():
            v = view(folder)
            return [
                Heading("Environment"),
                Table([], provenance.environment(v), "What the runs were computed with"),
                Words(f"Of {v.title}.", note=True),
            ]
    return []


def _cited(loaded: LoadedSweep, found: Sequence[Trial]) -> list[Part]:
    """The papers behind the sweep's experiment and the algorithms that were searched."""
    record = loaded.sweep.experiment.to_json()
    names = [a for a in _looks(found) if a] or [None]
    numbers: dict[str, None] = {}
    for name in names:
        settings = record if name is None else {**record, "algorithm": {"kind": name}}
        numbers |= dict.fromkeys(citations.of_record(loaded.name, settings)[0])
    entries = [*map(citations.bibtex, numbers), citations.software()]
    said = f"This sweep stands on: {'; '.join(provenance.papers(list(numbers)))}."
    return [Heading("Citation"), Words(said), Code("\n\n".join(entries))]


def to_storage(loaded: LoadedSweep) -> Path | Url:
    """Write the page to where the sweep is. Raises Stopped when the storage is lost."""
    page = write(loaded)
    if loaded.url is None:
        return page
    mirror.put_report(loaded.url, page)
    return loaded.url / mirror.REPORT


def _protocol(loaded: LoadedSweep) -> str:
    seeds = loaded.sweep.winner_seeds
    said = f"Mean ± standard deviation over {seeds} fresh seeds. The test set was looked at for these runs only."
    if loaded.sweep.scheduler == "pbt":
        said += " Settings that changed on the way are shown as they were at the end; fresh seeds repeat every change."
    if any(h.against for h in best(loaded)):
        said += (
            f" Differences are per seed, with the 95% interval and the p of a paired t-test; with {seeds} pairs only "
            "large differences can be told from chance."
        )
    return said


def _compared(against: tuple[float, float, float, float, int]) -> str:
    mean, low, high, p, pairs = against
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}], p {p:.2g}, {pairs} pairs"


def _known(rows: Sequence[Row], name: str) -> tuple[float, ...]:
    return tuple(r[name] for r in rows if r[name] is not None)


# --- pictures


def _log(loaded: LoadedSweep, name: str) -> bool:
    expression = loaded.sweep.dimensions.get(name)
    values = getattr(expression, "values", ())
    if isinstance(expression, Range):
        return expression.log
    numbers = [v for v in values if isinstance(v, int | float)]
    return len(numbers) > 2 and min(numbers) > 0 and max(numbers) >= 20 * min(numbers)


def _looks(found: Sequence[Trial]) -> dict[str, int]:
    """Which look each algorithm has in all pictures."""
    return {a: i for i, a in enumerate(dict.fromkeys(t.algorithm for t in found))}


def _numbers(found: Sequence[Trial], name: str) -> np.ndarray:
    """The setting of each trial [n]; NaN where a trial has none."""
    values = [t.settings.get(name) for t in found]
    return np.array([float(v) if isinstance(v, int | float) else float("nan") for v in values])


def _values(found: Sequence[Trial]) -> np.ndarray:
    return np.array([t.value for t in found])


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of the step size and another setting; `left_out` of them are not shown."""

    panels: Sequence[pictures.Map]
    x_label: str
    y_label: str
    left_out: int


def maps(loaded: LoadedSweep, found: Sequence[Trial]) -> Maps | None:
    """A map of α and β for each algorithm and K, of α and K without β; None where nothing of that is searched."""
    names = loaded.sweep.dimensions
    if ALPHA not in names or not (BETA in names or K in names):
        return None
    y = BETA if BETA in names else K
    panels = []
    having = [t for t in found if ALPHA in t.settings and y in t.settings]
    for algorithm in dict.fromkeys(t.algorithm for t in having):
        mine = [t for t in having if t.algorithm == algorithm]
        steps = sorted({t.settings[K] for t in mine if K in t.settings}) if y == BETA else []
        split = 1 < len(steps) <= MOST_MAPS
        for k in steps if split else [None]:
            some = [t for t in mine if k is None or t.settings.get(K) == k]
            title = ", ".join(s for s in (algorithm, f"K {k}" if k is not None else "") if s) or "all trials"
            panels.append(
                pictures.Map(title, _numbers(some, ALPHA), _numbers(some, y), _values(some), _log(loaded, ALPHA))
            )
    if not panels:
        return None
    return Maps(panels[:MOST_MAPS], "α, local step size", "β" if y == BETA else "K", len(panels[MOST_MAPS:]))


def _maps(loaded: LoadedSweep, found: Sequence[Trial]) -> list[Part]:
    shown = maps(loaded, found)
    if shown is None:
        return []
    caption = f"{shown.left_out} maps are left out. " if shown.left_out else ""
    caption += f"Each point is a trial. Crosses diverged or failed. Axes: α and {shown.y_label}."
    drawing = pictures.maps(shown.panels, shown.x_label, shown.y_label, loaded.sweep.measure)
    return [Heading("Maps"), Picture("maps", "Maps of the search", caption, drawing)]


def sensitivity(loaded: LoadedSweep, found: Sequence[Trial]) -> list[pictures.Scatter]:
    """Each numeric setting against the value, with the best of each stretch: what it costs to have it wrong."""
    looks = _looks(found)
    algorithms, series = list(looks), {a or loaded.name: i for a, i in looks.items()}
    panels = []
    for name in loaded.sweep.dimensions:
        log, groups = _log(loaded, name), []
        for algorithm in algorithms:
            mine = [t for t in found if t.algorithm == algorithm and isfinite(t.value)]
            x, y = _numbers(mine, name), _values(mine)
            x, y = x[np.isfinite(x)], y[np.isfinite(x)]
            if len(x):
                groups.append((algorithm or loaded.name, x, y, _envelope(x, y, log, loaded.sweep.better == "max")))
        if groups:
            panels.append(pictures.Scatter(SHOWN.get(name, name), groups, series, log))
    return panels


def _sensitivity(loaded: LoadedSweep, found: Sequence[Trial]) -> list[Part]:
    panels = sensitivity(loaded, found)
    if not panels:
        return []
    caption = (
        "Points are trials, the line joins the best of each stretch: how much the value depends on one setting when "
        "the others are as good as the search found them. A trial that was stopped counts with its last value."
    )
    drawing = pictures.scatters(panels, loaded.sweep.measure)
    return [Heading("Sensitivity"), Picture("sensitivity", "What each setting matters", caption, drawing)]


def _envelope(x: np.ndarray, y: np.ndarray, log: bool, larger: bool) -> tuple[np.ndarray, np.ndarray]:
    """The best point of each stretch of x [n], as a line."""
    sign = 1 if larger else -1
    different = np.unique(x)
    if len(different) <= STRETCHES:
        where = np.searchsorted(different, x)
    else:
        scaled = np.log(x) if log else x
        edges = np.linspace(scaled.min(), scaled.max(), STRETCHES + 1)[1:-1]
        where = np.searchsorted(edges, scaled)
    best_of = [max(np.flatnonzero(where == i), key=lambda j: sign * y[j]) for i in np.unique(where)]
    at = np.array(best_of)[np.argsort(x[best_of])]
    return x[at], y[at]


def learning(loaded: LoadedSweep, found: Sequence[Trial]) -> pictures.Panel | None:
    """The trials of the search in grey, and the best settings again; None where nothing is measured."""
    measure = loaded.sweep.measure
    curves = []
    for trial in found:
        curve = _curve(loaded, trial.runs, measure)
        if curve is not None:
            curves.append(pictures.Curve("", curve[0], curve[1], series=None))
    winners: dict[int, dict[str, int]] = {}
    for row in loaded.trials().to_pylist():
        if row["role"] == "winner" and row["run"]:
            winners.setdefault(row["trial"], {})[row["run"]] = row["rounds"]
    looks = _looks(found)
    for head in best(loaded):
        curve = _curve(loaded, winners.get(head.trial, {}), measure)
        if curve is not None:
            label = head.algorithm or "best setting"
            curves.append(pictures.Curve(label, *curve, series=looks[head.algorithm]))
    if not curves:
        return None
    return pictures.Panel(f"{measure} on validation data", "communications", curves, log=measure == "loss")


def _learning(loaded: LoadedSweep, found: Sequence[Trial]) -> list[Part]:
    panel, seeds = learning(loaded, found), loaded.sweep.winner_seeds
    if panel is None:
        return []
    caption = "Grey: the trials of the search. Coloured: the best settings again" + (
        f", means over {seeds} fresh seeds; bands: from the least to the largest." if seeds > 1 else "."
    )
    return [Heading("Learning"), Picture("learning", "Learning", caption, pictures.lines([[panel]]))]


def _curve(
    loaded: LoadedSweep, runs: Mapping[str, int], measure: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None] | None:
    """Communications, mean, least and largest over the runs, as far as all of them have come."""
    each = [evaluations(loaded.run_folder(run), rounds) for run, rounds in runs.items()]
    length = min(map(len, each), default=0)
    if not length:
        return None
    x = np.array([e.communications for e in each[0][:length]], np.float64)
    y = np.array([[e.values[measure] for e in some[:length]] for some in each])
    return (x, y.mean(0), None, None) if len(y) == 1 else (x, y.mean(0), y.min(0), y.max(0))


def parallel(loaded: LoadedSweep, found: Sequence[Trial]) -> list[pictures.Axis]:
    """An axis for each setting that has more than one value."""
    axes = []
    for name in loaded.sweep.dimensions:
        values = [t.settings.get(name) for t in found]
        known = [v for v in values if v is not None]
        if len(set(known)) < 2:
            continue
        numeric = all(isinstance(v, int | float) for v in known)
        kinds = sorted(set(known)) if numeric else list(dict.fromkeys(map(str, known)))
        if isinstance(loaded.sweep.dimensions[name], Range) or (numeric and len(kinds) > STRETCHES):
            log = _log(loaded, name)
            x = _numbers(found, name)
            scaled = np.log(x) if log else x
            low, high = np.nanmin(scaled), np.nanmax(scaled)
            marks = [low + (high - low) * i / 4 for i in range(5)]
            ticks = [((m - low) / (high - low), f"{np.exp(m) if log else m:.3g}") for m in marks]
            axes.append(pictures.Axis(SHOWN.get(name, name), (scaled - low) / (high - low), ticks))
        else:
            place = {k: i / (len(kinds) - 1) for i, k in enumerate(kinds)}
            position = [float("nan") if v is None else place[v if numeric else str(v)] for v in values]
            ticks = [(p, leaf(k)) for k, p in place.items()]
            axes.append(pictures.Axis(SHOWN.get(name, name), np.array(position), ticks))
    return axes


def _parallel(loaded: LoadedSweep, found: Sequence[Trial]) -> list[Part]:
    axes = parallel(loaded, found)
    if len(axes) < 2:
        return []
    caption = "Each line is a trial; grey ones diverged or failed. A line skips what its algorithm does not have."
    drawing = pictures.parallel(axes, _values(found), loaded.sweep.measure)
    return [Heading("All settings"), Picture("parallel", "Parallel coordinates", caption, drawing)]


def ranked(loaded: LoadedSweep, found: Sequence[Trial]) -> list[Trial]:
    """The trials, the best first; those without a value last."""
    sign = 1 if loaded.sweep.better == "max" else -1
    return sorted(found, key=lambda t: (not isfinite(t.value), -sign * t.value if isfinite(t.value) else 0, t.number))


def listed(loaded: LoadedSweep, found: Sequence[Trial]) -> Table:
    """The trials as they are `ranked`."""
    names = list(loaded.sweep.dimensions)
    forked = any(t.parent is not None for t in found)
    rows = [
        [
            str(t.number), *(leaf(t.settings.get(n)) for n in names), t.outcome, f"{t.communications:,}",
            f"{t.value:.4f}" if isfinite(t.value) else "–", *([_origin(t)] if forked else []),
        ]
        for t in ranked(loaded, found)
    ]  # fmt: skip
    shown = [SHOWN.get(n, n) for n in names]
    header = ["trial", *shown, "outcome", "communications", loaded.sweep.measure, *(["forked from"] if forked else [])]
    return Table(header, rows, "The best first" + (". Settings are those at the end" if forked else ""))


def _origin(trial: Trial) -> str:
    return "" if trial.parent is None else f"trial {trial.parent}"
