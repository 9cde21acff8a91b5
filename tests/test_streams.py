"""Streams of tasks: what clients and evaluations see in each round, and that nothing else decides it."""

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raygrad import Where
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.alignment import fixed_cohort
from raygrad.contract import Answer, Ask, Cohort, Replies, Task
from raygrad.data.datasets import Digits, SyntheticQuadratic
from raygrad.data.partition import IID, Natural
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.models import Linear
from raygrad.plan import Plan, make_plan
from raygrad.rng import Purpose, rng
from raygrad.run import create, extend, play
from raygrad.streams import TASKS, LabelFlips, PermutedPixels, Tasks
from raygrad.verify import problem


def test_the_first_task_is_the_data_as_they_are_and_each_other_one_is_drawn() -> None:
    pixels, labels = PermutedPixels(every=3), LabelFlips(every=3)
    x, y = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4), torch.arange(10)
    for round in (1, 2, 3):
        assert torch.equal(pixels.inputs(x, 0, round), x) and torch.equal(labels.targets(y, 10, 0, round), y)
    assert torch.equal(pixels.targets(y, 10, 0, 9), y) and torch.equal(labels.inputs(x, 0, 9), x)
    for task in (1, 2):
        first = 3 * task + 1
        moved, changed = pixels.inputs(x, 7, first), labels.targets(y, 10, 7, first)
        order = rng(7, Purpose.TASKS, task).permutation(16)
        assert torch.equal(moved, x.flatten(2)[..., order].view_as(x))
        assert changed.tolist() == rng(7, Purpose.TASKS, task).permutation(10).tolist()
        assert torch.equal(pixels.inputs(x, 7, first + 2), moved)
        assert not torch.equal(pixels.inputs(x, 7, first + 3), moved)
        assert not torch.equal(pixels.inputs(x, 8, first), moved)


def test_features_that_are_no_image_are_permuted_one_by_one() -> None:
    x = torch.arange(12.0).view(2, 6)
    moved = PermutedPixels(every=1).inputs(x, 0, 2)
    assert not torch.equal(moved, x)
    assert torch.equal(moved[1] - moved[0], torch.full((6,), 6.0))
    assert torch.equal(moved.sort().values, x)


# --- what a client sees -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A model's gradients of the first batch and of the shard, its product with the Hessian, its loss."""

    def work(self, task: Task, x: Tensor) -> Answer:
        first = next(iter(task.batches))
        found = {"batch": task.grad(x, first), "full": task.full_grad(x), "hvp": task.hvp(x, 1 + x)}
        return Answer({**found, "loss": task.evaluate(x)["loss"]})

    def measure(self, x: Tensor, cohort: Cohort) -> Generator[Ask, Replies, dict[str, Tensor]]:
        names = ("batch", "full", "hvp")
        r = yield Ask(self.work, cohort, {"x": x}, rows=names, charged=False)
        return {n: r.rows(n) for n in names} | {"loss": torch.from_numpy(r.scalar("loss"))}


def planned(tasks: Tasks, mode: str, folder: Path) -> Plan:
    e = replace(problem(FedAvg()), data=Digits(), partition=IID(clients=4), model=Linear(bias=False), tasks=tasks)
    return make_plan(replace(e, gangs=Gangs(2, mode)), Where(on="local"), folder)  # pyright: ignore[reportArgumentType]


def seen(plan: Plan, folder: Path, x: Tensor, round: int) -> dict[str, Tensor]:
    cohort = fixed_cohort(plan.population, 10**6, 0)
    d = plan.driver(InProcess(plan.spec), StateStore(folder / "states", plan.client_state, 10**9))
    return d.converse(Seen().measure(x, cohort), ("probe", round), cohort, plan.buffers, 1.0).result


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("kind", ["permuted-pixels", "label-flips"])
def test_clients_see_the_rounds_task(kind: str, mode: str, tmp_path: Path) -> None:
    """A linear model whose weights are permuted likewise has the permuted gradients: of batches, the shard, all that
    is measured.
    """
    round = 5
    plan, plain = planned(TASKS[kind](every=2), mode, tmp_path), planned(TASKS["one"](), mode, tmp_path)
    assert plan.spec.mode == mode
    x = torch.randn(10, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.from_numpy(rng(plan.spec.seed, Purpose.TASKS, 2).permutation(64 if kind == "permuted-pixels" else 10))

    def moved(rows: Tensor) -> Tensor:
        w = rows.view(-1, 10, 64)
        if kind == "permuted-pixels":
            return w[:, :, order].view(rows.shape)
        return w[:, order.argsort()].view(rows.shape)

    found = seen(plan, tmp_path / "a", moved(x.flatten()), round)
    expected = seen(plain, tmp_path / "b", x.flatten(), round)
    for name in ("batch", "full", "hvp"):
        assert torch.allclose(found[name], moved(expected[name]), rtol=0, atol=1e-12)
        assert not torch.allclose(found[name], expected[name], rtol=0, atol=1e-3)
    assert torch.allclose(found["loss"], expected["loss"], rtol=1e-12)
    assert torch.equal(
        seen(plan, tmp_path / "c", x.flatten(), 2)["full"], seen(plain, tmp_path / "d", x.flatten(), 2)["full"]
    )


def stream(tasks: Tasks, rounds: int = 6) -> Experiment:
    e = replace(problem(FedGA()), data=Digits(), partition=IID(clients=4), model=Linear(), tasks=tasks, rounds=rounds)
    return replace(e, evaluation=replace(e.evaluation, every=1), local=replace(e.local, steps=8, batch_size=16))


def test_a_new_task_is_new_for_training_validation_and_test(tmp_path: Path) -> None:
    """Right after the change the accuracy is that of guessing; the test at the end is on the last round's task."""
    run = create(stream(LabelFlips(every=4), rounds=8), Where(on="local"), run_root=tmp_path, name="a", id="a")
    accuracies = [r.validation["accuracy"] for r in play(run) if r.validation]
    final = json.loads((run.folder / "final.json").read_text())
    assert accuracies[3] > 0.7 and accuracies[4] < 0.6 * accuracies[3] and accuracies[7] > 0.7
    assert abs(final["metrics"]["accuracy"] - accuracies[7]) < 0.15


@pytest.mark.parametrize("kind", ["permuted-pixels", "label-flips"])
def test_a_resumed_run_sees_the_same_tasks(kind: str, tmp_path: Path) -> None:
    whole = create(stream(TASKS[kind](every=2)), Where(on="local"), run_root=tmp_path, name="whole", id="a")
    list(play(whole))
    part = create(stream(TASKS[kind](every=2), rounds=3), Where(on="local"), run_root=tmp_path, name="part", id="a")
    list(play(part))
    list(play(extend(load(str(part.folder)), 6)))
    assert load(str(whole.folder)).digest() == load(str(part.folder)).digest()


def test_flipped_labels_of_numbers_are_refused(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), data=SyntheticQuadratic(), partition=Natural(), model=Linear(), loss="squared_error")
    with pytest.raises(BadInput, match="needs class labels"):
        make_plan(replace(e, metrics=(), tasks=LabelFlips()), Where(on="local"), tmp_path)
    with pytest.raises(BadInput, match="tasks.every is 0"):
        problem(FedAvg()).set("tasks", "label-flips").set("tasks.every", "0")
