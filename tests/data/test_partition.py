"""Partitioners: nothing lost, nothing repeated, no client empty, a pure function of labels, settings and seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygrad.data.partition import (
    IID,
    PARTITIONERS,
    Dirichlet,
    Labels,
    Mixture,
    Natural,
    Partitioner,
    Quantity,
)
from raygrad.errors import BadInput


def balanced(classes: int, per_class: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).permutation(np.repeat(np.arange(classes), per_class))


def check(shares: list[np.ndarray], examples: int, clients: int) -> None:
    assert len(shares) == clients
    assert all(len(share) for share in shares)
    assert all(share.dtype == np.int64 for share in shares)
    assert all((np.diff(share) > 0).all() for share in shares)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(examples))


def counted(shares: list[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """How many examples of each class each client has: [N, classes]."""
    return np.array([np.bincount(labels[share], minlength=classes) for share in shares])


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int, Partitioner, int]:
    classes = draw(st.integers(1, 8))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=80)), np.int64)
    clients = draw(st.integers(1, len(labels)))
    present = len(np.unique(labels))
    fraction = draw(st.floats(0, 1))
    concentration = draw(st.sampled_from([1e-6, 0.01, 0.5, 10.0, 1e6]))
    per_client = draw(st.integers(min(present, -(-present // clients)), present))
    partitioner = draw(
        st.sampled_from(
            [
                IID(clients),
                Labels(clients, per_client),
                Dirichlet(clients, concentration),
                Quantity(clients, concentration),
                Mixture(clients, fraction),
            ]
        )
    )
    return labels, classes, partitioner, draw(st.integers(0, 2**32))


@settings(max_examples=300, deadline=None)
@given(problems())
def test_nothing_is_lost_or_repeated_and_no_client_is_empty(problem: tuple[np.ndarray, int, Partitioner, int]) -> None:
    labels, classes, partitioner, seed = problem
    before = labels.copy()
    shares = partitioner.assign(labels, classes, seed)
    check(shares, len(labels), partitioner.clients)
    assert np.array_equal(labels, before)
    again = partitioner.assign(labels, classes, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in PARTITIONERS if kind not in ("natural", "repeated")])
def test_the_seed_matters_and_too_many_clients_are_refused(kind: str) -> None:
    labels = balanced(5, 40)
    clients = 4 if kind == "labels" else 10
    partitioner = PARTITIONERS[kind](clients=clients, **({"labels": 2} if kind == "labels" else {}))
    assert isinstance(partitioner, Partitioner)
    one, two = partitioner.assign(labels, 5, 1), partitioner.assign(labels, 5, 2)
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(BadInput, match="201 clients, but only 200 training examples"):
        PARTITIONERS[kind](clients=201).assign(labels, 5, 0)
    with pytest.raises(BadInput, match="clients = 0"):
        PARTITIONERS[kind](clients=0)


def test_iid_shares_are_equal() -> None:
    shares = IID(7).assign(balanced(5, 20), 5, 0)
    assert sorted(map(len, shares)) == [14] * 5 + [15] * 2


def test_one_label_per_client_gives_client_j_all_of_class_j() -> None:
    labels = balanced(10, 13)
    for seed in range(3):
        for j, share in enumerate(Labels(10).assign(labels, 10, seed)):
            assert np.array_equal(share, np.flatnonzero(labels == j))


@pytest.mark.parametrize(("clients", "per_client"), [(10, 2), (7, 3), (50, 2), (23, 1), (4, 10), (100, 4), (5, 2)])
def test_k_labels_per_client(clients: int, per_client: int) -> None:
    labels = balanced(10, 200)
    counts = counted(Labels(clients, per_client).assign(labels, 10, 5), labels, 10)
    assert ((counts > 0).sum(1) == per_client).all()
    holders = (counts > 0).sum(0)
    assert holders.min() >= 1
    assert holders.max() - holders.min() <= 1
    for cls in range(10):  # equal shares among those who hold the class
        held = counts[counts[:, cls] > 0, cls]
        assert held.max() - held.min() <= 1


def test_two_labels_per_client_mix_all_classes() -> None:
    labels = balanced(10, 100)
    counts = counted(Labels(100, 2).assign(labels, 10, 0), labels, 10)
    pairs = {tuple(np.flatnonzero(row)) for row in counts}
    assert len(pairs) > 20


def test_a_rare_class_is_held_by_no_more_clients_than_it_has_examples() -> None:
    labels = np.repeat([0, 1, 2], [3, 500, 500])
    counts = counted(Labels(20, 2).assign(labels, 3, 0), labels, 3)
    assert counts[:, 0].max() == 1
    assert (counts[:, 1] > 0).sum() >= 18
    assert ((counts > 0).sum(1) >= 1).all()


def test_labels_refuses_what_cannot_be() -> None:
    labels = balanced(10, 5)
    with pytest.raises(BadInput, match=r"4 clients with 2 label.*all 10 classes; use at least 5 clients"):
        Labels(4, 2).assign(labels, 10, 0)
    with pytest.raises(BadInput, match="11 labels per client, but the training examples have 10 classes"):
        Labels(20, 11).assign(labels, 10, 0)
    with pytest.raises(BadInput, match="labels = 0"):
        Labels(4, 0)


def test_dirichlet_ends_at_a_small_concentration_with_many_clients() -> None:
    labels = balanced(10, 5000)
    shares = Dirichlet(1000, 0.01).assign(labels, 10, 0)
    check(shares, 50_000, 1000)
    counts = counted(shares, labels, 10)
    assert counts.max() > 500  # a few clients hold most of a class
    labels = balanced(10, 500)
    check(Dirichlet(5000, 1e-6).assign(labels, 10, 0), 5000, 5000)


def test_dirichlet_shares_have_the_distribution_of_the_definition() -> None:
    # A share of a symmetric Dirichlet(a) over N clients has mean 1/N and variance (N-1) / (N^2 (N a + 1)).
    labels = np.repeat(np.arange(40), 1000)
    clients = 5
    for concentration in (0.1, 0.5, 5.0):
        counts = counted(Dirichlet(clients, concentration).assign(labels, 40, 0), labels, 40)
        shares = counts / 1000
        variance = (clients - 1) / (clients**2 * (clients * concentration + 1))
        assert 0.7 < shares.var() / variance < 1.4


def test_dirichlet_at_a_large_concentration_is_nearly_even() -> None:
    counts = counted(Dirichlet(10, 1e6).assign(balanced(5, 1000), 5, 0), balanced(5, 1000), 5)
    assert (np.abs(counts - 100) <= 3).all()


def test_quantity_skews_sizes_and_not_labels() -> None:
    labels = balanced(4, 5000)
    even = [len(share) for share in Quantity(10, 1e6).assign(labels, 4, 0)]
    skewed = Quantity(10, 0.3).assign(labels, 4, 0)
    assert max(even) - min(even) < 50
    assert max(map(len, skewed)) > 5000
    largest = counted(skewed, labels, 4)[np.argmax([len(share) for share in skewed])]
    assert np.allclose(largest / largest.sum(), 0.25, atol=0.03)


def test_mixture_goes_from_sorted_to_iid() -> None:
    labels = balanced(10, 60)
    sorted_out = counted(Mixture(10, 0.0).assign(labels, 10, 0), labels, 10)
    assert np.array_equal(sorted_out, 60 * np.eye(10, dtype=np.int64))
    half = counted(Mixture(10, 0.5).assign(labels, 10, 0), labels, 10)
    assert (np.diag(half) > 20).all()
    assert (half.sum(1) == 60).all()
    assert ((half > 0).sum(1) > 5).all()
    assert all(len(share) == 60 for share in Mixture(10, 1.0).assign(labels, 10, 0))
    with pytest.raises(BadInput, match=r"iid_fraction = 1\.5"):
        Mixture(10, 1.5)


@pytest.mark.parametrize("concentration", [0.0, -1.0, float("nan"), float("inf")])
def test_a_concentration_out_of_range(concentration: float) -> None:
    for kind in (Dirichlet, Quantity):
        with pytest.raises(BadInput, match="concentration"):
            kind(10, concentration)


def test_natural_groups_by_client() -> None:
    natural = np.array([2, 0, 2, 1], np.int64)
    assert [share.tolist() for share in Natural().group(natural)] == [[1], [3], [0, 2]]
    assert len(Natural(3).group(natural)) == 3
    with pytest.raises(BadInput, match="the data set has 3 clients"):
        Natural(2).group(natural)
    with pytest.raises(BadInput, match=r"1 of 4 ids have no example.*the first is 1"):
        Natural().group(np.array([0, 2, 3]))
    with pytest.raises(BadInput, match="come with their own clients"):
        Natural().assign(natural, 3, 0)


def test_regression_can_be_partitioned_without_labels() -> None:
    targets = np.linspace(0, 1, 30)
    for partitioner in (IID(4), Quantity(4, 0.5)):
        check(partitioner.assign(targets, 0, 0), 30, 4)
    for partitioner in (Labels(4), Dirichlet(4), Mixture(4)):
        with pytest.raises(BadInput, match="needs class labels"):
            partitioner.assign(targets, 0, 0)
