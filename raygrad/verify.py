"""The property suite: what must hold for every algorithm, run on a small made problem.

`raygrad verify NAME` or `raygrad verify package.module:Algorithm` runs it; every registered algorithm is enrolled in
the tests.
"""

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from raygrad import config
from raygrad.algorithms import ALGORITHMS
from raygrad.contract import Algorithm
from raygrad.data.datasets import SyntheticLogistic
from raygrad.data.partition import Natural
from raygrad.errors import BadInput
from raygrad.executors.inprocess import InProcess
from raygrad.experiment import Checkpoints, Evaluation, Experiment, Gangs, Probe, Where
from raygrad.faults import COSTS_TIME, REMOVES_CLIENT, Fault
from raygrad.files.packing import pack
from raygrad.files.runs import load
from raygrad.files.states import StateStore
from raygrad.gang import Gang, Phase
from raygrad.local import Local
from raygrad.models import MLP
from raygrad.plan import Plan, make_plan
from raygrad.run import create, extend, play
from raygrad.samplers import Uniform
from raygrad.talk import Done, ServerState
from raygrad.verify_faults import disturbed, small, trial

ROUNDS, CLIENTS, COHORT = 4, 6, 4


Finding = tuple[bool, str]
"""Whether a property holds, and what was measured."""


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
        whole = problem(algorithm)
        for self._experiment in (whole, replace(whole, weights="equal"), problem(algorithm, clients=1)):
            with suppress(BadInput):
                self._plan(self._experiment)
                break

    def checks(self, on_ray: bool) -> Iterator[Check]:
        """Every check, each on its own: an error inside one is its failure."""
        yield _check("settings survive JSON", self._json)
        yield _check("can be sent to a host", self._pickle)
        yield _check("loop equals vmap", self._vmap)
        yield _check("relabelling clients changes nothing", self._relabelling)
        yield _check("states are values", self._purity)
        for dtype in ("float32", "float64"):
            yield _check(f"keeps {dtype}", lambda dtype=dtype: self._dtype(dtype))
        yield _check("survives the loss of every host between phases", self._forgetful)
        yield _check("resume equals never having stopped", self._resume)
        yield _check("survives any single fault", self._faults)
        if on_ray:
            for hosts in (1, 2, 3):
                where = Where(on="ray", hosts=hosts)
                yield _check(
                    f"same bits on {hosts} Ray host{'s' * (hosts > 1)}",
                    lambda where=where: self._same_digest(f"hosts{where.hosts}", where),
                )

    def _json(self) -> Finding:
        e = self._experiment
        return Experiment.from_json(e.to_json()) == e, "to_json, from_json"

    def _pickle(self) -> Finding:
        algorithm = self._experiment.algorithm
        return pickle.loads(pickle.dumps(algorithm)) == algorithm, "pickled and back"  # our own bytes, never a file's

    def _vmap(self) -> Finding:
        loop = self._states(self._experiment)
        vmap = self._states(replace(self._experiment, gangs=Gangs(2, "vmap")))
        worst = max(_distance(a, b) for a, b in zip(loop, vmap, strict=True))
        return worst <= 1e-10, f"largest difference {worst:.1e}, allowed 1e-10 (float64)"

    def _dtype(self, dtype: Literal["float32", "float64"]) -> Finding:
        state = self._states(replace(self._experiment, dtype=dtype))[-1]
        found = {str(t.dtype) for t in pack(state.algorithm).values()}
        return found == {f"torch.{dtype}"}, f"the state holds {', '.join(sorted(found))}"

    def _forgetful(self) -> Finding:
        kept, lost = self._states(self._experiment)[-1], self._states(self._experiment, Forgetful)[-1]
        return _equal(kept, lost), "scratch is computed again, same bits"

    def _faults(self) -> Finding:
        """One fault of each kind, in the last phase of round 2."""
        e = small(self._experiment, 3)
        root, where = self._folder / "faults", Where(on="local", shard_root=str(self._folder / "shards"))
        whole, _ = disturbed(e, where, root, "undisturbed", [])
        client = whole.table("clients").filter(pc.field("round") == 2)["client"][0].as_py()
        phase = int(whole.table("operations")["phase"].to_numpy().max())
        faults = [*(Fault(w, 2, phase) for w in COSTS_TIME), *(Fault(w, 2, phase, client) for w in REMOVES_CLIENT)]
        found = [trial(e, where, root, i, (fault,), whole) for i, fault in enumerate(faults)]
        bad = [f"{t.plan[0]}: {t.detail}" for t in found if not t.ok or t.missed]
        return not bad, "; ".join(bad) or f"{', '.join(f.what for f in faults)}: the bits they must leave"

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
        driver = plan.driver(executor, store)
        states = [plan.start()]
        for index in range(1, e.rounds + 1):
            played = driver.play(states[-1], index)
            see(states[-1], played.state)
            for clients, rows in played.talk.states:
                store.put(clients, rows)
            states.append(played.state)
        store.close()
        return states

    def _relabelling(self) -> Finding:
        """Clients get other numbers, and take their mini-batches with them; nothing else may change.

        The order is a reflection of the circle that they stand in, so neighbours on a ring stay neighbours.
        """
        n = self._experiment.data.clients  # pyright: ignore[reportAttributeAccessIssue]
        e = replace(self._experiment, sampler=Uniform(cohort=n), gangs=Gangs(n, "loop"))
        order = np.roll(np.arange(n), 1)[::-1].copy()
        plain = self._states(e)[-1]

        class Renamed:
            def __init__(self, shards: Any) -> None:
                self._shards = shards

            def read(self, part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
                return self._shards.read(part, int(order[index]))

        def make(plan: Plan) -> InProcess:
            executor = InProcess(plan.spec)
            runner, renamed = executor.runner, Renamed(plan.shards)
            draw, uniforms = runner._draw, runner.uniforms

            def as_before(phase: Phase, client: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                runner.shards = plan.shards
                try:
                    return draw(phase, int(order[client]), length)
                finally:
                    runner.shards = renamed

            runner.shards, runner._draw = renamed, as_before
            runner.uniforms = lambda phase, client, number: uniforms(phase, int(order[client]), number)
            plan.population.weights[:] = plan.population.weights[order]
            plan.population.examples[:] = plan.population.examples[order]
            return executor

        left, right = pack(plain.algorithm), pack(self._states(e, make)[-1].algorithm)
        rows = {name for name, t in left.items() if t.dim() > 1 and len(t) == n}  # what the server keeps of each client
        worst = max(float(((t[order] if name in rows else t) - right[name]).abs().max()) for name, t in left.items())
        return worst <= 1e-12, f"difference {worst:.1e}, allowed 1e-12 (float64)"

    def _purity(self) -> Finding:
        """The state that goes into a round must come out of it unchanged."""
        mutated: set[str] = set()
        before: dict[int, dict[str, Tensor]] = {}

        def see(old: ServerState, new: ServerState) -> None:
            kept = before.pop(id(old), None)
            if kept is not None:
                now = pack(old.algorithm)
                mutated.update(n for n, t in kept.items() if not torch.equal(t, now[n]))
            before[id(new)] = {n: t.clone() for n, t in pack(new.algorithm).items()}

        self._states(self._experiment, see=see)
        return not mutated, f"changed in place: {', '.join(sorted(mutated)) or 'none'}"

    def _digest(self, name: str, where: Where) -> str:
        """The digest of a whole run; runs of the same name are made once."""
        root = self._folder / "runs"
        if not (root / name).exists():
            where = replace(where, shard_root=str(self._folder / "shards"))
            for _ in play(create(self._experiment, where, run_root=root, name=name)):
                pass
        return load(name, root).digest()

    def _same_digest(self, name: str, where: Where) -> Finding:
        digest, whole = self._digest(name, where), self._digest("whole", Where(on="local"))
        return digest == whole, f"{digest[:16]} and in one process {whole[:16]}"

    def _resume(self) -> Finding:
        root = self._folder / "runs"
        where = Where(on="local", shard_root=str(self._folder / "shards"))
        for _ in play(create(replace(self._experiment, rounds=2), where, run_root=root, name="stopped")):
            pass
        for _ in play(extend(load("stopped", root), ROUNDS)):
            pass
        return self._same_digest("stopped", where)


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


def _check(name: str, find: Callable[[], Finding]) -> Check:
    try:
        ok, detail = find()
    except Exception as e:
        return Check(name, False, f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
    return Check(name, ok, detail)


def _distance(a: ServerState, b: ServerState) -> float:
    left, right = pack(a.algorithm), pack(b.algorithm)
    return max(float((left[n] - right[n]).abs().max()) for n in left)


def _equal(a: ServerState, b: ServerState) -> bool:
    left, right = pack(a.algorithm), pack(b.algorithm)
    return all(torch.equal(left[n], right[n]) for n in left)
