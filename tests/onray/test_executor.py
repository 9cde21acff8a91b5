"""Host actors: lost ones cost time, never bits; what a client does wrong is named."""

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Answer, Cohort, Task
from raygrad.driver import Executor
from raygrad.errors import BadInput, Diverged, Stopped
from raygrad.executors.faulty import Faulty
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.faults import Fault, What
from raygrad.files.states import StateStore
from raygrad.gang import Gang, Part, Phase, cut, parted
from raygrad.onray import schedule
from raygrad.onray.cluster import check_room
from raygrad.onray.executor import RayExecutor
from raygrad.onray.loss import unreachable
from raygrad.onray.schedule import Host
from raygrad.plan import Plan, make_plan
from raygrad.talk import Done, ServerState
from raygrad.verify import problem

pytestmark = pytest.mark.usefixtures("ray_local")


def drawn(plan: Plan, round: int) -> int:
    """The first client of a round's cohort."""
    driver = plan.driver(InProcess(plan.spec), StateStore(Path("unused"), {}, 1))
    cohort = driver.sampler.draw(driver.pool(plan.start(), round, driver.sampler.cohort))
    assert isinstance(cohort, Cohort)
    return int(cohort.clients[0])


def alone(plan: Plan) -> list[Gang]:
    """Every client of the population in a gang of its own, in a first phase."""
    weights, everybody = plan.population.weights, np.ones(len(plan.population), np.bool_)
    return parted(cut(np.arange(len(weights)), weights, weights, 1), everybody, everybody)


def planned(e: Experiment, folder: Path) -> Plan:
    return make_plan(e, Where(on="local"), folder)


def play(plan: Plan, executor: Executor, rounds: int, folder: Path) -> tuple[ServerState, list[str]]:
    """The state after some rounds, and the outcome of every gang call."""
    e = plan.experiment
    store = StateStore(folder / "states", plan.client_state, 10**9)
    driver = plan.driver(executor, store)
    state, outcomes = ServerState(e.algorithm.init(plan.x, plan.population)), []
    for index in range(1, rounds + 1):
        played = driver.play(state, index)
        state = played.state
        outcomes += [o.outcome for o in played.talk.operations]
        for clients, rows in played.talk.states:
            store.put(clients, rows)
    store.close()
    return state, outcomes


@dataclass
class KillsAfter:
    """Kills one host each time the given phase is over."""

    inner: RayExecutor
    phase: int

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        yield from self.inner.run(phase, gangs)
        if phase.number == self.phase:
            named = [h for h in self.inner.pool.hosts if h.name]
            ray.kill(named[0].actor)


@pytest.mark.parametrize(
    ("name", "phase", "small"), [("fedga", 0, 0), ("fedga", 0, 1 << 20), ("fedga", 1, 0), ("scaffold", 0, 1 << 20)]
)
def test_a_killed_host_changes_no_bit(
    name: str, phase: int, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether phases are put (`small` 0) or travel in the calls."""
    monkeypatch.setattr("raygrad.onray.executor.SMALL_PHASE", small)
    plan = planned(problem(ALGORITHMS[name]()), tmp_path)
    expected, _ = play(plan, InProcess(plan.spec), 3, tmp_path)
    executor = RayExecutor(plan.spec, 2)
    found, outcomes = play(plan, KillsAfter(executor, phase), 3, tmp_path)
    executor.close()
    assert torch.equal(found.algorithm.x, expected.algorithm.x)
    assert any(o.startswith("lost") for o in outcomes)


@dataclass(frozen=True)
class DiesOnce(FedGA):
    """One client takes its host down in phase `phase`, the first time."""

    marker: str = ""
    phase: str = "local"
    victim: float = 0.0  # the number of examples by which the client is recognised
    always: bool = False

    def _maybe(self, task: Task, phase: str) -> None:
        path = Path(self.marker)
        if phase == self.phase and task.examples == self.victim and (self.always or not path.exists()):
            path.touch()
            os._exit(1)

    def gradient(self, task: Task, x: Tensor) -> Answer:
        self._maybe(task, "gradient")
        return super().gradient(task, x)

    def local(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        self._maybe(task, "local")
        return super().local(task, x, g_mean, g)


@pytest.mark.parametrize("phase", ["gradient", "local"])
def test_a_host_that_dies_at_work(phase: str, tmp_path: Path) -> None:
    plain = planned(problem(FedGA()), tmp_path)
    expected, _ = play(plain, InProcess(plain.spec), 2, tmp_path)
    victim = float(plain.shards.examples[drawn(plain, 1)])
    plan = planned(problem(DiesOnce(marker=str(tmp_path / "died"), phase=phase, victim=victim)), tmp_path)
    executor = RayExecutor(plan.spec, 2)
    found, outcomes = play(plan, executor, 2, tmp_path)
    assert len(executor.pool.hosts) == 2
    executor.close()
    assert (tmp_path / "died").exists()
    assert torch.equal(found.algorithm.x, expected.algorithm.x)
    assert any(o.startswith("lost") for o in outcomes)


def test_a_gang_that_is_lost_three_times_stops_the_run(tmp_path: Path) -> None:
    plan = planned(problem(DiesOnce(marker=str(tmp_path / "m"), phase="gradient", victim=-1, always=True)), tmp_path)
    victim = float(plan.shards.examples[drawn(plan, 1)])
    plan = planned(problem(replace(plan.experiment.algorithm, victim=victim)), tmp_path)  # pyright: ignore[reportArgumentType]
    executor = RayExecutor(plan.spec, 2)
    with pytest.raises(
        Stopped, match=r"gang \d+ \(clients .*\) of round 1 was lost 3 times, the last: lost for good: ActorDied"
    ):
        play(plan, executor, 1, tmp_path)
    executor.close()


@dataclass(frozen=True)
class GivesNaN(FedAvg):
    """Every client answers NaN from round 2 on."""

    def local(self, task: Task, x: Tensor) -> Answer:
        answer = super().local(task, x)
        return Answer({"delta": answer.update["delta"] * float("nan")}) if task.round == 2 else answer


@pytest.mark.parametrize("on", ["local", "ray"])
def test_nan_is_found_on_the_host_with_round_and_client(on: str, tmp_path: Path) -> None:
    plan = planned(problem(GivesNaN()), tmp_path)
    executor = InProcess(plan.spec) if on == "local" else RayExecutor(plan.spec, 2)
    with pytest.raises(Diverged) as caught:
        play(plan, executor, 3, tmp_path)
    executor.close()
    assert caught.value.round == 2
    assert caught.value.client == drawn(plan, 2)


def test_other_numerics_are_refused_or_marked(tmp_path: Path) -> None:
    plan = planned(problem(FedAvg()), tmp_path)
    recorded = InProcess(plan.spec).numerics | {"canary": "0" * 64}
    with pytest.raises(BadInput, match="would compute other bits"):
        RayExecutor(plan.spec, 1, numerics=recorded)
    with pytest.raises(BadInput, match="would compute other bits"):
        InProcess(plan.spec, recorded)
    executor = RayExecutor(plan.spec, 1, numerics=recorded, strict=False)
    assert len(executor.odd_hosts) == 1
    executor.close()


@dataclass(frozen=True)
class FailsToBuild:
    """A model that only the driver can build."""

    driver: int = 0

    def build(self, shape: tuple[int, ...], classes: int | None) -> torch.nn.Module:
        if os.getpid() != self.driver:
            raise RuntimeError("no such layer here")
        return torch.nn.Linear(shape[0], classes or 1)


def test_an_error_in_the_users_code_on_a_host_arrives_as_what_it_is(tmp_path: Path) -> None:
    plan = planned(replace(problem(FedAvg()), model=FailsToBuild(os.getpid())), tmp_path)
    with pytest.raises(RuntimeError, match="no such layer here"):
        RayExecutor(plan.spec, 2)


def test_a_host_of_other_numerics_is_left_out(tmp_path: Path) -> None:
    """The run goes on with the hosts that compute the same bits."""
    plan = planned(problem(FedAvg()), tmp_path)
    executor = RayExecutor(plan.spec, 2)
    while executor.pool.hellos:
        ready, _ = ray.wait(list(executor.pool.hellos), timeout=60)
        executor.pool.greet(ready[0])
    odd = Host(executor.pool._actor_class.remote())
    executor.pool.hosts.append(odd)
    assert executor.numerics is not None
    reference = ray.put(("elsewhere:1", executor.numerics | {"canary": "0" * 64}))
    executor.pool.hellos[reference] = odd
    executor.pool.greet(reference)
    assert len(executor.pool.hosts) == 2
    assert odd not in executor.pool.hosts
    play(plan, executor, 1, tmp_path)
    executor.close()


def test_hosts_take_fractions_of_gpus(tmp_path: Path) -> None:
    plan = planned(problem(FedAvg()), tmp_path)
    before = ray.available_resources().get("GPU", 0)
    executor = RayExecutor(plan.spec, 4, gpus_per_host=0.25)
    play(plan, executor, 1, tmp_path)
    assert ray.available_resources().get("GPU", 0) == pytest.approx(before - 1.0)
    executor.close()


def test_more_hosts_than_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="hosts is 5, each needs 1 CPU; this Ray has 4, so at most 4 fit"):
        check_room(Where(hosts=5))
    with pytest.raises(BadInput, match=r"hosts is 3, each needs 1 GPU; this Ray has 2, so at most 2 fit"):
        check_room(Where(hosts=3, gpus_per_host=1, device="cpu"))


def test_gangs_in_flight_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of gangs is read no further ahead than the hosts can hold."""
    monkeypatch.setattr(schedule, "GAIN_S", 1e9)  # each gang once, however slow the machine makes a host
    plan = planned(replace(problem(FedAvg(), clients=40)), tmp_path)
    plan = replace(plan, experiment=replace(plan.experiment, gangs=Gangs(1, "loop")))
    executor = RayExecutor(plan.spec, 2)

    taken = answered = ahead = 0
    gangs = alone(plan)

    def source() -> Iterator[Gang]:
        nonlocal taken
        for gang in gangs:
            taken += 1
            yield gang

    phase = Phase(("test", 1), 0, FedAvg().local, {"x": plan.x.numpy()}, {}, (), "train", 1.0, None, True)
    for _ in executor.run(phase, source()):
        answered += 1
        ahead = max(ahead, taken - answered)
    executor.close()
    assert answered == 40
    assert ahead <= 16


@dataclass(frozen=True)
class Waits(FedAvg):
    """Each client says who it is at work with, and takes a moment."""

    folder: str = ""

    def local(self, task: Task, x: Tensor) -> Answer:
        (Path(self.folder) / str(os.getpid())).touch()
        sleep(0.3)
        return super().local(task, x)


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_stopped_host_is_killed_and_replaced(hosts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody else there its gang is owed again; with another host nobody waits for the kill."""
    monkeypatch.setattr(schedule, "HUNG_S", 2.0)
    monkeypatch.setattr(schedule, "HUNG_TIMES", 3.0)
    at_work = tmp_path / "work"
    at_work.mkdir()
    plain = planned(problem(FedAvg(), clients=4), tmp_path)
    expected, _ = play(plain, InProcess(plain.spec), 2, tmp_path / "plain")
    plan = planned(problem(Waits(folder=str(at_work)), clients=4), tmp_path)
    executor = RayExecutor(plan.spec, hosts)
    while executor.pool.hellos:
        executor.pool.greet(ray.wait(list(executor.pool.hellos))[0][0])
    play(plan, executor, 1, tmp_path / "first")  # how long a gang takes is learned
    stopped = executor.pool.hosts[0]
    assert stopped.name is not None
    pid = int(stopped.name.split(":")[1])
    (at_work / str(pid)).unlink(missing_ok=True)

    def stop() -> None:
        while not (at_work / str(pid)).exists():
            sleep(0.01)
        os.kill(pid, signal.SIGSTOP)

    stopper = Thread(target=stop, daemon=True)
    stopper.start()
    found, outcomes = play(plan, executor, 2, tmp_path / "second")
    stopper.join(timeout=60)
    assert torch.equal(found.algorithm.x, expected.algorithm.x)
    if hosts == 1:
        assert any(o.startswith("hung") for o in outcomes)
    else:
        assert any(o == "superseded" or o.startswith("hung") for o in outcomes)
        deadline = perf_counter() + 60
        while stopped in executor.pool.hosts and perf_counter() < deadline:
            play(plan, executor, 1, tmp_path / "more")
    assert stopped not in executor.pool.hosts
    assert len(executor.pool.hosts) == hosts
    executor.close()


def test_a_phase_that_the_store_lost_is_put_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hosts are well and stay."""
    monkeypatch.setattr("raygrad.onray.executor.SMALL_PHASE", 0)
    plan = planned(problem(FedGA()), tmp_path)
    expected, _ = play(plan, InProcess(plan.spec), 2, tmp_path / "here")
    executor = RayExecutor(plan.spec, 2)
    gone = unreachable()
    put, broken = executor._reference, []

    def reference(number: int) -> object:
        if number not in executor._references and len(broken) < 2:
            broken.append(number)
            executor._references[number] = gone
        return put(number)

    monkeypatch.setattr(executor, "_reference", reference)
    before = list(executor.pool.hosts)
    found, outcomes = play(plan, executor, 2, tmp_path / "there")
    assert torch.equal(found.algorithm.x, expected.algorithm.x)
    assert "lost: OwnerDiedError" in outcomes
    assert executor.pool.hosts == before
    executor.close()


@pytest.mark.parametrize(
    ("what", "lost"),
    [("host", "lost: ActorDiedError"), ("node", "lost: ActorDiedError"), ("object", "lost: ObjectLostError")],
)
def test_planned_faults_really_happen(what: What, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With phases that are put, in the second phase of FedGA, after one gang was answered."""
    monkeypatch.setattr(schedule, "GAIN_S", 1e9)  # the gang that is lost is not at work elsewhere, too
    monkeypatch.setattr("raygrad.onray.executor.SMALL_PHASE", 0)
    plan = planned(replace(problem(FedGA(), 6), gangs=Gangs(1, "loop")), tmp_path)
    expected, _ = play(plan, InProcess(plan.spec), 2, tmp_path / "here")
    executor = RayExecutor(plan.spec, 2)
    while executor.pool.hellos:
        executor.pool.greet(ray.wait(list(executor.pool.hellos))[0][0])
    before = list(executor.pool.hosts)
    faults = [Fault(what, 2, 1, gang=1)]
    faulty = Faulty(executor, faults, pytest.fail, pytest.fail)
    found, outcomes = play(plan, faulty, 2, tmp_path / "there")
    assert torch.equal(found.algorithm.x, expected.algorithm.x)
    assert faults == [] and lost in outcomes
    assert sum(h in executor.pool.hosts for h in before) == {"host": 1, "node": 0, "object": 2}[what]
    executor.close()


def test_a_gang_is_not_blamed_for_what_others_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and phases are lost, and twice all hosts, in one phase: no gang is given up."""
    monkeypatch.setattr("raygrad.onray.executor.SMALL_PHASE", 0)
    plan = planned(replace(problem(FedGA(), 6), gangs=Gangs(1, "loop")), tmp_path)
    expected, _ = play(plan, InProcess(plan.spec), 2, tmp_path / "here")
    executor = RayExecutor(plan.spec, 2)
    faults = [Fault(what, 2, 1, gang=gang) for gang in (1, 2, 3) for what in ("object", "node")][:-1]
    found, outcomes = play(plan, Faulty(executor, faults, pytest.fail, pytest.fail), 2, tmp_path / "there")
    executor.close()
    assert torch.equal(found.algorithm.x, expected.algorithm.x)
    assert faults == [] and sum(o.startswith("lost") for o in outcomes) >= 5


def test_those_that_wait_at_a_host_are_not_blamed_for_its_death(tmp_path: Path) -> None:
    """A client kills each of its hosts; what waited behind it is never given up."""
    plan = planned(problem(DiesOnce(marker=str(tmp_path / "m"), phase="gradient", victim=-1, always=True)), tmp_path)
    examples = plan.shards.examples
    algorithm = replace(plan.experiment.algorithm, victim=float(examples[0]))  # pyright: ignore[reportArgumentType]
    phase = Phase(("test", 1), 0, algorithm.gradient, {"x": plan.x.numpy()}, {}, (), "train", 1.0, None, True)
    killer, *others = alone(plan)
    gangs = [killer, *(g for g in others if examples[g.clients[0]] != examples[0])][:3]
    executor = RayExecutor(plan.spec, 1)
    done = list(executor.run(phase, gangs))
    executor.close()
    ends = {d.gang: d.operation.outcome for d in done}  # the last of each
    assert ends == {gangs[0].index: "lost for good: ActorDiedError"} | {g.index: "answered" for g in gangs[1:]}
    lost = [d.gang for d in done if d.operation.outcome.startswith("lost")]
    assert lost.count(killer.index) == 3
    assert len(lost) > 3  # somebody waited there


def test_a_gang_that_is_lost_for_good_is_said_to_be(tmp_path: Path) -> None:
    """The others are answered all the same, and hosts are there for the next phase."""
    plan = planned(problem(DiesOnce(marker=str(tmp_path / "m"), phase="gradient", victim=-1, always=True)), tmp_path)
    examples = plan.shards.examples
    algorithm = replace(plan.experiment.algorithm, victim=float(examples[0]))  # pyright: ignore[reportArgumentType]
    executor = RayExecutor(plan.spec, 2)
    parts = [np.flatnonzero(examples == examples[0]), np.flatnonzero(examples != examples[0])]
    part = [Part(np.ones(len(clients), np.bool_), np.arange(len(clients))) for clients in parts]
    gangs = [Gang(i, c, np.ones(len(c)), np.ones(len(c)), (part[i],)) for i, c in enumerate(parts)]
    for round, work, lost in ((1, algorithm.gradient, True), (2, FedAvg().local, False)):
        phase = Phase(("test", round), 0, work, {"x": plan.x.numpy()}, {}, (), "train", 1.0, None, True)
        done = list(executor.run(phase, iter(gangs)))
        assert sorted(d.gang for d in done if d.reply is not None) == ([1] if lost else [0, 1])
        if lost:
            last = [d for d in done if d.gang == 0][-1]
            assert (last.operation.attempt, last.operation.outcome) == (3, "lost for good: ActorDiedError")
    executor.close()


def test_a_phase_that_is_left_early_costs_the_next_one_nothing_but_time(tmp_path: Path) -> None:
    """Answers of the first are dropped: they are not mistaken for those of the second."""
    plan = planned(problem(FedAvg()), tmp_path)
    executor = RayExecutor(plan.spec, 2)
    gangs = alone(plan)
    replies = []
    for conversation, factor in ((("test", 1), 1.0), (("test", 2), 0.5), (("test", 2), 0.5)):
        phase = Phase(conversation, 0, FedAvg().local, {"x": plan.x.numpy()}, {}, (), "train", factor, None, True)
        done = executor.run(phase, iter(gangs))
        if factor == 1.0:
            next(done)
            done.close()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            replies.append({d.gang: d.reply.totals["delta"] for d in done if d.reply is not None})
    here = InProcess(plan.spec)
    expected = {d.gang: d.reply.totals["delta"] for d in here.run(phase, gangs) if d.reply is not None}
    for found in replies:
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[i], expected[i]) for i in expected)
    executor.close()
