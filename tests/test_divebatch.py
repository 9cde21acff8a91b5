"""DiveBatch and AdaBatch: the rule of the batch on gradients that are known; squared gradients example by example."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raygrad.algorithms.adabatch import AdaBatch, BatchState
from raygrad.algorithms.divebatch import DiveBatch, DiveState
from raygrad.contract import Answer, Ask, Batch, Cohort, Population, Round, Task
from raygrad.data.datasets import Digits
from raygrad.data.partition import Labels
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Gangs, Where
from raygrad.files.states import StateStore
from raygrad.models import Custom, DigitsCNN
from raygrad.plan import make_plan
from raygrad.theory.problems import Client, converse
from raygrad.verify import problem


def linear(x: Tensor, batch: Batch) -> Tensor:
    """A loss whose gradients are the examples themselves."""
    return (batch.x @ x).mean()


def epoch(algorithm: AdaBatch, examples: Tensor, m: int, clients: int = 1, rounds: int | None = None) -> DiveState:
    """The state after rounds of one step over `examples` [n, d] in batches of `m`; by default one epoch."""
    shares = examples.reshape(clients, -1, examples.shape[1])
    x = torch.zeros(examples.shape[1], dtype=torch.float64)
    population = Population(np.full(clients, shares.shape[1]), np.ones(clients))
    cohort = Cohort(np.arange(clients), np.ones(clients), population)
    state, each = algorithm.init(x, population), m // clients
    for t in range(len(examples) // m if rounds is None else rounds):
        work = []
        for share in shares:
            part = share.roll(-t * each, 0)[:each]
            work.append(Client(linear, Batch(share, share[:, 0]), [Batch(part, part[:, 0])]))
        conversation = algorithm.round(state, cohort)
        asked: list[Ask] = []

        def overheard(conversation: Round = conversation, asked: list[Ask] = asked) -> Round:
            ask = next(conversation)
            asked.append(ask)
            r = yield ask
            try:
                conversation.send(r)
            except StopIteration as stop:
                return stop.value

        state, _ = converse(overheard(), work, [{}] * clients)
        assert asked[0].batch_size == each
    return state


IDENTICAL = torch.ones(48, 6, dtype=torch.float64)
ORTHOGONAL = torch.eye(48, dtype=torch.float64)


@pytest.mark.parametrize("clients", [1, 2])
def test_the_rule_on_known_gradients(clients: int) -> None:
    """n D is 1 for equal gradients, n for orthogonal ones, and by definition in between."""
    rule = DiveBatch(batch_size=8, max_batch_size=40, delta=0.5)
    assert float(epoch(rule, IDENTICAL, 8, clients).m) == 8  # 0.5 n D = 0.5: it never shrinks
    assert float(epoch(rule, ORTHOGONAL, 8, clients).m) == 24  # 0.5 * 48
    assert float(epoch(replace(rule, delta=1.0), ORTHOGONAL, 8, clients).m) == 40  # 48, but no more than the largest
    drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((48, 6))) + 0.8
    bound = 48 * float((drawn**2).sum() / (drawn.sum(0) ** 2).sum())
    for delta in (2.0, 4.0, 8.0):
        assert 8 < int(delta * bound) < 40 or delta == 2.0
        expected = min(max(int(delta * bound), 8), 40)
        assert float(epoch(replace(rule, delta=delta), drawn, 8, clients).m) == expected


def test_the_estimate_is_that_of_the_whole_epoch() -> None:
    rule = DiveBatch(batch_size=8, max_batch_size=48)
    found = epoch(rule, ORTHOGONAL, 8, rounds=5)
    assert (float(found.m), float(found.epoch), float(found.seen)) == (8, 0, 40)
    assert float(found.q / (found.a**2).sum()) == pytest.approx(1.0, abs=1e-12)  # 40 orthogonal ones so far
    assert epoch(rule, ORTHOGONAL, 8).q == 0  # begun anew


def test_epochs_between_measurements_only_count() -> None:
    rule = DiveBatch(batch_size=8, max_batch_size=48, every=3, delta=1.0)
    sizes = [float(epoch(rule, ORTHOGONAL, 8, rounds=6 * e).m) for e in (1, 2)]
    assert sizes == [8, 8]
    assert not epoch(rule, ORTHOGONAL, 8, rounds=8).a.any() and epoch(rule, ORTHOGONAL, 8, rounds=13).a.any()


def test_adabatch_doubles() -> None:
    rule = AdaBatch(batch_size=8, max_batch_size=24, every=2)
    assert float(epoch(rule, ORTHOGONAL, 8).m) == 8
    state = epoch(rule, ORTHOGONAL, 8, rounds=12)
    assert (float(state.m), float(state.epoch)) == (16, 2)
    assert float(replace(rule).grown(replace(state, m=torch.tensor(16.0)), 48.0)) == 32


@pytest.mark.parametrize("rescale", [True, False])
def test_the_step_grows_with_the_batch(rescale: bool) -> None:
    rule = AdaBatch(lr=0.1, batch_size=8, max_batch_size=32, rescale=rescale)
    state, cohort = rule.init(torch.zeros(3), Population(np.array([64]), np.ones(1))), None
    cohort = Cohort(np.arange(1), np.ones(1), Population(np.array([64]), np.ones(1)))
    ask = next(rule.round(replace(state, m=torch.tensor(32.0)), cohort))
    assert ask.batch_size == 32
    assert ask.work.__self__.lr == pytest.approx(0.4 if rescale else 0.1)  # pyright: ignore[reportFunctionMemberAccess]


# --- squared gradients, example by example --------------------------------------------------------------------------


class Squares(AdaBatch):
    """Asks for squared gradients, of the first batch and of the shard."""

    def local(self, task: Task, x: Tensor) -> Answer:
        first = next(iter(task.batches))
        return Answer({"delta": torch.zeros_like(x), "b": task.square_norms(x, first), "s": task.square_norms(x)})

    def round(self, state: BatchState, cohort: Cohort) -> Round:
        r = yield Ask(self.local, cohort, {"x": state.x}, batch_size=4)
        SEEN.append((r.scalar("b"), r.scalar("s")))
        return state


SEEN: list[tuple[np.ndarray, np.ndarray]] = []


class OneAfterAnother(nn.Module):
    """A network with a layer that looks at the whole batch while it trains."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(features, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.a(x.flatten(1)))))


def made(shape: tuple[int, ...], classes: int) -> nn.Module:
    return OneAfterAnother(int(np.prod(shape)), classes)


MODELS = {"layers": problem(Squares()).model, "cnn": DigitsCNN(), "one by one": Custom("tests.test_divebatch:made")}


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("kind", MODELS)
def test_square_norms_are_sums_over_examples(kind: str, mode: str, tmp_path: Path) -> None:
    """Against gradients of single examples by autograd."""
    e = replace(problem(Squares()), model=MODELS[kind], gangs=Gangs(2, mode))
    if kind == "cnn":
        e = replace(e, data=Digits(), partition=Labels(clients=6, labels=2))
    plan = make_plan(e, Where(on="local"), tmp_path)
    assert plan.spec.mode == ("loop" if kind == "one by one" else mode)
    executor = InProcess(plan.spec)
    driver = plan.driver(executor, StateStore(tmp_path / "states", plan.client_state, 10**9))
    SEEN.clear()
    played = driver.play(plan.start(), 1)
    ((batches, shards),) = SEEN
    runner, model = executor.runner, executor.runner.model
    model.module.eval()
    for i, client in enumerate(played.talk.cohort.clients.tolist()):
        x, y = plan.shards.read("train", client)
        _, _, order = runner._draw(_phase(), client, 12)
        for found, rows in ((batches[i], order[:4]), (shards[i], np.arange(len(y)))):
            xs, ys = runner._convert(_phase(), x, y, rows, None)
            each = [model.grad(plan.x, a[None], b[None], runner.loss)[0] for a, b in zip(xs, ys, strict=True)]
            assert found == pytest.approx(float(sum((g**2).sum() for g in each)), rel=1e-10)


def _phase() -> object:
    class Phase:
        part, round = "train", 1

    return Phase()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadInput, match=r"max_batch_size is 8; it must be a finite number >= 16"):
        AdaBatch(max_batch_size=8)


def test_unequal_shards_count_by_their_weights() -> None:
    """90 examples at one client, 10 of ten times the length at the other: D is that of all 100, if weights say so."""
    points = torch.from_numpy(np.random.default_rng(1).standard_normal((100, 6))) + 1.0
    points[90:] *= 10
    bound = 100 * float((points**2).sum() / (points.sum(0) ** 2).sum())
    shards = [points[:90], points[90:]]
    rule = DiveBatch(batch_size=180, max_batch_size=10**6, delta=100.0)
    population = Population(np.array([90, 10]), np.array([90.0, 10.0]))
    cohort = Cohort(np.arange(2), population.weights, population)
    batches = [shards[0], shards[1].repeat(9, 1)]  # 90 examples of each client, every one as often as the others
    work = [Client(linear, Batch(x, x[:, 0]), [Batch(x, x[:, 0])]) for x in batches]
    state = rule.init(torch.zeros(6, dtype=torch.float64), population)
    state, _ = converse(rule.round(state, cohort), work, [{}] * 2)
    assert float(state.m) == int(100 * bound) > 180
