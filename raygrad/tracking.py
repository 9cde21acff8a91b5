"""Rounds as they come, told to TensorBoard, MLflow or Weights & Biases as well.

`Where.track` names the kinds. TensorBoard's files go to the run's folder. MLflow and Weights & Biases take where to
send and with what right from their own environment variables; nothing of that is written anywhere. What a tracker does
wrong never stops a run: it is said once, and the rest goes untold. The tables of the run stay the record.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from raygrad.errors import BadInput
from raygrad.files import storage
from raygrad.logs import Say
from raygrad.naming import unknown

Values = Mapping[str, float]
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""What each kind needs."""


class Tracker(Protocol):
    """Where values go."""

    def log(self, round: int, values: Values) -> None:
        """The values after a round; finite ones only."""
        ...

    def close(self) -> None: ...


def check(kinds: Sequence[str]) -> None:
    """Raises BadInput for a kind that is not known or whose package is not installed."""
    for kind in kinds:
        if kind not in PACKAGES:
            raise unknown("tracker", kind, PACKAGES)
        if find_spec(PACKAGES[kind]) is None:
            raise BadInput(f"track {kind} needs the package {PACKAGES[kind]}: pip install 'raygrad[track]'")


class TensorBoard:
    """Event files in the run's folder, under `tensorboard/`. Rounds that are played again replace those before."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], done: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=done + 1,
            filename_suffix=f".{done}",  # names go by the second
        )
        if not done:
            rows = "\n".join(f"|{n}|{v}|" for n, v in settings.items())
            self._writer.add_text("settings", f"|setting|value|\n|---|---|\n{rows}", 0)

    def log(self, round: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow's experiment MLFLOW_EXPERIMENT_NAME (default: the run's name), at MLFLOW_TRACKING_URI.

    Without an address its files go to `mlflow/` in the run's folder. `mlflow.json` there says which run it is, so that
    a resumed run goes on in the same one.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], done: int) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri())
        self._metric, file = Metric, folder / "mlflow.json"
        if file.is_file():
            self._id = str(storage.read_json(file)["run_id"])
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
        known = self._client.get_experiment_by_name(title)
        experiment = self._client.create_experiment(title) if known is None else known.experiment_id
        self._id = self._client.create_run(experiment, run_name=f"{name}/{folder.name}").info.run_id
        params = [Param(n, str(v)[:500]) for n, v in settings.items()]
        for i in range(0, len(params), 100):  # as many as one call may have
            self._client.log_batch(self._id, params=params[i : i + 100])
        storage.write_json(file, {"run_id": self._id})

    def log(self, round: int, values: Values) -> None:
        import time

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(n, v, now, round) for n, v in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandB:
    """A run of Weights & Biases with the id of the run's folder, in WANDB_PROJECT (default: raygrad).

    WANDB_MODE, WANDB_API_KEY and the rest are its own. A resumed run goes on in the same one.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], done: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "raygrad"), id=folder.name, name=f"{name}/{folder.name}",
            dir=str(folder), config=dict(settings), resume="allow",
            settings=wandb.Settings(console="off", silent=True, x_disable_meta=True),
        )  # fmt: skip

    def log(self, round: int, values: Values) -> None:
        self._run.log(dict(values), step=round)

    def close(self) -> None:
        self._run.finish()


_KINDS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


@contextmanager
def tracked(
    kinds: Sequence[str], folder: Path, name: str, settings: Mapping[str, Any], done: int, say: Say
) -> Iterator[Callable[[int, Mapping[str, float | None]], None]]:
    """A function that tells every tracker the values after a round, as far as they are finite numbers.

    `done` rounds were played before. A tracker that fails is left out from there on, and `say` says so.
    """
    open_ones: dict[str, Tracker] = {}

    def attempt(kind: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as e:
            open_ones.pop(kind, None)
            first = (str(e).strip().splitlines() or [type(e).__name__])[0]
            say(f"{kind} is not told any more: {first}; the run's tables have everything")

    def log(round: int, values: Mapping[str, float | None]) -> None:
        known = {n: float(v) for n, v in values.items() if v is not None and isfinite(v)}
        for kind, tracker in list(open_ones.items()):
            attempt(kind, lambda t=tracker: t.log(round, known))

    for kind in kinds:
        made = attempt(kind, lambda k=kind: _KINDS[k](folder, name, settings, done))
        if made is not None:
            open_ones[kind] = made
    try:
        yield log
    finally:
        for tracker in list(open_ones.values()):
            with suppress(Exception):
                tracker.close()
