"""What each page shows, as plain JSON: everything from the tables and JSON files of the run folders."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raygrad.errors import BadInput
from raygrad.files import storage, tables
from raygrad.reports import curves, report, timeline, turnout
from raygrad.reports.report import RunView, leaf
from raygrad.viewer import charts
from raygrad.viewer.catalog import Catalog, Row, is_running, sweep_row

Json = dict[str, Any]

MAX_CLIENTS, MAX_ROUNDS = 100, 300
"""More clients and rounds than these share cells of the map of participation."""
MAX_BARS = 3000
"""With more attempts than these a timeline shows how busy hosts were."""
MAX_TROUBLED = 1000
BUSY_BINS = 240
MOST_COMPARED = 200
"""So many runs are compared at once."""


def listed(catalog: Catalog, wait_s: float) -> Json:
    """All runs and sweeps that are known so far."""
    rows, pending = catalog.rows(wait_s, whole=False)
    return {"root": str(catalog.root), "rows": [_row(r) for r in rows], "pending": pending, "note": catalog.note}


def _row(row: Row) -> Json:
    return {name: value for name, value in asdict(row).items() if value not in ("", None)}


def run(catalog: Catalog, at: str) -> Json:
    """A run's page without its charts."""
    folder = catalog.folder(at)
    v = catalog.view(folder)
    state = state_of(v)
    return {
        "at": at, "name": v.name, "id": v.id, "hash": v.hash, "state": state,
        "done": len(v.round), "planned": v.planned,
        "summary": report.summary_of(v),
        "axes": [[a, curves.AXES[a]] for a in curves.axes([_alone(v)])],
        "settings": _settings(v.settings), "where": _settings(v.where), "numerics": _settings(v.numerics),
        "data": _settings(v.data),
        "lineage": _lineage(folder, at),
        "commands": _commands(catalog, folder, at, v, state),
    }  # fmt: skip


def run_curves(catalog: Catalog, at: str, axis: curves.Axis) -> Json:
    """A run's curves over an axis."""
    groups = [_alone(catalog.view(catalog.folder(at)))]
    return {
        "learning": [charts.panel(p) for p in curves.learning(groups, axis)],
        "alignment": [charts.panel(p) for p in curves.alignment(groups, axis)],
    }


def participation(catalog: Catalog, at: str) -> Json:
    """Clients x rounds: who was asked and what became of it."""
    folder = catalog.folder(at)
    v = catalog.view(folder)
    table = tables.read(folder, "clients", ["round", "client", "outcome"])
    if not table.num_rows:
        return {"kinds": []}
    outcome = table["outcome"].fill_null(timeline.ANSWERED)
    encoded = outcome.combine_chunks().dictionary_encode()
    kinds = [str(k) for k in encoded.dictionary.to_pylist()]
    client, round = table["client"].to_numpy(), table["round"].to_numpy().astype(np.int64)
    turnout.check(folder, round, client, v.population)
    population = max(v.population, int(client.max()) + 1)
    shape = population, max(int(round.max()), 1)
    found = charts.counts(
        client, round - 1, encoded.indices.to_numpy(), kinds, shape, (MAX_CLIENTS, MAX_ROUNDS)
    )  # fmt: skip
    found["kinds"].sort(key=lambda k: (k["name"] != timeline.ANSWERED, k["name"]))
    return found


def hosts(catalog: Catalog, at: str, start_s: float | None, end_s: float | None) -> Json:
    """The timeline of hosts and gangs, or of a stretch of it."""
    folder = catalog.folder(at)
    whole = catalog.made("timeline", folder, timeline.timeline)
    first, last = whole.span
    window = (first if start_s is None else start_s, last if end_s is None else end_s)
    if not len(whole) or not window[0] < window[1]:
        return {"hosts": [], "span": [first, last], "window": list(window)}
    inside = whole.within(*window)
    troubled = inside.troubled()
    edges = np.linspace(*window, BUSY_BINS + 1)
    few = len(inside) <= MAX_BARS
    return {
        "hosts": _by_host(whole), "span": [first, last], "window": list(window), "outcomes": list(whole.outcomes),
        "attempts": len(inside), "bars": _bars(inside) if few else None,
        "busy": None if few else [charts.numbers(row) for row in inside.busy(edges)],
        "edges": None if few else charts.numbers(edges),
        "troubled": _bars(troubled.first(MAX_TROUBLED)), "troubled_of": len(troubled),
    }  # fmt: skip


def _bars(t: timeline.Timeline) -> Json:
    """The attempts, column by column."""
    names = ("host", "start_s", "end_s", "round", "phase", "gang", "attempt", "clients", "outcome")
    return {name: charts.numbers(getattr(t, name)) for name in names}


def _by_host(t: timeline.Timeline) -> list[Json]:
    """What each host did over the run."""
    found = []
    first, last = t.span
    for h, name in enumerate(t.hosts):
        mine = t.host == h
        wall = (t.end_s - t.start_s)[mine]
        answered = t.outcome[mine] == 0
        found.append(
            {
                "name": name, "attempts": int(mine.sum()), "unanswered": int((~answered).sum()),
                "busy": round(float(t.busy(np.array([first, last]))[h, 0]), 4) if last > first else 0.0,
                "median_s": round(float(np.median(wall)), 6),
                "clients": int(t.clients[mine][answered].sum()),
            }
        )  # fmt: skip
    return found


def partition(catalog: Catalog, at: str) -> Json:
    """Clients x classes."""
    v = catalog.view(catalog.folder(at))
    label_counts, examples, validation = report.partition_of(v)
    if not len(examples):
        return {"clients": 0}
    order = np.arange(len(examples))
    edges = charts.bins(len(examples), MAX_CLIENTS * 2)
    binned = len(edges) - 1 < len(examples)
    if binned and label_counts is not None:
        shares = _shares(label_counts)
        order = np.lexsort((-shares.max(1), shares.argmax(1)))
    elif binned:
        order = np.argsort(-examples, kind="stable")
    sums = np.add.reduceat(examples[order], edges[:-1])
    classes = None if label_counts is None else np.add.reduceat(label_counts[order], edges[:-1], axis=0)
    return {
        "clients": len(examples), "edges": edges.tolist(), "sorted": binned,
        "examples": (sums / np.diff(edges)).round(2).tolist(),
        "shares": None if classes is None else _shares(classes).round(4).tolist(),
        "names": list(v.class_names),
        "table": report.partition_table(label_counts, examples, validation),
    }  # fmt: skip


def _shares(label_counts: np.ndarray) -> np.ndarray:
    """The share of each class in each row [N, C]; of an empty row zeros."""
    return label_counts / np.maximum(1, label_counts.sum(1, keepdims=True))


def compare(catalog: Catalog, ats: Sequence[str], axis: curves.Axis, target: float | None) -> Json:
    """Runs side by side: groups that differ in more than the seed, with mean and spread."""
    ats = list(dict.fromkeys(ats))
    if len(ats) > MOST_COMPARED:
        raise BadInput(f"{len(ats):,} runs are to be compared; at most {MOST_COMPARED} are at once")
    views = {at: catalog.view(catalog.folder(at)) for at in ats}
    if not views:
        raise BadInput("no runs are chosen; choose some in the list")
    groups = report.group(list(views.values()))
    goal, origin = report.chosen_target(groups, target)
    header, rows = report.comparison_of(groups, goal)
    keys = list(dict.fromkeys(k for g in groups for k in g.fields))
    owner = {id(v): g.label for g in groups for v in g.runs}
    return {
        "axes": [[a, curves.AXES[a]] for a in curves.axes(groups)],
        "target": goal, "target_from": origin,
        "table": {"header": header, "rows": rows},
        "differences": {
            "header": ["setting", *(g.label for g in groups)],
            "rows": [[k, *(leaf(g.fields[k]) if k in g.fields else "" for g in groups)] for k in keys],
        },
        "runs": [
            {
                "at": at, "group": owner.get(id(v), "not counted: repeats a seed"),
                "seed": leaf(v.settings.get("seed")), "done": len(v.round), "planned": v.planned,
                "state": state_of(v),
            }
            for at, v in views.items()
        ],
        "learning": [charts.panel(p) for p in curves.learning(groups, axis, goal)],
        "alignment": [charts.panel(p) for p in curves.alignment(groups, axis)],
    }  # fmt: skip


def state_of(v: RunView) -> str:
    """running, finished, stopped, diverged, below_quorum or failed."""
    return "running" if is_running(v.path) else "stopped" if v.state == "unfinished" else v.state


def _alone(v: RunView) -> report.Group:
    return report.Group(v.name, {}, (v,))


def _settings(settings: report.Settings) -> list[list[str]]:
    return [[key, leaf(value)] for key, value in settings.items()]


def forks(catalog: Catalog, at: str, wait_s: float) -> list[str]:
    """The runs that were forked from this one, as far as the list is read within `wait_s`."""
    catalog.folder(at)
    rows, _ = catalog.rows(wait_s)
    return [row.at for row in rows if row.parent == at]


def _lineage(folder: Path, at: str) -> Json:
    """From which run this one was forked, and what changed on the way."""
    record = storage.read_json(folder / "experiment.json")
    origin = record.get("forked_from")
    return {
        "parent": origin if isinstance(origin, dict) else None,
        "changes": list(record["experiment"].get("changes") or ()),
        "sweep": at.partition("/trials/")[0] if "/trials/" in at else None,
    }


def _commands(catalog: Catalog, folder: Path, at: str, v: RunView, state: str) -> list[list[str]]:
    """What to type to go on with the run, to repeat it, to report and to cite it."""
    place = f"{catalog.root}/{at}"
    run, record = shlex.quote(place), shlex.quote(f"{place}/experiment.json")
    found = [["repeat", f"raygrad run {record}"]]
    if state in ("stopped", "below_quorum", "failed"):
        found.insert(0, ["resume", f"raygrad resume {run}"])
    if state == "finished":
        found.append(["extend", f"raygrad resume {run} --rounds {2 * v.planned}"])
    return [*found, *([word, f"raygrad {word} {run}"] for word in ("report", "digest", "cite"))]


def _sweep_commands(catalog: Catalog, at: str, state: str, best: Sequence[str]) -> list[list[str]]:
    """What to type to go on with a sweep, to report it, and to repeat its best settings."""
    place = shlex.quote(f"{catalog.root}/{at}")
    found = [["go on with the sweep", f"raygrad sweep --resume {place}"]] if state == "stopped" else []
    found.append(["report the sweep", f"raygrad report {place}"])
    return [*found, *(["repeat the best settings", line] for line in best)]


def sweep(catalog: Catalog, at: str) -> Json:
    """A sweep's page."""
    from raygrad.reports import sweep_report
    from raygrad.sweeps.sweep import load

    folder = catalog.folder(at, "sweep")
    loaded = load(folder)
    row = sweep_row(folder, at)
    state = "running" if is_running(folder) else row.state
    found = sweep_report.trials(loaded) if row.done else []
    values = np.array([t.value for t in found])
    again = [b.command for b in sweep_report.best(loaded)] if found else []
    header, best = sweep_report.table(loaded) if found else ([], [])
    maps = sweep_report.maps(loaded, found)
    learning = sweep_report.learning(loaded, found) if found else None
    axes = sweep_report.parallel(loaded, found)
    measure = loaded.sweep.measure
    trials = sweep_report.listed(loaded, found)
    return {
        "at": at, "name": loaded.name, "state": state, "over": row.done, "planned": row.planned,
        "what": sweep_report.searched(loaded, found),
        "best": {"header": header, "rows": best},
        "commands": _sweep_commands(catalog, at, state, again),
        "maps": [charts.value_map(m, maps.x_label, maps.y_label, measure) for m in maps.panels] if maps else [],
        "sensitivity": [charts.scatter(s, measure) for s in sweep_report.sensitivity(loaded, found)],
        "learning": [charts.panel(learning)] if learning else [],
        "parallel": charts.parallel(axes, values, measure) if len(axes) > 1 else None,
        "trials": {
            "header": [*trials.header, "runs"], "rows": trials.rows,
            "runs": [list(t.runs) for t in sweep_report.ranked(loaded, found)],
        },
    }  # fmt: skip
