"""The driver carries the conversation of each round between an algorithm and an executor. It knows no mathematics.

A round is the unit of atomicity: the server's state and the clients' states are adopted together when its generator
returns. Who counts is decided on the modelled clock before anything is computed; real time decides nothing.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raygrad import asynchronous
from raygrad.contract import Algorithm, Ask, Change, Cohort, Learns, Pool, Population, Replies, Resizes, Sampler, Told
from raygrad.costs import Cost, rehearse
from raygrad.devices.base import Address, Devices, Finish, Load
from raygrad.errors import BadInput, BelowQuorum, Diverged, Stopped
from raygrad.faults import Fault, at_clients
from raygrad.gang import BUFFERS, Arrays, Failure, Gang, GangReply, Phase, TreeSum, cut, finite, parted, without
from raygrad.local import Local
from raygrad.rng import Purpose, uniforms
from raygrad.stragglers import Buffered, Closing, Policy
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
    """Where clients' states live between rounds."""

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
        drawn = self.sampler.draw(self.pool(state, index, self.policy.asks(self.sampler.cohort)))
        before: Talk | None = None
        if isinstance(drawn, Generator):
            before = self.converse(drawn, ("sample", index), None, state.buffers, factor, state.clock_s)
            drawn = before.result
        clock = state.clock_s + (before.seconds if before else 0.0)
        conversation = self.algorithm.round(state.algorithm, drawn)
        talk = self.converse(
            conversation, ("round", index), drawn, state.buffers, factor, clock, before.phases if before else 0,
            self.sampler.cohort,
        )  # fmt: skip
        if before is not None:
            talk = _after(before, talk)
        if talk.result is None:  # nobody answered, and that may be
            talk = replace(talk, result=state.algorithm, seconds=talk.seconds or asynchronous.IDLE_S)
        known = self.learned(state.sampler, index, talk.answered, talk.fates)
        after = replace(
            state, algorithm=talk.result, buffers=talk.buffers, clock_s=state.clock_s + talk.seconds, sampler=known
        )
        return self.played(after, index, talk, factor, started)

    def resized(self, state: ServerState, present: np.ndarray | None) -> tuple["Driver", ServerState]:
        """What goes on when `present` [n] of the clients are there (None: all), and the server's state for them."""
        before = self.population
        everybody = np.arange(len(before.examples))
        after = Population(before.examples, before.weights, present)
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
        cohort, m = ask.cohort, len(ask.cohort)
        shares = self.population.weights[cohort.clients] if ask.part != "test" else cohort.weights
        gangs = cut(cohort.clients, cohort.weights, shares, self.gang_size)
        fates = Fates(
            cohort.clients, cohort.weights, np.full(m, ANSWERED, object), np.zeros(m), np.zeros(m, np.int64),
            np.zeros(m, np.int64), np.full(m, np.nan),
        )  # fmt: skip
        talk = Talk(None, cohort, np.ones(m, np.bool_), fates, phases=first, buffers=buffers, asked=m)
        number, sent, scratch = 0, [], {}
        try:
            while True:
                talk, replies, gangs = self._phase(
                    talk,
                    ask,
                    gangs,
                    number,
                    address,
                    lr_factor,
                    clock_s,
                    m if wanted is None else wanted,
                    sent,
                    scratch,
                )
                if not talk.inside.any():
                    conversation.close()
                    return talk
                ask = conversation.send(replies)
                _same(ask, talk.answered)
                number += 1
        except StopIteration as stop:
            return replace(talk, result=stop.value)

    def _phase(
        self,
        talk: Talk,
        ask: Ask,
        gangs: list[Gang],
        number: int,
        address: tuple[str, int],
        lr_factor: float,
        clock_s: float,
        wanted: int,
        sent: list[Tensor],
        scratch: dict[str, Tensor],
    ) -> tuple[Talk, Replies, list[Gang]]:
        asked = len(ask.cohort)
        new = [t for t in ask.down.values() if not any(t is s for s in sent)]
        sent.extend(new)
        down = sum(t.nbytes for t in new) + sum(t[0].nbytes for t in ask.each.values() if asked)
        own_buffers = BUFFERS in self.states.get(ask.cohort.clients[:1])
        if talk.buffers is not None and number == 0 and not own_buffers:  # the clients' own are not sent down
            down += talk.buffers.nbytes
        outcome, seconds, steps = talk.fates.outcome.copy(), talk.fates.seconds.copy(), talk.fates.steps.copy()
        inside, limited, spent = talk.inside.copy(), None, 0.0
        members = np.flatnonzero(inside)
        if self.devices.modelled and ask.charged:
            cost = self.cost(ask, scratch)
            at = Address(self.seed, address[1], talk.phases)
            closing, full, finish = self._close(ask, cost, down, clock_s + talk.seconds, at, wanted)
            spent = closing.seconds
            limited = closing.steps if (closing.steps < full).any() else None
            gone = members[~closing.counts]
            left = np.where(finish.seconds == 0, UNAVAILABLE, LEFT)
            outcome[gone] = np.where(finish.answers, LATE, left)[~closing.counts]
            seconds[members] = talk.seconds + np.minimum(finish.seconds, spent)
            if cost.steps:
                steps[members] = closing.steps
            inside[gone] = False
        if self.faults and ask.charged:
            missing = self.absent(talk.cohort.clients, address[1], number) & inside
            outcome[missing], inside[missing] = ABSENT, False
        phase = self.phase(ask, address, number, talk.buffers, lr_factor, limited)
        now = parted(gangs, talk.inside, inside)
        found = self.collect([(phase, now)])
        for client, why in found.failed.items():
            position = int(np.flatnonzero(talk.cohort.clients == client)[0])
            outcome[position], inside[position] = why, False
        steps[~inside] = 0
        answered = int(inside.sum())
        if ask.charged:
            self.check_quorum(answered, len(talk.cohort), address[1])
        elif not answered:
            raise Stopped(f"no client is left to measure ({ask.work.__qualname__}, round {address[1]})")
        up = self.bytes_up(found, answered)
        cohort = talk.cohort.only(inside)
        buffers = self.mean_buffers(found, cohort, talk.buffers)
        losses = talk.fates.losses
        if ask.charged:
            losses = np.full(len(losses), np.nan)
            if "train_loss" in found.scalars:
                losses[inside] = found.scalars["train_loss"]
            talk = replace(
                talk,
                communications=talk.communications + 1,
                bytes_down=talk.bytes_down + down * asked,
                bytes_up=talk.bytes_up + up,
                buffers=buffers,
            )
        talk = replace(
            talk,
            inside=inside,
            fates=replace(talk.fates, outcome=outcome, seconds=seconds, steps=steps, losses=losses),
            seconds=talk.seconds + spent,
            phases=talk.phases + 1,
            states=talk.states + found.states,
            operations=talk.operations + [replace(o, phase=talk.phases) for o in found.operations],
        )
        return talk, self.replies(found, cohort), now

    def bytes_up(self, found: Collected, answered: int) -> int:
        """What so many clients sent."""
        numbers = sum(t.numel() for t in found.totals.values()) + len(found.scalars)
        return numbers * self.dtype.itemsize * answered + sum(t.nbytes for t in found.rows.values())

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
        )  # fmt: skip

    # --- modelled time ----------------------------------------------------------------------------------------------

    def steps(self, clients: np.ndarray) -> np.ndarray:
        """K of each client [m]."""
        if self.local.steps is not None:
            return np.full(len(clients), self.local.steps)
        counts = self.population.examples[clients].tolist()
        return np.array([self.local.steps_for(n) for n in counts], np.int64)

    def cost(self, ask: Ask, scratch: dict[str, Tensor]) -> Cost:
        """What the ask costs a client. `scratch` holds what earlier phases of its conversation have kept."""
        key = (type(getattr(ask.work, "__self__", None)), ask.work.__qualname__, *sorted(scratch))
        if key not in self._costs:
            client = ask.cohort.clients[:1] if len(ask.cohort) else self.population.at(np.zeros(1, np.int64))
            states = {n: torch.from_numpy(a[0].copy()) for n, a in self.states.get(client).items()}
            given = {**ask.down, **{n: t[0] for n, t in ask.each.items()}, **states, **scratch}
            count = int(self.population.examples[client[0]])
            self._costs[key] = rehearse(ask.work, given, self.local, count, list(self.measures))
        cost = self._costs[key]
        scratch.update(cost.scratch)
        return cost

    def _close(
        self, ask: Ask, cost: Cost, down: int, start_s: float, at: Address, wanted: int
    ) -> tuple[Closing, np.ndarray, Finish]:
        """When the phase closes, the full numbers of steps [m], and when the clients would be done."""
        clients, full = ask.cohort.clients, self.steps(ask.cohort.clients)

        def attempt(steps: np.ndarray) -> Finish:
            return self.finish(clients, cost, steps, down, start_s, at)

        tie = uniforms(self.seed, Purpose.TIES, at.round, at.phase, clients=clients)
        closing = self.policy.close(attempt, full, min(wanted, len(clients)), tie)
        return closing, full, attempt(closing.steps)

    def finish(
        self, clients: np.ndarray, cost: Cost, steps: np.ndarray, down: int, start_s: float, address: Address
    ) -> Finish:
        """When clients [m] are done that begin at `start_s` and make `steps` [m] local steps."""
        examples = cost.examples(self.local, self.population.examples[clients], steps)
        load = Load(examples, np.full(len(clients), down), np.full(len(clients), cost.bytes_up))
        return self.devices.run(clients, load, start_s, address)

    # --- running ----------------------------------------------------------------------------------------------------

    def collect(self, runs: list[tuple[Phase, list[Gang]]]) -> Collected:
        """Run gangs, each list in its phase, and put their answers together.

        A client that fails for good is left out and its gang runs again, as if the client had not taken part.
        """
        order = [gang for _, gangs in runs for gang in gangs]
        leaf = {gang.index: i for i, gang in enumerate(order)}
        tree = TreeSum(len(order))
        replies: dict[int, GangReply] = {}
        clients: dict[int, np.ndarray] = {}
        operations: list[Operation] = []
        failed: dict[int, str] = {}
        for phase, gangs in runs:
            todo = [g for g in gangs if len(g.working)]
            while todo:
                answers: dict[int, GangReply] = {}
                for done in self.executor.run(phase, map(self._with_states, todo)):
                    operations.append(replace(done.operation, work=phase.work.__name__))
                    if done.reply is None:
                        continue
                    answers[done.gang] = replace(done.reply, totals={})
                    if done.reply.failure is None:
                        tree.add(leaf[done.gang], done.reply.totals)
                again = []
                for gang in todo:
                    reply = answers.get(gang.index)
                    failure = self._killer(phase, gang, operations) if reply is None else reply.failure
                    if failure is not None:
                        failed[failure.client] = self._decide(phase, failure)
                        again.append(without(gang, failure.client))
                    elif reply is not None:
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
            raise Stopped(f"{failure.what}; then resume, or go on without such clients: failures.{failure.kind}=skip")
        return {"nan": REJECTED, "data": DAMAGED, "killer": KILLER}[failure.kind]

    def _killer(self, phase: Phase, gang: Gang, operations: list[Operation]) -> Failure:
        """The client that kills the hosts that run `gang`. Raises Stopped when there is none or it is not looked for.

        Halves of the gang are run; their answers are thrown away.
        """
        suspects = gang.working
        lost = [o.outcome for o in operations if o.gang == gang.index and o.outcome.startswith(("lost", "hung"))]
        why = f"{len(lost)} times, the last: {lost[-1]}" if lost else "without a word"
        shown = ", ".join(map(str, suspects.tolist()[:8])) + ("…" if len(suspects) > 8 else "")
        where = f"gang {gang.index} (clients {shown}) of round {phase.round}"
        if self.failures.killer == "stop":
            raise Stopped(
                f"{where} was lost {why}; resume, or look for the client that kills its hosts and go on without it: "
                "failures.killer=skip"
            )
        index = -1  # no gang of the cohort's: nothing that is kept for those is touched
        while len(suspects) > 1:
            half = suspects[: -(-len(suspects) // 2)]
            suspects = half if self._kills(phase, gang, half, index, operations) else suspects[len(half) :]
            index -= 1
        if not self._kills(phase, gang, suspects, index, operations):
            raise Stopped(f"{where} was lost {why}; but no client of it kills a host alone; resume")
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


def _same(ask: Ask, cohort: Cohort) -> None:
    """Refuse an ask of other clients than the conversation's, or with other weights."""
    asked = ask.cohort
    if not (np.array_equal(asked.clients, cohort.clients) and np.array_equal(asked.weights, cohort.weights)):
        raise TypeError(
            f"{ask.work.__qualname__} is asked of other clients than the cohort of its conversation, or with other "
            "weights; a later phase asks the cohort of the replies before it"
        )


def _after(before: Talk, talk: Talk) -> Talk:
    """A round's conversation with that of its sampler, which came before, added to what it charges."""
    return replace(
        talk,
        seconds=before.seconds + talk.seconds,
        communications=before.communications + talk.communications,
        bytes_down=before.bytes_down + talk.bytes_down,
        bytes_up=before.bytes_up + talk.bytes_up,
        operations=before.operations + talk.operations,
        fates=replace(talk.fates, seconds=before.seconds + talk.fates.seconds),
    )
