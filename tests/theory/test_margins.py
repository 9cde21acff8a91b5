"""What the statements on Local-GD stand on: the maximum margin, projections, clients side by side, a point at rest."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from raygrad.algorithms.local_gd import LocalGD
from raygrad.theory.local_gd import (
    Shards,
    Together,
    at,
    cosine,
    descending,
    fixed_point,
    inseparable,
    logistic_grad,
    projection,
    shards,
)
from raygrad.theory.problems import Client, K, Problem, grad, rounds


@pytest.mark.parametrize("s", [shards(3, 20), shards(2, 100, iid=True)], ids=["some support it", "all support it"])
def test_the_margin_is_that_of_a_support_vector_machine(s: Shards) -> None:
    """scikit-learn's, whose bias is nothing where each example comes with its mirror image."""
    a, w = s.pooled, s.margin
    assert float((a @ w).min()) == pytest.approx(1, abs=1e-9)
    machine = SVC(kernel="linear", C=1e8, tol=1e-8).fit(torch.cat([a, -a]).numpy(), np.repeat([1, -1], len(a)))
    found = torch.tensor(machine.coef_[0])
    torch.testing.assert_close(found, w, rtol=0, atol=1e-5 * float(w.norm()))


def test_projection_is_nearest() -> None:
    s, draw = shards(3, 20), np.random.Generator(np.random.PCG64(5))
    a = s.a[1]
    w = torch.from_numpy(draw.standard_normal(20))
    p = projection(a, w)
    assert float((a @ p).min()) >= 1 - 1e-12
    inside = [s.margin + torch.from_numpy(v) for v in 3 * draw.standard_normal((300, 20))]
    inside = [v for v in inside if (a @ v).min() >= 1]
    assert len(inside) > 5
    assert all((w - p) @ (v - p) <= 1e-12 for v in inside)  # the half-space that a projection leaves
    torch.testing.assert_close(projection(a, p), p, rtol=0, atol=1e-12)


def test_iid_deals_the_same_examples() -> None:
    unlike, like = shards(2, 100), shards(2, 100, iid=True)

    def ordered(s: Shards) -> Tensor:
        return s.pooled[s.pooled[:, 0].argsort()]

    assert torch.equal(ordered(unlike), ordered(like)) and not torch.equal(unlike.a, like.a)


def test_clients_side_by_side_are_clients_one_by_one() -> None:
    s, p = shards(3, 20), inseparable()
    x = torch.ones(4, 20, dtype=torch.float64)
    p = replace(p, clients=[[replace(c[0], x=a)] for c, a in zip(p.clients, s.a, strict=True)], x=0 * x[0])
    torch.testing.assert_close(logistic_grad(s.a, x), p.gradients(x[0]), rtol=1e-12, atol=0)
    one = [Client(p.loss, c[0], [c[0]] * 3) for c in p.clients]
    side = at(descending(LocalGD(2.0, anchored=True), s, 3), 1, 5)
    each = list(islice(rounds(LocalGD(2.0, anchored=True), p.x, one), 5))
    torch.testing.assert_close(side, [each[0], each[4]], rtol=1e-12, atol=0)
    batches = list(Together(s.a, 4).batches)
    assert [torch.equal(b.x[:, 0], s.a[:, i]) for b, i in zip(batches, (0, 1, 2, 0), strict=True)] == [True] * 4


def test_rounds_come_to_rest_at_the_fixed_point() -> None:
    """From zero; it is the pooled minimiser with one step, and with more where the clients are alike."""
    p = inseparable()
    algorithm = LocalGD(0.5)
    end = next(islice(rounds(algorithm, p.x, p.full(K)), 199, None))
    torch.testing.assert_close(fixed_point(algorithm, p, K), end, rtol=0, atol=1e-10)
    minimiser = fixed_point(algorithm, p, 1)
    assert float(grad(p.f)(minimiser).norm()) < 1e-12 < 1e-3 < float(grad(p.f)(end).norm())
    alike = Problem(p.name, p.loss, [p.pooled().clients[0]] * 3, p.x)
    torch.testing.assert_close(fixed_point(algorithm, alike, K), minimiser, rtol=0, atol=1e-12)


def test_cosine() -> None:
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 3.0])) == pytest.approx(0.5**0.5)
