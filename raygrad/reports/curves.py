"""The curves of runs as panels, for every page that shows them: accuracy, loss and alignment against what was spent.

A group's curve is the mean over its seeds where all of them have spent equally many communications; its band goes from
the least to the largest. Any of the axes may be chosen for any panel.
"""

from collections.abc import Collection, Sequence
from functools import reduce
from typing import Literal

import numpy as np

from raygrad.reports import report
from raygrad.reports.pictures import Curve, Panel
from raygrad.reports.report import Group, Measure, RunView

Axis = Literal["round", "communications", "megabytes", "seconds", "virtual_s"]
Curved = Measure | Literal["train_loss"]
Line = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]
"""x, mean, least and largest (None for a single seed), each [p]."""

AXES: dict[Axis, str] = {
    "round": "rounds",
    "communications": "communications",
    "megabytes": "MB sent, both directions",
    "seconds": "wall seconds",
    "virtual_s": "virtual seconds",
}
"""The axes and their labels."""

SHOWN_GROUPS = 10
"""So many groups have a colour; the others are grey."""

PROBE_PANELS = (
    ("r(x)", ("r",), True),
    ("‖∇r(x)‖", ("r_gradient_norm",), True),
    ("gradient diversity n·Δ", ("diversity",), True),
    ("mean cosine of client gradients", ("cosine", "pairwise_cosine"), False),
    ("client drift", ("drift",), True),
    ("accuracy per client", ("client_accuracy", "worst_accuracy"), False),
    ("weighted gradient diversity Λ", ("weighted_diversity",), True),
    ("batch that pays, B(x)", ("batch_bound",), True),
)
"""Title, measures, and whether a log scale may be taken, of each panel about one run's probes."""
_ASIDE = {"pairwise_cosine": ("between two clients", 1), "worst_accuracy": ("worst tenth of the clients", 2)}
"""Label and look of the curves that share a panel with one of all clients."""


def axes(groups: Sequence[Group]) -> list[Axis]:
    """The axes on which something can be shown: wall seconds where recorded, virtual ones where time is modelled."""
    views = [v for g in groups for v in g.runs]
    found: list[Axis] = ["round", "communications", "megabytes"]
    if any(np.isfinite(v.seconds).any() for v in views):
        found.append("seconds")
    if any(v.modelled for v in views):
        found.append("virtual_s")
    return found


def spent(v: RunView, axis: Axis) -> np.ndarray:
    """What a run had spent at the end of each round [R]."""
    if axis == "megabytes":
        return (v.bytes_down + v.bytes_up) / 1e6
    return getattr(v, axis)


def learning(groups: Sequence[Group], axis: Axis, target: float | None = None) -> list[Panel]:
    """Accuracy and loss over an axis; of a single run the training loss, too. Panels without any curve are left out.

    `target` is an accuracy to mark.
    """
    series, judged = looks(groups), report.judged(groups)
    alone = sum(len(g.runs) for g in groups) == 1
    named = [(g, judged if alone else g.label, s) for g, s in zip(groups, series, strict=True) if _has(g, axis)]

    def curve(g: Group, measure: Curved, label: str, look: int | None) -> Curve:
        return Curve(label, *mean_over_seeds(g, measure, axis), look)

    losses = [curve(g, "loss", label, s) for g, label, s in named]
    if alone:
        losses += [curve(g, "train_loss", "training", 1) for g, _, _ in named]
    title = f"{judged} accuracy" + (" (paper's protocol)" if judged == "test" else "")
    panels = [
        Panel(title, AXES[axis], [curve(g, "accuracy", label, s) for g, label, s in named], target),
        Panel("loss" if alone else f"{judged} loss", AXES[axis], losses, log=True),
    ]
    return [p for p in panels if any(len(c.y) for c in p.curves)]


def alignment(groups: Sequence[Group], axis: Axis, only: Collection[str] = ()) -> list[Panel]:
    """What the probes measured over an axis, all of it or `only` some of `report.PROBED`: measures that belong together
    share a panel of a single run.
    """
    probed = [g for g in groups if any(len(v.probes.round) for v in g.runs) and _has(g, axis)]
    measured = {name for g in probed for v in g.runs for name in v.probes.named}
    alone = sum(len(g.runs) for g in groups) == 1
    series = dict(zip(map(id, groups), looks(groups), strict=True))
    logs = {name: log for _, names, log in PROBE_PANELS for name in names}
    together = PROBE_PANELS if alone else [(title, (name,), logs[name]) for name, title in report.PROBED.items()]
    panels = []
    for title, names, log in together:
        if only and not {*names} & {*only}:
            continue
        curves = [
            Curve(label, *mean_probe(g, name, axis), look)
            for name in names
            if name in measured
            for g in probed
            for label, look in [_ASIDE.get(name, ("all clients", 0)) if alone else (g.label, series[id(g)])]
        ]
        if any(len(c.y) for c in curves):
            panels.append(Panel(_counted(title, probed), AXES[axis], curves, log=log))
    return panels


def looks(groups: Sequence[Group]) -> list[int | None]:
    """Which look each group's curves have: the best groups have colours, the others are grey."""
    measure = report.judging(groups)
    sign = 1 if measure == "loss" else -1
    best = [min((sign * b[1] for v in g.runs if (b := v.best(measure)) is not None), default=np.inf) for g in groups]
    leading = sorted(sorted(range(len(groups)), key=lambda i: best[i])[:SHOWN_GROUPS])
    return [leading.index(i) if i in leading else None for i in range(len(groups))]


def mean_over_seeds(g: Group, measure: Curved, axis: Axis) -> Line:
    """The group's curve where all its seeds were measured; what was spent is the mean over seeds, too."""
    at = [np.flatnonzero(np.isfinite(getattr(v, measure))) for v in g.runs]
    common = _common([v.communications[i] for v, i in zip(g.runs, at, strict=True)])
    at = [i[c] for i, c in zip(at, common, strict=True)]
    rows = np.stack([getattr(v, measure)[i] for v, i in zip(g.runs, at, strict=True)])
    return _line(np.stack([spent(v, axis)[i] for v, i in zip(g.runs, at, strict=True)]).mean(0), rows)


def mean_probe(g: Group, measure: str, axis: Axis) -> Line:
    """The group's curve of one alignment measure where all its seeds have the same communications."""
    common = _common([_by_then(v.communications, v) for v in g.runs])
    rows = np.stack([v.probes.values[measure][i] for v, i in zip(g.runs, common, strict=True)])
    xs = [_by_then(spent(v, axis), v)[i] for v, i in zip(g.runs, common, strict=True)]
    return _line(np.stack(xs).mean(0), rows)


def _has(g: Group, axis: Axis) -> bool:
    """Whether the group has a place on the axis: without a device model there are no virtual seconds."""
    return axis != "virtual_s" or all(v.modelled for v in g.runs)


def _counted(title: str, groups: Sequence[Group]) -> str:
    """The title with the number of clients that were measured, where it matters."""
    if "n·Δ" not in title:
        return title
    counts = sorted({int(n) for g in groups for v in g.runs for n in np.unique(v.probes.clients)})
    return f"{title} (n = {' or '.join(f'{n:,}' for n in counts)})"


def _by_then(spent: np.ndarray, v: RunView) -> np.ndarray:
    """What was `spent` [R] by the end of each round that was probed (0 before the first round)."""
    return np.concatenate([[0], spent])[np.searchsorted(v.round, v.probes.round, "right")]


def _common(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each of the ascending `xs`, where it has the values that all of them have."""
    shared = reduce(np.intersect1d, xs)
    return [np.searchsorted(x, shared) for x in xs]


def _line(x: np.ndarray, rows: np.ndarray) -> Line:
    x = x.astype(np.float64)
    return (x, rows.mean(0), None, None) if len(rows) == 1 else (x, rows.mean(0), rows.min(0), rows.max(0))
