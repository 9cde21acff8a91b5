"""What a run shows when it is over: a small table, one self-contained HTML page, and the comparison of several runs.

Everything is read from the tables and JSON files of the run folders, also of runs that go on or were stopped. Runs that
differ only in their seed are one group; groups are compared at equal communications.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from html import escape
from math import floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from raygrad import pictures, storage, tables
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Leaf = str | int | float | bool | None
Settings = Mapping[str, Leaf]
"""A JSON object laid flat: "algorithm.beta" -> 0.05."""

CITATION = (
    "Yatin Dandi, Luis Barba, Martin Jaggi: Implicit Gradient Alignment in Distributed and Federated Learning, "
    "arXiv 2106.13897."
)
BIBTEX = """@article{dandi2021implicit,
  title   = {Implicit Gradient Alignment in Distributed and Federated Learning},
  author  = {Dandi, Yatin and Barba, Luis and Jaggi, Martin},
  journal = {arXiv preprint arXiv:2106.13897},
  year    = {2021}
}"""
PAPER_PROTOCOL = "paper's protocol: best over the run, no validation set"

_SCHEMA_VERSION = 1
_SHOWN_GROUPS = 10


@dataclass(frozen=True, eq=False)
class Probes:
    """The alignment of the clients' gradients, measured after some rounds; all arrays [p]."""

    round: np.ndarray
    clients: np.ndarray
    r: np.ndarray
    diversity: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True, eq=False)
class RunView:
    """A run as its report sees it. Arrays are [R], one entry per finished round.

    Communications, bytes and seconds are cumulative: what was charged and spent by the end of the round. Values that
    were not measured are NaN.
    """

    path: Path
    name: str
    id: str
    hash: str
    settings: Settings  # of the experiment
    where: Settings
    numerics: Settings
    data: Settings
    class_names: tuple[str, ...]
    final: Settings  # of the test evaluation; empty while the run is unfinished
    round: np.ndarray
    communications: np.ndarray
    bytes_down: np.ndarray
    bytes_up: np.ndarray
    seconds: np.ndarray
    virtual_s: np.ndarray
    clients_asked: np.ndarray
    clients_answered: np.ndarray
    train_loss: np.ndarray
    validation_accuracy: np.ndarray
    validation_loss: np.ndarray
    test_accuracy: np.ndarray
    test_loss: np.ndarray
    probes: Probes

    @property
    def title(self) -> str:
        """`name/id`, which every command takes as RUN."""
        return f"{self.name}/{self.id}"

    @property
    def planned(self) -> int:
        """The rounds that the run is to have."""
        rounds = self.settings.get("rounds")
        return rounds if isinstance(rounds, int) else len(self.round)

    @property
    def finished(self) -> bool:
        """Whether all planned rounds are done."""
        return 0 < self.planned <= len(self.round)

    @property
    def paper(self) -> bool:
        """Whether the run is judged on the test set, as the papers' protocol does."""
        return self.settings.get("evaluation.mode") == "paper"

    @property
    def accuracy(self) -> np.ndarray:
        """What the run is judged by: the validation accuracy, or the test accuracy under the papers' protocol."""
        return self.test_accuracy if self.paper else self.validation_accuracy

    @property
    def loss(self) -> np.ndarray:
        """The loss that belongs to `accuracy`."""
        return self.test_loss if self.paper else self.validation_loss


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed only. `label` says what sets them apart from the other groups."""

    label: str
    fields: Settings  # the settings that differ between groups
    runs: tuple[RunView, ...]


@dataclass(frozen=True)
class Reached:
    """What one run had spent when it first reached the target."""

    rounds: int
    communications: int
    bytes: int
    seconds: float


# ------------------------------------------------------------------------------------------------------- reading a run


def view(run: Path) -> RunView:
    """The run in folder `run`, finished or not. Raises BadInput when it is no run folder or a file in it is damaged."""
    file = run / "experiment.json"
    if not file.is_file():
        raise BadInput(
            f"{run} is no run folder: it has no experiment.json; `raygrad list runs` shows the runs there are"
        )
    record = _json(file)
    experiment = record.get("experiment")
    if not isinstance(experiment, dict):
        raise BadInput(f'{file} is damaged: expected the settings under "experiment"')
    data = _json(run / "data.json", optional=True)
    names = data.get("class_names")
    rounds = _columns(run, "rounds")
    probes = _columns(run, "probes")
    return RunView(
        path=run,
        name=str(record.get("name", run.resolve().parent.name)),
        id=str(record.get("id", run.resolve().name)),
        hash=str(record.get("hash", "")),
        settings=flatten(experiment),
        where=_described(_json(run / "where.json", optional=True)),
        numerics=_described(_json(run / "numerics.json", optional=True)),
        data=_described({k: v for k, v in data.items() if k != "class_names"}),
        class_names=tuple(str(n) for n in names) if isinstance(names, list) else (),
        final=_described(_json(run / "final.json", optional=True)),
        round=rounds["round"],
        communications=np.cumsum(rounds["communications"], dtype=np.int64),
        bytes_down=np.cumsum(rounds["bytes_down"], dtype=np.int64),
        bytes_up=np.cumsum(rounds["bytes_up"], dtype=np.int64),
        seconds=_seconds(run, rounds["round"]),
        virtual_s=rounds["virtual_s"],
        clients_asked=rounds["clients_asked"],
        clients_answered=rounds["clients_answered"],
        train_loss=rounds["train_loss"],
        validation_accuracy=rounds["validation_accuracy"],
        validation_loss=rounds["validation_loss"],
        test_accuracy=rounds["test_accuracy"],
        test_loss=rounds["test_loss"],
        probes=Probes(**{name: probes[name] for name in ("round", "clients", "r", "diversity", "cosine")}),
    )


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, Leaf]:
    """A nested JSON object with dotted names: {"algorithm": {"lr": 0.1}} -> {"algorithm.lr": 0.1}; lists become text."""
    flat: dict[str, Leaf] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            plain = all(isinstance(v, str | int | float) for v in value)
            flat[prefix + key] = ", ".join(str(v) for v in value) if plain else json.dumps(value)
        elif value is None or isinstance(value, str | int | float):
            flat[prefix + key] = value
    return flat


def _described(record: Mapping[str, object]) -> Settings:
    return {k: v for k, v in flatten(record).items() if k != "schema_version"}


def _json(path: Path, optional: bool = False) -> dict[str, object]:
    if optional and not path.exists():
        return {}
    record = storage.read_json(path)
    version = record.get("schema_version", _SCHEMA_VERSION)
    if version != _SCHEMA_VERSION:
        raise BadInput(
            f"{path} has schema_version {version}, this raygrad reads {_SCHEMA_VERSION}; use the raygrad that wrote it"
        )
    return record


def _columns(run: Path, name: str, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """A table's columns, ordered by round; nulls become NaN."""
    table = tables.read(run, name, columns)
    found = {c: table[c].to_numpy(zero_copy_only=False) for c in table.column_names}
    order = np.argsort(found["round"], kind="stable")
    return {c: values[order] for c, values in found.items()}


def _seconds(run: Path, rounds: np.ndarray) -> np.ndarray:
    """The cumulative wall seconds at each round; a round that a restart repeated counts with its last time."""
    seconds = _columns(run, "seconds", ["round", "elapsed_s"])
    latest = np.full(int(max(rounds.max(initial=0), seconds["round"].max(initial=0))) + 1, np.nan)
    np.fmax.at(latest, seconds["round"], seconds["elapsed_s"])
    return latest[rounds]


# ------------------------------------------------------------------------------------------------------- one run's table


def summary(run: Path) -> list[tuple[str, str]]:
    """The small table at the end of a run: (label, value). What was not measured has no row."""
    return _summary(view(run))


def _summary(v: RunView) -> list[tuple[str, str]]:
    rows = [("algorithm", describe(v.settings, "algorithm"))]
    rows.append(("data", f"{describe(v.settings, 'data')}; {describe(v.settings, 'partition')}"))
    rows.append(("rounds", f"{len(v.round):,}" if v.finished else f"{len(v.round):,} of {v.planned:,} (unfinished)"))
    if len(v.round):
        rows.append(("communications", f"{v.communications[-1]:,}"))
        rows.append(("bytes down / up", f"{_bytes(v.bytes_down[-1])} / {_bytes(v.bytes_up[-1])}"))
    if np.isfinite(v.seconds).any():
        spent = float(np.nanmax(v.seconds))
        rows.append(("wall time", f"{_seconds_text(spent)}, {len(v.round) / max(spent, 1e-9):.3g} rounds/s"))
    if v.virtual_s.any():
        rows.append(("virtual time", _seconds_text(float(v.virtual_s[-1]))))
    if not v.paper:
        rows += _measured("validation accuracy", v, v.validation_accuracy, np.nanargmax)
        rows += _measured("validation loss", v, v.validation_loss, np.nanargmin)
    rows += _test_rows(v)
    p, n = v.probes, f", n = {v.probes.clients[-1]} clients" if len(v.probes.clients) else ""
    for label, values in (
        ("r(x)", p.r),
        ("gradient diversity n·Δ", p.diversity),
        ("mean cosine to the mean", p.cosine),
    ):
        if len(values):
            span = f"{_number(values[0])} (round {p.round[0]:,}) → {_number(values[-1])} (round {p.round[-1]:,})"
            rows.append((label, span + n))
    if len(v.round):
        rows.append(("clients", f"{v.clients_asked.sum():,} asked, {v.clients_answered.sum():,} answered"))
    gangs = tables.read(v.path, "operations", ["attempt", "outcome"])
    if gangs.num_rows:
        attempts = gangs["attempt"].to_numpy(zero_copy_only=False)
        failed = gangs.num_rows - gangs["outcome"].to_pylist().count("answered")
        rows.append(
            ("gangs", f"{gangs.num_rows:,} attempts, {int((attempts > 1).sum()):,} repeated, {failed:,} failed")
        )
    return rows


def describe(settings: Settings, part: str) -> str:
    """One part of an experiment in words: `fedga (lr 0.1, beta 0.05)`."""
    inside = {k.removeprefix(f"{part}."): v for k, v in settings.items() if k.startswith(f"{part}.")}
    kind = inside.pop("kind", part)
    rest = ", ".join(f"{k} {_leaf(v)}" for k, v in inside.items() if v is not None)
    return f"{kind} ({rest})" if rest else str(kind)


def _measured(label: str, v: RunView, values: np.ndarray, best_of) -> list[tuple[str, str]]:
    at = np.flatnonzero(np.isfinite(values))
    if not len(at):
        return []
    best, last = int(best_of(values)), int(at[-1])
    return [
        (
            label,
            f"{values[last]:.4f} final (round {v.round[last]:,}), {values[best]:.4f} best (round {v.round[best]:,})",
        )
    ]


def _test_rows(v: RunView) -> list[tuple[str, str]]:
    rows = _measured("test accuracy", v, v.test_accuracy, np.nanargmax) if v.paper else []
    rows = [(label, f"{value}; {PAPER_PROTOCOL}") for label, value in rows]
    measured = ", ".join(
        f"{k.removeprefix('metrics.')} {_number(x)}" for k, x in v.final.items() if k.startswith("metrics.")
    )
    loss = f"loss {_number(v.final['loss'])}" if "loss" in v.final else ""
    if measured or loss:
        on = f"{_leaf(v.final.get('examples'))} examples, after round {_leaf(v.final.get('round'))}"
        rows.append(("test set", f"{', '.join(t for t in (measured, loss) if t)} ({on})"))
    return rows


# ----------------------------------------------------------------------------------------------------------- several runs


def group(views: Sequence[RunView]) -> list[Group]:
    """Runs grouped by the settings that differ among them, the seed aside, in the order given.

    Of several runs of a group with the same seed the longest stays (of equally long ones the first): a repeated run is
    no new evidence.
    """
    keys = list(dict.fromkeys(k for v in views for k in v.settings if k != "seed"))
    differing = [k for k in keys if len({(k in v.settings, _leaf(v.settings.get(k))) for v in views}) > 1]
    grouped: dict[tuple[tuple[str, str], ...], list[RunView]] = {}
    for v in views:
        values = tuple((k, _leaf(v.settings[k])) for k in differing if k in v.settings)
        grouped.setdefault(values, []).append(v)
    said = _telling(differing, views)
    result = []
    for members in grouped.values():
        seeds: dict[Leaf, RunView] = {}
        for v in members:
            seed = v.settings.get("seed")
            if seed not in seeds or len(v.round) > len(seeds[seed].round):
                seeds[seed] = v
        first = members[0].settings
        label = ", ".join(f"{said[k]}{_leaf(first[k])}" for k in differing if k in said and k in first)
        fields = {k: first[k] for k in differing if k in first}
        result.append(Group(label or members[0].name, fields, tuple(seeds.values())))
    return result


def _telling(differing: Sequence[str], views: Sequence[RunView]) -> dict[str, str]:
    """What a group's label says before the value of each field: `beta=`, or nothing for a kind (`fedga` speaks for itself).

    A field that one kind alone has, always with the same value, says nothing that its kind does not say.
    """
    kinds = {k for k in differing if k.endswith(".kind")}
    said: dict[str, str] = {}
    for key in differing:
        part, _, field = key.rpartition(".")
        if key in kinds:
            said[key] = "" if part == "algorithm" else f"{part}="
            continue
        owner = f"{part}.kind"
        having = [v.settings for v in views if key in v.settings]
        if owner in kinds and len({s.get(owner) for s in having}) == 1 and len({_leaf(s[key]) for s in having}) == 1:
            continue
        alone = sum(k.rpartition(".")[2] == field for k in differing) == 1
        said[key] = f"{field if alone else key}="
    return said


def reach(v: RunView, target: float) -> Reached | None:
    """What the run had spent when its accuracy first was at least `target`; None if it never was."""
    with np.errstate(invalid="ignore"):
        at = np.flatnonzero(v.accuracy >= target)
    if not len(at):
        return None
    i = int(at[0])
    moved = int(v.bytes_down[i] + v.bytes_up[i])
    return Reached(int(v.round[i]), int(v.communications[i]), moved, float(v.seconds[i]))


def common_target(views: Iterable[RunView]) -> float | None:
    """The largest accuracy that every run reaches, rounded down to 0.01 (from 0.99 on to 0.001); None if one has none."""
    best = [float(np.nanmax(v.accuracy)) if np.isfinite(v.accuracy).any() else 0.0 for v in views]
    least = min(best, default=0.0)
    step = 1000 if least >= 0.99 else 100
    target = floor(least * step + 1e-9) / step
    return target if target > 0 else None


def comparison(runs: Sequence[Path], target: float | None = None) -> tuple[list[str], list[list[str]]]:
    """The groups of several runs side by side: the header and one row per group, as text.

    Means and sample standard deviations are over seeds. Without a `target` accuracy it is `common_target`.
    """
    views = _views(runs)
    return _comparison(group(views), _target(views, target)[0])


def _target(views: Sequence[RunView], target: float | None) -> tuple[float | None, str]:
    """The target accuracy and where it comes from."""
    if target is None:
        return common_target(views), "the largest accuracy that every run reaches, rounded down"
    if not 0 < target <= 1:
        raise BadInput(f"the target accuracy is {target}; it must be above 0 and at most 1")
    return target, "as asked for"


def _comparison(groups: Sequence[Group], target: float | None) -> tuple[list[str], list[list[str]]]:
    paper = {v.paper for g in groups for v in g.runs}
    judged = "test" if paper == {True} else "validation" if paper == {False} else "judged"
    to = "" if target is None else f" to {target:g}"
    costs = [f"rounds{to}", f"communications{to}", f"bytes{to}", f"seconds{to}"] if target is not None else []
    header = ["group", "seeds", *costs, f"final {judged} accuracy", f"best {judged} accuracy", "test accuracy"]
    rows = []
    for g in groups:
        row = [g.label, str(len(g.runs))]
        if target is not None:
            row += _costs([reach(v, target) for v in g.runs])
        curves = [v.accuracy[np.isfinite(v.accuracy)] for v in g.runs]
        row.append(_spread([c[-1] for c in curves if len(c)]))
        row.append(_spread([c.max() for c in curves if len(c)]))
        tests = [v.final.get("metrics.accuracy") for v in g.runs]
        row.append(_spread([float(t) for t in tests if isinstance(t, int | float)]))
        rows.append(row)
    return header, rows


def _costs(reached: Sequence[Reached | None]) -> list[str]:
    done = [r for r in reached if r is not None]
    if not done:
        return ["not reached"] * 4
    some = "" if len(done) == len(reached) else f" ({len(done)} of {len(reached)} seeds)"
    mega = [r.bytes / 1e6 for r in done]
    return [
        _spread([r.rounds for r in done], ".4g") + some,
        _spread([r.communications for r in done], ".4g") + some,
        _spread(mega, ".4g") + " MB" + some,
        _spread([r.seconds for r in done if isfinite(r.seconds)], ".4g") + some,
    ]


def _spread(values: Sequence[float], form: str = ".4f") -> str:
    """`mean ± sample standard deviation`; one value stands alone."""
    if not values:
        return "–"
    mean = float(np.mean(values))
    text = f"{mean:,.0f}" if form == ".4g" and mean >= 1000 else f"{mean:{form}}"
    if len(values) == 1:
        return text
    return f"{text} ± {float(np.std(values, ddof=1)):{'.2g' if form == '.4g' else form}}"


def _views(runs: Sequence[Path]) -> list[RunView]:
    if not runs:
        raise BadInput("a report needs at least one run; `raygrad list runs` shows the runs there are")
    return [view(run) for run in dict.fromkeys(Path(r).resolve() for r in runs)]


# ------------------------------------------------------------------------------------------------------------ partitions


def partition_table(label_counts: np.ndarray | None, examples: np.ndarray) -> list[tuple[str, str]]:
    """What a partition made, as (label, value). `label_counts` [N, C] or None (no classes), `examples` [N]."""
    n = len(examples)
    rows = [("clients", f"{n:,}"), ("examples", f"{int(examples.sum()):,}")]
    if not n:
        return rows
    rows.append(("examples per client", _three(examples)))
    if (examples == 0).any():
        rows.append(("clients without examples", f"{int((examples == 0).sum()):,}"))
    rows.append(("largest client's share", f"{examples.max() / max(1, examples.sum()):.2%} of all examples"))
    if label_counts is None or label_counts.shape[1] == 0:
        return rows
    holding = label_counts[label_counts.sum(1) > 0]
    shares = holding / holding.sum(1, keepdims=True)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) + 0.0
    classes = label_counts.shape[1]
    rows.append(("labels per client", f"{_three((label_counts > 0).sum(1))}, of {classes:,}"))
    if len(holding):
        rows.append(("effective labels per client", f"{np.exp(entropy).mean():.2f} on average (exp of the entropy)"))
        rows.append(("largest label's share", f"{shares.max(1).mean():.1%} of a client's examples, on average"))
    return rows


def partition_picture(
    label_counts: np.ndarray | None, examples: np.ndarray, class_names: Sequence[str], out: Path
) -> None:
    """Draw who holds what into `out`, a .png, .svg or .pdf. Shapes as in `partition_table`. Raises BadInput."""
    pictures.save(pictures.partition(label_counts, examples, class_names), out)


def _partition(v: RunView) -> tuple[np.ndarray | None, np.ndarray]:
    """A run's label counts [N, C] (None without classes) and examples [N], by client."""
    table = tables.read(v.path, "partition", ["client", "examples", "label_counts"])
    order = np.argsort(table["client"].to_numpy(zero_copy_only=False), kind="stable")
    examples = table["examples"].to_numpy(zero_copy_only=False)[order]
    lists = table["label_counts"]
    if not len(examples) or lists.null_count:
        return None, examples
    flat = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) % len(examples):
        where = tables.folder(v.path, "partition")
        raise BadInput(
            f"{where} is damaged: {len(flat)} label counts for {len(examples)} clients, expected equally many each"
        )
    return flat.reshape(len(examples), -1)[order], examples


def _three(values: np.ndarray) -> str:
    return f"min {int(values.min()):,}, median {float(np.median(values)):,.4g}, max {int(values.max()):,}"


# -------------------------------------------------------------------------------------------------------------- the page


def write_report(runs: Sequence[Path], out: Path, target: float | None = None) -> Path:
    """Write one self-contained HTML file about `runs` and return its path.

    One run: its settings, its table and its pictures. Several: groups by what differs, mean and spread over seeds, and
    the cost of reaching the `target` accuracy (by default `common_target`). `out` is the file, or a folder for
    report.html. The same folders give the same bytes. Raises BadInput.
    """
    views = _views(runs)
    page = _one(views[0]) if len(views) == 1 else _several(views, target)
    path = out / "report.html" if out.is_dir() else out
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(path, page.encode())
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _one(v: RunView) -> str:
    parts = [
        f"<h1>{escape(v.name)}</h1>",
        f'<p class="sub">run {escape(v.title)} · experiment {escape(v.hash[:12])}</p>',
        _table(["", ""], [list(row) for row in _summary(v)], "What the run did"),
        *_learning(v),
        *_alignment(v),
        *_participation(v),
        *_partition_part(v),
        "<h2>Settings</h2>",
        _settings("Experiment", v.settings, opened=True),
        _settings("Machines", v.where),
        _settings("Numerics", v.numerics),
        "<h2>How to repeat it</h2>",
        "<p>In the run's folder, the first line trains the same model again. The second continues the run where it stopped "
        "(with <code>--rounds</code>, up to a larger total). The third prints one line that is equal for equal results.</p>",
        f"<pre>raygrad run experiment.json\nraygrad resume {escape(v.title)}\nraygrad digest {escape(v.title)}</pre>",
        _cited(),
    ]
    return _page(v.title, parts)


def _several(views: Sequence[RunView], target: float | None) -> str:
    groups, (goal, origin) = group(views), _target(views, target)
    header, rows = _comparison(groups, goal)
    kept = {id(v) for g in groups for v in g.runs}
    mixed = len({v.paper for v in views}) > 1
    judged = (
        PAPER_PROTOCOL
        if all(v.paper for v in views)
        else "validation accuracy; the test set was touched once, at the end"
    )
    if mixed:
        judged = f"validation accuracy, and for runs under the papers' protocol test accuracy ({PAPER_PROTOCOL})"
    said = f"Target accuracy {goal:g}: {origin}. " if goal is not None else "No accuracy that every run reaches. "
    note = f"{said}Judged by {judged}. Mean ± sample standard deviation over seeds. Bytes count both directions."
    places = {(_leaf(v.where.get("on")), _leaf(v.where.get("hosts"))) for v in views}
    if len(places) > 1:
        note += " The runs did not all use the same machines: compare their seconds with care."
    lines = [
        [
            v.title,
            next((g.label for g in groups if v in g.runs), "left out: repeats a seed"),
            _leaf(v.settings.get("seed")),
            f"{len(v.round):,}" if v.finished else f"{len(v.round):,} of {v.planned:,}",
            " ".join(_leaf(v.where[k]) for k in ("on", "hosts") if k in v.where),
            v.hash[:12],
        ]
        for v in views
    ]
    common = {
        k: x for k, x in views[0].settings.items() if k != "seed" and k not in set().union(*(g.fields for g in groups))
    }
    title = f"{len(views)} runs in {len(groups)} {'group' if len(groups) == 1 else 'groups'}"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="sub">{escape(", ".join(sorted({v.name for v in views})))}</p>',
        _table(header, rows, "Cost and accuracy"),
        f'<p class="note">{escape(note)}</p>',
        *_compared(groups, goal),
        "<h2>Groups</h2>",
        _fields(groups),
        _settings("What all runs share", common),
        _table(["run", "group", "seed", "rounds", "on", "experiment"], lines, f"Runs ({len(kept)} counted)"),
        "<h2>How to repeat it</h2>",
        "<p>Each run's folder holds its experiment; in it:</p>",
        "<pre>raygrad run experiment.json</pre>",
        _cited(),
    ]
    return _page(title, parts)


def _axes(views: Sequence[RunView]) -> list[tuple[str, Literal["communications", "seconds", "virtual_s"]]]:
    axes: list[tuple[str, Literal["communications", "seconds", "virtual_s"]]] = [("communications", "communications")]
    if any(np.isfinite(v.seconds).any() for v in views):
        axes.append(("wall seconds", "seconds"))
    if any(v.virtual_s.any() for v in views):
        axes.append(("virtual seconds", "virtual_s"))
    return axes


def _learning(v: RunView) -> list[str]:
    if not len(v.round):
        return ["<p>No round is finished yet.</p>"]
    judged = "test" if v.paper else "validation"
    grid: list[list[pictures.Panel]] = [[], []]
    measured = np.isfinite(v.accuracy).any()
    for label, name in _axes([v]):
        x = getattr(v, name).astype(np.float64)
        grid[0].append(pictures.Panel(f"{judged} accuracy", label, [pictures.Curve(judged, x, v.accuracy)]))
        losses = [pictures.Curve("training", x, v.train_loss, series=1), pictures.Curve(judged, x, v.loss, series=0)]
        grid[1].append(pictures.Panel("loss", label, losses, log=True))
    at = np.flatnonzero(np.isfinite(v.accuracy))
    said = ""
    if measured:
        best = int(np.nanargmax(v.accuracy))
        said = (
            f"{judged.capitalize()} accuracy goes from {v.accuracy[at[0]]:.4f} to {v.accuracy[at[-1]]:.4f} in "
            f"{v.communications[-1]:,} communications; the best is {v.accuracy[best]:.4f}, in round {v.round[best]:,}."
        )
    if v.paper:
        said += f" Test accuracy ({PAPER_PROTOCOL})."
    caption = f"{said} Training loss is the mean over the clients that took part in the round."
    return [
        "<h2>Learning</h2>",
        _figure(pictures.lines(grid if measured else grid[1:]), "learning", "Learning", caption),
    ]


def _alignment(v: RunView) -> list[str]:
    p = v.probes
    if not len(p.round):
        return []
    x = _communications_at(v, p.round)
    n = f"n = {p.clients[-1]}"
    panels = [
        pictures.Panel("r(x)", "communications", [pictures.Curve("r(x)", x, p.r)], log=True),
        pictures.Panel(
            f"gradient diversity n·Δ ({n})", "communications", [pictures.Curve("n·Δ", x, p.diversity)], log=True
        ),
        pictures.Panel("mean cosine to the mean gradient", "communications", [pictures.Curve("cosine", x, p.cosine)]),
    ]
    figure = pictures.lines([panels], legend=False)
    caption = (
        f"How well the gradients of {p.clients[-1]} fixed clients agree: r(x) = 1/(2n) Σ |g_i − g|² goes from "
        f"{_number(p.r[0])} to {_number(p.r[-1])}; gradient diversity n·Δ = (1/n) Σ |g_i|² / |g|² is 1 when all gradients "
        f"are equal, and goes from {_number(p.diversity[0])} to {_number(p.diversity[-1])}."
    )
    return ["<h2>Gradient alignment</h2>", _figure(figure, "alignment", "Gradient alignment", caption)]


def _participation(v: RunView) -> list[str]:
    table = _columns(v.path, "clients", ["round", "client"])
    if not len(table["client"]):
        return []
    clients, rounds = table["client"].astype(np.int64), table["round"].astype(np.int64)
    population = max(_population(v), int(clients.max()) + 1)
    figure = pictures.participation(clients, rounds, population, int(max(v.round.max(initial=1), rounds.max())))
    often = np.bincount(clients, minlength=population)
    caption = (
        f"{int((often > 0).sum()):,} of {population:,} clients took part; a client took part in {often.min():,} to "
        f"{often.max():,} rounds, {often.mean():,.4g} on average. Blank: did not take part."
    )
    return ["<h2>Participation</h2>", _figure(figure, "participation", "Who took part", caption)]


def _partition_part(v: RunView) -> list[str]:
    counts, examples = _partition(v)
    if not len(examples):
        return []
    figure = pictures.partition(counts, examples, v.class_names)
    caption = "; ".join(f"{label}: {value}" for label, value in partition_table(counts, examples)) + "."
    return ["<h2>Partition</h2>", _figure(figure, "partition", "Clients and classes", caption.capitalize())]


def _population(v: RunView) -> int:
    for settings, key in ((v.data, "clients"), (v.settings, "partition.clients")):
        found = settings.get(key)
        if isinstance(found, int):
            return found
    return 0


def _communications_at(v: RunView, rounds: np.ndarray) -> np.ndarray:
    """The communications charged by the end of each of `rounds` (0 before the first round)."""
    total = np.concatenate([[0], v.communications])
    return total[np.searchsorted(v.round, rounds, "right")].astype(np.float64)


def _compared(groups: Sequence[Group], target: float | None) -> list[str]:
    """The curves of all groups. The best ones have colours, the others are thin and grey."""
    best = [np.mean([np.nanmax(v.accuracy, initial=-1.0) for v in g.runs]) for g in groups]
    leading = sorted(sorted(range(len(groups)), key=lambda i: -best[i])[:_SHOWN_GROUPS])
    series = {i: leading.index(i) if i in leading else None for i in range(len(groups))}
    views = [v for g in groups for v in g.runs]
    axes = [(label, name) for label, name in _axes(views)]
    seeds = max(len(g.runs) for g in groups)
    band = (
        " Lines are means over seeds at equal communications, bands reach from the least to the largest."
        if seeds > 1
        else ""
    )
    rest = f" In grey: the {len(groups) - len(leading)} other groups." if len(groups) > len(leading) else ""
    at = "" if target is None else f" The dashed line is the target, {target:g}."
    parts = []
    grid: list[list[pictures.Panel]] = []
    for what, kind in (("accuracy", "accuracy"), ("loss", "loss")):
        curves = [_mean_curves(g, kind, [name for _, name in axes], series[i]) for i, g in enumerate(groups)]
        if not any(np.isfinite(c.y).any() for drawn in curves for c in drawn):
            continue
        title = f"{'test' if all(v.paper for v in views) else 'validation' if not any(v.paper for v in views) else 'judged'} {what}"
        line = target if what == "accuracy" else None
        grid.append(
            [
                pictures.Panel(title, label, [drawn[j] for drawn in curves], line, log=what == "loss")
                for j, (label, _) in enumerate(axes)
            ]
        )
    if grid:
        caption = f"Accuracy and loss of {len(groups)} groups.{band}{at}{rest}"
        figure = pictures.lines(grid)
        parts += ["<h2>Learning</h2>", _figure(figure, "learning", "Learning of all groups", caption)]
    panels = []
    for title, name in (
        ("r(x)", "r"),
        ("gradient diversity n·Δ", "diversity"),
        ("mean cosine to the mean gradient", "cosine"),
    ):
        curves = [
            _mean_probe(g, name, series[i]) for i, g in enumerate(groups) if any(len(v.probes.round) for v in g.runs)
        ]
        if curves:
            panels.append(pictures.Panel(title, "communications", curves, log=name != "cosine"))
    if panels:
        measured = sorted({int(n) for v in views for n in np.unique(v.probes.clients)})
        on = " or ".join(f"{n:,}" for n in measured)
        caption = f"Agreement of the gradients of n = {on} fixed clients.{band}{rest}"
        parts += [
            "<h2>Gradient alignment</h2>",
            _figure(pictures.lines([panels]), "alignment", "Gradient alignment", caption),
        ]
    return parts


def _mean_curves(g: Group, kind: str, axes: Sequence[str], series: int | None) -> list[pictures.Curve]:
    """Mean, least and largest over the seeds at the communications at which all of them were measured; one curve per axis."""
    measured = [np.flatnonzero(np.isfinite(getattr(v, kind))) for v in g.runs]
    common, at = _aligned([v.communications[i] for v, i in zip(g.runs, measured, strict=True)])
    rows = np.array([getattr(v, kind)[i][a] for v, i, a in zip(g.runs, measured, at, strict=True)])
    xs = {
        name: np.array([getattr(v, name)[i][a] for v, i, a in zip(g.runs, measured, at, strict=True)]) for name in axes
    }
    return [
        _over_seeds(g.label, xs[name].mean(0) if name != "communications" else common, rows, series) for name in axes
    ]


def _mean_probe(g: Group, name: str, series: int | None) -> pictures.Curve:
    having = [v for v in g.runs if len(v.probes.round)]
    common, at = _aligned([_communications_at(v, v.probes.round) for v in having])
    rows = np.array([getattr(v.probes, name)[a] for v, a in zip(having, at, strict=True)])
    return _over_seeds(g.label, common, rows, series)


def _aligned(xs: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The values that all of `xs` have, and where each has them first."""
    common = reduce(np.intersect1d, xs)
    return common, [np.searchsorted(x, common) for x in xs]


def _over_seeds(label: str, x: np.ndarray, rows: np.ndarray, series: int | None) -> pictures.Curve:
    x = x.astype(np.float64)
    if len(rows) == 1 or series is None or not rows.size:
        return pictures.Curve(label, x, rows.mean(0) if rows.size else np.full(len(x), np.nan), series=series)
    return pictures.Curve(label, x, rows.mean(0), rows.min(0), rows.max(0), series)


# ------------------------------------------------------------------------------------------------------------------ HTML


def _figure(figure: "Figure", name: str, title: str, caption: str) -> str:
    drawing = pictures.inline(figure, name, f"{title}. {caption}")
    return f'<figure id="{name}">{drawing}<figcaption>{escape(caption)}</figcaption></figure>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names the rows; without any header text there is no header row."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>{head}<tbody>{body}</tbody></table></div>'


def _settings(title: str, settings: Settings, opened: bool = False) -> str:
    if not settings:
        return ""
    table = _table(["", ""], [[key, _leaf(value)] for key, value in settings.items()], title)
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{table}</details>"


def _fields(groups: Sequence[Group]) -> str:
    """What sets the groups apart, in full."""
    keys = list(dict.fromkeys(k for g in groups for k in g.fields))
    if not keys:
        return "<p>The runs differ in their seed only.</p>"
    rows = [[g.label, *(_leaf(g.fields[k]) if k in g.fields else "" for k in keys)] for g in groups]
    return _table(["group", *keys], rows, "What sets the groups apart")


def _cited() -> str:
    return f"<h2>Citation</h2><p>{escape(CITATION)}</p><pre>{escape(BIBTEX)}</pre>"


def _page(title: str, parts: Sequence[str]) -> str:
    def rule(variables: Mapping[str, str]) -> str:
        return "".join(f"{name}:{colour};" for name, colour in variables.items())

    style = (
        f":root{{color-scheme:light dark;{rule(pictures.LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{rule(pictures.DARK)}}}}}" + _STYLE
    )
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · raygrad</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


_STYLE = """
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{margin:0;font-size:1.75rem;line-height:1.2}
h2{margin:2.5rem 0 .75rem;font-size:1.2rem}
.sub,.note,figcaption{color:var(--muted)}
.sub{margin:.25rem 0 1.5rem}
.note,figcaption{font-size:.875rem;margin:.5rem 0 0}
figure{margin:0;break-inside:avoid}
svg{display:block;width:100%;height:auto}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:0 0 .5rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem 1.25rem .3rem 0;border-bottom:1px solid var(--grid)}
th[scope=row]{font-weight:400;color:var(--muted)}
thead th{font-weight:600}
pre{overflow-x:auto;padding:.75rem 1rem;border:1px solid var(--grid);border-radius:4px;font-size:.875rem}
details{margin:.5rem 0}
summary{cursor:pointer}
details caption{display:none}
"""

# ------------------------------------------------------------------------------------------------------- numbers as text


def _leaf(value: Leaf) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: object) -> str:
    if not isinstance(value, int | float | np.number):
        return str(value)
    return f"{float(value):.4g}" if isfinite(value) else "∞" if float(value) > 0 else "not finite"


def _bytes(count: int | np.integer) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.4g} {unit}"
        amount /= 1000
    return f"{amount:.4g} TB"


def _seconds_text(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:,.1f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"
