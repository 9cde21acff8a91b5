"""Sweeps on Ray Tune: bad trials are stopped, kills and lost nodes cost time only, two sweeps share a cluster."""

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BadInput, Stopped
from raygrad.experiment import Experiment, Where
from raygrad.files.runs import load
from raygrad.onray import tuning
from raygrad.sweeps import sweep as sweeps
from raygrad.sweeps.sweep import LoadedSweep, Maker, Sweep
from raygrad.sweeps.trial import Evaluation
from raygrad.verify import problem

RECIPE = """
from dataclasses import replace
from raygrad.algorithms.fedga import FedGA
from raygrad.verify import problem

def recipe():
    return replace(problem(FedGA()), rounds=30)
"""
OWN = """
from dataclasses import dataclass
from raygrad.algorithms.fedavg import FedAvg

@dataclass(frozen=True)
class Own(FedAvg):
    def local(self, task, x):
        return super().local(task, 0.5 * x)
"""
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return replace(problem(FedGA()), rounds=18)


def alone(e: Experiment, root: Path, name: str) -> str:
    """The digest of the run of an experiment by itself, without Ray."""
    made = engine.create(e, Where(on="local"), run_root=root, name=name)
    for _ in engine.play(made):
        pass
    return load(made.folder).digest()


@pytest.mark.usefixtures("ray_local")
def test_asha_stops_bad_trials_and_the_best_is_tested(experiment: Experiment, tmp_path: Path) -> None:
    s = Sweep(
        experiment, {"alpha": "0.3,0.2,1e-6,1e300"}, search="grid", scheduler="asha", seeds=2, max_concurrent=1,
        winner_seeds=1,
    )  # fmt: skip
    said: list[str] = []
    done = sweeps.run(s, run_root=tmp_path, name="asha", say=said.append)
    rows = done.trials().to_pylist()
    search = [r for r in rows if r["role"] == "search"]
    assert [r["outcome"] for r in search] == [
        *["finished"] * 2, *[search[2]["outcome"]] * 2, "stopped", "stopped", "diverged", "stopped",
    ]  # fmt: skip
    assert search[4]["rounds"] < 18 and search[4]["communications"] == 2 * search[4]["rounds"]
    best = done.best()
    assert best is not None and best["trial"] in (0, 1)
    (winner,) = (r for r in rows if r["role"] == "winner")
    assert (winner["seed"], winner["trial"]) == (2, best["trial"])
    assert winner["test"] is not None and all(r["test"] is None for r in search)
    assert not list(done.folder.glob("trials/000?-[01]/final.json"))
    for row in (search[0], search[1], search[4], winner):
        e = replace(s.with_settings({"algorithm.lr": row["algorithm.lr"]}), seed=row["seed"], rounds=row["rounds"])
        assert row["digest"] == alone(e, tmp_path, f"alone-{row['trial']}-{row['seed']}")
    assert said[-1].startswith("1 of 1 · trial")
    assert sum(line.startswith(("1 of 4", "2 of 4", "3 of 4", "4 of 4")) for line in said) == 4
    assert sweeps.resume(done.folder).trials().equals(done.trials())  # nothing is left to do


@pytest.mark.usefixtures("ray_local")
def test_a_population_comes_to_the_same_after_every_stop(experiment: Experiment, tmp_path: Path) -> None:
    """A fork has the digest of its schedule played from the start; a sweep that was cut off once its forks were decided
    has the table of one that was not.
    """
    s = Sweep(
        replace(experiment, rounds=6), {"alpha": "loguniform(0.001, 0.5)", "K": "1,2,5"}, samples=4, scheduler="pbt",
        generations=2, winner_seeds=1, max_concurrent=2,
    )  # fmt: skip
    whole = sweeps.run(s, Where(hosts=1), run_root=tmp_path, name="whole")
    table = whole.trials()
    *rows, winner = sorted(table.to_pylist(), key=lambda r: r["role"])
    assert [r["outcome"] for r in rows].count("stopped") == 1
    assert [r["outcome"] for r in rows].count("finished") == 4
    (fork,) = [r for r in rows if r["parent"] is not None]
    record = json.loads((whole.folder / fork["run"] / "experiment.json").read_text())
    assert record["forked_from"]["run"] == f"trials/{fork['parent']:04d}-0"
    e = Experiment.from_json(record["experiment"])
    assert e.changes
    assert alone(e, tmp_path / "alone", "fork") == fork["digest"]
    assert winner["role"] == "winner" and winner["seed"] == 1 and winner["test"] is not None

    def cut_off(line: str) -> None:
        if line.startswith("generation 2"):
            raise Stopped(line)

    with pytest.raises(Stopped, match="generation 2 of 2: 4 trials, to round 6"):
        sweeps.run(s, Where(hosts=1), run_root=tmp_path, name="cut", say=cut_off)
    again = sweeps.resume("cut", run_root=tmp_path)
    assert again.trials().drop_columns(["wall_s"]).equals(table.drop_columns(["wall_s"]))


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("how", ["a point", "all points"])
def test_an_algorithm_of_ones_own_travels_to_workers_that_cannot_import_it(
    how: str, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"travels_as_{how.replace(' ', '_')}"
    file = tmp_path / f"{name}.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module(name).Own
    file.unlink()
    e = replace(experiment, rounds=4)
    if how == "all points":
        s = Sweep(replace(e, algorithm=own()), {"alpha": "0.1,0.2"}, search="grid", winner_seeds=0)
    else:
        s = Sweep(e, {"algorithm": f"fedga,{name}:Own"}, search="grid", winner_seeds=0)
    done = sweeps.run(s, Where(hosts=1), run_root=tmp_path, name="own")
    rows = done.trials().to_pylist()
    assert {r["outcome"] for r in rows} == {"finished"}, rows
    (row,) = [r for r in rows if r["trial"] == 1 and r["role"] == "search"]
    assert row["digest"] == alone(replace(e, algorithm=own(lr=row.get("algorithm.lr", 0.1))), tmp_path, "own-alone")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_two_sweeps_at_once_and_one_is_killed_and_goes_on(tmp_path: Path) -> None:
    """There is room for one trial at a time, so one sweep waits. The killed one's table is as if it never was."""
    (tmp_path / "small_recipe.py").write_text(RECIPE)
    address = ray.get_runtime_context().gcs_address
    words = ["sweep", "small_recipe.py", "--alpha", "loguniform(0.05,0.5)", "--K", "2,3", "--samples", "3",
             "--hosts-per-trial", "3", "--max-concurrent", "1", "--winner-seeds", "0", "--address", address,
             "--run-root", str(tmp_path)]  # fmt: skip
    log = tmp_path / "killed.log"
    with log.open("w") as out:
        killed = subprocess.Popen(
            [sys.executable, "-m", "raygrad", *words, "--name", "killed"], cwd=tmp_path, stdout=out, stderr=out
        )
    try:
        space = {"alpha": "loguniform(0.05,0.5)", "K": "2,3"}
        s = Sweep(
            replace(problem(FedGA()), rounds=30), space, samples=3, hosts_per_trial=3, max_concurrent=1, winner_seeds=0
        )
        whole = sweeps.run(s, run_root=tmp_path, name="whole")
        until = time.monotonic() + PATIENCE_S
        while not list(tmp_path.glob("killed/*/trials.parquet")) and time.monotonic() < until:
            assert killed.poll() is None, log.read_text()
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    (folder,) = (tmp_path / "killed").iterdir()
    over = sweeps.load(folder).trials().num_rows
    resumed = sweeps.resume(folder)
    assert 1 <= over <= 3 and resumed.sweep == whole.sweep
    assert resumed.trials().drop(["wall_s"]).equals(whole.trials().drop(["wall_s"]))
    assert set(whole.trials()["outcome"].to_pylist()) == {"finished"}


@pytest.mark.slow
def test_a_node_leaves_and_another_joins_during_a_sweep(tmp_path: Path, in_another_ray: Callable[..., Any]) -> None:
    found = in_another_ray("sweeping.py")
    assert found["removed"] and found["refused"].startswith("a trial needs 64 CPU, and this cluster has 2")
    assert "finished" in found["outcomes"] and found["outcomes"][2] == "stopped"  # ASHA goes by who comes first
    for i, (lr, rounds, digest) in enumerate(found["trials"]):  # resting changes no bit
        assert digest == alone(replace(problem(FedGA(lr=lr)), rounds=rounds), tmp_path, f"alone{i}")


@pytest.mark.usefixtures("ray_local")
def test_a_trainable_for_a_tuner_of_ones_own(experiment: Experiment, tmp_path: Path) -> None:
    playing = tuning.trainable(experiment, Where(hosts=1), run_root=tmp_path, name="own")
    found = tune.Tuner(
        playing,
        param_space={"alpha": tune.grid_search([0.1]), "K": 2},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    ).fit()
    last = found.get_best_result().metrics
    assert last is not None and (last["communications"], last["round"], last["outcome"]) == (36, 18, "finished")
    (folder,) = (tmp_path / "own").iterdir()
    e = experiment.set("algorithm.lr", "0.1").set("local.steps", "2")
    assert load(folder).digest() == alone(e, tmp_path, "own-alone")
    with pytest.raises(BadInput, match="a trial's hosts are reserved"):
        tuning.trainable(experiment, Where(hosts="auto"))


# --- what needs no trial --------------------------------------------------------------------------------------------


def test_a_new_scheduler_is_told_what_trials_before_it_reported(experiment: Experiment, tmp_path: Path) -> None:
    """After three good ones a bad one is stopped at once, as if the sweep had never been interrupted."""
    s = Sweep(experiment, {"alpha": "0.1,0.2,0.3,0.4"}, search="grid", scheduler="asha")
    maker = Maker(s, Where(), tmp_path)
    points = maker.known()
    for scheduler in (tuning._scheduler(s, maker), tuning._scheduler(replace(s, scheduler="median"), maker)):
        curve = [Evaluation(r, 2 * r, {"accuracy": 0.9}) for r in (2, 4, 6)]
        tuning._tell(scheduler, s, [(p, "stopped", curve) for p in points[:3]])
        assert isinstance(scheduler, tuning._EachAlone)
        other = tuning._Past("other", {"algorithm": "fedavg"})
        bad = tuning._Past("bad", {})
        scheduler.on_trial_add(None, bad)  # type: ignore[arg-type]
        at = {"communications": 4, "accuracy": 0.1}
        assert scheduler.on_trial_result(None, bad, at) == "STOP"
        scheduler.on_trial_add(None, other)
        assert scheduler.on_trial_result(None, other, at) == "CONTINUE"  # another algorithm: the first of its kind
        if isinstance(inner := scheduler.of({}), AsyncHyperBandScheduler):
            milestones = [milestone for milestone, _ in inner._brackets[0]._rungs]
            assert all(m % maker.unit == 0 for m in milestones)  # every trial is judged there


def test_optuna_is_told_what_is_over_and_goes_on(experiment: Experiment, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    s = Sweep(experiment, {"algorithm": "fedga,fedavg", "alpha": "loguniform(0.01,1)", "beta": "uniform(0,0.4)"},
              search="optuna", samples=4, start=({"algorithm": "fedavg", "alpha": 0.1},))  # fmt: skip
    loaded = LoadedSweep(tmp_path, "s", s, Where())
    maker = Maker(s, Where(), tmp_path)
    known = maker.known()
    sweeps.remember(loaded, *known)
    first = tuning.Guided(loaded, maker, known, [])
    given = [first.suggest(f"t{i}") for i in range(5)]
    assert given[0]["point"] == known[0] and given[4] == "FINISHED"
    first.on_trial_complete("t0", {"accuracy": 0.5})
    first.on_trial_complete("t1", {"accuracy": 0.7})
    first.on_trial_complete("t2", None, error=True)
    points = Maker(s, Where(), tmp_path).known(tmp_path)
    assert points == [g["point"] for g in given[:4]]
    second = tuning.Guided(loaded, maker, points[2:], [(points[0], 0.5), (points[1], 0.7)])
    assert [t.value for t in second._study.trials] == [0.5, 0.7]
    assert [second.suggest(n) for n in "xyz"] == [given[2], given[3], "FINISHED"]


def test_what_a_trial_died_of_is_said() -> None:
    class Wrapped(Exception):
        cause: BaseException | None = None

    outer, inner = Wrapped("None"), KeyError("myalgo")
    outer.cause = inner
    assert tuning._why(outer) == "KeyError: 'myalgo'"
    assert tuning._why(ValueError("first\nlast line\n")) == "ValueError: last line"
    assert tuning._why(ValueError()) == "ValueError"


@pytest.mark.usefixtures("ray_local")
def test_hyperband_stops_bad_trials(experiment: Experiment, tmp_path: Path) -> None:
    alphas = ",".join(f"{10.0**-i:g}" for i in range(1, 10))
    s = Sweep(
        replace(experiment, rounds=18), {"alpha": alphas}, search="grid", scheduler="hyperband", winner_seeds=0
    )  # fmt: skip
    done = sweeps.run(s, Where(hosts=1), run_root=tmp_path, name="halved")
    rows = done.trials().to_pylist()
    stopped = [r for r in rows if r["outcome"] == "stopped"]
    assert len(rows) == 9 and len(stopped) >= 3
    assert max(r["communications"] for r in stopped) < 36 == max(r["communications"] for r in rows)


def test_a_missing_optuna_names_the_extra(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BadInput, match=r"not installed: pip install 'raygrad\[tune\]'"):
        tuning.check(Sweep(experiment, {"alpha": "0.1,0.2"}, search="optuna"), Where())


def test_sigterm_becomes_the_signal_at_which_tune_saves() -> None:
    signals, seen = tuning._Signals(), []
    with signals.passed_on():
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        signal.raise_signal(signal.SIGTERM)
        signals.pass_on()
        with pytest.raises(Stopped, match="twice"):
            signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGUSR1, signal.SIGUSR1] and signals.number == signal.SIGTERM
