"""The host actor: simulated clients' work on one CPU or a fraction of a GPU.

A plain class, wrapped as an actor by the executor, so that it can be tested without Ray. It rebuilds everything from
its spec; whatever changes travels in messages. So it may die at any moment and nothing is lost but time.

A host is made before it is known what it will run: importing this module takes no time, making a `ClientHost` imports
torch.
"""

import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import ray

if TYPE_CHECKING:
    from raygrad.gang import Failure, Gang, GangReply, Phase
    from raygrad.runner import GangRunner, HostSpec


def _die() -> NoReturn:
    """End this process at once, as planned."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit  # not reached


class ClientHost:
    """Runs gangs, one at a time."""

    _runner: "GangRunner"

    def __init__(self) -> None:
        import torch

        import raygrad.runner  # noqa: F401  (what `hello` will need)
        from raygrad.memory import keep_memory

        torch.set_num_threads(1)
        keep_memory()

    def hello(self, spec: "HostSpec", run: str = "", log_level: str = "warning") -> tuple[str, dict[str, str]]:
        """Get ready for `spec`, and say who this is ("machine:process") and with what numerics it computes.

        Log lines from `log_level` on name the `run` and go to this process's stderr, which Ray keeps.
        The model is built here and not when the actor is made, so that an error in the user's code arrives as such.
        """

        from raygrad import logs
        from raygrad.runner import GangRunner, be_deterministic, numerics

        logs.on_host(log_level)
        self._name, self._run = f"{socket.gethostname()}:{os.getpid()}", run
        be_deterministic(spec.device)
        self._runner = GangRunner(spec)
        self._runner.die = _die
        with logs.about(run, host=self._name):
            if spec.fetch_bytes:  # before it is asked to run anything: whoever is slow at that is taken to hang
                self._runner.open_shards()
            logging.getLogger(__name__).info("ready")
            return self._name, numerics(spec, self._runner.canary())

    def run(self, phase: "Phase", gang: "Gang", earlier: list[Any]) -> "GangReply":
        """Run a gang. `earlier` are references to the phases before this one, if the gang's scratch is not here."""
        from raygrad import logs

        with logs.about(self._run, phase.round, self._name):
            reply = self._runner.run(phase, gang, lambda: map(ray.get, earlier))
            if reply.failure is not None:
                _note(reply.failure)
            return reply


def _note(failure: "Failure") -> None:
    logging.getLogger(__name__).warning("client %d failed (%s): %s", failure.client, failure.kind, failure.what)
