"""What probes measure, against direct computations in float64; and that measuring changes nothing."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil, isinf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.alignment import Alignment, AlignmentProbe, debiasing, fixed_cohort, worst_decile
from raygrad.contract import Algorithm, Answer, Ask, Cohort, Population, Replies, Task
from raygrad.data.datasets import Digits, SyntheticLogistic, SyntheticQuadratic
from raygrad.data.partition import Labels, Natural
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Evaluation, Experiment, Gangs, Probe, Where
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.flat import initial_module
from raygrad.gang import Phase
from raygrad.local import Local
from raygrad.models import MLP, Linear, Model
from raygrad.plan import Plan, make_plan
from raygrad.player import alignment_probe
from raygrad.rng import Purpose, torch_seed
from raygrad.run import create, play
from raygrad.samplers import Uniform
from raygrad.schedules import Cosine
from raygrad.tasks import LoopTask
from raygrad.verify import Forgetful, problem

# --- models that are not plain ---------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A layer that runs along the features."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.flatten(1)[..., None])[0][:, -1])


class Attention(nn.Module):
    """Attention, whose fast kernels cannot be differentiated twice."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(1, 12), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inside(x.flatten(1)[..., None]).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class OnceOnly(torch.autograd.Function):
    """Doubles its input, and refuses to be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Once(nn.Module):
    """A linear model with an operation that has no second derivative."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(self.head(x.flatten(1)))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Odd:
    """A small network of one of several kinds."""

    layer: str = "norm"

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        outputs = classes or 1
        own = {"recurrent": Recurrent, "attention": Attention, "once": Once}
        if self.layer in own:
            return own[self.layer](outputs)
        if self.layer == "cnn":
            layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, outputs)
            return nn.Sequential(*layers)
        odd = nn.BatchNorm1d(6) if self.layer == "norm" else nn.Dropout(0.5)
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 6), odd, nn.Tanh(), nn.Linear(6, outputs))


# --- the engine, and the same thing without it -----------------------------------------------------------------------


def planned(e: Experiment, folder: Path) -> Plan:
    return make_plan(e, Where(on="local"), folder)


def converse(plan: Plan, talk: Generator[Ask, Replies, Any], cohort: Cohort, folder: Path, executor: Any = None) -> Any:
    """The result of a conversation in round 3, with the schedule's factor 1/2."""
    e, store = plan.experiment, StateStore(folder / "states", plan.client_state, 10**9)
    size = e.gangs.size
    assert size != "auto"
    executor = executor or InProcess(plan.spec)
    d = plan.driver(executor, store)
    return d.converse(talk, ("probe", 3), cohort, plan.buffers, 0.5).result


def measured(plan: Plan, probe: AlignmentProbe, cohort: Cohort, folder: Path, executor: Any = None) -> Alignment:
    return converse(plan, probe.measure(plan.x, cohort), cohort, folder, executor)


def everybody(plan: Plan) -> Cohort:
    return fixed_cohort(plan.population, 10**6, 0)


@dataclass(frozen=True)
class Direct:
    """The clients' losses as functions of the parameters, on whole shards."""

    plan: Plan

    def data(self, part: str, client: int) -> tuple[Tensor, Tensor]:
        x, y = self.plan.shards.read(part, client)
        xs = self.plan.spec.transform(x, torch.float64, None)
        return xs, torch.from_numpy(np.array(y))

    def output(self, x: Tensor, inputs: Tensor) -> Tensor:
        spec = self.plan.spec
        module = initial_module(spec.model, spec.shape, spec.classes, spec.seed).double()
        values, start = {}, 0
        for name, p in module.named_parameters():
            values[name] = x[start : start + p.numel()].view(p.shape)
            start += p.numel()
        return torch.func.functional_call(module, values, (inputs,))

    def loss(self, x: Tensor, inputs: Tensor, y: Tensor) -> Tensor:
        out = self.output(x, inputs)
        return F.cross_entropy(out, y) if self.plan.spec.classes else ((out[:, 0] - y) ** 2).mean() / 2

    def grad(self, x: Tensor, inputs: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(self.loss(x, inputs, y), x)[0]

    def grads(self, clients: np.ndarray) -> Tensor:
        return torch.stack([self.grad(self.plan.x, *self.data("train", int(i))) for i in clients])

    def hessian(self, client: int) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return self.loss(x, *self.data("train", client))

        return torch.autograd.functional.hessian(loss, self.plan.x)  # pyright: ignore[reportReturnType]

    def r_gradient(self, clients: np.ndarray) -> Tensor:
        """The derivative of the cohort's r, straight from its definition."""

        def r(x: Tensor) -> Tensor:
            data = [self.data("train", int(i)) for i in clients]
            g = torch.stack([torch.autograd.grad(self.loss(x, *d), x, create_graph=True)[0] for d in data])
            return ((g - g.mean(0)) ** 2).sum() / (2 * len(clients))

        x = self.plan.x.clone().requires_grad_()
        return torch.autograd.grad(r(x), x)[0]


# --- Hessian-vector products -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curvature:
    """Asks every client for one product with its Hessian."""

    def work(self, task: Task, x: Tensor, v: Tensor) -> Answer:
        return Answer({"h": task.hvp(x, v)})

    def measure(self, x: Tensor, v: Tensor, cohort: Cohort) -> Generator[Ask, Replies, Tensor]:
        r = yield Ask(self.work, cohort, {"x": x, "v": v}, rows=("h",), charged=False)
        return r.rows("h")


def digits(model: Model) -> Experiment:
    return replace(
        problem(FedAvg()), data=Digits(), partition=Labels(clients=10, labels=1), model=model, metrics=("accuracy",)
    )


def vector(size: int) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(1)).standard_normal(size))


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_hvp_is_the_dense_hessian_times_the_vector(
    kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged shards, each in several pieces."""
    width = 64 if kind == "cnn" else 5
    monkeypatch.setattr("raygrad.runner.CHUNK_BYTES", (50 if kind == "cnn" else 4) * width * 8)
    e = digits(Odd("cnn")) if kind == "cnn" else problem(FedAvg())
    plan = planned(replace(e, gangs=Gangs(3, mode)), tmp_path)  # pyright: ignore[reportArgumentType]
    assert plan.experiment.gangs.mode == mode
    cohort = Cohort(np.arange(3), np.ones(3), plan.population)
    v = vector(len(plan.x))
    found = converse(plan, Curvature().measure(plan.x, v, cohort), cohort, tmp_path)
    assert len(set(plan.shards.examples[:3].tolist())) > 1
    for client in range(3):
        expected = Direct(plan).hessian(client) @ v
        assert float(expected.norm()) > 1e-3
        assert float((found[client] - expected).norm()) <= 1e-12 * float(expected.norm())


def task(plan: Plan, client: int, number: int) -> LoopTask:
    executor = InProcess(plan.spec)
    executor.runner.shards = plan.shards
    phase = Phase(("probe", 3), number, Curvature().work, {}, {}, (), "train", 1.0, None, False)
    return LoopTask(executor.runner, phase, client)


@pytest.mark.parametrize("kind", ["cnn", "norm", "dropout", "recurrent", "attention"])
def test_hvp_is_the_slope_of_the_full_gradient(kind: str, tmp_path: Path) -> None:
    """Also where it is asked for in a later phase: dropout masks are those of a first phase's first gradient."""
    e = digits(Odd("cnn")) if kind == "cnn" else replace(problem(FedAvg()), model=Odd(kind))
    plan = planned(e, tmp_path)
    t, v, eps = task(plan, 1, number=1), vector(len(plan.x)), 1e-6
    seed = torch_seed(plan.spec.seed, Purpose.DROPOUT, 3, 0, 1)

    def gradient(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return t.full_grad(x)

    expected = (gradient(plan.x + eps * v) - gradient(plan.x - eps * v)) / (2 * eps)
    buffers, state = t._runner.model.buffers(), torch.random.get_rng_state()
    found = t.hvp(plan.x, v)
    assert float((found - expected).norm()) <= 1e-7 * float(expected.norm())
    assert torch.equal(t._runner.model.buffers(), buffers)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert t._runner.model.module.training


def test_hvp_with_batch_norm_is_the_dense_hessian(tmp_path: Path) -> None:
    """Every example counts in the batch's statistics, as in training."""
    plan = planned(replace(problem(FedAvg()), model=Odd("norm")), tmp_path)
    v = vector(len(plan.x))
    expected = Direct(plan).hessian(2) @ v
    assert float((task(plan, 2, 0).hvp(plan.x, v) - expected).norm()) <= 1e-12 * float(expected.norm())


def test_a_model_without_second_derivatives_is_probed_without_them(tmp_path: Path) -> None:
    plan = planned(replace(problem(FedAvg()), model=Odd("once")), tmp_path)
    with pytest.raises(NotImplementedError, match=r"model \(Once\) has no second derivative"):
        task(plan, 0, 0).hvp(plan.x, plan.x)
    a = measured(plan, AlignmentProbe(0.1, "validation"), everybody(plan), tmp_path)
    assert a.r_gradient_norm is None
    assert a.r > 0 and a.drift is not None and a.client_accuracy is not None


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), model=Linear(), loss=f"{__name__}:linear_loss")
    for mode in ("loop", "vmap"):
        plan = planned(replace(e, gangs=Gangs(2, mode)), tmp_path)
        a = measured(plan, AlignmentProbe(), everybody(plan), tmp_path)
        assert a.r > 0 and a.r_gradient_norm == 0.0


def linear_loss(output: Tensor, target: Tensor) -> Tensor:
    return output.gather(1, target[:, None])[:, 0]


# --- the probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("part", ["validation", "train"])
def test_everything_measured_against_its_definition(part: str, mode: str, tmp_path: Path) -> None:
    """Four of six clients; local steps with weight decay and with clipping that bites."""
    local = Local(steps=3, batch_size=4, weight_decay=0.1, clip_norm=0.5)
    evaluation = Evaluation(validation=0.3) if part == "validation" else Evaluation(mode="paper")
    data = SyntheticLogistic(clients=6, examples=30, features=5, classes=3)
    e = replace(problem(FedGA(lr=0.4)), local=local, evaluation=evaluation, data=data, gangs=Gangs(2, mode))  # pyright: ignore[reportArgumentType]
    plan = planned(e, tmp_path)
    probe = alignment_probe(plan)
    assert probe == AlignmentProbe(0.4, part)
    cohort = fixed_cohort(plan.population, 4, 5)
    a = measured(plan, probe, cohort, tmp_path)

    d, x = Direct(plan), plan.x
    g = d.grads(cohort.clients)
    mean, norms = g.mean(0), g.norm(dim=1)
    scale = (4 / 3) * (5 / 6)
    assert a.clients == 4
    assert a.r == pytest.approx(scale * float(((g - mean) ** 2).sum(1).mean()) / 2, rel=1e-12)
    assert a.gradient_norm == pytest.approx(float(mean.norm()), rel=1e-12)
    assert a.client_gradient_norm == pytest.approx(float(norms.mean()), rel=1e-12)
    assert a.diversity == pytest.approx(float((norms**2).mean() / mean.norm() ** 2), rel=1e-12)
    assert a.cosine == pytest.approx(float(torch.cosine_similarity(g, mean[None], dim=1).mean()), rel=1e-12)
    pairs = [float(torch.cosine_similarity(g[i], g[j], dim=0)) for i, j in combinations(range(4), 2)]
    assert a.pairwise_cosine == pytest.approx(np.mean(pairs), rel=1e-12)
    by_hessians = torch.stack([d.hessian(int(i)) @ (g[k] - mean) for k, i in enumerate(cohort.clients)]).mean(0)
    direct = d.r_gradient(cohort.clients)
    assert float((by_hessians - direct).norm()) <= 1e-12 * float(direct.norm())
    assert a.r_gradient_norm == pytest.approx(scale * float(direct.norm()), rel=1e-11)

    moved, clipped = [], 0
    for client in cohort.clients:
        y = x.clone()
        for batch in task(plan, int(client), 0).batches:
            step = d.grad(y, batch.x, batch.y)
            clipped += float(step.norm()) > 0.5
            step = step * min(1.0, 0.5 / (float(step.norm()) + 1e-6)) + 0.1 * y
            y = y - 0.5 * 0.4 * step  # the schedule's factor is 1/2
        moved.append(y - x)
    assert clipped > 0
    iterates = torch.stack(moved)
    drift = float(((iterates - iterates.mean(0)) ** 2).sum(1).mean().sqrt())
    assert a.drift == pytest.approx(drift, rel=1e-10)

    accuracy = []
    for client in cohort.clients:
        inputs, y = d.data(part, int(client))
        accuracy.append(float((d.output(x, inputs).argmax(1) == y).double().mean()))
    assert len(set(accuracy)) > 1
    assert a.client_accuracy == pytest.approx(np.mean(accuracy), rel=1e-12)
    assert a.worst_accuracy == pytest.approx(min(accuracy), rel=1e-12)


def test_the_worst_decile() -> None:
    values = np.arange(25, dtype=np.float64)[::-1]
    assert worst_decile(values) == np.mean([0, 1, 2])
    for m in (1, 9, 10, 11, 64):
        assert worst_decile(np.arange(float(m))) == np.arange(ceil(m / 10)).mean()


def test_on_all_cohorts_the_estimates_are_right_on_average(tmp_path: Path) -> None:
    """Every cohort of three of six clients; without the factor the mean would be off by a fifth."""
    plan = planned(problem(FedAvg()), tmp_path)
    d, n = Direct(plan), 6
    whole = measured(plan, AlignmentProbe(), everybody(plan), tmp_path)
    g = d.grads(np.arange(n))
    r = float(((g - g.mean(0)) ** 2).sum(1).mean()) / 2
    assert whole.r == pytest.approx(r, rel=1e-12)  # all clients: nothing to estimate
    rs, gradients = [], []
    for clients in combinations(range(n), 3):
        cohort = Cohort(np.array(clients), np.ones(3), plan.population)
        a = measured(plan, AlignmentProbe(), cohort, tmp_path)
        rs.append(a.r)
        gradients.append(debiasing(3, n) * d.r_gradient(cohort.clients))
        assert a.r_gradient_norm == pytest.approx(float(gradients[-1].norm()), rel=1e-11)
    assert np.mean(rs) == pytest.approx(r, rel=1e-12)
    assert np.mean(rs) / debiasing(3, n) == pytest.approx((1 - 1 / 3) * n / (n - 1) * r, rel=1e-12)
    expected = d.r_gradient(np.arange(n))
    assert float((torch.stack(gradients).mean(0) - expected).norm()) <= 1e-12 * float(expected.norm())


def test_the_factor() -> None:
    assert debiasing(10, 47) == pytest.approx(1 / 0.9196, rel=1e-4)  # 10 of EMNIST's 47 see 0.92 of r
    assert debiasing(47, 47) == debiasing(1, 1) == 1.0
    assert isnan(debiasing(1, 5))


def test_nearly_equal_gradients_keep_their_digits(tmp_path: Path) -> None:
    """Squares minus square would leave nothing of an r that is 1e-18 of |g|^2."""
    e = replace(
        problem(FedAvg()), data=SyntheticQuadratic(clients=4, examples=8, features=5, heterogeneity=1e-9),
        partition=Natural(), model=Linear(bias=False), loss="squared_error", metrics=(), gangs=Gangs(2, "loop"),
        evaluation=Evaluation(mode="paper"),  # on whole shards all Hessians are equal up to 1e-9
    )  # fmt: skip
    plan = planned(e, tmp_path)
    a = measured(plan, AlignmentProbe(), everybody(plan), tmp_path)
    g = Direct(plan).grads(np.arange(4))
    expected = float(((g - g.mean(0)) ** 2).sum(1).mean()) / 2
    assert 0 < expected < 1e-15 * float((g**2).sum(1).mean())
    assert a.r == pytest.approx(expected, rel=1e-5, abs=0)


# --- the probe alone, on given gradients -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A task whose gradient is given, and its Hessian a multiple of 1."""

    g: Tensor
    curvature: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    steps: int = 1
    examples: int = 1
    round: int = 1

    @property
    def batches(self) -> list[Any]:
        return [None] * self.steps

    def grad(self, x: Tensor, batch: Any) -> Tensor:
        return self.g

    def full_grad(self, x: Tensor) -> Tensor:
        return self.g

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.curvature * v

    def evaluate(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def lr(self, base: float) -> float:
        return base


def by_hand(probe: AlignmentProbe, tasks: list[Given], population: int | None = None) -> Alignment:
    """The probe's conversation with sums in float64, as the driver makes them."""
    m, dtype = len(tasks), tasks[0].g.dtype
    n = population or m
    cohort = Cohort(np.arange(m), np.ones(m), Population(np.ones(n, np.int64), np.ones(n)))
    scratch: list[dict[str, Tensor]] = [{} for _ in tasks]
    talk = probe.measure(torch.zeros_like(tasks[0].g), cohort)
    ask = next(talk)
    while True:
        answers = []
        for t, kept in zip(tasks, scratch, strict=True):
            wanted = ask.work.__code__.co_varnames[2 : ask.work.__code__.co_argcount]  # type: ignore[attr-defined]
            answers.append(ask.work(t, **{k: v for k, v in {**ask.down, **kept}.items() if k in wanted}))
            kept.update(answers[-1].scratch or {})
        names = answers[0].update
        vectors = {k: torch.stack([a.update[k].double() for a in answers]) for k in names}
        totals = {k: v.sum(0) for k, v in vectors.items() if v.ndim == 2}
        assert all(bool(torch.isfinite(v).all()) for v in vectors.values())  # else the engine would stop the run
        scalars = {k: v.numpy() for k, v in vectors.items() if v.ndim == 1}
        try:
            ask = talk.send(Replies(cohort, totals, scalars, {}, dtype))
        except StopIteration as stop:
            return stop.value


def test_float32_gradients_a_last_bit_apart() -> None:
    """The mean that clients get is rounded to float32; what that adds to their distances is taken out again."""
    g = torch.full((3, 4), 1.0)
    g[0, 0], g[1, 1] = 1 + 2**-23, 1 + 2**-22
    wide = g.double()
    expected = float(((wide - wide.mean(0)) ** 2).sum(1).mean()) / 2
    a = by_hand(AlignmentProbe(), [Given(row, 3.0) for row in g])
    assert a.r == pytest.approx(expected, rel=1e-9, abs=0)
    assert isinstance(a.r_gradient_norm, float)


def test_equal_gradients() -> None:
    a = by_hand(AlignmentProbe(0.1), [Given(torch.tensor([3.0, 4.0]).double(), 2.0)] * 5, population=9)
    assert (a.r, a.diversity, a.drift, a.r_gradient_norm) == (0.0, 1.0, 0.0, 0.0)
    assert a.cosine == pytest.approx(1) and a.pairwise_cosine == pytest.approx(1)
    assert a.gradient_norm == a.client_gradient_norm == 5.0
    assert a.client_accuracy is None and a.worst_accuracy is None


def test_a_client_without_a_gradient_has_no_direction() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    a = by_hand(AlignmentProbe(), [Given(row) for row in rows])
    assert a.cosine == pytest.approx(0.5**0.5) and a.pairwise_cosine == pytest.approx(0.0, abs=1e-15)
    assert a.client_gradient_norm == pytest.approx(2 / 3)
    still = by_hand(AlignmentProbe(), [Given(torch.zeros(2))] * 3)
    assert still.r == 0 and isnan(still.cosine) and isinf(still.diversity) and still.pairwise_cosine is None
    opposite = by_hand(AlignmentProbe(), [Given(row) for row in torch.tensor([[1.0, 0.0], [-1.0, 0.0]])])
    assert opposite.pairwise_cosine == pytest.approx(-1) and isinf(opposite.diversity)


def test_local_steps_that_diverge_do_not_stop_the_probe() -> None:
    huge = by_hand(AlignmentProbe(1e30), [Given(torch.tensor([1e30, 1.0])), Given(torch.tensor([1.0, 1.0]))])
    assert huge.drift is not None and isinf(huge.drift)
    assert np.isfinite(huge.r)
    assert by_hand(AlignmentProbe(), [Given(torch.ones(2))] * 2).drift is None
    curved = by_hand(AlignmentProbe(), [Given(torch.ones(2), float("inf")), Given(torch.zeros(2), 1.0)])
    assert curved.r_gradient_norm is None


# --- the run around it -----------------------------------------------------------------------------------------------


def run(e: Experiment, where: Where, folder: Path, name: str) -> Path:
    loaded = create(e, where, run_root=folder, name=name)
    for _ in play(loaded):
        pass
    return loaded.folder


@dataclass(frozen=True)
class Unstable(FedAvg):
    """An algorithm whose `lr` would blow up plain SGD."""

    def local(self, task: Task, x: Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"delta": -0.1 * g / g.norm()})


CASES: dict[str, Callable[[Experiment], Experiment]] = {
    "fedga": lambda e: replace(e, algorithm=FedGA()),
    "scaffold": lambda e: replace(e, algorithm=ALGORITHMS["scaffold"]()),
    "fedga vmap": lambda e: replace(e, algorithm=FedGA(), gangs=Gangs(2, "vmap")),
    "batch norm": lambda e: replace(e, model=Odd("norm")),
    "batch norm of their own": lambda e: replace(e, model=Odd("norm"), buffers="local"),
    "dropout": lambda e: replace(e, algorithm=FedGA(), model=Odd("dropout")),
    "unstable": lambda e: replace(e, algorithm=Unstable(lr=1e200), model=Linear(), loss="squared_error", **QUADRATIC),
}
QUADRATIC: dict[str, Any] = {
    "data": SyntheticQuadratic(clients=6, examples=8, features=5), "metrics": (), "local": Local(steps=5, batch_size=4)
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_probing_leaves_the_runs_bits_alone(case: str, tmp_path: Path) -> None:
    e = CASES[case](replace(problem(FedAvg()), partition=Natural()))
    where = Where(on="local", shard_root=str(tmp_path / "shards"))
    kept = []
    for every in (1, 0):
        loaded = load(run(replace(e, probe=Probe(every=every, clients=4)), where, tmp_path, f"every{every}"), tmp_path)
        assert loaded.table("probes").num_rows == (e.rounds if every else 0)
        kept.append(
            (
                dict(loaded.checkpoint.tensors()),
                [loaded.table(name) for name in ("rounds", "clients", "metrics")],
                loaded,
            )
        )
    (a, with_probes, probed), (b, without, _) = kept
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert all(x.equals(y) for x, y in zip(with_probes, without, strict=True))
    drift = probed.table("probes")["drift"].to_pylist()
    assert all(isinf(d) for d in drift) if case == "unstable" else all(0 < d < 10 for d in drift)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_probes_are_the_same_on_one_process_and_on_two_hosts(mode: str, tmp_path: Path, ray_local: None) -> None:
    e = replace(problem(FedGA()), gangs=Gangs(2, mode), probe=Probe(every=1, clients=5, examples=True))  # pyright: ignore[reportArgumentType]
    tables = []
    for name, where in (("here", Where(on="local")), ("there", Where(on="ray", hosts=2))):
        where = replace(where, shard_root=str(tmp_path / "shards"))
        tables.append(load(run(e, where, tmp_path, name), tmp_path).table("probes"))
    assert tables[0].num_rows == e.rounds
    assert tables[0].equals(tables[1])
    assert all(column.null_count == 0 for column in tables[0].columns)


@pytest.mark.parametrize("kind", ["norm", "dropout"])
def test_a_host_lost_between_the_phases_changes_no_bit(kind: str, tmp_path: Path) -> None:
    plan = planned(replace(problem(FedAvg()), model=Odd(kind)), tmp_path)
    probe, cohort = AlignmentProbe(0.1, "validation"), everybody(plan)
    assert measured(plan, probe, cohort, tmp_path, Forgetful(plan)) == measured(plan, probe, cohort, tmp_path)


@dataclass(frozen=True)
class NoStepSize(FedAvg):
    """Calls its step size something else."""

    lr: str = "large"  # type: ignore[assignment]

    def __post_init__(self) -> None: ...


def test_what_a_run_measures(tmp_path: Path) -> None:
    """Drift needs a step size, accuracy a metric of that name; no validation part means the training part."""

    def probe(algorithm: Algorithm, **other: Any) -> AlignmentProbe:
        return alignment_probe(planned(replace(problem(algorithm), **other), tmp_path))

    assert probe(FedAvg(lr=0.3)) == AlignmentProbe(0.3, "validation")
    assert probe(NoStepSize()) == AlignmentProbe(None, "validation")
    assert probe(FedAvg(), metrics=()) == AlignmentProbe(0.1, None)
    assert probe(FedAvg(), evaluation=Evaluation(mode="paper")) == AlignmentProbe(0.1, "train")


def test_the_drift_follows_the_schedule(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), schedule=Cosine(length=2), probe=Probe(every=1), model=MLP((4,), "tanh"))
    folder = run(replace(e, sampler=Uniform(2)), Where(on="local"), tmp_path, "r")
    drift = load(folder, tmp_path).table("probes")["drift"].to_pylist()
    assert drift[0] > 1.5 * drift[1] > 0 and drift[2] == drift[3] == 0


def test_a_client_without_validation_examples_has_no_accuracy(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), data=SyntheticLogistic(clients=6, examples=4, features=5, classes=3))
    e = replace(e, evaluation=Evaluation(validation=0.2), local=Local(steps=2, batch_size=2))
    plan = planned(e, tmp_path)
    counts = plan.shards.validation_examples
    d = Direct(plan)
    a = measured(plan, AlignmentProbe(None, "validation"), everybody(plan), tmp_path)
    accuracy = []
    for client in np.flatnonzero(counts):
        inputs, y = d.data("validation", int(client))
        accuracy.append(float((d.output(plan.x, inputs).argmax(1) == y).double().mean()))
    assert 0 < len(accuracy) < 6
    assert a.client_accuracy == pytest.approx(np.mean(accuracy))
