"""The driver carries the conversation of each round between an algorithm and an executor. It knows no mathematics.

A round is the unit of atomicity: the server's state and the clients' states are adopted together when its generator
returns.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raygrad.contract import Algorithm, Ask, Cohort, Population, Replies, Sampler
from raygrad.errors import Diverged, Stopped
from raygrad.gang import BUFFERS, Arrays, Gang, GangReply, Phase, TreeSum, cut, finite


class States(Protocol):
    """Where clients' states live between rounds."""

    def get(self, clients: np.ndarray) -> Arrays: ...


@dataclass(frozen=True)
class Operation:
    """One attempt at one gang, as it really went."""

    gang: int
    host: str
    attempt: int
    clients: int
    start_s: float  # perf_counter of this process
    wall_s: float
    bytes_down: int
    bytes_up: int
    outcome: str = "answered"
    phase: int = 0
    work: str = ""


@dataclass(frozen=True)
class Done:
    """A gang's reply and how it came about; `reply` is None for an attempt that failed or came second.

    If the outcome of the operation begins with "lost for good", there will be no reply.
    """

    gang: int
    reply: GangReply | None
    operation: Operation


class Executor(Protocol):
    """Runs the gangs of a phase somewhere and knows no rounds."""

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        """The gangs' replies, in any order."""
        ...


@dataclass(frozen=True)
class ServerState:
    """What the server keeps between rounds: the algorithm's state and the model's buffers [b] (None if it has none)."""

    algorithm: Any
    buffers: Tensor | None = None


@dataclass(frozen=True)
class Talk:
    """A finished conversation: its result, what it charges, and what came with it."""

    result: Any
    cohort: Cohort
    communications: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    losses: np.ndarray | None = None  # [m] float64, the last phase's mean training loss by client
    buffers: Tensor | None = None
    states: list[tuple[np.ndarray, Arrays]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """A round that was carried out and can be adopted."""

    index: int  # from 1
    state: ServerState
    talk: Talk
    lr_factor: float
    wall_s: float

    @property
    def train_loss(self) -> float | None:
        """The cohort's weighted mean training loss."""
        if self.talk.losses is None:
            return None
        return float(np.average(self.talk.losses, weights=self.talk.cohort.weights))


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
    schedule: Callable[[int], float] = lambda round: 1.0

    def play(self, state: ServerState, index: int) -> Played:
        """Round `index`, from the state before it.

        Changes nothing: the caller adopts the new state and `talk.states` together. Raises Diverged.
        """
        started = perf_counter()
        factor = self.schedule(index)
        cohort = self.sampler.draw(index, self.seed, self.population)
        conversation = self.algorithm.round(state.algorithm, cohort)
        talk = self.converse(conversation, ("round", index), cohort, state.buffers, factor)
        if not finite(talk.result.x):
            raise Diverged("the model", index, None)
        return Played(index, ServerState(talk.result, talk.buffers), talk, factor, perf_counter() - started)

    def converse(
        self,
        conversation: Generator[Ask, Replies, Any],
        address: tuple[str, int],
        cohort: Cohort,
        buffers: Tensor | None,
        lr_factor: float = 1.0,
    ) -> Talk:
        """Carry one conversation to its end. `address` is what it is for, and the round."""
        talk = Talk(None, cohort, buffers=buffers)
        gangs = cut(cohort.clients, cohort.weights, self.gang_size)
        sent: list[Tensor] = []
        number = 0
        try:
            ask = next(conversation)
            while True:
                talk, replies = self._phase(talk, ask, gangs, number, address, lr_factor, sent)
                number += 1
                ask = conversation.send(replies)
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
        sent: list[Tensor],
    ) -> tuple[Talk, Replies]:
        asked, own = ask.cohort, talk.cohort
        if not (np.array_equal(asked.clients, own.clients) and np.array_equal(asked.weights, own.weights)):
            raise TypeError(
                f"{ask.work.__qualname__} is asked of other clients than the cohort of its conversation, or with other "
                "weights"
            )
        phase = Phase(
            address, number, ask.work,
            {n: t.numpy() for n, t in ask.down.items()}, {n: t.numpy() for n, t in ask.each.items()}, tuple(ask.rows),
            ask.part, lr_factor, None if talk.buffers is None else talk.buffers.numpy(), ask.charged,
        )  # fmt: skip
        tree = TreeSum(len(gangs))
        replies: dict[int, GangReply] = {}
        operations: list[Operation] = []
        for done in self.executor.run(phase, (replace(g, states=self.states.get(g.clients)) for g in gangs)):
            operations.append(replace(done.operation, phase=number, work=ask.work.__name__))
            if done.reply is not None:
                replies[done.gang] = replace(done.reply, totals={})
                if done.reply.failure is None:
                    tree.add(done.gang, done.reply.totals)
        _check_complete(gangs, replies, operations, address[1])
        failures = [replies[i].failure for i in sorted(replies) if replies[i].failure]
        if failures:
            name, client = failures[0]  # pyright: ignore[reportGeneralTypeIssues]
            raise Diverged(f"{name} of {ask.work.__name__}", address[1], client)
        ordered = [replies[g.index] for g in gangs]
        totals = {n: torch.from_numpy(a if a.flags.writeable else np.array(a)) for n, a in (tree.total or {}).items()}
        scalars = {n: np.concatenate([r.scalars[n] for r in ordered]) for n in ordered[0].scalars}
        rows = {n: torch.from_numpy(np.concatenate([r.rows[n] for r in ordered])) for n in ordered[0].rows}
        buffers = talk.buffers
        if BUFFERS in totals:
            buffers = (totals.pop(BUFFERS) / float(ask.cohort.weights.sum())).to(self.dtype)
        if ask.charged:
            new = [t for t in ask.down.values() if not any(t is s for s in sent)]
            sent.extend(new)
            down = sum(t.nbytes for t in new) * len(ask.cohort) + sum(t.nbytes for t in ask.each.values())
            size = self.dtype.itemsize
            up = (sum(t.numel() for t in totals.values()) + len(scalars)) * size * len(ask.cohort)
            up += sum(t.nbytes for t in rows.values())
            if talk.buffers is not None:
                kept = any(BUFFERS in r.states for r in ordered)  # the clients' own: they are not sent down
                down += talk.buffers.nbytes * len(ask.cohort) * (number == 0 and not kept)
                up += talk.buffers.nbytes * len(ask.cohort)
            talk = replace(
                talk,
                communications=talk.communications + 1,
                bytes_down=talk.bytes_down + down,
                bytes_up=talk.bytes_up + up,
                buffers=buffers,
                losses=scalars.get("train_loss"),
            )
        states = [(g.clients, r.states) for g, r in zip(gangs, ordered, strict=True) if r.states]
        talk = replace(talk, states=talk.states + states, operations=talk.operations + operations)
        return talk, Replies(ask.cohort, totals, scalars, rows, self.dtype)


def _check_complete(
    gangs: list[Gang], replies: Mapping[int, GangReply], operations: list[Operation], round: int
) -> None:
    """Raises Stopped if a gang was lost for good."""
    lost = [g for g in gangs if g.index not in replies]
    if lost:
        gang = lost[0]
        attempts = [o for o in operations if o.gang == gang.index and o.outcome != "superseded"]
        raise Stopped(
            f"gang {gang.index} (clients {', '.join(map(str, gang.clients.tolist()[:8]))}"
            f"{'…' if len(gang.clients) > 8 else ''}) of round {round} was lost on {len(attempts)} hosts in a row, "
            f"the last: {attempts[-1].outcome.removeprefix('lost for good: ')}"
        )
