"""The theory of gradient alignment, measured on the shipped algorithms: `raygrad verify theory`.

    f(x) = 1/n sum_i f_i(x)        r(x) = 1/(2n) sum_i |grad f_i(x) - grad f(x)|^2

Each statement says by what an algorithm's round differs from a reference. It is measured on small problems in float64
whose mini-batch orders are all enumerated, so every expectation is a finite mean, and grad r is the derivative of the
definition above. A statement of order p is measured by its remainder, measured minus predicted, while alpha (or beta)
is halved five times: the last three slopes must lie within 0.15 of p, no remainder below 1e-12 |x|, where rounding
could show. A statement is ok if it holds and its broken twin does not: with the predicted term's sign flipped, for
GradAlign and FedGA the displacement's sign, or as `Statement.wrong` says.

Source: Dandi, Barba, Jaggi, "Implicit Gradient Alignment in Distributed and Federated Learning" (arXiv 2106.13897),
theorems 1 to 5; docs/theory.md says where each statement comes from.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, pairwise, permutations
from math import log2
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from raygrad import config
from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedga_stale import StaleFedGA
from raygrad.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.gradalign import GradAlign
from raygrad.algorithms.lbsgd import LargeBatchSGD
from raygrad.algorithms.scaffold import Scaffold, ScaffoldFresh
from raygrad.algorithms.sgd import SGD
from raygrad.alignment import Alignment, AlignmentProbe
from raygrad.contract import Algorithm, Answer, Ask, Batch, ClientState, Cohort, Population, Replies
from raygrad.rng import Purpose, rng
from raygrad.runner import parameters

K = 3  # local steps, and mini-batches per client
CLIENTS, BATCH = 4, 4  # K and the number of clients differ, so that no formula can confuse them
HALVED = [2.0**-j for j in range(6, 12)]  # alpha or beta: remainders of order 3 end near 1e-9
SLACK, ROUNDING, EXACT = 0.15, 1e-12, 1e-12


def grad(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gradient [d] of a scalar function of x [d], as a function of x; it can be differentiated again."""

    def gradient(x: Tensor) -> Tensor:
        again = x.requires_grad  # then somebody differentiates this gradient
        y = x if again else x.detach().requires_grad_()
        return torch.autograd.grad(f(y), y, create_graph=again)[0]

    return gradient


# --- problems -------------------------------------------------------------------------------------------------------

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

    def evaluate(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(x, self.shard) * self.examples, "count": torch.tensor(float(self.examples))}

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
                known = {**ask.down, **kept[i], **scratch[i]}
                answer = ask.work(client, **{name: known[name] for name in parameters(ask.work)})
                scratch[i].update(answer.scratch or {})
                if answer.state is not None:
                    new[i] = answer.state
                answers.append(answer)
            ask = conversation.send(replies(ask.cohort, answers))
    except StopIteration as stop:
        return stop.value, new


def replies(cohort: Cohort, answers: Sequence[Answer]) -> Replies:
    """The answers as the server sees them: vectors summed, scalars client by client."""
    stacked = {name: torch.stack([a.update[name] for a in answers]) for name in answers[0].update}
    totals = {name: t.sum(0) for name, t in stacked.items() if t.dim() > 1}
    scalars = {name: t.numpy() for name, t in stacked.items() if t.dim() == 1}
    return Replies(cohort, totals, scalars, {}, torch.float64)


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


def displaced(algorithm: GradAlign | FedGA | StaleFedGA | Displaced, beta: float) -> Algorithm:
    """`algorithm` with displacement `beta`, also a negative one, which its settings refuse."""
    object.__setattr__(algorithm, "beta", beta)
    return algorithm


# --- statements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One measurement: as it is read, and whether it is what was predicted."""

    text: str
    holds: bool


Measure = Callable[[float], Iterable[Finding]]
"""`measure(sign)`: sign 1 is the statement, -1 its broken twin; other factors of the predicted term are wrong, too."""


@dataclass(frozen=True)
class Verdict:
    """What was measured of a statement and of its broken twin; `ok` if the one holds and the other fails throughout."""

    measured: str
    broken: str
    ok: bool


@dataclass(frozen=True)
class Statement:
    """A prediction that can be measured, and what is broken in its twin."""

    name: str
    predicted: str
    measure: Measure
    wrong: str

    def verdict(self) -> Verdict:
        """Measure both. An error inside is a failure."""
        try:
            right, wrong = list(self.measure(1.0)), list(self.measure(-1.0))
        except Exception as e:
            message = str(e).partition("\n")[0]
            return Verdict(f"{type(e).__name__}: {message}", "", False)
        ok = all(f.holds for f in right) and not any(f.holds for f in wrong)
        text = ["; ".join(f.text for f in findings) for findings in (right, wrong)]
        return Verdict(text[0], f"{self.wrong}: {text[1]}", ok)


def statement(name: str, predicted: str, wrong: str = "sign flipped") -> Callable[[Measure], Statement]:
    """Turns the function that measures a prediction into its `Statement`."""
    return lambda measure: Statement(name, predicted, measure, wrong)


Remainder = Callable[[Problem, float, float], Tensor]
"""`remainder(p, size, sign) -> [d]`: the measured difference of two rounds minus `sign` times the predicted one."""


def of_order(expected_slope: int, p: Problem, remainder: Remainder, sign: float) -> Finding:
    """Whether the remainder's slope over HALVED ends at `expected_slope`; shows the worst of the last three."""
    norms = [float(remainder(p, size, sign).norm()) for size in HALVED]
    if min(norms) < ROUNDING * float(p.x.norm()):
        return Finding(f"remainder {min(norms):.0e}, lost in rounding ({p.name})", False)
    slopes = [log2(a / b) for a, b in pairwise(norms)][-3:]
    worst = max(slopes, key=lambda slope: abs(slope - expected_slope))
    return Finding(f"slope {worst:.3f} ({p.name})", abs(worst - expected_slope) <= SLACK)


def expansion(name: str, predicted: str) -> Callable[[Remainder], Statement]:
    """Turns a remainder into the statement that it is of order 3 in alpha, on every one of `problems`."""

    def of(remainder: Remainder) -> Statement:
        return statement(name, predicted)(lambda sign: (of_order(3, p, remainder, sign) for p in problems()))

    return of


def exact(what: str, error: float, limit: float = EXACT) -> Finding:
    """Whether an error is rounding."""
    return Finding(f"error {error:.0e} ({what})", error <= limit)


@expansion("theorem 1", "E[K SGD steps] - K GD steps = -(K alpha^2 / 2) grad r + O(alpha^3)")
def theorem_1(p: Problem, alpha: float, sign: float) -> Tensor:
    """K mini-batches in all K! orders; r is the covariance of their gradients."""
    steps = len(p.clients)
    predicted = -steps * alpha**2 / 2 * grad(p.r)(p.x)
    return expected(SGD(alpha), p.pooled()) - descent(p, alpha, steps) - sign * predicted


@statement("theorem 2", "GradAlign - GD step = -alpha beta grad r + O(alpha beta^2), exact on quadratics")
def theorem_2(sign: float, alpha: float = 0.1) -> Iterator[Finding]:
    """One step; alpha is fixed and beta halved."""

    def predicted(p: Problem, beta: float) -> Tensor:
        return -alpha * beta * grad(p.r)(p.x)

    def remainder(p: Problem, beta: float, sign: float) -> Tensor:
        aligned = after(displaced(GradAlign(alpha), sign * beta), p, p.full(1))
        return aligned - after(LargeBatchSGD(alpha), p, p.full(1)) - predicted(p, beta)

    quadratics, network = problems()
    error = remainder(quadratics, 0.5, sign).norm() / predicted(quadratics, 0.5).norm()
    yield exact("quadratics, beta = 0.5", float(error))
    yield of_order(2, network, remainder, sign)


@statement("theorem 3", "unless grad f = grad r = 0, some beta = 2^-j makes a GradAlign step decrease f + beta r")
def theorem_3(sign: float) -> Iterator[Finding]:
    """At minimisers of f, where only grad r is left, and around them; alpha = 1 / (4 L1), j <= 8."""
    descends, still = [], []
    for p in (problem(name, seed) for name in ("quadratics", "log cosh") for seed in range(10)):
        a = torch.cat([whole(batches).x for batches in p.clients])
        l1 = float(torch.linalg.matrix_norm(a, 2)) ** 2 / len(a)  # both Hessians are at most mean a a^T
        alpha = 1 / (4 * l1)
        for x in points(p):
            still.append(float(grad(p.f)(x).norm()) < 1e-12 and float(grad(p.r)(x).norm()) > 1e-3)
            descends.append(any(decreases(replace(p, x=x), alpha, 2.0**-j, sign) for j in range(9)))
    met = sum(d for d, s in zip(descends, still, strict=True) if s)
    text = f"{sum(descends)} of {len(descends)} points, {met} of the {sum(still)} with grad f = 0"
    yield Finding(text, all(descends) and any(still))


def points(p: Problem) -> list[Tensor]:
    """The minimiser of a convex f by Newton's method, and points [d] at growing distances from it."""
    x = torch.zeros_like(p.x)
    for _ in range(8):
        x = x - torch.linalg.solve(hessian(p.f, x), grad(p.f)(x))
    return [x + distance * p.x for distance in (0, 1e-3, 0.1, 1, 10)]


def decreases(p: Problem, alpha: float, beta: float, sign: float) -> bool:
    """Whether a GradAlign step, displaced by `sign` times `beta`, decreases f + beta r."""
    x = after(displaced(GradAlign(alpha), sign * beta), p, p.full(1))
    before, now = (float(p.f(at) + beta * p.r(at)) for at in (p.x, x))
    return now < before * (1 - ROUNDING)


@expansion("theorem 4", "FedGA - FedAvg = -alpha beta K grad r + O(alpha beta^2 + alpha^2 beta), beta = 2 alpha")
def theorem_4(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps."""
    beta = 2 * alpha
    predicted = -alpha * beta * K * grad(p.r)(p.x)
    fedga = displaced(FedGA(alpha), sign * beta)
    return after(fedga, p, p.full(K)) - after(FedAvg(alpha), p, p.full(K)) - predicted


def mean_delta(algorithm: Algorithm, p: Problem, clients: Sequence[Client]) -> Tensor:
    """The mean [d] of what the clients call their delta, in one round from the problem's point."""
    seen: list[Tensor] = []

    def overheard(conversation: Generator[Ask, Replies, Any]) -> Generator[Ask, Replies, Any]:
        ask = next(conversation)
        while True:
            r = yield ask
            if "delta" in r.totals:
                seen.append(r.mean("delta"))
            try:
                ask = conversation.send(r)
            except StopIteration as stop:
                return stop.value

    cohort, kept = everyone(clients), [algorithm.client_state(p.x) for _ in clients]
    converse(overheard(algorithm.round(algorithm.init(p.x, cohort.population), cohort)), clients, kept)
    (delta,) = seen
    return delta


INSIDE = (FedProx(mu=0.5), FedDyn(penalty=0.5), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad())
"""What the displacement is measured around, besides FedAvg."""


@statement("displacement", "displaced - plain mean delta = -alpha beta K grad r + O(alpha^3), beta = 2 alpha")
def displacement(sign: float) -> Iterator[Finding]:
    """K full local steps, around FedProx, FedDyn and server optimisers; on the network, whose series does not end."""
    for inside in INSIDE:

        def remainder(p: Problem, alpha: float, sign: float, inside: Algorithm = inside) -> Tensor:
            inner = config.assign(Displaced(inside), "lr", repr(alpha)).inner
            found = mean_delta(displaced(Displaced(inner), sign * 2 * alpha), p, p.full(K))
            return found - mean_delta(inner, p, p.full(K)) + 2 * alpha**2 * K * grad(p.r)(p.x)

        p = problem("tanh network")
        yield of_order(3, replace(p, name=type(inside).__name__), remainder, sign)


def with_momentum(p: Problem, momentum: float) -> list[Client]:
    """K full local steps with momentum."""
    return [replace(client, momentum=momentum) for client in p.full(K)]


@expansion("local momentum", "FedGA - FedAvg = -alpha beta K s grad r, s = (1 - m (1-m^K) / (K (1-m))) / (1-m)")
def local_momentum(p: Problem, alpha: float, sign: float, m: float = 0.9) -> Tensor:
    """K full local steps whose momentum begins anew in every round; beta = 2 alpha, + O(alpha^3)."""
    factor = (1 - m * (1 - m**K) / (K * (1 - m))) / (1 - m)
    clients, beta = with_momentum(p, m), 2 * alpha
    moved = after(displaced(FedGA(alpha), sign * beta), p, clients) - after(FedAvg(alpha), p, clients)
    return moved + alpha * beta * K * factor * grad(p.r)(p.x)


@expansion("server momentum", "after R rounds FedGA - FedAvg = -alpha beta K grad r sum_t (1-m^t) / (1-m)")
def server_momentum(p: Problem, alpha: float, sign: float, m: float = 0.9, count: int = 4) -> Tensor:
    """R = 4 rounds of K full local steps, beta = 2 alpha, + O(alpha^3). A further round's factor goes to 1 / (1-m)."""
    factor = sum((1 - m**t) / (1 - m) for t in range(1, count + 1))

    def end(inner: Algorithm) -> Tensor:
        return next(islice(rounds(FedAvgM(inner, momentum=m), p.x, p.full(K)), count - 1, None))

    moved = end(displaced(FedGA(alpha), sign * 2 * alpha)) - end(FedAvg(alpha))
    return moved + 2 * alpha**2 * K * factor * grad(p.r)(p.x)


@expansion("stale FedGA", "second round: stale FedGA - FedAvg = -alpha beta K grad r + O(alpha^3), beta = 2 alpha")
def stale(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps of all clients; both start from what the first round has made of x."""
    both = rounds(displaced(StaleFedGA(alpha), sign * 2 * alpha), p.x, p.full(K))
    x, found = next(both), next(both)
    moved = found - after(FedAvg(alpha), replace(p, x=x), p.full(K))
    return moved + 2 * alpha**2 * K * grad(p.r)(x)


@expansion("theorem 5", "fresh SCAFFOLD - FedAvg = -alpha^2 K(K-1)/2 grad r + O(alpha^3)")
def theorem_5(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps."""
    predicted = -(alpha**2) * K * (K - 1) / 2 * grad(p.r)(p.x)
    return after(ScaffoldFresh(alpha), p, p.full(K)) - after(FedAvg(alpha), p, p.full(K)) - sign * predicted


@expansion("FedAvg", "FedAvg - K GD steps = +alpha^2 K(K-1)/2 grad r + O(alpha^3)")
def fedavg(p: Problem, alpha: float, sign: float) -> Tensor:
    """K full local steps: the clients' drift raises r."""
    predicted = alpha**2 * K * (K - 1) / 2 * grad(p.r)(p.x)
    return after(FedAvg(alpha), p, p.full(K)) - descent(p, alpha, K) - sign * predicted


@expansion("within clients", "E[FedAvg on mini-batches] - FedAvg = -(K alpha^2 / 2) mean_i grad r_i + O(alpha^3)")
def within_clients(p: Problem, alpha: float, sign: float) -> Tensor:
    """K mini-batches at each client in all K! orders, against K full local steps; r_i is the covariance in client i."""
    grad_r = torch.stack([grad(p.within(i).r)(p.x) for i in range(len(p.clients))]).mean(0)
    predicted = -K * alpha**2 / 2 * grad_r
    return expected(FedAvg(alpha), p) - after(FedAvg(alpha), p, p.full(K)) - sign * predicted


@expansion("linear scaling", "E[m SGD steps] - linear step = (aligned step - linear step) + O(alpha^3)")
def linear_scaling(p: Problem, alpha: float, sign: float) -> Tensor:
    """One step m times as long for m mini-batches in all m! orders. With sign 0 it is the linear step's remainder."""
    linear, aligned = (after(LargeBatchSGD(alpha, scaling), p, p.full(1)) for scaling in ("linear", "aligned"))
    predicted = aligned - linear
    return expected(SGD(alpha), p.pooled()) - linear - sign * predicted


@statement("r on a cohort", "E[r on m of N clients] = (1 - 1/m) N/(N-1) r", "both signs flipped")
def cohort_bias(sign: float) -> Iterator[Finding]:
    """All cohorts of m of N = 6 clients, as the alignment probe measures them."""
    p = problem("quadratics", clients=6)
    n, r = len(p.clients), float(p.r(p.x))
    for m in (2, 3, 5):
        found = [probed(replace(p, clients=cohort)).r for cohort in combinations(p.clients, m)]
        yield exact(f"m = {m}", abs(sum(found) / len(found) / ((1 - sign / m) * n / (n - sign) * r) - 1))


@statement("diversity", "n sum_i |g_i|^2 / |sum_i g_i|^2 = 1 + 2 r / |g|^2")
def diversity(sign: float) -> Iterator[Finding]:
    """n times the gradient diversity (Yin et al., arXiv 1706.05699) by definition; r and |g| from the probe."""
    for p in problems():
        g, alignment = p.gradients(p.x), probed(p)
        measured = len(g) * float((g**2).sum() / (g.sum(0) ** 2).sum())
        yield exact(p.name, abs(measured / (1 + sign * 2 * alignment.r / alignment.gradient_norm**2) - 1))


@statement(
    "degenerate cases",
    "FedGA(beta=0) = FedAvg = FedProx(mu=0) = FedAvgM(m=0); with K = 1 FedGA = GradAlign, fresh SCAFFOLD = GD step",
    "beta = mu = m = 1e-3, K = 2",
)
def degenerate_cases(sign: float) -> Iterator[Finding]:
    """The first two on mini-batches, the others on full batches."""
    p = problem("tanh network")
    zero, one = (0.0, 1) if sign == 1 else (1e-3, 2)
    alpha, clients, single = 0.1, p.ordered(range(K)), p.full(1)
    ahead = FedAvgM(FedAvg(alpha), momentum=zero, nesterov=True)
    for what, special, general in (
        ("beta", after(FedAvg(alpha), p, clients), after(FedGA(alpha, zero), p, clients)),
        ("mu", after(FedAvg(alpha), p, clients), after(FedProx(alpha, zero), p, clients)),
        (
            "FedAvgM m",
            after(FedAvg(alpha), p, clients),
            after(ahead, p, clients),
        ),
        ("FedGA K", after(GradAlign(alpha, 0.3), p, single), after(FedGA(alpha, 0.3), p, p.full(one))),
        ("SCAFFOLD K", after(LargeBatchSGD(alpha), p, single), after(ScaffoldFresh(alpha), p, p.full(one))),
    ):
        yield exact(what, float((general - special).abs().max()), 1e-15)


@statement(
    "stationary points",
    "SCAFFOLD and FedDyn end at |grad f| <= 1e-8 on quadratics with unequal Hessians, FedAvg above 1e-3",
    "FedAvg in their place",
)
def stationary(sign: float, alpha: float = 0.1, count: int = 120) -> Iterator[Finding]:
    """`count` rounds of K full local steps."""
    p = problem("quadratics")

    def end(algorithm: Algorithm) -> float:
        x = next(islice(rounds(algorithm, p.x, p.full(K)), count - 1, None))
        return float(grad(p.f)(x).norm())

    plain = end(FedAvg(alpha))
    for name, algorithm in (
        ("option I", Scaffold(alpha, "I")), ("option II", Scaffold(alpha, "II")), ("FedDyn", FedDyn(alpha, 1.0)),
    ):  # fmt: skip
        found = end(algorithm) if sign == 1 else plain
        yield Finding(f"{name} {found:.0e}, FedAvg {plain:.0e}", found <= 1e-8 and plain >= 1e-3)


@statement(
    "displaced FedDyn",
    "ends where mean_i grad f_i(x + v_i) = 0, v_i = beta (g_i - g), not where grad f = 0",
    "grad f in its place",
)
def displaced_stationary(sign: float, alpha: float = 0.1, beta: float = 0.05, count: int = 400) -> Iterator[Finding]:
    """Duals are measured from the displaced start; had they been from x, it would end at neither."""
    p = problem("quadratics")
    x = next(islice(rounds(Displaced(FedDyn(alpha, 1.0), beta), p.x, p.full(K)), count - 1, None))
    g = p.gradients(x)
    points = x + beta * (g - g.mean(0)) if sign == 1 else x.expand_as(g)
    there = torch.stack([client.full_grad(point) for client, point in zip(p.full(1), points, strict=True)])
    error = float(there.mean(0).norm())
    yield Finding(f"{error:.0e}", error <= 1e-8)


STATEMENTS = (
    theorem_1, theorem_2, theorem_3, theorem_4, theorem_5,
    fedavg, within_clients, linear_scaling, cohort_bias, diversity, degenerate_cases, stationary,
    displacement, displaced_stationary, local_momentum, server_momentum, stale,
)  # fmt: skip
