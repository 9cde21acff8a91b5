"""Updates in fewer bytes and with noise: unbiased where they say so, bounded, charged as encoded, and accounted for."""

from collections import Counter
from dataclasses import replace
from itertools import product
from math import ceil, exp, log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raygrad import privacy
from raygrad.algorithms.clipped import ClippedMethod
from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.divebatch import DiveBatch
from raygrad.algorithms.dp import Private
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.fedaware import FedAware
from raygrad.algorithms.fedaware_plugin import FedAwarePlugIn
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.quantised import Quantised, QuantisedMethod, quantised
from raygrad.algorithms.scaffold import Scaffold
from raygrad.algorithms.sparsified import LargestPart, RandomPart, Sparsified
from raygrad.contract import Algorithm, Answer, Batch, Cohort, Population, Replies
from raygrad.devices import Constant
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Experiment, Where
from raygrad.files.states import StateStore
from raygrad.plan import make_plan
from raygrad.samplers import Cyclic, Weighted
from raygrad.talk import Played
from raygrad.theory.problems import Client, K, after, converse, problem
from raygrad.verify import problem as small

ALL = 6  # clients of the small problem


def equal(algorithm: Algorithm) -> Experiment:
    """The small problem with equal weights."""
    return replace(small(algorithm), weights="equal")


def played(e: Experiment, folder: Path, rounds: int = 1) -> tuple[Played, Tensor]:
    """The last of some rounds, and the initial model."""
    plan = make_plan(e, Where(on="local"), folder)
    driver = plan.driver(InProcess(plan.spec), StateStore(folder / "states", plan.client_state, 10**9))
    state = plan.start()
    for index in range(1, rounds + 1):
        last = driver.play(state, index)
        state = last.state
    return last, plan.x


# --- quantised ------------------------------------------------------------------------------------------------------


class Numbered:
    """A task that has uniform numbers, others for each vector."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniforms(self, number: int = 0) -> Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, number]).random(8))


def test_quantisation_is_unbiased_in_every_entry() -> None:
    """The expectation over uniform numbers is an integral of steps; a grid of midpoints has it but for one cell."""
    u = torch.tensor([3.0, -4.0, 0.0, 1.2, -0.1], dtype=torch.float64)
    for levels in (1, 2, 7):
        grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        mean = torch.stack([quantised(u, levels, torch.full_like(u, float(t))) for t in grid]).mean(0)
        assert float((mean - u).abs().max()) <= float(u.norm()) / levels / 20_000
        one = quantised(u, levels, torch.full_like(u, 0.3)) / u.norm() * levels
        torch.testing.assert_close(one, one.round(), rtol=0, atol=1e-12)  # it is on the levels
        assert float((quantised(u, levels, torch.full_like(u, 0.3)) - u).abs().max()) <= float(u.norm()) / levels
    assert not quantised(torch.zeros(3), 4, torch.full((3,), 0.99)).any()


def test_vectors_of_one_answer_are_rounded_each_by_itself() -> None:
    u = torch.linspace(-1, 1, 8, dtype=torch.float64)
    found = QuantisedMethod(_answering({"a": u, "b": u}), levels=2)(Numbered(0)).update  # pyright: ignore[reportArgumentType]
    for number, name in enumerate("ab"):
        assert torch.equal(found[name], quantised(u, 2, Numbered(0).uniforms(number)))
    assert not torch.equal(found["a"], found["b"])


@pytest.mark.parametrize("levels", [1, 7])
def test_a_quantised_vector_takes_its_norm_and_bits(levels: int, tmp_path: Path) -> None:
    last, x = played(small(Quantised(FedAvg(), levels)), tmp_path)
    bits = ceil(log2(2 * levels + 1))
    assert bits == {1: 2, 7: 4}[levels]
    loss = 8  # each client's training loss
    assert last.talk.bytes_up == 4 * (8 + ceil(len(x) * bits / 8) + loss)
    assert last.talk.bytes_down == 4 * x.nbytes


def test_modelled_devices_send_what_is_encoded(tmp_path: Path) -> None:
    """At a byte per second the upload is all that takes time."""
    slow = Constant(examples_per_s=1e12, down_bytes_per_s=1e12, up_bytes_per_s=1.0)
    plain, x = played(replace(small(FedAvg()), devices=slow), tmp_path / "a")
    few, _ = played(replace(small(Sparsified(FedAvg(), part=0.25)), devices=slow), tmp_path / "b")
    assert plain.talk.seconds == pytest.approx(x.nbytes + 8, rel=1e-6)
    assert few.talk.seconds == pytest.approx(8 * round(0.25 * len(x)) + 8, rel=1e-6)


# --- sparsified -----------------------------------------------------------------------------------------------------


def test_a_random_part_is_uniform(tmp_path: Path) -> None:
    """Each entry is drawn as often as any other."""
    plan = make_plan(small(FedAvg()), Where(on="local"), tmp_path)
    runner, d = InProcess(plan.spec).runner, len(plan.x)
    k, counts = round(0.25 * d), Counter[int]()

    class Phase:
        round, number = 1, 0

    for client in range(4000):
        counts.update(runner.uniforms(Phase(), client, 0).topk(k).indices.tolist())  # pyright: ignore[reportArgumentType]
    expected = 4000 * k / d
    assert max(abs(counts[i] - expected) for i in range(d)) < 5 * sqrt(expected * (1 - k / d))


def test_what_is_sent_of_a_random_part_is_right_on_average() -> None:
    """d/k times itself where it is drawn; of two vectors other entries."""
    u, k, d, draws = torch.tensor([3.0, -4, 0.5, 1, -2, 7, 0.1, 2]).double(), 2, 8, 1000
    work, total, alike = RandomPart(_answering({"a": u, "b": u}), part=k / d), torch.zeros(d).double(), 0
    for seed in range(draws):
        a, b = work(Numbered(seed)).update.values()  # pyright: ignore[reportArgumentType]
        assert int((a != 0).sum()) == k and torch.equal(a[a != 0], d / k * u[a != 0])
        total, alike = total + a, alike + torch.equal(a, b)
    assert bool(((total / draws - u).abs() <= 5 * u.abs() * sqrt((d / k - 1) / draws)).all())
    assert alike < draws / 10  # one of 28 pairs


def test_sparsified_bytes_and_values(tmp_path: Path) -> None:
    whole, x = played(small(FedAvg()), tmp_path / "whole")
    for largest, each in ((False, 8), (True, 12)):
        last, _ = played(small(Sparsified(FedAvg(), 0.1, largest)), tmp_path / str(largest))
        assert last.talk.bytes_up == 4 * (each * round(0.1 * len(x)) + 8)
    everything, _ = played(small(Sparsified(FedAvg(), 1.0, True)), tmp_path / "all")
    torch.testing.assert_close(everything.state.algorithm.x, whole.state.algorithm.x, rtol=0, atol=1e-15)


def test_what_is_not_sent_is_kept_and_sent_later() -> None:
    """With error feedback what was sent in all rounds and what is kept now add up to all updates."""
    k, d, updates = 2, 10, torch.from_numpy(np.random.default_rng(0).standard_normal((6, 10)))
    error, sent = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    for u in updates:
        work = LargestPart(_answering({"delta": u}), part=k / d)
        answer = work(None, error=error)  # pyright: ignore[reportArgumentType]
        assert answer.state is not None
        whole, delta = u + error, answer.update["delta"]
        sent, error = sent + delta, answer.state["error"]
        assert int((delta != 0).sum()) == k and float(delta.abs().sum()) == float(whole.abs().topk(k).values.sum())
    torch.testing.assert_close(sent + error, updates.sum(0), rtol=0, atol=1e-14)


def test_what_largest_cannot_go_around(tmp_path: Path) -> None:
    for inner, message in ((Scaffold(), "clients send delta, change"), (FedGA(), "FedGA has two")):
        with pytest.raises(BadInput, match=message):
            played(small(Sparsified(inner, largest=True)), tmp_path / type(inner).__name__)
    played(small(Sparsified(Scaffold())), tmp_path / "random")
    with pytest.raises(BadInput, match="algorithm.part is 0"):
        Sparsified(part=0.0)


def test_compression_goes_around_everything(tmp_path: Path) -> None:
    """Around two phases, client states and server optimisers; with fine levels the model is nearly that inside."""
    for i, inner in enumerate((FedGA(), Scaffold(), FedDyn(), FedAvgM(FedGA()), FedAware())):
        plain, _ = played(small(inner), tmp_path / f"a{i}", 2)
        fine, _ = played(small(Quantised(inner, 2**16)), tmp_path / f"b{i}", 2)
        error = float((fine.state.algorithm.x - plain.state.algorithm.x).abs().max())
        assert 0 < error < 1e-4  # a level is 1e-5 of a vector's norm


# --- private --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1e3])
def test_vectors_are_clipped_together(clip: float) -> None:
    a, b = torch.tensor([3.0, 0.0]).double(), torch.tensor([0.0, 4.0]).double()
    work = ClippedMethod(_answering({"a": a, "b": b}), clip=clip)
    update = work(None).update  # pyright: ignore[reportArgumentType]
    norm = float(torch.cat([update["a"], update["b"]]).norm())
    assert norm == pytest.approx(min(5.0, clip), rel=1e-12)
    assert float(update["clipped"]) == (clip < 5) and norm <= clip * (1 + 1e-12)
    torch.testing.assert_close(update["a"] * 4, update["b"].flip(0) * 3)


def _answering(update: dict[str, Tensor]) -> Any:
    def work(task: Any) -> Answer:
        return Answer(update)

    return work


def test_the_noise_is_the_accountants_scale() -> None:
    """On a sum: s C in every entry, whatever the cohort; another one in every release."""
    rule, m = Private(clip=0.5, noise=2.0), 7
    cohort = Cohort(np.arange(m), np.ones(m), Population(np.ones(m, np.int64), np.ones(m), seed=3))
    r = Replies(cohort, {"delta": torch.zeros(200_000, dtype=torch.float64)}, {}, {}, torch.float64)
    first, second, again = (rule._noisy(r, n).totals["delta"] for n in (1, 2, 1))
    assert torch.equal(first, again)
    for noise in (first, second):
        assert float(noise.std()) == pytest.approx(1.0, abs=5 / sqrt(2 * len(noise)))
        assert float(noise.mean()) == pytest.approx(0.0, abs=5 / sqrt(len(noise)))
    assert abs(float((first * second).mean())) < 5 / sqrt(len(first))


def test_without_noise_and_with_room_it_is_the_algorithm_inside() -> None:
    p = problem("quadratics")
    bare = after(FedGA(0.05, 0.1), p, p.full(K))
    assert torch.equal(after(Private(FedGA(0.05, 0.1), clip=1e6, noise=0.0), p, p.full(K)), bare)
    assert float((after(Private(FedGA(0.05, 0.1), clip=1e6, noise=1e-6), p, p.full(K)) - bare).norm()) > 0.01


def test_epsilon_of_the_gaussian_mechanism() -> None:
    """All clients, one release: the sums of neighbours differ by 2 C. Renyi: a / (2 (s/2)^2) at order a."""
    for noise, releases in product((2.0, 8.0), (1, 10)):
        found = privacy.epsilon(noise, releases, 1, 50, 50, 1e-5)
        assert privacy.epsilon(noise, 1, releases, 50, 50, 1e-5) == pytest.approx(found, rel=1e-9)  # nobody is drawn
        mu = releases * 2 / noise**2
        least = min(a * mu + np.log((a - 1) / a) - (np.log(1e-5) + np.log(a)) / (a - 1) for a in privacy.ORDERS)
        assert found == pytest.approx(least, rel=1e-9)
        assert found >= _exact(noise / 2 / sqrt(releases))  # Renyi accounting bounds the exact curve from above


def _exact(sigma: float, delta: float = 1e-5) -> float:
    """epsilon of the Gaussian mechanism by its exact curve (Balle and Wang, arXiv 1805.06530)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(e: float) -> float:
        return norm.cdf(0.5 / sigma - e * sigma) - exp(e) * norm.cdf(-0.5 / sigma - e * sigma) - delta

    return brentq(excess, 0, 100)


def test_epsilon_is_the_accountants() -> None:
    """By the package itself, with its own orders; drawing few of many hides them."""
    import dp_accounting as dp
    from dp_accounting import rdp

    for releases in (1, 2):
        sums = dp.SelfComposedDpEvent(dp.GaussianDpEvent(1.0), releases)
        accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
        accountant.compose(dp.SampledWithoutReplacementDpEvent(1000, 10, sums), 100)
        found = privacy.epsilon(2.0, 100, releases, 10, 1000, 1e-5)
        assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
        assert found < privacy.epsilon(2.0, 100, releases, 1000, 1000, 1e-5) / 10


def test_sums_of_the_same_clients_are_not_drawn_twice() -> None:
    """Two sums over one draw tell more than two over draws of their own."""
    assert privacy.epsilon(2.0, 100, 2, 10, 1000, 1e-5) > 1.5 * privacy.epsilon(2.0, 200, 1, 10, 1000, 1e-5)


def test_a_run_says_its_epsilon(tmp_path: Path) -> None:
    rule = Private(FedGA(), clip=1e-3, noise=4.0)
    last, _ = played(equal(rule), tmp_path, 3)
    found = rule.measures(last.state.algorithm)
    assert found["epsilon"] == privacy.epsilon(4.0, 3, 2, 4, ALL, 1e-5)  # FedGA has two releases per round
    assert found["clipped"] == 1.0


def test_what_cannot_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for e, message in (
        (small(Private()), "it needs weights=equal"),
        (equal(Private(FedAware())), "FedAware wants more than a sum"),
        (equal(Private(Scaffold())), "Scaffold wants more than a sum"),
    ):
        with pytest.raises(BadInput, match=message):
            played(e, tmp_path / message[:4])
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'raygrad\[privacy\]'"):
        played(equal(Private()), tmp_path / "absent")


def test_nobody_changes_what_private_clients_send(tmp_path: Path) -> None:
    """Around them the bound on a client's part, or its noise, would be gone; server optimisers only use the result."""
    for around in (
        Displaced(Private()),
        FedAwarePlugIn(Private()),
        Quantised(FedAvgM(Private())),
        Sparsified(Private()),
    ):
        with pytest.raises(BadInput, match="put it around"):
            played(equal(around), tmp_path / type(around).__name__)
    played(equal(FedAvgM(Private())), tmp_path / "server")


def test_numbers_in_the_clear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="DiveBatch is told q, steps of each"):
        played(equal(Private(DiveBatch())), tmp_path)


@pytest.mark.parametrize("other", [{"sampler": Cyclic(cohort=4)}, {"sampler": Weighted(cohort=4)}])
def test_the_accountant_knows_how_clients_are_drawn(other: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="it needs sampler=uniform and stragglers=wait"):
        played(replace(equal(Private()), **other), tmp_path)


def test_vectors_are_encoded_once(tmp_path: Path) -> None:
    for around in (Quantised(Sparsified()), Sparsified(FedAvgM(Quantised()))):
        with pytest.raises(BadInput, match="quantise or sparsify, not both"):
            played(small(around), tmp_path / type(around).__name__)
    with pytest.raises(BadInput, match="algorithm.levels is 65537"):
        Quantised(levels=2**16 + 1)


def test_the_noise_of_a_round_is_that_of_a_mean() -> None:
    """m clients: s C / m in every entry of the model, whatever the weights of all alike."""
    d, m = 100_000, 4
    data = Batch(torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    clients = [Client(lambda x, batch: (x * 1e-6).sum(), data, [data]) for _ in range(m)]
    cohort = Cohort(np.arange(m), np.full(m, 3.0), Population(np.full(m, 2), np.full(m, 3.0)))
    ends = []
    for noise in (0.0, 2.0):
        rule = Private(FedAvg(0.1), clip=0.5, noise=noise)
        state = rule.init(torch.zeros(d, dtype=torch.float64), cohort.population)
        ends.append(converse(rule.round(state, cohort), clients, [{}] * m)[0].x)
    found = ends[1] - ends[0]
    assert float(found.std()) == pytest.approx(2.0 * 0.5 / m, abs=5 * 0.25 / sqrt(2 * d))


def test_the_fewest_clients_there_were_count(tmp_path: Path) -> None:
    """Fewer to be drawn from hide each of them less, also after the others are back."""
    rule = Private(FedAvg(), noise=4.0)
    plan = make_plan(equal(rule), Where(on="local"), tmp_path)
    driver = plan.driver(InProcess(plan.spec), StateStore(tmp_path / "states", plan.client_state, 10**9))
    state = plan.start()
    for index, there in enumerate((None, np.arange(5), None), 1):
        driver, state = driver.resized(state, there)
        state = driver.play(state, index).state
    assert rule.measures(state.algorithm)["epsilon"] == privacy.epsilon(4.0, 3, 1, 4, 5, 1e-5)


def test_every_release_has_noise_of_its_own() -> None:
    """Four of two rounds of FedGA, whose clients send nothing but zeros: what was drawn twice could be taken off."""
    d, m, zeros = 50_000, 4, np.zeros(4)
    cohort, rule = Cohort(np.arange(m), np.ones(m), Population(np.ones(m, np.int64), np.ones(m))), Private(FedGA())
    state, heard = rule.init(torch.zeros(d, dtype=torch.float64), cohort.population), []
    for _ in range(2):
        before, conversation = state.x, rule.round(state, cohort)
        next(conversation)
        for name in ("g", "delta"):
            silent = Replies(cohort, {name: torch.zeros(d).double()}, {"clipped": zeros}, {}, torch.float64)
            try:
                heard.append(conversation.send(silent).down["g_mean"])
            except StopIteration as stop:
                state = stop.value
        heard.append(state.x - before)
    noises = torch.stack(heard)
    assert noises.shape == (4, d)
    assert float((torch.corrcoef(noises) - torch.eye(4)).abs().max()) < 5 / sqrt(d)
