"""The HTML page about one run or several: tables, pictures and how to repeat it, in one self-contained file."""

from collections.abc import Sequence
from functools import reduce
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.compute as pc

from raygrad import html, pictures, report, tables, turnout
from raygrad.report import PAPER_PROTOCOL, Group, Measure, RunView, leaf, number, score

if TYPE_CHECKING:
    pass

_SHOWN_GROUPS = 10


def write_report(runs: Sequence[Path], out: Path, target: float | None = None) -> Path:
    """Write one self-contained HTML file about `runs` and return its path.

    One run: its settings, its table and its pictures. Several: groups by what differs, mean and spread over seeds, and
    the cost of reaching the `target` accuracy (by default `report.common_target`). `out` is the file, or a folder for
    report.html. The same folders give the same bytes. Raises BadInput.
    """
    views = report.views(runs)
    page = _one(views[0]) if len(views) == 1 else _several(views, target)
    return html.write(page, out)


def _one(v: RunView) -> str:
    alone = [Group(v.name, {}, (v,))]
    repeat = f"raygrad run experiment.json\nraygrad resume {v.title}\nraygrad digest {v.title}"
    parts = [
        f"<h1>{escape(v.name)}</h1>",
        f'<p class="sub">run {escape(v.title)} · experiment {escape(v.hash[:12])}</p>',
        html.table([], report.summary_of(v), "What the run did"),
        *_learning(alone, None),
        *_alignment(alone),
        *_participation(v),
        *_partitioned(v),
        "<h2>Settings</h2>",
        html.details("Experiment", v.settings, opened=True),
        html.details("Machines", v.where),
        html.details("Numerics", v.numerics),
        "<h2>How to repeat it</h2>",
        "<p>The first line, in the run's folder, trains the same model again. The second continues the run where it "
        "stopped (with <code>--rounds</code>, up to a larger total). The third prints one line, which is the same for "
        f"runs with the same result.</p><pre>{escape(repeat)}</pre>",
        html.CITED,
    ]
    return html.document(v.title, parts)


def _several(views: Sequence[RunView], target: float | None) -> str:
    groups = report.group(views)
    goal, origin = report.chosen_target(groups, target)
    header, rows = report.comparison_of(groups, goal)
    owner = {id(v): g.label for g in groups for v in g.runs}
    runs = [
        [
            v.title,
            owner.get(id(v), "not counted: repeats a seed"),
            leaf(v.settings.get("seed")),
            f"{len(v.round):,}" if v.finished else f"{len(v.round):,} of {v.planned:,}",
            _place(v),
            v.hash[:12],
        ]
        for v in views
    ]
    differing = {k for g in groups for k in g.fields} | {"seed"}
    shared = {k: x for k, x in views[0].settings.items() if k not in differing}
    title = f"{len(views)} runs, {_groups(len(groups))}"
    measure = report.judging(groups)
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="sub">{escape(", ".join(sorted({v.name for v in views})))}</p>',
        html.table(header, rows, measure.capitalize() if goal is None else f"Cost and {measure}"),
        f'<p class="note">{escape(_protocol(groups, goal, origin))}</p>',
        *_learning(groups, goal),
        *_alignment(groups),
        "<h2>Groups</h2>",
        _fields(groups),
        html.table(["run", "group", "seed", "rounds", "on", "experiment"], runs, "Runs"),
        html.details("What all runs share", shared),
        "<h2>How to repeat it</h2>",
        "<p>In the folder of a run:</p><pre>raygrad run experiment.json</pre>",
        html.CITED,
    ]
    return html.document(title, parts)


def _groups(count: int) -> str:
    return f"{count} {'group' if count == 1 else 'groups'}"


def _place(v: RunView) -> str:
    """On what a run ran."""
    on, hosts = leaf(v.where.get("on")), v.where.get("hosts")
    return f"{on}, {leaf(hosts)} hosts" if on == "ray" and hosts is not None else on


def _protocol(groups: Sequence[Group], goal: float | None, origin: str) -> str:
    """How the numbers of a comparison were made."""
    views = [v for g in groups for v in g.runs]
    measure = report.judging(groups)
    said = [
        f"Target accuracy {goal:g}: {origin}." if goal is not None else "No run has an accuracy to set a target by."
    ]
    if any(not v.paper for v in views):
        said.append(
            f"Validation {measure} is measured on parts of the clients' shards; the test set is used once, at the end."
        )
    if any(v.paper for v in views):
        said.append(f"Test {measure} ({PAPER_PROTOCOL}).")
    said.append("Mean ± sample standard deviation over seeds.")
    if goal is not None:
        said.append("MB: both directions together.")
    if len({_place(v) for v in views}) > 1:
        said.append("The runs did not all use the same machines: compare their seconds with care.")
    if any(v.modelled for v in views):
        said.append("Virtual seconds: of the modelled clock.")
    return " ".join(said)


# --- the pictures on the page

Axis = Literal["communications", "seconds", "virtual_s"]
ProbeAxis = Literal["communications", "virtual_s"]
Curved = Measure | Literal["train_loss"]


def _learning(groups: Sequence[Group], target: float | None) -> list[str]:
    """Accuracy and loss over communications and seconds; of a single run the training loss, too."""
    views = [v for g in groups for v in g.runs]
    if not any(len(v.round) for v in views):
        return ["<p>No round is finished yet.</p>"]
    series, judged = _series(groups), report.judged(groups)
    axes: dict[Axis, str] = {"communications": "communications"}
    if any(np.isfinite(v.seconds).any() for v in views):
        axes["seconds"] = "wall seconds"
    if any(v.modelled for v in views):
        axes["virtual_s"] = "virtual seconds"

    def panels(title: str, curves: Sequence[tuple[Group, Curved, str, int | None]], line: float | None, log: bool):
        drawn = [(g, _mean_over_seeds(g, what, list(axes)), label, colour) for g, what, label, colour in curves]
        return [
            pictures.Panel(
                title,
                text,
                [pictures.Curve(label, *curve[axis], colour) for g, curve, label, colour in drawn if _has(g, axis)],
                line,
                log,
            )
            for axis, text in axes.items()
        ]

    alone = len(views) == 1
    labels = [judged if alone else g.label for g in groups]
    named = list(zip(groups, labels, series, strict=True))
    losses: list[tuple[Group, Curved, str, int | None]] = [(g, "loss", label, s) for g, label, s in named]
    if alone:
        losses.append((groups[0], "train_loss", "training", 1))
    title = f"{judged} accuracy" + (" (paper's protocol)" if judged == "test" else "")
    rows = [
        panels(title, [(g, "accuracy", label, s) for g, label, s in named], target, False),
        panels("loss" if alone else f"{judged} loss", losses, None, True),
    ]
    grid = [row for row in rows if any(len(curve.y) for panel in row for curve in panel.curves)]
    if not grid:
        return ["<h2>Learning</h2>", "<p>Nothing is measured yet.</p>"]
    what = "Accuracy and loss" if len(grid) == 2 else "Loss"
    caption = _told(views[0]) if alone else f"{what} of {_groups(len(groups))}. {_legend(groups, series)}"
    if target is not None:
        caption += f" The dotted line is the target, {target:g}."
    return ["<h2>Learning</h2>", html.figure(pictures.lines(grid), "learning", "Learning", caption)]


def _told(v: RunView) -> str:
    """The learning curves of one run in words."""
    measure = report.judging([Group("", {}, (v,))])
    values, best = getattr(v, measure), v.best(measure)
    said = []
    if best is not None:
        at = np.flatnonzero(np.isfinite(values))
        said.append(
            f"{v.part.capitalize()} {measure}{f' ({PAPER_PROTOCOL})' if v.paper else ''}: from {score(values[at[0]])} "
            f"to {score(values[at[-1]])} in {v.communications[at[-1]]:,} communications; the best is {score(best[1])}, "
            f"in round {best[0]:,}."
        )
    said.append("Training loss: mean over the clients that took part in a round.")
    return " ".join(said)


_PANELS = (
    ("r(x)", ("r",), True),
    ("‖∇r(x)‖", ("r_gradient_norm",), True),
    ("gradient diversity n·Δ", ("diversity",), True),
    ("mean cosine of client gradients", ("cosine", "pairwise_cosine"), False),
    ("client drift", ("drift",), True),
    ("accuracy per client", ("client_accuracy", "worst_accuracy"), False),
    ("weighted gradient diversity Λ", ("weighted_diversity",), True),
    ("batch that pays, B(x)", ("batch_bound",), True),
)
"""Title, measures, and whether a log scale may be taken, of each panel about one run."""
_ASIDE = {"pairwise_cosine": ("between two clients", 1), "worst_accuracy": ("worst tenth of the clients", 2)}
"""Label and look of the curves that share a panel with one of all clients."""


def _alignment(groups: Sequence[Group]) -> list[str]:
    """What the probes measured, over communications and virtual seconds, and what theory says of a single run."""
    views = [v for g in groups for v in g.runs]
    known = _theory(views[0]) if len(views) == 1 else ""
    probed = [v for v in views if len(v.probes.round)]
    if not probed:
        return ["<h2>Gradient alignment</h2>", known] if known else []
    measured = {name for v in probed for name in v.probes.named}
    counts = sorted({int(n) for v in probed for n in np.unique(v.probes.clients)})
    clients = " or ".join(f"{n:,}" for n in counts)
    caption = _measures(clients, measured)
    axes: dict[ProbeAxis, str] = {"communications": "communications"}
    if any(v.modelled for v in views):
        axes["virtual_s"] = "virtual seconds"
    panels: dict[ProbeAxis, list[pictures.Panel]] = {axis: [] for axis in axes}
    if len(views) == 1:
        for axis, text in axes.items():
            for title, names, log in _PANELS:
                curves = [
                    pictures.Curve(label, *_mean_probe(groups[0], name, axis), look)
                    for name in names
                    for label, look in (_ASIDE.get(name, ("all clients", 0)),)
                    if name in measured
                ]
                if curves:
                    panels[axis].append(pictures.Panel(_counted(title, clients), text, curves, log=log))
        changes = [
            f"{report.PROBED[name]} {' to '.join(number(y) for _, y in views[0].probes.ends(name))}"
            for name in views[0].probes.named
        ]
        caption += f"Here: {', '.join(changes)}."
    else:
        series, logs = _series(groups), {name: log for _, names, log in _PANELS for name in names}
        for axis, text in axes.items():
            for name, title in report.PROBED.items():
                if name in measured:
                    curves = [
                        pictures.Curve(g.label, *_mean_probe(g, name, axis), s)
                        for g, s in zip(groups, series, strict=True)
                        if _has(g, axis)
                    ]
                    panels[axis].append(pictures.Panel(_counted(title, clients), text, curves, log=logs[name]))
        caption += _legend(groups, series)
    grid = []
    for some in panels.values():
        shown = [p for p in some if p.curves]
        grid += [shown[i : i + 3] for i in range(0, len(shown), 3)]
    drawing = html.figure(pictures.lines(grid), "alignment", "Gradient alignment", caption.strip())
    return ["<h2>Gradient alignment</h2>", drawing, known]


def _counted(title: str, clients: str) -> str:
    return f"{title} (n = {clients})" if "n·Δ" in title else title


def _measures(clients: str, measured: set[str]) -> str:
    """What the panels show."""
    said = [
        f"How well the gradients g_i of n = {clients} fixed clients agree, where g is their mean: "
        "r(x) = 1/(2n) Σ |g_i − g|², estimated for all clients; "
    ]
    if "r_gradient_norm" in measured:
        said.append("the norm of its gradient ∇r(x) = 1/n Σ H_i (g_i − g); ")
    said.append(
        "gradient diversity n·Δ = 1/n Σ |g_i|² / |g|², which is 1 where all gradients are equal; the mean cosine "
        "between g_i and g"
    )
    said.append(", and between g_i and g_j. " if "pairwise_cosine" in measured else ". ")
    if "drift" in measured:
        said.append(
            "Client drift: the root mean square distance of the clients' iterates from their mean, after the round's "
            "local steps of plain SGD from x. "
        )
    if "client_accuracy" in measured:
        said.append("Accuracy per client: the mean over clients, and over the worst tenth of them. ")
    return "".join(said)


def _theory(v: RunView) -> str:
    """The net alignment coefficient in a sentence, where it is known."""
    net = report.net_alignment(v)
    if net is None:
        return ""
    formula = "" if net.beta is None else "−αK(β − α(K−1)/2) = "
    said = (
        f"To second order, a round is K steps of gradient descent plus c ∇r(x), with c = {formula}"
        f"{net.coefficient:+.4g} at {net.at}; {net.meaning}."
    )
    if net.beta is not None:
        to_scaffold, to_sgd = report.matching_betas(net.alpha, net.steps)
        said += (
            f" β = α(K−1)/2 = {number(to_scaffold)} would align as much as SCAFFOLD (c = 0), β = αK/2 = "
            f"{number(to_sgd)} as much as sequential SGD (c = −Kα²/2)."
        )
    return f'<p class="note">{escape(said)}</p>'


def _participation(v: RunView) -> list[str]:
    table = tables.read(v.path, "clients", ["round", "client", "outcome"])
    table = table.filter(pc.field("outcome").is_null() | (pc.field("outcome") == "answered"))
    if not table.num_rows:
        return []
    clients, rounds = table["client"].to_numpy(), table["round"].to_numpy().astype(np.int64)
    population = max(v.population, int(clients.max()) + 1)
    last = int(max(v.round.max(initial=1), rounds.max()))
    figure = pictures.participation(clients, rounds, population, last)
    often = np.bincount(clients, minlength=population)
    least, most = int(often.min()), int(often.max())
    caption = (
        f"{int((often > 0).sum()):,} of {population:,} clients took part; a client took part in {least:,} to {most:,} "
        f"rounds, {often.mean():,.4g} on average. Blank: did not take part."
    )
    if least == most:
        caption = f"All {population:,} clients took part, each in {most:,} of {last:,} rounds."
    known = turnout.turnout(v.path, v.asynchronous)
    if not known.complete:
        caption += f" Taking part is an answer that counts; {known}."
    return ["<h2>Participation</h2>", html.figure(figure, "participation", "Who took part", caption), _leaning(v)]


def _leaning(v: RunView) -> str:
    """That an asynchronous run leans to fast clients, and how far."""
    found = turnout.leaning(v.path, population=v.population) if v.asynchronous else None
    if found is None:
        return ""
    said = "An asynchronous run leans to the data of fast clients, since whoever is done may begin again; here "
    return f'<p class="note">{escape(f"{said}{found}.")}</p>'


def _partitioned(v: RunView) -> list[str]:
    counts, examples, validation = report.partition_of(v)
    if not len(examples):
        return []
    rows = report.partition_table(counts, examples, validation)
    caption = "What each client trains on" + (", its validation part aside." if validation.any() else ".")
    if counts is not None:
        caption += " Blank: none of the class."
    told = "; ".join(f"{label}: {value}" for label, value in rows)
    drawing = html.figure(
        pictures.partition(counts, examples, v.class_names), "partition", "Clients and classes", caption, told
    )
    return ["<h2>Partition</h2>", drawing, html.table([], rows, "The partition")]


def _series(groups: Sequence[Group]) -> list[int | None]:
    """Which look each group's curves have: the best groups have colours, the others are grey."""
    measure = report.judging(groups)
    sign = 1 if measure == "loss" else -1
    best = [min((sign * b[1] for v in g.runs if (b := v.best(measure)) is not None), default=np.inf) for g in groups]
    leading = sorted(sorted(range(len(groups)), key=lambda i: best[i])[:_SHOWN_GROUPS])
    return [leading.index(i) if i in leading else None for i in range(len(groups))]


def _legend(groups: Sequence[Group], series: Sequence[int | None]) -> str:
    """What lines, bands and grey mean."""
    said = []
    if any(len(g.runs) > 1 for g in groups):
        said.append("Lines: means over seeds at equal communications; bands: from the least to the largest.")
    if None in series:
        worse = "lower accuracy" if report.judging(groups) == "accuracy" else "larger loss"
        said.append(f"Grey: the {_groups(series.count(None))} with {worse}.")
    return " ".join(said)


Line = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]
"""x, mean, least and largest (None for a single seed), each [p]."""


def _has(g: Group, axis: Axis) -> bool:
    """Whether the group has a place on the axis: without a device model there are no virtual seconds."""
    return axis != "virtual_s" or all(v.modelled for v in g.runs)


def _mean_over_seeds(g: Group, measure: Curved, axes: Sequence[Axis]) -> dict[Axis, Line]:
    """The group's curve where all its seeds were measured, over each axis; seconds are means, too."""
    at = [np.flatnonzero(np.isfinite(getattr(v, measure))) for v in g.runs]
    common = _common([v.communications[i] for v, i in zip(g.runs, at, strict=True)])
    at = [i[c] for i, c in zip(at, common, strict=True)]
    rows = np.stack([getattr(v, measure)[i] for v, i in zip(g.runs, at, strict=True)])
    xs: dict[Axis, np.ndarray] = {
        a: np.stack([getattr(v, a)[i] for v, i in zip(g.runs, at, strict=True)]).mean(0) for a in axes
    }
    return {a: _line(x, rows) for a, x in xs.items()}


def _mean_probe(g: Group, measure: str, axis: ProbeAxis) -> Line:
    """The group's curve of one alignment measure where all its seeds have the same communications; virtual seconds are
    means, too.
    """
    common = _common([_by_then(v.communications, v) for v in g.runs])
    rows = np.stack([v.probes.values[measure][i] for v, i in zip(g.runs, common, strict=True)])
    xs = [_by_then(getattr(v, axis), v)[i] for v, i in zip(g.runs, common, strict=True)]
    return _line(np.stack(xs).mean(0), rows)


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


def _fields(groups: Sequence[Group]) -> str:
    """What sets the groups apart, in full."""
    keys = list(dict.fromkeys(k for g in groups for k in g.fields))
    if not keys:
        return "<p>The runs differ in their seed only.</p>"
    rows = [[g.label, *(leaf(g.fields[k]) if k in g.fields else "" for k in keys)] for g in groups]
    return html.table(["group", *keys], rows, "What sets the groups apart")
