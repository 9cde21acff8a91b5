"""What a report says about one run or several: tables, pictures, how it was made and how to repeat it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from raygrad.files import tables
from raygrad.reports import curves, pictures, provenance, publish, report, turnout
from raygrad.reports.document import Code, Document, Folded, Heading, Part, Picture, Table, Words
from raygrad.reports.report import PAPER_PROTOCOL, Group, RunView, leaf, number, score
from raygrad.reports.timeline import slowest, timeline

_GROUPS_ACROSS = 6
"""Up to so many groups are the columns of a table of differences; more are its rows."""


def write_report(
    runs: Sequence[Path], out: Path, target: float | None = None, format: publish.Format | None = None
) -> Path:
    """Write a report about `runs` to `out` and return the path: one self-contained HTML file unless the ending of `out`
    or `format` says otherwise, see `publish.destination`.

    One run: its settings, its table and its pictures. Several: groups by what differs, mean and spread over seeds, and
    the cost of reaching the `target` accuracy (by default `report.common_target`). The same folders give the same
    bytes. Raises BadInput.
    """
    publish.destination(out, format)
    return publish.write(document(report.views(runs), target), out, format)


def document(views: Sequence[RunView], target: float | None = None) -> Document:
    """The report about runs that were read already."""
    return _one(views[0]) if len(views) == 1 else _several(views, target)


def _one(v: RunView) -> Document:
    alone = [Group(v.name, {}, (v,))]
    lineage = provenance.lineage(v)
    parts = [
        Table([], report.summary_of(v), "What the run did"),
        *_learning(alone, None),
        *_alignment(alone),
        *_participation(v),
        *_hosts(v),
        *_partitioned(v),
        Heading("Settings"),
        Folded("Experiment", v.settings, opened=True),
        Folded("Machines", v.where),
        *([Heading("Lineage"), Table([], lineage, "Where the run comes from")] if lineage else []),
        *_environment(v),
        Heading("How to repeat it"),
        Words(
            "The first line, in the run's folder, trains the same model again. The second continues the run where it "
            "stopped (with `--rounds`, up to a larger total). The third prints one line, which is the same for runs "
            "with the same result."
        ),
        Code(f"raygrad run experiment.json\nraygrad resume {v.title}\nraygrad digest {v.title}"),
        *_cited([v]),
    ]
    return Document(v.title, v.name, f"run {v.title} · experiment {v.hash[:12]}", parts)


def _environment(v: RunView, several: bool = False) -> list[Part]:
    rows = provenance.environment(v)
    if not rows:
        return []
    note = [Words(f"Of {v.title}; in what others differ stands above.", note=True)] if several else []
    return [Heading("Environment"), Table([], rows, "What was computed with"), *note]


def _cited(views: Sequence[RunView]) -> list[Part]:
    """The papers behind the runs, and their entries."""
    papers, entries, others = provenance.bibliography(views)
    said = f"{'This run stands' if len(views) == 1 else 'These runs stand'} on: {'; '.join(papers)}."
    if others:
        said += f" Of parts that are not raygrad's own ({', '.join(others)}) nothing is known here; cite them, too."
    return [Heading("Citation"), Words(said), Code("\n\n".join(entries))]


def _several(views: Sequence[RunView], target: float | None) -> Document:
    groups = report.group(views)
    goal, origin = report.chosen_target(groups, target)
    header, rows = report.comparison_of(groups, goal)
    owner = {id(v): g.label for g in groups for v in g.runs}
    runs = [
        [
            v.title,
            owner.get(id(v), "not counted: repeats a seed"),
            leaf(v.settings.get("seed")),
            v.rounds,
            _place(v),
            v.hash[:12],
        ]
        for v in views
    ]
    differing = {k for g in groups for k in g.fields} | {"seed"}
    shared = {k: x for k, x in views[0].settings.items() if k not in differing}
    title = f"{len(views):,} runs, {_groups(len(groups))}"
    measure = report.judging(groups)
    forks = [(v.title, f"{f.run} after round {f.round:,}") for v in views if (f := provenance.origin(v.path))]
    parts = [
        Table(header, rows, measure.capitalize() if goal is None else f"Cost and {measure}"),
        Words(_protocol(groups, goal, origin), note=True),
        *_learning(groups, goal),
        *_alignment(groups),
        Heading("Groups"),
        *_differences(groups),
        Table(["run", "group", "seed", "rounds", "on", "experiment"], runs, "Runs"),
        *([Table(["run", "forked from"], forks, "Lineage")] if forks else []),
        Folded("What all runs share", shared),
        *_environment(views[0], several=True),
        Heading("How to repeat it"),
        Words("In the folder of a run:"),
        Code("raygrad run experiment.json"),
        *_cited(views),
    ]
    return Document(title, title, ", ".join(sorted({v.name for v in views})), parts)


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


# --- the pictures


def _in_rows(panels: Sequence[pictures.Panel]) -> list[Sequence[pictures.Panel]]:
    """Panels in rows of three; four stand in one row."""
    width = 4 if len(panels) == 4 else 3
    return [panels[i : i + width] for i in range(0, len(panels), width)]


def _by_measure(panels: Sequence[pictures.Panel]) -> list[Sequence[pictures.Panel]]:
    """Panels over several axes in rows, each measure's beside each other."""
    titles = dict.fromkeys(p.title for p in panels)
    return [row for title in titles for row in _in_rows([p for p in panels if p.title == title])]


def _learning(groups: Sequence[Group], target: float | None) -> list[Part]:
    """Accuracy and loss over everything that a run spends; of a single run the training loss, too."""
    views = [v for g in groups for v in g.runs]
    if not any(len(v.round) for v in views):
        return [Words("No round is finished yet.")]
    drawn = [
        replace(p, y_label="share of examples" if "accuracy" in p.title else "loss")
        for axis in curves.axes(groups)
        for p in curves.learning(groups, axis, target)
    ]
    if not drawn:
        return [Heading("Learning"), Words("Nothing is measured yet.")]
    what = "Accuracy and loss" if any("accuracy" in p.title for p in drawn) else "Loss"
    alone = len(views) == 1
    caption = _told(views[0]) if alone else f"{what} of {_groups(len(groups))}. {_legend(groups)}"
    if target is not None:
        caption += f" The dotted line is the target, {target:g}."
    drawing = pictures.lines(_by_measure(drawn))
    return [Heading("Learning"), Picture("learning", "Learning", caption.strip(), drawing)]


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


def _alignment(groups: Sequence[Group]) -> list[Part]:
    """What the probes measured, over what the runs spent, and what theory says of a single run."""
    views = [v for g in groups for v in g.runs]
    known = _theory(views[0]) if len(views) == 1 else []
    probed = [v for v in views if len(v.probes.round)]
    if not probed:
        return [Heading("Gradient alignment"), *known] if known else []
    counts = sorted({int(n) for v in probed for n in np.unique(v.probes.clients)})
    caption = _measures(" or ".join(f"{n:,}" for n in counts), {name for v in probed for name in v.probes.named})
    if len(views) == 1:
        ends = views[0].probes.ends
        changes = [f"{report.PROBED[n]} {' to '.join(number(y) for _, y in ends(n))}" for n in views[0].probes.named]
        caption += f"Here: {', '.join(changes)}."
    else:
        caption += _legend(groups)
    drawn = pictures.lines(_in_rows(curves.alignment(groups, "communications")))
    parts: list[Part] = [Picture("alignment", "Gradient alignment", caption.strip(), drawn)]
    others: list[curves.Axis] = [a for a in curves.axes(groups) if a != "communications"]
    cost = [p for a in others for p in curves.alignment(groups, a, ("r", "diversity"))]
    if cost:
        caption = "r(x) and gradient diversity as above, over everything else that was spent. "
        caption += "" if len(views) == 1 else _legend(groups)
        title = "Gradient alignment and what it cost"
        parts.append(Picture("alignment-cost", title, caption.strip(), pictures.lines(_by_measure(cost))))
    return [Heading("Gradient alignment"), *parts, *known]


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
    if "weighted_diversity" in measured:
        said.append("Weighted diversity: Λ = Σ q_i |g_i|² / |Σ q_i g_i|², q_i the client's share of the examples. ")
    if "batch_bound" in measured:
        said.append("B(x): how many examples there are, times the diversity of their gradients. ")
    return "".join(said)


def _theory(v: RunView) -> list[Part]:
    """The net alignment coefficient in a sentence, where it is known."""
    net = report.net_alignment(v)
    if net is None:
        return []
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
    return [Words(said, note=True)]


def _participation(v: RunView) -> list[Part]:
    table = tables.read(v.path, "clients", ["round", "client", "outcome"])
    table = table.filter(pc.field("outcome").is_null() | (pc.field("outcome") == "answered"))
    if not table.num_rows:
        return []
    clients, rounds = table["client"].to_numpy(), table["round"].to_numpy().astype(np.int64)
    turnout.check(v.path, rounds, clients, v.population)
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
    return [Heading("Participation"), Picture("participation", "Who took part", caption, figure), *_leaning(v)]


def _leaning(v: RunView) -> list[Part]:
    """That an asynchronous run leans to fast clients, and how far."""
    found = turnout.leaning(v.path, population=v.population) if v.asynchronous else None
    if found is None:
        return []
    said = "An asynchronous run leans to the data of fast clients, since whoever is done may begin again; here "
    return [Words(f"{said}{found}.", note=True)]


def _hosts(v: RunView) -> list[Part]:
    """Which host worked when, with faults and stragglers."""
    found = timeline(v.path)
    if not len(found):
        return []
    slow = slowest(found)
    begin, end = found.span
    again = int((found.attempt > 1).sum())
    counts = np.bincount(found.outcome, minlength=len(found.outcomes))[1:]
    kinds = [f"{n:,} {name}" for name, n in zip(found.outcomes[1:], counts, strict=True) if n]
    count = len(found.hosts)
    kinds = [
        f"not answered: {', '.join(kinds)}" if kinds else "all answered",
        *([f"{again:,} made again"] * (again > 0)),
    ]
    said = [
        f"{len(found):,} attempts at gangs on {count:,} {'host' if count == 1 else 'hosts'} in {end - begin:,.4g} wall "
        f"seconds; {', '.join(kinds)}."
    ]
    if len(found) > pictures.MAX_BARS:
        said.append("Shades: the share of each stretch of time in which a host worked.")
    else:
        said.append("A bar is a gang.")
    said.append("Below: of each host the median and the 5th to 95th percentile of its gangs' seconds")
    if len(slow[0]):
        worst = int(slow[1].argmax())
        said[-1] += (
            f"; and how many times the median gang of a phase its slowest one took: {np.median(slow[1]):.3g} in the "
            f"median round, {slow[1][worst]:.3g} in round {slow[0][worst]:,}"
        )
    said[-1] += "."
    drawing = pictures.timeline(found, slow)
    return [Heading("Hosts"), Picture("hosts", "Hosts, faults and stragglers", " ".join(said), drawing)]


def _partitioned(v: RunView) -> list[Part]:
    counts, examples, validation = report.partition_of(v)
    if not len(examples):
        return []
    rows = report.partition_table(counts, examples, validation)
    caption = "What each client trains on" + (", its validation part aside." if validation.any() else ".")
    if counts is not None:
        caption += " Blank: none of the class."
    told = "; ".join(f"{label}: {value}" for label, value in rows)
    drawing = pictures.partition(counts, examples, v.class_names)
    return [
        Heading("Partition"),
        Picture("partition", "Clients and classes", caption, drawing, told),
        Table([], rows, "The partition"),
    ]


def _legend(groups: Sequence[Group]) -> str:
    """What lines, bands and grey mean."""
    said, series = [], curves.looks(groups)
    if any(len(g.runs) > 1 for g in groups):
        said.append("Lines: means over seeds at equal communications; bands: from the least to the largest.")
    if None in series:
        worse = "lower accuracy" if report.judging(groups) == "accuracy" else "larger loss"
        said.append(f"Grey: the {_groups(series.count(None))} with {worse}.")
    return " ".join(said)


def _differences(groups: Sequence[Group]) -> list[Part]:
    """In what the groups differ, in full: settings, machines and numerics."""
    found = provenance.differences(groups)
    keys = {k for g in groups for k in g.fields}
    parts: list[Part] = [] if keys else [Words("The runs differ in their seed only.")]
    if not found:
        return parts
    labels = [g.label for g in groups]
    if len(groups) <= _GROUPS_ACROSS:
        return [*parts, Table(["setting", *labels], [[name, *values] for name, values in found], "Differences")]
    rows = [[label, *(values[i] for _, values in found)] for i, label in enumerate(labels)]
    return [*parts, Table(["group", *(name for name, _ in found)], rows, "Differences")]
