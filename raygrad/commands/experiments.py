"""From what stands on the command line to an experiment, and to where it runs."""

import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raygrad import config
from raygrad.algorithms import ALGORITHMS
from raygrad.contract import Algorithm, Sampler
from raygrad.data.datasets import Dataset
from raygrad.data.partition import Partitioner
from raygrad.devices import Devices
from raygrad.errors import BadInput
from raygrad.experiment import EXCLUDED, SCHEMA_VERSION, Experiment, Where
from raygrad.files.remote import Url, location
from raygrad.membership import Membership
from raygrad.naming import unknown
from raygrad.recipes import RECIPES
from raygrad.regularizers import Regularizer
from raygrad.stragglers import Policy
from raygrad.streams import Tasks

if TYPE_CHECKING:
    from raygrad.files.runs import LoadedRun

Given = Mapping[str, str | int | float | Path | None]
"""Options by field name; None where the user gave none."""
CONNECT_S = 5.0
"""How long an address may take to answer."""
_REFERENCE = re.compile(r"[\w.-]+:[\w.]+")


@dataclass(frozen=True)
class Chosen:
    """An experiment and the name that its runs go by."""

    experiment: Experiment
    name: str


def choose(text: str, settings: Iterable[str] = (), given: Given | None = None) -> Chosen:
    """The experiment that `text` names, with `PATH=VALUE` settings and then the options applied. Raises BadInput."""
    chosen = _named(text)
    assignments = [split(s) for s in settings]
    assignments += [(path, str(value)) for path, value in (given or {}).items() if value is not None]
    experiment = config.assign_all(chosen.experiment, _one_of_each(assignments))
    _check_parts(experiment)
    return Chosen(experiment, chosen.name)


def change_failures(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """A run's experiment with other settings of `failures`. Raises BadInput for any other field."""
    assignments = [split(s) for s in settings]
    for path, _ in assignments:
        if not path.startswith("failures."):
            raise BadInput(f"--set {path}: a run goes on as it began, but for rounds and failures; start a new run")
    return config.assign_all(experiment, assignments)


def split(setting: str) -> tuple[str, str]:
    """The field and the value of PATH=VALUE. Raises BadInput."""
    path, equals, value = setting.partition("=")
    if not (path.strip() and equals):
        raise BadInput(f"--set {setting!r} is not of the form PATH=VALUE, for example --set algorithm.beta=0.1")
    return path.strip(), value.strip()


def _one_of_each(assignments: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Fields that exclude each other: setting one unsets the others, unless they are set too."""
    named = {path for path, _ in assignments}
    result = []
    for path, value in assignments:
        result.append((path, value))
        if path == "init" or value not in ("none", "null"):
            result += [(other, "none") for other in EXCLUDED.get(path, ()) if other not in named]
    return result


def _named(text: str) -> Chosen:
    path = Path(text)
    if text in RECIPES:
        return Chosen(RECIPES[text](), text)
    if isinstance(address := location(text), Url):
        from raygrad.files.runs import find_run

        run = str(address.parent if address.name == "experiment.json" else address)
        return _recorded(find_run(run, address) / "experiment.json")
    if path.suffix == ".py":
        return Chosen(load_recipe(path), path.stem)
    if path.suffix == ".json":
        return _recorded(path)
    if (path / "experiment.json").is_file():
        return _recorded(path / "experiment.json")
    if path.exists():
        raise BadInput(
            f"{text} is no experiment: give a recipe's name, an experiment.json, a run's folder or a .py file"
        )
    raise unknown("recipe", text, RECIPES)


def _recorded(path: Path) -> Chosen:
    try:
        record = json.loads(path.read_text())
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise BadInput(f"{path} is damaged: expected an experiment as JSON, but {e}") from e
    if not isinstance(record, dict):
        raise BadInput(f"{path} is damaged: expected a JSON object, found {type(record).__name__}")
    version = record.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise BadInput(f"{path} has schema_version {version}, this raygrad reads {SCHEMA_VERSION}")
    whole = "experiment" in record
    experiment = Experiment.from_json(record["experiment"] if whole else record)
    name = record.get("name") if whole else None
    return Chosen(experiment, name if isinstance(name, str) else path.stem)


# --- a recipe file of one's own -------------------------------------------------------------------------------------


def load_recipe(path: Path) -> Experiment:
    """What the file's `recipe()` returns. The file is imported under its stem, with its folder on Python's path.

    Raises BadInput, naming the line, for whatever goes wrong in it.
    """
    module = imported(path)
    make = getattr(module, "recipe", None)
    if not callable(make):
        raise BadInput(f"{path} defines no recipe(): write `def recipe() -> Experiment:` in it")
    try:
        experiment = make()
    except BadInput as e:
        raise BadInput(f"{_line(path, e)}: {e}") from e
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise BadInput(f"{_line(path, e)}: recipe() raised {type(e).__name__}: {e}") from e
    if not isinstance(experiment, Experiment):
        raise BadInput(f"{path}: recipe() returned {type(experiment).__name__}, not a raygrad.Experiment")
    # Through JSON, as a resumed run reads it: 1 becomes 1.0 where a field is a float, and wrong types are found.
    return Experiment.from_json(json.loads(config.canonical(experiment.to_json())))


def imported(path: Path) -> ModuleType:
    """The module in a recipe file. Raises BadInput, naming the line, for whatever goes wrong in it."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: expected a Python file that defines recipe()")
    path, name = path.resolve(), path.stem
    there = sys.modules.get(name)
    if there is not None and Path(getattr(there, "__file__", None) or "") != path:
        raise BadInput(f"{path}: a module called {name} is in use already; give the file another name")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        del sys.modules[name]
        if isinstance(e, SyntaxError) and e.filename == str(path):
            raise BadInput(f"{path}, line {e.lineno}: {e.msg}") from e
        raise BadInput(f"{_line(path, e)}: {type(e).__name__}: {e}") from e
    return module


def _line(path: Path, error: BaseException) -> str:
    """The file and the line of it in which the error came up."""
    path = path.resolve()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}, line {frames[-1].lineno}" if frames else str(path)


def _check_parts(experiment: Experiment) -> None:
    """A user's own class must be what its place asks for."""
    parts = (
        ("algorithm", Algorithm), ("sampler", Sampler), ("data", Dataset), ("partition", Partitioner),
        ("devices", Devices), ("stragglers", Policy), ("membership", Membership), ("regularizer", Regularizer),
        ("tasks", Tasks),
    )  # fmt: skip
    for field, protocol in parts:
        part = getattr(experiment, field)
        if not isinstance(part, protocol):
            raise BadInput(
                f"{field} {type(part).__name__} cannot be used as one: it lacks something of "
                f"{protocol.__module__}.{protocol.__name__}"
            )


# --- where ----------------------------------------------------------------------------------------------------------


def place(given: Given, recorded: Where | None = None) -> Where:
    """Where it runs: the options over what a run recorded, or over the defaults. Raises BadInput."""
    fields = {n: str(root(v)) if isinstance(v, Path) else v for n, v in given.items() if v is not None}
    if isinstance(shards := fields.get("shard_root"), str):
        fields["shard_root"] = str(root(shards))
    fields = {n: None if (n, v) == ("address", "") else v for n, v in fields.items()}
    base = {} if recorded is None else recorded.to_json()
    if fields.get("on") == "local":
        base = {n: v for n, v in base.items() if n not in ("address", "gpus_per_host")}
    return Where.from_json({**base, **fields})


def root(place: str | Path) -> Path | Url:
    """A run root or shard root: a whole path, or an address. Raises BadInput."""
    found = location(place)
    return found if isinstance(found, Url) else found.resolve()


def check_reachable(where: Where, run_root: str | Path) -> None:
    """Refuse a run root that cannot be written and an address where nobody listens, before any work is done.

    One in an object store is tried when the run is made or continued.
    """
    folder = location(run_root)
    if isinstance(folder, Path):
        _check_folder(folder)
    if where.on == "ray":
        show_token(where.address)
        from raygrad.onray.cluster import check

        check(where)


def show_token(address: str | None) -> None:
    """Show the configured token to a Ray that is there already. Has an effect before Ray is imported only."""
    if address or os.environ.get("RAY_ADDRESS"):
        from raygrad.onray import tokens

        tokens.use_by_default()


def _check_folder(run_root: Path) -> None:
    try:
        run_root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"the run root {run_root} cannot be made: {e.strerror}; choose another --run-root") from e
    if not os.access(run_root, os.R_OK | os.W_OK | os.X_OK):
        raise BadInput(f"the run root {run_root} cannot be read and written; choose another --run-root")


def check_lasting(run_root: Path | str) -> None:
    """Refuse a relative run root inside the folder that Ray unpacks for a job, and removes after it."""
    text = str(run_root)
    if "working_dir_files" in Path.cwd().parts and not (text.startswith("/") or ":/" in text):
        raise BadInput(
            f"--run-root {text} lies in the job's own folder, which Ray removes after it; name one that stays, such as "
            f"--run-root /shared/{text} or s3://BUCKET/{text}"
        )


def continued(chosen: Chosen, where: Where, run_root: str | Path, name: str) -> "LoadedRun | None":
    """The newest run called `name`, to be continued as `chosen` says; None if there is none yet.

    Raises BadInput, naming the first difference, if it is another experiment than `chosen`. As on every resume the
    number of rounds and what happens to failing clients may change.
    """
    from raygrad import run as engine
    from raygrad.files.runs import load, newest

    found = newest(name, run_root)
    if found is None:
        return None
    there = load(str(found))
    _, asked = engine.planned(chosen.experiment, where, engine.shard_root(where, there.at))
    if asked.hash != there.experiment.hash:
        field, before, now = first_difference(there.experiment.to_json(), asked.to_json())
        raise BadInput(
            f"{there.at} was started with {field}={before}, and this asks for {now}; "
            "choose another --name, or leave --resume out to start anew"
        )
    if asked.rounds != there.experiment.rounds:
        there = engine.extend(there, asked.rounds)
    return replace(there, where=where, experiment=replace(there.experiment, failures=asked.failures))


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, object, object]:
    """The first setting in which two experiments differ that may not be continued as each other, and its values."""
    free = ("rounds", "failures", "init")
    for field in [*now, *(f for f in before if f not in now)]:
        a, b = before.get(field), now.get(field)
        if a == b or field in free:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            if a.get("kind") != b.get("kind"):
                return field, a.get("kind"), b.get("kind")
            inner, x, y = first_difference(a, b)
            return f"{field}.{inner}", x, y
        return field, a, b
    raise AssertionError("the two do not differ")


def algorithm_note(experiment: Experiment) -> str:
    """One line on what is about to run."""
    e = experiment
    kind = config.kind_of(e.algorithm, ALGORITHMS)
    return f"{kind}, {e.sampler.cohort} clients per round, {e.rounds} rounds, seed {e.seed}"
