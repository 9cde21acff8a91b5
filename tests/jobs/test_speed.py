"""The benchmark's programs: both sides do the same work, and every program runs to its end. Nothing here is timed."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import raygrad
from jobs.benchmark import on_raygrad, peers, plain_loop, sides, speed, work
from jobs.benchmark.experiments import MadeShards, experiment
from raygrad.data.shards import prepare
from raygrad.experiment import Gangs
from raygrad.flat import FlatModel, initial_module
from raygrad.local import Local
from raygrad.rng import Purpose, rng

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a program's command line in this process, from the repository, and returns what it prints."""
    monkeypatch.chdir(ROOT)

    def run(module: ModuleType, *words: str, code: int = 0) -> str:
        capsys.readouterr()
        try:
            module.main(words)
        except SystemExit as e:
            assert (e.code or 0) == code, capsys.readouterr().err
        else:
            assert code == 0
        out, error = capsys.readouterr()
        return error if code else out

    return run


# --- equal work -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("batch", [work.BATCH, "full"])
@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_the_plain_loop_computes_raygrads_model(
    dtype: str, tolerance: float, batch: int | str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same mini-batches, or on full batches, two rounds of three clients end in the same weights."""
    monkeypatch.chdir(ROOT)
    local = Local(steps=work.STEPS, batch_size=batch)  # pyright: ignore[reportArgumentType]
    run = replace(experiment("small", 3, 3), rounds=2, dtype=dtype, local=local, gangs=Gangs(2, mode))
    found = [r.x for r in raygrad.rounds(run, raygrad.Where(on="local"), run_root=tmp_path)]

    kind = getattr(torch, dtype)
    module = initial_module(run.model, work.SHAPE, work.CLASSES, run.seed)
    model = FlatModel(module, kind)
    start = model.vector()
    weights = {name: w.clone() for name, w in module.state_dict().items()}
    for index in (1, 2):
        shards = []
        for client in range(3):
            x, y = work.shard(run.seed, client)
            if batch != "full":
                order = rng(run.seed, Purpose.BATCHES, index, client).permutation(work.EXAMPLES)
                x, y = x[order], y[order]
            shards.append((x.to(kind), y))
        size = work.EXAMPLES if batch == "full" else work.BATCH
        weights = plain_loop.play(module, weights, shards, work.STEPS, size, work.LR)
        module.load_state_dict(weights)
        assert (found[index - 1] - start).norm() > 1e-2
        assert torch.allclose(found[index - 1], model.vector(), rtol=0, atol=tolerance)


def test_networks_have_the_sizes_they_are_known_by() -> None:
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in work.NETWORKS.items()}
    assert sizes == {"small": 26_842, "large": 1_626_442}


def test_raygrad_stores_the_shards_of_the_plain_loop(tmp_path: Path) -> None:
    e = experiment("small", clients=7, cohort=2, stored=3)
    shards = prepare(e.data, e.partition, shard_root=tmp_path, data_root=None, seed=0, validation=e.evaluation.fraction)
    assert shards.clients == 7 and shards.test_examples == work.EXAMPLES
    for client in (0, 2, 5):
        x, y = work.shard(0, client % 3)
        stored_x, stored_y = shards.read("train", client)
        assert np.array_equal(stored_x, x.numpy()) and np.array_equal(stored_y, y.numpy())


def test_bad_sizes_are_refused(program: Callable[..., str]) -> None:
    with pytest.raises(raygrad.BadInput, match="clients is 0"):
        MadeShards(0)
    with pytest.raises(raygrad.BadInput, match="there is small and large"):
        experiment("middling", 1, 1)
    assert "cohort no larger" in program(plain_loop, "--clients", "3", "--cohort", "4", code=2)
    assert "no case small-11; there is small-10" in program(speed, "small-11", code=2)
    assert "pfl_bench.py is missing" in program(peers, "--programs", "nowhere", "--python", "p", code=2)


# --- the measuring --------------------------------------------------------------------------------------------------


class Script:
    """A process that answers from a list, and notes when it was asked."""

    def __init__(self, name: str, log: list[str], seconds: list[float]) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def send(self, rounds: int) -> None:
        self.log.append(f"{self.name} {rounds}")

    def receive(self) -> list[float]:
        self.log.append(f"{self.name} done")
        return self.seconds


def test_sides_take_turns_and_the_order_is_turned_round() -> None:
    log: list[str] = []
    one = sides.Side("a", 10, [Script("a", log, [1.0])])  # type: ignore[list-item]
    pair = sides.Side("b", 10, [Script("b", log, [1.0]), Script("c", log, [2.0])])  # type: ignore[list-item]
    sides.alternate([one, pair], 2, [4, 2])
    both = ["b 2", "c 2", "b done", "c done"]  # a pair plays at the same moment, two sides never
    assert log == ["a 4", "a done", *both, *both, "a 4", "a done"]


def test_rates_are_of_the_median_round_and_add_up_over_processes() -> None:
    side = sides.Side("pair", 10, [], [[[1.0, 1.0, 7.0], [2.0, 2.0, 2.0]], [[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]]])
    side.processes = [None, None]  # type: ignore[list-item]
    assert side.rate(0) == 10 / 1 + 10 / 2
    assert side.rate(1) == 10 / 1 + 10 / 4
    assert side.rate() == 10 / 1 + 10 / 3
    assert side.rate(0, mean=True) == pytest.approx(10 / 3 + 10 / 2)


def test_a_side_that_ends_early_is_said() -> None:
    process = sides.Process("plain_loop", ["--clients", "1", "--cohort", "2"])
    try:
        with pytest.raises(sides.Ended, match="plain_loop ended with code 2"):
            process.receive()
    finally:
        process.stop()


def test_costs_come_from_the_operations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"round": [1, 2, 2, 3, 3], "wall_s": [9.0, 0.3, 0.5, 0.4, 0.4]})

    class Run:
        def table(self, name: str) -> pa.Table:
            assert name == "operations"
            return table

    monkeypatch.setattr(raygrad, "load", lambda run: Run(), raising=False)
    found = on_raygrad.costs(tmp_path, {1: 9.0, 2: 0.5, 3: 0.5}, cohort=10, hosts=2)
    # A round lasts 0.5 s on two hosts, of which 0.8 s are computing: 0.2 s for ten clients are not.
    assert found == pytest.approx({"host_clients_per_s": 10 / 0.8, "overhead_ms": 20.0, "busy": 0.8})


# --- the programs ---------------------------------------------------------------------------------------------------


def test_the_plain_loop_runs_alone(program: Callable[..., str]) -> None:
    text = program(plain_loop, "--clients", "3", "--cohort", "2", "--rounds", "3")
    assert "plain loop, small, 2 of 3 clients: median" in text and "clients/s" in text


def test_raygrad_runs_alone_on_ray(ray_local: None, program: Callable[..., str]) -> None:
    text = program(on_raygrad, "--clients", "4", "--cohort", "4", "--rounds", "2", "--set", "gangs.size=1")
    first, last = text.splitlines()
    assert "raygrad, small, 4 of 4 clients: median" in first
    found = json.loads(last)
    assert 0 < found["busy"] <= 1 and found["overhead_ms"] > 0 and found["host_clients_per_s"] > 0


def test_a_case_and_the_start_run_to_their_end(program: Callable[..., str]) -> None:
    text = program(speed, "small-10", "start", "--on", "local", "--blocks", "1", "--rounds", "2", "--starts", "1")
    case, start = (json.loads(line) for line in text.splitlines()[:2])
    assert case["case"] == "small-10" and case["clients"] == 100 and case["cohort"] == 10
    assert case["ratio"] == pytest.approx(case["clients_per_s"] / case["against_clients_per_s"])
    assert case["reached"] == (case["ratio"] >= 2.2)
    assert 0 < start["imported_s"] < start["prepared_s"] < start["first_round_s"]
    assert [line.split("  ")[0] for line in text.splitlines()[3:6]] == ["case", "small-10", "start"]


def test_a_case_against_raygrad_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    class Made:
        """Half a second per round with all clients, 0.4 s with the stored ones."""

        def __init__(self, module: str, words: list[str]) -> None:
            assert module == "on_raygrad"
            asked.append(words)
            self.seconds = 0.5 if "50" in words else 0.4

        def send(self, rounds: int) -> None: ...

        def receive(self) -> list[float]:
            return [self.seconds] * 3

        def finish(self) -> dict[str, float]:
            return {"host_clients_per_s": 9.0, "overhead_ms": 1.5, "busy": 0.75}

        def stop(self) -> None: ...

    monkeypatch.setattr(speed, "Process", Made)
    case = speed.Case("small", 50, 10, 0, 0.9, 1, stored=5)
    given = argparse.Namespace(on="ray", hosts=3, set=["gangs.size=2"], rounds=1, blocks=2)
    found = speed.compare("many", case, given, tmp_path)
    assert [w[w.index("--clients") + 1] for w in asked] == ["50", "5"]
    assert all(w[w.index("--stored") + 1] == "5" and w[-2:] == ["--set", "gangs.size=2"] for w in asked)
    assert (found["side"], found["against"]) == ("raygrad, 50 clients", "raygrad, 5 clients")
    assert (found["clients_per_s"], found["against_clients_per_s"], found["ratio"]) == (20, 25, 0.8)
    assert not found["reached"]
    row = speed.row(found)
    assert row[:5] == ["many", "20", "raygrad, 5 clients", "25", "0.80"] and "NO" in row and "75% busy" in row[-1]


def test_raygrad_reads_stored_shards_again_and_again(program: Callable[..., str]) -> None:
    words = ["--clients", "50", "--stored", "5", "--cohort", "3", "--rounds", "1", "--on", "local"]
    assert "raygrad, small, 3 of 50 clients: median" in program(on_raygrad, *words)


def test_peers_are_run_with_the_same_work(tmp_path: Path) -> None:
    (tmp_path / "pfl_bench.py").write_text(
        "import os\n"
        "assert os.environ['B_MODEL'] == 'pfl' and os.environ['OMP_NUM_THREADS'] == '1'\n"
        "print('RESULT pfl C=' + os.environ['B_COHORT'], 'first=1.500s median=0.1s clients_per_s=42.5')\n"
    )
    given = argparse.Namespace(
        programs=tmp_path, python=Path(sys.executable), network="large", clients=9, cohort=3, rounds=4
    )
    found = {c.name: c for c in peers.contestants(given)}
    assert list(found) == ["plain loop (jobs/benchmark)", "raygrad, 2 hosts", "pfl, 1 process", "pfl, 2 processes"]
    assert peers.run(found["pfl, 1 process"], given, str(tmp_path)) == (42.5, 1.5)
    (tmp_path / "pfl_bench.py").write_text("raise SystemExit('no such framework')")
    with pytest.raises(ValueError, match="pfl, 1 process gave no result: no such framework"):
        peers.run(found["pfl, 1 process"], given, str(tmp_path))


@pytest.mark.parametrize("module", [plain_loop, on_raygrad, speed, peers])
def test_every_program_has_help(module: ModuleType, program: Callable[..., str]) -> None:
    text = program(module, "--help")
    assert f"python -m {module.__name__}" in text and "--rounds" in text
