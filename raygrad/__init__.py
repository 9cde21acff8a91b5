"""Distributed and federated learning on Ray, built around gradient alignment. The public names, nothing else."""

from raygrad.errors import BadInput, BelowQuorum, CheckFailed, Diverged, RaygradError, Stopped
from raygrad.experiment import Experiment, Where
from raygrad.run import Round, resume, rounds
from raygrad.runs import LoadedRun, load

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
