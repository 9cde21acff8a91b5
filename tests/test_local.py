"""Clients that work unequally: what they draw, and that all who have to know it draw the same."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from raygrad.algorithms.fedavg import FedAvg
from raygrad.commands.experiments import choose, split
from raygrad.contract import Answer, Ask, Cohort, Round, Task
from raygrad.data.datasets import Digits
from raygrad.data.partition import Dirichlet
from raygrad.devices import Constant
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.states import StateStore
from raygrad.local import Local
from raygrad.plan import make_plan
from raygrad.recipes import RECIPES
from raygrad.sweeps.sweep import Sweep
from raygrad.verify import problem

VARIED = Local(steps=None, epochs=2, epochs_to=5, batch_size=3, batch_size_to="full")
SEEN: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []


class Telling(FedAvg):
    """FedAvg whose clients say how they have worked."""

    batch: int | None = None

    def local(self, task: Task, x: Tensor) -> Answer:
        sizes = [len(batch.y) for batch in task.batches]
        assert len(sizes) == task.steps and len(set(sizes)) == 1
        answer = super().local(task, x)
        return replace(answer, update={**answer.update, "K": x.new_tensor(task.steps), "B": x.new_tensor(sizes[0])})

    def round(self, state: Any, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x}, batch_size=self.batch)
        SEEN.append((r.cohort.clients, r.scalar("K"), r.scalar("B")))
        return replace(state, x=state.x + r.mean("delta"))


class TellingOfPairs(Telling):
    """The same, with batches of two."""

    batch = 2


def with_sizes(local: Local, algorithm: FedAvg) -> Experiment:
    """Clients of many sizes, on a modelled clock."""
    return replace(
        problem(algorithm), data=Digits(), partition=Dirichlet(clients=6, concentration=0.5), local=local,
        devices=Constant(examples_per_s=100.0),
    )  # fmt: skip


def test_epochs_and_batch_sizes_are_uniform() -> None:
    drawn = [VARIED.at(0, 1, client, 12) for client in range(20_000)]
    epochs, sizes = (Counter(getattr(d, name) for d in drawn) for name in ("epochs", "batch_size"))
    assert sorted(epochs) == [2, 3, 4, 5] and sorted(sizes) == list(range(3, 13))
    for counts in (epochs, sizes):
        expected = len(drawn) / len(counts)
        assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5
    together = Counter((d.epochs, d.batch_size) for d in drawn)
    assert len(together) == 40 and min(together.values()) > 500 - 5 * 500**0.5
    assert not any(d.varies for d in drawn)


def test_a_small_shard_is_one_batch() -> None:
    assert {VARIED.at(0, 1, c, 2).batch_size for c in range(20)} == {2}
    assert {replace(VARIED, batch_size_to=4).at(0, 1, c, 100).batch_size for c in range(50)} == {3, 4}


@pytest.mark.parametrize(
    ("local", "algorithm"),
    [(VARIED, Telling()), (Local(steps=4, batch_size=3), TellingOfPairs()), (VARIED, TellingOfPairs())],
)
def test_the_clock_knows_how_clients_work(local: Local, algorithm: FedAvg, tmp_path: Path) -> None:
    """What the driver charges a modelled device for is what the client does, also where the algorithm sets B."""
    plan = make_plan(with_sizes(local, algorithm), Where(on="local"), tmp_path)
    assert plan.spec.mode == "loop"
    driver = plan.driver(InProcess(plan.spec), StateStore(tmp_path / "states", plan.client_state, 10**9))
    state, drawn = plan.start(), set[tuple[float, float]]()
    for index in (1, 2):
        SEEN.clear()
        played = driver.play(state, index)
        ((clients, k, b),) = SEEN
        steps, sizes = driver.work(clients, index, algorithm.batch)  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_array_equal(steps, k)
        np.testing.assert_array_equal(sizes, b)
        np.testing.assert_array_equal(played.talk.fates.steps, k)
        assert played.talk.seconds == pytest.approx(float((k * b).max()) / 100, abs=1e-2)  # and bytes
        drawn |= set(zip(k.tolist(), b.tolist(), strict=True))
        state = played.state
    assert len(drawn) == 1 if local.steps else len(drawn) > 4


def test_an_algorithm_sets_the_batch_size_in_both_modes(tmp_path: Path) -> None:
    """The same batches, whether clients run one after another or side by side."""
    found = []
    for mode in ("loop", "vmap"):
        e = replace(problem(TellingOfPairs()), gangs=Gangs(2, mode))
        plan = make_plan(e, Where(on="local"), tmp_path)
        assert plan.spec.mode == mode
        driver = plan.driver(InProcess(plan.spec), StateStore(tmp_path / mode, plan.client_state, 10**9))
        found.append(driver.play(plan.start(), 1).state.algorithm.x.numpy())
        assert SEEN[-1][2].tolist() == [2.0] * 4
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs_to": 3}, "local.epochs_to is 3"),
        ({"steps": None, "epochs": 1.5, "epochs_to": 3}, "local.epochs_to is 3"),
        ({"steps": None, "epochs": 4, "epochs_to": 3}, "local.epochs_to is 3"),
        ({"batch_size_to": 3}, "local.batch_size_to is 3; it must be >= local.batch_size (10)"),
        ({"batch_size": "full", "batch_size_to": 3}, "needs a number as local.batch_size"),
    ],
)
def test_ranges_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as e:
        Local(**settings)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["local.steps=5"], {"steps": 5, "epochs": None, "epochs_to": None, "batch_size_to": "full"}),
        (["local.epochs=3"], {"epochs": 3.0, "epochs_to": None}),
        (["local.epochs=1", "local.epochs_to=4"], {"epochs": 1.0, "epochs_to": 4}),
        (["local.batch_size=20"], {"batch_size": 20, "batch_size_to": None, "epochs_to": 5}),
    ],
)
def test_a_fixed_setting_takes_the_place_of_a_range(settings: list[str], expected: dict[str, Any]) -> None:
    """On a recipe that draws both, as a run and as a sweep set them."""
    local = choose("fedaware", settings, {}).experiment.local
    assert {name: getattr(local, name) for name in expected} == expected
    pairs = {path: float(value) if path == "local.epochs" else int(value) for path, value in map(split, settings)}
    swept = Sweep(RECIPES["fedaware"](), {"local.lr": "0.1,0.2"}).with_settings(pairs)
    assert swept.local == local
