"""FedAWARE: its solver against a quadratic program's, its rounds by hand, alone and around others."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from raygrad import hull
from raygrad.algorithms import base
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedaware import FedAware, averaged
from raygrad.algorithms.fedaware_plugin import FedAwarePlugIn
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Algorithm, Cohort, Population, Replies
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Where
from raygrad.files.states import StateStore
from raygrad.plan import make_plan
from raygrad.samplers import Cyclic
from raygrad.verify import problem


def vectors(n: int, d: int, seed: int, kind: str = "unit") -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    u = torch.randn(n, d, generator=draw, dtype=torch.float64) + 0.3
    u = u / u.norm(dim=1, keepdim=True)
    if kind == "twice":
        u[1] = u[0]
    elif kind == "opposed":
        u[1] = -u[0]
    elif kind == "close":
        u = u[:1] + 1e-4 * u
    elif kind == "unequal":
        u = u * torch.logspace(-3, 3, n, dtype=torch.float64)[:, None]
    return u


SIZES = [(2, 2), (6, 45), (6, 3), (20, 5), (40, 200)]


@pytest.mark.parametrize(
    ("n", "d", "kind"),
    [(1, 4, "unit"), *((n, d, k) for n, d in SIZES for k in ("unit", "twice", "opposed", "close", "unequal"))],
)
def test_the_gap_is_closed_and_a_quadratic_program_finds_no_less(n: int, d: int, kind: str) -> None:
    for seed in range(3):
        u = vectors(n, d, seed, kind)
        weights, gap = hull.least_norm(u @ u.T)
        scale = float((u @ u.T).diagonal().max())
        assert gap <= 1e-8 * scale
        assert bool((weights >= 0).all()) and float(weights.sum()) == pytest.approx(1, abs=1e-12)
        g = (u @ u.T).numpy() / scale
        found = minimize(
            lambda w, g=g: w @ g @ w, np.full(n, 1 / n), jac=lambda w, g=g: 2 * g @ w, bounds=[(0, 1)] * n,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )  # fmt: skip
        assert float((weights @ u).norm() ** 2) / scale <= found.fun + 1e-8
        assert found.fun <= float((weights @ u).norm() ** 2) / scale + 1e-6  # it agrees, as far as it goes


def test_against_every_face_of_small_hulls() -> None:
    """The least norm over all faces, each solved exactly."""
    for seed in range(20):
        u = vectors(4, 6, seed)
        g = u @ u.T
        best = min(
            float(1 / solved.sum())
            for size in range(1, 5)
            for face in combinations(range(4), size)
            if (solved := torch.linalg.solve(g[list(face)][:, list(face)], torch.ones(size).double())).min() >= 0
        )
        weights, _ = hull.least_norm(g)
        assert float((weights @ u).norm() ** 2) == pytest.approx(best, rel=1e-12)


def rounds(
    e: Experiment, folder: Path, count: int, there: tuple[int, ...] = ()
) -> tuple[list[object], list[np.ndarray]]:
    """The algorithm's states, and who was asked. From round 2 on only `there` are there, if any are named."""
    plan = make_plan(e, Where(on="local"), folder)
    store = StateStore(folder / "states", plan.client_state, 10**9)
    driver = plan.driver(InProcess(plan.spec), store)
    state, states, asked = plan.start(), [], []
    states.append(state.algorithm)
    for index in range(1, count + 1):
        if there and index == 2:
            driver, state = driver.resized(state, np.array(there))
        played = driver.play(state, index)
        for clients, rows in played.talk.states:
            store.put(clients, rows)
        state = played.state
        states.append(state.algorithm)
        asked.append(played.talk.fates.clients)
    store.close()
    return states, asked


def by_hand(m: Tensor) -> Tensor:
    u = m / m.norm(dim=1, keepdim=True)
    weights, _ = hull.least_norm(u @ u.T)
    return weights @ u


def test_rounds_by_hand(tmp_path: Path) -> None:
    """Plain averages until all six clients were asked once, three per round; then steps along q."""
    e = replace(problem(FedAware(mix=0.3, server_lr=0.7)), sampler=Cyclic(3), weights="equal")
    states, asked = rounds(e, tmp_path, 4)
    plain, same = rounds(replace(e, algorithm=FedAvg(server_lr=0.7)), tmp_path / "plain", 1)
    assert (states[1].x - plain[1].x).abs().max() <= 1e-14  # type: ignore[attr-defined]
    assert np.array_equal(asked[0], same[0]) and not set(asked[0]) & set(asked[1])
    for before, after, who in zip(states[1:], states[2:], asked[1:], strict=False):
        assert (after.x - before.x - 0.7 * by_hand(after.m)).abs().max() <= 1e-12  # type: ignore[attr-defined]
        others = np.setdiff1d(np.arange(6), who)
        assert torch.equal(after.m[others], before.m[others])  # type: ignore[attr-defined]


def test_momenta_by_hand() -> None:
    """m <- (1 - a) m + a d for those who answered."""
    m, d = vectors(4, 3, 1), vectors(2, 3, 2)
    cohort = Cohort(np.array([3, 1]), np.ones(2), Population(np.ones(4, np.int64), np.ones(4)))
    found = averaged(m, Replies(cohort, {}, {}, {"delta": d}, torch.float64), 0.3)
    expected = torch.stack([m[0], 0.7 * m[1] + 0.3 * d[1], m[2], 0.7 * m[3] + 0.3 * d[0]])
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("inner", [FedAvg(), FedGA(beta=0.3), FedDyn(), FedAvg(server_lr=0.5)])
def test_around_others_it_keeps_the_part_along_q(inner: Algorithm, tmp_path: Path) -> None:
    """The first round, in which all are asked: the same clients' work as in the algorithm alone."""
    e = replace(problem(inner), sampler=Cyclic(6))
    alone, *_ = rounds(e, tmp_path / "alone", 1)
    states, *_ = rounds(replace(e, algorithm=FedAwarePlugIn(inner)), tmp_path, 1)
    q = by_hand(states[1].m)  # type: ignore[attr-defined]
    x = alone[0].x  # type: ignore[attr-defined]
    step = alone[1].x - x  # type: ignore[attr-defined]
    assert (states[1].x - x - (step @ q) / (q @ q) * q).abs().max() <= 1e-12  # type: ignore[attr-defined]
    assert (states[1].x - alone[1].x).abs().max() > 1e-4  # type: ignore[attr-defined]


def test_those_who_left_count_no_more(tmp_path: Path) -> None:
    there = (0, 2, 5)
    states, asked = rounds(replace(problem(FedAware()), sampler=Cyclic(6)), tmp_path, 2, there)
    assert asked[1].tolist() == list(there)
    step = states[2].x - states[1].x  # type: ignore[attr-defined]
    assert (step - by_hand(states[2].m[list(there)])).abs().max() <= 1e-12  # type: ignore[attr-defined]


def test_threads_change_no_bit() -> None:
    before, m = torch.get_num_threads(), vectors(30, 20_000, 1)
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            q = hull.common_direction(m)
            assert q is not None
            found.append((q, hull.along(m[0], q), hull.length(q)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(one[:2], found[0][:2], strict=True))
    assert len({one[2] for one in found}) == 1


def test_too_much_to_keep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LIMIT_BYTES", 1000)
    with pytest.raises(BadInput, match=r"fedaware keeps 0\.0 MB of each client on the server: 6 clients are"):
        make_plan(problem(FedAware()), Where(on="local"), tmp_path)


@pytest.mark.parametrize("mix", [0.0, 1.1])
def test_mix_is_a_part_of_one(mix: float) -> None:
    with pytest.raises(BadInput, match="it must be above 0 and at most 1"):
        FedAware(mix=mix)
