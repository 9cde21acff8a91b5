"""The vocabulary that algorithms, driver and executors share.

A round is a conversation. An algorithm's `round` is a generator: it yields an `Ask`, receives `Replies`, and returns
the next state. One communication phase is one `yield`. The algorithm never knows where its client methods run; the
driver never knows what they compute.

Shapes are written in comments: d is the number of parameters, m the clients in a cohort, N all clients, K the local
steps, B the batch size.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

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

    def evaluate(self, x: Tensor) -> Mapping[str, Tensor]:
        """Sums over the shard at `x` [d], in evaluation mode: `loss`, each metric, and `count`; all 0-d."""
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
client's
state and the scratch of earlier phases."""


@dataclass(frozen=True)
class Population:
    """All N clients. `weights` are what the aggregation uses: ones, or the clients' numbers of examples."""

    examples: np.ndarray  # [N] int64
    weights: np.ndarray  # [N] float64

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def weight(self) -> float:
        """The sum of all weights."""
        return float(self.weights.sum())


@dataclass(frozen=True)
class Cohort:
    """The clients of one round, in plan order, each once, with their aggregation weights."""

    clients: np.ndarray  # [m] int64
    weights: np.ndarray  # [m] float64
    population: Population

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def share(self) -> float:
        """The cohort's part of the population's weight; m / N when the weights are equal."""
        return float(self.weights.sum()) / self.population.weight


@dataclass(frozen=True)
class Ask:
    """One communication phase: run `work` at every client of `cohort`.

    The cohort is the round's. `down` are vectors that every client receives; `each` has one row per client [m, ...];
    `rows` names the update entries that the server needs client by client instead of summed. `part` says which part of
    each client's shard the task reads. An ask that only measures is not `charged` as a communication.
    """

    work: ClientMethod
    cohort: Cohort
    down: Mapping[str, Tensor]
    each: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Sequence[str] = ()
    part: str = "train"
    charged: bool = True


@dataclass(frozen=True)
class Replies:
    """What the cohort answered. Sums are weighted with the cohort's weights, in float64, along the fixed tree."""

    cohort: Cohort
    totals: Mapping[str, Tensor]  # name -> [d] float64, sum of w_i u_i
    scalars: Mapping[str, np.ndarray]  # name -> [m] float64, one value per client, in plan order
    stacked: Mapping[str, Tensor]  # name -> [m, d], the entries named in `rows`
    dtype: Any  # of the model

    def mean(self, name: str) -> Tensor:
        """The weighted mean of an update vector [d], in the model's dtype."""
        return (self.totals[name] / float(self.cohort.weights.sum())).to(self.dtype)

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


@runtime_checkable
class Sampler(Protocol):
    """Who is asked. A draw is a function of (seed, round)."""

    @property
    def cohort(self) -> int:
        """m, how many clients are asked per round."""
        ...

    def draw(self, round: int, seed: int, population: Population) -> Cohort:
        """The cohort of round `round`."""
        ...
