"""Who counts on the modelled clock: policies by hand and against closed forms, and what a run makes of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.fedasync import FedAsync
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold, ScaffoldState
from raygrad.contract import Answer, Ask, Cohort, Pool, Round, Task
from raygrad.devices import Address, Constant, Exponential, Finish, Load, LogNormal, Trace
from raygrad.driver import Driver
from raygrad.errors import BadInput, BelowQuorum
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.packing import pack_server
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.gang import Gang, GangReply, Phase
from raygrad.local import Local
from raygrad.membership import Steps
from raygrad.plan import Plan, make_plan
from raygrad.run import create, extend, play, rounds
from raygrad.samplers import Available, Cyclic, Oort, PowerOfChoice, Uniform
from raygrad.stragglers import Buffered, Deadline, OverSelect, PartialWork, Policy, WaitForAll
from raygrad.talk import Done, Failures, Operation, Played
from raygrad.tasks import LoopTask
from raygrad.verify import problem

INF = float("inf")


def close(policy: Policy, seconds: list[float], wanted: int | None = None, gone: tuple[int, ...] = ()) -> list[int]:
    """Whose answers count, when nobody's steps can be changed; the last entry is the closing time in milliseconds."""
    m = len(seconds)
    answers = np.array([i not in gone for i in range(m)])
    finish = Finish(np.array(seconds), answers)
    closing = policy.close(lambda steps: finish, np.full(m, 5), wanted or m, np.arange(m, 0, -1) / (m + 1))
    return [*np.flatnonzero(closing.counts).tolist(), round(1000 * closing.seconds)]


def test_policies_by_hand() -> None:
    some = [3.0, 1.0, 4.0, 2.0]
    assert close(WaitForAll(), some) == [0, 1, 2, 3, 4000]
    assert close(WaitForAll(), some, gone=(2,)) == [0, 1, 3, 4000]  # the server knows when it has left
    assert close(Deadline(2.5), some) == [1, 3, 2500]
    assert close(Deadline(9.0), some) == [0, 1, 2, 3, 4000]  # nobody is left to wait for
    assert close(Deadline(9.0), some, gone=(2,)) == [0, 1, 3, 4000]
    assert close(Deadline(9.0, report_goal=2), some) == [1, 3, 2000]
    assert close(Deadline(1.5, report_goal=2), some) == [1, 1500]
    assert close(Deadline(3.0, report_goal=3), some, gone=(3,)) == [0, 1, 3000]
    assert close(OverSelect(2.0), some, wanted=2) == [1, 3, 2000]
    assert close(OverSelect(2.0), some, wanted=2, gone=(1,)) == [0, 3, 3000]
    assert close(OverSelect(2.0), some, wanted=2, gone=(0, 1, 3)) == [2, 4000]
    # Ties go by what was drawn for them: here the later client first.
    assert close(OverSelect(2.0), [1.0, 1.0, 1.0, 1.0], wanted=2) == [2, 3, 1000]


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 2)), min_size=1, max_size=6), st.integers(1, 9))
def test_partial_work_makes_as_many_steps_as_fit(clients: list[tuple[float, float]], full: int) -> None:
    per_step, fixed = (np.array(v) for v in zip(*clients, strict=True))

    def attempt(steps: np.ndarray) -> Finish:
        return Finish(fixed + per_step * steps, np.ones(len(steps), np.bool_))

    steps = np.full(len(clients), full)
    closing = PartialWork(4.0).close(attempt, steps, len(clients), np.zeros(len(clients)))
    done, more = attempt(closing.steps).seconds, attempt(closing.steps + 1).seconds
    assert (done[closing.counts] <= 4.0).all() and (attempt(np.ones(len(clients))).seconds[~closing.counts] > 4.0).all()
    assert ((more > 4.0) | (closing.steps == full))[closing.counts].all()
    assert closing.seconds <= 4.0


def harmonic(m: int, without: int = 0) -> float:
    return sum(1 / i for i in range(without + 1, m + 1))


@pytest.mark.parametrize(("asked", "wanted"), [(1, 1), (10, 10), (13, 10), (40, 10)])
def test_closing_times_are_the_order_statistics_of_exponentials(asked: int, wanted: int) -> None:
    """Of m clients with Exp(rate) durations the k-th is done after (H_m - H_{m-k}) / rate on average."""
    devices, count = Exponential(examples_per_s=30.0, vary="round"), 4000
    policy = OverSelect(asked / wanted)
    clients, load = np.arange(asked), Load(np.full(asked, 15.0), np.zeros(asked), np.zeros(asked))
    found = []
    for round in range(count):
        finish = devices.run(clients, load, 0.0, Address(3, round, 0))
        found.append(policy.close(lambda s, f=finish: f, np.ones(asked, np.int64), wanted, np.zeros(asked)).seconds)
    rate = 30.0 / 15.0
    expected = harmonic(asked, asked - wanted) / rate
    variance = sum(1 / i**2 for i in range(asked - wanted + 1, asked + 1)) / rate**2
    assert abs(np.mean(found) - expected) < 5 * (variance / count) ** 0.5


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass
class Idle:
    """Answers zero for every client, and notes whom it ran in which phase."""

    size: int
    ran: list[tuple[tuple[str, int], int, list[int]]] = field(default_factory=list)

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        for gang in gangs:
            clients = gang.clients[gang.parts[-1].mask]
            self.ran.append((phase.conversation, phase.number, clients.tolist()))
            totals = {n: np.zeros(self.size) for n in ("delta", "g", "y")}
            reply = GangReply(totals, {"train_loss": np.ones(len(clients))}, {}, {})
            yield Done(gang.index, reply, Operation(gang.index, "idle", 1, len(clients), 0, 0, 0, 0))


def planned(e: Experiment, folder: Path) -> Plan:
    return make_plan(e, Where(on="local"), folder)


def driver(plan: Plan, folder: Path, executor: Idle | InProcess | None = None) -> tuple[Driver, StateStore]:
    store = StateStore(folder / "states", plan.client_state, 10**9)
    return plan.driver(executor or InProcess(plan.spec), store), store


def states(
    e: Experiment, folder: Path, executor: Idle | InProcess | None = None
) -> Iterator[tuple[Played, StateStore]]:
    """Every round of an experiment, after its client states were adopted."""
    plan = planned(e, folder)
    d, store = driver(plan, folder, executor)
    state = plan.start()
    for index in range(1, e.rounds + 1):
        played = d.play(state, index)
        for clients, rows in played.talk.states:
            store.put(clients, rows)
        state = played.state
        yield played, store
    store.close()


MODELLED = Exponential(examples_per_s=500.0, up_bytes_per_s=1e5, dropout=0.2, vary="round")


def experiment(algorithm: object, clients: int = 12, **changes: object) -> Experiment:
    e = problem(algorithm, clients)  # pyright: ignore[reportArgumentType]
    return replace(e, **{"weights": "equal", "rounds": 6, "devices": MODELLED, "sampler": Uniform(6), **changes})  # type: ignore[arg-type]


def test_only_work_that_counts_is_done(tmp_path: Path) -> None:
    e = experiment(FedGA(), stragglers=OverSelect(1.5), rounds=20, failures=Failures(quorum=0))
    plan = planned(e, tmp_path)
    idle = Idle(plan.x.numel())
    late = 0
    for played, _ in states(e, tmp_path, idle):
        fates = played.talk.fates
        second = {c for a, n, cs in idle.ran if a == ("round", played.index) and n == 1 for c in cs}
        first = {c for a, n, cs in idle.ran if a == ("round", played.index) and n == 0 for c in cs}
        assert second == set(fates.clients[fates.outcome == "answered"].tolist())
        assert second <= first and len(first) <= 6 and len(fates.clients) == 9
        assert len([c for a, _, cs in idle.ran if a == ("round", played.index) for c in cs]) == len(first) + len(second)
        late += int((fates.outcome == "late").sum())
    assert late > 20


def test_times_add_up(tmp_path: Path) -> None:
    """A round of a two-phase method lasts as long as its phases; every client is done by its end."""
    e = experiment(FedGA(), devices=Constant(examples_per_s=10.0, down_bytes_per_s=1e3, up_bytes_per_s=500.0))
    plan = planned(e, tmp_path)
    (played, _), (again, _) = list(states(replace(e, rounds=2), tmp_path))
    examples = plan.population.examples[played.talk.cohort.clients].astype(float)
    size = plan.x.nbytes
    first = size / 1e3 + examples / 10 + (size + 8) / 500  # x down; the shard once; g and the loss up
    second = size / 1e3 + 3 * 4 / 10 + (size + 8) / 500  # the mean down, not x again; K B examples; delta and loss up
    assert e.local == replace(e.local, steps=3, batch_size=4)
    assert played.talk.seconds == pytest.approx(first.max() + second)
    assert played.talk.fates.seconds == pytest.approx(first.max() + second)
    assert again.state.clock_s == pytest.approx(played.state.clock_s + again.talk.seconds)


POLICIES = {
    "wait": WaitForAll(),
    "deadline": Deadline(0.05),
    "goal": Deadline(1.0, report_goal=3),
    "over": OverSelect(1.5),
    "partial": PartialWork(0.05),
    "buffered": Buffered(3, 7, max_staleness=4),
}


@pytest.mark.parametrize("weights", ["equal", "examples"])
@pytest.mark.parametrize("policy", POLICIES)
def test_scaffolds_c_stays_the_mean_of_all_c_i(policy: str, weights: str, tmp_path: Path) -> None:
    e = experiment(
        Scaffold(), stragglers=POLICIES[policy], weights=weights, dtype="float64", failures=Failures(quorum=0), rounds=8
    )
    gone = 0
    for played, store in states(e, tmp_path):
        plan = planned(e, tmp_path)
        c_i = store.get(np.arange(12))["c_i"]
        mean = (plan.population.weights[:, None] * c_i).sum(0) / plan.population.weights.sum()
        assert np.abs(played.state.algorithm.c.numpy() - mean).max() < 1e-13
        gone += int((played.talk.fates.outcome != "answered").sum())
    assert gone > 3 and np.abs(c_i).max() > 1e-3


@pytest.mark.parametrize("name", ["fedga", "scaffold", "scaffold-fresh"])
@pytest.mark.parametrize("policy", ["wait", "over", "partial"])
def test_gangs_do_not_matter(name: str, policy: str, tmp_path: Path) -> None:
    """Clients come and go inside gangs: other gangs and vmap give the same up to rounding."""
    found = []
    for size, mode in ((1, "loop"), (4, "loop"), (9, "loop"), (4, "vmap")):
        e = experiment(ALGORITHMS[name](), stragglers=POLICIES[policy], dtype="float64", gangs=Gangs(size, mode))
        e = replace(e, failures=Failures(quorum=0))
        found.append([p for p, _ in states(e, tmp_path)][-1])
    for other in found[1:]:
        assert found[0].state.clock_s == other.state.clock_s
        assert (found[0].state.algorithm.x - other.state.algorithm.x).abs().max() < 1e-10


def test_partial_work_is_fewer_steps(tmp_path: Path) -> None:
    """A client that is given k steps does what k local steps do."""
    devices = Constant(examples_per_s=100.0)
    whole = experiment(FedAvg(), devices=devices, rounds=1, dtype="float64")
    limited = replace(whole, stragglers=PartialWork(deadline_s=0.085))  # 4 examples a step: two of three fit
    fewer = replace(whole, local=replace(whole.local, steps=2))
    a, b, c = (next(p for p, _ in states(e, tmp_path)) for e in (limited, fewer, whole))
    assert a.talk.fates.steps.tolist() == [2] * 6
    assert torch.equal(a.state.algorithm.x, b.state.algorithm.x)
    assert not torch.equal(a.state.algorithm.x, c.state.algorithm.x)


def test_an_empty_round_changes_nothing_or_ends_the_run(tmp_path: Path) -> None:
    nobody = experiment(FedAvg(), devices=LogNormal(availability=0.02), sampler=Available(6), rounds=3)
    with pytest.raises(BelowQuorum, match=r"0 of 0 clients answered in round \d; failures.quorum is 1"):
        list(states(nobody, tmp_path))
    allowed = replace(nobody, failures=Failures(quorum=0))
    before = planned(allowed, tmp_path).start()
    empty = 0
    for played, _ in states(allowed, tmp_path):
        if not played.talk.inside.any():
            assert torch.equal(played.state.algorithm.x, before.algorithm.x)
            assert played.state.clock_s > before.clock_s
            empty += 1
        before = played.state
    assert empty


@dataclass(frozen=True)
class InTwo(Scaffold):
    """SCAFFOLD whose variates are answered in a phase of their own."""

    def variate(self, task: Task, x: torch.Tensor, c_i: torch.Tensor) -> Answer:
        g = task.full_grad(x)
        return Answer({"change": g - c_i}, state={"c_i": g})

    def descent(self, task: Task, x: torch.Tensor, c: torch.Tensor) -> Answer:
        return Answer({"delta": -self.lr * c})

    def round(self, state: ScaffoldState, cohort: Cohort) -> Round:
        v = yield Ask(self.variate, cohort, {"x": state.x}, shares=("change",))
        c = state.c + v.share("change")
        r = yield Ask(self.descent, v.cohort, {"x": state.x, "c": c})
        return ScaffoldState(state.x + r.mean("delta"), c)


def test_a_round_whose_second_phase_nobody_answers_changes_no_state(tmp_path: Path) -> None:
    """Nor the buffers; those that answered the first phase have answered in vain."""
    devices = LogNormal(dropout=0.5, vary="round")
    e = experiment(InTwo(), devices=devices, sampler=Uniform(3), rounds=20, dtype="float64", failures=Failures(0))
    in_vain = 0
    for played, store in states(e, tmp_path):
        c, mean = played.state.algorithm.c.numpy(), store.get(np.arange(12))["c_i"].mean(0)
        assert np.abs(c - mean).max() < 1e-13
        in_vain += not played.talk.inside.any() and played.talk.phases == 2
    assert in_vain


def test_without_devices_an_empty_round_takes_no_modelled_time(tmp_path: Path) -> None:
    e = experiment(FedAvg(lr=1e300), devices=problem(FedAvg()).devices, failures=Failures(0, nan="skip"), rounds=2)
    found = [p for p, _ in states(e, tmp_path)]
    assert not any(p.talk.inside.any() for p in found) and found[-1].state.clock_s == 0


def test_who_leaves_does_so_while_it_makes_all_its_steps() -> None:
    """Partial work of others does not hurry it."""
    seconds = np.array([3.0, 9.0, 2.0])
    answers = np.array([False, True, True])
    closing = PartialWork(4.0).close(lambda k: Finish(seconds * k / 5, answers), np.full(3, 5), 3, np.zeros(3))
    assert closing.counts.tolist() == [False, True, True] and closing.steps.tolist() == [5, 2, 5]
    assert closing.seconds == pytest.approx(3.6)
    alone = PartialWork(4.0).close(lambda k: Finish(3.0 * k / 5, answers[:1]), np.full(1, 5), 1, np.zeros(1))
    assert alone.seconds == pytest.approx(3.0)


# --- asynchronous ---------------------------------------------------------------------------------------------------


def idle_run(e: Experiment, folder: Path) -> list[Played]:
    return [p for p, _ in states(e, folder, Idle(planned(e, folder).x.numel()))]


def test_throughput_is_concurrency_over_the_mean_duration(tmp_path: Path) -> None:
    """Each of c places serves one client after another: c / E[T] answers a second, whatever the distribution."""
    e = experiment(
        FedAvg(), clients=200, devices=Exponential(examples_per_s=12.0, vary="round"), stragglers=Buffered(5, 20),
        rounds=400,
    )  # fmt: skip
    played = idle_run(e, tmp_path)
    answers = sum(len(p.talk.cohort) for p in played)
    assert answers == 2000
    rate = 20 / 1.0  # 3 steps of 4 examples at 12 a second
    assert abs(answers / played[-1].state.clock_s - rate) < 5 * rate / answers**0.5
    assert all(len(p.state.flight.clients) == 19 for p in played if p.state.flight)  # the last one is not replaced yet


def test_fast_clients_answer_more_often(tmp_path: Path) -> None:
    """With everybody at work all the time a client answers as often as its speed says."""
    e = experiment(
        FedAvg(), clients=8, devices=LogNormal(sigma=1.0, examples_per_s=12.0), stragglers=Buffered(1, 8), rounds=1500
    )
    played = idle_run(e, tmp_path)
    counts = np.bincount(np.concatenate([p.talk.cohort.clients for p in played]), minlength=8)
    seconds = LogNormal(sigma=1.0, examples_per_s=12.0).run(
        np.arange(8), Load(np.full(8, 12.0), np.zeros(8), np.zeros(8)), 0.0, Address(e.seed, 1, 0)
    ).seconds  # fmt: skip
    assert np.abs(counts - played[-1].state.clock_s / seconds).max() <= 1
    assert counts.max() > 5 * counts.min()


def test_staleness_counts_steps_and_discounts(tmp_path: Path) -> None:
    policy = Buffered(2, 8, max_staleness=5)
    e = experiment(FedAvg(), clients=30, stragglers=policy, rounds=60, devices=LogNormal(sigma=1.5, vary="round"))
    begun: dict[int, int] = {}
    stale = 0
    for played in idle_run(e, tmp_path):
        fates, flight = played.talk.fates, played.state.flight
        assert flight is not None
        for client, outcome, age in zip(fates.clients.tolist(), fates.outcome, fates.staleness.tolist(), strict=True):
            assert played.index - begun.pop(client, played.index) == age
            assert (outcome == "stale") == (age > 5)
            stale += outcome == "stale"
        begun |= dict(zip(flight.clients.tolist(), flight.begun.tolist(), strict=True))
        assert len(set(flight.clients.tolist())) == len(flight.clients) == 7
        assert set(flight.models) == set(flight.begun.tolist())
        cohort = played.talk.cohort
        assert cohort.divisor == pytest.approx(2)
        assert cohort.weights == pytest.approx((1 + cohort.staleness) ** -0.5)
    assert stale > 3


def test_who_is_not_there_is_told_apart_and_not_charged(tmp_path: Path) -> None:
    devices = LogNormal(availability=0.5)
    for policy in (Buffered(2, 5), WaitForAll()):
        e = experiment(FedAvg(), devices=devices, stragglers=policy, rounds=8, failures=Failures(quorum=0))
        size = planned(e, tmp_path).x.nbytes
        missing = 0
        for played, _ in states(e, tmp_path):
            gone = int((played.talk.fates.outcome == "unavailable").sum())
            assert not (played.talk.fates.outcome == "left").any()
            assert played.talk.bytes_down == size * (played.talk.asked - gone)
            missing += gone
        assert missing > 5


def answer(plan: Plan, version: int, client: int, x: torch.Tensor) -> Answer:
    """What a client answers that began in round `version` with the model `x`."""
    runner, work = InProcess(plan.spec).runner, plan.experiment.algorithm.local  # pyright: ignore[reportAttributeAccessIssue]
    runner.shards = plan.shards
    phase = Phase(("begun", version), 0, work, {}, {}, (), "train", 1.0, None, True)
    return work(LoopTask(runner, phase, client), x)


def test_an_asynchronous_step_by_hand(tmp_path: Path) -> None:
    """FedBuff: x + sum of discounted updates / goal, each from the model that its client was given."""
    e = experiment(
        FedAvg(lr=0.2), dtype="float64", stragglers=Buffered(2, 4), rounds=5, gangs=Gangs(1, "loop"),
        devices=LogNormal(sigma=1.0, vary="round"),
    )  # fmt: skip
    plan = planned(e, tmp_path)
    models = {1: plan.x}
    x = plan.x
    old = 0
    for played, _ in states(e, tmp_path):
        total = torch.zeros_like(x)
        for client, age in zip(played.talk.cohort.clients.tolist(), played.talk.cohort.staleness.tolist(), strict=True):
            version = played.index - age
            total += (1 + age) ** -0.5 * answer(plan, version, client, models[version]).update["delta"]
            old += age > 0
        x = x + total / 2
        assert (played.state.algorithm.x - x).abs().max() < 1e-14
        models[played.index + 1] = x
    assert old > 2


def test_fedasync_mixes_models(tmp_path: Path) -> None:
    """With one answer a step: x <- (1 - a s) x + a s y. With everybody waited for and a = 1 it is FedAvg."""
    a, b = (
        [p for p, _ in states(replace(experiment(alg, rounds=3), dtype="float64"), tmp_path)][-1]
        for alg in (FedAsync(mix=1.0), FedAvg())
    )
    assert (a.state.algorithm.x - b.state.algorithm.x).abs().max() < 1e-13
    e = experiment(
        FedAsync(mix=0.5, mu=0.1), stragglers=Buffered(1, 4, exponent=1.0), rounds=8, dtype="float64",
        gangs=Gangs(1, "loop"),
    )  # fmt: skip
    plan = planned(e, tmp_path)
    models, x, old = {1: plan.x}, plan.x, 0
    for played, _ in states(e, tmp_path):
        (client,), (age,) = played.talk.cohort.clients.tolist(), played.talk.cohort.staleness.tolist()
        version = played.index - age
        weight = 0.5 / (1 + age)
        x = (1 - weight) * x + weight * answer(plan, version, client, models[version]).update["y"]
        assert (played.state.algorithm.x - x).abs().max() < 1e-14
        models[played.index + 1] = x
        old += age > 0
    assert old > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": FedGA()}, "FedGA asks its clients more than once per round"),
        ({"sampler": PowerOfChoice(4, 8)}, "PowerOfChoice asks clients before it draws"),
        ({"sampler": Cyclic(4)}, "Cyclic goes by rounds"),
        ({"stragglers": Buffered(3, 11)}, "concurrency 11 and report_goal 3 needs 13 clients.*there are only 12"),
        ({"stragglers": Buffered(20, 3)}, "concurrency 3 and report_goal 20 needs 22 clients"),
        ({"failures": Failures(quorum=4)}, "failures.quorum is 4, but a round can have no more than 3 answers"),
        (
            {"failures": Failures(quorum=5), "stragglers": Deadline(1.0, report_goal=4)},
            "failures.quorum is 5, but a round can have no more than 4 answers",
        ),
        (
            {"membership": Steps((1, 2), (8, 3)), "failures": Failures(quorum=4), "stragglers": WaitForAll()},
            "failures.quorum is 4, but a round can have no more than 3 answers",
        ),
        ({"membership": Steps((1,), (5,)), "stragglers": WaitForAll()}, "cohort is 6, but there are only 5 clients in"),
        ({"stragglers": PartialWork(1.0, least=9)}, "stragglers.least is 9, but clients make 3 steps"),
        ({"sampler": Uniform(6, unbiased=True)}, "sampler.unbiased has no meaning in an asynchronous run"),
        ({"stragglers": Deadline(1.0, report_goal=7)}, "report_goal is 7, but only 6 clients are asked per round"),
        (
            {"sampler": PowerOfChoice(4, 8), "stragglers": Deadline(1.0, report_goal=3)},
            "report_goal is 3, but the sampler PowerOfChoice asks clients before it draws",
        ),
        ({"stragglers": OverSelect(2.5)}, "stragglers=over-select asks 15, but there are only 12"),
        ({"devices": problem(FedAvg()).devices}, "stragglers=buffered goes by the modelled clock, but devices is none"),
        (
            {"failures": Failures(quorum=9), "stragglers": WaitForAll()},
            "failures.quorum is 9, but a round can",
        ),
        ({"sampler": PowerOfChoice(4, 20), "stragglers": WaitForAll()}, "sampler.candidates is 20, but there are only"),
        ({"membership": Steps((1,), (13,)), "stragglers": WaitForAll()}, "membership.clients asks for 13 clients"),
    ],
)
def test_what_cannot_be_is_refused_before_the_start(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    e = replace(experiment(FedAvg(), stragglers=Buffered(3, 8)), **changes)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=message):
        planned(e, tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Deadline(-1.0),
        lambda: Deadline(1.0, report_goal=0),
        lambda: OverSelect(0.9),
        lambda: OverSelect(1e308),
        lambda: PartialWork(0.0),
        lambda: PartialWork(1.0, least=0),
        lambda: Buffered(0),
        lambda: Buffered(concurrency=0),
        lambda: Buffered(max_staleness=-1),
        lambda: Buffered(exponent=-0.5),
        lambda: Failures(quorum=-1),
        lambda: Steps((2, 1), (3, 3)),
        lambda: Steps((1,), (0,)),
    ],
)
def test_bad_settings(make: object) -> None:
    with pytest.raises(BadInput, match=r"(stragglers|failures|membership)\.\w+ is .*; (it|they|each) must"):
        make()  # type: ignore[operator]


# --- whole runs -----------------------------------------------------------------------------------------------------

WHOLE = {
    "over-select": experiment(FedGA(), stragglers=OverSelect(1.5)),
    "partial": experiment(Scaffold(), stragglers=PartialWork(0.05), failures=Failures(quorum=0)),
    "buffered": experiment(Scaffold(), stragglers=Buffered(3, 7, max_staleness=4)),
    "oort": experiment(FedAvg(), sampler=Oort(5), stragglers=Deadline(0.2), failures=Failures(quorum=0)),
    "power-of-choice": experiment(FedAvg(), sampler=PowerOfChoice(4, 8)),
    "membership": experiment(Scaffold(), membership=Steps((1, 3, 5), (8, 12, 7))),
}


def digest(e: Experiment, folder: Path, name: str, where: Where) -> str:
    for _ in rounds(e, where, run_root=folder, name=name):
        pass
    return load(name, folder).digest()


@pytest.mark.parametrize("name", WHOLE)
def test_a_resumed_run_has_the_bits_of_one_never_stopped(name: str, tmp_path: Path) -> None:
    e = WHOLE[name]
    whole = digest(e, tmp_path, "whole", Where(on="local"))
    for at in (1, 3, 4):  # checkpoints are written after round 3
        for _ in play(create(replace(e, rounds=at), Where(on="local"), run_root=tmp_path, name=f"cut{at}")):
            pass
        for _ in play(extend(load(f"cut{at}", tmp_path), e.rounds)):
            pass
        assert load(f"cut{at}", tmp_path).digest() == whole
    run = load("whole", tmp_path)
    rows = run.table("rounds").to_pylist()
    clock = [row["virtual_s"] for row in rows]
    assert clock == sorted(set(clock)) and clock[0] > 0
    clients = run.table("clients").to_pylist()
    for row in rows:
        mine = [c["outcome"] for c in clients if c["round"] == row["round"]]
        assert row["clients_answered"] == mine.count("answered")
        assert row["clients_late"] == mine.count("late") + mine.count("stale")


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("name", ["over-select", "buffered", "membership"])
def test_hosts_change_no_bit(name: str, tmp_path: Path) -> None:
    here = digest(WHOLE[name], tmp_path, "here", Where(on="local"))
    assert digest(WHOLE[name], tmp_path, "ray", Where(on="ray", hosts=2)) == here


def test_the_caller_retires_and_activates_clients(tmp_path: Path) -> None:
    """SCAFFOLD's c follows; a stop after the change and a resume change nothing."""
    e = replace(experiment(Scaffold(), dtype="float64"), rounds=8)

    def drive(played: Iterator, until: int = 99) -> None:
        for r in played:
            if r.index == 3:
                r.retire([0, 5, 11])
            if r.index == 5:
                r.activate([5])
            if r.index == until:
                return

    drive(rounds(e, Where(on="local"), run_root=tmp_path, name="whole"))
    run = load("whole", tmp_path)
    present = {row["round"]: row["clients_present"] for row in run.table("rounds").to_pylist()}
    assert [present[r] for r in (3, 4, 5, 6, 8)] == [12, 9, 9, 10, 10]
    asked = [(c["round"], c["client"]) for c in run.table("clients").to_pylist()]
    assert not {(r, c) for r, c in asked if c in (0, 11) and r > 3} and {c for r, c in asked if r > 5} >= {5}
    for stop in (4, 6):
        generator = rounds(e, Where(on="local"), run_root=tmp_path, name=f"cut{stop}")
        drive(generator, stop)
        generator.close()
        drive(play(load(f"cut{stop}", tmp_path)))
        assert load(f"cut{stop}", tmp_path).digest() == run.digest()
    tensors = run.checkpoint.tensors()
    plan = planned(e, tmp_path)
    store = StateStore(tmp_path / "s", plan.client_state, 10**9)
    run.checkpoint.restore(store)
    there = tensors["run.present"].numpy()
    assert len(there) == 10
    assert np.abs(tensors["c"].numpy() - store.get(there)["c_i"].mean(0)).max() < 1e-13
    store.close()


def present(folder: Path, name: str) -> list[int]:
    return load(name, folder).table("rounds")["clients_present"].to_pylist()


def test_retiring_is_not_lost_when_the_loop_is_left(tmp_path: Path) -> None:
    e = replace(experiment(FedAvg()), rounds=5)
    generator = rounds(e, Where(on="local"), run_root=tmp_path, name="left")
    for r in generator:
        if r.index == 2:
            r.retire([1, 2])
            break
    generator.close()
    for _ in play(load("left", tmp_path)):
        pass
    assert present(tmp_path, "left") == [12, 12, 10, 10, 10]


def test_a_schedule_leaves_retired_clients_alone(tmp_path: Path) -> None:
    e = replace(experiment(FedAvg(), membership=Steps((1, 4), (8, 10))), rounds=5)
    for r in rounds(e, Where(on="local"), run_root=tmp_path, name="both"):
        if r.index == 2:
            r.retire([0])
    assert present(tmp_path, "both") == [8, 8, 7, 9, 9]


@pytest.mark.parametrize("clients", [[12], [-1], [10**30], 3, ["a"], [0.7], np.ones(12, bool), range(12)])
def test_absurd_clients_cannot_be_retired(clients: object, tmp_path: Path) -> None:
    played = rounds(experiment(FedAvg()), Where(on="local"), run_root=tmp_path, name="a")
    first = next(played)
    with pytest.raises(BadInput):
        first.retire(clients)  # pyright: ignore[reportArgumentType]
    assert next(played).index == 2
    played.close()


@dataclass(frozen=True)
class Draws:
    """A sampler that draws what it is told."""

    clients: tuple[int, ...]
    cohort: int = 3

    def draw(self, pool: Pool) -> Cohort:
        clients = np.array(self.clients)
        return Cohort(clients, np.ones(len(clients)), pool.population)


@pytest.mark.parametrize("clients", [(1, 1, 2), (2, 1), (3, 77), (-1, 2)])
def test_what_no_sampler_may_draw(clients: tuple[int, ...], tmp_path: Path) -> None:
    e = experiment(FedAvg(), sampler=Draws(clients))
    with pytest.raises(BadInput, match="the sampler Draws"):
        next(states(e, tmp_path))


@dataclass(frozen=True)
class Weighs(Draws):
    """One that says what means are divided by."""

    def draw(self, pool: Pool) -> Cohort:
        return replace(super().draw(pool), mean_weight=2.0)


def test_a_mean_weight_is_not_passed_over_in_an_asynchronous_run(tmp_path: Path) -> None:
    e = experiment(FedAvg(), sampler=Weighs((1, 2, 3)), stragglers=Buffered(1, 3))
    with pytest.raises(BadInput, match="the sampler Weighs gives a mean_weight"):
        next(states(e, tmp_path))


@dataclass(frozen=True)
class Broken(Constant):
    """Devices that give no time."""

    def run(self, clients: np.ndarray, load: Load, start_s: float, address: Address) -> Finish:
        return Finish(np.full(len(clients), np.nan), np.ones(len(clients), np.bool_))


@pytest.mark.parametrize("policy", ["wait", "buffered"])
def test_times_must_be_times(policy: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the devices Broken gave times that are negative or not finite"):
        next(states(experiment(FedAvg(), devices=Broken(), stragglers=POLICIES[policy]), tmp_path))


def test_the_whole_server_state_survives_packing(tmp_path: Path) -> None:
    from raygrad.files.packing import unpack_server

    e = WHOLE["buffered"]
    played = [p for p, _ in states(e, tmp_path)][-1]
    packed = pack_server(played.state)
    again = pack_server(unpack_server(planned(e, tmp_path).start(), packed))
    assert packed.keys() == again.keys() and all(torch.equal(packed[n], again[n]) for n in packed)
    assert any(n.startswith("run.flight.models.") for n in packed)


@pytest.mark.parametrize("sampler", [Uniform(6), Available(6)])
def test_the_clock_goes_on_while_nobody_is_there(sampler: object, tmp_path: Path) -> None:
    """An asynchronous server that finds nobody asks again a minute later, until somebody wakes."""
    path = tmp_path / "night.csv"
    rows = [f"{c},{t},{a}" for c in range(12) for t, a in ((0, 0), (150, 1), (1e6, 1))]
    path.write_text("\n".join(["client,time,available", *rows]))
    e = experiment(
        FedAvg(), devices=Trace(str(path)), stragglers=Buffered(3, 8), sampler=sampler, failures=Failures(quorum=0)
    )
    found = [p for p, _ in states(e, tmp_path)]
    assert [p.state.clock_s for p in found[:3]] == [60, 120, 180]
    assert [int(p.talk.inside.sum()) for p in found] == [0, 0, 0, 3, 3, 3]


def test_steps_of_epochs(tmp_path: Path) -> None:
    """Clients with more examples make more steps, and take longer."""
    e = experiment(FedAvg(), local=Local(steps=None, epochs=1.0, batch_size=4), devices=Constant(100.0), rounds=1)
    played = next(iter(states(e, tmp_path)))[0]
    counts = planned(e, tmp_path).population.examples[played.talk.cohort.clients]
    assert played.talk.fates.steps.tolist() == [-(-n // 4) for n in counts.tolist()]
    assert played.talk.fates.seconds == pytest.approx(4 * played.talk.fates.steps / 100)


# --- traces ---------------------------------------------------------------------------------------------------------


def test_a_run_follows_its_trace(tmp_path: Path) -> None:
    """Clients sleep when the trace says so; another file under the same name is another experiment."""
    path = tmp_path / "trace.csv"
    rows = ["client,time,available,speed"]
    rows += (
        [f"{c},0,1,{1 + c}" for c in range(12)] + [f"{c},1,0," for c in range(6)] + [f"{c},1000,1," for c in range(6)]
    )
    path.write_text("\n".join(rows))
    trace = Trace(str(path), examples_per_s=24.0)
    e = experiment(FedAvg(), devices=trace, sampler=Available(12), rounds=4)
    found = list(rounds(e, Where(on="local"), run_root=tmp_path / "runs", name="a"))
    # 12 examples at 24 a second: half a second for the slowest; after the second 1 half of the clients are gone.
    assert [r.virtual_s for r in found] == pytest.approx([0.5, 1.0, 1.0 + 0.5 / 7, 1.0 + 1.0 / 7])
    assert [len(r.clients) for r in found] == [12, 12, 6, 6]
    run = load("a", tmp_path / "runs")
    moved = replace(e, devices=Trace(str(path.rename(tmp_path / "b.csv")), examples_per_s=24.0))
    assert moved.pinned().hash == run.experiment.hash != e.hash
    (tmp_path / "trace.csv").write_text("\n".join([*rows[:-1], "5,2000,1,"]))
    with pytest.raises(BadInput, match="trace.csv"):
        list(play(extend(run, 6)))
    short = experiment(FedAvg(), clients=13, devices=replace(trace, path=str(tmp_path / "b.csv")))
    with pytest.raises(BadInput, match=r"lacks 1 of 13 clients, the first is 12"):
        planned(short, tmp_path)
