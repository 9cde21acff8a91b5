"""Who is asked: inclusion probabilities, unbiased means, who is never drawn, and what samplers learn.

Statistical bounds are 5 standard errors of what is counted: under a right sampler one of the comparisons here fails
once in 1.7 million draws, and since the seeds are fixed it either always does or never.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raygrad.algorithms.fedavg import FedAvg
from raygrad.contract import Ask, Cohort, Learns, Pool, Population, Replies, Sampler, Told
from raygrad.devices import Exponential, LogNormal
from raygrad.driver import Driver
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Where
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.membership import Steps
from raygrad.plan import Plan, make_plan
from raygrad.run import create, extend, play, rounds
from raygrad.samplers import SAMPLERS, Available, Cyclic, Oort, PowerOfChoice, Uniform, Weighted
from raygrad.stragglers import Buffered, OverSelect
from raygrad.talk import Failures
from raygrad.verify import problem

ERRORS = 5.0
"""How many standard errors a mean may be off."""
EXAMPLES = np.array([3, 1, 8, 2, 5, 1, 4, 6, 2, 8], np.int64)


def pool(
    sampler: Sampler,
    round: int = 1,
    seed: int = 0,
    examples: np.ndarray = EXAMPLES,
    weights: np.ndarray | None = None,
    present: np.ndarray | None = None,
    busy: tuple[int, ...] | np.ndarray = (),
    away: tuple[int, ...] = (),
    memory: Mapping[str, Tensor] | None = None,
    count: int | None = None,
) -> Pool:
    """What a sampler is told; the weights are the examples, `busy` are at work and `away` asleep."""
    population = Population(examples, examples.astype(np.float64) if weights is None else weights, present)
    known = memory if memory is not None else sampler.start(population) if isinstance(sampler, Learns) else {}
    return Pool(
        round, seed, population, sampler.cohort if count is None else count, torch.zeros(2),
        np.asarray(busy, np.int64), lambda clients: ~np.isin(clients, away), known,
    )  # fmt: skip


def drawn(sampler: Sampler, pool: Pool) -> Cohort:
    """A draw; clients that are asked for their loss answer their number modulo 7."""
    found = sampler.draw(pool)
    if not isinstance(found, Generator):
        return found
    ask = next(found)
    losses = (ask.cohort.clients % 7).astype(np.float64)
    try:
        found.send(Replies(ask.cohort, {}, {"loss": losses}, {}, torch.float32))
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a second phase")


def inclusions(sampler: Sampler, draws: int, **given: Any) -> np.ndarray:
    """How often each client was in a cohort [N], over `draws` rounds."""
    return sum(
        np.bincount(drawn(sampler, pool(sampler, round, **given)).clients, minlength=len(EXAMPLES))
        for round in range(1, draws + 1)
    )  # pyright: ignore[reportReturnType]


def agrees(counts: np.ndarray, draws: int, probability: np.ndarray | float) -> bool:
    """Whether counts of independent events of these probabilities are within 5 standard errors; 0 and 1 exactly."""
    error = np.sqrt(draws * np.asarray(probability) * (1 - np.asarray(probability)))
    return bool((np.abs(counts - draws * np.asarray(probability)) <= ERRORS * error + 1e-9).all())


# --- what holds for all ---------------------------------------------------------------------------------------------

ALL = {
    "uniform": Uniform(4),
    "unbiased": Uniform(4, unbiased=True),
    "weighted": Weighted(4),
    "weighted-without": Weighted(4, replace=False),
    "cyclic": Cyclic(4),
    "in-order": Cyclic(4, shuffled=False),
    "available": Available(4),
    "power-of-choice": PowerOfChoice(4, 6),
    "oort": Oort(4),
}


def test_every_sampler_is_tested() -> None:
    assert {type(s) for s in ALL.values()} == set(SAMPLERS.values())


@pytest.mark.parametrize("name", ALL)
def test_a_draw_is_a_function_of_seed_and_round(name: str) -> None:
    sampler = ALL[name]
    found = {(seed, r): drawn(sampler, pool(sampler, r, seed)) for seed in (0, 1) for r in range(1, 9)}
    for (seed, r), cohort in found.items():
        again = drawn(sampler, pool(sampler, r, seed))
        assert np.array_equal(cohort.clients, again.clients) and np.array_equal(cohort.weights, again.weights)
        assert cohort.divisor == again.divisor
    by_round = {tuple(found[0, r].clients.tolist()) for r in range(1, 9)}
    assert len(by_round) >= 4
    by_seed = [tuple(found[seed, 3].clients.tolist()) + tuple(found[seed, 4].clients.tolist()) for seed in (0, 1)]
    assert (by_seed[0] == by_seed[1]) == (name == "in-order")


@pytest.mark.parametrize("name", ALL)
def test_draws_of_one_round_differ(name: str) -> None:
    """In an asynchronous round clients are drawn several times."""
    sampler = ALL[name]
    found = [drawn(sampler, replace(pool(sampler, 3), draw=d)).clients.tolist() for d in range(6)]
    assert len({tuple(c) for c in found}) >= 3


@pytest.mark.parametrize("name", ALL)
def test_only_present_clients_that_are_not_at_work(name: str) -> None:
    """Ascending, each once, as many as are asked for or as there are."""
    sampler = ALL[name]
    present, busy = np.array([0, 2, 3, 5, 7, 8, 9]), (2, 8, 4)  # 4 was at work when it left
    seen = set()
    for r in range(1, 60):
        cohort = drawn(sampler, pool(sampler, r, present=present, busy=busy))
        clients = cohort.clients.tolist()
        assert clients == sorted(set(clients)) and cohort.clients.dtype == np.int64
        assert set(clients) <= {0, 3, 5, 7, 9}
        assert len(clients) == 4 or (name == "weighted" and cohort.weights.sum() == 4)
        assert len(cohort.weights) == len(clients) and cohort.weights.dtype == np.float64
        seen |= set(clients)
        few = drawn(sampler, pool(sampler, r, present=present, busy=(*busy, 5, 7)))
        assert few.clients.tolist() == [0, 3, 9] or (name == "weighted" and set(few.clients.tolist()) <= {0, 3, 9})
    assert seen == {0, 3, 5, 7, 9} or name == "power-of-choice"  # which may always find 7 and 0 easier


@pytest.mark.parametrize("name", ALL)
def test_nobody_is_drawn_where_everybody_is_at_work(name: str) -> None:
    assert len(drawn(ALL[name], pool(ALL[name], 2, busy=np.arange(10)))) == 0


@pytest.mark.parametrize("name", ALL)
def test_a_client_at_work_is_never_drawn_from_a_million(name: str) -> None:
    """The weights are such that those at work, 200 of the largest, would be drawn often."""
    n, sampler = 1_000_000, ALL[name]
    sampler = PowerOfChoice(100, 200) if isinstance(sampler, PowerOfChoice) else replace(sampler, cohort=100)  # type: ignore[type-var]
    examples = np.ones(n, np.int64)
    busy = np.arange(0, n, n // 200)
    examples[busy] = 10_000
    for r in (1, 2):
        free = drawn(sampler, pool(sampler, r, examples=examples)).clients
        clients = drawn(sampler, pool(sampler, r, examples=examples, busy=busy)).clients
        assert not np.isin(clients, busy).any()
        assert np.array_equal(clients, np.unique(clients)) and clients[0] >= 0 and clients[-1] < n
        assert len(clients) >= 99  # weighted draws may meet
        if isinstance(sampler, Weighted | PowerOfChoice):
            assert np.isin(free, busy).sum() > 30


@pytest.mark.parametrize("busy", [0, 50])
def test_uniform_draws_take_no_time_for_those_that_are_not_drawn(busy: int) -> None:
    """Of a million million clients: anything that went over all of them would find no memory for it."""
    n = 10**12
    population = Population(np.broadcast_to(np.int64(5), (n,)), np.broadcast_to(np.float64(2), (n,)))
    excluded = np.arange(busy)
    for r in range(1, 4):
        cohort = Uniform(20).draw(replace(pool(Uniform(20), r), population=population, excluded=excluded))
        assert len(set(cohort.clients.tolist())) == 20 and cohort.clients.max() > 10**10
        assert cohort.divisor == 40


@pytest.mark.parametrize(
    "make",
    [
        *(lambda cls=cls: cls(cohort=0) for cls in SAMPLERS.values()),
        lambda: Uniform(float("nan")),  # type: ignore[arg-type]
        lambda: PowerOfChoice(5, 4),
        lambda: Oort(5, explore=1.5),
        lambda: Oort(5, decay=-0.1),
        lambda: Oort(5, least=float("nan")),
        lambda: Oort(5, cutoff=2.0),
        lambda: Oort(5, penalty=-1.0),
        lambda: Oort(5, penalty=float("inf")),
        lambda: Oort(5, preferred_s=0.0),
        lambda: Oort(5, preferred_s=float("nan")),
    ],
)
def test_bad_settings(make: Callable[[], object]) -> None:
    with pytest.raises(BadInput, match=r"^sampler\.\w+ is \S+; it must be "):
        make()


# --- uniform --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [(), (3,), (1, 2, 3, 4)])
def test_uniform_draws_every_pair_alike(busy: tuple[int, ...]) -> None:
    """Where few are at work by rejection, where many are from those that are left."""
    sampler, draws = Uniform(2), 3000
    left = [c for c in range(10) if c not in busy]
    pairs = Counter(tuple(drawn(sampler, pool(sampler, r, busy=busy)).clients.tolist()) for r in range(1, draws + 1))
    assert set(pairs) == set(combinations(left, 2))
    one = 2 / (len(left) * (len(left) - 1))
    assert agrees(np.array(list(pairs.values())), draws, one)
    counts = sum(n * np.bincount(p, minlength=10) for p, n in pairs.items())
    assert agrees(counts[left], draws, 2 / len(left))  # pyright: ignore[reportIndexIssue]


def estimates(sampler: Sampler, u: np.ndarray, draws: int, **given: Any) -> np.ndarray:
    """The mean of `u` [N] that the server finds in each of so many rounds."""
    found = []
    for r in range(1, draws + 1):
        cohort = drawn(sampler, pool(sampler, r, **given))
        found.append(mean(cohort, u))
    return np.array(found)


def mean(cohort: Cohort, u: np.ndarray) -> float:
    """What the server takes for the mean of u_i when the cohort answers it, as `Replies` has it."""
    total = torch.tensor(cohort.weights @ u[cohort.clients])
    return float(Replies(cohort, {"u": total}, {}, {}, torch.float64).mean("u"))


U = np.array([1.0, -4.0, 9.0, 0.0, 2.0, -4.0, 1.0, 5.0, -1.0, 8.0])
"""Large where there are many examples, so that a biased mean shows."""
MEAN = float(EXAMPLES @ U / EXAMPLES.sum())


def off(found: np.ndarray, right: float) -> float:
    """By how many standard errors the mean of `found` is off."""
    return abs(found.mean() - right) / (found.std(ddof=1) / len(found) ** 0.5)


def test_scheme_two_is_unbiased_and_the_ratio_is_not() -> None:
    assert off(estimates(Uniform(3, unbiased=True), U, 4000), MEAN) < ERRORS
    assert off(estimates(Uniform(3), U, 4000), MEAN) > 2 * ERRORS
    present = np.array([0, 1, 2, 5, 7])
    right = float(EXAMPLES[present] @ U[present] / EXAMPLES[present].sum())
    assert off(estimates(Uniform(3, unbiased=True), U, 4000, present=present), right) < ERRORS


def test_scheme_two_by_hand() -> None:
    """(n/m) sum of q_i u_i over those that answer, also when some of the cohort leave."""
    cohort = drawn(Uniform(4, unbiased=True), pool(Uniform(4)))
    q = EXAMPLES / EXAMPLES.sum()
    assert mean(cohort, U) == pytest.approx(10 / 4 * (q[cohort.clients] @ U[cohort.clients]))
    left = cohort.only(np.array([True, False, True, True]))
    assert mean(left, U) == pytest.approx(10 / 3 * (q[left.clients] @ U[left.clients]))
    everybody = drawn(Uniform(10, unbiased=True), pool(Uniform(10)))
    assert mean(everybody, U) == pytest.approx(MEAN) == pytest.approx(mean(replace(everybody, mean_weight=None), U))
    # Without `unbiased`: the weighted mean of those that answer.
    plain = drawn(Uniform(4), pool(Uniform(4)))
    assert np.array_equal(plain.clients, cohort.clients) and plain.mean_weight is None
    assert mean(plain, U) == pytest.approx(np.average(U[plain.clients], weights=EXAMPLES[plain.clients]))


# --- weighted -------------------------------------------------------------------------------------------------------


def test_with_replacement_clients_count_as_often_as_they_are_drawn() -> None:
    sampler, draws = Weighted(5), 4000
    q = EXAMPLES / EXAMPLES.sum()
    counts, twice = np.zeros(10), 0
    for r in range(1, draws + 1):
        cohort = drawn(sampler, pool(sampler, r))
        assert cohort.weights.sum() == cohort.divisor == 5 and (cohort.weights == np.round(cohort.weights)).all()
        counts[cohort.clients] += cohort.weights
        twice += int((cohort.weights > 1).any())
    assert (np.abs(counts - draws * 5 * q) < ERRORS * np.sqrt(draws * 5 * q * (1 - q))).all()  # multinomial
    assert agrees(inclusions(sampler, 2000), 2000, 1 - (1 - q) ** 5)
    # The probability that five draws differ: 5! times the fifth elementary symmetric polynomial of q.
    differ = 120 * sum(float(np.prod(q[list(c)])) for c in combinations(range(10), 5))
    assert agrees(np.array(twice), draws, 1 - differ)


def test_with_replacement_the_mean_is_unbiased() -> None:
    assert off(estimates(Weighted(3), U, 4000), MEAN) < ERRORS
    busy = (2, 9)
    left = np.setdiff1d(np.arange(10), busy)
    right = float(EXAMPLES[left] @ U[left] / EXAMPLES[left].sum())
    assert off(estimates(Weighted(3), U, 4000, busy=busy), right) < ERRORS
    assert off(estimates(Weighted(3, replace=False), U, 4000), MEAN) > ERRORS  # which nobody says it is


def test_without_replacement_inclusions_are_those_of_successive_draws() -> None:
    q = EXAMPLES / EXAMPLES.sum()
    assert agrees(inclusions(Weighted(1, replace=False), 3000), 3000, q)
    second = np.array([sum(q[j] * q[i] / (1 - q[j]) for j in range(10) if j != i) for i in range(10)])
    assert agrees(inclusions(Weighted(2, replace=False), 3000), 3000, q + second)
    for r in range(1, 20):
        cohort = drawn(Weighted(4, replace=False), pool(Weighted(4), r))
        assert cohort.weights.tolist() == [1.0] * 4 and cohort.divisor == 4


@pytest.mark.parametrize("replaced", [True, False])
def test_clients_without_weight_are_not_drawn(replaced: bool) -> None:
    weights = np.array([0.0, 1, 0, 2, 0, 0, 0, 0, 0, 0])
    for r in range(1, 40):
        assert set(drawn(Weighted(3, replaced), pool(Weighted(3), r, weights=weights)).clients.tolist()) <= {1, 3}


# --- cyclic ---------------------------------------------------------------------------------------------------------


def cycle(sampler: Cyclic, begin: int, count: int, **given: Any) -> Counter[int]:
    rounds = range(begin, begin + count)
    return Counter(c for r in rounds for c in drawn(sampler, pool(sampler, r, **given)).clients.tolist())


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("begin", [1, 2, 17])
def test_cyclic_asks_everybody_once_before_anybody_again(shuffled: bool, begin: int) -> None:
    assert cycle(Cyclic(5, shuffled), begin, 2) == Counter(range(10))
    assert cycle(Cyclic(4, shuffled), begin, 5) == Counter([*range(10)] * 2)  # 20 places are two times around
    present = np.array([0, 1, 4, 6, 8, 9])  # others have left
    assert cycle(Cyclic(2, shuffled), begin, 3, present=present) == Counter(present.tolist())
    joined = np.arange(8)
    assert cycle(Cyclic(4, shuffled), begin, 2, present=joined) == Counter(joined.tolist())


def test_cyclic_without_shuffling_goes_in_order() -> None:
    found = [drawn(Cyclic(4, shuffled=False), pool(Cyclic(4), r)).clients.tolist() for r in (1, 2, 3)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 8, 9]]
    orders = {tuple(drawn(Cyclic(4), pool(Cyclic(4), 1, seed)).clients.tolist()) for seed in range(20)}
    assert len(orders) > 12


# --- available ------------------------------------------------------------------------------------------------------


def test_available_draws_uniformly_among_those_that_are_there() -> None:
    sampler, draws, away = Available(3), 3000, (0, 4, 5, 9)
    counts = inclusions(sampler, draws, away=away)
    awake = np.setdiff1d(np.arange(10), away)
    assert agrees(counts[awake], draws, 3 / 6) and counts[list(away)].sum() == 0
    assert agrees(inclusions(sampler, draws, away=away, busy=(1, 2), present=awake)[[3, 6, 7, 8]], draws, 3 / 4)
    assert drawn(sampler, pool(sampler, away=tuple(range(8)))).clients.tolist() == [8, 9]
    assert len(drawn(sampler, pool(sampler, away=tuple(range(10))))) == 0


# --- power of choice ------------------------------------------------------------------------------------------------


def test_power_of_choice_takes_the_highest_losses() -> None:
    sampler = PowerOfChoice(2, 5)
    conversation = sampler.draw(pool(sampler, 4))
    ask = next(conversation)
    assert isinstance(ask, Ask) and len(ask.cohort) == 5 and ask.charged and set(ask.down) == {"x"}
    clients = ask.cohort.clients
    with pytest.raises(StopIteration) as stop:
        conversation.send(Replies(ask.cohort, {}, {"loss": np.array([2.0, 7.0, 7.0, 1.0, 7.0])}, {}, torch.float32))
    assert stop.value.value.clients.tolist() == clients[[1, 2]].tolist()  # of equal losses the lower number
    assert stop.value.value.weights.tolist() == EXAMPLES[clients[[1, 2]]].tolist()


def test_power_of_choice_candidates_are_drawn_by_weight() -> None:
    sampler, draws = PowerOfChoice(1, 2), 3000
    q, counts = EXAMPLES / EXAMPLES.sum(), np.zeros(10)
    for r in range(1, draws + 1):
        counts[next(sampler.draw(pool(sampler, r))).cohort.clients] += 1
    second = np.array([sum(q[j] * q[i] / (1 - q[j]) for j in range(10) if j != i) for i in range(10)])
    assert agrees(counts, draws, q + second)


# --- through the driver ---------------------------------------------------------------------------------------------


def driver(e: Experiment, folder: Path) -> tuple[Driver, Plan]:
    plan = make_plan(e, Where(on="local"), folder)
    store = StateStore(folder / "states", plan.client_state, 10**9)
    return plan.driver(InProcess(plan.spec), store), plan


def experiment(sampler: Sampler, clients: int = 12, **changes: object) -> Experiment:
    return replace(problem(FedAvg(), clients), sampler=sampler, **changes)  # type: ignore[arg-type]


def test_the_loss_phase_is_charged(tmp_path: Path) -> None:
    """x goes down to the candidates and one number comes up; then a round of FedAvg with those of the highest loss."""
    sampler = PowerOfChoice(3, 8)
    d, plan = driver(experiment(sampler), tmp_path)
    played = d.play(plan.start(), 2)
    ask = next(sampler.draw(d.pool(plan.start(), 2, 3)))

    def losses() -> Generator[Ask, Replies, np.ndarray]:
        return (yield ask).scalar("loss")

    found = d.converse(losses(), ("test", 2), None, None).result
    best = ask.cohort.clients[np.argsort(-found)[:3]]
    assert len(found) == 8 and len(np.unique(found)) == 8
    assert played.talk.cohort.clients.tolist() == sorted(best.tolist())
    size, number = plan.x.nbytes, plan.x.element_size()
    assert played.talk.communications == 2
    assert played.talk.bytes_down == 8 * size + 3 * size
    assert played.talk.bytes_up == 8 * number + 3 * (size + number)
    assert {o.work for o in played.talk.operations} == {"loss", "local"}


def test_the_loss_phase_takes_modelled_time_and_candidates_may_leave(tmp_path: Path) -> None:
    sampler = PowerOfChoice(3, 8)
    devices = Exponential(examples_per_s=100.0, dropout=0.4, vary="round")
    d, plan = driver(experiment(sampler, devices=devices, failures=Failures(quorum=0)), tmp_path)
    lost = 0
    for index in range(1, 9):
        played = d.play(plan.start(), index)
        candidates = next(sampler.draw(d.pool(plan.start(), index, 3))).cohort.clients
        assert set(played.talk.cohort.clients.tolist()) <= set(candidates.tolist())
        fates = played.talk.fates
        assert set(played.talk.cohort.clients.tolist()) <= set(fates.clients.tolist()) <= set(candidates.tolist())
        assert (np.diff(fates.clients) > 0).all() and played.talk.asked == len(fates.clients)
        lost += len(fates.clients) - len(played.talk.cohort)
        assert int((fates.outcome == "answered").sum()) == int(played.talk.inside.sum())
        assert played.talk.seconds > played.talk.fates.seconds.max() - 1e-12
        assert len(played.talk.cohort) <= 3
    assert lost > 8  # whom the loss phase lost is not passed over


def test_over_selection_draws_more_candidates(tmp_path: Path) -> None:
    e = experiment(PowerOfChoice(4, 6), stragglers=OverSelect(1.5), devices=LogNormal())
    d, plan = driver(e, tmp_path)
    played = d.play(plan.start(), 1)
    assert len(played.talk.fates.clients) == 6 and int(played.talk.inside.sum()) == 4
    assert sum(o.clients for o in played.talk.operations if o.work == "loss") == 8


@pytest.mark.parametrize(
    "sampler", [Uniform(3), Weighted(3), Weighted(3, replace=False), Available(3), Oort(3)], ids=lambda s: str(s)
)
@pytest.mark.parametrize("concurrency", [5, 11])
def test_a_client_in_flight_is_never_drawn(sampler: Sampler, concurrency: int, tmp_path: Path) -> None:
    """Also where nearly everybody is at work: who has answered begins again in the next step."""
    e = experiment(
        sampler, devices=LogNormal(sigma=1.0, dropout=0.1, vary="round"), stragglers=Buffered(2, concurrency),
        failures=Failures(quorum=0),
    )  # fmt: skip
    d, plan = driver(e, tmp_path)
    state = plan.start()
    for index in range(1, 13):
        before = set() if state.flight is None else set(state.flight.clients.tolist())
        played = d.play(state, index)
        state = played.state
        assert state.flight is not None
        flight, fates = state.flight.clients.tolist(), played.talk.fates
        assert len(set(flight)) == len(flight) <= concurrency
        assert not set(flight) & set(fates.clients.tolist())
        new = set(flight) - before
        assert played.talk.asked == len(new) + int((fates.staleness == 0).sum())


def test_the_population_may_shrink_below_what_was_in_flight(tmp_path: Path) -> None:
    e = experiment(Uniform(3), devices=LogNormal(), stragglers=Buffered(2, 8), membership=Steps((1, 4), (12, 9)))
    e = replace(e, rounds=8)
    for _ in rounds(e, Where(on="local"), run_root=tmp_path, name="a"):
        pass
    rows = load("a", tmp_path).table("clients").to_pylist()
    late = {r["client"] for r in rows if r["round"] > 4 and r["round"] - r["staleness"] >= 4}
    assert late and max(late) < 9


# --- oort -----------------------------------------------------------------------------------------------------------


def memory(loss: list[float], seconds: list[float] | None = None, last: list[int] | None = None) -> dict[str, Tensor]:
    """What is known of the ten clients; NaN for those that were never tried."""
    return {
        "loss": torch.tensor(loss, dtype=torch.float64),
        "seconds": torch.tensor(seconds or [1.0] * 10, dtype=torch.float64),
        "last": torch.tensor(last or [0 if np.isnan(x) else 1 for x in loss]),
    }


NAN = float("nan")


def test_oort_tries_everybody_first() -> None:
    sampler, tried = Oort(3, explore=1.0, decay=1.0), set()
    known: Mapping[str, Tensor] = sampler.start(pool(sampler).population)
    for r in range(1, 4):
        cohort = drawn(sampler, pool(sampler, r, memory=known))
        assert len(cohort) == 3 and not set(cohort.clients.tolist()) & tried
        tried |= set(cohort.clients.tolist())
        known = sampler.learn(known, Told(r, cohort, np.ones(3), np.ones(3)))
    cohort = drawn(sampler, pool(sampler, 4, memory=known))
    assert set(range(10)) - tried <= set(cohort.clients.tolist()) and len(cohort) == 3


def test_oort_explores_as_much_as_it_says() -> None:
    """On average share m clients are new, where share falls to `least`."""
    known = memory([1.0] * 6 + [NAN] * 4)
    for r, share in ((1, 0.8), (11, 0.8 * 0.9**10), (60, 0.1)):
        sampler, draws = Oort(4, explore=0.8, decay=0.9, least=0.1), 1500
        new = [int((drawn(sampler, pool(sampler, r, seed, memory=known)).clients >= 6).sum()) for seed in range(draws)]
        assert abs(np.mean(new) - 4 * share) <= ERRORS * np.std(new) / draws**0.5 + 1e-9
        assert max(new) - min(new) <= 1
    assert inclusions(Oort(4, explore=0.0, least=0.0), 200, memory=known)[6:].sum() == 0


def test_oort_exploits_by_utility() -> None:
    """n_i loss_i + sqrt(0.1 ln(round) / last_i); above the cutoff in proportion to it."""
    loss = [1.0, 2.0, 0.5, 1.0, 0.1, 9.0, 0.2, 1.0, 1.0, 0.0]
    last = [1, 3, 2, 4, 4, 1, 2, 4, 3, 4]
    sampler, draws = Oort(1, explore=0.0, least=0.0, cutoff=0.5), 3000
    utility = EXAMPLES * np.array(loss) + np.sqrt(0.1 * np.log(5) / np.array(last))
    known = memory(loss, last=last)
    assert sampler.utility(np.arange(10), pool(sampler, 5, memory=known)) == pytest.approx(utility)
    above = np.where(utility >= 0.5 * utility.max(), utility, 0)
    assert 2 <= (above > 0).sum() < 5
    counts = sum(
        np.bincount(drawn(sampler, pool(sampler, 5, seed, memory=known)).clients, minlength=10) for seed in range(draws)
    )
    assert agrees(counts, draws, above / above.sum())  # pyright: ignore[reportArgumentType]


def test_oort_penalises_the_slow() -> None:
    known = memory([1.0] * 10, seconds=[1.0, 4.0] * 5)
    examples = np.full(10, 6, np.int64)
    plain, hurried = Oort(5, explore=0, least=0), Oort(5, explore=0, least=0, preferred_s=2.0, penalty=2.0)
    a, b = (s.utility(np.arange(10), pool(s, 1, examples=examples, memory=known)) for s in (plain, hurried))
    assert a == pytest.approx(6.0)
    assert b == pytest.approx([6.0, 6.0 / 4] * 5)  # who takes twice as long as preferred counts a quarter
    for seed in range(20):
        cohort = drawn(hurried, pool(hurried, 1, seed, examples=examples, memory=known))
        assert cohort.clients.tolist() == [0, 2, 4, 6, 8]
    fast = sum(
        drawn(plain, pool(plain, 1, s, examples=examples, memory=known)).clients.tolist().count(1) for s in range(40)
    )
    assert fast > 5


def test_oort_draws_nobody_that_is_absent() -> None:
    known = memory([9.0, 1.0, NAN, 1.0, NAN, 1.0, NAN, 1.0, NAN, 1.0])
    present = np.array([0, 1, 2, 3, 4, 5])
    for r in range(1, 80):
        cohort = drawn(Oort(2), pool(Oort(2), r, memory=known, present=present, busy=(0, 2), away=(1,)))
        assert set(cohort.clients.tolist()) <= {3, 4, 5} and len(cohort) == 2


def test_oort_learns_of_those_that_answered() -> None:
    sampler = Oort(3)
    p = pool(sampler)
    before = sampler.start(p.population)
    cohort = Cohort(np.array([1, 4]), np.ones(2), p.population)
    after = sampler.learn(before, Told(7, cohort, np.array([0.5, 2.0]), np.array([3.0, 1.0])))
    assert torch.isnan(before["loss"]).all()  # a value
    assert after["loss"][[1, 4]].tolist() == [0.5, 2.0] and torch.isnan(after["loss"]).sum() == 8
    assert after["seconds"][[1, 4]].tolist() == [3.0, 1.0] and after["last"].tolist() == [0, 7, 0, 0, 7, *[0] * 5]
    assert sampler.learn(after, Told(8, cohort, None, np.ones(2))) is after  # no losses were reported


@pytest.mark.parametrize("policy", [None, Buffered(2, 5)])
def test_oorts_memory_goes_through_a_checkpoint(policy: Buffered | None, tmp_path: Path) -> None:
    devices = LogNormal(sigma=1.0, dropout=0.1)
    e = experiment(Oort(4, preferred_s=0.01), devices=devices, rounds=7, failures=Failures(quorum=0))
    e = e if policy is None else replace(e, stragglers=policy)
    for _ in rounds(e, Where(on="local"), run_root=tmp_path, name="whole"):
        pass
    whole = load("whole", tmp_path)
    last = whole.checkpoint.tensors()
    known = {n: t for n, t in last.items() if "sampler" in n}
    rows = [r for r in whole.table("clients").to_pylist() if r["outcome"] == "answered"]
    assert len(known) == 3 and len({r["client"] for r in rows}) > 4
    loss = next(t for n, t in known.items() if n.endswith("loss"))
    newest = {r["client"]: r["train_loss"] for r in rows}
    assert [loss[c].item() for c in newest] == pytest.approx(list(newest.values()))
    for at in (2, 5):
        for _ in play(create(replace(e, rounds=at), Where(on="local"), run_root=tmp_path, name=f"cut{at}")):
            pass
        for _ in play(extend(load(f"cut{at}", tmp_path), e.rounds)):
            pass
        assert load(f"cut{at}", tmp_path).digest() == whole.digest()
