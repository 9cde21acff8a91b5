"""The statements of `raygrad verify theory` hold, fail when their prediction is wrong, and catch broken algorithms."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from raygrad import cli, local, mixing, theory
from raygrad.algorithms.dga import DGA
from raygrad.algorithms.dsgd import DSGD
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedga_stale import StaleFedGA
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.gradalign import GradAlign
from raygrad.algorithms.lbsgd import LargeBatchSGD
from raygrad.algorithms.local_gd import LocalGD, LocalGDState
from raygrad.algorithms.scaffold import Scaffold, ScaffoldFresh
from raygrad.algorithms.sgd import SGD
from raygrad.contract import Answer, Ask, Cohort, Round, Task
from raygrad.theory import STATEMENTS, Finding, Statement
from raygrad.theory.problems import Problem, after, grad, problem
from raygrad.theory.statement import of_order

BY_NAME = {s.name: s for s in STATEMENTS}


@cache
def measured(name: str, sign: float) -> list[Finding]:
    """What the shipped algorithms give; several tests look at it."""
    return list(BY_NAME[name].measure(sign))


each_statement = pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.name)


def test_the_theorems_come_first() -> None:
    names = list(BY_NAME)
    assert names[:5] == [f"theorem {i}" for i in range(1, 6)]
    assert len(names) == len(STATEMENTS) == 30


# --- every statement holds, and can fail ----------------------------------------------------------------------------


@each_statement
def test_holds(statement: Statement) -> None:
    verdict = replace(statement, measure=lambda sign: measured(statement.name, sign)).verdict()
    assert verdict.ok, verdict


@each_statement
def test_fails_with_the_sign_flipped(statement: Statement) -> None:
    assert [f.text for f in measured(statement.name, -1.0) if f.holds] == []
    flipped = replace(statement, measure=lambda sign: measured(statement.name, -sign))
    assert not flipped.verdict().ok


@each_statement
def test_fails_without_its_term(statement: Statement) -> None:
    """Factor 0: no displacement, no predicted difference. For linear scaling it is the linear step, not aligned."""
    assert [f.text for f in measured(statement.name, 0.0) if f.holds] == []


@pytest.mark.parametrize("name", [n for n in BY_NAME if n != "theorem 3"])  # a little less displaced still descends
def test_fails_with_a_tenth_of_its_term_missing(name: str) -> None:
    assert [f.text for f in BY_NAME[name].measure(0.9) if f.holds] == []


def test_theorem_3_fails_where_only_grad_r_is_left() -> None:
    (right,), (wrong,) = (measured("theorem 3", sign) for sign in (1.0, -1.0))
    assert right.text == "100 of 100 points, 20 of the 20 with grad f = 0"
    assert wrong.text.endswith(" of 100 points, 0 of the 20 with grad f = 0")


def test_a_statement_that_cannot_fail_is_not_ok() -> None:
    statement = BY_NAME["diversity"]
    assert not replace(statement, measure=lambda sign: statement.measure(1.0)).verdict().ok


def test_an_error_inside_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(self: FedGA, task: Task, x: Tensor) -> Answer:
        raise RuntimeError("broken\nmore")

    monkeypatch.setattr(FedGA, "gradient", raising)
    verdict = BY_NAME["theorem 4"].verdict()
    assert (verdict.ok, verdict.measured) == (False, "RuntimeError: broken")


@pytest.mark.parametrize(
    ("size", "holds"),
    [
        (lambda h: h**3, True),
        (lambda h: h**3 * (1 + h), True),
        (lambda h: h**2.8, False),
        (lambda h: h**2, False),
        (lambda h: 1e-4 * h**3, False),  # lost in rounding
        (lambda h: 0.0, False),
        (lambda h: float("nan"), False),
    ],
)
def test_measured_order(size: Callable[[float], float], holds: bool) -> None:
    def remainder(p: Problem, h: float, sign: float) -> Tensor:
        return size(h) * p.x

    assert of_order(3, problem("quadratics"), remainder, 1.0).holds is holds


# --- a broken algorithm is seen -------------------------------------------------------------------------------------


def turned_fedga(self: FedGA, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
    start = x + self.beta * (g_mean - g)
    return Answer({"delta": local.sgd(task, start, task.lr(self.lr)) - start})


def turned_gradalign(self: GradAlign, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
    start = x + self.beta * (g_mean - g)
    return Answer({"delta": local.step(task, start, task.full_grad(start), task.lr(self.lr)) - start})


def fresh_without_variates(self: ScaffoldFresh, task: Task, x: Tensor, c: Tensor, c_i: Tensor) -> Answer:
    return Answer({"delta": local.sgd(task, x, task.lr(self.lr)) - x})


def fresh_turned(self: ScaffoldFresh, task: Task, x: Tensor, c: Tensor, c_i: Tensor) -> Answer:
    return Answer({"delta": local.sgd(task, x, task.lr(self.lr), lambda g, y: g - (c - c_i)) - x})


def stateful(sign: float) -> Callable[..., Answer]:
    def turned(self: Scaffold, task: Task, x: Tensor, c: Tensor, c_i: Tensor) -> Answer:
        delta = local.sgd(task, x, self.lr, lambda g, y: g + sign * (c - c_i)) - x
        new = task.full_grad(x) if self.option == "I" else c_i - c - delta / (task.steps * self.lr)
        return Answer({"delta": delta, "change": new - c_i}, state={"c_i": new})

    return turned


def aligned_by(share: float) -> Callable[..., Answer]:
    def step(self: LargeBatchSGD, task: Task, x: Tensor, g_sum: Tensor, g: Tensor) -> Answer:
        point = x - share * self.lr * (g_sum - g)
        return Answer({"delta": local.step(task, x, task.full_grad(point), self.lr) - x})

    return step


def twice_the_first_batch(self: SGD, task: Task, x: Tensor) -> Answer:
    batches = list(task.batches)
    y = x
    for batch in [batches[0], *batches[:-1]]:
        y = local.step(task, y, task.grad(y, batch), self.lr)
    return Answer({"delta": y - x})


def fedavg_one_step(self: FedAvg, task: Task, x: Tensor) -> Answer:
    return Answer({"delta": local.step(task, x, task.full_grad(x), self.lr) - x})


def fedprox_always_near(self: FedProx, task: Task, x: Tensor) -> Answer:
    y = local.sgd(task, x, self.lr, lambda g, y: g + (self.mu + 1e-6) * (y - x))
    return Answer({"delta": y - x})


def feddyn_without_duals(self: FedDyn, task: Task, x: Tensor, dual: Tensor, start: Tensor | None = None) -> Answer:
    start = x if start is None else start
    delta = local.sgd(task, start, self.lr, lambda g, y: g + self.penalty * (y - x)) - start
    return Answer({"delta": delta}, state={"dual": dual})


def feddyn_dual_from_x(self: FedDyn, task: Task, x: Tensor, dual: Tensor, start: Tensor | None = None) -> Answer:
    start = x if start is None else start
    y = local.sgd(task, start, self.lr, lambda g, y: g - dual + self.penalty * (y - x))
    return Answer({"delta": y - start}, state={"dual": dual - self.penalty * (y - x)})


def stale_without_mean(self: StaleFedGA, task: Task, z: Tensor) -> Answer:
    return self.plain(task, z)


def momentum_without_it(self: FedAvgM, state: Any, cohort: Cohort) -> Round:
    after = yield from self.inner.round(state.inner, cohort)
    return replace(state, inner=after)


def dsgd_from_mixed(self: DSGD, state: Any, cohort: Cohort) -> Round:
    p = self.network(state, cohort.population)
    r = yield Ask(self.local, cohort, {}, {"w": mixing.mixed(p, state.w)}, rows=("delta",))
    return self.moved(state, mixing.mixed(p, state.w) + self.steps(state, r))


def dsgd_unmixed(self: DSGD, state: Any, cohort: Cohort) -> Round:
    r = yield Ask(self.local, cohort, {}, {"w": state.w}, rows=("delta",))
    return self.moved(state, state.w + self.steps(state, r))


def turned_dga(self: DGA, task: Task, w: Tensor, c: Tensor, g: Tensor) -> Answer:
    start = w + self.beta * (c - g)
    return Answer({"delta": local.sgd(task, start, task.lr(self.lr)) - start})


def tracking_own(self: DGA, task: Task, w: Tensor, ahead: Tensor) -> Answer:
    return Answer({"g": task.full_grad(w), "delta": local.sgd(task, w, task.lr(self.lr)) - w})


def local_gd_at_one_length(self: LocalGD, task: Task, x: Tensor, start: Tensor | None = None) -> Answer:
    delta = local.gd(task, x, task.lr(self.lr)) - x
    return Answer({"delta": delta / delta.norm(dim=-1, keepdim=True)})


def local_gd_one_step(self: LocalGD, task: Task, x: Tensor, start: Tensor | None = None) -> Answer:
    return Answer({"delta": -task.lr(self.lr) * task.full_grad(x)})


def local_gd_anchored_at(kept: float) -> Callable[..., Round]:
    """The anchor's share does not fade, but stays `kept`."""

    def round(self: LocalGD, state: LocalGDState, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x})
        x = state.x + r.mean("delta")
        return replace(state, x=x + kept * self.anchored * (state.x0 - x))

    return round


BUGS = {
    "FedGA displaced the wrong way": (FedGA, "local", turned_fedga, ("theorem 4", "degenerate cases")),
    "GradAlign displaced the wrong way": (GradAlign, "aligned", turned_gradalign, ("theorem 2", "theorem 3")),
    "fresh SCAFFOLD without c - c_i": (ScaffoldFresh, "local", fresh_without_variates, ("theorem 5",)),
    "fresh SCAFFOLD with c_i - c": (ScaffoldFresh, "local", fresh_turned, ("theorem 5",)),
    "SCAFFOLD without c - c_i": (Scaffold, "local", stateful(0.0), ("stationary points",)),
    "SCAFFOLD with c_i - c": (Scaffold, "local", stateful(-1.0), ("stationary points",)),
    "aligned scaling without alpha / 2": (LargeBatchSGD, "aligned", aligned_by(0.0), ("linear scaling",)),
    "aligned scaling with alpha": (LargeBatchSGD, "aligned", aligned_by(1.0), ("linear scaling",)),
    "SGD skips a mini-batch": (SGD, "local", twice_the_first_batch, ("theorem 1", "linear scaling")),
    "FedAvg takes one step": (FedAvg, "local", fedavg_one_step, ("FedAvg", "within clients", "degenerate cases")),
    "FedDyn keeps no duals": (FedDyn, "local", feddyn_without_duals, ("stationary points", "displaced FedDyn")),
    "FedDyn measures duals from x": (FedDyn, "local", feddyn_dual_from_x, ("displaced FedDyn",)),
    "stale FedGA sends x": (StaleFedGA, "local", stale_without_mean, ("stale FedGA",)),
    "momentum keeps no momentum": (FedAvgM, "round", momentum_without_it, ("server momentum",)),
    "D-SGD steps from mixed models": (DSGD, "round", dsgd_from_mixed, ("average-direction SAM", "unequal losses")),
    "D-SGD mixes nothing": (DSGD, "round", dsgd_unmixed, ("full network", "consensus")),
    "decentralised alignment displaced the wrong way": (DGA, "local", turned_dga, ("full network", "neighbours")),
    "tracking displaces nothing": (DGA, "tracked", tracking_own, ("tracking",)),
    "Local-GD takes directions only": (LocalGD, "local", local_gd_at_one_length, ("Local-GD direction",)),
    "Local-GD takes one step": (LocalGD, "local", local_gd_one_step, ("Local-GD loss", "Local-GD, not separable")),
    "Local-GD has no anchor": (LocalGD, "round", local_gd_anchored_at(0.0), ("exact local solutions",)),
    "Local-GD's anchor stays": (LocalGD, "round", local_gd_anchored_at(0.01), ("exact local solutions",)),
    "FedProx keeps some mu": (FedProx, "local", fedprox_always_near, ("degenerate cases",)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_broken_algorithm_fails_its_rows(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, method, broken, rows = BUGS[bug]
    monkeypatch.setattr(cls, method, broken)
    assert [name for name in rows if BY_NAME[name].verdict().ok] == []


# --- what the measurements stand on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratics", "log cosh", "tanh network"])
def test_derivatives_match_finite_differences(name: str) -> None:
    p, h = problem(name), 1e-5
    client = p.full(1)[0]
    for f in (p.f, p.r):
        found = torch.stack([(f(p.x + h * e) - f(p.x - h * e)) / (2 * h) for e in torch.eye(len(p.x)).double()])
        torch.testing.assert_close(grad(f)(p.x), found, rtol=1e-6, atol=1e-8)
    along = (client.full_grad(p.x + h * p.x) - client.full_grad(p.x - h * p.x)) / (2 * h)
    torch.testing.assert_close(client.hvp(p.x, p.x), along, rtol=1e-6, atol=1e-8)


def test_grad_r_is_the_papers_formula() -> None:
    """grad r = mean_i H_i (g_i - g)."""
    p = problem("tanh network")
    g = p.gradients(p.x)
    clients = p.full(1)
    formula = torch.stack([c.hvp(p.x, g_i - g.mean(0)) for c, g_i in zip(clients, g, strict=True)]).mean(0)
    torch.testing.assert_close(grad(p.r)(p.x), formula, rtol=1e-12, atol=1e-14)


def test_quadratics_have_unequal_hessians() -> None:
    p = problem("quadratics")
    unit = torch.ones_like(p.x)
    turned = [client.hvp(p.x, unit) for client in p.full(1)]
    assert min(float((a - b).norm()) for i, a in enumerate(turned) for b in turned[:i]) > 0.1


def test_a_round_is_a_plain_loop() -> None:
    """Order and number of mini-batches are the chosen ones."""
    p = problem("tanh network")
    order, alpha = [2, 0, 1], 0.1
    ends = []
    for client, batches in zip(p.ordered(order), p.clients, strict=True):
        y = p.x
        for b in order:
            y = y - alpha * client.grad(y, batches[b])
        ends.append(y)
    torch.testing.assert_close(after(FedAvg(alpha), p, p.ordered(order)), torch.stack(ends).mean(0))


# --- the command ----------------------------------------------------------------------------------------------------

QUICK = tuple(BY_NAME[n] for n in ("theorem 2", "theorem 4", "diversity"))


def test_verify_theory_prints_a_row_per_statement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(theory, "STATEMENTS", QUICK)
    assert cli.run(["verify", "theory"]) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "statement" and header.split()[-1] == "verdict"
    assert [row.startswith(s.name) and row.endswith(" ok") for row, s in zip(rows, QUICK, strict=True)] == [True] * 3
    assert all(s.predicted in row and f"{s.wrong}: " in row for row, s in zip(rows, QUICK, strict=True))
    assert last == "all 3 statements hold"


def test_verify_theory_exits_with_1_if_a_statement_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(theory, "STATEMENTS", QUICK)
    monkeypatch.setattr(FedGA, "local", turned_fedga)
    assert cli.run(["verify", "theory"]) == 1
    out, err = capsys.readouterr()
    assert [row.split()[-1] for row in out.splitlines()[1:]] == ["ok", "FAILED", "ok"]
    assert err == "raygrad: 1 of 3 statements failed: theorem 4\n"
