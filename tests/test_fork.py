"""Settings that change on the way, and runs that start from another's checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold
from raygrad.errors import BadInput
from raygrad.experiment import Checkpoints, Experiment, Where
from raygrad.files.runs import LoadedRun, load
from raygrad.reports.report import view
from raygrad.run import create, fork, play, resume
from raygrad.verify import problem

LOCAL = Where(on="local")


def experiment(algorithm: object, rounds: int = 6) -> Experiment:
    return replace(problem(algorithm), rounds=rounds, checkpoints=Checkpoints(every=2))  # pyright: ignore[reportArgumentType]


def played(e: Experiment, folder: Path, name: str, where: Where = LOCAL) -> LoadedRun:
    run = create(e, where, run_root=folder, name=name)
    for _ in play(run):
        pass
    return load(run.folder)


@pytest.mark.parametrize("algorithm", [FedGA(), Scaffold()], ids=["fedga", "scaffold"])
def test_a_fork_has_the_bits_of_its_schedule_played_from_the_start(algorithm: object, tmp_path: Path) -> None:
    """Also a fork of a fork; the rounds before are the other run's."""
    first = played(experiment(algorithm, 4), tmp_path, "first")
    second = fork(first, ["algorithm.lr=0.05", "local.steps=3"], run_root=tmp_path, name="second", rounds=8)
    for _ in play(second):
        pass
    third = fork(load(second.folder), ["algorithm.lr=0.2"], run_root=tmp_path, name="third", rounds=9, round=6)
    for _ in play(third):
        pass
    forked = load(third.folder)
    assert forked.experiment.changes == ("4:algorithm.lr=0.05", "4:local.steps=3", "6:algorithm.lr=0.2")
    alone = played(forked.experiment, tmp_path, "alone")
    assert alone.digest() == forked.digest()
    plain = played(replace(forked.experiment, changes=()), tmp_path, "plain")
    losses = [[r["train_loss"] for r in run.table("rounds").to_pylist()] for run in (plain, forked)]
    assert losses[0][:4] == losses[1][:4] and losses[0][5] != losses[1][5]
    record = json.loads((third.folder / "experiment.json").read_text())
    assert record["forked_from"] == {
        "run": f"second/{second.folder.name}", "round": 6, "hash": load(second.folder).experiment.hash,
    }  # fmt: skip
    assert view(third.folder).hash == forked.experiment.hash


def test_a_schedule_of_settings_is_resumed_at_every_round(tmp_path: Path) -> None:
    e = replace(experiment(FedGA()), changes=("2:algorithm.beta=0.3", "3:local.steps=1", "5:algorithm.lr=0.01"))
    whole = played(e, tmp_path, "whole")
    for stop in range(1, 6):
        run = create(e, LOCAL, run_root=tmp_path, name="stopped")
        for round in play(run):
            if round.index == stop:
                break
        assert [r.index for r in resume(run.folder)] == list(range(stop + 1, 7))
        assert load(run.folder).digest() == whole.digest()


def test_a_fork_may_be_extended_and_keeps_its_origin(tmp_path: Path) -> None:
    first = played(experiment(FedGA(), 2), tmp_path, "first")
    run = fork(first, ["algorithm.beta=0.3"], run_root=tmp_path, name="fork", rounds=3)
    for _ in play(run):
        pass
    assert [r.index for r in resume(run.folder, rounds=5)] == [4, 5]
    assert json.loads((run.folder / "experiment.json").read_text())["forked_from"]["round"] == 2
    assert load(run.folder).digest() == played(load(run.folder).experiment, tmp_path, "alone").digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("algorithm.beta=1",), "expected ROUND:FIELD=VALUE"),
        (("3:data.classes=1",), "with a field of algorithm, local"),
        (("3:algorithm=fedavg",), "expected ROUND:FIELD=VALUE"),
        (("3:algorithm.bta=1",), "did you mean beta"),
        (("0:algorithm.beta=1",), "they come in order, from 1 on"),
        (("3:algorithm.beta=1", "2:algorithm.beta=1"), "they come in order"),
        (("3:algorithm.beta=x",), "beta"),
    ],
)
def test_changes_that_cannot_be(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        replace(experiment(FedGA()), changes=changes)


def test_a_fork_needs_a_checkpoint(tmp_path: Path) -> None:
    run = create(experiment(FedGA()), LOCAL, run_root=tmp_path, name="new")
    with pytest.raises(BadInput, match="no checkpoint after round 1: there is nothing to fork from"):
        fork(run, ["algorithm.beta=0.2"], run_root=tmp_path, name="fork")
    first = played(experiment(FedGA()), tmp_path, "first")
    with pytest.raises(BadInput, match="no checkpoint after round 3"):
        fork(first, ["algorithm.beta=0.2"], run_root=tmp_path, name="fork", round=3)
    with pytest.raises(BadInput, match="rounds is 2, but .* already has 6"):
        fork(first, ["algorithm.beta=0.2"], run_root=tmp_path, name="fork", rounds=2)
    assert not (tmp_path / "fork").exists()
