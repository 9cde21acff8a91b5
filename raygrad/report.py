"""What a run shows when it is over: a small table, one self-contained HTML page, and the comparison of several runs.

Everything is read from the tables and JSON files of the run folders, also of runs that go on or were stopped. Runs that
differ only in their seed are one group; groups are compared at equal communications.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from html import escape
from math import floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.compute as pc

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

    @property
    def named(self) -> list[tuple[str, np.ndarray]]:
        """The three measures under the names that tables and pictures give them."""
        names = ("r(x)", "gradient diversity n·Δ", "mean cosine to the mean gradient")
        return list(zip(names, (self.r, self.diversity, self.cosine), strict=True))


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

    def last(self, measure: Literal["accuracy", "loss"]) -> tuple[int, float] | None:
        """The newest value of `accuracy` or `loss` and its round; None if there is none.

        A finished run measures once more after its last round, in final.json.
        """
        values = self.accuracy if measure == "accuracy" else self.loss
        at = np.flatnonzero(np.isfinite(values))
        newest = (int(self.round[at[-1]]), float(values[at[-1]])) if len(at) else None
        end, value = self.final.get("round"), self.final.get(f"validation.{measure}")
        if self.paper or not isinstance(end, int) or not isinstance(value, int | float) or not isfinite(value):
            return newest
        return newest if newest is not None and newest[0] >= end else (end, float(value))


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


# --- reading a run


def view(run: Path) -> RunView:
    """The run in folder `run`, finished or not. Raises BadInput when it is no run folder or a file in it is damaged."""
    file = run / "experiment.json"
    if not file.is_file():
        raise BadInput(f"{run} is no run folder: it has no experiment.json; `raygrad list runs` shows what there is")
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
        probes=Probes(probes["round"], probes["clients"], probes["r"], probes["diversity"], probes["cosine"]),
    )


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, Leaf]:
    """A nested JSON object with dotted names: {"local": {"steps": 5}} -> {"local.steps": 5}; lists become text."""
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
            f"{path} has schema_version {version}, but this raygrad reads {_SCHEMA_VERSION}; use a newer one"
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


# --- one run's table


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
    if v.paper:
        rows += [(label, f"{text}; {PAPER_PROTOCOL}") for label, text in _measured("test accuracy", v, "accuracy")]
    else:
        rows += _measured("validation accuracy", v, "accuracy")
        rows += _measured("validation loss", v, "loss")
    rows += _tested(v)
    p = v.probes
    if len(p.round):
        first, last = f"(round {p.round[0]:,})", f"(round {p.round[-1]:,}), n = {p.clients[-1]:,} clients"
        rows += [(label, f"{_number(y[0])} {first} → {_number(y[-1])} {last}") for label, y in p.named]
    if len(v.round):
        rows.append(("clients", f"{v.clients_asked.sum():,} asked, {v.clients_answered.sum():,} answered"))
    gangs = tables.read(v.path, "operations", ["attempt", "outcome"])
    if gangs.num_rows:
        repeated = gangs.filter(pc.field("attempt") > 1).num_rows
        failed = gangs.filter(pc.field("outcome") != "answered").num_rows
        rows.append(("gangs", f"{gangs.num_rows:,} attempts, {repeated:,} repeated, {failed:,} failed"))
    return rows


def describe(settings: Settings, part: str) -> str:
    """One part of an experiment in words: `fedga (lr 0.1, beta 0.05)`."""
    inside = {k.removeprefix(f"{part}."): v for k, v in settings.items() if k.startswith(f"{part}.")}
    kind = inside.pop("kind", part)
    rest = ", ".join(f"{k} {_leaf(v)}" for k, v in inside.items() if v is not None)
    return f"{kind} ({rest})" if rest else str(kind)


def _measured(label: str, v: RunView, measure: Literal["accuracy", "loss"]) -> list[tuple[str, str]]:
    last = v.last(measure)
    if last is None:
        return []
    text = f"{last[1]:.4f} final (round {last[0]:,})"
    values = v.accuracy if measure == "accuracy" else -v.loss
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        text += f", {abs(values[best]):.4f} best (round {v.round[best]:,})"
    return [(label, text)]


def _tested(v: RunView) -> list[tuple[str, str]]:
    """The test evaluation at the end."""
    names = [k for k in v.final if k == "loss" or k.startswith("metrics.")]
    if not names:
        return []
    values = ", ".join(
        f"{k.removeprefix('metrics.')} {_number(v.final[k], '.4f')}" for k in sorted(names, reverse=True)
    )
    examples, after = _leaf(v.final.get("examples")), _leaf(v.final.get("round"))
    return [("test set", f"{values} ({examples} examples, after round {after})")]


# --- several runs


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
    """What a group's label says before the value of each field: `beta=`, or nothing for the algorithm's kind.

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


def common_target(groups: Sequence[Group]) -> float | None:
    """The largest accuracy that every run reaches, rounded down to 0.01 (from 0.99 on to 0.001).

    Runs without any accuracy do not count. None when nothing is left.
    """
    best = [float(np.nanmax(v.accuracy)) for g in groups for v in g.runs if np.isfinite(v.accuracy).any()]
    least = min(best, default=0.0)
    step = 1000 if least >= 0.99 else 100
    return floor(least * step + 1e-9) / step or None


def comparison(runs: Sequence[Path], target: float | None = None) -> tuple[list[str], list[list[str]]]:
    """The groups of several runs side by side: the header and one row per group, as text.

    Means and sample standard deviations are over seeds. Without a `target` accuracy it is `common_target`.
    """
    groups = group(_views(runs))
    return _comparison(groups, _target(groups, target)[0])


def _target(groups: Sequence[Group], target: float | None) -> tuple[float | None, str]:
    """The target accuracy and where it comes from."""
    if target is None:
        return common_target(groups), "the largest accuracy that every run reaches, rounded down"
    if not 0 < target <= 1:
        raise BadInput(f"the target accuracy is {target}; it must be above 0 and at most 1")
    return target, "as asked for"


def _judged(groups: Sequence[Group]) -> str:
    """What accuracy and loss were measured on."""
    paper = {v.paper for g in groups for v in g.runs}
    return "validation or test" if len(paper) > 1 else "test" if True in paper else "validation"


def _comparison(groups: Sequence[Group], target: float | None) -> tuple[list[str], list[list[str]]]:
    judged = _judged(groups)
    to = "" if target is None else f" to {target:g}"
    costs = [f"rounds{to}", f"communications{to}", f"MB{to}", f"seconds{to}"] if target is not None else []
    header = ["group", "seeds", *costs, f"final {judged} accuracy", f"best {judged} accuracy"]
    if judged != "test":
        header.append("final test accuracy")
    rows = []
    for g in groups:
        row = [g.label, str(len(g.runs))]
        if target is not None:
            row += _costs([reach(v, target) for v in g.runs])
        curves = [v.accuracy[np.isfinite(v.accuracy)] for v in g.runs]
        row.append(_spread([found[1] for v in g.runs if (found := v.last("accuracy")) is not None]))
        row.append(_spread([c.max() for c in curves if len(c)]))
        tests = [v.final.get("metrics.accuracy") for v in g.runs]
        row.append(_spread([float(t) for t in tests if isinstance(t, int | float)]))
        rows.append(row[: len(header)])
    return header, rows


def _costs(reached: Sequence[Reached | None]) -> list[str]:
    done = [r for r in reached if r is not None]
    if not done:
        return ["not reached"] * 4
    some = "" if len(done) == len(reached) else f" ({len(done)} of {len(reached)} seeds)"
    timed = [r.seconds for r in done if isfinite(r.seconds)]
    return [
        _amount([r.rounds for r in done]) + some,
        _amount([r.communications for r in done]) + some,
        _amount([r.bytes / 1e6 for r in done]) + some,
        _amount(timed) + (some if timed else ""),
    ]


def _amount(values: Sequence[float]) -> str:
    """`_spread` with about three digits."""
    if len(values) == 1:
        return f"{values[0]:,.0f}" if values[0] >= 1000 else f"{values[0]:.4g}"
    digits = len(str(int(np.mean(values)))) if values else 0
    return _spread(values, max(0, 3 - digits))


def _spread(values: Sequence[float], decimals: int = 4) -> str:
    """`mean ± sample standard deviation`; one value stands alone."""
    if not values:
        return "–"
    mean = f"{float(np.mean(values)):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {float(np.std(values, ddof=1)):,.{decimals}f}"


def _views(runs: Sequence[Path]) -> list[RunView]:
    if not runs:
        raise BadInput("a report needs at least one run; `raygrad list runs` shows what there is")
    return [view(run) for run in dict.fromkeys(Path(r).resolve() for r in runs)]


# --- partitions


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
    """A run's label counts [N, C] (None without classes) and examples [N], validation parts included, by client."""
    table = tables.read(v.path, "partition")
    order = np.argsort(table["client"].to_numpy(zero_copy_only=False), kind="stable")
    examples = (table["examples"].to_numpy(zero_copy_only=False) + table["validation_examples"].to_numpy())[order]
    lists = table["label_counts"].combine_chunks()
    if not len(examples) or lists.null_count:
        return None, examples
    lengths = np.unique(lists.value_lengths().to_numpy())
    if len(lengths) != 1:
        where = tables.folder(v.path, "partition")
        raise BadInput(f"{where} is damaged: clients have {lengths} label counts, expected equally many each")
    return lists.flatten().to_numpy().reshape(len(examples), lengths[0])[order], examples


def _three(values: np.ndarray) -> str:
    return f"min {int(values.min()):,}, median {float(np.median(values)):,.4g}, max {int(values.max()):,}"


# --- the page


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
    alone = [Group(v.name, {}, (v,))]
    repeat = f"raygrad run experiment.json\nraygrad resume {v.title}\nraygrad digest {v.title}"
    parts = [
        f"<h1>{escape(v.name)}</h1>",
        f'<p class="sub">run {escape(v.title)} · experiment {escape(v.hash[:12])}</p>',
        _table([], _summary(v), "What the run did"),
        *_learning(alone, None),
        *_alignment(alone),
        *_participation(v),
        *_partitioned(v),
        "<h2>Settings</h2>",
        _settings("Experiment", v.settings, opened=True),
        _settings("Machines", v.where),
        _settings("Numerics", v.numerics),
        "<h2>How to repeat it</h2>",
        "<p>The first line, in the run's folder, trains the same model again. The second continues the run where it "
        "stopped (with <code>--rounds</code>, up to a larger total). The third prints one line, which is the same for "
        f"runs with the same result.</p><pre>{escape(repeat)}</pre>",
        _CITED,
    ]
    return _page(v.title, parts)


def _several(views: Sequence[RunView], target: float | None) -> str:
    groups = group(views)
    goal, origin = _target(groups, target)
    header, rows = _comparison(groups, goal)
    owner = {id(v): g.label for g in groups for v in g.runs}
    runs = [
        [
            v.title,
            owner.get(id(v), "not counted: repeats a seed"),
            _leaf(v.settings.get("seed")),
            f"{len(v.round):,}" if v.finished else f"{len(v.round):,} of {v.planned:,}",
            _place(v),
            v.hash[:12],
        ]
        for v in views
    ]
    differing = {k for g in groups for k in g.fields} | {"seed"}
    shared = {k: x for k, x in views[0].settings.items() if k not in differing}
    title = f"{len(views)} runs, {len(groups)} {'group' if len(groups) == 1 else 'groups'}"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="sub">{escape(", ".join(sorted({v.name for v in views})))}</p>',
        _table(header, rows, "Cost and accuracy"),
        f'<p class="note">{escape(_protocol(groups, goal, origin))}</p>',
        *_learning(groups, goal),
        *_alignment(groups),
        "<h2>Groups</h2>",
        _fields(groups),
        _table(["run", "group", "seed", "rounds", "on", "experiment"], runs, "Runs"),
        _settings("What all runs share", shared),
        "<h2>How to repeat it</h2>",
        "<p>In the folder of a run:</p><pre>raygrad run experiment.json</pre>",
        _CITED,
    ]
    return _page(title, parts)


def _place(v: RunView) -> str:
    """On what a run ran."""
    on, hosts = _leaf(v.where.get("on")), v.where.get("hosts")
    return f"{on}, {_leaf(hosts)} hosts" if on == "ray" and hosts is not None else on


def _protocol(groups: Sequence[Group], goal: float | None, origin: str) -> str:
    """How the numbers of a comparison were made."""
    views = [v for g in groups for v in g.runs]
    said = [f"Target accuracy {goal:g}: {origin}." if goal is not None else "No run has an accuracy."]
    if any(not v.paper for v in views):
        said.append(
            "Validation accuracy is measured on parts of the clients' shards; the test set is used once, at the end."
        )
    if any(v.paper for v in views):
        said.append(f"Test accuracy ({PAPER_PROTOCOL}).")
    said.append("Mean ± sample standard deviation over seeds. MB: both directions together.")
    if len({_place(v) for v in views}) > 1:
        said.append("The runs did not all use the same machines: compare their seconds with care.")
    return " ".join(said)


# --- the pictures on the page

Axis = Literal["communications", "seconds", "virtual_s"]
Measure = Literal["accuracy", "loss", "train_loss"]


def _learning(groups: Sequence[Group], target: float | None) -> list[str]:
    """Accuracy and loss over communications and seconds; of a single run the training loss, too."""
    views = [v for g in groups for v in g.runs]
    if not any(len(v.round) for v in views):
        return ["<p>No round is finished yet.</p>"]
    series, judged = _series(groups), _judged(groups)
    axes: dict[Axis, str] = {"communications": "communications"}
    if any(np.isfinite(v.seconds).any() for v in views):
        axes["seconds"] = "wall seconds"
    if any(v.virtual_s.any() for v in views):
        axes["virtual_s"] = "virtual seconds"

    def panels(title: str, curves: Sequence[tuple[Group, Measure, str, int | None]], line: float | None, log: bool):
        drawn = [(_mean_over_seeds(g, what, list(axes)), label, colour) for g, what, label, colour in curves]
        return [
            pictures.Panel(
                title, text, [pictures.Curve(label, *curve[axis], colour) for curve, label, colour in drawn], line, log
            )
            for axis, text in axes.items()
        ]

    alone = len(views) == 1
    labels = [judged if alone else g.label for g in groups]
    named = list(zip(groups, labels, series, strict=True))
    losses: list[tuple[Group, Measure, str, int | None]] = [(g, "loss", label, s) for g, label, s in named]
    if alone:
        losses.insert(0, (groups[0], "train_loss", "training", 1))
    grid = [panels("loss" if alone else f"{judged} loss", losses, None, True)]
    if any(np.isfinite(v.accuracy).any() for v in views):
        title = f"{judged} accuracy" + (" (paper's protocol)" if judged == "test" else "")
        grid.insert(0, panels(title, [(g, "accuracy", label, s) for g, label, s in named], target, False))
    caption = _told(views[0]) if alone else f"Accuracy and loss of {len(groups)} groups. {_legend(groups, series)}"
    if target is not None:
        caption += f" The dotted line is the target, {target:g}."
    return ["<h2>Learning</h2>", _figure(pictures.lines(grid), "learning", "Learning", caption)]


def _told(v: RunView) -> str:
    """The learning curves of one run in words."""
    said = ["Training loss: mean over the clients that took part in a round."]
    at = np.flatnonzero(np.isfinite(v.accuracy))
    if len(at):
        what = f"Test accuracy ({PAPER_PROTOCOL})" if v.paper else "Validation accuracy"
        best = at[np.argmax(v.accuracy[at])]
        said.insert(
            0,
            f"{what}: from {v.accuracy[at[0]]:.4f} to {v.accuracy[at[-1]]:.4f} in {v.communications[at[-1]]:,} "
            f"communications; the best is {v.accuracy[best]:.4f}, in round {v.round[best]:,}.",
        )
    return " ".join(said)


def _alignment(groups: Sequence[Group]) -> list[str]:
    """r(x), gradient diversity and cosines over communications."""
    views = [v for g in groups for v in g.runs]
    probed = [v for v in views if len(v.probes.round)]
    if not probed:
        return []
    series = _series(groups)
    counts = sorted({int(n) for v in probed for n in np.unique(v.probes.clients)})
    clients = " or ".join(f"{n:,}" for n in counts)
    panels = []
    for i, (name, _) in enumerate(probed[0].probes.named):
        title = f"{name} (n = {clients})" if "n·Δ" in name else name
        curves = [pictures.Curve(g.label, *_mean_probe(g, i), s) for g, s in zip(groups, series, strict=True)]
        panels.append(pictures.Panel(title, "communications", curves, log="cosine" not in name))
    caption = (
        f"How well the gradients g_i of n = {clients} fixed clients agree, where g is their mean: "
        "r(x) = 1/(2n) Σ |g_i − g|²; gradient diversity n·Δ = 1/n Σ |g_i|² / |g|², which is 1 where all gradients are "
        "equal; the mean cosine between g_i and g. "
    )
    if len(views) == 1:
        changes = [f"{name} from {_number(y[0])} to {_number(y[-1])}" for name, y in views[0].probes.named]
        caption += f"Here: {', '.join(changes)}."
    else:
        caption += _legend(groups, series)
    return [
        "<h2>Gradient alignment</h2>",
        _figure(pictures.lines([panels]), "alignment", "Gradient alignment", caption),
    ]


def _participation(v: RunView) -> list[str]:
    table = _columns(v.path, "clients", ["round", "client"])
    if not len(table["client"]):
        return []
    clients, rounds = table["client"].astype(np.int64), table["round"].astype(np.int64)
    known = [n for n in (v.data.get("clients"), v.settings.get("partition.clients")) if isinstance(n, int)]
    population = max([*known[:1], int(clients.max()) + 1])
    figure = pictures.participation(clients, rounds, population, int(max(v.round.max(initial=1), rounds.max())))
    often = np.bincount(clients, minlength=population)
    caption = (
        f"{int((often > 0).sum()):,} of {population:,} clients took part; a client took part in {often.min():,} to "
        f"{often.max():,} rounds, {often.mean():,.4g} on average. Blank: did not take part."
    )
    return ["<h2>Participation</h2>", _figure(figure, "participation", "Who took part", caption)]


def _partitioned(v: RunView) -> list[str]:
    counts, examples = _partition(v)
    if not len(examples):
        return []
    rows = partition_table(counts, examples)
    caption = "What each client holds, validation parts included." + (
        " Blank: none of the class." if counts is not None else ""
    )
    told = "; ".join(f"{label}: {value}" for label, value in rows)
    drawing = _figure(
        pictures.partition(counts, examples, v.class_names), "partition", "Clients and classes", caption, told
    )
    return ["<h2>Partition</h2>", drawing, _table([], rows, "The partition")]


def _series(groups: Sequence[Group]) -> list[int | None]:
    """Which look each group's curves have: the groups with the best accuracy have colours, the others are grey."""
    best = [max((float(np.nanmax(v.accuracy, initial=-1)) for v in g.runs), default=-1.0) for g in groups]
    leading = sorted(sorted(range(len(groups)), key=lambda i: -best[i])[:_SHOWN_GROUPS])
    return [leading.index(i) if i in leading else None for i in range(len(groups))]


def _legend(groups: Sequence[Group], series: Sequence[int | None]) -> str:
    """What lines, bands and grey mean."""
    said = []
    if any(len(g.runs) > 1 for g in groups):
        said.append("Lines: means over seeds at equal communications; bands: from the least to the largest.")
    if None in series:
        said.append(f"Grey: the {series.count(None)} groups with lower accuracy.")
    return " ".join(said)


Line = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]
"""x, mean, least and largest (None for a single seed), each [p]."""


def _mean_over_seeds(g: Group, measure: Measure, axes: Sequence[Axis]) -> dict[Axis, Line]:
    """The group's curve where all its seeds were measured, over each axis; seconds are means, too."""
    at = [np.flatnonzero(np.isfinite(getattr(v, measure))) for v in g.runs]
    common = _common([v.communications[i] for v, i in zip(g.runs, at, strict=True)])
    at = [i[c] for i, c in zip(at, common, strict=True)]
    rows = np.stack([getattr(v, measure)[i] for v, i in zip(g.runs, at, strict=True)])
    xs: dict[Axis, np.ndarray] = {
        a: np.stack([getattr(v, a)[i] for v, i in zip(g.runs, at, strict=True)]).mean(0) for a in axes
    }
    return {a: _line(x, rows) for a, x in xs.items()}


def _mean_probe(g: Group, measure: int) -> Line:
    """The group's curve of one alignment measure over communications."""
    xs = [_communications_at(v, v.probes.round) for v in g.runs]
    common = _common(xs)
    rows = np.stack([v.probes.named[measure][1][i] for v, i in zip(g.runs, common, strict=True)])
    return _line(xs[0][common[0]], rows)


def _communications_at(v: RunView, rounds: np.ndarray) -> np.ndarray:
    """The communications charged by the end of each of `rounds` (0 before the first round)."""
    return np.concatenate([[0], v.communications])[np.searchsorted(v.round, rounds, "right")]


def _common(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each of the ascending `xs`, where it has the values that all of them have."""
    shared = reduce(np.intersect1d, xs)
    return [np.searchsorted(x, shared) for x in xs]


def _line(x: np.ndarray, rows: np.ndarray) -> Line:
    x = x.astype(np.float64)
    return (x, rows.mean(0), None, None) if len(rows) == 1 else (x, rows.mean(0), rows.min(0), rows.max(0))


# --- HTML


def _figure(figure: "Figure", name: str, title: str, caption: str, told: str = "") -> str:
    """A picture with its caption; `told` is further alternative text."""
    drawing = pictures.inline(figure, name, f"{title}. {caption} {told}".strip())
    return f'<figure id="{name}">{drawing}<figcaption>{escape(caption)}</figcaption></figure>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names the rows. With a header its cells do not wrap."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    opening = '<div class="wide"><table class="grid">' if header else '<div class="wide"><table>'
    return f"{opening}<caption>{escape(caption)}</caption>{head}<tbody>{body}</tbody></table></div>"


def _settings(title: str, settings: Settings, opened: bool = False) -> str:
    if not settings:
        return ""
    table = _table([], [(key, _leaf(value)) for key, value in settings.items()], title)
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{table}</details>"


def _fields(groups: Sequence[Group]) -> str:
    """What sets the groups apart, in full."""
    keys = list(dict.fromkeys(k for g in groups for k in g.fields))
    if not keys:
        return "<p>The runs differ in their seed only.</p>"
    rows = [[g.label, *(_leaf(g.fields[k]) if k in g.fields else "" for k in keys)] for g in groups]
    return _table(["group", *keys], rows, "What sets the groups apart")


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


_CITED = f"<h2>Citation</h2><p>{escape(CITATION)}</p><pre>{escape(BIBTEX)}</pre>"

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
thead th{font-weight:600;vertical-align:bottom}
.grid :is(th,td){padding-right:.9rem}
.grid tbody :is(th,td){white-space:nowrap}
pre{overflow-x:auto;padding:.75rem 1rem;border:1px solid var(--grid);border-radius:4px;font-size:.875rem}
details{margin:.5rem 0}
summary{cursor:pointer}
details caption{display:none}
"""

# --- numbers as text


def _leaf(value: Leaf) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: object, form: str = ".4g") -> str:
    if not isinstance(value, int | float | np.number):
        return str(value)
    return f"{float(value):{form}}" if isfinite(value) else "∞" if float(value) > 0 else "not finite"


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
