"""Networks of workers: mixing matrices, D-SGD and decentralised alignment by hand, what is refused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raygrad import mixing
from raygrad.algorithms import base
from raygrad.algorithms.dga import DGA
from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.dsgd import DSGD
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.fedaware_plugin import FedAwarePlugIn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedopt import FedAdam
from raygrad.algorithms.networked import Networked
from raygrad.contract import Algorithm, Population
from raygrad.devices import LogNormal
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.local import Local
from raygrad.plan import make_plan
from raygrad.rng import Purpose, rng
from raygrad.run import create, play
from raygrad.samplers import Cyclic, Uniform
from raygrad.stragglers import Buffered
from raygrad.verify import problem, suite

N = 6
SIZES = (1, 2, 3, 6, 10, 16)

# --- mixing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", mixing.TOPOLOGIES)
def test_matrices_are_doubly_stochastic(topology: str) -> None:
    for m in SIZES:
        p = mixing.matrix(topology, m)
        assert p.shape == (m, m) and p.dtype == np.float64 and (p >= 0).all()
        assert max(np.abs(p.sum(axis) - 1).max() for axis in (0, 1)) <= 1e-15 * m
        assert (topology == "exponential") or np.array_equal(p, p.T)


def test_matrices_by_hand() -> None:
    third = 1 / 3
    assert np.allclose(mixing.matrix("ring", 4)[1], [third, third, third, 0], atol=1e-16)
    assert np.allclose(mixing.matrix("exponential", 16)[0], 0.2 * np.isin(np.arange(16), [0, 1, 2, 4, 8]), atol=1e-16)
    around = [0, 1, 3, 2]  # the corners of a square
    assert np.allclose(mixing.matrix("grid", 4)[np.ix_(around, around)], mixing.matrix("ring", 4))
    grid = mixing.matrix("grid", 6)  # 0 1 2 over 3 4 5: corners have two neighbours, the middle ones three
    assert np.allclose(grid[0], [5 / 12, 1 / 4, 0, 1 / 3, 0, 0], atol=1e-15)
    assert np.allclose(grid[1], [1 / 4, 1 / 4, 1 / 4, 0, 1 / 4, 0], atol=1e-15)
    assert np.allclose(mixing.matrix("torus", 16)[0].nonzero()[0], [0, 1, 3, 4, 12])
    assert np.allclose(mixing.matrix("star", 4)[3], [1 / 4, 0, 0, 3 / 4])
    assert np.allclose(mixing.matrix("pairs", 3), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    assert mixing.squarest(12) == (3, 4) and mixing.squarest(7) == (1, 7)


def test_how_fast_they_bring_together() -> None:
    """The second singular value, known in closed form for circulant matrices."""
    m = 16
    wave = np.exp(2j * np.pi * np.arange(1, m) / m)
    assert mixing.contraction(mixing.matrix("ring", m)) == pytest.approx(np.abs(1 + wave + 1 / wave).max() / 3)
    there = sum(wave**o for o in (0, 1, 2, 4, 8)) / 5
    assert mixing.contraction(mixing.matrix("exponential", m)) == pytest.approx(np.abs(there).max())
    assert mixing.contraction(mixing.matrix("full", m)) <= 1e-15
    assert mixing.contraction(mixing.matrix("pairs", m)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("rnig", "unknown topology 'rnig'.*did you mean ring"),
        ("[[0.5, 0.5], [0.4, 0.6]]", r"column 0 sums to 0\.9; rows and columns sum to 1"),
        ("[[0.5, 0.4], [0.5, 0.6]]", r"row 0 sums to 0\.9"),
        ("[[1.5, -0.5], [-0.5, 1.5]]", r"-0\.5 in row 0, column 1"),
        ("[[0.5, 0.5]]", r"shape \(1, 2\)"),
        ("[[0.5, 0.5", "not a matrix of numbers"),
        ('[["a"]]', "not a matrix of numbers"),
        ("[[0.5, 0.5], [0.5, 0.5]]", "a matrix of 2 workers, but there are 6 clients"),
        ("[[NaN, 1], [1, 0]]", "nan in row 0, column 0"),
    ],
)
def test_what_mixes_nothing_is_refused_before_it_runs(topology: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        make_plan(problem(DSGD(topology=topology)), Where(on="local"), tmp_path)


def test_a_matrix_of_ones_own_survives_settings(tmp_path: Path) -> None:
    text = str(mixing.matrix("grid", N).tolist())
    e = problem(DSGD()).set("algorithm.topology", text)
    assert Experiment.from_json(e.to_json()) == e
    assert torch.equal(ends(e, tmp_path)[-1].w, ends(problem(DSGD(topology="grid")), tmp_path)[-1].w)


def test_workers_change_places_by_addressed_randomness() -> None:
    p = mixing.matrix("exponential", 10)
    found = {
        how: [mixing.placed(p, how, rng(3, Purpose.PLACEMENT, t)) for t in (1, 1, 2)] for how in ("moved", "redrawn")
    }
    for how, (a, b, c) in found.items():
        assert np.array_equal(a, b) and not np.array_equal(a, c) and not np.array_equal(a, p)
        assert np.abs(a.sum(0) - 1).max() <= 1e-15 and np.abs(a.sum(1) - 1).max() <= 1e-15
        assert mixing.contraction(a) == pytest.approx(mixing.contraction(p))
        assert (np.diag(a) == np.diag(p)).all() == (how == "moved")
    ring = mixing.placed(mixing.matrix("ring", 10), "moved", rng(3, Purpose.PLACEMENT, 1))
    assert np.array_equal(ring, ring.T)
    assert np.array_equal(mixing.placed(p, "fixed", rng(3, Purpose.PLACEMENT, 1)), p)


def test_those_who_exchange_among_themselves() -> None:
    there = np.array([True, False, True, True, False, True])
    p = mixing.among(mixing.matrix("grid", N), there)
    assert np.abs(p.sum(0) - 1).max() <= 1e-15 and np.array_equal(p, p.T)
    assert np.array_equal(p[1], np.eye(N)[1]) and p[0, 3] == mixing.matrix("grid", N)[0, 3]


def test_threads_change_no_bit_of_a_mixture() -> None:
    w = torch.randn(12, 70_001, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append((mixing.mixed(mixing.matrix("full", 12), w), mixing.variances(w)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, found[0][0]) and np.array_equal(v, found[0][1]) for a, v in found)
    assert torch.equal(found[0][0], found[0][0][:1].expand(12, -1))  # and all workers have the same
    assert torch.allclose(found[0][0][0].double(), w.double().mean(0), atol=1e-7)


# --- rounds by hand -------------------------------------------------------------------------------------------------


def ends(e: Experiment, folder: Path, count: int = 3, there: Iterable[int] = ()) -> list:  # type: ignore[type-arg]
    """The algorithm's states before the first and after each round. From round 2 on only `there` are there, if any are
    named."""
    plan = make_plan(e, Where(on="local"), folder)
    store = StateStore(folder / "states", plan.client_state, 10**9)
    driver = plan.driver(InProcess(plan.spec), store)
    state, found = plan.start(), [plan.start().algorithm]
    for index in range(1, count + 1):
        if there and index == 2:
            driver, state = driver.resized(state, np.array(sorted(there)))
        state = driver.play(state, index).state
        found.append(state.algorithm)
    store.close()
    return found


def whole(algorithm: Algorithm, **changes: object) -> Experiment:
    """The small problem on whole shards with every worker, equal weights."""
    e = replace(
        problem(algorithm), local=Local(steps=3, batch_size="full"), sampler=Uniform(N), gangs=Gangs(2, "loop"),
        weights="equal",
    )  # fmt: skip
    return replace(e, **changes)  # pyright: ignore[reportArgumentType]


def gradients(e: Experiment, folder: Path) -> Callable[[int, Tensor], Tensor]:
    """`grad(i, y)`: worker i's gradient over its whole shard."""
    plan = make_plan(e, Where(on="local"), folder)
    model, shards, transform = InProcess(plan.spec).runner.model, plan.shards, plan.spec.transform

    def grad(i: int, y: Tensor) -> Tensor:
        x, labels = shards.read("train", i)
        y = y.clone().requires_grad_()
        out = model.call(y, transform(x, torch.float64, None))
        return torch.autograd.grad(torch.nn.functional.cross_entropy(out, torch.tensor(labels)), y)[0]

    return grad


def descended(grad: Callable[[int, Tensor], Tensor], i: int, start: Tensor, lr: float, steps: int) -> Tensor:
    y = start
    for _ in range(steps):
        y = y - lr * grad(i, y)
    return y - start


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("topology", ["ring", "grid", "exponential"])
@pytest.mark.parametrize("form", ["combine-while-adapt", "adapt-then-combine"])
def test_dsgd_by_hand(form: str, topology: str, steps: int, tmp_path: Path) -> None:
    e = whole(DSGD(lr=0.1, topology=topology, form=form), local=Local(steps=steps, batch_size="full"))  # type: ignore[arg-type]
    grad, p = gradients(e, tmp_path), mixing.matrix(topology, N)
    states = ends(e, tmp_path)
    w = [states[0].x] * N
    for state in states[1:]:
        d = [descended(grad, j, w[j], 0.1, steps) for j in range(N)]
        if form == "combine-while-adapt":
            w = [sum(p[j, k] * w[k] for k in range(N)) + d[j] for j in range(N)]  # type: ignore[misc]
        else:
            w = [sum(p[j, k] * (w[k] + d[k]) for k in range(N)) for j in range(N)]  # type: ignore[misc]
        assert (state.w - torch.stack(w)).abs().max() <= 1e-14
        assert (state.x - torch.stack(w).mean(0)).abs().max() <= 1e-14
    assert states[-1].w.std(0).max() > 1e-3


@pytest.mark.parametrize("weights", ["equal", "examples"])
def test_with_the_full_matrix_it_is_fedavg(weights: str, tmp_path: Path) -> None:
    """In the form that mixes own steps at once; in the other one it is not."""
    fedavg = ends(whole(FedAvg(), weights=weights), tmp_path)[-1].x
    found = ends(whole(DSGD(topology="full", form="adapt-then-combine"), weights=weights), tmp_path)[-1]
    assert (found.x - fedavg).abs().max() <= 1e-14 and (found.w - fedavg).abs().max() <= 1e-14
    other = ends(whole(DSGD(topology="full"), weights=weights), tmp_path)[-1].x
    assert (other - fedavg).abs().max() > 1e-5


def test_who_does_not_answer_is_mixed_all_the_same(tmp_path: Path) -> None:
    e = whole(DSGD(topology="grid"), sampler=Cyclic(2))
    grad, p = gradients(e, tmp_path), torch.from_numpy(mixing.matrix("grid", N))
    before, after = ends(e, tmp_path, 2)[1:]
    found = after.w - p @ before.w
    acted = found.abs().max(1).values > 1e-12
    assert int(acted.sum()) == 2
    for j in acted.nonzero().flatten().tolist():
        assert (found[j] - descended(grad, j, before.w[j], 0.1, 3)).abs().max() <= 1e-14


def test_a_worker_that_leaves_takes_its_model_along_and_one_that_comes_begins_at_the_mean(tmp_path: Path) -> None:
    e, there = whole(DSGD(topology="ring")), [0, 2, 3, 5]
    plan = make_plan(e, Where(on="local"), tmp_path)
    driver = plan.driver(InProcess(plan.spec), StateStore(tmp_path / "states", {}, 10**9))
    state = driver.play(plan.start(), 1).state
    smaller, left = driver.resized(state, np.array(there))
    assert (left.algorithm.x - state.algorithm.w[there].mean(0)).abs().max() <= 1e-15
    smaller = replace(smaller, sampler=Uniform(4))
    after = smaller.play(left, 2).state
    ring = torch.from_numpy(mixing.matrix("ring", 4))
    grad = gradients(e, tmp_path)
    steps = torch.stack([descended(grad, j, left.algorithm.w[j], 0.1, 3) for j in there])
    assert (after.algorithm.w[there] - ring @ left.algorithm.w[there] - steps).abs().max() <= 1e-14
    assert torch.equal(after.algorithm.w[[1, 4]], state.algorithm.w[[1, 4]])
    measured = e.algorithm.measures(after.algorithm)["consensus_distance"]  # type: ignore[attr-defined]
    assert measured == pytest.approx(float(after.algorithm.w[there].std(0, correction=0).norm()), abs=1e-15)
    _, back = smaller.resized(after, None)
    assert torch.equal(back.algorithm.w[1], after.algorithm.x) and torch.equal(
        back.algorithm.w[0], after.algorithm.w[0]
    )


def test_placements_differ_by_round_and_by_seed(tmp_path: Path) -> None:
    found = {
        (how, seed): ends(whole(DSGD(placement=how), seed=seed), tmp_path, 2)[-1].w  # type: ignore[arg-type]
        for how in ("fixed", "moved", "redrawn") for seed in (0, 1)
    }  # fmt: skip
    assert not any(torch.equal(found["fixed", s], found[how, s]) for how in ("moved", "redrawn") for s in (0, 1))
    again = ends(whole(DSGD(placement="redrawn")), tmp_path, 2)
    assert torch.equal(again[-1].w, found["redrawn", 0])
    p = mixing.placed(mixing.matrix("ring", N), "redrawn", rng(0, Purpose.PLACEMENT, 1))
    steps = again[-1].w - torch.from_numpy(p) @ again[-2].w
    grad = gradients(whole(DSGD()), tmp_path)
    assert (steps - torch.stack([descended(grad, j, again[-2].w[j], 0.1, 3) for j in range(N)])).abs().max() <= 1e-14


@pytest.mark.parametrize(
    ("topology", "order", "same"),
    [
        ("ring", [4, 3, 2, 1, 0, 5], True),  # reflected, as the property suite does
        ("ring", [1, 2, 3, 4, 5, 0], True),
        ("ring", [1, 0, 2, 3, 4, 5], False),
        ("exponential", [2, 3, 4, 5, 0, 1], True),
        ("exponential", [4, 3, 2, 1, 0, 5], False),  # directed
        ("grid", [3, 4, 5, 0, 1, 2], True),
        ("grid", [1, 2, 0, 4, 5, 3], False),
        ("torus", [1, 2, 0, 4, 5, 3], True),
        ("full", [5, 1, 3, 4, 0, 2], True),
    ],
)
def test_workers_may_change_places_where_the_network_looks_alike(topology: str, order: list[int], same: bool) -> None:
    p = mixing.matrix(topology, N)
    assert np.allclose(p[np.ix_(order, order)], p) is same


def test_what_it_measures_is_in_the_tables(tmp_path: Path) -> None:
    run = create(whole(DSGD()), Where(on="local"), run_root=tmp_path, name="x")
    played = list(play(run))
    metrics = load(run.folder).table("metrics").to_pylist()
    found = {(m["round"], m["metric"]): m["value"] for m in metrics if m["part"] == "algorithm"}
    assert set(found) == {(r, n) for r in (2, 4) for n in ("consensus_distance", "largest_deviation")}
    w = load(run.folder).checkpoint.tensors()["w"]
    deviations = w.std(0, correction=0)
    assert found[4, "consensus_distance"] == pytest.approx(float(deviations.norm()), rel=1e-12)
    assert found[4, "largest_deviation"] == pytest.approx(float(deviations.max()), rel=1e-12)
    assert played[-1].algorithm["consensus_distance"] == found[4, "consensus_distance"] > 0


# --- decentralised alignment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["ring", "grid", "exponential"])
@pytest.mark.parametrize("estimate", ["gossip", "tracking"])
def test_dga_by_hand(estimate: str, topology: str, tmp_path: Path) -> None:
    """The displacements cancel in every round; with tracking the estimates' sum is the gradients'."""
    e = whole(DGA(lr=0.1, beta=0.3, topology=topology, estimate=estimate))  # type: ignore[arg-type]
    grad, p = gradients(e, tmp_path), torch.from_numpy(mixing.matrix(topology, N))
    states = ends(e, tmp_path)
    w, c, old = states[0].w, torch.zeros_like(states[0].w), torch.zeros_like(states[0].w)
    for state in states[1:]:
        g = torch.stack([grad(j, w[j]) for j in range(N)])
        c, old = (p @ g if estimate == "gossip" else p @ c + g - old), g
        v = -0.3 * (c - g)
        assert v.sum(0).abs().max() <= 1e-15 and (c.sum(0) - g.sum(0)).abs().max() <= 1e-15
        d = torch.stack([descended(grad, j, w[j] + v[j], 0.1, 3) for j in range(N)])
        w = p @ (w + d)
        assert (state.w - w).abs().max() <= 1e-14 and (state.x - w.mean(0)).abs().max() <= 1e-14
    assert v.abs().max() > 1e-3


def test_dga_with_the_full_matrix_is_fedga(tmp_path: Path) -> None:
    """With gossip; tracking displaces by the gradients of the round before."""
    fedga = ends(whole(FedGA(beta=0.3)), tmp_path)
    found = ends(whole(DGA(beta=0.3, topology="full")), tmp_path)
    assert max(float((a.x - b.x).abs().max()) for a, b in zip(fedga, found, strict=True)) <= 1e-14
    tracking = ends(whole(DGA(beta=0.3, topology="full", estimate="tracking")), tmp_path)
    plain = ends(whole(FedAvg()), tmp_path)
    assert (tracking[1].x - plain[1].x).abs().max() <= 1e-14
    assert (tracking[2].x - fedga[2].x).abs().max() > 1e-5


@pytest.mark.parametrize("topology", ["ring", "exponential"])
@pytest.mark.parametrize("estimate", ["gossip", "tracking"])
def test_dga_without_a_displacement_is_dsgd(estimate: str, topology: str, tmp_path: Path) -> None:
    e = replace(problem(DGA(beta=0.0, topology=topology, estimate=estimate)), sampler=Cyclic(4))  # type: ignore[arg-type]
    plain = replace(e, algorithm=DSGD(topology=topology, form="adapt-then-combine"))
    assert torch.equal(ends(e, tmp_path)[-1].w, ends(plain, tmp_path)[-1].w)


def test_gossip_among_those_who_answered(tmp_path: Path) -> None:
    """Their displacements cancel; who has no neighbour at work is not displaced."""
    e = whole(DGA(beta=0.3, topology="grid"), sampler=Cyclic(4))
    grad, p = gradients(e, tmp_path), mixing.matrix("grid", N)
    before, after = ends(e, tmp_path, 2)[1:]
    moved = after.w - torch.from_numpy(p) @ before.w
    pool = Cyclic(4)
    plan = make_plan(e, Where(on="local"), tmp_path)
    driver = plan.driver(InProcess(plan.spec), StateStore(tmp_path / "states", {}, 10**9))
    asked = pool.draw(driver.pool(plan.start(), 2, 4)).clients  # type: ignore[union-attr]
    there = np.isin(np.arange(N), asked)
    g = torch.stack([grad(j, before.w[j]) if there[j] else torch.zeros_like(before.x) for j in range(N)])
    v = 0.3 * (g - torch.from_numpy(mixing.among(p, there)) @ g)
    assert v.sum(0).abs().max() <= 1e-15 and v.abs().max() > 1e-3
    steps = [
        descended(grad, j, before.w[j] + v[j], 0.1, 3) if there[j] else torch.zeros_like(before.x) for j in range(N)
    ]
    assert (moved - torch.from_numpy(p) @ torch.stack(steps)).abs().max() <= 1e-14


def test_tracking_with_few_at_work_keeps_its_sum(tmp_path: Path) -> None:
    """In pairs that are drawn anew; who acts for the first time is not displaced."""
    algorithm = DGA(beta=0.3, topology="pairs", placement="moved", estimate="tracking")
    found = ends(whole(algorithm, sampler=Cyclic(2)), tmp_path, 5)
    for state in found:
        assert (state.c.sum(0) - state.g.sum(0)).abs().max() <= 1e-15
    assert [int(s.g.any(1).sum()) for s in found] == [0, 2, 4, 6, 6, 6]
    plain = ends(whole(DGA(beta=0.0, topology="pairs", placement="moved"), sampler=Cyclic(2)), tmp_path, 4)
    assert torch.equal(found[3].w, plain[3].w) and not torch.equal(found[4].w, plain[4].w)


def test_estimates_begin_anew_when_the_network_changes(tmp_path: Path) -> None:
    e = whole(DGA(beta=0.3, estimate="tracking"))
    plan = make_plan(e, Where(on="local"), tmp_path)
    driver = plan.driver(InProcess(plan.spec), StateStore(tmp_path / "states", {}, 10**9))
    state = driver.play(plan.start(), 1).state
    _, changed = driver.resized(state, np.array([0, 2, 3]))
    assert state.algorithm.g.any() and not changed.algorithm.g.any() and not changed.algorithm.c.any()


@dataclass(frozen=True)
class Tracking(DGA):
    """DGA whose default is tracking."""

    estimate: str = "tracking"  # type: ignore[assignment]


def test_tracking_holds_the_property_suite() -> None:
    assert [c for c in suite(f"{__name__}:Tracking", on_ray=False) if not c.ok] == []


# --- what cannot be -------------------------------------------------------------------------------------------------


def test_workers_that_stay_in_parts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="never brings all workers together: .* algorithm.placement=moved"):
        make_plan(problem(DSGD(topology="pairs")), Where(on="local"), tmp_path)
    make_plan(problem(DSGD(topology="pairs", placement="moved")), Where(on="local"), tmp_path)


@pytest.mark.parametrize("topology", [str(np.eye(N).tolist()), str(np.eye(N)[::-1].tolist())])
@pytest.mark.parametrize("placement", ["fixed", "moved"])
def test_workers_that_only_change_models(topology: str, placement: mixing.Placement, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="only hands models on"):
        make_plan(problem(DSGD(topology=topology, placement=placement)), Where(on="local"), tmp_path)


def test_a_network_of_too_many() -> None:
    with pytest.raises(BadInput, match="a network of 5,000 workers is asked for; at most 4,096"):
        mixing.matrix("ring", 5000)


@pytest.mark.parametrize("around", [FedAvgM, FedAdam, FedAwarePlugIn])
def test_there_is_no_model_on_the_server_to_move(around: type, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="algorithm.inner has no model on the server that could be moved"):
        make_plan(problem(around(DSGD())), Where(on="local"), tmp_path)


def test_a_network_has_rounds_and_no_displacement_of_one_model(tmp_path: Path) -> None:
    e = replace(
        problem(DSGD()), devices=LogNormal(), sampler=Uniform(2), stragglers=Buffered(concurrency=2, report_goal=2)
    )
    with pytest.raises(BadInput, match=r"DSGD.local sends each client something of its own: it cannot be asynchronous"):
        make_plan(e, Where(on="local"), tmp_path)
    with pytest.raises(BadInput, match=r"algorithm.inner cannot be displaced: DSGD.local takes no start=None"):
        make_plan(problem(Displaced(DSGD())), Where(on="local"), tmp_path)


def test_too_many_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LIMIT_BYTES", 1000)
    with pytest.raises(BadInput, match=r"dsgd keeps 0\.0 MB of each client on the server: 6 clients are"):
        make_plan(problem(DSGD()), Where(on="local"), tmp_path)


def test_too_many_estimates_are_refused_before_the_models_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, population = torch.zeros(10), Population(np.ones(N, np.int64), np.ones(N))
    monkeypatch.setattr(base, "LIMIT_BYTES", 2 * N * x.nbytes)
    assert DGA().init(x, population).w.shape == (N, 10)

    def models(*_: object) -> None:
        raise AssertionError("the models are made")

    monkeypatch.setattr(Networked, "init", models)
    with pytest.raises(BadInput, match="dga keeps"):
        DGA(estimate="tracking").init(x, population)
