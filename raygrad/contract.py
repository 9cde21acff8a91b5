"""The vocabulary that algorithms, driver and executors share.

A round is a conversation. An algorithm's `round` is a generator: it yields an `Ask`, receives `Replies`, and returns
the next state. One communication phase is one `yield`. The algorithm never knows where its client methods run; the
driver never knows what they compute.

Shapes are written in comments: d is the number of parameters, m the clients in a cohort, N all clients, K the local
steps, B the batch size.
"""

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from raygrad.rng import Purpose, rng

ClientState = Mapping[str, Tensor]
"""What one client keeps between rounds (SCAFFOLD's c_i). The driver owns it; it advances if and only if the round
commits.
"""


@dataclass(frozen=True)
class Answer:
    """What a client method returns.

    `update` goes up: each vector [d] is summed over the cohort with the cohort's weights; 0-d entries are metrics and
    are kept client by client. `state` replaces the client's state when the round commits. `scratch` is what a later
    phase of the same round takes by name (FedGA's g_i): it stays on the host, is never sent or saved, and is computed
    again when its host died.
    """

    update: Mapping[str, Tensor]
    state: ClientState | None = None
    scratch: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Batch:
    """One mini-batch: `x` [B, ...] and `y` [B, ...]. `FULL` stands for the whole shard, each example once."""

    x: Tensor
    y: Tensor


class Task(Protocol):
    """One client's work in this phase, as the client method sees it."""

    steps: int
    """K, the local steps."""
    examples: Any
    """n_i, the examples in the client's shard (an int, or a 0-d tensor in a vmapped gang)."""
    round: int
    weight_decay: float
    clip_norm: float | None
    momentum: float

    @property
    def batches(self) -> Iterable[Batch]:
        """The K mini-batches of exactly B examples drawn for (seed, round, client); the same in every phase of a
        round.
        """
        ...

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        """The gradient of the mean loss over `batch` at `x` [d] -> [d], without weight decay or clipping."""
        ...

    def full_grad(self, x: Tensor) -> Tensor:
        """The gradient of the mean loss over the whole shard, each example once, at `x` [d] -> [d]."""
        ...

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The Hessian of the mean loss over the whole shard at `x` [d], times `v` [d] -> [d].

        It is the derivative of the conversation's first full gradient: the same augmented examples, and the dropout
        masks that `full_grad` has where a first phase begins with it. Raises NotImplementedError where the model has an
        operation that cannot be differentiated twice.
        """
        ...

    def square_norms(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """The sum of |grad l_j|^2 over the examples j of `batch` (None: of the whole shard) at `x` [d] -> [].

        Layers that depend on the other examples of a batch are in evaluation mode.
        """
        ...

    def evaluate(self, x: Tensor) -> Mapping[str, Tensor]:
        """Sums over the shard at `x` [d], in evaluation mode: `loss`, each metric, and `count`; all 0-d."""
        ...

    def uniforms(self, number: int = 0) -> Tensor:
        """d numbers uniform in [0, 1) for (seed, round, phase, client): [d]. Another `number` gives others."""
        ...

    def lr(self, base: float) -> float:
        """The step size of this round: `base` times the schedule's factor."""
        ...


@runtime_checkable
class Descends(Protocol):
    """A task that can make its K plain steps at once, faster than one by one and with the same bits."""

    def descend(self, start: Tensor, lr: float) -> Tensor | None:
        """The iterate [d] after K steps of SGD from `start` [d]; None where it cannot (clipping, full batches)."""
        ...


ClientMethod = Callable[..., Answer]
"""`method(task, ...)`: the other parameters are filled by name from the phase's `down` vectors, the `each` rows, the
client's state and the scratch of earlier phases. A method that takes `start=None`, begins there instead of at the model
and measures its `delta` from there can be given a displacement (`raygrad.algorithms.displaced`)."""


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of all parameters, and of those with a default."""
    found = inspect.signature(function).parameters
    return tuple(found), tuple(n for n, p in found.items() if p.default is not inspect.Parameter.empty)


def parameters(work: ClientMethod, optional: bool = False) -> tuple[str, ...]:
    """The names that a client method takes besides its task: those that it must be given, or the `optional` ones."""
    bound = getattr(work, "__func__", None)
    names, defaults = _parameters(work if bound is None else bound)
    mine = names[1:] if bound is None else names[2:]
    return tuple(n for n in mine if (n in defaults) == optional)


@dataclass(frozen=True)
class Population:
    """All N clients, of which some may not be there now. `weights` are what the aggregation uses: ones, or the clients'
    numbers of examples. What is said of the population is said of its present clients. `seed` is the experiment's, for
    algorithms that draw on the server.
    """

    examples: np.ndarray  # [N] int64
    weights: np.ndarray  # [N] float64
    present: np.ndarray | None = None  # [n] int64, sorted; None: all are there
    seed: int = 0

    def __len__(self) -> int:
        return len(self.examples if self.present is None else self.present)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The present clients at `positions` [m] of 0..n-1, as client numbers."""
        return positions if self.present is None else self.present[positions]

    def one(self) -> "Cohort":
        """A cohort of the first client that is there: to see what a method asks."""
        return Cohort(self.at(np.zeros(1, np.int64)), np.ones(1), self)

    @cached_property
    def weight(self) -> float:
        """The sum of the present clients' weights."""
        return float((self.weights if self.present is None else self.weights[self.present]).sum())


@dataclass(frozen=True)
class Cohort:
    """The clients of one round, in plan order, each once, with their aggregation weights.

    Means divide by the sum of the weights, or by `mean_weight` per client where a sampling scheme or a discount for
    staleness says so.
    """

    clients: np.ndarray  # [m] int64
    weights: np.ndarray  # [m] float64
    population: Population
    mean_weight: float | None = None
    staleness: np.ndarray | None = None  # [m] int64, rounds since the clients were given their model; None: no rounds

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def divisor(self) -> float:
        """What weighted sums are divided by to give means."""
        return float(self.weights.sum()) if self.mean_weight is None else self.mean_weight * len(self)

    def only(self, mask: np.ndarray) -> "Cohort":
        """The clients where `mask` [m] is true."""
        if mask.all():
            return self
        staleness = None if self.staleness is None else self.staleness[mask]
        return replace(self, clients=self.clients[mask], weights=self.weights[mask], staleness=staleness)


@dataclass(frozen=True)
class Ask:
    """One communication phase: run `work` at every client of `cohort`.

    The cohort is the round's, later that of the newest replies. `down` are vectors that every client receives; `each`
    has one row per client [m, ...]; `rows` names the update entries that the server needs client by client instead of
    summed, `shares` those that are summed with the population's weights instead of the cohort's. `part` says which part
    of each client's shard the task reads. An ask that only measures is not `charged` as a communication. `batch_size`
    takes the place of the experiment's (`raygrad.local.Local`). `encoded(numbers, itemsize)` is how many bytes a vector
    of so many numbers takes on its way up where it is not sent as it is.
    """

    work: ClientMethod
    cohort: Cohort
    down: Mapping[str, Tensor]
    each: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Sequence[str] = ()
    shares: Sequence[str] = ()
    part: str = "train"
    charged: bool = True
    batch_size: int | None = None
    encoded: Callable[[int, int], int] | None = None

    def bytes_of(self, vector: Tensor) -> int:
        """What an update vector [d], or a scalar [], takes on its way up."""
        if self.encoded is None or not vector.ndim:
            return vector.nbytes
        return self.encoded(vector.numel(), vector.element_size())


@dataclass(frozen=True)
class Replies:
    """What those of the cohort answered whose answers count. Sums are weighted, in float64, along the fixed tree."""

    cohort: Cohort
    totals: Mapping[str, Tensor]  # name -> [d] float64, sum of w_i u_i
    scalars: Mapping[str, np.ndarray]  # name -> [m] float64, one value per client, in plan order
    stacked: Mapping[str, Tensor]  # name -> [m, d], the entries named in `rows`
    dtype: Any  # of the model

    def mean(self, name: str) -> Tensor:
        """The weighted mean of an update vector [d], in the model's dtype."""
        return (self.totals[name] / self.cohort.divisor).to(self.dtype)

    def share(self, name: str) -> Tensor:
        """The mean over the whole population of an update vector [d] named in `shares`, as if all others had answered
        zero.
        """
        return (self.totals[name] / self.cohort.population.weight).to(self.dtype)

    @property
    def discount(self) -> float:
        """The sum of the weights over what means are divided by: below 1 where stale answers count less."""
        return float(self.cohort.weights.sum()) / self.cohort.divisor

    def rows(self, name: str) -> Tensor:
        """An update vector client by client [m, d], in plan order; `name` must be among the ask's `rows`."""
        return self.stacked[name]

    def scalar(self, name: str) -> np.ndarray:
        """A 0-d update entry client by client: [m] float64, in plan order."""
        return self.scalars[name]


Round = Generator[Ask, Replies, Any]
"""The conversation of one round: yields asks, receives replies, returns the next state."""


@runtime_checkable
class Algorithm(Protocol):
    """Both halves of a method. Implementations are frozen dataclasses whose fields are their settings.

    The state is a frozen dataclass of tensors with a field `x` [d], the model.
    """

    def init(self, x: Tensor, population: Population) -> Any:
        """The state before the first round, from the initial model `x` [d]."""
        ...

    def client_state(self, x: Tensor) -> ClientState:
        """What a client's state is before its first round ({} for stateless clients)."""
        ...

    def round(self, state: Any, cohort: Cohort) -> Round:
        """One round."""
        ...


@dataclass(frozen=True)
class Change:
    """Clients that left or joined the population between two rounds. Those who come back bring their old state."""

    before: Population
    after: Population
    left: np.ndarray  # [l] int64, sorted
    joined: np.ndarray  # [j] int64, sorted
    states: Callable[[np.ndarray], Mapping[str, Tensor]]
    """`states(clients)`: the states of some clients, name -> [m, ...]"""

    def mean(self, mean: Tensor, name: str) -> Tensor:
        """The mean [d] of the client states `name` over the population after the change, from that before it."""
        total = mean.double() * self.before.weight
        for clients, sign in ((self.left, -1.0), (self.joined, 1.0)):
            for start in range(0, len(clients), _CHANGED):
                some = clients[start : start + _CHANGED]
                weights = torch.from_numpy(sign * self.before.weights[some])
                total += (self.states(some)[name].double() * weights[:, None]).sum(0)
        return (total / self.after.weight).to(mean.dtype)


_CHANGED = 64  # client states read at a time


@runtime_checkable
class Resizes(Protocol):
    """An algorithm whose state depends on who is in the population."""

    def resize(self, state: Any, change: Change) -> Any:
        """The state for the population after `change`."""
        ...


@runtime_checkable
class Measures(Protocol):
    """An algorithm that has something to say of its state: numbers by name, written to the table of metrics (part
    "algorithm") whenever the model is evaluated. Sums are to be numpy's, whose order no number of threads changes.
    """

    def measures(self, state: Any) -> Mapping[str, float]:
        """What is to be seen of the state."""
        ...


@dataclass(frozen=True)
class Pool:
    """Whom a sampler may draw from in round `round`, and what it may know."""

    round: int
    seed: int
    population: Population
    count: int  # how many to draw
    x: Tensor  # [d], the model
    excluded: np.ndarray  # [e] int64, clients that are at work already
    available: Callable[[np.ndarray], np.ndarray]
    """`available(clients)` -> [m] bool: who could begin now"""
    memory: Mapping[str, Tensor]
    """what the sampler `Learns`"""
    draw: int = 0  # in an asynchronous round: the number of the draw

    def rng(self, *key: int) -> np.random.Generator:
        """The generator for this draw."""
        draw = (self.draw,) if self.draw else ()
        return rng(self.seed, Purpose.SAMPLING, self.round, *draw, *key)


Draw = Generator[Ask, Replies, Cohort]


@runtime_checkable
class Sampler(Protocol):
    """Who is asked. A draw is a function of the pool."""

    @property
    def cohort(self) -> int:
        """m, how many clients shall answer per round."""
        ...

    def draw(self, pool: Pool) -> Cohort | Draw:
        """`pool.count` clients, or as many as there are; a conversation where clients must be asked first."""
        ...


def asks_first(sampler: Sampler) -> bool:
    """Whether a sampler asks clients before it draws."""
    return inspect.isgeneratorfunction(type(sampler).draw)


@dataclass(frozen=True)
class Told:
    """What a sampler may learn from a round: of the clients whose answers counted."""

    round: int
    cohort: Cohort
    losses: np.ndarray | None  # [m] float64, mean training loss
    seconds: np.ndarray  # [m] float64, modelled


@runtime_checkable
class Learns(Protocol):
    """A sampler that keeps something between rounds: tensors by name, saved in checkpoints."""

    def start(self, population: Population) -> Mapping[str, Tensor]:
        """What it knows before the first round."""
        ...

    def learn(self, memory: Mapping[str, Tensor], told: Told) -> Mapping[str, Tensor]:
        """What it knows after a round."""
        ...
