"""The driver carries the conversation of each round between an algorithm and an executor. It knows no mathematics.

A round is the unit of atomicity: the server's state and the clients' states are adopted together when its generator
returns. Who counts is decided on the modelled clock before anything is computed; real time decides nothing.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from raygrad import asynchronous, logs
from raygrad.contract import (
    Algorithm,
    Ask,
    Change,
    Cohort,
    Draw,
    Learns,
    Pool,
    Population,
    Replies,
    Resizes,
    Sampler,
    Told,
    asks_first,
)
from raygrad.costs import Cost, rehearse
from raygrad.devices.base import Address, Devices, Finish, Load
from raygrad.errors import BadInput, BelowQuorum, Diverged, Stopped
from raygrad.faults import Fault, at_clients
from raygrad.gang import BUFFERS, Arrays, Failure, Gang, GangReply, Phase, TreeSum, cut, finite, parted, without
from raygrad.local import Local
from raygrad.rng import Purpose, uniforms
from raygrad.stragglers import Buffered, Policy
from raygrad.talk import (
    ABSENT,
    ANSWERED,
    DAMAGED,
    KILLER,
    LATE,
    LEFT,
    REJECTED,
    UNAVAILABLE,
    Done,
    Failures,
    Fates,
    Operation,
    Played,
    ServerState,
    Talk,
)  # fmt: skip


class States(Protocol):
    """Where clients' states live between rounds; `template` is what each has before its first."""

    @property
    def template(self) -> Arrays: ...

    def get(self, clients: np.ndarray) -> Arrays: ...


class Executor(Protocol):
    """Runs the gangs of a phase somewhere and knows no rounds."""

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        """The gangs' replies, in any order."""
        ...


@dataclass(frozen=True)
class Collected:
    """What gangs have answered, put together: `totals` along the tree, the rest client by client in plan order."""

    totals: dict[str, Tensor]
    scalars: dict[str, np.ndarray]
    rows: dict[str, Tensor]
    states: list[tuple[np.ndarray, Arrays]]
    failed: dict[int, str]  # client -> outcome
    operations: list[Operation]


_DOING = {"round": "training", "validation": "evaluating", "test": "evaluating on the test set", "probe": "probing"}


def _tell(phase: Phase, done: int, of: int) -> None:
    """Say how far a phase is."""
    kind, round = phase.conversation
    what = f"{_DOING.get(kind, kind)}, round {round}" + (f", phase {phase.number + 1}" if phase.number else "")
    logs.step(what, done, of, "batches" if phase.part == "test" else "clients")


@dataclass(frozen=True)
class Driver:
    """Everything that stays the same from round to round."""

    algorithm: Algorithm
    sampler: Sampler
    population: Population
    executor: Executor
    states: States
    seed: int
    gang_size: int
    dtype: torch.dtype
    schedule: Callable[[int], float]  # round -> factor on the step size
    local: Local
    measures: tuple[str, ...]  # what an evaluation measures
    policy: Policy
    devices: Devices
    failures: Failures
    faults: tuple[Fault, ...] = ()  # who is absent, as planned
    _costs: dict[Any, Cost] = field(default_factory=dict)

    def play(self, state: ServerState, index: int) -> Played:
        """Round `index`, from the state before it.

        Changes nothing: the caller adopts the new state and `talk.states` together. Raises Diverged, BelowQuorum.
        """
        if isinstance(self.policy, Buffered):
            return asynchronous.play(self, state, index, self.policy)
        started = perf_counter()
        factor = self.schedule(index)
        pool = self.pool(state, index, self.policy.asks(self.sampler.cohort))
        before: Talk | None = None
        if asks_first(self.sampler):
            asking = cast(Draw, self.sampler.draw(pool))
            before = self.converse(asking, ("sample", index), None, state.buffers, factor, state.clock_s)
            drawn = before.answered if before.result is None else self._checked(before.result, pool)
        else:
            drawn = self.drawn(pool)
        clock = state.clock_s + (before.seconds if before else 0.0)
        conversation = self.algorithm.round(state.algorithm, drawn)
        talk = self.converse(
            conversation, ("round", index), drawn, state.buffers, factor, clock, before.phases if before else 0,
            self.sampler.cohort,
        )  # fmt: skip
        if before is not None:
            talk = _after(before, talk)
        if talk.result is None:  # nobody answered in a phase, and that may be: nothing changes but the clock
            idle_s = asynchronous.IDLE_S if self.devices.modelled else 0.0
            seconds = talk.seconds or idle_s
            talk = replace(talk, result=state.algorithm, seconds=seconds, states=[], buffers=state.buffers)
        known = self.learned(state.sampler, index, talk.answered, talk.fates)
        after = replace(
            state, algorithm=talk.result, buffers=talk.buffers, clock_s=state.clock_s + talk.seconds, sampler=known
        )
        return self.played(after, index, talk, factor, started)

    def drawn(self, pool: Pool) -> Cohort:
        """Who is drawn by a sampler that asks nobody first. Raises BadInput for what no sampler may draw."""
        return self._checked(self.sampler.draw(pool), pool)

    def _checked(self, cohort: object, pool: Pool) -> Cohort:
        name = type(self.sampler).__name__
        if not isinstance(cohort, Cohort):
            raise BadInput(f"the sampler {name} gave a {type(cohort).__name__}; it must give a Cohort")
        clients, present = cohort.clients, pool.population.present
        count = len(pool.population.examples)
        if len(clients) and not (clients[0] >= 0 and clients[-1] < count and (np.diff(clients) > 0).all()):
            raise BadInput(f"the sampler {name} must draw clients of 0 to {count - 1} in ascending order, each once")
        if len(clients) != len(cohort.weights) or not np.isfinite(cohort.weights).all():
            raise BadInput(f"the sampler {name} must give every client a finite weight")
        if (present is not None and not np.isin(clients, present).all()) or np.isin(clients, pool.excluded).any():
            raise BadInput(f"the sampler {name} has drawn clients that are not there or at work already")
        return cohort

    def resized(self, state: ServerState, present: np.ndarray | None) -> tuple["Driver", ServerState]:
        """What goes on when `present` [n] of the clients are there (None: all), and the server's state for them."""
        before = self.population
        everybody = np.arange(len(before.examples))
        after = replace(before, present=present)
        old, new = (everybody if p.present is None else p.present for p in (before, after))
        change = Change(before, after, np.setdiff1d(old, new), np.setdiff1d(new, old), self._client_states)
        if not len(new):
            raise BadInput("no client would be left in the population; keep at least one")
        algorithm = state.algorithm
        if isinstance(self.algorithm, Resizes):
            algorithm = self.algorithm.resize(algorithm, change)
        return replace(self, population=after), replace(state, algorithm=algorithm, present=present)

    def _client_states(self, clients: np.ndarray) -> dict[str, Tensor]:
        return {n: torch.from_numpy(a) for n, a in self.states.get(clients).items()}

    def played(self, state: ServerState, index: int, talk: Talk, factor: float, started: float) -> Played:
        """A round that is over. Raises Diverged if the model is not finite."""
        if not finite(state.algorithm.x):
            raise Diverged("the model", index, None)
        return Played(index, state, talk, factor, perf_counter() - started)

    def pool(self, state: ServerState, index: int, count: int, excluded: np.ndarray | None = None) -> Pool:
        """Whom the sampler may draw from at the beginning of round `index`."""
        return Pool(
            index, self.seed, self.population, count, state.algorithm.x,
            np.empty(0, np.int64) if excluded is None else excluded,
            lambda clients: self.devices.available(clients, state.clock_s, Address(self.seed, index, 0)),
            state.sampler,
        )  # fmt: skip

    def learned(self, known: Mapping[str, Tensor], index: int, cohort: Cohort, fates: Fates) -> Mapping[str, Tensor]:
        """What the sampler knows after a round whose answers came from `cohort`."""
        if not isinstance(self.sampler, Learns):
            return known
        inside = fates.outcome == ANSWERED
        losses = fates.losses[inside]
        told = Told(index, cohort, None if np.isnan(losses).any() else losses, fates.seconds[inside])
        return self.sampler.learn(known, told)

    def converse(
        self,
        conversation: Generator[Ask, Replies, Any],
        address: tuple[str, int],
        cohort: Cohort | None,
        buffers: Tensor | None,
        lr_factor: float = 1.0,
        clock_s: float = 0.0,
        first: int = 0,
        wanted: int | None = None,
    ) -> Talk:
        """Carry one conversation to its end.

        `address` is what it is for, and the round. `cohort` are the clients that it must ask (None: whom it wants);
        `wanted` of them shall answer (None: all). `clock_s` is its beginning on the modelled clock. `first` counts the
        phases that its round has had before.
        """
        ask = next(conversation)
        if cohort is not None:
            _same(ask, cohort)
        going = _Conversation(self, ask, address, buffers, lr_factor, clock_s, first, wanted or len(ask.cohort))
        try:
            while True:
                replies = going.phase(ask)
                if not len(replies.cohort):
                    conversation.close()
                    return going.talk()
                ask = conversation.send(replies)
                _same(ask, replies.cohort)
        except StopIteration as stop:
            return going.talk(stop.value)

    def bytes_up(self, ask: Ask, found: Collected, answered: int) -> int:
        """What so many clients sent."""
        size = self.dtype.itemsize
        sent = {n: (t.numel(), size) for n, t in found.totals.items()}
        sent |= {n: (t[0].numel(), t.element_size()) for n, t in found.rows.items() if len(t)}
        encoded = ask.encoded or (lambda numbers, itemsize: numbers * itemsize)
        plain = sent.pop(BUFFERS, (0, 0))
        each = sum(encoded(*vector) for vector in sent.values()) + plain[0] * plain[1] + len(found.scalars) * size
        return each * answered

    def mean_buffers(self, found: Collected, cohort: Cohort, before: Tensor | None) -> Tensor | None:
        """The mean of the buffers that the cohort sent, or those before if it sent none."""
        if BUFFERS not in found.totals:
            return before
        return (found.totals[BUFFERS] / float(cohort.weights.sum())).to(self.dtype)

    def replies(self, found: Collected, cohort: Cohort) -> Replies:
        """What the algorithm is told."""
        totals = {n: t for n, t in found.totals.items() if n != BUFFERS}
        return Replies(cohort, totals, found.scalars, found.rows, self.dtype)

    def absent(self, clients: np.ndarray, round: int, phase: int) -> np.ndarray:
        """Which of the clients [m] are planned to be absent: [m] bool."""
        planned = at_clients(self.faults, round, phase)
        return np.isin(clients, [client for client, what in planned.items() if what == "absent"])

    def check_quorum(self, answered: int, asked: int, round: int) -> None:
        """Raises BelowQuorum if too few have answered; with a quorum of 0 that is never so."""
        if answered < self.failures.quorum:
            raise BelowQuorum(
                f"{answered} of {asked} clients answered in round {round}; failures.quorum is {self.failures.quorum}"
            )

    def phase(
        self, ask: Ask, address: tuple[str, int], number: int, buffers: Tensor | None, lr_factor: float,
        steps: np.ndarray | None = None,
    ) -> Phase:  # fmt: skip
        """An ask as a message to the hosts."""
        return Phase(
            address, number, ask.work,
            {n: t.numpy() for n, t in ask.down.items()}, {n: t.numpy() for n, t in ask.each.items()}, tuple(ask.rows),
            ask.part, lr_factor, None if buffers is None else buffers.numpy(), ask.charged, tuple(ask.shares), steps,
            ask.batch_size,
        )  # fmt: skip

    # --- modelled time ----------------------------------------------------------------------------------------------

    def work(
        self, clients: np.ndarray, rounds: int | np.ndarray, batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """K and B of each client [m], in a round or in one of its own [m]."""
        counts, local = self.population.examples[clients], self.local.batches_of(batch_size)
        if local.steps is not None and not local.varies:
            size = counts if local.batch_size == "full" else np.full(len(clients), local.batch_size)
            return np.full(len(clients), local.steps), size
        each = zip(clients.tolist(), np.broadcast_to(rounds, len(clients)).tolist(), counts.tolist(), strict=True)
        found = [(local.at(self.seed, round, client, n), n) for client, round, n in each]
        sizes = [n if at.batch_size == "full" else at.batch_size for at, n in found]
        return np.array([at.steps_for(n) for at, n in found], np.int64), np.array(sizes, np.int64)

    def cost(self, ask: Ask, scratch: dict[str, Tensor]) -> Cost:
        """What the ask costs a client. `scratch` holds what earlier phases of its conversation have kept."""
        kind = type(getattr(ask.work, "__self__", None))
        key = (kind, ask.work.__qualname__, ask.batch_size, *sorted(scratch))
        if key not in self._costs:
            client = ask.cohort.clients[:1] if len(ask.cohort) else self.population.at(np.zeros(1, np.int64))
            states = {n: torch.from_numpy(a[0].copy()) for n, a in self.states.get(client).items()}
            given = {**ask.down, **{n: t[0] for n, t in ask.each.items()}, **states, **scratch}
            count = int(self.population.examples[client[0]])
            local = self.local.batches_of(ask.batch_size).at(self.seed, 0, int(client[0]), count)
            self._costs[key] = rehearse(ask, given, local, count, list(self.measures))
        cost = self._costs[key]
        scratch.update(cost.scratch)
        return cost

    def finish(
        self, clients: np.ndarray, cost: Cost, steps: np.ndarray, sizes: np.ndarray, down: int, start_s: float,
        address: Address,
    ) -> Finish:  # fmt: skip
        """When clients [m] are done that begin at `start_s` and make `steps` [m] steps on `sizes` [m] examples."""
        examples = cost.examples(self.population.examples[clients], steps, sizes)
        load = Load(examples, np.full(len(clients), down), np.full(len(clients), cost.bytes_up))
        finish = self.devices.run(clients, load, start_s, address)
        if not (np.isfinite(finish.seconds).all() and (finish.seconds >= 0).all()):
            raise BadInput(
                f"the devices {type(self.devices).__name__} gave times that are negative or not finite in round "
                f"{address.round}; look at devices.examples_per_s and the bandwidths"
            )
        return finish

    # --- running ----------------------------------------------------------------------------------------------------

    def collect(self, runs: list[tuple[Phase, list[Gang]]]) -> Collected:
        """Run gangs, each list in its phase, and put their answers together.

        A client that fails for good is left out and its gang runs again, as if the client had not taken part. A gang
        that is lost for good though no client of it kills a host runs again, once.
        """
        order = [gang for _, gangs in runs for gang in gangs]
        leaf = {gang.index: i for i, gang in enumerate(order)}
        tree = TreeSum(len(order))
        replies: dict[int, GangReply] = {}
        clients: dict[int, np.ndarray] = {}
        operations: list[Operation] = []
        failed: dict[int, str] = {}
        for phase, gangs in runs:
            todo, cleared = [g for g in gangs if len(g.working)], set[int]()
            while todo:
                answers: dict[int, GangReply] = {}
                members = {g.index: len(g.working) for g in todo}
                for done in self.executor.run(phase, map(self._with_states, todo)):
                    operations.append(replace(done.operation, work=phase.work.__name__))
                    if done.reply is None:
                        continue
                    answers[done.gang] = replace(done.reply, totals={})
                    _tell(phase, sum(members[i] for i in answers), sum(members.values()))
                    if done.reply.failure is None:
                        tree.add(leaf[done.gang], done.reply.totals)
                again = []
                for gang in todo:
                    reply = answers.get(gang.index)
                    failure = self._killer(phase, gang, operations, cleared) if reply is None else reply.failure
                    if failure is not None:
                        failed[failure.client] = self._decide(phase, failure)
                        again.append(without(gang, failure.client))
                    elif reply is None:
                        cleared.add(gang.index)
                        again.append(gang)
                    else:
                        replies[gang.index] = reply
                        clients[gang.index] = gang.working
                todo = [g for g in again if len(g.working)]
        for gang in order:
            if gang.index not in replies:
                tree.add(leaf[gang.index], {})
        ordered = [(clients[g.index], replies[g.index]) for g in order if g.index in replies]
        some = ordered[0][1] if ordered else GangReply({}, {}, {}, {})
        return Collected(
            {n: torch.from_numpy(a if a.flags.writeable else np.array(a)) for n, a in (tree.total or {}).items()},
            {n: np.concatenate([r.scalars[n] for _, r in ordered]) for n in some.scalars},
            {n: torch.from_numpy(np.concatenate([r.rows[n] for _, r in ordered])) for n in some.rows},
            [(c, r.states) for c, r in ordered if r.states],
            failed,
            operations,
        )

    def _with_states(self, gang: Gang) -> Gang:
        return replace(gang, states=self.states.get(gang.clients))

    def _decide(self, phase: Phase, failure: Failure) -> str:
        """The outcome of a client that failed. Raises where the run shall stop."""
        if getattr(self.failures, failure.kind) == "stop" or phase.part == "test":
            if failure.kind == "nan":
                raise Diverged(f"{failure.what} of {phase.work.__name__}", phase.round, failure.client)
            raise Stopped(
                f"{failure.what}; then resume, or go on without such clients: resume with --set "
                f"failures.{failure.kind}=skip"
            )
        return {"nan": REJECTED, "data": DAMAGED, "killer": KILLER}[failure.kind]

    def _killer(
        self, phase: Phase, gang: Gang, operations: list[Operation], cleared: Collection[int]
    ) -> Failure | None:
        """The client that kills the hosts that run `gang`, or None if no client does so alone.

        Halves of the gang are run; their answers are thrown away. Raises Stopped if nobody shall be looked for, or if
        nobody was found before (the gang is among those `cleared`).
        """
        suspects = gang.working
        lost = [o.outcome for o in operations if o.gang == gang.index and o.outcome.startswith(("lost", "hung"))]
        why = f"{len(lost)} times, the last: {lost[-1]}" if lost else "without a word"
        shown = ", ".join(map(str, suspects.tolist()[:8])) + ("…" if len(suspects) > 8 else "")
        where = f"gang {gang.index} (clients {shown}) of round {phase.round}"
        if self.failures.killer == "stop":
            raise Stopped(
                f"{where} was lost {why}; resume, or look for the client that kills its hosts and go on without it: "
                "resume with --set failures.killer=skip"
            )
        if gang.index in cleared:
            raise Stopped(f"{where} was lost {why}; but no client of it kills a host alone; resume")
        index = -1  # no gang of the cohort's: nothing that is kept for those is touched
        while len(suspects) > 1:
            half = suspects[: -(-len(suspects) // 2)]
            suspects = half if self._kills(phase, gang, half, index, operations) else suspects[len(half) :]
            index -= 1
        if not self._kills(phase, gang, suspects, index, operations):
            return None
        return Failure("killer", f"{where}: client {suspects[0]} kills its hosts", int(suspects[0]))

    def _kills(self, phase: Phase, gang: Gang, some: np.ndarray, index: int, operations: list[Operation]) -> bool:
        """Whether hosts die of these clients of the gang."""
        for client in gang.clients[~np.isin(gang.clients, some)].tolist():
            gang = without(gang, client)
        answered = False
        for done in self.executor.run(phase, [self._with_states(replace(gang, index=index))]):
            operations.append(replace(done.operation, work=phase.work.__name__))
            answered |= done.reply is not None
        return not answered


class _Conversation:
    """A conversation under way: who is still in it, and what it has come to so far. m clients were asked."""

    def __init__(
        self, driver: Driver, ask: Ask, address: tuple[str, int], buffers: Tensor | None, lr_factor: float,
        clock_s: float, first: int, wanted: int,
    ) -> None:  # fmt: skip
        self._driver, self._address, self._lr_factor, self._wanted = driver, address, lr_factor, wanted
        self._clock_s = clock_s  # at its beginning
        self._cohort, m = ask.cohort, len(ask.cohort)
        weights = driver.population.weights[ask.cohort.clients] if ask.part != "test" else ask.cohort.weights
        self._gangs = cut(ask.cohort.clients, ask.cohort.weights, weights, driver.gang_size)
        self._inside = np.ones(m, np.bool_)
        self._outcome = np.full(m, ANSWERED, object)
        self._client_s, self._steps = np.zeros(m), np.zeros(m, np.int64)
        self._losses = np.full(m, np.nan)
        self._sent: list[Tensor] = []
        self._scratch: dict[str, Tensor] = {}  # zeros in the shape of what clients keep
        self._buffers = buffers
        self._number, self._first = 0, first
        self._seconds = 0.0
        self._unreached = 0  # clients that were not there in this phase
        self._communications = self._bytes_down = self._bytes_up = 0
        self._states: list[tuple[np.ndarray, Arrays]] = []
        self._operations: list[Operation] = []

    def talk(self, result: Any = None) -> Talk:
        """What has come of it."""
        m = len(self._cohort)
        fates = Fates(
            self._cohort.clients, self._cohort.weights, self._outcome, self._client_s, self._steps,
            np.zeros(m, np.int64), self._losses,
        )  # fmt: skip
        return Talk(
            result, self._cohort, self._inside, fates, self._seconds, self._first + self._number, self._communications,
            self._bytes_down, self._bytes_up, self._buffers, self._states, self._operations, m,
        )  # fmt: skip

    def phase(self, ask: Ask) -> Replies:
        """One phase, with those that are still in it."""
        driver, number, asked = self._driver, self._number, self._inside.copy()
        down = self._bytes_each(ask)
        self._unreached = 0
        steps = self._close(ask, down) if driver.devices.modelled and ask.charged else None
        if driver.faults and ask.charged:
            self._leave(driver.absent(self._cohort.clients, self._address[1], number) & self._inside, ABSENT)
        phase = driver.phase(ask, self._address, number, self._buffers, self._lr_factor, steps)
        self._gangs = parted(self._gangs, asked, self._inside.copy())
        found = driver.collect([(phase, self._gangs)])
        for client, why in found.failed.items():
            self._leave(self._cohort.clients == client, why)
            self._gangs = [without(g, client) for g in self._gangs]  # if this phase has to be computed again
        answered = int(self._inside.sum())
        cohort = self._cohort.only(self._inside)
        if ask.charged:
            driver.check_quorum(answered, len(self._cohort), self._address[1])
            self._communications += 1
            self._bytes_down += down * (len(ask.cohort) - self._unreached)
            self._bytes_up += driver.bytes_up(ask, found, answered)
            self._buffers = driver.mean_buffers(found, cohort, self._buffers)
            self._losses = np.full(len(self._cohort), np.nan)
            if "train_loss" in found.scalars:
                self._losses[self._inside] = found.scalars["train_loss"]
        elif not answered:
            raise Stopped(f"no client is left to measure ({ask.work.__qualname__}, round {self._address[1]})")
        self._states += found.states
        self._operations += [replace(o, phase=self._first + number) for o in found.operations]
        self._number += 1
        return driver.replies(found, cohort)

    def _leave(self, who: np.ndarray, outcome: str | np.ndarray) -> None:
        """Clients where `who` [m] is true are out of it."""
        self._outcome[who], self._inside[who], self._steps[who] = outcome, False, 0

    def _bytes_each(self, ask: Ask) -> int:
        """What each client receives in this phase; what it was sent before is not sent again."""
        new = [t for t in ask.down.values() if not any(t is s for s in self._sent)]
        self._sent += new
        down = sum(t.nbytes for t in new) + sum(t[0].nbytes for t in ask.each.values() if len(t))
        if self._buffers is not None and not self._number and BUFFERS not in self._driver.states.template:
            down += self._buffers.nbytes  # the clients' own are not sent
        return down

    def _close(self, ask: Ask, down: int) -> np.ndarray | None:
        """Let the policy close the phase on the modelled clock. Returns the local steps of those that are left, if any
        makes fewer than all.
        """
        driver, clients, inside = self._driver, ask.cohort.clients, np.flatnonzero(self._inside)
        cost = driver.cost(ask, self._scratch)
        full, sizes = driver.work(clients, self._address[1], ask.batch_size)
        at = Address(driver.seed, self._address[1], self._first + self._number)
        start_s = self._clock_s + self._seconds

        def attempt(steps: np.ndarray) -> Finish:
            return driver.finish(clients, cost, steps, sizes, down, start_s, at)

        tie = uniforms(driver.seed, Purpose.TIES, at.round, at.phase, clients=clients)
        closing = driver.policy.close(attempt, full, min(self._wanted, len(clients)), tie)
        finish = attempt(closing.steps)
        self._client_s[inside] = self._seconds + np.minimum(finish.seconds, closing.seconds)
        if cost.steps:
            self._steps[inside] = closing.steps
        gone = np.where(finish.seconds == 0, UNAVAILABLE, LEFT)
        why = np.where(finish.answers, LATE, gone)
        self._leave(inside[~closing.counts], why[~closing.counts])
        self._unreached = int((why[~closing.counts] == UNAVAILABLE).sum())
        self._seconds += closing.seconds
        return closing.steps if (closing.steps < full).any() else None


def _same(ask: Ask, cohort: Cohort) -> None:
    """Refuse an ask of other clients than the conversation's, or with other weights."""
    asked = ask.cohort
    if not (np.array_equal(asked.clients, cohort.clients) and np.array_equal(asked.weights, cohort.weights)):
        raise TypeError(
            f"{ask.work.__qualname__} is asked of other clients than the cohort of its conversation, or with other "
            "weights; a later phase asks the cohort of the replies before it"
        )


def _after(before: Talk, talk: Talk) -> Talk:
    """A round's conversation with that of its sampler, which came before, added to what it charges.

    Whom the sampler asked and lost was asked in this round, too.
    """
    lost = before.fates.only(before.fates.outcome != ANSWERED)
    return replace(
        talk,
        asked=talk.asked + len(lost.clients),
        seconds=before.seconds + talk.seconds,
        communications=before.communications + talk.communications,
        bytes_down=before.bytes_down + talk.bytes_down,
        bytes_up=before.bytes_up + talk.bytes_up,
        operations=before.operations + talk.operations,
        fates=replace(talk.fates, seconds=before.seconds + talk.fates.seconds).with_others(lost),
    )
