"""Small problems in float64 whose mini-batch orders can all be enumerated, and rounds of algorithms on them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygrad.algorithms.sgd import SGD
from raygrad.alignment import Alignment, AlignmentProbe
from raygrad.contract import Algorithm, Answer, Ask, Batch, ClientState, Cohort, Population, Replies
from raygrad.rng import Purpose, rng
from raygrad.runner import parameters

K = 3  # local steps, and mini-batches per client
CLIENTS, BATCH = 4, 4  # K and the number of clients differ, so that no formula can confuse them


def grad(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gradient [d] of a scalar function of x [d], as a function of x; it can be differentiated again."""

    def gradient(x: Tensor) -> Tensor:
        again = x.requires_grad  # then somebody differentiates this gradient
        y = x if again else x.detach().requires_grad_()
        return torch.autograd.grad(f(y), y, create_graph=again)[0]

    return gradient


Loss = Callable[[Tensor, Batch], Tensor]
"""`loss(x, batch) -> []`, the mean over the batch of a model with parameters `x` [d]."""


def least_squares(x: Tensor, batch: Batch) -> Tensor:
    """A quadratic in `x` [features]; its Hessian is mean a a^T, another one in every batch."""
    return ((batch.x @ x - batch.y) ** 2).mean() / 2


def log_cosh(x: Tensor, batch: Batch) -> Tensor:
    """log cosh(a.x - b) on average, up to a constant: convex, all derivatives Lipschitz, Hessian <= mean a a^T."""
    z = batch.x @ x - batch.y
    return torch.logaddexp(z, -z).mean()


def tanh_network(x: Tensor, batch: Batch) -> Tensor:
    """Squared loss of v . tanh(W a); `x` [h (features + 1)] holds W, then v. Smooth, neither quadratic nor convex."""
    units = x.numel() // (batch.x.shape[1] + 1)
    w, v = x[:-units].view(units, -1), x[-units:]
    return ((torch.tanh(batch.x @ w.T) @ v - batch.y) ** 2).mean() / 2


def whole(batches: Sequence[Batch]) -> Batch:
    """All examples as one batch; its loss is the mean of the losses, for the batches are equally large."""
    return Batch(torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches]))


@dataclass(frozen=True)
class Client:
    """A client's work (`raygrad.contract.Task`) in float64: one step on each of `batches`, in their order."""

    loss: Loss
    shard: Batch
    batches: Sequence[Batch]
    round: int = 1
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float | None = None

    @property
    def steps(self) -> int:
        return len(self.batches)

    @property
    def examples(self) -> int:
        return len(self.shard.y)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        return grad(lambda y: self.loss(y, batch))(x)

    def full_grad(self, x: Tensor) -> Tensor:
        return self.grad(x, self.shard)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        return grad(lambda y: self.full_grad(y) @ v)(x)

    def square_norms(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        batch = self.shard if batch is None else batch
        single = (Batch(a[None], b[None]) for a, b in zip(batch.x, batch.y, strict=True))
        return torch.stack([(self.grad(x, one) ** 2).sum() for one in single]).sum()

    def evaluate(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(x, self.shard) * self.examples, "count": torch.tensor(float(self.examples))}

    def uniforms(self, number: int = 0) -> Tensor:
        raise NotImplementedError

    def lr(self, base: float) -> float:
        return base


@dataclass(frozen=True)
class Problem:
    """n clients' mini-batches, all equally many and large, and the point where a round starts."""

    name: str
    loss: Loss
    clients: Sequence[Sequence[Batch]]  # [n][mini-batches]
    x: Tensor  # [d] float64

    def gradients(self, x: Tensor) -> Tensor:
        """The clients' gradients at `x` [d]: [n, d]."""
        return torch.stack([client.full_grad(x) for client in self.full(1)])

    def f(self, x: Tensor) -> Tensor:
        """f(x), the mean of the clients' losses."""
        return torch.stack([self.loss(x, shard) for shard in map(whole, self.clients)]).mean()

    def r(self, x: Tensor) -> Tensor:
        """r(x), half the trace of the covariance of the clients' gradients."""
        g = self.gradients(x)
        return ((g - g.mean(0)) ** 2).sum(1).mean() / 2

    def ordered(self, order: Sequence[int]) -> list[Client]:
        """Every client takes one step on each of its mini-batches in `order`."""
        return [Client(self.loss, whole(batches), [batches[b] for b in order]) for batches in self.clients]

    def full(self, steps: int) -> list[Client]:
        """Every client takes `steps` steps on its whole shard."""
        return [Client(self.loss, shard, [shard] * steps) for shard in map(whole, self.clients)]

    def pooled(self) -> "Problem":
        """One client that holds all data; the clients' shards are its mini-batches."""
        return replace(self, clients=[[whole(batches) for batches in self.clients]])

    def within(self, client: int) -> "Problem":
        """One client's mini-batches as clients of their own: its r is r_i."""
        return replace(self, clients=[[batch] for batch in self.clients[client]])


def problem(name: str, seed: int = 0, clients: int = CLIENTS) -> Problem:
    """A random `Problem`: "quadratics", "log cosh" or "tanh network"; unequal Hessians and minimisers."""
    loss, features, d = {
        "quadratics": (least_squares, 5, 5),
        "log cosh": (log_cosh, 5, 5),
        "tanh network": (tanh_network, 3, 12),
    }[name]
    draw = rng(seed, Purpose.SYNTHETIC)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(draw.standard_normal(shape))

    shards = [[Batch(normal(BATCH, features), normal(BATCH)) for _ in range(K)] for _ in range(clients)]
    return Problem(name, loss, shards, normal(d))


def problems() -> list[Problem]:
    """One whose Taylor series ends and one whose does not."""
    return [problem("quadratics"), problem("tanh network")]


# --- rounds ---------------------------------------------------------------------------------------------------------


def everyone(clients: Sequence[Client]) -> Cohort:
    """A cohort of all clients, with equal weights."""
    weights = np.ones(len(clients))
    return Cohort(np.arange(len(clients)), weights, Population(np.array([c.examples for c in clients]), weights))


def rounds(algorithm: Algorithm, x: Tensor, clients: Sequence[Client]) -> Iterator[Tensor]:
    """The model [d] after each round from `x` [d], without end; every client takes part and keeps its state."""
    cohort = everyone(clients)
    state, kept = algorithm.init(x, cohort.population), [algorithm.client_state(x) for _ in clients]
    while True:
        state, kept = converse(algorithm.round(state, cohort), clients, kept)
        yield state.x


def converse(
    conversation: Generator[Ask, Replies, Any], clients: Sequence[Client], kept: Sequence[ClientState]
) -> tuple[Any, Sequence[ClientState]]:
    """What a conversation returns, and the clients' states after it."""
    new, scratch = list(kept), [{} for _ in clients]
    try:
        ask = next(conversation)
        while True:
            answers: list[Answer] = []
            for i, client in enumerate(clients):
                known = {**ask.down, **{n: rows[i] for n, rows in ask.each.items()}, **kept[i], **scratch[i]}
                answer = ask.work(client, **{name: known[name] for name in parameters(ask.work)})
                scratch[i].update(answer.scratch or {})
                if answer.state is not None:
                    new[i] = answer.state
                answers.append(answer)
            ask = conversation.send(replies(ask.cohort, answers, ask.rows))
    except StopIteration as stop:
        return stop.value, new


def replies(cohort: Cohort, answers: Sequence[Answer], rows: Sequence[str] = ()) -> Replies:
    """The answers as the server sees them: vectors summed, scalars and those named in `rows` client by client."""
    stacked = {name: torch.stack([a.update[name] for a in answers]) for name in answers[0].update}
    weights = torch.from_numpy(cohort.weights)[:, None]
    totals = {name: (weights * t).sum(0) for name, t in stacked.items() if t.dim() > 1 and name not in rows}
    scalars = {name: t.numpy() for name, t in stacked.items() if t.dim() == 1}
    return Replies(cohort, totals, scalars, {name: stacked[name] for name in rows}, torch.float64)


def after(algorithm: Algorithm, p: Problem, clients: Sequence[Client]) -> Tensor:
    """The model [d] after one round from the problem's point."""
    return next(rounds(algorithm, p.x, clients))


def expected(algorithm: Algorithm, p: Problem) -> Tensor:
    """The mean model [d] after one round over all orders of the mini-batches, each used once.

    The clients share an order: the server's mean is linear, so orders of their own have the same expectation.
    """
    orders = permutations(range(len(p.clients[0])))
    return torch.stack([after(algorithm, p, p.ordered(order)) for order in orders]).mean(0)


def descent(p: Problem, alpha: float, steps: int) -> Tensor:
    """`steps` steps of gradient descent on f."""
    pool = p.pooled()
    return after(SGD(alpha), pool, pool.full(steps))


def probed(p: Problem) -> Alignment:
    """What the alignment probe measures at the problem's point, with all clients."""
    clients = p.full(1)
    return converse(AlignmentProbe().measure(p.x, everyone(clients)), clients, [{}] * len(clients))[0]
