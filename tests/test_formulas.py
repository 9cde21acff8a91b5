"""Each algorithm against its formulas written out as plain loops over the clients, in float64 on whole shards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raygrad.algorithms import ALGORITHMS
from raygrad.contract import Algorithm
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.packing import pack
from raygrad.files.states import StateStore
from raygrad.flat import FlatModel, initial_module
from raygrad.local import Local
from raygrad.plan import Plan, make_plan
from raygrad.samplers import Uniform
from raygrad.talk import ServerState
from raygrad.verify import problem

ALPHA, BETA, K = 0.1, 0.05, 3
N = 6

Grad = Callable[[int, Tensor], Tensor]


def setup(algorithm: Algorithm, folder: Path, **changes: object) -> tuple[Experiment, Plan, Grad, Tensor]:
    """The problem on whole shards with every client, its plan, each client's gradient, and the aggregation weights."""
    clients = changes.pop("clients", N)
    assert isinstance(clients, int)
    e = replace(
        problem(algorithm, clients),
        local=Local(steps=K, batch_size="full"),
        sampler=Uniform(cohort=clients),
        gangs=Gangs(2, "loop"),
        **changes,  # pyright: ignore[reportArgumentType]
    )
    plan = make_plan(e, Where(on="local"), folder)
    model = FlatModel(initial_module(e.model, plan.spec.shape, plan.spec.classes, e.seed), torch.float64)

    def grad(i: int, y: Tensor) -> Tensor:
        x, labels = plan.shards.read("train", i)
        y = y.clone().requires_grad_()
        out = model.call(y, plan.spec.transform(x, torch.float64, None))
        loss = torch.nn.functional.cross_entropy(out, torch.tensor(labels))
        return torch.autograd.grad(loss, y)[0]

    return plan.experiment, plan, grad, torch.tensor(plan.population.weights) / plan.population.weight


def run(e: Experiment, plan: Plan, rounds: int, folder: Path) -> ServerState:
    store = StateStore(folder / "states", plan.client_state, 10**9)
    driver = plan.driver(InProcess(plan.spec), store)
    state = ServerState(e.algorithm.init(plan.x, plan.population), plan.buffers)
    for index in range(1, rounds + 1):
        played = driver.play(state, index)
        state = played.state
        for clients, rows in played.talk.states:
            store.put(clients, rows)
    store.close()
    return state


def mean(p: Tensor, vectors: list[Tensor]) -> Tensor:
    return torch.stack([w * v for w, v in zip(p, vectors, strict=True)]).sum(0)


def descend(grad: Grad, i: int, start: Tensor, extra: Callable[[Tensor], Tensor | float] = lambda y: 0.0) -> Tensor:
    y = start
    for _ in range(K):
        y = y - ALPHA * (grad(i, y) + extra(y))
    return y


def fedavg(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    return mean(p, [descend(grad, i, x) for i in range(len(p))])


def fedprox(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    return mean(p, [descend(grad, i, x, lambda y: 0.7 * (y - x)) for i in range(len(p))])


def displacements(x: Tensor, p: Tensor, grad: Grad) -> list[Tensor]:
    g = [grad(i, x) for i in range(len(p))]
    return [-BETA * (mean(p, g) - g_i) for g_i in g]


def fedga(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    v = displacements(x, p, grad)
    return mean(p, [descend(grad, i, x + v[i]) for i in range(len(p))])


def gradalign(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    v = displacements(x, p, grad)
    return x - ALPHA * mean(p, [grad(i, x + v[i]) for i in range(len(p))])


def scaffold_fresh(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    g = [grad(i, x) for i in range(len(p))]
    c = mean(p, g)
    return mean(p, [descend(grad, i, x, lambda y, v=c - g[i]: v) for i in range(len(p))])


def large_batch(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    return x - ALPHA * mean(p, [grad(i, x) for i in range(len(p))])


def linear_scaled(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    return x - ALPHA * len(p) * mean(p, [grad(i, x) for i in range(len(p))])


def aligned_scaled(x: Tensor, p: Tensor, grad: Grad) -> Tensor:
    g = [grad(i, x) for i in range(len(p))]
    total = len(p) * mean(p, g)
    points = [x - (ALPHA / 2) * (total - g_i) for g_i in g]
    return x - ALPHA * len(p) * mean(p, [grad(i, y) for i, y in enumerate(points)])


CASES = {
    "fedavg": ({}, fedavg),
    "fedprox": ({"mu": 0.7}, fedprox),
    "fedga": ({"beta": BETA}, fedga),
    "gradalign": ({"beta": BETA}, gradalign),
    "scaffold-fresh": ({}, scaffold_fresh),
    "lbsgd none": ({"scaling": "none"}, large_batch),
    "lbsgd linear": ({"scaling": "linear"}, linear_scaled),
    "lbsgd aligned": ({"scaling": "aligned"}, aligned_scaled),
}


@pytest.mark.parametrize("weights", ["equal", "examples"])
@pytest.mark.parametrize("case", CASES)
def test_three_rounds(case: str, weights: str, tmp_path: Path) -> None:
    settings, formula = CASES[case]
    algorithm = ALGORITHMS[case.split()[0]](lr=ALPHA, **settings)
    e, plan, grad, p = setup(algorithm, tmp_path, weights=weights)
    x = plan.x
    for _ in range(3):
        x = formula(x, p, grad)
    assert (run(e, plan, 3, tmp_path).algorithm.x - x).abs().max() <= 1e-13


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold(option: str, tmp_path: Path) -> None:
    e, plan, grad, p = setup(ALGORITHMS["scaffold"](lr=ALPHA, option=option), tmp_path)
    x, c = plan.x, torch.zeros_like(plan.x)
    c_i = [torch.zeros_like(x) for _ in range(N)]
    for _ in range(4):
        y = [descend(grad, i, x, lambda y, v=c - c_i[i]: v) for i in range(N)]
        new = [grad(i, x) if option == "I" else c_i[i] - c + (x - y[i]) / (K * ALPHA) for i in range(N)]
        x = mean(p, y)
        c = c + mean(p, [a - b for a, b in zip(new, c_i, strict=True)])
        c_i = new
        assert (c - mean(p, c_i)).abs().max() <= 1e-13  # the invariant
    found = run(e, plan, 4, tmp_path).algorithm
    assert (found.x - x).abs().max() <= 1e-13
    assert (found.c - c).abs().max() <= 1e-13


def test_feddyn(tmp_path: Path) -> None:
    a = 0.3
    e, plan, grad, p = setup(ALGORITHMS["feddyn"](lr=ALPHA, penalty=a), tmp_path, weights="examples")
    x = plan.x
    h, duals = torch.zeros_like(x), [torch.zeros_like(x) for _ in range(N)]
    for _ in range(4):
        y = [descend(grad, i, x, lambda y, x=x, dual=duals[i]: a * (y - x) - dual) for i in range(N)]
        duals = [d - a * (y_i - x) for d, y_i in zip(duals, y, strict=True)]
        h = h - a * mean(p, [y_i - x for y_i in y])
        x = mean(p, y) - h / a
        assert (h - mean(p, duals)).abs().max() <= 1e-13  # the invariant
    found = run(e, plan, 4, tmp_path).algorithm
    assert (found.x - x).abs().max() <= 1e-13
    assert (found.h - h).abs().max() <= 1e-13


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stale_fedga(momentum: float, tmp_path: Path) -> None:
    e, plan, grad, p = setup(ALGORITHMS["fedga-stale"](lr=ALPHA, beta=BETA), tmp_path)
    e = replace(e, local=replace(e.local, momentum=momentum))
    plan = make_plan(e, Where(on="local"), tmp_path)
    x, c = plan.x, None
    weights = [sum(momentum**j for j in range(k + 1)) for k in range(K)]  # the K steps along a gradient of 1

    def steps(i: int, start: Tensor) -> Tensor:
        y, v = start, torch.zeros_like(start)
        for _ in range(K):
            v = momentum * v + grad(i, y)
            y = y - ALPHA * v
        return y - start

    for _ in range(3):
        z = x if c is None else x - BETA * c
        deltas = [steps(i, z if c is None else z + BETA * grad(i, z)) for i in range(N)]
        x, c = x + mean(p, deltas), -mean(p, deltas) / (ALPHA * sum(weights))
    assert (run(e, plan, 3, tmp_path).algorithm.x - x).abs().max() <= 1e-13


def test_local_momentum_is_that_of_torch(tmp_path: Path) -> None:
    """Begun anew in every round, with weight decay and clipping in torch's order."""
    e, plan, grad, p = setup(ALGORITHMS["fedavg"](lr=ALPHA), tmp_path)
    e = replace(e, local=replace(e.local, momentum=0.8, weight_decay=0.01, clip_norm=0.5))
    plan = make_plan(e, Where(on="local"), tmp_path)
    x = plan.x
    for _ in range(2):
        ends = []
        for i in range(N):
            y = x.clone().requires_grad_()
            optimizer = torch.optim.SGD([y], ALPHA, momentum=0.8, weight_decay=0.01)
            for _ in range(K):
                y.grad = grad(i, y.detach())
                torch.nn.utils.clip_grad_norm_([y], 0.5)
                optimizer.step()
            ends.append(y.detach())
        x = mean(p, ends)
    assert (run(e, plan, 2, tmp_path).algorithm.x - x).abs().max() <= 1e-13


def test_sgd_is_k_steps_on_the_pooled_client(tmp_path: Path) -> None:
    e, plan, grad, _ = setup(ALGORITHMS["sgd"](lr=ALPHA), tmp_path, clients=1)
    assert (run(e, plan, 1, tmp_path).algorithm.x - descend(grad, 0, plan.x)).abs().max() <= 1e-13


def outcome(algorithm: Algorithm, folder: Path, steps: int = K) -> Tensor:
    e, _, _, _ = setup(algorithm, folder)
    e = replace(e, local=Local(steps=steps, batch_size="full"))
    plan = make_plan(e, Where(on="local"), folder)
    return run(e, plan, 2, folder).algorithm.x


def test_degenerate_cases(tmp_path: Path) -> None:
    make = ALGORITHMS
    average = outcome(make["fedavg"](lr=ALPHA), tmp_path)
    assert torch.equal(outcome(make["fedga"](lr=ALPHA, beta=0.0), tmp_path), average)
    assert torch.equal(outcome(make["fedprox"](lr=ALPHA, mu=0.0), tmp_path), average)
    assert not torch.equal(outcome(make["fedga"](lr=ALPHA, beta=BETA), tmp_path), average)
    align = outcome(make["gradalign"](lr=ALPHA, beta=BETA), tmp_path)
    assert (outcome(make["fedga"](lr=ALPHA, beta=BETA), tmp_path, steps=1) - align).abs().max() <= 1e-14
    plain = outcome(make["lbsgd"](lr=ALPHA), tmp_path)
    assert (outcome(make["gradalign"](lr=ALPHA, beta=0.0), tmp_path) - plain).abs().max() <= 1e-14
    assert (outcome(make["scaffold-fresh"](lr=ALPHA), tmp_path, steps=1) - plain).abs().max() <= 1e-14


def test_partial_participation_moves_the_server_variate_by_the_share_asked(tmp_path: Path) -> None:
    """c stays the weighted mean of all c_i when only some clients are asked."""
    e, _, _, _ = setup(ALGORITHMS["scaffold"](lr=ALPHA), tmp_path, weights="examples")
    e = replace(e, sampler=Uniform(cohort=2))
    plan = make_plan(e, Where(on="local"), tmp_path)
    store = StateStore(tmp_path / "kept", plan.client_state, 10**9)
    driver = plan.driver(InProcess(plan.spec), store)
    state = ServerState(e.algorithm.init(plan.x, plan.population))
    for index in range(1, 6):
        played = driver.play(state, index)
        state = played.state
        for clients, rows in played.talk.states:
            store.put(clients, rows)
        c_i = torch.from_numpy(store.get(torch.arange(N).numpy())["c_i"])
        weights = torch.tensor(plan.population.weights)[:, None]
        assert (state.algorithm.c - (weights * c_i).sum(0) / weights.sum()).abs().max() <= 1e-13
    assert len(pack(state.algorithm)) == 2
    store.close()
