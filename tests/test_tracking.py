"""Trackers are told what the tables hold, once per round, also over a restart; and never stop a run."""

import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raygrad import tracking
from raygrad.algorithms.fedga import FedGA
from raygrad.commands.experiments import place
from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.files.runs import LoadedRun, load
from raygrad.run import create, play, rounds
from raygrad.verify import problem


def played_in_two_parts(folder: Path, kind: str) -> LoadedRun:
    """Four rounds, of which the last two after a restart."""
    e = replace(problem(FedGA(), 4), rounds=4)
    run = create(e, Where(on="local", track=(kind,)), run_root=folder, name="told")
    for round in play(run):
        if round.index == 2:
            break
    for _ in play(load(run.folder)):
        pass
    return load(run.folder)


def test_tensorboard_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    run = played_in_two_parts(tmp_path, "tensorboard")
    found: dict[str, dict[int, float]] = {}
    for file in sorted((run.folder / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length, its checksum, record, its checksum
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    rows = run.table("rounds").to_pylist()
    assert found["train_loss"] == {r["round"]: pytest.approx(r["train_loss"]) for r in rows}
    assert found["validation/accuracy"].keys() == {r["round"] for r in rows if r["validation_accuracy"] is not None}
    assert found["communications"] == {1: 2.0, 2: 4.0, 3: 6.0, 4: 8.0}
    assert found["alignment/r"] and found["test/accuracy"].keys() == {4}


def test_mlflow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = played_in_two_parts(tmp_path, "mlflow")
    client = MlflowClient((run.folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("told")
    assert experiment is not None
    (told,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(told.info.run_id, "train_loss")
    rows = run.table("rounds").to_pylist()
    assert [(m.step, m.value) for m in history] == [(r["round"], pytest.approx(r["train_loss"])) for r in rows]
    assert told.data.params["algorithm.beta"] == "0.05" and told.data.params["hash"] == run.experiment.hash
    assert told.info.status == "FINISHED"


def test_weights_and_biases_is_told_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = played_in_two_parts(tmp_path, "wandb")
    files = list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and all(f.stem == f"run-{run.folder.name}" for f in files)
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(b"train_loss" in f.read_bytes() for f in files):
        time.sleep(0.1)  # its own process may still be writing when finish() has returned
    assert all(b"train_loss" in f.read_bytes() for f in files)


def test_a_tracker_changes_no_bit_and_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Fails:
        def __init__(self, *args: object) -> None: ...

        def log(self, round: int, values: tracking.Values) -> None:
            told.append(round)
            if round == 2:
                raise ConnectionError("nobody answers\nat all")

        def close(self) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setitem(tracking._KINDS, "tensorboard", Fails)
    e, said = replace(problem(FedGA(), 4), rounds=4), list[str]()
    where = Where(on="local", track=("tensorboard",))
    *_, last = rounds(e, where, run_root=tmp_path, name="told", say=lambda line: said.append(line))
    *_, plain = rounds(e, Where(on="local"), run_root=tmp_path, name="plain")
    assert told == [1, 2]
    assert said[-1] == "tensorboard is not told any more: nobody answers; the run's tables have everything"
    assert load(last.folder).digest() == load(plain.folder).digest()


def test_unknown_trackers_are_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place({"on": "local", "track": "tensorboard,mlflow"}).track == ("tensorboard", "mlflow")
    with pytest.raises(BadInput, match="unknown tracker 'tensorbord'; did you mean tensorboard"):
        next(rounds(problem(FedGA()), Where(on="local", track=("tensorbord",)), run_root=tmp_path))
    monkeypatch.setitem(tracking.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(BadInput, match=r"needs the package no_such_package: pip install 'raygrad\[track\]'"):
        next(rounds(problem(FedGA()), Where(on="local", track=("wandb",)), run_root=tmp_path))
    assert list(tmp_path.iterdir()) == []
