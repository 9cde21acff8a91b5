"""Local-GD: its formulas as plain loops, what it is without anchor and penalty, and around it."""

from dataclasses import replace
from itertools import islice
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygrad import Where, local, rounds
from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.local_gd import LocalGD
from raygrad.contract import Algorithm
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.files.states import StateStore
from raygrad.local import Local
from raygrad.plan import make_plan
from raygrad.recipes import RECIPES
from raygrad.theory import problems
from raygrad.theory.problems import Client, K, problem, whole
from raygrad.verify import problem as small

ALPHA = 0.1


def reached(algorithm: LocalGD, count: int) -> Tensor:
    """The model after some rounds on the tanh network, K full steps of every client."""
    p = problem("tanh network")
    return list(islice(problems.rounds(algorithm, p.x, p.full(K)), count))[-1]


def by_hand(count: int, penalty: float = 0.0, anchored: bool = False) -> Tensor:
    p = problem("tanh network")
    x = p.x
    for k in range(1, count + 1):
        ends = []
        for client in p.full(1):
            y = x
            for _ in range(K):
                y = y - ALPHA * (client.full_grad(y) + penalty * (y - x))
            ends.append(y)
        mean = torch.stack(ends).mean(0)
        x = (p.x + k * mean) / (k + 1) if anchored else mean
    return x


@pytest.mark.parametrize(("penalty", "anchored"), [(0.0, False), (0.7, False), (0.0, True), (0.7, True)])
def test_formulas(penalty: float, anchored: bool) -> None:
    found = reached(LocalGD(ALPHA, anchored, penalty), 4)
    torch.testing.assert_close(found, by_hand(4, penalty, anchored), rtol=0, atol=1e-14)


def played(algorithm: Algorithm, folder: Path) -> Tensor:
    """The model after three rounds of a small run on whole shards."""
    steps = Local(steps=3, batch_size="full", momentum=0.5, weight_decay=1e-3, clip_norm=0.5)
    plan = make_plan(replace(small(algorithm), local=steps), Where(on="local"), folder / "shards")
    store = StateStore(folder / "states", plan.client_state, 10**9)
    driver, state = plan.driver(InProcess(plan.spec), store), plan.start()
    for index in (1, 2, 3):
        state = driver.play(state, index).state
    return state.algorithm.x


def test_without_anchor_it_is_fedavg_on_full_batches(tmp_path: Path) -> None:
    """With clipping, weight decay and local momentum; with a penalty it is FedProx. The same bits."""
    plain, near = played(LocalGD(ALPHA), tmp_path), played(LocalGD(ALPHA, penalty=0.5), tmp_path)
    assert torch.equal(plain, played(FedAvg(ALPHA), tmp_path))
    assert torch.equal(near, played(FedProx(ALPHA, mu=0.5), tmp_path))
    assert not torch.equal(plain, near)
    assert not torch.equal(plain, played(LocalGD(ALPHA, anchored=True), tmp_path))


def test_the_displacement_goes_around_it(tmp_path: Path) -> None:
    displaced = played(Displaced(LocalGD(ALPHA), 0.3), tmp_path)
    assert torch.equal(displaced, played(Displaced(FedAvg(ALPHA), 0.3), tmp_path))
    assert not torch.equal(displaced, played(LocalGD(ALPHA), tmp_path))


def test_gd_is_torch_optim_sgd_on_the_whole_shard() -> None:
    """With momentum and weight decay; the mini-batches do not count."""
    p = problem("quadratics")
    shard = whole(p.clients[0])
    client = Client(p.loss, shard, p.clients[0], weight_decay=0.01, momentum=0.9)
    y = nn.Parameter(p.x.clone())
    optimizer = torch.optim.SGD([y], 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(len(p.clients[0])):
        optimizer.zero_grad()
        (F.mse_loss(shard.x @ y, shard.y) / 2).backward()
        optimizer.step()
    torch.testing.assert_close(local.gd(client, p.x, 0.05), y.detach(), rtol=1e-13, atol=0)


def test_settings_are_checked() -> None:
    with pytest.raises(BadInput, match=r"algorithm\.penalty is -1"):
        LocalGD(penalty=-1.0)


def test_the_recipe_separates_its_data(tmp_path: Path) -> None:
    """What clients lose on all 180 training examples together is less than log 2, which one wrong one would cost."""
    found = list(rounds(RECIPES["local-gd"](), Where(on="local"), run_root=tmp_path))
    first, last = found[0].train_loss, found[-1].train_loss
    assert first is not None and last is not None
    assert 180 * last < log(2) < 180 * first
