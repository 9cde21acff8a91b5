"""Regularisers against direct computations in float64, and as a part of every client's loss."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raygrad import Where, citations, local, rounds
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.alignment import fixed_cohort
from raygrad.contract import Answer, Ask, Cohort, Replies, Task
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.flat import FlatModel
from raygrad.plan import Plan, make_plan
from raygrad.regularizers import (
    L2,
    REGULARIZERS,
    VALUE,
    L2Init,
    Regularizer,
    Spectral,
    Unregularized,
    Wasserstein,
    hvp,
)  # fmt: skip
from raygrad.run import create, play
from raygrad.streams import LabelFlips, PermutedPixels, Tasks
from raygrad.tasks import FULL
from raygrad.verify import problem

CONVERGED = 150
"""Power iterations after which the test's matrices have their singular vectors to rounding."""

KINDS: dict[str, Regularizer] = {
    "l2": L2(0.3),
    "l2-init": L2Init(0.3),
    "spectral": Spectral(0.3, iterations=CONVERGED),
    "spectral, k = 3": Spectral(0.3, power=3, iterations=CONVERGED),
    "wasserstein": Wasserstein(0.3),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)),
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2)),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4)
    ),
}


def made(layers: str) -> tuple[FlatModel, Tensor]:
    """A model with its initial weights, and other weights."""
    torch.manual_seed(1)
    model = FlatModel(LAYERS[layers](), torch.float64)
    return model, model.vector() + 0.3 * torch.randn(model.size, dtype=torch.float64)


def slope(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, eps: float = 1e-6) -> Tensor:
    return (f(x + eps * v) - f(x - eps * v)) / (2 * eps)


def directly(regularizer: Regularizer, model: FlatModel, x: Tensor) -> float:
    """R by full singular value decompositions and sorted distances, for k = 2."""
    now, start = model.split(x), model.split(model.vector())
    if isinstance(regularizer, L2):
        return float(x @ x)
    if isinstance(regularizer, L2Init):
        return float(((x - model.vector()) ** 2).sum())
    if isinstance(regularizer, Wasserstein):
        pairs = [(np.sort(now[n].numpy().ravel()), np.sort(start[n].numpy().ravel())) for n in now]
        return sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    total = 0.0
    for layer_name, layer in model.module.named_modules():
        for name, _ in layer.named_parameters(recurse=False):
            p = now[f"{layer_name}.{name}"]
            if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d | nn.LayerNorm):
                total += float(((p**2 - 1) ** 2).sum() if name == "weight" else (p**4).sum())
            elif name == "weight":
                total += float(torch.linalg.svdvals(p.reshape(len(p), -1))[0] ** 2 - 1) ** 2
            else:
                total += float(p @ p) ** 2
    return total


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", [k for k in KINDS if "k = 3" not in k])
def test_values_are_those_of_svd_and_sorting(kind: str, layers: str) -> None:
    model, x = made(layers)
    found = float(KINDS[kind].on(model, 0).value(x))
    assert found == pytest.approx(0.3 * directly(KINDS[kind], model, x), rel=1e-12)
    assert found > 0


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_hessians_are_slopes(kind: str, layers: str) -> None:
    model, x = made(layers)
    term = KINDS[kind].on(model, 0)
    directions = torch.randn(4, model.size, dtype=torch.float64)
    for v in directions:
        assert float(term.grad(x) @ v) == pytest.approx(float(slope(term.value, x, v)), rel=1e-7, abs=1e-7)
        assert torch.allclose(hvp(term, x, v), slope(term.grad, x, v), rtol=1e-6, atol=1e-6)
    rows = x + 0.1 * directions
    for together, alone in (
        (term.value(rows), [term.value(row) for row in rows]),
        (term.grad(rows), [term.grad(row) for row in rows]),
        (hvp(term, rows, directions), [hvp(term, row, v) for row, v in zip(rows, directions, strict=True)]),
    ):
        assert torch.allclose(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_a_worked_example() -> None:
    """sigma = 3 and |b|^2 = 5: (9 - 1)^2 + 5^2."""
    model = FlatModel(nn.Linear(2, 2), torch.float64)
    x = torch.tensor([3.0, 0, 0, 1, 1, 2], dtype=torch.float64)
    term = Spectral(1.0, iterations=CONVERGED).on(model, 0)
    assert float(term.value(x)) == pytest.approx(89, rel=1e-12)
    assert torch.allclose(term.grad(x), torch.tensor([96.0, 0, 0, 0, 20, 40], dtype=torch.float64), atol=1e-9)


def test_ten_power_iterations_are_a_few_per_cent_low_and_one_is_far_off() -> None:
    """Of initial weights, whose singular values lie close together, each brought to 2."""

    def low(iterations: int) -> np.ndarray:
        found = []
        for seed in range(20):
            torch.manual_seed(seed)
            model = FlatModel(nn.Linear(64, 64, bias=False), torch.float64)
            w = 2 * model.vector() / torch.linalg.matrix_norm(model.vector().view(64, 64), 2)
            value = float(Spectral(1.0, iterations=iterations).on(model, seed).value(w))
            found.append(1 - (1 + value**0.5) ** 0.5 / 2)
        return np.array(found)

    assert 0 < low(10).mean() < 0.04 < low(10).max() < 0.1
    assert low(1).mean() > 0.15
    assert low(CONVERGED).max() < 0.01


def test_a_layer_of_zeros_has_finite_gradients() -> None:
    model, x = made("linear")
    term, zeros = Spectral(1.0).on(model, 0), torch.zeros_like(x)
    assert torch.equal(term.grad(zeros), zeros)
    assert hvp(term, zeros, x).isfinite().all()


def test_weights_that_change_places_cost_l2_init_but_not_wasserstein() -> None:
    model, _ = made("linear")
    start = model.vector()
    x = start.clone()
    x[:20] = start[:20].flip(0)  # inside the first matrix
    assert float(Wasserstein(1.0).on(model, 0).value(x)) == 0 < float(L2Init(1.0).on(model, 0).value(x))
    assert torch.equal(Wasserstein(1.0).on(model, 0).grad(x), torch.zeros_like(x))


# --- in the loss ------------------------------------------------------------------------------------------------------

NAMES = ("batch", "whole", "full", "hvp", "end")


@dataclass(frozen=True)
class Everything:
    """All that a task says of its loss, at a model of the client's own."""

    def work(self, task: Task, y: Tensor, v: Tensor) -> Answer:
        first = next(iter(task.batches))
        found = (task.grad(y, first), task.grad(y, FULL), task.full_grad(y), task.hvp(y, v), local.sgd(task, y, 0.1))
        sums = task.evaluate(y)
        mean = {VALUE: sums[VALUE] / sums["count"]} if VALUE in sums else {}
        squares = task.square_norms(y) / task.examples
        return Answer({**dict(zip(NAMES, found, strict=True)), **mean, "squares": squares})

    def measure(self, y: Tensor, v: Tensor, cohort: Cohort) -> Generator[Ask, Replies, dict[str, Tensor]]:
        r = yield Ask(self.work, cohort, {"v": v}, {"y": y}, rows=NAMES, charged=False)
        told = {n: torch.from_numpy(r.scalar(n)) for n in r.scalars if n in (VALUE, "squares")}
        return {n: r.rows(n) for n in NAMES} | told


def planned(regularizer: Regularizer, mode: str, folder: Path, steps: int = 1) -> Plan:
    e = problem(FedAvg())
    gangs = Gangs(2, mode)  # pyright: ignore[reportArgumentType]
    few = replace(e.local, clip_norm=None, steps=steps)
    return make_plan(replace(e, regularizer=regularizer, gangs=gangs, local=few), Where(on="local"), folder)


def asked(plan: Plan, folder: Path, y: Tensor, v: Tensor) -> dict[str, Tensor]:
    cohort = fixed_cohort(plan.population, 10**6, 0)
    d = plan.driver(InProcess(plan.spec), StateStore(folder / "states", plan.client_state, 10**9))
    return d.converse(Everything().measure(y, v, cohort), ("probe", 1), cohort, plan.buffers, 1.0).result


def models(plan: Plan) -> tuple[Tensor, Tensor]:
    """A model for each client, and a direction."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(len(plan.population) + 1, len(plan.x), dtype=torch.float64, generator=generator)
    return plan.x + 0.2 * drawn[1:], drawn[0]


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_in_every_gradient(kind: str, mode: str, tmp_path: Path) -> None:
    """Of a batch and of the shard, in products with the Hessian and in a local step; and its value is told."""
    plan, plain = planned(KINDS[kind], mode, tmp_path), planned(Unregularized(), mode, tmp_path)
    assert plan.experiment.gangs.mode == mode
    y, v = models(plan)
    term = InProcess(plan.spec).runner.term
    assert term is not None
    found, without = asked(plan, tmp_path / "a", y, v), asked(plain, tmp_path / "b", y, v)
    added = {n: found[n] - without[n] for n in NAMES}
    for name in ("batch", "whole", "full"):
        assert torch.allclose(added[name], term.grad(y), rtol=0, atol=1e-10)
    assert torch.allclose(added["hvp"], hvp(term, y, v.expand_as(y)), rtol=0, atol=1e-10)
    assert torch.allclose(added["end"], -0.1 * term.grad(y), rtol=0, atol=1e-10)
    assert torch.allclose(found[VALUE], term.value(y), rtol=1e-12) and VALUE not in without
    assert float(term.grad(y).norm()) > 0.1
    cross = 2 * (without["full"] * term.grad(y)).sum(1)  # mean_j |g_j + t|^2 - mean_j |g_j|^2
    assert torch.allclose(found["squares"] - without["squares"], cross + (term.grad(y) ** 2).sum(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_loop_equals_vmap(kind: str, tmp_path: Path) -> None:
    loop, vmap = (planned(KINDS[kind], mode, tmp_path, steps=4) for mode in ("loop", "vmap"))
    y, v = models(loop)
    one, other = (asked(plan, tmp_path / plan.spec.mode, y, v) for plan in (loop, vmap))
    assert all(torch.allclose(one[n], other[n], rtol=0, atol=1e-10) for n in (*NAMES, VALUE, "squares"))


def played(e: Experiment, folder: Path, name: str) -> str:
    run = create(e, Where(on="local"), run_root=folder, name=name, id="a")
    list(play(run))
    return load(str(run.folder)).digest()


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("kind", REGULARIZERS)
def test_a_weight_of_zero_is_none_bit_for_bit(kind: str, mode: str, tmp_path: Path) -> None:
    regularizer = REGULARIZERS[kind]() if kind == "none" else REGULARIZERS[kind](weight=0.0)
    e = replace(problem(FedGA()), gangs=Gangs(2, mode), rounds=2)  # pyright: ignore[reportArgumentType]
    none = played(e, tmp_path, "none")
    assert played(replace(e, regularizer=regularizer), tmp_path, "zero") == none
    if kind != "none":
        heavy = replace(e, regularizer=REGULARIZERS[kind](weight=0.1))
        assert played(heavy, tmp_path, "heavy") != none
        assert heavy.hash != e.hash


@pytest.mark.parametrize(("kind", "tasks"), [("l2-init", LabelFlips(2)), ("spectral", PermutedPixels(2))])
def test_the_same_bits_on_hosts_of_ray(kind: str, tasks: Tasks, tmp_path: Path, ray_local: None) -> None:
    """Of a stream of tasks, too: hosts draw for themselves what a task and a layer need."""
    e = replace(problem(FedGA()), regularizer=REGULARIZERS[kind](weight=0.1), tasks=tasks)
    here = create(e, Where(on="local"), run_root=tmp_path, name="here", id="a")
    there = create(e, Where(on="ray", hosts=2), run_root=tmp_path, name="there", id="a")
    for run in (here, there):
        list(play(run))
    assert load(str(here.folder)).digest() == load(str(there.folder)).digest()


def test_metrics_have_the_term_and_the_training_loss_has_not(tmp_path: Path) -> None:
    """Of the first round: each client's loss at its first step is that without the term."""
    e = replace(problem(FedAvg()), rounds=2)
    e = replace(e, local=replace(e.local, steps=1))
    one, two = (list(rounds(f, Where(on="local"), run_root=tmp_path)) for f in (e, replace(e, regularizer=L2(0.1))))
    assert one[0].train_loss == two[0].train_loss
    assert one[1].train_loss != two[1].train_loss
    validation = two[1].validation
    assert validation is not None
    assert validation[VALUE] == pytest.approx(0.1 * float(two[1].x @ two[1].x), rel=1e-12)


def test_spectral_regularisation_of_fedga_brings_singular_values_to_one(tmp_path: Path) -> None:
    def largest(regularizer: Regularizer) -> float:
        e = replace(problem(FedGA()), regularizer=regularizer, rounds=40)
        last = list(rounds(e, Where(on="local"), run_root=tmp_path))[-1]
        w = FlatModel(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), torch.float64).split(last.x)
        return float(torch.linalg.svdvals(w["1.weight"])[0])

    assert largest(Unregularized()) > 1.3
    assert abs(largest(Spectral(1.0)) - 1) < 0.05


def test_initial_weights_from_a_file_are_refused_where_a_term_needs_those_of_the_seed() -> None:
    for kind in (L2Init(), Wasserstein()):
        with pytest.raises(BadInput, match="holds weights near those that the seed gives"):
            replace(problem(FedAvg()), regularizer=kind, init="weights.safetensors")
    replace(problem(FedAvg()), regularizer=Spectral(), init="weights.safetensors")


@pytest.mark.parametrize(
    ("setting", "value"), [("weight", "-1"), ("weight", "nan"), ("power", "0"), ("iterations", "0")]
)
def test_bad_settings_are_refused(setting: str, value: str) -> None:
    e = problem(FedAvg()).set("regularizer", "spectral")
    with pytest.raises(BadInput, match=f"regularizer.{setting}"):
        e.set(f"regularizer.{setting}", value)


def test_papers_are_cited() -> None:
    for kind, number in (("l2-init", "2308.11958"), ("spectral", "2406.06811"), ("wasserstein", "2312.00246")):
        e = problem(FedAvg()).set("regularizer", kind)
        assert number in citations.of(e) and number in citations.REFERENCES
