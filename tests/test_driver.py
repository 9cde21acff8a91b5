"""The driver's promises: what is charged, who is asked, which weights and step sizes count, what is read and when."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.base import State
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold
from raygrad.contract import Answer, Ask, Cohort, Round, Task
from raygrad.data.shards import Shards
from raygrad.driver import Driver
from raygrad.errors import DamagedShard, Stopped
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Evaluation, Experiment, Gangs, Probe, Where
from raygrad.faults import Fault
from raygrad.files.states import StateStore
from raygrad.gang import Gang, Phase
from raygrad.local import Local
from raygrad.plan import Plan, make_plan
from raygrad.player import evaluate
from raygrad.run import create, play
from raygrad.samplers import Uniform
from raygrad.schedules import Constant, Cosine, Exponential, Schedule, Step, Warmup
from raygrad.talk import ANSWERED, DAMAGED, Done, Failures, Operation, ServerState
from raygrad.verify import problem

ENCODED = {"quantised", "sparsified"}  # tests/test_compressed.py has their bytes
# Communications per round, and how many vectors of the model's size go down and up per client.
CHARGES = {
    "adabatch": (1, 1, 1),
    "divebatch": (1, 1, 2),
    "dp": (1, 1, 1),
    "dga": (2, 2, 2),
    "displaced": (2, 2, 2),
    "dsgd": (1, 1, 1),
    "fedadagrad": (1, 1, 1),
    "fedadam": (1, 1, 1),
    "fedasync": (1, 1, 1),
    "fedavg": (1, 1, 1),
    "fedavgm": (1, 1, 1),
    "fedaware": (1, 1, 1),
    "fedaware-plugin": (1, 1, 1),
    "feddyn": (1, 1, 1),
    "fedga-stale": (1, 1, 1),
    "fedyogi": (1, 1, 1),
    "fedprox": (1, 1, 1),
    "fedga": (2, 2, 2),
    "gradalign": (2, 2, 2),
    "local-gd": (1, 1, 1),
    "scaffold": (1, 2, 2),
    "scaffold-fresh": (2, 2, 2),
    "lbsgd": (1, 1, 1),
    "sgd": (1, 1, 1),
}


def driver(e: Experiment, folder: Path) -> tuple[Driver, Plan, ServerState]:
    plan = make_plan(e, Where(on="local"), folder)
    e = plan.experiment
    store = StateStore(folder / "states", plan.client_state, 10**9)
    d = plan.driver(InProcess(plan.spec), store)
    return d, plan, plan.start()


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - ENCODED))
def test_charges(name: str, tmp_path: Path) -> None:
    """As in the table of state and traffic of the methods; a vector that was sent in an earlier phase is not sent
    again.
    """
    e = replace(problem(ALGORITHMS[name](), 1 if name == "sgd" else 6), weights="equal")
    d, plan, state = driver(e, tmp_path)
    talk = d.play(state, 1).talk
    communications, down, up = CHARGES[name]
    clients, size = len(talk.cohort), plan.x.nbytes
    assert talk.communications == communications
    assert talk.bytes_down == down * size * clients
    scalars = talk.bytes_up - up * size * clients
    assert 0 < scalars <= 3 * 8 * clients  # training losses, and what a method counts


def test_measuring_is_not_charged(tmp_path: Path) -> None:
    d, plan, state = driver(problem(FedAvg()), tmp_path)
    cohort = Cohort(np.arange(6), np.ones(6), plan.population)

    def ask() -> Round:
        yield Ask(FedAvg().local, cohort, {"x": plan.x}, charged=False)

    talk = d.converse(ask(), ("measure", 1), cohort, state.buffers)
    assert (talk.communications, talk.bytes_down, talk.bytes_up) == (0, 0, 0)


def test_cohorts_are_uniform_and_differ_between_rounds(tmp_path: Path) -> None:
    d, _, state = driver(problem(FedAvg()), tmp_path)
    draws = [Uniform(2).draw(d.pool(state, r, 2)).clients for r in range(1, 601)]
    assert all(len(set(c.tolist())) == 2 for c in draws)
    assert len({tuple(c.tolist()) for c in draws}) == 15  # every pair of six
    counts = np.bincount(np.concatenate(draws), minlength=6)
    # Each client is in a cohort with probability 1/3: 200 expected, standard deviation 11.5; five of them allowed.
    assert np.abs(counts - 200).max() < 58
    assert np.array_equal(draws[4], Uniform(2).draw(d.pool(state, 5, 2)).clients)


def test_weights_are_the_numbers_of_examples(tmp_path: Path) -> None:
    _, plan, _ = driver(replace(problem(FedAvg()), weights="examples"), tmp_path)
    counted = [len(plan.shards.read("train", i)[1]) for i in range(6)]
    assert len(set(counted)) > 1
    assert plan.population.weights.tolist() == counted
    _, plan, _ = driver(replace(problem(FedAvg()), weights="equal"), tmp_path)
    assert plan.population.weights.tolist() == [1.0] * 6


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_schedule_scales_the_local_step(mode: str, tmp_path: Path) -> None:
    """Round 2 under a factor of 1/2 equals round 2 with half the step size."""
    e = problem(FedAvg(lr=0.2))
    e = replace(e, gangs=replace(e.gangs, mode=mode))
    found = []
    for experiment in (
        replace(e, schedule=Step(milestones=(1,), gamma=0.5)),
        replace(e, algorithm=FedAvg(lr=0.1)),
        e,
    ):
        d, _, state = driver(experiment, tmp_path)
        found.append(d.play(state, 2))
    assert torch.equal(found[0].state.algorithm.x, found[1].state.algorithm.x)
    assert not torch.equal(found[0].state.algorithm.x, found[2].state.algorithm.x)
    assert found[0].lr_factor == 0.5


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), {1: 1, 9: 1}),
        (Step((2, 4), 0.1), {1: 1, 2: 1, 3: 0.1, 4: 0.1, 5: 0.01}),
        (Exponential(0.5), {1: 1, 2: 0.5, 4: 0.125}),
        (Cosine(4, 0.2), {1: 1, 3: 0.6, 5: 0.2, 50: 0.2}),
        (Warmup(4), {1: 0.25, 4: 1, 9: 1}),
    ],
)
def test_schedules(schedule: Schedule, factors: dict[int, float]) -> None:
    assert {r: schedule.factor(r) for r in factors} == pytest.approx(factors)


def test_scaffold_stands_still_where_a_schedule_ends_at_zero(tmp_path: Path) -> None:
    e = replace(problem(Scaffold()), schedule=Cosine(length=1), sampler=Uniform(6))
    d, _, state = driver(e, tmp_path)
    after = d.play(state, 5).state
    assert torch.equal(after.algorithm.x, state.algorithm.x)


def test_clients_of_one_size_draw_different_batches(tmp_path: Path) -> None:
    d, plan, _ = driver(replace(problem(FedAvg()), local=Local(steps=2, batch_size=4)), tmp_path)
    executor = d.executor
    assert isinstance(executor, InProcess)
    orders = []
    for client in range(6):
        labels = np.arange(16)

        class Numbered:
            def read(self, part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
                return np.zeros((16, *plan.spec.shape)), labels  # noqa: B023

        executor.runner.shards = Numbered()
        phase = _phase(plan)
        orders.append(torch.cat([y for _, y in executor.runner.drawn(phase, client, 2, 4)]).tolist())
    assert len({tuple(o) for o in orders}) == 6


def _phase(plan: Plan):
    from raygrad.gang import Phase

    return Phase(("round", 1), 0, FedAvg().local, {"x": plan.x.numpy()}, {}, (), "train", 1.0, None, True)


def test_the_test_set_is_read_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    plain = Shards.read

    def read(self: Shards, part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        reads.append(part)
        return plain(self, part, index)

    monkeypatch.setattr(Shards, "read", read)
    run = create(replace(problem(FedAvg()), rounds=4), Where(on="local"), run_root=tmp_path, name="r")
    for round in play(run):
        assert "test" not in reads
        assert round.test is None
    assert {"train", "validation", "test"} <= set(reads)
    first = reads.index("test")
    assert "train" not in reads[first:]


def test_the_papers_protocol_cuts_nothing_and_reads_the_test_set(tmp_path: Path) -> None:
    e = replace(problem(FedAvg()), evaluation=Evaluation(mode="paper", every=2), rounds=4)
    run = create(e, Where(on="local"), run_root=tmp_path, name="r")
    rounds = list(play(run))
    assert [r.test is not None for r in rounds] == [False, True, False, True]
    assert all(r.validation is None for r in rounds)


def test_evaluation_weighs_examples_not_clients(tmp_path: Path) -> None:
    d, plan, state = driver(replace(problem(FedAvg()), evaluation=Evaluation(validation=0.4)), tmp_path)
    sizes = plan.shards.validation_examples
    assert len(set(sizes.tolist())) > 1
    found = evaluate(d, plan, state, "validation", 1)
    from raygrad.flat import FlatModel, initial_module

    e = plan.experiment
    model = FlatModel(initial_module(e.model, plan.spec.shape, plan.spec.classes, e.seed), torch.float64)
    xs, ys = zip(*(plan.shards.read("validation", i) for i in range(6)), strict=True)
    out = model.call(plan.x, plan.spec.transform(np.concatenate(xs), torch.float64, None))
    y = torch.from_numpy(np.concatenate(ys))
    assert found["examples"] == sizes.sum() == len(y)
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(out, y)), rel=1e-12)
    assert found["accuracy"] == pytest.approx(float((out.argmax(1) == y).double().mean()), rel=1e-12)


def test_the_probe_measures_the_same_clients_in_every_round(tmp_path: Path) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    plain = InProcess.run

    def run(self, phase, gangs):
        gangs = list(gangs)
        asked.append((phase.conversation[0], tuple(c for g in gangs for c in g.clients.tolist())))
        return plain(self, phase, gangs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "run", run)
        e = replace(problem(FedAvg()), probe=Probe(every=1, clients=3), rounds=4)
        for _ in play(create(e, Where(on="local"), run_root=tmp_path, name="r")):
            pass
    probed = {clients for kind, clients in asked if kind == "probe"}
    assert len(probed) == 1
    assert len(probed.pop()) == 3


@dataclass(frozen=True)
class Elsewhere(FedAvg):
    """Asks other clients than its round's."""

    def round(self, state: State, cohort: Cohort) -> Round:
        half = Cohort(cohort.clients[:2], cohort.weights[:2], cohort.population)
        r = yield Ask(self.local, half, {"x": state.x})
        return replace(state, x=state.x + r.mean("delta"))


@dataclass(frozen=True)
class TakesAName(FedAvg):
    """Answers under a name that is taken."""

    def local(self, task: Task, x: Tensor) -> Answer:
        return Answer({"delta": x, "train_loss": x.sum()})


@dataclass(frozen=True)
class Boom(FedAvg):
    """Raises in one round."""

    def local(self, task: Task, x: Tensor) -> Answer:
        if task.round == 3:
            raise ZeroDivisionError("boom")
        return super().local(task, x)


@dataclass(frozen=True)
class Reweighs(FedAvg):
    """Gives its round's clients other weights."""

    def round(self, state: State, cohort: Cohort) -> Round:
        other = Cohort(cohort.clients, 2 * cohort.weights, cohort.population)
        r = yield Ask(self.local, other, {"x": state.x})
        return replace(state, x=state.x + r.mean("delta"))


@dataclass
class Unlucky:
    """Loses each gang of two clients or more for good, `times` times; whoever is alone is answered."""

    inner: InProcess
    times: int

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        for gang in gangs:
            if len(gang.working) > 1 and self.times:
                self.times -= 1
                yield Done(gang.index, None, Operation(gang.index, "h", 3, 2, 0.0, 0.0, 0, 0, "lost for good: Unlucky"))
            else:
                yield from self.inner.run(phase, [gang])


def test_a_gang_that_is_lost_though_nobody_kills_its_host_runs_again(tmp_path: Path) -> None:
    """Once more: then it is for the user to find out why."""
    e = replace(problem(FedAvg(), 2), gangs=Gangs(2, "loop"), failures=Failures(killer="skip"))
    d, plan, state = driver(e, tmp_path)
    expected = d.play(state, 1).state.algorithm.x
    played = replace(d, executor=Unlucky(InProcess(plan.spec), 1)).play(state, 1)
    assert torch.equal(played.state.algorithm.x, expected)
    assert (played.talk.fates.outcome == ANSWERED).all()
    with pytest.raises(Stopped, match=r"lost 2 times.* no client of it kills a host alone"):
        replace(d, executor=Unlucky(InProcess(plan.spec), 2)).play(state, 1)


@dataclass
class Decaying:
    """Loses its host before a round's second phase; from then on the shard of `client` is damaged."""

    inner: InProcess
    client: int

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        if phase.number == 1:
            self.inner.lose_host()
            self.inner.runner.open_shards()
            shards = self.inner.runner.shards
            read = shards.read

            def damaged(part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
                if index == self.client:
                    raise DamagedShard("rotten", index)
                return read(part, index)

            shards.read = damaged
        yield from self.inner.run(phase, gangs)


def test_a_shard_damaged_after_its_client_left_costs_nobody_else(tmp_path: Path) -> None:
    """The phase that the client was in has to be computed again, and cannot be with it."""
    e = replace(problem(FedGA(), 2), gangs=Gangs(2, "loop"), failures=Failures(data="skip"))
    d, plan, state = driver(e, tmp_path)
    d = replace(d, faults=(Fault("absent", 1, 1, 0),))
    expected = d.play(state, 1).state.algorithm.x
    played = replace(d, executor=Decaying(InProcess(plan.spec), 0)).play(state, 1)
    assert played.talk.fates.outcome.tolist() == [DAMAGED, ANSWERED]
    assert torch.equal(played.state.algorithm.x, expected)
    with pytest.raises(Stopped, match="rotten"):
        replace(d, failures=Failures(), executor=Decaying(InProcess(plan.spec), 0)).play(state, 1)


def test_misuse_is_named(tmp_path: Path) -> None:
    for algorithm, message in (
        (Elsewhere(), "other clients than the cohort"),
        (Reweighs(), "or with other weights"),
        (TakesAName(), "a name that is taken"),
    ):
        d, _, state = driver(problem(algorithm), tmp_path)
        with pytest.raises(TypeError, match=message):
            d.play(state, 1)


def test_an_error_in_client_code_names_the_client_and_keeps_what_was_done(tmp_path: Path) -> None:
    run = create(replace(problem(Boom()), rounds=5), Where(on="local"), run_root=tmp_path, name="r")
    with pytest.raises(ZeroDivisionError) as caught:
        list(play(run))
    assert any("in Boom.local at client" in note and "round 3" in note for note in caught.value.__notes__)
    assert run.checkpoint.round == 2
