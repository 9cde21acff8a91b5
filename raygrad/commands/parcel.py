"""What a job needs of this machine: its words checked, and the user's own code in a folder. Never data."""

import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from raygrad.commands import experiments
from raygrad.errors import BadInput
from raygrad.files.remote import location
from raygrad.naming import load_attribute

PATHS = {"run_root": "--run-root", "data_root": "--data-root", "shard_root": "--shard-root", "init": "--init"}
"""Options that name folders and files, which the cluster has to reach."""
_ROOTED = re.compile(r"/|\w+:/")
_CREDENTIALS = re.compile(r"://[^/\s]*@|[?&](access_key|secret_key|session_token|password|token)=", re.I)
_REFERENCE = re.compile(r"[\w.]+:[\w.]+")

Check = Callable[[Mapping[str, Any]], object]
"""Raises BadInput for a command's options that cannot be; returns the experiment, or anything else."""


class Command(Protocol):
    """What is used of a command of the command line."""

    def make_context(self, info_name: str, args: list[str]) -> Any:
        """Parse; `.params` are the options' values."""
        ...


@dataclass(frozen=True)
class Parcel:
    """The words of a command as they are to be said on the cluster, and whether its folder has something in it."""

    words: list[str]
    full: bool


def pack(
    name: str, command: Command, words: Sequence[str], folder: Path, check: Check | None, working_dir: Path | None
) -> Parcel:
    """Check `raygrad NAME WORDS` with its own parser and put the recipe file, and the modules of the user's own that it
    imported, into the empty `folder`; with `working_dir` that goes along instead. Raises BadInput or what the parser
    raises.
    """
    _refuse_secrets(words)
    params = command.make_context(f"raygrad {name}", list(words)).params
    _refuse_relative(params)
    recipe = str(params["recipe"])
    if check is None and recipe.endswith(".py"):
        experiments.imported(Path(recipe))
    found = check(params) if check is not None else None
    if working_dir is not None:
        return Parcel(_inside(name, command, words, recipe, working_dir), True)
    for module in _own_modules(found, Path(recipe)):
        _put(module, folder)
    record = Path(recipe) / "experiment.json" if Path(recipe).is_dir() else Path(recipe)
    if record.suffix == ".json" and record.is_file():
        shutil.copy(record, folder / record.name)
        words = renamed(name, command, words, recipe, record.name)
    elif recipe.endswith(".py"):
        words = renamed(name, command, words, recipe, Path(recipe).name)
    full = any(folder.iterdir())
    if full:  # Ray unpacks equal folders to one place, and under the feet of a job that runs there
        (folder / ".job").write_text(uuid.uuid4().hex)
    return Parcel(list(words), full)


def renamed(name: str, command: Command, words: Sequence[str], recipe: str, new: str) -> list[str]:
    """The words with another recipe. Options may have the same value, so the parser is asked which word it is."""
    for i, word in enumerate(words):
        if word == recipe:
            changed = [*words[:i], new, *words[i + 1 :]]
            probe = [*words[:i], "\0", *words[i + 1 :]]
            if command.make_context(f"raygrad {name}", probe).params["recipe"] == "\0":
                return changed
    raise AssertionError(f"{recipe} is none of the words")


def _inside(name: str, command: Command, words: Sequence[str], recipe: str, working_dir: Path) -> list[str]:
    """The words with the recipe's path seen from the folder that goes along."""
    if not working_dir.is_dir():
        raise BadInput(f"--working-dir {working_dir} is not a folder")
    path = Path(recipe)
    if not (path.suffix in (".py", ".json") or path.exists()):
        return list(words)
    if not path.resolve().is_relative_to(working_dir.resolve()):
        raise BadInput(f"{recipe} is not inside of --working-dir {working_dir}")
    return renamed(name, command, words, recipe, str(path.resolve().relative_to(working_dir.resolve())))


def _refuse_secrets(words: Sequence[str]) -> None:
    for word in words:
        if _CREDENTIALS.search(word):
            shown = word.split("://")[0].split("=")[0][:20]
            raise BadInput(
                f"{shown}… holds a secret, and everybody sees a job's command; give the cluster its rights by account, "
                "or by environment variables of its nodes"
            )


def _refuse_relative(params: Mapping[str, Any]) -> None:
    """A job runs in a folder that Ray removes after it."""
    for field, option in PATHS.items():
        value = params.get(field)
        if value is not None:
            location(str(value))  # refuses an address that holds a secret, however it is written
        if value is not None and not _ROOTED.match(str(value)):
            raise BadInput(
                f"{option} is {value}, which is relative; a job needs a path that the cluster's nodes reach, such as "
                f"{option} /shared/{value} or s3://BUCKET/{value}"
            )


def _own_modules(experiment: object, recipe: Path) -> Iterator[ModuleType]:
    """Modules of the user's own that the experiment uses: loaded from the current folder or from the recipe's."""
    to_json = getattr(experiment, "to_json", None)
    for reference in _references(to_json() if to_json else None):
        try:
            load_attribute(reference, "setting")
        except BadInput:  # the cluster may have it; or it is none
            continue
    folders = [Path.cwd().resolve(), recipe.resolve().parent]
    installed = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[1])]
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or not Path(file).is_absolute() or module.__name__ == "__main__":
            continue
        path = Path(file).resolve()
        own = any(path.is_relative_to(f) for f in folders) and "site-packages" not in path.parts
        if own and path.suffix == ".py" and not any(path.is_relative_to(p) for p in installed):
            yield module


def _references(value: object) -> Iterator[str]:
    """All that looks like `package.module:attribute` in a JSON value."""
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for v in inner:
        yield from _references(v)


def _put(module: ModuleType, folder: Path) -> None:
    """Copy a module to where its name leads in `folder`."""
    source = Path(str(module.__file__))
    target = folder.joinpath(*module.__name__.split("."))
    target = target / "__init__.py" if source.name == "__init__.py" else target.with_name(f"{target.name}.py")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
