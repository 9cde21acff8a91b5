"""Algorithms around others: server optimisers against torch.optim, the displacement against FedGA, settings inside."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raygrad import config
from raygrad.algorithms.around import Around
from raygrad.algorithms.base import State, Stateless
from raygrad.algorithms.displaced import Displaced, DisplacedMethod
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedopt import Adaptive, FedAdagrad, FedAdam, FedYogi
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.method_around import MethodAround
from raygrad.algorithms.scaffold import Scaffold, ScaffoldFresh
from raygrad.contract import Algorithm, Answer, Ask, Cohort, Population, Replies, Round, parameters
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Where
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.plan import make_plan
from raygrad.recipes.digits import recipe
from raygrad.run import create, play
from raygrad.verify import problem

D, ROUNDS = 7, 6


@dataclass(frozen=True)
class Scripted(Stateless):
    """Its rounds move the model by the given changes."""

    changes: tuple[Tensor, ...]

    def round(self, state: State, cohort: Cohort) -> Round:
        r = yield Ask(lambda task: Answer({}), cohort, {})
        return replace(state, x=state.x + self.changes[int(r.scalar("round")[0])])


def changes() -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randn(D, generator=draw, dtype=torch.float64) * s for s in (1, 0.1, 2, 1e-3, 0, 0.5))


def played(make: Callable[[Algorithm], Algorithm]) -> Iterator[Tensor]:
    """The models after each round of an algorithm around scripted rounds, from zero."""
    algorithm, weights = make(Scripted(changes())), np.ones(1)
    cohort = Cohort(np.arange(1), weights, Population(np.ones(1, np.int64), weights))
    state = algorithm.init(torch.zeros(D, dtype=torch.float64), cohort.population)
    for index in range(ROUNDS):
        conversation = algorithm.round(state, cohort)
        next(conversation)
        try:
            conversation.send(Replies(cohort, {}, {"round": np.array([index])}, {}, torch.float64))
        except StopIteration as stop:
            state = stop.value
        yield state.x


def optimised(optimizer: torch.optim.Optimizer, before: Callable[[int], None] = lambda t: None) -> Iterator[Tensor]:
    """The parameters after each step of a torch optimiser whose gradients are minus the scripted changes."""
    (x,) = optimizer.param_groups[0]["params"]
    for t, change in enumerate(changes(), 1):
        before(t)
        x.grad = -change
        optimizer.step()
        yield x.detach().clone()


def same(found: Iterator[Tensor], expected: Iterator[Tensor]) -> bool:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) <= 1e-14


def zeros() -> list[Tensor]:
    return [torch.zeros(D, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_torch(nesterov: bool) -> None:
    found = played(lambda a: FedAvgM(a, 0.3, 0.9, nesterov))
    assert same(found, optimised(torch.optim.SGD(zeros(), 0.3, momentum=0.9, nesterov=nesterov)))


def test_adagrad_is_that_of_torch() -> None:
    assert same(
        played(lambda a: FedAdagrad(a, eta=0.3, tau=0.01)), optimised(torch.optim.Adagrad(zeros(), 0.3, eps=0.01))
    )


def test_adam_is_that_of_torch_without_its_bias_correction() -> None:
    """Torch's correction amounts to another step size and another tau in each step; those are given to it here."""
    optimizer = torch.optim.Adam(zeros(), betas=(0.9, 0.99))

    def uncorrected(t: int) -> None:
        second = sqrt(1 - 0.99**t)
        optimizer.param_groups[0] |= {"lr": 0.3 * (1 - 0.9**t) / second, "eps": 0.01 / second}

    assert same(played(lambda a: FedAdam(a, eta=0.3, tau=0.01)), optimised(optimizer, uncorrected))


@pytest.mark.parametrize(
    ("kind", "second"),
    [
        (FedYogi, lambda v, s: v - 0.01 * s * torch.sign(v - s)),
        (FedAdam, lambda v, s: 0.99 * v + 0.01 * s),
        (FedAdagrad, lambda v, s: v + s),
    ],
)
def test_adaptive_steps_by_hand(kind: type[Adaptive], second: Callable[[Tensor, Tensor], Tensor]) -> None:
    def by_hand() -> Iterator[Tensor]:
        x, m, v = (torch.zeros(D, dtype=torch.float64) for _ in range(3))
        for change in changes():
            m, v = 0.8 * m + 0.2 * change, second(v, change**2)
            x = x + 0.3 * m / (v.sqrt() + 0.01)
            yield x

    assert same(played(lambda a: kind(a, eta=0.3, beta1=0.8, tau=0.01)), by_hand())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvgM(momentum=1.0), r"algorithm.momentum is 1.0; it must be below 1"),
        (lambda: FedAdam(beta2=1.0), r"algorithm.beta2 is 1.0; it must be below 1"),
        (lambda: FedYogi(beta1=-0.1), r"algorithm.beta1 is -0.1; it must be a finite number >= 0"),
        (lambda: FedAdagrad(tau=0.0), r"algorithm.tau is 0; it must be above 0"),
        (lambda: FedDyn(penalty=0.0), r"algorithm.penalty is 0; FedDyn divides by it"),
        (lambda: Displaced(beta=-1.0), r"algorithm.beta is -1.0"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


# --- the displacement -----------------------------------------------------------------------------------------------


def model(algorithm: Algorithm, folder: Path, **change: object) -> Tensor:
    """The model after a small run."""
    e = replace(problem(algorithm), **change)  # pyright: ignore[reportArgumentType]
    run = create(e, Where(on="local", shard_root=str(folder / "shards")), run_root=folder, name="x")
    for _ in play(run):
        pass
    tensors = load(run.folder).checkpoint.tensors()
    return next(t for n, t in tensors.items() if n.split(".")[-1] == "x")


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_around_fedavg_it_is_fedga(mode: str, tmp_path: Path) -> None:
    """With the same bits; without a displacement it is FedAvg."""
    gangs = {"gangs": replace(problem(FedAvg()).gangs, mode=mode)}
    fedga = model(FedGA(beta=0.3), tmp_path, **gangs)
    assert torch.equal(model(Displaced(FedAvg(), 0.3), tmp_path, **gangs), fedga)
    assert not torch.equal(model(Displaced(FedAvg(), 0.2), tmp_path, **gangs), fedga)
    assert torch.equal(model(Displaced(FedAvg(), 0.0), tmp_path, **gangs), model(FedAvg(), tmp_path, **gangs))


def test_the_order_around_and_inside_does_not_matter_to_a_server_optimiser(tmp_path: Path) -> None:
    assert torch.equal(model(FedAdam(FedGA(beta=0.3)), tmp_path), model(Displaced(FedAdam(FedAvg()), 0.3), tmp_path))


def test_the_proximal_centre_and_the_duals_stay() -> None:
    """Local steps of no length: nothing is sent and no dual moves, wherever the start is."""

    class Still:
        steps, round, weight_decay, clip_norm, momentum = 3, 1, 0.0, None, 0.0
        seen: tuple[Tensor, ...] = ()

        @property
        def batches(self) -> list[str]:
            return ["a batch"] * 3

        def grad(self, x: Tensor, batch: object) -> Tensor:
            self.seen = (*self.seen, x)
            return torch.zeros_like(x)

        def lr(self, base: float) -> float:
            return base

    x, g_mean, g = torch.ones(D), torch.zeros(D), torch.full((D,), 2.0)
    task = Still()
    given = {"x": x, "g_mean": g_mean, "g": g}
    answer = DisplacedMethod(FedProx(lr=0.1, mu=1.0).local, beta=0.5)(task, **given)  # pyright: ignore
    assert torch.equal(task.seen[0], 2 * x)  # it starts there,
    assert float(answer.update["delta"][0]) == pytest.approx(0.9**3 - 1)  # is pulled to x, and says how far it went
    dual = torch.full((D,), 7.0)
    answer = DisplacedMethod(FedDyn(lr=0.0).local, beta=0.5)(task, **given, dual=dual)  # pyright: ignore
    assert answer.state is not None
    assert not answer.update["delta"].any() and torch.equal(answer.state["dual"], dual)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (Scaffold(), "cannot be displaced: Scaffold.local takes no start=None"),
        (ScaffoldFresh(), "cannot be displaced: ScaffoldFresh.variate takes no start=None"),
        (FedGA(), "cannot be displaced: FedGA.gradient takes no start=None"),
    ],
)
def test_what_cannot_be_displaced_is_refused_before_it_runs(inner: Algorithm, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        create(problem(Displaced(inner)), Where(on="local"), run_root=tmp_path, name="x")
    assert not list(tmp_path.glob("x/*"))


def test_a_method_around_another_takes_what_both_take() -> None:
    work = DisplacedMethod(FedDyn().local, beta=0.1)
    assert parameters(work) == ("x", "dual", "g_mean", "g") and parameters(work, optional=True) == ()
    assert work.__qualname__ == "DisplacedMethod(FedDyn.local)" and work.__self__ == FedDyn()  # pyright: ignore
    open_ = MethodAround(FedAvg().local)
    assert (parameters(open_), parameters(open_, optional=True)) == (("x",), ("start",))


def test_those_around_know_who_left(tmp_path: Path) -> None:
    """SCAFFOLD inside a server optimiser keeps its c the mean of all c_i while clients leave and join."""
    algorithm = FedAvgM(Scaffold())
    e = problem(algorithm)
    plan = make_plan(e, Where(on="local"), tmp_path)
    assert isinstance(algorithm, Around)
    store = StateStore(tmp_path / "states", plan.client_state, 10**9)
    driver = plan.driver(InProcess(plan.spec), store)
    state = plan.start()
    present = {2: np.array([0, 1, 3, 5]), 3: np.array([0, 1, 2, 3, 5])}
    for index in range(1, 5):
        if index in present:
            driver, state = driver.resized(state, present[index])
        one = driver.play(state, index)
        for clients, rows in one.talk.states:
            store.put(clients, rows)
        state = one.state
        there = driver.population.at(np.arange(len(driver.population)))
        c_i = torch.from_numpy(store.get(there)["c_i"])
        w = torch.from_numpy(plan.population.weights[there])[:, None]
        assert (state.algorithm.inner.c - (w * c_i).sum(0) / w.sum()).abs().max() <= 1e-13
    assert len(there) == 5 and state.algorithm.inner.c.abs().max() > 1e-4
    store.close()


# --- settings of the part inside ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["algorithm=fedadam"], FedAdam(FedAvg(lr=0.1))),
        (["algorithm=fedadam", "algorithm.lr=0.3"], FedAdam(FedAvg(lr=0.3))),
        (["algorithm=fedadam", "algorithm.inner=fedga"], FedAdam(FedGA(lr=0.1, beta=0.1))),
        (["algorithm=fedadam", "algorithm.inner=fedga", "algorithm.beta=0.4"], FedAdam(FedGA(lr=0.1, beta=0.4))),
        (["algorithm=displaced", "algorithm.inner=fedprox"], Displaced(FedProx(lr=0.1), beta=0.1)),
        (["algorithm=fedavgm", "algorithm.server_lr=0.5"], FedAvgM(FedAvg(lr=0.1), server_lr=0.5)),
        (["algorithm=fedadam", "algorithm.lr=0.3", "algorithm=fedprox"], FedProx(lr=0.3)),
        (
            ["algorithm=fedavgm", "algorithm.inner=displaced", "algorithm.inner.inner=feddyn", "algorithm.penalty=2"],
            FedAvgM(Displaced(FedDyn(lr=0.1, penalty=2.0), beta=0.1)),
        ),
    ],
)
def test_a_field_that_is_lacking_is_that_of_the_part_inside(settings: list[str], expected: Algorithm) -> None:
    e = config.assign_all(recipe(), [(p, v) for p, _, v in (s.partition("=") for s in settings)])
    assert e.algorithm == expected
    assert Experiment.from_json(e.to_json()) == e
    assert {"inner", "lr"} <= config.names(FedAdam()) and "lr" not in config.names(recipe().sampler)


def test_an_unknown_field_names_those_inside() -> None:
    with pytest.raises(BadInput, match=r"unknown field of algorithm.inner \(FedAvg\) 'bta' \(known: lr, server_lr\)"):
        recipe().set("algorithm", "fedadam").set("algorithm.bta", "1")
