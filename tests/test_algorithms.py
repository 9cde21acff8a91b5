"""Every registered algorithm holds the property suite; broken ones are caught; degenerate cases are exact."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.base import State, Stateless
from raygrad.contract import Answer, Ask, Cohort, Round, Task
from raygrad.verify import suite


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_suite(name: str) -> None:
    failed = [c for c in suite(name, on_ray=False) if not c.ok]
    assert not failed


@pytest.mark.parametrize("name", ["fedga", "scaffold"])
def test_suite_on_ray(name: str, ray_local: None) -> None:
    checks = list(suite(name))
    assert [c for c in checks if not c.ok] == []
    assert sum("Ray" in c.name for c in checks) == 3


@dataclass(frozen=True)
class InPlace(Stateless):
    """Changes the server's model in place."""

    lr: float = 0.1

    def local(self, task: Task, x: Tensor) -> Answer:
        return Answer({"g": task.full_grad(x)})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=state.x.sub_(r.mean("g"), alpha=self.lr))


@dataclass(frozen=True)
class InPlaceAtClient(InPlace):
    """Changes what the client received in place."""

    def local(self, task: Task, x: Tensor) -> Answer:
        before = x.clone()
        x.sub_(task.full_grad(x), alpha=self.lr)
        return Answer({"g": before - x})


@dataclass(frozen=True)
class Unaddressed(InPlace):
    """Draws from numpy's own entropy instead of an addressed generator."""

    def local(self, task: Task, x: Tensor) -> Answer:
        import numpy as np

        noise = float(np.random.default_rng().standard_normal())
        return Answer({"g": task.full_grad(x) * (1 + 1e-3 * noise)})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=state.x - self.lr * r.mean("g"))


@dataclass(frozen=True)
class ByNumber(Unaddressed):
    """Depends on which number a client has."""

    def local(self, task: Task, x: Tensor) -> Answer:
        return Answer({"g": task.full_grad(x)})

    def round(self, state: State, cohort: Cohort) -> Round:
        each = torch.as_tensor(cohort.clients, dtype=state.x.dtype)
        r = yield Ask(self.weighted, cohort, {"x": state.x}, each={"number": each})
        return replace(state, x=state.x - self.lr * r.mean("g"))

    def weighted(self, task: Task, x: Tensor, number: Tensor) -> Answer:
        return Answer({"g": task.full_grad(x) * number})


@dataclass(frozen=True)
class Narrow(Unaddressed):
    """Loses float64."""

    def local(self, task: Task, x: Tensor) -> Answer:
        return Answer({"g": task.full_grad(x)})

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        return replace(state, x=(state.x - self.lr * r.mean("g")).float())


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        ("InPlace", "states are values"),
        ("Unaddressed", "resume equals never having stopped"),
        ("ByNumber", "relabelling clients changes nothing"),
        ("Narrow", "keeps float64"),
    ],
)
def test_suite_catches(broken: str, caught_by: str) -> None:
    failed = {c.name for c in suite(f"{__name__}:{broken}", on_ray=False) if not c.ok}
    assert caught_by in failed


def test_a_client_method_that_writes_in_place_is_named() -> None:
    details = [c.detail for c in suite(f"{__name__}:InPlaceAtClient", on_ray=False) if not c.ok]
    assert any("InPlaceAtClient.local changed x in place" in d for d in details)
