"""`raygrad list`, `raygrad partition` and `raygrad cite`: what there is, before anything runs."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raygrad.commands import options, output
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from raygrad.experiment import Experiment

What = Literal[
    "recipes", "algorithms", "datasets", "partitioners", "models", "samplers", "schedules", "devices", "stragglers",
    "membership", "regularizers", "tasks", "runs", "sweeps",
]  # fmt: skip


def list_(
    what: Annotated[What, typer.Argument(metavar="WHAT", help="What to list: recipes, algorithms, datasets, …")],
    run_root: options.RunRoot = "runs",
    as_json: Annotated[
        bool, typer.Option("--json", help="Of runs and sweeps: one JSON object a line.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> None:
    """What there is: recipes, algorithms, datasets, partitioners, models, … or runs and sweeps.

    Each comes with a line on what it is, and with its fields and their defaults
    as --set takes them.

    \b
    Examples
      raygrad list recipes
      raygrad list algorithms     then: raygrad run --set algorithm=scaffold
      raygrad list datasets       then: raygrad run --set data=fashion-mnist
      raygrad list stragglers     then: raygrad run --set devices=lognormal --set stragglers=over-select
      raygrad list runs
      raygrad list sweeps
    """
    if as_json and what not in ("runs", "sweeps"):
        raise BadInput(f"--json lists runs and sweeps; leave it out for {what}")
    if what == "runs":
        _runs(run_root, as_json)
    elif what == "sweeps":
        _sweeps(run_root, as_json)
    elif what == "recipes":
        from raygrad.recipes import RECIPES

        output.pairs((name, f"{_sentence(make)} {_papers(make)}") for name, make in RECIPES.items())
    else:
        field, registry = _registry(what)
        for name, cls in registry.items():
            _kind(field, name, cls)


def _registry(what: str) -> tuple[str, Mapping[str, type]]:
    """The field that --set names, and the classes it can hold."""
    from raygrad.algorithms import ALGORITHMS
    from raygrad.data.datasets import DATASETS
    from raygrad.data.partition import PARTITIONERS
    from raygrad.devices import DEVICES
    from raygrad.membership import MEMBERSHIPS
    from raygrad.models import MODELS
    from raygrad.regularizers import REGULARIZERS
    from raygrad.samplers import SAMPLERS
    from raygrad.schedules import SCHEDULES
    from raygrad.stragglers import POLICIES
    from raygrad.streams import TASKS

    return {
        "algorithms": ("algorithm", ALGORITHMS), "datasets": ("data", DATASETS),
        "partitioners": ("partition", PARTITIONERS), "models": ("model", MODELS), "samplers": ("sampler", SAMPLERS),
        "schedules": ("schedule", SCHEDULES), "devices": ("devices", DEVICES), "stragglers": ("stragglers", POLICIES),
        "membership": ("membership", MEMBERSHIPS), "regularizers": ("regularizer", REGULARIZERS),
        "tasks": ("tasks", TASKS),
    }[what]  # fmt: skip


def _kind(field: str, name: str, cls: type) -> None:
    """A name, what it is, the papers that it names, and its fields."""
    from raygrad import citations

    said = [_sentence(cls)]
    if field == "algorithm":  # the file says what the idea is, the class what its fields mean
        said.insert(0, _sentence(sys.modules[cls.__module__]))
    output.line(f"{name}  ({field}={name})")
    for text in said:
        output.line(f"    {text}")
    for number in citations.of_kind(cls, whole_file=field == "algorithm"):
        known = citations.REFERENCES.get(number)
        output.line(f"    {known.short if known else f'arXiv {number}'}")
    for path, default in _defaults(field, cls):
        output.line(f"    {path} = {default}")


def _papers(make: "Callable[[], Experiment]") -> str:
    """The papers that a recipe, its algorithm, its regulariser and its way with stragglers name."""
    from raygrad import citations

    e = make()
    found = [*citations.named(make.__doc__), *citations.of_kind(type(e.regularizer))]
    found += citations.of_kind(type(e.stragglers))
    found += citations.of_kind(type(e.algorithm), whole_file=True)
    return f"(arXiv {', '.join(dict.fromkeys(found))})"


def _defaults(path: str, cls: type) -> Iterator[tuple[str, str]]:
    for f in fields(cls):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if is_dataclass(default):
            yield f"{path}.{f.name}", type(default).__name__
        elif isinstance(default, tuple):
            yield f"{path}.{f.name}", ",".join(map(str, default)) or "()"
        else:
            yield f"{path}.{f.name}", "(must be set)" if default is MISSING else _text(default)


def _text(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(thing: object) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((getdoc(thing) or "").partition("\n\n")[0].split())


def _runs(run_root: str, as_json: bool) -> None:
    from raygrad.files import runs
    from raygrad.reports import report

    found = runs.all_runs(run_root)
    if as_json:
        for folder in found:
            output.record("run", **_run_record(folder))
        return
    if not found:
        output.line(f"no runs in {run_root}; `raygrad run` makes one")
        return
    rows = []
    for folder in found:
        name = f"{folder.parent.name}/{folder.name}"
        try:
            v = report.view(folder)
        except BadInput as e:
            rows.append([name, "damaged", "", "", str(e)])
            continue
        measured = v.accuracy[v.accuracy == v.accuracy]
        accuracy = f"{measured[-1]:.4f} {'test' if v.paper else 'validation'}" if len(measured) else "–"
        rows.append(
            [name, f"{len(v.round)} of {v.planned}", accuracy, v.state, report.describe(v.settings, "algorithm")]
        )
    output.table(["run", "rounds", "accuracy", "state", "algorithm"], rows)


def _run_record(folder: Path) -> dict[str, object]:
    """A run as `raygrad list runs --json` has it."""
    from raygrad.reports import report

    known: dict[str, object] = {"run": f"{folder.parent.name}/{folder.name}", "at": str(folder.resolve())}
    try:
        v = report.view(folder)
    except BadInput as e:
        return {**known, "state": "damaged", "message": str(e)}
    accuracy = v.last("accuracy")
    return {
        **known, "state": v.state, "message": str(v.ended.get("message", "")), "rounds": len(v.round), "of": v.planned,
        "part": v.part, "accuracy": accuracy and accuracy[1], "hash": v.hash, "settings": dict(v.settings),
    }  # fmt: skip


def _sweeps(run_root: str, as_json: bool) -> None:
    from raygrad.sweeps import sweep

    found = sweep.all_sweeps(run_root)
    if as_json:
        for folder in found:
            known = {"sweep": f"{folder.parent.name}/{folder.name}", "at": str(folder.resolve())}
            try:
                loaded = sweep.load(folder)
                over, best = loaded.over(), loaded.best()
                about = {"over": over, "metric": loaded.sweep.measure, "best": best, "space": dict(loaded.sweep.space)}
            except BadInput as e:
                about = {"state": "damaged", "message": str(e)}
            output.record("sweep", **known, **about)
        return
    if not found:
        output.line(f"no sweeps in {run_root}; `raygrad sweep` makes one")
        return
    rows = []
    for folder in found:
        name = f"{folder.parent.name}/{folder.name}"
        try:
            loaded = sweep.load(folder)
            over, best = loaded.over(), loaded.best()
        except BadInput as e:
            rows.append([name, "damaged", "", str(e)])
            continue
        value = "–" if best is None else f"{best['value']:.4f} {loaded.sweep.measure}"
        searched = best["settings"] if best else dict.fromkeys(loaded.sweep.dimensions)
        shown = (sweep.SHOWN.get(n, n) + ("" if v is None else f" {v}") for n, v in searched.items())
        rows.append([name, str(over), value, ", ".join(shown)])
    output.table(["sweep", "trials over", "best", "searched"], rows)


def partition(
    recipe: options.Recipe = "digits",
    settings: options.Settings = None,
    seed: options.Seed = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Draw clients x classes into this .png, .svg or .pdf.", show_default=False),
    ] = None,
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
    run_root: options.RunRoot = "runs",
) -> None:
    """Who holds what: prepare a recipe's data and describe its clients, without training.

    Labels are counted among the examples that clients train on; what is set apart
    for validation is not among them.

    \b
    Examples
      raygrad partition                       ten clients of one class each
      raygrad partition --set partition=dirichlet --out clients.png
      raygrad partition mnist-het --data-root DIR --set partition.clients=200
    """
    from raygrad.commands import experiments
    from raygrad.plan import prepare_data
    from raygrad.reports import report
    from raygrad.run import shard_root as shards_of

    chosen = experiments.choose(recipe, settings or (), {"seed": seed})
    where = experiments.place({"on": "local", "data_root": data_root, "shard_root": shard_root})
    shards = prepare_data(chosen.experiment, where, shards_of(where, experiments.root(run_root) / "name" / "id"))
    output.pairs(report.partition_table(shards.label_counts, shards.examples, shards.validation_examples))
    if out is not None:
        report.partition_picture(shards.label_counts, shards.examples, shards.class_names, out)
        output.line(f"\npicture  {output.shown(out)}")


def cite(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's path, name/id, or name.")] = None,
    run_root: options.RunRoot = "runs",
) -> None:
    """BibTeX of what a run used, or of the paper that raygrad is built around; and of raygrad.

    \b
    Examples
      raygrad cite >> references.bib
      raygrad cite digits            the papers behind the newest run called digits
    """
    from raygrad import citations

    numbers = [citations.MAIN.arxiv]
    if run is not None:
        from raygrad.files.runs import load
        from raygrad.recipes import RECIPES

        loaded = load(run, run_root)
        about = RECIPES[loaded.name].__doc__ if loaded.name in RECIPES else None
        numbers = list(dict.fromkeys([*citations.of(loaded.experiment), *citations.named(about)]))
    for number in numbers:
        output.line(citations.bibtex(number))
        output.line("")
    output.line(citations.software())
