"""The pictures of reports, drawn with matplotlib from plain arrays.

A picture's bytes depend on its data alone: no date, no random ids, none of the user's matplotlib settings. The colours
are those of Okabe and Ito, which people with any of the common colour blindnesses tell apart. `inline` turns each of
them into a CSS variable, so that a page shows the same drawing on a light and on a dark ground.
"""

import io
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raygrad.errors import BadInput
from raygrad.reports.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_POINTS = 2000
"""A curve is drawn with at most so many points."""
MAX_CLIENTS = 200
"""More clients than these share rows or columns of a picture."""
MAX_ROUNDS = 400
MAX_BARS = 400
"""So many attempts at gangs are drawn one by one; more as the share of the time in which a host worked."""
_MAX_MARKS = 2000
_PANEL_POINTS = 40_000  # of all curves in a panel together
_MAX_GREY = 100  # more grey curves than these are drawn as one image
_DPI = 200
_TITLES = 108  # characters of the titles of a row of panels, beyond which they go on in a second line
_BARS = 50  # up to so many clients have bars that stand apart

INK, MUTED, GRID, PAPER = "#1c1b1a", "#6d6b67", "#deddd8", "#fefefd"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_SERIES_DARK = ("#4a9fe0", "#f07c35", "#21bd90", "#dd93bd", "#f2bb45", "#93d3f7")
_Line = Literal["-", "--", "-.", ":"]
_LINES: tuple[_Line, ...] = ("-", "--", "-.", ":")

VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    c: f"--s{i}" for i, c in enumerate(SERIES)
}
"""Which CSS variable stands for which colour of a drawing."""
LIGHT = {name: colour for colour, name in VARIABLES.items()}
DARK = {"--ink": "#ecebe7", "--muted": "#a9a7a1", "--grid": "#3a3936", "--paper": "#191817"} | {
    f"--s{i}": c for i, c in enumerate(_SERIES_DARK)
}
"""The variables' values on a light and on a dark ground."""

_STYLE: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "image.composite_image": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "raygrad",
}


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: `y` [p] over `x` [p], with the band between `low` and `high` [p] where they are given.

    `series` picks colour and line style; None draws a thin grey line without a name. Points with NaN are left out.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    series: int | None = 0


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes with curves; `line` is a horizontal mark (a target). Large positive ranges get a log scale.

    With `log_x` the x axis goes by doublings; all x are above 0 then. `y_label` is written where the panel is the first
    of its row.
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    line: float | None = None
    log: bool = False
    log_x: bool = False
    y_label: str = ""


@dataclass(frozen=True, eq=False)
class Map:
    """Values [n] at points `x`, `y` [n]; NaN is a trial that has none."""

    title: str
    x: np.ndarray
    y: np.ndarray
    value: np.ndarray
    log_x: bool = False


@dataclass(frozen=True, eq=False)
class Scatter:
    """Groups of points: label, x, y and the line (x, y) that joins the best. `series` picks each label's look."""

    title: str
    groups: Sequence[tuple[str, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]
    series: Mapping[str, int]
    log_x: bool = False


@dataclass(frozen=True, eq=False)
class Axis:
    """One of the parallel coordinates: where each trial lies on it, `position` [n] in 0 .. 1, and its marks."""

    name: str
    position: np.ndarray
    ticks: Sequence[tuple[float, str]]


def thin(y: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """The indices of at most `limit` of the points `y` [p], in order: both ends, each stretch's least and largest."""
    if len(y) <= limit:
        return np.arange(len(y))
    buckets = np.array_split(np.arange(1, len(y) - 1), (limit - 2) // 2)
    low = [b[0] + int(np.argmin(y[b])) for b in buckets]
    high = [b[0] + int(np.argmax(y[b])) for b in buckets]
    return np.unique(np.array([0, *low, *high, len(y) - 1]))


def bins(n: int, limit: int) -> np.ndarray:
    """The edges of at most `limit` bins of nearly equal size that cover 0 .. n: [bins + 1] int64."""
    return np.linspace(0, n, min(n, limit) + 1).astype(np.int64)


def lines(grid: Sequence[Sequence[Panel]]) -> "Figure":
    """Panels in rows and columns, with one legend for all. Panels of a row with the same title share the y axis."""
    with _styled():
        from matplotlib.figure import Figure

        columns = max(len(row) for row in grid)
        figure = Figure(figsize=(9.2, 2.6 * len(grid) + 0.3), layout="constrained")
        for i, row in enumerate(grid):
            first: Axes | None = None
            for j, panel in enumerate(row):
                shared = first if first is not None and row[0].title == panel.title else None
                axes = figure.add_subplot(len(grid), columns, i * columns + j + 1, sharey=shared)
                _draw(axes, panel, first is None)
                axes.set_title(fill(panel.title, _TITLES // columns))
                first = first or axes
        names = {c.label: c for row in grid for p in row for c in p.curves if c.series is not None}
        if len(names) > 1:
            handles = [_handle(c) for c in names.values()]
            widest = max(len(name) for name in names)
            figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(4, 110 // (widest + 8))))
        layout = figure.get_layout_engine()
        if len(grid) > 1 and layout is not None:
            layout.set(h_pad=0.09)  # pyright: ignore[reportCallIssue]
        return figure


def participation(clients: np.ndarray, rounds: np.ndarray, population: int, last: int) -> "Figure":
    """Who took part: an image clients x rounds, and how many clients took part how often.

    `clients` and `rounds` [a] are the client (from 0) and the round (from 1) of each answer, `population` is the number
    of all clients, `last` the last round.
    """
    rows, columns = bins(population, MAX_CLIENTS), bins(last, MAX_ROUNDS)
    row, column = np.searchsorted(rows, clients, "right") - 1, np.searchsorted(columns, rounds - 1, "right") - 1
    height, width = len(rows) - 1, len(columns) - 1
    counts = np.bincount(row * width + column, minlength=height * width).reshape(height, width)
    share = counts / np.outer(np.diff(rows), np.diff(columns))
    binned = height < population or width < last
    with _styled():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        image, histogram = figure.subplots(1, 2, width_ratios=(2.5, 1))
        _heat_map(image, share, (0.5, last + 0.5, -0.5, population - 0.5))
        if binned:
            _colour_bar(figure, image, "share of the cell's clients and rounds")
        image.set(title="who took part", xlabel="round", ylabel="client")
        for axis in (image.xaxis, image.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        often = np.bincount(clients, minlength=population)
        _whole_numbers(histogram, often, SERIES[0])
        histogram.set(title="how often", xlabel="rounds a client took part in", ylabel="clients")
        return figure


_MARKS = ("x", "v", "s", "D", "^", "P")


def timeline(found: Timeline, slow: tuple[np.ndarray, np.ndarray]) -> "Figure":
    """Which host worked when, with what was not answered or made again; below it each host's gangs and the stragglers.

    Up to `MAX_BARS` attempts are bars; more are the share of each stretch of time in which a host worked. `slow` is of
    each round [p] and of how many times the median gang of a phase its slowest one took [p].
    """
    names, (begin, end) = found.hosts, found.span
    bars = len(found) <= MAX_BARS
    with _styled():
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        rows = min(5.0, 1.5 + 0.2 * len(names))
        figure = Figure(figsize=(9.2, rows + 2.5), layout="constrained")
        parts = figure.add_gridspec(2, 2, height_ratios=(rows, 2.2))
        when, hosts, late = (figure.add_subplot(part) for part in (parts[0, :], parts[1, 0], parts[1, 1]))
        if bars:
            for h in range(len(names)):
                mine = found.host == h
                spans = np.stack([found.start_s[mine], (found.end_s - found.start_s)[mine]], 1)
                when.broken_barh(
                    [(a, b) for a, b in spans], (h - 0.35, 0.7), facecolor=SERIES[0], edgecolor=PAPER, linewidth=0.4
                )
            when.set_xlim(begin, max(end, begin + 1e-9))
        else:
            edges = np.linspace(begin, end, MAX_ROUNDS + 1)
            _heat_map(when, found.busy(edges), (begin, end, -0.5, len(names) - 0.5))
            _colour_bar(figure, when, "share of the time at work")
        handles = []
        marked = found.troubled()
        for i, name in enumerate(found.outcomes):
            at = np.flatnonzero(marked.outcome == i)
            if not len(at):
                continue
            at = at[np.unique(np.linspace(0, len(at) - 1, min(len(at), _MAX_MARKS)).astype(np.int64))]
            colour = SERIES[1 + (i - 1) % 3] if i else INK
            line = Line2D(
                marked.end_s[at] if i else marked.start_s[at], marked.host[at], color=colour, linestyle="",
                marker=_MARKS[(i - 1) % len(_MARKS)] if i else "o", markerfacecolor=colour if i else "none",
                markersize=5, label=name if i else "made again, and answered",
            )  # fmt: skip
            when.add_line(line)
            handles.append(line)
        when.set(title="hosts at work", xlabel="wall seconds since the run began", ylabel="host")
        when.set_ylim(len(names) - 0.5, -0.5)
        if len(names) <= 24:
            when.set_yticks(range(len(names)), [_cut(name, 24) for name in names])
        else:
            when.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        when.grid(False)
        took = found.end_s - found.start_s
        each = [np.percentile(took[found.host == h], (5, 50, 95)) for h in range(len(names))]
        low, middle, high = np.array(each).reshape(-1, 3).T
        hosts.vlines(np.arange(len(names)), low, high, color=SERIES[0], linewidth=2, alpha=0.5)
        hosts.plot(np.arange(len(names)), middle, "o", color=SERIES[0], markersize=4)
        hosts.set(title="seconds of a host's gangs", xlabel="host, in the order above", ylabel="seconds")
        hosts.set_ylim(bottom=0)
        hosts.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        hosts.set_xlim(-0.5, len(names) - 0.5)
        x, y = slow
        at = thin(y)
        late.plot(x[at], y[at], color=SERIES[0], linewidth=1.1, marker="o" if len(at) <= 30 else "", markersize=3)
        late.set(title="slowest gang of a phase", xlabel="round", ylabel="times the median gang")
        late.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=4)
        return figure


def partition(label_counts: np.ndarray | None, examples: np.ndarray, class_names: Sequence[str] = ()) -> "Figure":
    """Who trains on what: training examples per client, and below it the share of each class in each client.

    `label_counts` [N, C] or None (no classes) and `examples` [N] are of what the clients train on. Up to `MAX_CLIENTS`
    clients stand in the order of their ids; more are sorted by their most frequent class (without classes, by size) and
    share columns.
    """
    n = len(examples)
    if label_counts is not None and label_counts.shape[0] != n:
        raise BadInput(f"a partition has {n} clients but label counts for {label_counts.shape[0]}; both must be equal")
    shares = None if label_counts is None or label_counts.shape[1] == 0 else _shares(label_counts)
    edges = bins(n, MAX_CLIENTS)
    binned = len(edges) - 1 < n
    order = np.arange(n)
    if binned:
        order = (
            np.argsort(-examples, kind="stable") if shares is None else np.lexsort((-shares.max(1), shares.argmax(1)))
        )
    sizes = _bin_means(examples[order].astype(np.float64), edges)
    classes = 0 if shares is None else shares.shape[1]
    by = "most frequent class" if classes else "number of training examples, largest first"
    per = int(np.ceil(n / max(1, len(edges) - 1)))
    x_label = f"clients, sorted by their {by} ({per} or fewer to a column)" if binned else "client"
    with _styled():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        heat = min(5.6, 1.1 + 0.19 * classes) if classes else 0.0
        figure = Figure(figsize=(9.2, 1.6 + heat if classes else 2.4), layout="constrained")
        if shares is None:
            bars = lowest = figure.add_subplot()
        else:
            bars, lowest = figure.subplots(2, 1, height_ratios=(1.2, heat), sharex=True)
            _heat_map(lowest, _bin_means(shares[order], edges).T, (-0.5, n - 0.5, -0.5, classes - 0.5))
            _colour_bar(figure, lowest, "share of the client's\ntraining examples")
            lowest.set(title="classes of each client", ylabel="class")
            if 0 < len(class_names) == classes <= 30:
                lowest.set_yticks(range(classes), [_cut(name, 16) for name in class_names])
            else:
                lowest.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        if n <= _BARS:
            bars.bar(np.arange(n), sizes, width=0.8, color=SERIES[0], linewidth=0)
        else:
            bars.stairs(sizes, edges - 0.5, fill=True, color=SERIES[0], linewidth=0)
        bars.set(
            title=f"training examples per client{' (means of columns)' if binned else ''}",
            ylabel="examples",
            xlim=(-0.5, max(n, 1) - 0.5),
            ylim=(0, max(1.0, sizes.max(initial=1)) * 1.05),
        )
        lowest.set_xlabel(x_label)
        lowest.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        return figure


def maps(panels: Sequence[Map], x_label: str, y_label: str, label: str) -> "Figure":
    """Scattered values in one colour scale, panel beside panel; `label` says what the colours mean."""
    with _styled():
        from matplotlib.figure import Figure

        columns = min(4, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(9.2, 2.5 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        every = np.concatenate([p.value for p in panels])
        every = every[np.isfinite(every)]
        low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
        drawn = None
        for axes, panel in zip(grid.flat, panels, strict=False):
            lost = ~np.isfinite(panel.value)
            axes.scatter(panel.x[lost], panel.y[lost], s=22, marker="x", color=MUTED, linewidths=1)
            drawn = axes.scatter(
                panel.x[~lost], panel.y[~lost], c=panel.value[~lost], s=30, cmap=_ramp(), vmin=low, vmax=high,
                edgecolors=MUTED, linewidths=0.4,
            )  # fmt: skip
            axes.set_title(panel.title)
            axes.grid(True, axis="both")
            if panel.log_x:
                axes.set_xscale("log")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel(x_label)
        for axes in grid[:, 0]:
            axes.set_ylabel(y_label)
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=list(grid.flat), label=label, pad=0.01, fraction=0.05)
            bar.outline.set_visible(False)
        return figure


def scatters(panels: Sequence[Scatter], y_label: str) -> "Figure":
    """Points by group beside each other, with the best of each stretch of the x axis joined by a line."""
    with _styled():
        from matplotlib.figure import Figure

        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(9.2, 2.5 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        named: dict[str, Curve] = {}
        for axes, panel in zip(grid.flat, panels, strict=False):
            for label, x, y, best in panel.groups:
                series = panel.series[label]
                colour, style, width = _look(series)
                axes.scatter(x, y, s=12, color=colour, alpha=0.55, linewidths=0)
                axes.plot(best[0], best[1], color=colour, linestyle=style, linewidth=width)
                named[label] = Curve(label, x, y, series=series)
            axes.set_title(panel.title)
            if panel.log_x:
                axes.set_xscale("log")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(y_label)
        if len(named) > 1:
            figure.legend(handles=[_handle(c) for c in named.values()], loc="outside lower center", ncols=4)
        return figure


def parallel(axes_of: Sequence[Axis], value: np.ndarray, label: str) -> "Figure":
    """Parallel coordinates: a line for each of n trials over the axes, coloured by `value` [n]; NaN is grey."""
    with _styled():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        at = np.stack([a.position for a in axes_of], 1)  # [n, axes], in 0 .. 1
        found = value[np.isfinite(value)]
        norm = Normalize(float(found.min()), float(found.max())) if len(found) else Normalize(0, 1)
        for i in np.argsort(np.nan_to_num(value, nan=-np.inf), kind="stable"):
            known = np.isfinite(at[i])
            lost = not np.isfinite(value[i])
            colour = MUTED if lost else _ramp()(norm(value[i]))
            axes.plot(np.flatnonzero(known), at[i][known], color=colour, linewidth=0.6 if lost else 1.1)
        for j, a in enumerate(axes_of):
            axes.axvline(j, color=GRID, linewidth=1)
            for position, text in a.ticks:
                axes.annotate(text, (j, position), (3, 0), textcoords="offset points", fontsize=7.5, va="center")
        axes.set_xticks(range(len(axes_of)), [a.name for a in axes_of])
        axes.set(yticks=[], xlim=(-0.2, len(axes_of) - 0.5), ylim=(-0.05, 1.05))
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        bar = figure.colorbar(ScalarMappable(norm, _ramp()), ax=axes, label=label, pad=0.01, fraction=0.05)
        bar.outline.set_visible(False)
        return figure


def inline(figure: "Figure", name: str, description: str) -> str:
    """The figure as an SVG element for an HTML page. `name` makes its ids unique there, `description` is read aloud."""
    svg = _svg(figure, transparent=True)
    opening = svg[: svg.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {space} {box[0]} role="img" aria-label="{escape(description)}">' + svg[len(opening) :]
    svg = _prefixed(svg, name)
    return re.sub("|".join(VARIABLES), lambda colour: f"var({VARIABLES[colour[0]]})", svg).rstrip()


def _svg(figure: "Figure", transparent: bool) -> str:
    """The figure's SVG element, without the XML declaration and the metadata."""
    with _styled():
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=transparent, metadata={"Date": None})
    svg = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL).rstrip()


def _prefixed(svg: str, name: str) -> str:
    """With ids that begin with `name`."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)


def save(figure: "Figure", out: Path) -> None:
    """Write the figure as PNG, SVG or PDF, by the suffix of `out`. Raises BadInput for another one."""
    kind = out.suffix.lower().removeprefix(".")
    if kind not in _METADATA:
        raise BadInput(f"{out}: a picture can be written as .png, .svg or .pdf")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(encoded(figure, kind))
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror or error}") from error


_METADATA: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def encoded(figure: "Figure", kind: str) -> bytes:
    """The figure as a file: `kind` is png, svg or pdf."""
    out = io.BytesIO()
    with _styled():
        figure.savefig(out, format=kind, dpi=_DPI, metadata=_METADATA[kind])
    return out.getvalue()


def sheet(figures: Sequence["Figure"], kind: str) -> bytes:
    """Figures of one width below each other as one file: `kind` is png or svg."""
    if kind == "svg":
        # 72 units to an inch, as matplotlib draws.
        sizes = [(72 * w, 72 * h) for w, h in (f.get_size_inches() for f in figures)]
        width, height = max(w for w, _ in sizes), sum(h for _, h in sizes)
        parts, top = [], 0.0
        for i, (figure, (w, h)) in enumerate(zip(figures, sizes, strict=True)):
            drawing = _prefixed(_svg(figure, transparent=False), f"p{i}")
            opening = drawing[: drawing.index(">")]
            kept = drawing[len(opening) :]
            parts.append(f'<svg y="{top:g}" width="{w:g}" height="{h:g}" viewBox="0 0 {w:g} {h:g}"{kept}')
            top += h
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        body = "\n".join(parts)
        head = f'<svg {space} width="{width:g}pt" height="{height:g}pt" viewBox="0 0 {width:g} {height:g}">'
        return f'<?xml version="1.0" encoding="utf-8" standalone="no"?>\n{head}\n{body}\n</svg>\n'.encode()
    from PIL import Image

    images = [
        np.asarray(Image.open(io.BytesIO(encoded(f, "png"))).convert("RGB")) for f in figures
    ]  # [height, width, 3]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(images)).save(out, "PNG", dpi=(_DPI, _DPI))
    return out.getvalue()


def words(text: str, size: float = 9, bold: bool = False) -> "Figure":
    """Wrapped text as wide as the pictures, to stand above or below them on a sheet."""
    letters = int(1240 / size)  # to a line of 9.2 inches
    wrapped = [line for part in text.splitlines() for line in wrap(part, letters) or [""]]
    with _styled():
        from matplotlib.figure import Figure

        height = (1.45 * size * len(wrapped) + 8) / 72
        figure = Figure(figsize=(9.2, height))
        figure.text(
            0.012, 1 - 4 / 72 / height, "\n".join(wrapped), size=size, va="top", linespacing=1.25, parse_math=False,
            weight="bold" if bold else "normal",
        )  # fmt: skip
        return figure


@contextmanager
def _styled() -> Generator[None]:
    # Some settings are read when an artist is made, others when it is drawn: both happen inside.
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def _draw(axes: "Axes", panel: Panel, first: bool) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values: list[np.ndarray] = []
    limit = max(50, min(MAX_POINTS, _PANEL_POINTS // max(1, len(panel.curves))))
    crowd = sum(curve.series is None for curve in panel.curves) > _MAX_GREY
    grey: list[np.ndarray] = []
    for curve in panel.curves:
        usable = np.isfinite(curve.x) & np.isfinite(curve.y)
        at = np.flatnonzero(usable)[thin(curve.y[usable], limit)]
        x, y = curve.x[at], curve.y[at]
        values.append(y)
        if crowd and curve.series is None:
            grey.append(np.stack([x, y], 1))
            continue
        colour, style, width = _look(curve.series)
        axes.plot(
            x, y, color=colour, linestyle=style, linewidth=width, marker="o" if len(x) <= 30 else "", markersize=3
        )
        if curve.low is not None and curve.high is not None:
            axes.fill_between(x, curve.low[at], curve.high[at], color=colour, alpha=0.16, linewidth=0)
    if grey:
        colour, style, width = _look(None)
        axes.add_collection(LineCollection(grey, colors=colour, linestyles=style, linewidths=width, rasterized=True))
        axes.autoscale_view()
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label if first else "")
    every = np.concatenate(values) if values else np.zeros(0)
    if not len(every):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set(xticks=[], yticks=[])
        return
    if panel.line is not None:
        axes.axhline(panel.line, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    if panel.log and every.min() > 0 and every.max() > 20 * every.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if every.max() > 300 * every.min() else (1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlim(left=0)
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _look(series: int | None) -> "tuple[str, _Line, float]":
    if series is None:
        return MUTED, "-", 0.6
    return SERIES[series % len(SERIES)], _LINES[series // len(SERIES) % len(_LINES)], 1.6


def _handle(curve: Curve) -> "Line2D":
    from matplotlib.lines import Line2D

    colour, style, width = _look(curve.series)
    return Line2D([], [], color=colour, linestyle=style, linewidth=width, label=curve.label)


def _ramp() -> "Colormap":
    """From faint to full blue; what is masked stays the ground's colour, on a light and on a dark one."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    ramp = LinearSegmentedColormap.from_list("faint to full", [to_rgba(SERIES[0], 0.1), to_rgba("#2a8fd8", 1.0)])
    return ramp.with_extremes(bad=(0.0, 0.0, 0.0, 0.0))


def _heat_map(axes: "Axes", values: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    """`values` [rows, columns] as an image, the first row at the bottom; zeros stay blank."""
    axes.imshow(
        np.ma.masked_equal(values, 0),
        cmap=_ramp(),
        vmin=0,
        vmax=float(values.max(initial=0)) or 1.0,
        aspect="auto",
        interpolation="none",
        origin="lower",
        extent=extent,
    )
    axes.grid(False)


def _colour_bar(figure: "Figure", axes: "Axes", label: str) -> None:
    """What the colours of the axes' heat map mean."""
    bar = figure.colorbar(axes.images[0], ax=axes, label=label, pad=0.01, fraction=0.05)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)


def _whole_numbers(axes: "Axes", values: np.ndarray, colour: str, most: int = 24) -> None:
    """A histogram of whole numbers whose bins hold equally many of them."""
    from matplotlib.ticker import MaxNLocator

    low, high = int(values.min(initial=0)) if not len(values) else int(values.min()), int(values.max(initial=0))
    width = int(np.ceil((high - low + 1) / most))
    edges = np.arange(low, high + width + 1, width) - 0.5
    axes.stairs(np.histogram(values, edges)[0], edges, fill=True, color=colour, linewidth=0)
    if len(edges) == 2:
        axes.set_xlim(low - 3, low + 3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))


def _shares(label_counts: np.ndarray) -> np.ndarray:
    total = label_counts.sum(1, keepdims=True)
    return label_counts / np.maximum(total, 1)


def _bin_means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The means of `values` [n, ...] over the bins: [bins, ...]."""
    if len(edges) < 2:
        return values
    size = np.diff(edges).reshape(-1, *(1,) * (values.ndim - 1))
    return np.add.reduceat(values, edges[:-1], axis=0) / size


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
