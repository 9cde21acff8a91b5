"""Random plans of faults happen to runs of every algorithm, in one process, on the modelled clock, and on real Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold
from raygrad.commands.experiments import change_failures
from raygrad.data.shards import Shards
from raygrad.devices import Exponential, LogNormal
from raygrad.errors import BadInput, BelowQuorum, Diverged, Stopped
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.faults import COSTS_TIME, REMOVES_CLIENT, Fault, Place, random_plan
from raygrad.files.runs import LoadedRun, load
from raygrad.run import create, play
from raygrad.samplers import PowerOfChoice, Uniform
from raygrad.stragglers import Buffered, OverSelect
from raygrad.talk import Failures
from raygrad.verify import problem
from raygrad.verify_faults import WHY, FaultInjector, Trial, contents, disturbed, small, trial, trials, undisturbed

LOCAL = Where(on="local")
SEEDS = range(50)


def experiment(name: str, seed: int) -> Experiment:
    """A small problem; what there is to vary goes by the seed."""
    e = problem(ALGORITHMS[name](), 1 if name == "sgd" else 6)
    if name != "sgd":
        e = replace(e, sampler=Uniform(5), gangs=Gangs(2, ("loop", "vmap")[seed % 4 == 3]))
    return replace(e, seed=seed, weights="equal" if name == "dp" else e.weights)


def check(e: Experiment, where: Where, folder: Path, number: int, seed: int, removes: bool) -> Trial:
    e, where = small(e, 4), replace(where, shard_root=str(folder / ".shards"))
    whole, places = undisturbed(e, replace(where, on="local"), folder)
    plan = random_plan(seed, number, places, removes)
    return trial(e, where, folder, number, plan, whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_plans(seed: int, tmp_path: Path) -> None:
    """50 plans over all algorithms; every other one takes a client out."""
    name = sorted(ALGORITHMS)[seed % len(ALGORITHMS)]
    found = check(experiment(name, seed), LOCAL, tmp_path, seed, 7, removes=seed % 2 == 0)
    assert found.ok and not found.missed, f"{name}: {[str(f) for f in found.plan]}: {found.detail}"


@pytest.mark.parametrize("what", ["nan", "data"])
def test_a_lost_host_computes_an_earlier_phase_again_without_those_that_failed_in_it(
    what: Literal["nan", "data"], tmp_path: Path
) -> None:
    e, where = small(experiment("fedga", 0), 4), replace(LOCAL, shard_root=str(tmp_path / ".shards"))
    whole, places = undisturbed(e, where, tmp_path)
    clients = next(p.clients for p in places if (p.round, p.phase) == (2, 0))
    for client in clients:  # most have another one in their gang
        found = trial(e, where, tmp_path, client, (Fault(what, 2, 0, client), Fault("host", 2, 1)), whole)
        assert found.ok and not found.missed, found.detail


@pytest.mark.parametrize("seed", range(10))
def test_random_plans_on_the_modelled_clock(seed: int, tmp_path: Path) -> None:
    devices = (LogNormal(sigma=1.0, vary="round"), Exponential(dropout=0.1))[seed % 2]
    policy = (OverSelect(1.2), Buffered(3, 4), Buffered(2, 5, max_staleness=2))[seed % 3]
    e = experiment(("fedavg", "scaffold")[seed // 2 % 2], seed)
    found = check(replace(e, devices=devices, stragglers=policy), LOCAL, tmp_path, seed, 11, removes=seed % 2 == 0)
    assert found.ok and not found.missed, f"{[str(f) for f in found.plan]}: {found.detail}"


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("name", ["fedga", "scaffold"])
def test_random_plans_on_ray(name: str, tmp_path: Path) -> None:
    """Hosts are really killed, also by the client that a plan says kills them."""
    e = replace(problem(ALGORITHMS[name](), 6), sampler=Uniform(5), gangs=Gangs(2, "loop"))
    found = list(trials(e, Where(on="ray", hosts=2), tmp_path, plans=2, seed=5))
    assert [t.ok for t in found] == [True, True], [(list(map(str, t.plan)), t.detail) for t in found]


def plays(e: Experiment, folder: Path, *plan: Fault) -> LoadedRun:
    run, _ = disturbed(e, LOCAL, folder, f"run{len(list(folder.iterdir()))}", list(plan))
    return run


def outcomes(run: LoadedRun) -> dict[tuple[int, int], str]:
    return {(r["round"], r["client"]): r["outcome"] for r in run.table("clients").to_pylist()}


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize(("what", "named"), [("nan", "rejected"), ("data", "damaged"), ("killer", "killer")])
def test_a_client_that_fails_is_left_out_and_named(what: str, named: str, phase: int, tmp_path: Path) -> None:
    e = small(experiment("fedga", 0), 3)
    whole = plays(e, tmp_path)
    client = sorted(c for r, c in outcomes(whole) if r == 2)[3]
    fault = Fault(what, 2, phase, client)  # pyright: ignore[reportArgumentType]
    run = plays(e, tmp_path, fault)
    assert {k: v for k, v in outcomes(run).items() if v != "answered"} == {(2, client): named}
    absent = plays(e, tmp_path, replace(fault, what="absent"))
    assert contents(run, WHY) == contents(absent, WHY) != contents(whole, WHY)
    row = run.table("rounds").to_pylist()[1]
    assert (row["clients_asked"], row["clients_answered"]) == (5, 4)
    assert row["clients_rejected" if what == "nan" else "clients_failed"] == 1
    if what == "killer":
        lost = [o for o in run.table("operations").to_pylist() if o["outcome"].startswith("lost")]
        assert len(lost) >= 6  # three attempts, then halves


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("nan", Diverged, r"an update \(injected\) of local is not finite in round 2 at client \d"),
        ("data", Stopped, r"the shard of client \d is damaged.*failures.data=skip"),
        (
            "killer",
            Stopped,
            r"gang \d \(clients .*\) of round 2 was lost 3 times, the last: .*killer=skip",
        ),
    ],
)
def test_a_client_that_fails_stops_the_run_unless_told_otherwise(
    what: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    e = replace(small(experiment("fedavg", 0), 3), failures=Failures())
    client = next(c for r, c in outcomes(plays(e, tmp_path)) if r == 2)
    with pytest.raises(error, match=message):
        plays(e, tmp_path, Fault(what, 2, 0, client))  # pyright: ignore[reportArgumentType]


def test_too_few_answers_end_the_run_with_4(tmp_path: Path) -> None:
    e = replace(small(experiment("fedavg", 0), 3), failures=Failures(quorum=4, nan="skip"))
    clients = sorted(c for r, c in outcomes(plays(e, tmp_path)) if r == 2)
    one, two = (Fault("nan", 2, 0, c) for c in clients[:2])
    assert outcomes(plays(e, tmp_path, one))[2, clients[0]] == "rejected"
    with pytest.raises(BelowQuorum, match="3 of 5 clients answered in round 2; failures.quorum is 4") as caught:
        plays(e, tmp_path, one, two)
    assert caught.value.exit_code == 4


def test_the_harness_sees_what_is_wrong(tmp_path: Path) -> None:
    """A run whose model differs in a bit, or that lost a client without a word, is not the run it should be."""
    e = small(experiment("fedavg", 0), 3)
    whole = plays(e, tmp_path)
    client = next(c for r, c in outcomes(whole) if r == 2)
    other = plays(replace(e, algorithm=FedAvg(lr=0.1 + 1e-9)), tmp_path)
    assert contents(other) != contents(whole)
    wrong = trial(e, LOCAL, tmp_path, 1, (Fault("absent", 2, 0, client),), whole)
    assert not wrong.ok


def test_plans_are_a_function_of_seed_and_number() -> None:
    places = [Place(1, 0, 3, (0, 1, 2, 3, 4)), Place(2, 1, 2, (5, 6, 7, 8))]
    plans = [random_plan(3, n, places, removes=True) for n in range(200)]
    assert plans == [random_plan(3, n, places, removes=True) for n in range(200)]
    faults = [f for plan in plans for f in plan]
    assert {f.what for f in faults} == {*COSTS_TIME, *REMOVES_CLIENT}
    assert {(f.round, f.phase, f.gang) for f in faults} == {(1, 0, 0), (1, 0, 1), (1, 0, 2), (2, 1, 0), (2, 1, 1)}
    assert all(f.client in places[f.round - 1].clients for f in faults if f.client is not None)
    assert len(set(plans)) > 150


def test_faults_are_planned_where_they_can_happen_and_counted_if_not(tmp_path: Path) -> None:
    """A sampler that asks first has phases of its own; an asynchronous run strikes where clients began."""
    problem = experiment("fedavg", 0)
    first = replace(problem, sampler=PowerOfChoice(3, candidates=5), probe=replace(problem.probe, every=1))
    later = replace(problem, devices=Exponential(), stragglers=Buffered(3, 4))
    for number, e in enumerate((first, later)):
        found = list(trials(e, LOCAL, tmp_path / str(number), plans=6, seed=2))
        assert all(t.ok for t in found), [t.detail for t in found]
        assert [t.missed for t in found] == [0] * 6
    whole, places = undisturbed(small(first, 4), LOCAL, tmp_path / "whole")
    assert {p.phase for p in places} == {0} and {p.round for p in places} == {1, 2, 3, 4}
    nowhere = trial(small(first, 4), LOCAL, tmp_path / "whole", 1, (Fault("host", 2, 7), Fault("host", 2, 0)), whole)
    assert nowhere.ok and nowhere.missed == 1 and "1 of 2 faults never happened" in nowhere.detail


def test_evaluations_say_whom_they_lack(tmp_path: Path) -> None:
    """A damaged validation part leaves the mean, and the count says so."""
    e = small(experiment("fedavg", 0), 2)
    run = create(e, LOCAL, run_root=tmp_path, name="damaged")
    (file,) = tmp_path.glob(".shards/**/validation.arrow")
    x, _ = Shards.open(file.parent).read("validation", 3)
    data = bytearray(file.read_bytes())
    data[data.index(x.tobytes()) + 3] ^= 1
    file.write_bytes(data)
    for _ in play(run):
        pass
    rows = load(run.folder).table("metrics").to_pylist()
    assert {(r["round"], r["value"]) for r in rows if r["metric"] == "clients_missing"} == {(2, 1.0)}


def test_scaffolds_c_with_failing_clients(tmp_path: Path) -> None:
    from raygrad.files.states import StateStore
    from raygrad.plan import make_plan

    e = small(replace(problem(Scaffold(), 6), sampler=Uniform(5), weights="equal"), 4)
    clients = [min(c for r, c in outcomes(plays(e, tmp_path)) if r == i) for i in (1, 2, 3)]
    run = plays(e, tmp_path, *(Fault(w, i + 1, 0, clients[i]) for i, w in enumerate(("nan", "killer", "data"))))  # type: ignore[arg-type]
    store = StateStore(tmp_path / "s", make_plan(e, LOCAL, tmp_path / ".shards").client_state, 10**9)
    run.checkpoint.restore(store)
    c = run.checkpoint.tensors()["c"].numpy()
    assert np.abs(c - store.get(np.arange(6))["c_i"].mean(0)).max() < 1e-13 and np.abs(c).max() > 1e-3
    store.close()


def test_fedga_asks_only_those_that_answered(tmp_path: Path) -> None:
    """Who fails in the first phase is in neither mean."""
    e = small(replace(problem(FedGA(), 6), sampler=Uniform(5)), 1)
    client = next(c for r, c in outcomes(plays(e, tmp_path)) if r == 1)
    run = plays(e, tmp_path, Fault("nan", 1, 0, client))
    work = [(o["phase"], o["clients"]) for o in run.table("operations").to_pylist() if o["work"] == "local"]
    assert sum(n for _, n in work) == 4


def test_a_shard_that_is_really_damaged(tmp_path: Path) -> None:
    """Bytes of one client's examples change on disk: it is named, and leaves its rounds or the run stops."""
    e = small(experiment("fedavg", 0), 3)
    whole = plays(e, tmp_path)
    client = next(c for r, c in outcomes(whole) if r == 2)
    run = create(e, LOCAL, run_root=tmp_path, name="damaged")
    (file,) = tmp_path.glob(".shards/**/train.arrow")
    x, _ = Shards.open(file.parent).read("train", client)
    data = bytearray(file.read_bytes())
    at = data.index(x.tobytes())
    data[at + 3] ^= 1
    file.write_bytes(data)
    for _ in play(run):
        pass
    asked = [r for r, c in outcomes(whole) if c == client]
    assert {k for k, v in outcomes(load(run.folder)).items() if v == "damaged"} == {(r, client) for r in asked}
    stops = create(replace(e, failures=Failures()), LOCAL, run_root=tmp_path, name="stops")
    with pytest.raises(Stopped, match=rf"train.arrow: the shard of client {client} is damaged .its checksum"):
        for _ in play(stops):
            pass
    data[at + 3] ^= 1
    file.write_bytes(data)
    for _ in play(stops):
        pass
    assert load(stops.folder).digest() == plays(replace(e, failures=Failures()), tmp_path).digest()


def test_a_stopped_run_goes_on_without_the_client_if_told_so(tmp_path: Path) -> None:
    """What happens to failing clients may be changed on a resume; nothing else may."""
    e = small(experiment("fedavg", 0), 4)
    client = next(c for r, c in outcomes(plays(e, tmp_path)) if r == 3)
    fault = Fault("nan", 3, 0, client)
    expected = plays(e, tmp_path, fault)
    run = create(replace(e, failures=Failures()), LOCAL, run_root=tmp_path, name="stops")
    injector = FaultInjector([fault], tmp_path / "stash")
    with pytest.raises(Diverged, match="resume with --set failures.nan=skip"):
        list(play(run, injector=injector))
    told = replace(
        load(run.folder), experiment=change_failures(run.experiment, ["failures.nan=skip", "failures.quorum=0"])
    )
    list(play(told, injector=injector))
    assert load(run.folder).digest() == expected.digest()
    assert load(run.folder).experiment.failures.nan == "skip"
    with pytest.raises(BadInput, match=r"--set algorithm.lr: a run goes on as it began"):
        change_failures(run.experiment, ["algorithm.lr=0.2"])
