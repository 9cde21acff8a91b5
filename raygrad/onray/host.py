"""The host actor: simulated clients' work on one CPU or a fraction of a GPU.

A plain class, wrapped as an actor by the executor, so that it can be tested without Ray. It rebuilds everything from
its spec; whatever changes travels in messages. So it may die at any moment and nothing is lost but time.
"""

import os
import socket
from typing import Any

import ray
import torch

from raygrad.gang import Gang, GangReply, Phase
from raygrad.runner import GangRunner, HostSpec, numerics


class ClientHost:
    """Runs gangs, one at a time."""

    def __init__(self, spec: HostSpec) -> None:
        torch.set_num_threads(1)
        if spec.device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self._runner = GangRunner(spec)
        self._numerics = numerics(spec, self._runner.canary())

    def hello(self) -> tuple[str, dict[str, str]]:
        """Who this is ("machine:process"), and the numerics it computes with."""
        return f"{socket.gethostname()}:{os.getpid()}", self._numerics

    def run(self, phase: Phase, gang: Gang, earlier: list[Any]) -> GangReply:
        """Run a gang. `earlier` holds references to the phases before this one, fetched only if scratch was lost."""
        return self._runner.run(phase, gang, lambda k: ray.get(earlier[k]))
