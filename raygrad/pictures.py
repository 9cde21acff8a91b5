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
from typing import TYPE_CHECKING, Literal

import numpy as np

from raygrad.errors import BadInput

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

    With `log_x` the x axis goes by doublings; all x are above 0 then.
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    line: float | None = None
    log: bool = False
    log_x: bool = False


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
                first = first or axes
                _draw(axes, panel)
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
    with _styled():
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, count=1, flags=re.DOTALL)
    opening = svg[: svg.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {space} {box[0]} role="img" aria-label="{escape(description)}">' + svg[len(opening) :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    return re.sub("|".join(VARIABLES), lambda colour: f"var({VARIABLES[colour[0]]})", svg).rstrip()


def save(figure: "Figure", out: Path) -> None:
    """Write the figure as PNG, SVG or PDF, by the suffix of `out`. Raises BadInput for another one."""
    kind = out.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise BadInput(f"{out}: a picture can be written as .png, .svg or .pdf")
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with _styled():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(out, dpi=160, metadata=metadata)
        except OSError as error:
            raise BadInput(f"{out} cannot be written: {error.strerror or error}") from error


@contextmanager
def _styled() -> Generator[None]:
    # Some settings are read when an artist is made, others when it is drawn: both happen inside.
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def _draw(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values: list[np.ndarray] = []
    for curve in panel.curves:
        usable = np.isfinite(curve.x) & np.isfinite(curve.y)
        at = np.flatnonzero(usable)[thin(curve.y[usable])]
        x, y = curve.x[at], curve.y[at]
        values.append(y)
        colour, style, width = _look(curve.series)
        axes.plot(
            x, y, color=colour, linestyle=style, linewidth=width, marker="o" if len(x) <= 30 else "", markersize=3
        )
        if curve.low is not None and curve.high is not None:
            axes.fill_between(x, curve.low[at], curve.high[at], color=colour, alpha=0.16, linewidth=0)
    axes.set(title=panel.title, xlabel=panel.x_label)
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
