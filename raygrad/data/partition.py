"""Who holds what: each partitioner gives every training example to exactly one client.

A partition is a pure function of labels, settings and seed. All partitioners compute one owner per example, so that
nothing can be lost or repeated, and end with the same repair: a client that was given nothing takes the last example of
the client that has the most.

Sources of the definitions: label distribution skew by a Dirichlet distribution, Hsu, Qi and Brown, "Measuring the
Effects of Non-Identical Data Distribution for Federated Visual Classification" (arXiv:1909.06335) and Yurochkin et al.
(arXiv:1905.12022), whose form, one draw over the clients per label, is the one here; quantity skew, Li et al.,
"Federated Learning on Non-IID Data Silos: An Experimental Study" (arXiv:2102.02079).
"""

import bisect
import heapq
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from raygrad.errors import BadInput
from raygrad.rng import Purpose, rng

CONCENTRATION_MIN = 1e-6
CONCENTRATION_MAX = 1e6


@runtime_checkable
class Partitioner(Protocol):
    """A frozen dataclass whose fields are its settings."""

    @property
    def clients(self) -> int:
        """N, how many clients."""
        ...

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """The examples of each client: N sorted arrays of int64 indices into `labels`, none empty.

        `labels` [n] int64 in 0..classes-1; when `classes` is 0 (regression) only its length is used.
        Errors: BadInput when there are fewer examples than clients, or the settings do not fit the labels.
        """
        ...


@dataclass(frozen=True)
class IID:
    """A random split into equal shares (sizes differ by at most one)."""

    clients: int

    def __post_init__(self) -> None:
        _check_clients("iid", self.clients)

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """See `Partitioner.assign`."""
        owner = np.empty(len(labels), np.int64)
        owner[rng(seed, Purpose.PARTITION).permutation(len(labels))] = _equal_owners(len(labels), self.clients)
        return _by_owner("iid", owner, self.clients)


@dataclass(frozen=True)
class Labels:
    """`labels` different classes per client; each class is cut into equal random shares among the clients that hold it.

    The classes are dealt as evenly as possible, so that every class is used. With one label per client and as many
    clients as classes, client j holds all examples of class j. A client has fewer classes only where a class has
    fewer examples than clients to hold it.
    """

    clients: int
    labels: int = 1

    def __post_init__(self) -> None:
        _check_clients("labels", self.clients)
        if self.labels < 1:
            raise BadInput(f"partition labels: labels = {self.labels} per client; it must be at least 1")

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """See `Partitioner.assign`."""
        _check_classes("labels", classes)
        counts = np.bincount(labels, minlength=classes)
        present = np.flatnonzero(counts)
        if self.labels > len(present):
            raise BadInput(
                f"partition labels: {self.labels} labels per client, "
                f"but the training examples have {len(present)} classes"
            )
        if self.clients * self.labels < len(present):
            raise BadInput(
                f"partition labels: {self.clients} clients with {self.labels} label(s) each cannot hold all "
                f"{len(present)} classes; use at least {-(-len(present) // self.labels)} clients, "
                "or more labels per client"
            )
        if len(labels) < self.clients:
            raise _too_few("labels", len(labels), self.clients)
        draw = rng(seed, Purpose.PARTITION)
        holders = _deal(self.clients, self.labels, counts[present], draw)
        owner = np.empty(len(labels), np.int64)
        for cls, held_by in zip(present, holders, strict=True):
            examples = draw.permutation(np.flatnonzero(labels == cls))
            owner[examples] = held_by[_equal_owners(len(examples), len(held_by))]
        return _by_owner("labels", owner, self.clients)


@dataclass(frozen=True)
class Dirichlet:
    """For each label, the clients' shares are drawn from a symmetric Dirichlet distribution.

    `concentration` -> 0 gives each label to one client, -> infinity gives everybody the same mixture.
    """

    clients: int
    concentration: float = 0.5

    def __post_init__(self) -> None:
        _check_clients("dirichlet", self.clients)
        _check_concentration("dirichlet", self.concentration)

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """See `Partitioner.assign`."""
        _check_classes("dirichlet", classes)
        owner = np.empty(len(labels), np.int64)
        for cls in range(classes):
            draw = rng(seed, Purpose.PARTITION, cls)
            examples = draw.permutation(np.flatnonzero(labels == cls))
            owner[examples] = _drawn_owners(len(examples), self.clients, self.concentration, draw)
        return _by_owner("dirichlet", owner, self.clients)


@dataclass(frozen=True)
class Quantity:
    """The clients' numbers of examples are drawn from a symmetric Dirichlet distribution; the labels are IID.

    Below a `concentration` of about 1 a few clients hold most of the examples.
    """

    clients: int
    concentration: float = 0.5

    def __post_init__(self) -> None:
        _check_clients("quantity", self.clients)
        _check_concentration("quantity", self.concentration)

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """See `Partitioner.assign`."""
        draw = rng(seed, Purpose.PARTITION)
        owner = np.empty(len(labels), np.int64)
        owner[draw.permutation(len(labels))] = _drawn_owners(len(labels), self.clients, self.concentration, draw)
        return _by_owner("quantity", owner, self.clients)


@dataclass(frozen=True)
class Mixture:
    """`iid_fraction` of the examples are spread IID; the rest are sorted by label and cut into equal shares.

    1 is `IID`; at 0 each client holds a run of the sorted labels. The mixture of the gradient alignment paper.
    """

    clients: int
    iid_fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_clients("mixture", self.clients)
        if not 0 <= self.iid_fraction <= 1:
            raise BadInput(f"partition mixture: iid_fraction = {self.iid_fraction}; it must be in [0, 1]")

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """See `Partitioner.assign`."""
        _check_classes("mixture", classes)
        order = rng(seed, Purpose.PARTITION).permutation(len(labels))
        spread, rest = np.split(order, [round(self.iid_fraction * len(labels))])
        rest = rest[np.argsort(labels[rest], kind="stable")]
        owner = np.empty(len(labels), np.int64)
        owner[spread] = _equal_owners(len(spread), self.clients)
        owner[rest] = _equal_owners(len(rest), self.clients)
        return _by_owner("mixture", owner, self.clients)


@dataclass(frozen=True)
class Natural:
    """The data set's own clients (a Parquet file with a client column, the synthetic problems).

    `clients` is 0 (as many as there are) or exactly their number: no example is left out. The ids are not a function
    of the labels, so `raygrad.data.shards.prepare` calls `group` in place of `assign`.
    """

    clients: int = 0

    def __post_init__(self) -> None:
        if self.clients < 0:
            raise BadInput(f"partition natural: clients = {self.clients}; it must be 0 (as many as there are) or more")

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """Always raises BadInput: labels do not say whose they are."""
        raise BadInput(
            "partition natural: only for data sets that come with their own clients; choose another partitioner"
        )

    def group(self, natural: np.ndarray) -> list[np.ndarray]:
        """The examples of each client from the data set's client ids: `natural` [n] int64 in 0..N-1, each id used."""
        there = int(natural.max()) + 1 if len(natural) else 0
        unused = np.flatnonzero(np.bincount(natural, minlength=there) == 0)
        if len(unused) or not there:
            raise BadInput(
                f"partition natural: the data set's client ids must be 0..N-1, each used; "
                f"{len(unused)} of {there} ids have no example{f', the first is {unused[0]}' if len(unused) else ''}"
            )
        if self.clients not in (0, there):
            raise BadInput(
                f"partition natural: clients = {self.clients}, but the data set has {there} clients; "
                f"use 0 or {there}, so that no example is left out"
            )
        return _by_owner("natural", natural.astype(np.int64, copy=False), there)


@dataclass(frozen=True)
class Repeated:
    """The data set's own n clients again and again, up to `clients`: client i holds what client i mod n holds.

    For measuring how a run scales with the number of clients without storing data for each. The ids are not a function
    of the labels, so `raygrad.data.shards.prepare` calls `group` in place of `assign`, and stores n shards.
    """

    clients: int = 1_000_000

    def __post_init__(self) -> None:
        _check_clients("repeated", self.clients)

    def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
        """Always raises BadInput: labels do not say whose they are."""
        return Natural().assign(labels, classes, seed)

    def group(self, natural: np.ndarray) -> list[np.ndarray]:
        """The examples of each of the n stored clients; see `Natural.group`."""
        stored = Natural().group(natural)
        if self.clients < len(stored):
            raise BadInput(
                f"partition repeated: clients = {self.clients}, fewer than the data set's own {len(stored)}; "
                "use at least as many, so that no example is left out"
            )
        return stored


PARTITIONERS: dict[str, type] = {
    "iid": IID,
    "labels": Labels,
    "dirichlet": Dirichlet,
    "quantity": Quantity,
    "mixture": Mixture,
    "natural": Natural,
    "repeated": Repeated,
}
"""Every partitioner by the name that commands and experiments use."""


def _equal_owners(examples: int, clients: int) -> np.ndarray:
    """The owners 0..clients-1 of a row of examples cut into equal runs; earlier runs take what is left over."""
    sizes = np.full(clients, examples // clients)
    sizes[: examples % clients] += 1
    return np.repeat(np.arange(clients), sizes)


def _drawn_owners(examples: int, clients: int, concentration: float, draw: np.random.Generator) -> np.ndarray:
    """The owners of a row of examples cut at the cumulative shares of one Dirichlet draw over the clients."""
    # log Gamma(a) = log Gamma(a + 1) - Exp(1) / a in distribution: the gamma variates themselves are 0 for small a.
    log_gamma = (
        np.log(draw.standard_gamma(concentration + 1, clients)) - draw.standard_exponential(clients) / concentration
    )
    shares = np.exp(log_gamma - log_gamma.max())
    ends = np.floor(np.cumsum(shares / shares.sum()) * examples).astype(np.int64)
    ends[-1] = examples
    ends = np.minimum(ends, examples)
    return np.repeat(np.arange(clients), np.diff(ends, prepend=0))


def _deal(clients: int, per_client: int, available: np.ndarray, draw: np.random.Generator) -> list[np.ndarray]:
    """The clients that hold each class: `per_client` classes each, no class with more holders than it has examples.

    Each class gets its number of holders first, as even as possible; then each client takes the classes with the most
    holders still to find, which always works out (Gale and Ryser) as every client takes equally many.
    """
    limit = np.minimum(available, clients)
    wanted = clients * per_client
    # The largest level with sum(min(limit, level)) <= wanted, then one more for as many classes as still go in.
    level = bisect.bisect_right(range(clients + 1), wanted, key=lambda at: int(np.minimum(limit, at).sum())) - 1
    to_find = np.minimum(limit, level)
    room = np.flatnonzero(limit > level)
    # One label per client is dealt in the order of the classes, so that client j gets class j.
    order = room if per_client == 1 else draw.permutation(room)
    to_find[order[: wanted - int(to_find.sum())]] += 1

    holders: list[list[int]] = [[] for _ in available]
    for client in range(clients):
        ties = np.zeros(len(available)) if per_client == 1 else draw.random(len(available))
        for cls in np.argsort(ties - to_find, kind="stable")[:per_client]:
            if to_find[cls] > 0:
                to_find[cls] -= 1
                holders[cls].append(client)
    return [np.array(held_by, np.int64) for held_by in holders]


def _by_owner(kind: str, owner: np.ndarray, clients: int) -> list[np.ndarray]:
    """Each client's sorted indices from the owner of each example [n], after the repair of empty clients."""
    if len(owner) < clients:
        raise _too_few(kind, len(owner), clients)
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner, minlength=clients)
    ends = np.cumsum(sizes)
    shares = [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        largest = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
        heapq.heapify(largest)
        for client in empty:
            size, donor = largest[0]
            shares[client], shares[donor] = shares[donor][-1:], shares[donor][:-1]
            heapq.heapreplace(largest, (size + 1, donor))
    return shares


def _too_few(kind: str, examples: int, clients: int) -> BadInput:
    return BadInput(
        f"partition {kind}: {clients} clients, but only {examples} training examples; each client needs one: "
        f"use at most {examples} clients"
    )


def _check_clients(kind: str, clients: int) -> None:
    if clients < 1:
        raise BadInput(f"partition {kind}: clients = {clients}; it must be at least 1")


def _check_classes(kind: str, classes: int) -> None:
    if classes < 1:
        raise BadInput(
            f"partition {kind}: it needs class labels, and the data set has none; use iid, quantity or natural"
        )


def _check_concentration(kind: str, concentration: float) -> None:
    if not CONCENTRATION_MIN <= concentration <= CONCENTRATION_MAX:
        raise BadInput(
            f"partition {kind}: concentration = {concentration}; it must be in "
            f"[{CONCENTRATION_MIN:g}, {CONCENTRATION_MAX:g}]"
        )
