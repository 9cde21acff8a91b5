"""The host actor: simulated clients' work on one CPU or a fraction of a GPU.

A plain class, wrapped as an actor by the executor, so that it can be tested without Ray. It rebuilds everything from
its spec; whatever changes travels in messages. So it may die at any moment and nothing is lost but time.
"""

import os
import socket
from functools import cached_property
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
        self._spec = spec

    @cached_property
    def _runner(self) -> GangRunner:
        return GangRunner(self._spec)

    def hello(self) -> tuple[str, dict[str, str]]:
        """Get ready, and say who this is ("machine:process") and with what numerics it computes.

        The model is built here and not when the actor is made, so that an error in the user's code arrives as such.
        """
        return f"{socket.gethostname()}:{os.getpid()}", numerics(self._spec, self._runner.canary())

    def run(self, phase: Phase, gang: Gang, earlier: list[Any]) -> GangReply:
        """Run a gang. `earlier` holds references to the phases before this one, fetched only if scratch was lost."""
        return self._runner.run(phase, gang, lambda k: ray.get(earlier[k]))
