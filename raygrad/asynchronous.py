"""One step of an asynchronous server: events in the order of the modelled clock, computed only where they count.

    at any moment `concurrency` clients are at work, each with the model that was newest when it began
    who is done, or leaves, is replaced at once
    a step is taken when `report_goal` answers are there; an answer is as many versions old as steps were taken since
    its client began

The device model says when every client will be done, so the order of events is known before anything is computed. What
is in flight is part of the server's state: who, since which round, until when, and the models that they were given.
"""

import heapq
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from raygrad.contract import Algorithm, Ask, Cohort, Population, Replies, asks_first
from raygrad.devices.base import Address
from raygrad.errors import BadInput
from raygrad.gang import BUFFERS, Gang, Phase, cut, parted
from raygrad.rng import Purpose, uniforms
from raygrad.samplers import Cyclic
from raygrad.stragglers import Buffered
from raygrad.talk import ABSENT, ANSWERED, LEFT, STALE, UNAVAILABLE, Fates, Flight, Played, ServerState, Talk

if TYPE_CHECKING:
    from raygrad.driver import Driver


IDLE_S = 60.0
"""How long a server waits on the modelled clock when nobody is at work and nobody can be asked."""


@dataclass(order=True, frozen=True)
class _Event:
    """The end of a client's work. Events of the same moment come in an order drawn for them."""

    end_s: float
    tie: float
    client: int
    begun: int = field(compare=False)  # in which round
    start_s: float = field(compare=False)
    weight: float = field(compare=False)
    answers: bool = field(compare=False)


@dataclass(frozen=True)
class _Ended:
    """Clients whose work ended in a round, by the round in which they began and by number: e clients."""

    clients: np.ndarray  # [e] int64
    begun: np.ndarray  # [e] int64
    weights: np.ndarray  # [e] float64
    seconds: np.ndarray  # [e] float64
    outcome: np.ndarray  # [e] str

    @staticmethod
    def of(ended: list[tuple[_Event, str, float]]) -> "_Ended":
        """From events with their outcomes and when the server knew."""
        ended = sorted(ended, key=lambda e: (e[0].begun, e[0].client))
        return _Ended(
            np.array([e.client for e, _, _ in ended], np.int64),
            np.array([e.begun for e, _, _ in ended], np.int64),
            np.array([e.weight for e, _, _ in ended]),
            np.array([now - e.start_s for e, _, now in ended]),
            np.array([outcome for _, outcome, _ in ended], object),
        )


class _Server:
    """Plays the events of one round."""

    def __init__(self, driver: "Driver", state: ServerState, index: int, policy: Buffered) -> None:
        self._driver, self._state, self._index, self._policy = driver, state, index, policy
        self.clock_s = state.clock_s
        self.started = self.reached = 0  # clients that were asked, and those of them that were there
        self._busy: set[int] = set()  # who is at work, began or ended in this round
        self._draws = 0
        self.queue: list[_Event] = []
        self.models: dict[int, Mapping[str, Tensor]] = {}
        if state.flight is not None:
            self.models = dict(state.flight.models)
            f = state.flight
            self._push(f.clients, f.begun, f.weights, f.start_s, f.end_s, f.answers)
        self.ask = first_ask(driver.algorithm, state.algorithm, driver.population)
        self.cost = driver.cost(self.ask, {})
        self.model: dict[str, Tensor] = dict(self.ask.down)  # what a client gets that begins now
        if state.buffers is not None:
            self.model[BUFFERS] = state.buffers
        self.bytes_down = sum(t.nbytes for t in self.model.values())

    def _push(
        self, clients: np.ndarray, begun: np.ndarray, weights: np.ndarray, start_s: np.ndarray, end_s: np.ndarray,
        answers: np.ndarray,
    ) -> None:  # fmt: skip
        ties = np.empty(len(clients))
        for round in np.unique(begun).tolist():
            which = begun == round
            ties[which] = uniforms(self._driver.seed, Purpose.TIES, round, clients=clients[which])
        self._busy.update(clients.tolist())
        columns = (end_s, ties, clients, begun, start_s, weights, answers)
        for values in zip(*(c.tolist() for c in columns), strict=True):
            heapq.heappush(self.queue, _Event(*values))

    def _fill(self) -> None:
        """Let clients begin until as many are at work as shall be."""
        count = self._policy.concurrency - len(self.queue)
        if count <= 0:
            return
        busy = np.array(sorted(self._busy), np.int64)
        pool = self._driver.pool(replace(self._state, clock_s=self.clock_s), self._index, count, busy)
        cohort = self._driver.drawn(replace(pool, draw=self._draws))
        if cohort.mean_weight is not None:
            raise BadInput(
                f"the sampler {type(self._driver.sampler).__name__} gives a mean_weight, which has no meaning in an "
                "asynchronous run (stragglers=buffered)"
            )
        self._draws += 1
        m = len(cohort)
        if not m:
            return
        address = Address(self._driver.seed, self._index, 0)
        steps, sizes = self._driver.work(cohort.clients, self._index)
        finish = self._driver.finish(cohort.clients, self.cost, steps, sizes, self.bytes_down, self.clock_s, address)
        self.models[self._index] = self.model
        self.started += m
        self.reached += int((finish.answers | (finish.seconds > 0)).sum())
        now = np.full(m, self.clock_s)
        self._push(cohort.clients, np.full(m, self._index), cohort.weights, now, now + finish.seconds, finish.answers)

    def ended(self) -> _Ended:
        """Whose work ends in this round. Moves the clock to the server's step."""
        found: list[tuple[_Event, str, float]] = []
        answers = 0
        present, oldest = self._driver.population.present, self._policy.max_staleness
        while answers < self._policy.report_goal:
            self._fill()
            if not self.queue:
                break
            event = heapq.heappop(self.queue)
            self.clock_s = max(self.clock_s, event.end_s)
            if event.end_s == event.start_s and not event.answers:
                outcome = UNAVAILABLE
            elif not event.answers or (present is not None and event.client not in present):
                outcome = LEFT
            elif oldest is not None and self._index - event.begun > oldest:
                outcome = STALE
            else:
                outcome, answers = ANSWERED, answers + 1
            found.append((event, outcome, self.clock_s))
        return _Ended.of(found)

    def flight(self) -> Flight:
        """Who is still at work."""
        left = sorted(self.queue)
        begun = {e.begun for e in left}
        return Flight(
            np.array([e.client for e in left], np.int64),
            np.array([e.begun for e in left], np.int64),
            np.array([e.weight for e in left]),
            np.array([e.start_s for e in left]),
            np.array([e.end_s for e in left]),
            np.array([e.answers for e in left], np.bool_),
            {round: model for round, model in sorted(self.models.items()) if round in begun},
        )


def first_ask(algorithm: Algorithm, state: Any, population: Population) -> Ask:
    """What the algorithm sends to a client that begins now. Raises BadInput if that depends on the cohort."""
    nobody = Cohort(np.empty(0, np.int64), np.empty(0), population)
    conversation = algorithm.round(state, nobody)
    ask = next(conversation)
    conversation.close()
    if ask.each:
        raise BadInput(f"{ask.work.__qualname__} sends each client something of its own: it cannot be asynchronous")
    if ask.batch_size is not None:
        raise BadInput(f"{type(algorithm).__name__} sets the batch size of each round: it cannot be asynchronous")
    return ask


def check(driver: "Driver", state: ServerState) -> None:
    """Refuse what cannot be asynchronous. Raises BadInput."""
    sampler = driver.sampler
    if asks_first(sampler) or isinstance(sampler, Cyclic):
        why = "goes by rounds" if isinstance(sampler, Cyclic) else "asks clients before it draws"
        raise BadInput(
            f"the sampler {type(sampler).__name__} {why}: it cannot be asynchronous (stragglers=buffered); choose "
            "uniform, weighted, available or oort"
        )
    if getattr(sampler, "unbiased", False):
        raise BadInput("sampler.unbiased has no meaning in an asynchronous run (stragglers=buffered); leave it out")
    first_ask(driver.algorithm, state.algorithm, driver.population)
    cohort = Cohort(np.arange(1), np.ones(1), driver.population)
    conversation = driver.algorithm.round(state.algorithm, cohort)
    ask = next(conversation)
    update = driver.cost(ask, {}).update
    replies = Replies(
        cohort,
        {n: t.double() for n, t in update.items() if t.ndim and n not in ask.rows},
        {n: np.zeros(1) for n in ("train_loss", *(n for n, t in update.items() if not t.ndim))},
        {n: update[n][None] for n in ask.rows},
        driver.dtype,
    )
    try:
        conversation.send(replies)
    except StopIteration:
        return
    raise BadInput(
        f"{type(driver.algorithm).__name__} asks its clients more than once per round; in an asynchronous run "
        "(stragglers=buffered) the mean of the first answers would be of clients at different models; choose a method "
        "with one communication, such as fedavg, fedprox, fedasync or scaffold"
    )


def play(driver: "Driver", state: ServerState, index: int, policy: Buffered) -> Played:
    """Round `index` of an asynchronous run: until the server's next step. See `Driver.play`."""
    began = perf_counter()
    server = _Server(driver, state, index, policy)
    ended = server.ended()
    clients, outcome = ended.clients, ended.outcome
    staleness = index - ended.begun
    weights = ended.weights * policy.weight(staleness)
    for version in np.unique(ended.begun).tolist() if driver.faults else ():
        mine = ended.begun == version
        outcome[mine & driver.absent(clients, version, 0) & (outcome == ANSWERED)] = ABSENT
    arrived = np.isin(outcome, (ANSWERED, ABSENT))  # gangs are cut over these, so that who is absent moves nobody
    counts = outcome == ANSWERED
    driver.check_quorum(int(counts.sum()), len(clients), index)
    runs: list[tuple[Phase, list[Gang]]] = []
    for version in np.unique(ended.begun[arrived]).tolist():
        mine = arrived & (ended.begun == version)
        asked = np.ones(int(mine.sum()), np.bool_)
        shares = driver.population.weights[clients[mine]]
        gangs = parted(cut(clients[mine], weights[mine], shares, driver.gang_size), asked, counts[mine])
        number = sum(len(earlier) for _, earlier in runs)
        model = {n: t for n, t in server.models[version].items() if n != BUFFERS}
        phase = driver.phase(
            replace(server.ask, down=model), ("begun", version), 0, server.models[version].get(BUFFERS),
            driver.schedule(version),
        )  # fmt: skip
        runs.append((phase, [replace(g, index=number + g.index) for g in gangs]))
    found = driver.collect(runs)
    for client, why in found.failed.items():
        outcome[clients == client] = why
    inside = outcome == ANSWERED
    answered = int(inside.sum())
    driver.check_quorum(answered, len(clients), index)
    mean_weight = float(ended.weights[inside].sum()) / max(1, answered)
    cohort = Cohort(clients[inside], weights[inside], driver.population, mean_weight, staleness[inside])
    bytes_up = driver.bytes_up(server.ask, found, answered)
    buffers = driver.mean_buffers(found, cohort, state.buffers)
    result = state.algorithm
    if answered:
        result = _step(driver.algorithm.round(state.algorithm, cohort), driver.replies(found, cohort))
    clock_s = server.clock_s
    if not counts.any() and clock_s == state.clock_s:  # nobody was there
        clock_s += IDLE_S
    losses = np.full(len(clients), np.nan)
    if "train_loss" in found.scalars:
        losses[inside] = found.scalars["train_loss"]
    steps = np.where(inside & (server.cost.steps > 0), driver.work(clients, ended.begun)[0], 0)
    fates = Fates(clients, weights, outcome, ended.seconds, steps, staleness, losses)
    talk = Talk(
        result, cohort, np.ones(answered, np.bool_), fates, clock_s - state.clock_s, 1, 1,
        server.bytes_down * server.reached, bytes_up, buffers, found.states, found.operations, server.started,
    )  # fmt: skip
    known = driver.learned(state.sampler, index, cohort, fates)
    after = replace(state, algorithm=result, buffers=buffers, clock_s=clock_s, sampler=known, flight=server.flight())
    return driver.played(after, index, talk, driver.schedule(index), began)


def _step(conversation: Generator[Ask, Replies, Any], replies: Replies) -> Any:
    """The state after a round of one phase."""
    next(conversation)
    try:
        conversation.send(replies)
    except StopIteration as stop:
        return stop.value
    raise TypeError("the algorithm has more than one phase: it cannot be asynchronous")
