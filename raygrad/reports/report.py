"""What a run shows when it is over, in numbers: a small table, the comparison of several runs, who holds what.

`raygrad.reports.page` makes a page of it. Everything is read from the tables and JSON files of the run folders, also
of runs that go on or were stopped. Runs that differ only in their seed are one group; groups are compared at equal
communications.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from pathlib import Path
from typing import Literal

import numpy as np

from raygrad import logs
from raygrad.errors import BadInput
from raygrad.files import storage, tables
from raygrad.reports import pictures, turnout

Leaf = str | int | float | bool | None
Settings = Mapping[str, Leaf]
"""A JSON object laid flat: "algorithm.beta" -> 0.05."""
Measure = Literal["accuracy", "loss"]

LONGEST_LABEL = 60
"""Characters of a group's label: more fit no legend and no head of a column."""
PAPER_PROTOCOL = "paper's protocol: best over the run, no validation set"

_SCHEMA_VERSION = 1


PROBED = {
    "r": "r(x)",
    "r_gradient_norm": "‖∇r(x)‖",
    "diversity": "gradient diversity n·Δ",
    "cosine": "mean cosine to the mean gradient",
    "pairwise_cosine": "mean cosine between clients' gradients",
    "drift": "client drift",
    "client_accuracy": "accuracy per client",
    "worst_accuracy": "accuracy of the worst tenth of clients",
    "weighted_diversity": "weighted gradient diversity Λ",
    "batch_bound": "batch that pays, B(x)",
}
"""The measures of the table `probes` that reports show, under the names that they have there."""


@dataclass(frozen=True, eq=False)
class Probes:
    """The alignment of the clients, measured after some rounds; all arrays [p]."""

    round: np.ndarray
    clients: np.ndarray
    values: Mapping[str, np.ndarray]  # by the keys of `PROBED`; NaN where not measured

    @property
    def named(self) -> dict[str, np.ndarray]:
        """The measures that were measured at least once, by the keys of `PROBED`."""
        return {name: self.values[name] for name in PROBED if not np.isnan(self.values[name]).all()}

    def ends(self, name: str) -> list[tuple[int, float]]:
        """The first and the last value of a measure, each with its round; one of them if there is only one."""
        y = self.values[name]
        at = np.flatnonzero(~np.isnan(y))
        return [(int(self.round[i]), float(y[i])) for i in dict.fromkeys((int(at[0]), int(at[-1])))]


@dataclass(frozen=True, eq=False)
class RunView:
    """A run as its report sees it. Arrays are [R], one entry per finished round.

    Communications, bytes and seconds are cumulative: what was charged and spent by the end of the round. Values that
    were not measured are NaN. What final.json holds of the last round counts as measured in that round.
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
    ended: Settings  # why it ended before its last round: state and message; empty if it did not
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
    newest: Mapping[tuple[str, str], tuple[int, float]]  # (part, metric), the user's own included -> round, value
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
    def state(self) -> str:
        """finished, diverged, below_quorum, failed, or unfinished: stopped, or under way."""
        return "finished" if self.finished and self.final else str(self.ended.get("state", "unfinished"))

    @property
    def rounds(self) -> str:
        """How many rounds are done, and of how many if it is not finished."""
        done = f"{len(self.round):,}"
        return done if self.finished else f"{done} of {self.planned:,} ({self.state.replace('_', ' ')})"

    @property
    def paper(self) -> bool:
        """Whether the run is judged on the test set, as the papers' protocol does."""
        return self.settings.get("evaluation.mode") == "paper"

    @property
    def asynchronous(self) -> bool:
        """Whether clients work at different models."""
        return self.settings.get("stragglers.kind") == "buffered"

    @property
    def modelled(self) -> bool:
        """Whether time went by on the modelled clock."""
        return bool(self.virtual_s.any())

    @property
    def population(self) -> int:
        """The number of all clients, as far as the run has recorded it."""
        known = self.data.get("clients", self.settings.get("partition.clients"))
        return known if isinstance(known, int) else 0

    @property
    def part(self) -> Literal["validation", "test"]:
        """What the run is judged on: the validation parts, or the test set under the papers' protocol."""
        return "test" if self.paper else "validation"

    @property
    def accuracy(self) -> np.ndarray:
        """The accuracy on `part`."""
        return self.test_accuracy if self.paper else self.validation_accuracy

    @property
    def loss(self) -> np.ndarray:
        """The loss on `part`."""
        return self.test_loss if self.paper else self.validation_loss

    def last(self, measure: Measure) -> tuple[int, float] | None:
        """The newest value of `accuracy` or `loss` and its round; None if there is none."""
        values = getattr(self, measure)
        at = np.flatnonzero(np.isfinite(values))
        return (int(self.round[at[-1]]), float(values[at[-1]])) if len(at) else None

    def best(self, measure: Measure) -> tuple[int, float] | None:
        """The largest `accuracy` or the least `loss` and its first round; None if there is none."""
        values = getattr(self, measure)
        if not np.isfinite(values).any():
            return None
        at = int(np.nanargmax(values) if measure == "accuracy" else np.nanargmin(values))
        return int(self.round[at]), float(values[at])


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
    virtual_s: float | None = None  # None where nothing is modelled


# --- reading a run


def experiment_hash(experiment: Mapping[str, object]) -> str:
    """The hash of an experiment.json's settings, as `Experiment.hash` is; a test holds the two together."""
    counted = {n: None if n in ("rounds", "failures", "init") else v for n, v in experiment.items()}
    devices = experiment.get("devices")
    if isinstance(devices, dict) and devices.get("sha256"):
        counted["devices"] = {**devices, "path": None}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def view(run: Path) -> RunView:
    """The run in folder `run`, finished or not. Raises BadInput when it is no run folder or a file in it is damaged."""
    file = run / "experiment.json"
    if not file.is_file():
        raise BadInput(f"{run} is no run folder: it has no experiment.json; `raygrad list runs` shows what there is")
    record = _json(file)
    experiment = record.get("experiment")
    if not isinstance(experiment, dict):
        raise BadInput(f'{file} is damaged: expected the settings under "experiment"')
    if experiment_hash(experiment) != record.get("hash"):
        raise BadInput(f"{file} was changed since the run started: its settings are not those that were run")
    data = _json(run / "data.json", optional=True)
    names = data.get("class_names")
    final = _described(_json(run / "final.json", optional=True))
    measured = measured_at_end(final)
    rounds = _columns(run, "rounds")
    settings = flatten(experiment)
    paper = settings.get("evaluation.mode") == "paper"
    for (part, metric), (end, value) in measured.items():
        curve = rounds.get(f"{part}_{metric}")
        if curve is not None and part == ("test" if paper else "validation"):
            curve[(rounds["round"] == end) & np.isnan(curve)] = value
    probes = _columns(run, "probes")
    return RunView(
        path=run,
        name=str(record.get("name", run.resolve().parent.name)),
        id=str(record.get("id", run.resolve().name)),
        hash=str(record.get("hash", "")),
        settings=settings,
        where=_described(_json(run / "where.json", optional=True)),
        numerics=_described(_json(run / "numerics.json", optional=True)),
        data=_described({k: v for k, v in data.items() if k != "class_names"}),
        class_names=tuple(str(n) for n in names) if isinstance(names, list) else (),
        final=final,
        ended=ended(run, len(rounds["round"])),
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
        newest=_newest(run, measured),
        probes=Probes(probes["round"], probes["clients"], {name: probes[name] for name in PROBED}),
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


def ended(run: Path, done: int) -> Settings:
    """Why a run ended after `done` rounds, before its last one: state and message; empty if it did not.

    Raises BadInput for a damaged file.
    """
    found = _described(_json(run / "ended.json", optional=True))
    return found if found.get("round") == done else {}


def _columns(run: Path, name: str, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """A table's columns, ordered by round; nulls become NaN."""
    table = tables.read(run, name, columns)
    found = {c: table[c].to_numpy(zero_copy_only=False) for c in table.column_names}
    order = np.argsort(found["round"], kind="stable")
    return {c: values[order] for c, values in found.items()}


def measured_at_end(final: Settings) -> dict[tuple[str, str], tuple[int, float]]:
    """What was measured after the last round, as final.json has it: (part, metric) -> (round, value)."""
    end = final.get("round")
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for key, value in final.items():
        part, _, metric = ("test", "", key) if key == "loss" else key.partition(".")
        part = "test" if part == "metrics" else part
        known = part in ("validation", "test") and metric not in ("", "examples")
        if known and isinstance(end, int) and isinstance(value, int | float):
            found[part, metric] = (end, float(value))
    return found


def _newest(
    run: Path, measured: Mapping[tuple[str, str], tuple[int, float]]
) -> dict[tuple[str, str], tuple[int, float]]:
    """The newest value of every metric: of the table `metrics`, or `measured` after the last round."""
    table = tables.read(run, "metrics").sort_by("round")
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for index, part, metric, value in zip(*(c.to_pylist() for c in table.columns), strict=True):
        if metric != "examples":
            found[part, metric] = (index, value)
    return found | {k: x for k, x in measured.items() if k not in found or found[k][0] <= x[0]}


def _seconds(run: Path, rounds: np.ndarray) -> np.ndarray:
    """The cumulative wall seconds at each round; a round that a restart repeated counts with its last time."""
    seconds = _columns(run, "seconds", ["round", "elapsed_s"])
    known, at = np.unique(np.concatenate((rounds, seconds["round"])), return_inverse=True)
    latest = np.full(len(known), np.nan)
    np.fmax.at(latest, at[len(rounds) :], seconds["elapsed_s"])
    return latest[at[: len(rounds)]]


# --- one run's table


def summary(run: Path) -> list[tuple[str, str]]:
    """The small table at the end of a run: (label, value). What was not measured has no row."""
    return summary_of(view(run))


def summary_of(v: RunView) -> list[tuple[str, str]]:
    """`summary` of a run that was read already."""
    rows = [("algorithm", describe(v.settings, "algorithm"))]
    clients = {"partition.clients": v.data["clients"]} if "clients" in v.data else {}  # a natural partition finds out
    rows.append(("data", f"{describe(v.settings, 'data')}; {describe({**v.settings, **clients}, 'partition')}"))
    rows += _examples(v)
    if changes := v.settings.get("changes"):
        rows.append(("changed on the way", "; ".join(change(c) for c in str(changes).split(", "))))
    rows.append(("rounds", v.rounds))
    if v.ended:
        rows.append(("ended early", str(v.ended.get("message", ""))))
    if len(v.round):
        rows.append(("communications", f"{v.communications[-1]:,}"))
        rows.append(("bytes down / up", f"{_bytes(v.bytes_down[-1])} / {_bytes(v.bytes_up[-1])}"))
    if np.isfinite(v.seconds).any():
        spent = float(np.nanmax(v.seconds))
        rows.append(("wall time", f"{_seconds_text(spent)}, {len(v.round) / max(spent, 1e-9):.3g} rounds/s"))
    if v.modelled:
        rows.append(("virtual time", _seconds_text(float(v.virtual_s[-1]))))
    rows += _measured(v)
    p = v.probes
    for name in p.named:
        told = " → ".join(f"{number(y)} (round {index:,})" for index, y in p.ends(name))
        rows.append((PROBED[name], f"{told}, n = {p.clients[-1]:,} clients"))
    rows += _expected(v)
    if len(v.round):
        rows.append(("clients", str(turnout.turnout(v.path, v.asynchronous))))
    leaning = turnout.leaning(v.path, v.population) if v.asynchronous else None
    if leaning is not None:
        rows.append(("leans to fast clients", str(leaning)))
    gangs = turnout.gangs(v.path)
    if gangs is not None:
        rows.append(("gangs", gangs))
    return rows


def _expected(v: RunView) -> list[tuple[str, str]]:
    """What theory says of the run's alignment."""
    net = net_alignment(v)
    if net is None:
        return []
    rows = [("net alignment against GD", f"{net.coefficient:+.4g} ∇r(x) a round at {net.at}: {net.meaning}")]
    if net.beta is not None:
        to_scaffold, to_sgd = matching_betas(net.alpha, net.steps)
        told = f"{number(to_scaffold)} as SCAFFOLD, {number(to_sgd)} as sequential SGD; here {number(net.beta)}"
        rows.append(("β that aligns as much", told))
    return rows


def describe(settings: Settings, part: str) -> str:
    """One part of an experiment in words: `fedga (lr 0.1, beta 0.05)`."""
    inside = {k.removeprefix(f"{part}."): v for k, v in settings.items() if k.startswith(f"{part}.")}
    kind = inside.pop("kind", part)
    rest = ", ".join(f"{k} {leaf(v)}" for k, v in inside.items() if v is not None)
    return f"{kind} ({rest})" if rest else str(kind)


def _examples(v: RunView) -> list[tuple[str, str]]:
    """How many examples there are to train on, to validate on and to test on."""
    table = tables.read(v.path, "partition", ["examples", "validation_examples"])
    if not table.num_rows:
        return []
    training, validation = (int(c.to_numpy().sum()) for c in table.columns)
    test = v.data.get("test_examples")
    rest = [f"{n:,} {name}" for name, n in (("validation", validation), ("test", test)) if isinstance(n, int) and n]
    return [("examples", ", ".join([f"{training:,} training", *rest]))]


def _measured(v: RunView) -> list[tuple[str, str]]:
    """What the run is judged by, final and best; then the user's own metrics and the test evaluation at the end."""
    rows: list[tuple[str, str]] = []
    for measure in ("accuracy", "loss"):
        last, best = v.last(measure), v.best(measure)
        if last is not None and best is not None:
            text = f"{score(last[1])} final (round {last[0]:,}), {score(best[1])} best (round {best[0]:,})"
            rows.append((f"{v.part} {measure}", f"{text}; {PAPER_PROTOCOL}" if v.paper else text))
    shown = {label for label, _ in rows}
    examples = v.final.get("examples")
    of = f", {examples:,} examples" if isinstance(examples, int) else ""
    # Validation stands before test, accuracy and loss before the others.
    for part, name in sorted(v.newest, key=lambda k: (k[0] == "test", k[1] != "accuracy", k[1] != "loss", k[1])):
        index, value = v.newest[part, name]
        if f"{part} {name}" not in shown:
            rows.append((f"{part} {name}", f"{score(value)} final (round {index:,}{of if part == 'test' else ''})"))
    return rows


# --- what theory says of a run


@dataclass(frozen=True)
class NetAlignment:
    """By how much a run's rounds move along ∇r(x) more than K steps of gradient descent would."""

    coefficient: float
    alpha: float
    beta: float | None  # None for a method without displacement
    steps: float  # K; the mean over clients where they differ
    at: str  # with which settings
    meaning: str  # what the sign says


def net_coefficient(alpha: float, steps: float, beta: float = 0.0) -> float:
    """-alpha K (beta - alpha (K-1)/2): FedGA's round minus K steps of gradient descent, as a multiple of grad r(x).

    To second order in alpha and beta, for local gradients that are right on average. beta = 0 is FedAvg, whose local
    steps raise r: +alpha^2 K (K-1)/2. Theorem 4 of Dandi, Barba, Jaggi (arXiv 2106.13897), set against FedAvg's own
    difference from gradient descent.
    """
    return -alpha * steps * (beta - alpha * (steps - 1) / 2)


def matching_betas(alpha: float, steps: float) -> tuple[float, float]:
    """The betas with which FedGA aligns as much as fresh SCAFFOLD (0 against gradient descent), alpha (K-1)/2, and as
    sequential SGD (-K alpha^2/2), alpha K/2.
    """
    return alpha * (steps - 1) / 2, alpha * steps / 2


def net_alignment(v: RunView) -> NetAlignment | None:
    """What is known of a run's algorithm: FedGA (also of the user's own), GradAlign, FedAvg, fresh SCAFFOLD; else None.

    K is `local.steps`, or the mean over clients of what `local.epochs` gives them; GradAlign has K = 1. Nothing
    is known where clients start from different models, make different parts of their steps, or have momentum.
    """
    if v.settings.get("stragglers.kind") in ("buffered", "partial-work") or v.settings.get("local.momentum"):
        return None
    if v.settings.get("local.epochs_to") is not None or v.settings.get("local.batch_size_to") is not None:
        return None
    kind = str(v.settings.get("algorithm.kind"))
    kind = "fedga" if kind.endswith(":FedGA") else kind
    alpha, beta, scale = (_real(v.settings.get(f"algorithm.{f}")) for f in ("lr", "beta", "server_lr"))
    steps = 1.0 if kind == "gradalign" else _mean_steps(v)
    if alpha is None or steps is None or kind not in ("fedga", "gradalign", "fedavg", "scaffold-fresh"):
        return None
    if kind in ("fedga", "gradalign"):
        if beta is None:
            return None
        net = net_coefficient(alpha, steps, beta)
    else:
        beta = None
        net = 0.0 if kind == "scaffold-fresh" else net_coefficient(alpha, steps)
    if abs(net) <= 1e-12 * (alpha * steps) ** 2:
        net, meaning = 0.0, "the clients are aligned as much as by K steps of gradient descent"
    elif net < 0:
        meaning = "negative: aligns the clients more than K steps of gradient descent do"
    else:
        meaning = f"positive: FedAvg's own drift {'outweighs the displacement' if beta else 'raises r(x)'}"
    at = f"α = {number(alpha)}, K = {number(steps)}{'' if steps == int(steps) else ' on average'}"
    if scale not in (None, 1.0):
        net, at = net * scale, f"{at}, server_lr = {number(scale)} (both sides scaled)"
    if v.settings.get("schedule.kind", "constant") != "constant":
        at += " before the schedule"
    return NetAlignment(net, alpha, beta, steps, at, meaning)


def _real(value: Leaf) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mean_steps(v: RunView) -> float | None:
    """K, as `raygrad.local.Local.steps_for` has it; a test holds the two together."""
    steps, epochs = _real(v.settings.get("local.steps")), _real(v.settings.get("local.epochs"))
    if steps is not None or epochs is None:
        return steps
    examples = tables.read(v.path, "partition", ["examples"])["examples"].to_numpy()
    batch = _real(v.settings.get("local.batch_size"))  # None for "full"
    per_epoch = np.ones(len(examples)) if batch is None else examples / batch
    return float(np.maximum(1, np.ceil(np.round(epochs * per_epoch, 9))).mean()) if len(examples) else None


def change(text: str) -> str:
    """10:algorithm.beta=0.2, a setting that changes on the way, in words."""
    after, _, setting = text.partition(":")
    return f"{setting} after round {after}" if after.isdigit() and setting else text


# --- several runs


def group(views: Sequence[RunView]) -> list[Group]:
    """Runs grouped by the settings that differ among them, the seed aside, in the order given.

    Of several runs of a group with the same seed the longest stays (of equally long ones the first): a repeated run is
    no new evidence. Where settings would make a label longer than LONGEST_LABEL, the groups are called by their runs'
    names, if these tell them apart.
    """
    keys = list(dict.fromkeys(k for v in views for k in v.settings if k != "seed"))
    differing = [k for k in keys if len({(k in v.settings, leaf(v.settings.get(k))) for v in views}) > 1]
    grouped: dict[tuple[tuple[str, str], ...], list[RunView]] = {}
    for v in views:
        values = tuple((k, leaf(v.settings[k])) for k in differing if k in v.settings)
        grouped.setdefault(values, []).append(v)
    said = _telling(differing, views)
    labels = [
        ", ".join(f"{said[k]}{_worth(v, k)}" for k in differing if k in said and k in v.settings)
        for v, *_ in grouped.values()
    ]
    names = [{v.name for v in members} for members in grouped.values()]
    apart = len(set().union(*names)) == sum(map(len, names)) == len(names)
    if apart and any(len(label) > LONGEST_LABEL for label in labels):
        labels = [name for (name,) in names]
    result = []
    for label, members in zip(labels, grouped.values(), strict=True):
        seeds: dict[Leaf, RunView] = {}
        for v in members:
            seed = v.settings.get("seed")
            if seed not in seeds or len(v.round) > len(seeds[seed].round):
                seeds[seed] = v
        first = members[0].settings
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
        if owner in kinds and len({s.get(owner) for s in having}) == 1 and len({leaf(s[key]) for s in having}) == 1:
            continue
        alone = sum(k.rpartition(".")[2] == field for k in differing) == 1
        said[key] = f"{field if alone else key}="
    return said


def _worth(v: RunView, key: str) -> str:
    """A setting's value in a label: of a natural partition the clients that it found."""
    found = key == "partition.clients" and not v.settings[key] and "clients" in v.data
    return leaf(v.data["clients"] if found else v.settings[key])


def reach(v: RunView, target: float) -> Reached | None:
    """What the run had spent when its accuracy first was at least `target`; None if it never was."""
    with np.errstate(invalid="ignore"):
        at = np.flatnonzero(v.accuracy >= target)
    if not len(at):
        return None
    i = int(at[0])
    moved = int(v.bytes_down[i] + v.bytes_up[i])
    virtual_s = float(v.virtual_s[i]) if v.modelled else None
    return Reached(int(v.round[i]), int(v.communications[i]), moved, float(v.seconds[i]), virtual_s)


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
    groups = group(views(runs))
    return comparison_of(groups, chosen_target(groups, target)[0])


def chosen_target(groups: Sequence[Group], target: float | None) -> tuple[float | None, str]:
    """The target accuracy and where it comes from."""
    if target is None:
        return common_target(groups), "the largest accuracy that every run reaches, rounded down"
    if not 0 < target <= 1:
        raise BadInput(f"the target accuracy is {target}; it must be above 0 and at most 1")
    return target, "as asked for"


def judged(groups: Sequence[Group]) -> str:
    """What accuracy and loss were measured on."""
    parts = {v.part for g in groups for v in g.runs}
    return "validation or test" if len(parts) > 1 else next(iter(parts), "validation")


def judging(groups: Sequence[Group]) -> Measure:
    """What the groups are compared by: the accuracy, or the loss where no run has an accuracy but some have a loss."""
    views = [v for g in groups for v in g.runs]
    if any(v.last("accuracy") is not None for v in views) or all(v.last("loss") is None for v in views):
        return "accuracy"
    return "loss"


def comparison_of(groups: Sequence[Group], target: float | None) -> tuple[list[str], list[list[str]]]:
    """`comparison` of runs that were read and grouped already; without a `target` it has no costs."""
    part, measure = judged(groups), judging(groups)
    to = "" if target is None else f" to {target:g}"
    costs = [f"rounds{to}", f"communications{to}", f"MB{to}", f"seconds{to}"] if target is not None else []
    if costs and any(v.modelled for g in groups for v in g.runs):
        costs.append(f"virtual seconds{to}")
    header = ["group", "seeds", *costs, f"final {part} {measure}", f"best {part} {measure}"]
    if part != "test":
        header.append(f"final test {measure}")
    rows = []
    for g in groups:
        row = [g.label, str(len(g.runs))]
        if target is not None:
            row += _costs([reach(v, target) for v in g.runs])[: len(costs)]
        for found in (
            [v.last(measure) for v in g.runs],
            [v.best(measure) for v in g.runs],
            [v.newest.get(("test", measure)) for v in g.runs],
        ):
            row.append(spread([pair[1] for pair in found if pair is not None]))
        rows.append(row[: len(header)])
    return header, rows


def _costs(reached: Sequence[Reached | None]) -> list[str]:
    """Rounds, communications, MB, seconds and virtual seconds."""
    done = [r for r in reached if r is not None]
    if not done:
        return ["not reached"] * 5
    some = "" if len(done) == len(reached) else f" ({len(done)} of {len(reached)} seeds)"
    timed = [r.seconds for r in done if isfinite(r.seconds)]
    modelled = [r.virtual_s for r in done if r.virtual_s is not None]
    return [
        _amount([r.rounds for r in done]) + some,
        _amount([r.communications for r in done]) + some,
        _amount([r.bytes / 1e6 for r in done]) + some,
        _amount(timed) + (some if timed else ""),
        _amount(modelled) + (some if modelled else ""),
    ]


def _amount(values: Sequence[float]) -> str:
    """`spread` with about three digits."""
    if len(values) == 1:
        return f"{values[0]:,.0f}" if values[0] >= 1000 else f"{values[0]:.4g}"
    digits = len(str(int(np.mean(values)))) if values else 0
    return spread(values, max(0, 3 - digits))


def spread(values: Sequence[float], decimals: int = 4) -> str:
    """`mean ± sample standard deviation`; one value stands alone. Small means keep three digits."""
    if not values:
        return "–"
    mean = float(np.mean(values))
    form = f",.{decimals}f" if not mean or abs(mean) >= 10.0 ** (1 - decimals) else ".3g"
    return f"{mean:{form}}" if len(values) == 1 else f"{mean:{form}} ± {float(np.std(values, ddof=1)):{form}}"


def views(runs: Sequence[Path]) -> list[RunView]:
    """The runs in the folders `runs`, each once. Raises BadInput when there is none."""
    if not runs:
        raise BadInput("a report needs at least one run; `raygrad list runs` shows what there is")
    folders = list(dict.fromkeys(Path(r).resolve() for r in runs))
    found = []
    for i, folder in enumerate(folders):
        logs.step("reading runs", i, len(folders))
        found.append(view(folder))
    logs.step("reading runs", len(folders), len(folders))
    return found


# --- partitions


def partition_table(
    label_counts: np.ndarray | None, examples: np.ndarray, validation_examples: np.ndarray | None = None
) -> list[tuple[str, str]]:
    """What a partition made, as (label, value).

    `label_counts` [N, C] (None without classes) and `examples` [N] are of what the clients train on;
    `validation_examples` [N], where given, are counted in a row of their own.
    """
    n = len(examples)
    rows = [("clients", f"{n:,}"), ("training examples", f"{int(examples.sum()):,}")]
    if validation_examples is not None:
        rows.append(("validation examples", f"{int(validation_examples.sum()):,}"))
    if not n:
        return rows
    rows.append(("training examples per client", _three(examples)))
    if (examples == 0).any():
        rows.append(("clients without training examples", f"{int((examples == 0).sum()):,}"))
    rows.append(("largest client's share", f"{examples.max() / max(1, examples.sum()):.2%} of all training examples"))
    if label_counts is None or label_counts.shape[1] == 0:
        return rows
    holding = label_counts[label_counts.sum(1) > 0]
    shares = holding / holding.sum(1, keepdims=True)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) + 0.0
    classes = label_counts.shape[1]
    rows.append(("labels per client", f"{_three((label_counts > 0).sum(1))}, of {classes:,}"))
    if len(holding):
        rows.append(("effective labels per client", f"{np.exp(entropy).mean():.2f} on average (exp of the entropy)"))
        rows.append(
            ("largest label's share", f"{shares.max(1).mean():.1%} of a client's training examples, on average")
        )
    return rows


def partition_picture(
    label_counts: np.ndarray | None, examples: np.ndarray, class_names: Sequence[str], out: Path
) -> None:
    """Draw who holds what into `out`, a .png, .svg or .pdf. Shapes as in `partition_table`. Raises BadInput."""
    pictures.save(pictures.partition(label_counts, examples, class_names), out)


def partition_of(v: RunView) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """A run's partition by client: label counts [N, C] (None without classes) and examples [N] of what the clients
    train on, and validation examples [N].
    """
    table = tables.read(v.path, "partition").sort_by("client")
    examples, validation = (table[c].to_numpy() for c in ("examples", "validation_examples"))
    lists = table["label_counts"].combine_chunks()
    if not len(examples) or lists.null_count:
        return None, examples, validation
    lengths = np.unique(lists.value_lengths().to_numpy())
    if len(lengths) != 1:
        where = tables.folder(v.path, "partition")
        raise BadInput(f"{where} is damaged: clients have {lengths} label counts, expected equally many each")
    return lists.flatten().to_numpy().reshape(len(examples), lengths[0]), examples, validation


def _three(values: np.ndarray) -> str:
    return f"min {int(values.min()):,}, median {float(np.median(values)):,.4g}, max {int(values.max()):,}"


# --- numbers as text


def leaf(value: Leaf) -> str:
    """A setting as text."""
    if value is None or value == "":
        return "–"
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """A number with about four digits."""
    return f"{value:.4g}" if isfinite(value) else "∞" if value > 0 else "not finite"


def score(value: float) -> str:
    """A loss or metric with four decimals; a very small or large one with four digits."""
    return f"{value:.4f}" if not value or 1e-3 <= abs(value) < 1e6 else number(value)


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
