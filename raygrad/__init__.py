"""Distributed and federated learning on Ray, built around gradient alignment. The public names, nothing else.

They are imported when first used, so that `import raygrad` and the command line start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raygrad.errors import BadInput, BelowQuorum, CheckFailed, Diverged, RaygradError, Stopped
    from raygrad.experiment import Experiment, Where
    from raygrad.files.runs import LoadedRun, load
    from raygrad.player import Round
    from raygrad.run import resume, rounds

_WHERE = {
    "BadInput": "errors",
    "BelowQuorum": "errors",
    "CheckFailed": "errors",
    "Diverged": "errors",
    "Experiment": "experiment",
    "LoadedRun": "files.runs",
    "RaygradError": "errors",
    "Round": "player",
    "Stopped": "errors",
    "Where": "experiment",
    "load": "files.runs",
    "resume": "run",
    "rounds": "run",
}

__all__ = [
    "BadInput",
    "BelowQuorum",
    "CheckFailed",
    "Diverged",
    "Experiment",
    "LoadedRun",
    "RaygradError",
    "Round",
    "Stopped",
    "Where",
    "load",
    "resume",
    "rounds",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
