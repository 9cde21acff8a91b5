"""The property suite: what must hold for every algorithm, run on a small made problem.

`raygrad verify NAME` or `raygrad verify package.module:Algorithm` runs it; every registered algorithm is enrolled in
the tests.
"""

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygrad import config
from raygrad.algorithms import ALGORITHMS
from raygrad.contract import Algorithm
from raygrad.data.datasets import SyntheticLogistic
from raygrad.data.partition import Natural
from raygrad.driver import Done, Driver, ServerState
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Checkpoints, Evaluation, Experiment, Gangs, Probe, Where
from raygrad.gang import Gang, Phase
from raygrad.local import Local
from raygrad.models import MLP
from raygrad.plan import Plan, make_plan
from raygrad.run import create, extend, pack, play
from raygrad.runs import load
from raygrad.samplers import Uniform
from raygrad.states import StateStore

ROUNDS, CLIENTS, COHORT = 4, 6, 4


@dataclass(frozen=True)
class Check:
    """One property: whether it holds, and what was measured."""

    name: str
    ok: bool
    detail: str


def problem(algorithm: Algorithm, clients: int = CLIENTS) -> Experiment:
    """The small problem: heterogeneous classification, shards of different sizes, a network with tanh units."""
    return Experiment(
        data=SyntheticLogistic(clients=clients, examples=18, features=5, classes=3),
        partition=Natural(),
        model=MLP(hidden=(6,), activation="tanh"),
        algorithm=algorithm,
        local=Local(steps=3, batch_size=4, weight_decay=1e-3, clip_norm=10.0),
        sampler=Uniform(cohort=min(COHORT, clients)),
        rounds=ROUNDS,
        dtype="float64",
        weights="examples",
        evaluation=Evaluation(every=2, validation=0.2),
        probe=Probe(every=2),
        checkpoints=Checkpoints(every=3),
        gangs=Gangs(size=2, mode="loop"),
    )


def suite(reference: str, *, on_ray: bool = True) -> Iterator[Check]:
    """Check one algorithm, a registered name or `package.module:Class`. Raises BadInput if it cannot be made or
    started.
    """
    cls = config.class_of(reference, ALGORITHMS, "algorithm")
    try:
        algorithm = cls()
    except TypeError as e:
        raise BadInput(
            f"algorithm {reference} cannot be made without arguments ({e}); give every field a default"
        ) from e
    if not isinstance(algorithm, Algorithm):
        raise BadInput(f"algorithm {reference} lacks init, client_state or round (raygrad.contract.Algorithm)")
    with tempfile.TemporaryDirectory(prefix="raygrad-verify-") as folder:
        yield from _Suite(algorithm, Path(folder)).checks(on_ray)


class _Suite:
    def __init__(self, algorithm: Algorithm, folder: Path) -> None:
        self._folder = folder
        self._experiment = problem(algorithm)
        try:
            self._plan(self._experiment)
        except BadInput:
            self._experiment = problem(algorithm, clients=1)

    def checks(self, on_ray: bool) -> Iterator[Check]:
        e = self._experiment
        yield _check("settings survive JSON", Experiment.from_json(e.to_json()) == e, "to_json, from_json")
        same = pickle.loads(pickle.dumps(e.algorithm)) == e.algorithm  # our own bytes, never a file's
        yield _check("can be sent to a host", same, "pickled and back")
        loop = self._states(e)
        vmap = self._states(replace(e, gangs=Gangs(2, "vmap")))
        worst = max(_distance(a, b) for a, b in zip(loop, vmap, strict=True))
        yield _check("loop equals vmap", worst <= 1e-10, f"largest difference {worst:.1e}, allowed 1e-10 (float64)")
        yield self._relabelling()
        yield self._purity(e)
        for dtype in ("float32", "float64"):
            found = {str(t.dtype) for t in pack(self._states(replace(e, dtype=dtype))[-1].algorithm).values()}
            yield _check(f"keeps {dtype}", found == {f"torch.{dtype}"}, f"state holds {', '.join(sorted(found))}")
        forgetful = self._states(e, Forgetful)
        lost = _equal(loop[-1], forgetful[-1])
        yield _check("survives the loss of every host between phases", lost, "scratch is computed again, same bits")
        whole = self._digest(e, "whole")
        yield self._resume(whole)
        if on_ray:
            for hosts in (1, 2, 3):
                digest = self._digest(e, f"hosts{hosts}", Where(on="ray", hosts=hosts))
                yield _check(f"same bits on {hosts} Ray host{'s' * (hosts > 1)}", digest == whole, digest[:16])

    def _plan(self, e: Experiment) -> Plan:
        return make_plan(e, Where(on="local"), self._folder / "shards")

    def _states(
        self,
        e: Experiment,
        make: "Callable[[Plan], Any] | None" = None,
        see: Callable[[ServerState, ServerState], None] = lambda before, after: None,
    ) -> list[ServerState]:
        """The server's states after each round, without a run folder around them."""
        plan = self._plan(e)
        executor = (make or (lambda p: InProcess(p.spec)))(plan)
        store = StateStore(self._folder / "states", plan.client_state, 10**9)
        size = plan.experiment.gangs.size
        assert size != "auto"
        driver = Driver(e.algorithm, e.sampler, plan.population, executor, store, e.seed, size, plan.x.dtype)
        states = [ServerState(e.algorithm.init(plan.x, plan.population), plan.buffers)]
        for index in range(1, e.rounds + 1):
            played = driver.play(states[-1], index)
            see(states[-1], played.state)
            for clients, rows in played.talk.states:
                store.put(clients, rows)
            states.append(played.state)
        store.close()
        return states

    def _relabelling(self) -> Check:
        """Clients get other numbers; on full batches of the whole population nothing else may change."""
        n = self._experiment.data.clients  # pyright: ignore[reportAttributeAccessIssue]
        e = replace(
            self._experiment, local=Local(steps=3, batch_size="full"), sampler=Uniform(cohort=n), gangs=Gangs(n, "loop")
        )
        order = np.roll(np.arange(n), 1)[::-1].copy()
        plain = self._states(e)[-1]

        class Renamed:
            def __init__(self, shards: Any) -> None:
                self._shards = shards

            def read(self, part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
                return self._shards.read(part, int(order[index]))

        def make(plan: Plan) -> InProcess:
            executor = InProcess(plan.spec)
            executor.runner.shards = Renamed(plan.shards)
            plan.population.weights[:] = plan.population.weights[order]
            plan.population.examples[:] = plan.population.examples[order]
            return executor

        worst = _distance(plain, self._states(e, make)[-1])
        return _check("relabelling clients changes nothing", worst <= 1e-12, f"difference {worst:.1e}, allowed 1e-12")

    def _purity(self, e: Experiment) -> Check:
        """The state that goes into a round must come out of it unchanged."""
        mutated: list[str] = []
        before: dict[int, dict[str, Tensor]] = {}

        def see(old: ServerState, new: ServerState) -> None:
            kept = before.pop(id(old), None)
            if kept is not None:
                now = pack(old.algorithm)
                mutated.extend(n for n, t in kept.items() if not torch.equal(t, now[n]))
            before[id(new)] = {n: t.clone() for n, t in pack(new.algorithm).items()}

        try:
            self._states(e, see=see)
        except TypeError as error:
            return _check("states are values", False, str(error))
        return _check(
            "states are values", not mutated, f"changed in place: {', '.join(sorted(set(mutated))) or 'none'}"
        )

    def _digest(self, e: Experiment, name: str, where: Where | None = None) -> str:
        root = self._folder / "runs"
        where = replace(where or Where(on="local"), shard_root=str(self._folder / "shards"))
        for _ in play(create(e, where, run_root=root, name=name)):
            pass
        return load(name, root).digest()

    def _resume(self, whole: str) -> Check:
        root = self._folder / "runs"
        where = Where(on="local", shard_root=str(self._folder / "shards"))
        run = create(replace(self._experiment, rounds=2), where, run_root=root, name="stopped")
        for _ in play(run):
            pass
        for _ in play(extend(load("stopped", root), ROUNDS)):
            pass
        digest = load("stopped", root).digest()
        return _check("resume equals never having stopped", digest == whole, f"{digest[:16]} and {whole[:16]}")


class Forgetful:
    """An executor whose host dies after every gang: a new one is made for each call."""

    def __init__(self, plan: Plan) -> None:
        self._spec = plan.spec
        self._phases: list[Phase] = []

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        self._phases = [*self._phases[: phase.number], phase]
        for gang in gangs:
            executor = InProcess(self._spec)
            executor.phases = self._phases[:-1]
            yield from executor.run(phase, [gang])


def _check(name: str, ok: bool, detail: str) -> Check:
    return Check(name, bool(ok), detail)


def _distance(a: ServerState, b: ServerState) -> float:
    left, right = pack(a.algorithm), pack(b.algorithm)
    return max(float((left[n] - right[n]).abs().max()) for n in left)


def _equal(a: ServerState, b: ServerState) -> bool:
    left, right = pack(a.algorithm), pack(b.algorithm)
    return all(torch.equal(left[n], right[n]) for n in left)
