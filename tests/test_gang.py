"""Gangs: how a cohort is cut, summed, batched; loop and vmap; buffers and dropout."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.alignment import AlignmentProbe, fixed_cohort
from raygrad.contract import Population
from raygrad.driver import Driver
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess, as_on_a_host
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.states import StateStore
from raygrad.gang import Phase, TreeSum, cut
from raygrad.local import Local
from raygrad.models import MLP, ResNet
from raygrad.plan import Plan, make_plan
from raygrad.player import evaluate
from raygrad.samplers import Uniform
from raygrad.talk import ServerState, Talk
from raygrad.tasks import FULL, LoopTask
from raygrad.verify import problem


def pairwise_sum(values: list[np.ndarray]) -> np.ndarray:
    """The fixed tree, written as a recursion over levels."""
    while len(values) > 1:
        values = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


@given(st.integers(1, 40), st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_tree_sum_does_not_depend_on_the_order(leaves: int, order: object, seed: int) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    values = [draw.standard_normal(3) * 10.0 ** draw.integers(-8, 8) for _ in range(leaves)]
    arrival = list(range(leaves))
    order.shuffle(arrival)  # type: ignore[attr-defined]
    tree = TreeSum(leaves)
    for i in arrival:
        assert tree.total is None
        tree.add(i, {"v": values[i]})
    assert tree.total is not None
    assert tree.total["v"].tobytes() == pairwise_sum(values).tobytes()


def test_tree_sum_in_order_holds_logarithmically_many() -> None:
    tree = TreeSum(1000)
    most = 0
    for i in range(1000):
        tree.add(i, {"v": np.ones(1)})
        most = max(most, len(tree._waiting))
    assert most <= 10
    assert tree.total is not None
    assert tree.total["v"][0] == 1000


@given(st.integers(1, 300), st.integers(1, 40))
def test_cut(clients: int, size: int) -> None:
    ids = np.arange(clients) * 7
    gangs = cut(ids, np.ones(clients), np.ones(clients), size)
    assert np.array_equal(np.concatenate([g.clients for g in gangs]), ids)
    assert [g.index for g in gangs] == list(range(len(gangs)))
    assert all(1 <= len(g.clients) <= size for g in gangs)
    assert max(len(g.clients) for g in gangs) - min(len(g.clients) for g in gangs) <= 1
    assert max(len(g.clients) for g in gangs) - min(len(g.clients) for g in gangs) <= 1


def planned(e: Experiment, folder: Path) -> Plan:
    return make_plan(e, Where(on="local"), folder)


def driver(plan: Plan, folder: Path) -> Driver:
    store = StateStore(folder / "states", plan.client_state, 10**9)
    return plan.driver(InProcess(plan.spec), store)


def task(plan: Plan, round: int, client: int, number: int = 0) -> LoopTask:
    executor = InProcess(plan.spec)
    executor.runner.shards = plan.shards
    phase = Phase(("round", round), number, FedAvg().local, {}, {}, (), "train", 1.0, None, True)
    return LoopTask(executor.runner, phase, client)


def test_batches_repeat_fresh_permutations_of_the_shard(tmp_path: Path) -> None:
    plan = planned(replace(problem(FedAvg()), local=Local(steps=9, batch_size=4)), tmp_path)
    x, _ = plan.shards.read("train", 2)
    n = len(x)
    batches = list(task(plan, 1, 2).batches)
    assert [len(b.y) for b in batches] == [4] * 9
    drawn = torch.cat([b.x for b in batches])
    stored = plan.spec.transform(x, torch.float64, None)
    index = [int((stored == row).all(1).nonzero()[0, 0]) for row in drawn]
    for a in range(0, 36 - n + 1, n):
        assert sorted(index[a : a + n]) == list(range(n))
    again = torch.cat([b.x for b in task(plan, 1, 2, number=1).batches])
    assert torch.equal(drawn, again)  # the same in every phase of a round
    assert not torch.equal(drawn, torch.cat([b.x for b in task(plan, 2, 2).batches]))


def test_full_batches_use_each_example_once(tmp_path: Path) -> None:
    plan = planned(replace(problem(FedAvg()), local=Local(steps=2, batch_size="full")), tmp_path)
    whole = task(plan, 1, 0)
    assert [b is FULL for b in whole.batches] == [True, True]
    assert torch.equal(whole.grad(plan.x, FULL), whole.full_grad(plan.x))


@pytest.mark.parametrize(("epochs", "expected"), [(1, 5), (2, 9), (0.1, 1)])
def test_epochs_become_steps(epochs: float, expected: int) -> None:
    assert Local(steps=None, epochs=epochs, batch_size=4).steps_for(18) == expected


def test_ragged_shards_probe_and_evaluate_alike_in_loop_and_vmap(tmp_path: Path) -> None:
    found = []
    for mode in ("loop", "vmap"):
        e = replace(problem(FedGA()), gangs=Gangs(3, mode))
        plan = planned(e, tmp_path)
        assert len(set(plan.shards.examples.tolist())) > 1
        cohort = fixed_cohort(plan.population, 64, 0)
        d = driver(plan, tmp_path)
        a = d.converse(AlignmentProbe().measure(plan.x, cohort), ("probe", 1), cohort, None).result
        v = evaluate(d, plan, ServerState(e.algorithm.init(plan.x, plan.population)), "validation", 1)
        found.append((a, v))
    (a, v), (b, w) = found
    for name in ("r", "gradient_norm", "diversity", "cosine"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-10)
    assert v == pytest.approx(w, rel=1e-10)
    assert a.diversity == pytest.approx(1 + 2 * a.r / a.gradient_norm**2, rel=1e-12)


@pytest.mark.parametrize("name", ["fedga", "scaffold"])
def test_augmented_data_alike_in_loop_and_vmap(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a client's data is converted in several pieces."""
    monkeypatch.setattr("raygrad.runner.CHUNK_BYTES", 16 * 64 * 8)  # 16 images of 8 x 8 in float64
    found = []
    for mode in ("loop", "vmap"):
        e = replace(
            Experiment(), algorithm=ALGORITHMS[name](), model=MLP((5,), "tanh"), dtype="float64", gangs=Gangs(5, mode)
        )
        plan = planned(e, tmp_path)
        transform = replace(plan.spec.transform, augment="crop-flip")
        plan = replace(plan, spec=replace(plan.spec, transform=transform))
        state = ServerState(e.algorithm.init(plan.x, plan.population))
        found.append(driver(plan, tmp_path).play(state, 1).state.algorithm.x)
    assert not torch.equal(found[0], plan.x)
    assert (found[0] - found[1]).abs().max() <= 1e-12


def test_alignment_against_its_definition(tmp_path: Path) -> None:
    plan = planned(problem(FedGA()), tmp_path)
    cohort = fixed_cohort(plan.population, 64, 0)
    a = driver(plan, tmp_path).converse(AlignmentProbe().measure(plan.x, cohort), ("probe", 1), cohort, None).result
    g = torch.stack([task(plan, 1, i).full_grad(plan.x) for i in range(len(plan.population))])
    mean = g.mean(0)
    assert a.r == pytest.approx(float(((g - mean) ** 2).sum(1).mean() / 2), rel=1e-12)
    assert a.cosine == pytest.approx(float(torch.cosine_similarity(g, mean[None], dim=1).mean()), rel=1e-12)


@dataclass(frozen=True)
class WithLayer:
    """A small network with one layer that vmap cannot do."""

    layer: str = "norm"

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        odd = nn.BatchNorm1d(6) if self.layer == "norm" else nn.Dropout(0.5)
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 6), odd, nn.Linear(6, classes or 1))


@pytest.mark.parametrize(("layer", "name"), [("norm", "BatchNorm1d"), ("dropout", "Dropout")])
def test_what_vmap_cannot_do_falls_back_to_the_loop_and_names_the_layer(layer: str, name: str, tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), model=WithLayer(layer), gangs=Gangs("auto", "vmap"))
    plan = planned(e, tmp_path)
    assert plan.experiment.gangs.mode == "loop"
    assert f"layer 2 ({name})" in plan.notes[0]


class Ema(nn.Module):
    """Assigns a new tensor to its buffer in every training step, as is common."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("ema", torch.zeros(5))
        self.linear = nn.Linear(5, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.training:
            self.ema = 0.9 * self.ema + 0.1 * x.detach().mean(0)
        return self.linear(x - self.ema)


class Noisy(Ema):
    """Dropout as a function, which no list of layers can know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training))


class Branching(Ema):
    """A branch on data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x.flatten(1))
        return out if out.sum() > 0 else -out


class Counting(Ema):
    """Changes a buffer in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.ema += 1
        return self.linear(x.flatten(1))


@dataclass(frozen=True)
class Odd:
    """One of the modules above."""

    kind: str = "Ema"

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        kinds = {"Ema": Ema, "Noisy": Noisy, "Branching": Branching, "Counting": Counting}
        return kinds[self.kind](classes or 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Ema", "changes its buffers while it trains"),
        ("Counting", "changes its buffers while it trains"),
        ("Noisy", "torch.func.vmap cannot run the model"),
        ("Branching", "torch.func.vmap cannot run the model"),
    ],
)
def test_a_model_that_vmap_cannot_do_is_found_by_trying(kind: str, reason: str, tmp_path: Path) -> None:
    """Under the default rule, too, which would have chosen vmap for a model of this size."""
    e = replace(problem(FedAvg()), model=Odd(kind), gangs=Gangs())
    state, _, plan = played(e, tmp_path, rounds=2)
    assert plan.experiment.gangs.mode == "loop"
    assert reason in plan.notes[0]
    assert plan.buffers is not None
    assert torch.equal(plan.buffers, torch.zeros(5, dtype=torch.float64))
    assert state.buffers is not None
    assert torch.equal(state.buffers, plan.buffers) == (kind in ("Noisy", "Branching"))


def test_a_buffer_that_is_assigned_anew_does_not_leak_between_clients(tmp_path: Path) -> None:
    """What one client's training makes of it depends neither on who trained before nor on the gang."""
    e = replace(problem(FedAvg()), model=Odd("Ema"), sampler=Uniform(cohort=6))
    one, _, _ = played(replace(e, gangs=Gangs(1, "loop")), tmp_path)
    six, _, _ = played(replace(e, gangs=Gangs(6, "loop")), tmp_path)
    assert one.buffers is not None
    assert six.buffers is not None
    assert (one.buffers - six.buffers).abs().max() <= 1e-14
    assert (one.algorithm.x - six.algorithm.x).abs().max() <= 1e-14


def played(e: Experiment, folder: Path, rounds: int = 2) -> tuple[ServerState, list[Talk], Plan]:
    plan = planned(e, folder)
    d = driver(plan, folder)
    state, talks = ServerState(e.algorithm.init(plan.x, plan.population), plan.buffers), []
    for index in range(1, rounds + 1):
        p = d.play(state, index)
        state = p.state
        talks.append(p.talk)
        for clients, rows in p.talk.states:
            d.states.put(clients, rows)  # type: ignore[attr-defined]
    return state, talks, plan


def test_dropout_does_not_depend_on_the_gangs(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), model=WithLayer("dropout"), weights="equal", sampler=Uniform(cohort=4))
    one, _, _ = played(replace(e, gangs=Gangs(1, "loop")), tmp_path)
    two, _, _ = played(replace(e, gangs=Gangs(2, "loop")), tmp_path)
    assert (one.algorithm.x - two.algorithm.x).abs().max() <= 1e-14
    none, _, _ = played(replace(e, seed=1), tmp_path)
    assert not torch.equal(one.algorithm.x, none.algorithm.x)


def test_running_statistics_are_averaged(tmp_path: Path) -> None:
    """The server's buffers after a round are the weighted mean of what the clients' own training made of them."""
    e = replace(problem(FedAvg()), model=WithLayer("norm"), sampler=Uniform(cohort=6))
    state, _, plan = played(e, tmp_path, rounds=1)
    assert state.buffers is not None
    assert plan.buffers is not None
    each = []
    for client in range(6):
        t = task(plan, 1, client)
        t._runner.model.load_buffers(plan.buffers)
        e.algorithm.local(t, plan.x)  # type: ignore[attr-defined]
        each.append(t._runner.model.buffers())
    weights = torch.tensor(plan.population.weights)[:, None]
    expected = (weights * torch.stack(each)).sum(0) / weights.sum()
    assert (state.buffers - expected).abs().max() <= 1e-14
    assert not torch.equal(state.buffers, plan.buffers)


def test_full_gradients_leave_running_statistics_alone(tmp_path: Path) -> None:
    plan = planned(replace(problem(FedGA()), model=WithLayer("norm")), tmp_path)
    t = task(plan, 1, 0)
    before = t._runner.model.buffers()
    t.full_grad(plan.x)
    assert torch.equal(t._runner.model.buffers(), before)


def test_local_buffers_stay_with_their_client(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), model=WithLayer("norm"), sampler=Uniform(cohort=6), buffers="local")
    plan = planned(e, tmp_path)
    assert set(plan.client_state) == {"buffers"}
    state, talks, _ = played(e, tmp_path, rounds=1)
    own = torch.from_numpy(np.concatenate([rows["buffers"] for _, rows in talks[0].states]))
    assert len(torch.unique(own, dim=0)) == 6
    weights = torch.tensor(plan.population.weights)[:, None]
    assert state.buffers is not None
    assert (state.buffers - (weights * own).sum(0) / weights.sum()).abs().max() <= 1e-14


def test_buffers_can_be_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="buffers is refuse"):
        planned(replace(problem(FedAvg()), model=WithLayer("norm"), buffers="refuse"), tmp_path)
    planned(replace(problem(FedAvg()), buffers="refuse"), tmp_path)


def test_group_norm_has_no_buffers() -> None:
    module = ResNet(blocks=(1, 1), width=8).build((3, 8, 8), 10)
    assert list(module.buffers()) == []
    assert module(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_fixed_cohort_is_fixed() -> None:
    population = Population(np.ones(500, np.int64), np.ones(500))
    a, b = fixed_cohort(population, 64, 3), fixed_cohort(population, 64, 3)
    assert len(a) == 64
    assert np.array_equal(a.clients, b.clients)
    assert not np.array_equal(a.clients, fixed_cohort(population, 64, 4).clients)
    assert len(fixed_cohort(population, 1000, 3)) == 500


@pytest.mark.parametrize("before", [False, True])
def test_a_gpu_computes_the_same_bits_in_this_process_and_its_settings_are_given_back(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not before)

    def settings() -> tuple[object, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark, torch.get_num_threads(),
        )  # fmt: skip

    torch.use_deterministic_algorithms(before, warn_only=before)
    try:
        former = settings()
        with as_on_a_host("cuda"):
            assert settings() == (True, False, False, 1)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert settings() == former
        with as_on_a_host("cpu"):
            assert settings() == (*former[:3], 1)
    finally:
        torch.use_deterministic_algorithms(False)
