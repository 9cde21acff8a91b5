"""Runs a gang's clients one after another on one module ("loop"), or as one vmapped computation ("vmap").

A `GangRunner` holds what a host needs (model, shards) and nothing that cannot be rebuilt.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from raygrad.contract import Answer, parameters
from raygrad.data.placed import open_shards
from raygrad.data.transform import Transform
from raygrad.errors import BadInput, DamagedShard
from raygrad.faults import Fault, HostLost, at_clients
from raygrad.flat import FlatModel, Loss, initial_module
from raygrad.gang import BUFFERS, Arrays, Failure, Gang, GangReply, Part, Phase, finite
from raygrad.local import Local
from raygrad.models import Model
from raygrad.objectives import load_loss, load_metrics
from raygrad.regularizers import Regularizer, Term, Unregularized
from raygrad.rng import Purpose, rng, torch_seed
from raygrad.stacked import StackedModel, vmap_obstacle
from raygrad.streams import One, Tasks
from raygrad.tasks import LoopTask, NotPrepared, VmapTask

Rows = Tensor | Sequence[Tensor]  # one per client
Mode = Literal["loop", "vmap"]
_Stacked = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]

CHUNK_BYTES = 16 * 2**20
"""Whole shards and long rows of batches are converted in pieces of about this size. It decides the order of sums, so
another value gives other bits."""

PER_EXAMPLE_BYTES = 32 * 2**20
"""What gradients example by example may take at once. It decides no bit but those of sums of their squares."""

SUM_BLOCK = 1 << 16
"""Sums in float64 go through so many numbers at once, which stay in the cache while they are converted."""


@dataclass(frozen=True)
class HostSpec:
    """All that a host needs to rebuild itself."""

    model: Model
    loss: str
    metrics: tuple[str, ...]
    shards: str
    transform: Transform
    shape: tuple[int, ...]
    classes: int | None
    local: Local
    seed: int
    dtype: str
    mode: Mode
    device: str = "cpu"
    faults: tuple[Fault, ...] = ()  # injected, at clients
    began: "HostSpec | None" = None  # what the run began with, if its settings changed since
    fetch_bytes: int = 0  # of shards that each machine copies from an object store first
    regularizer: Regularizer = field(default_factory=Unregularized)
    tasks: Tasks = field(default_factory=One)


class GangRunner:
    """Runs gangs. A cache of what `spec` describes: it may be dropped and rebuilt at any moment."""

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        self.dtype = getattr(torch, spec.dtype)
        self.device = torch.device(spec.device)
        check_device(spec.device)
        self.model = FlatModel(initial_module(spec.model, spec.shape, spec.classes, spec.seed), self.dtype, self.device)
        self.model.module.train()
        self.loss: Loss = load_loss(spec.loss)
        self.measures: dict[str, Loss] = {"loss": self.loss, **load_metrics(spec.metrics)}
        self.stacked = StackedModel(self.model, self.loss)
        regularizer = spec.regularizer
        self.term: Term | None = regularizer.on(self.model, spec.seed) if regularizer.weight else None
        self.chunk = max(1, CHUNK_BYTES // (max(1, int(np.prod(spec.shape))) * self.dtype.itemsize))
        self.shards: Any = None
        self._needs: dict[str, set[str]] = {}
        self._scratch: dict[int, dict[str, tuple[Rows, np.ndarray]]] = {}  # and who of the gang they are of
        self._conversation: tuple[str, int] | None = None
        self._received: tuple[tuple[tuple[str, int], int], dict[str, Tensor]] | None = None

    # --- data -------------------------------------------------------------------------------------------------------

    def open_shards(self) -> None:
        """Open the shards unless they are. Those in an object store are copied to this machine once.

        Raises BadInput, Stopped.
        """
        if self.shards is None:
            self.shards = open_shards(self.spec.shards)

    def local(self, phase: Phase) -> Local:
        """How clients work in a phase."""
        return self.spec.local.batches_of(phase.batch_size)

    def drawn(self, phase: Phase, client: int, steps: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A client's mini-batches, laid end to end, in pieces of whole batches.

        They are fresh permutations of its shard, drawn for (seed, round, client).
        """
        x, y, order = self._draw(phase, client, steps * size)
        augment = self._augmenter(Purpose.AUGMENT, phase.round, client)
        for rows in self._pieces(len(order), size):
            yield self._convert(phase, x, y, order[rows], augment)

    def _draw(self, phase: Phase, client: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A client's shard, and which of its examples make up its batches."""
        x, y = self.shards.read(phase.part, client)
        generator = rng(self.spec.seed, Purpose.BATCHES, phase.round, client)
        order = np.concatenate([generator.permutation(len(y)) for _ in range(-(-length // len(y)))])[:length]
        return x, y, order

    def _pieces(self, length: int, size: int) -> Iterator[slice]:
        """`length` examples in pieces of whole batches of `size`, each of about `CHUNK_BYTES`."""
        together = max(1, self.chunk // size) * size
        return (slice(a, min(a + together, length)) for a in range(0, length, together))

    def whole(self, phase: Phase, client: int, train: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """A client's shard, each example once, in pieces (one may be empty). Training data is augmented to `train`."""
        x, y = self.shards.read(phase.part, client)
        augmented = train and phase.part == "train"
        augment = self._augmenter(Purpose.AUGMENT_FULL, phase.round, client) if augmented else None
        for a in range(0, max(1, len(y)), self.chunk):
            yield self._convert(phase, x[a : a + self.chunk], y[a : a + self.chunk], None, augment)

    def uniforms(self, phase: Phase, client: int, number: int) -> Tensor:
        """d numbers in [0, 1), drawn for (seed, round, phase, client)."""
        draw = rng(self.spec.seed, Purpose.ROUNDING, phase.round, phase.number, client, number)
        kind = np.float32 if self.dtype == torch.float32 else np.float64
        return torch.from_numpy(draw.random(self.model.size, dtype=kind)).to(self.device)

    def _augmenter(self, purpose: Purpose, round: int, client: int) -> np.random.Generator | None:
        return rng(self.spec.seed, purpose, round, client) if self.spec.transform.augment != "none" else None

    def _convert(
        self, phase: Phase, x: np.ndarray, y: np.ndarray, rows: np.ndarray | None, augment: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The `rows` of stored examples (all if None) as fresh tensors on the device."""
        xs = torch.empty((len(y) if rows is None else len(rows), *self.spec.shape), dtype=self.dtype)
        self.spec.transform.write(xs, x, rows, augment)
        xs, ys = self._of_task(phase, xs, torch.from_numpy(np.array(y if rows is None else y[rows])))
        return xs.to(self.device), ys.to(self.device)

    def _of_task(self, phase: Phase, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
        """Examples [n, ...] and targets [n] as the round's task has them."""
        tasks, seed, classes = self.spec.tasks, self.spec.seed, self.spec.classes
        ys = ys.to(self.dtype) if classes is None else tasks.targets(ys, classes, seed, phase.round)
        return tasks.inputs(xs, seed, phase.round), ys

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, phase: Phase, gang: Gang, earlier: Callable[[], Iterable[Phase]]) -> GangReply:
        """Run `phase` at those of the gang's clients that take part.

        `earlier()` gives the phases before it, to compute lost scratch again.
        """
        started = perf_counter()
        self.open_shards()
        if self._conversation != phase.conversation:
            self._conversation, self._scratch = phase.conversation, {}
        provided = {*phase.down, *phase.each, *gang.states, *self._scratch.get(gang.index, ())}
        missing = [name for name in parameters(phase.work) if name not in provided]
        try:
            if missing:
                for former in earlier():
                    if failure := self._run(former, gang).failure:
                        return GangReply({}, {}, {}, {}, perf_counter() - started, failure)
                missing = [name for name in missing if name not in self._scratch.get(gang.index, ())]
                if missing:
                    raise TypeError(
                        f"{phase.work.__qualname__} takes {', '.join(missing)}: neither sent down, nor state, nor "
                        "scratch"
                    )
            reply = self._run(phase, gang)
        except DamagedShard as e:
            reply = GangReply({}, {}, {}, {}, failure=Failure("data", str(e), e.client))
        return replace(reply, wall_s=perf_counter() - started)

    def _run(self, phase: Phase, gang: Gang) -> GangReply:
        names = parameters(phase.work)
        part = gang.parts[phase.number]
        some = _Members.of(gang, part)
        if self.spec.faults and (failure := self._injected(phase, some.clients.tolist())):
            return GangReply({}, {}, {}, {}, failure=failure)
        scratch = self._scratch.setdefault(gang.index, {})
        down = {n: t for n, t in self._down(phase).items() if n in names}
        rows: dict[str, Rows] = {
            **{n: self._tensor(a[part.rows]) for n, a in phase.each.items() if n in names},
            **{n: self._tensor(a) for n, a in some.states.items() if n in names},
            **{n: _selected(t, mask, part.mask) for n, (t, mask) in scratch.items() if n in names},
        }
        versions = {n: t._version for n, t in down.items()}
        collected = _Collector(phase, some)
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            # Unequal numbers of steps cannot be stacked.
            if self.spec.mode == "vmap" and phase.part != "test" and phase.steps is None:
                collected.add_all(*self._vmap(phase, some, down, rows))
            else:
                steps = None if phase.steps is None else phase.steps[part.rows]
                for i, answer in enumerate(self._loop(phase, some, down, rows, steps)):
                    collected.add(i, answer)
                    if collected.failure:
                        break
        if collected.failure:
            return GangReply({}, {}, {}, {}, failure=collected.failure)
        changed = [n for n, t in down.items() if t._version != versions[n]]
        if changed:
            raise TypeError(
                f"{phase.work.__qualname__} changed {', '.join(changed)} in place; return new tensors instead"
            )
        scratch.update({n: (t, part.mask) for n, t in collected.scratch.items()})
        return collected.reply()

    def _injected(self, phase: Phase, clients: list[int]) -> Failure | None:
        """The first of the planned faults at these clients happens."""
        if not phase.keep_buffers:  # it only measures
            return None
        planned = at_clients(self.spec.faults, phase.round, phase.number)
        for client in clients:
            if planned.get(client) == "killer":
                self.die()
            elif planned.get(client) == "data":
                raise DamagedShard(f"the shard of client {client} is damaged (injected)", client)
            elif planned.get(client) == "nan":
                return Failure("nan", "an update (injected)", client)
        return None

    @cached_property
    def _side_by_side(self) -> bool:
        """Whether the gradients of single examples can be taken at once."""
        x = torch.zeros((2, *self.spec.shape), dtype=self.dtype, device=self.device)
        y = torch.zeros(2, dtype=self.dtype if self.spec.classes is None else torch.int64, device=self.device)
        return vmap_obstacle(self.model, x, y, self.loss) is None

    def square_norms(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The sum [] of the squared gradient norms of single examples at `x` [d], each with the regulariser's part."""
        found = torch.zeros((), dtype=x.dtype, device=x.device)
        common = torch.zeros_like(x) if self.term is None else self.term.grad(x)
        if self._side_by_side:
            size = max(1, PER_EXAMPLE_BYTES // max(1, x.nbytes))
            for a, b in zip(inputs.split(size), targets.split(size), strict=True):
                g, _ = self.stacked.grads(x.expand(len(b), -1), a[:, None], b[:, None])
                found = found + ((g + common) ** 2).sum()
            return found
        self.model.module.eval()
        try:
            for a, b in zip(inputs.split(1), targets.split(1), strict=True):
                found = found + ((self.model.grad(x, a, b, self.loss)[0] + common) ** 2).sum()
        finally:
            self.model.module.train()
        return found

    def die(self) -> NoReturn:
        """What a planned fault does to this host."""
        raise HostLost

    def _down(self, phase: Phase) -> dict[str, Tensor]:
        key = (phase.conversation, phase.number)
        if self._received is None or self._received[0] != key:
            self._received = (key, {n: self._tensor(a) for n, a in phase.down.items()})
        return self._received[1]

    def _tensor(self, a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(a)).to(self.device)

    def _loop(
        self,
        phase: Phase,
        some: "_Members",
        down: Mapping[str, Tensor],
        rows: Mapping[str, Rows],
        steps: np.ndarray | None,
    ) -> Iterator[Answer]:
        model = self.model
        own = some.states.get(BUFFERS)
        for i, client in enumerate(some.clients.tolist()):
            seed_torch(torch_seed(self.spec.seed, Purpose.DROPOUT, phase.round, phase.number, client), self.device)
            if phase.buffers is not None:
                model.load_buffers(self._tensor(phase.buffers if own is None else own[i]))
            task = LoopTask(self, phase, client, None if steps is None else int(steps[i]))
            try:
                answer = phase.work(task, **down, **{n: r[i] for n, r in rows.items()})
            except Exception as e:
                e.add_note(f"in {phase.work.__qualname__} at client {client}, {phase.conversation[0]} {phase.round}")
                raise
            update, state = _checked(phase, answer.update), answer.state
            if task.losses:
                update["train_loss"] = torch.stack(task.losses).mean()
            if phase.buffers is not None and phase.keep_buffers:
                update[BUFFERS] = model.buffers()
                if own is not None:
                    state = {**(state or {}), BUFFERS: update[BUFFERS]}
            yield Answer(update, state, answer.scratch)

    def _vmap(self, phase: Phase, some: "_Members", down: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> "_Stacked":
        """The answers of all clients: update, state and scratch by name, one row per client."""
        needs = self._needs.setdefault(f"{phase.work.__qualname__}:{phase.part}", set())
        if phase.buffers is not None:
            self.model.load_buffers(self._tensor(phase.buffers))
        stacked = {n: _stacked(r) for n, r in rows.items()}
        while True:
            data, steps = self._stack(phase, some.clients.tolist(), needs)

            def one(data: dict[str, Tensor], args: dict[str, Tensor], steps: int = steps) -> _Stacked:
                task = VmapTask(self, phase, steps, data)
                answer = phase.work(task, **down, **args)
                update = _checked(phase, answer.update)
                if task.losses:
                    update["train_loss"] = torch.stack(task.losses).mean()
                return update, dict(answer.state or {}), dict(answer.scratch or {})

            try:
                return torch.func.vmap(one)(data, stacked)
            except NotPrepared as e:
                needs.add(str(e))

    def _stack(self, phase: Phase, clients: list[int], needs: set[str]) -> tuple[dict[str, Tensor], int]:
        """The clients' data, one row per client, as far as `needs` names it, and K."""
        local = self.local(phase)
        counts = [len(self.shards.read(phase.part, c)[1]) for c in clients]
        steps = local.steps_for(counts[0]) if counts[0] else 0
        # vmap needs one tensor to batch over, also for a method that uses no data.
        data: dict[str, Tensor] = {"slot": torch.arange(len(counts))}
        if "batches" in needs:
            size = local.batch_size
            assert size != "full"
            data["batches.x"], data["batches.y"] = self._stack_batches(phase, clients, steps, size)
        for need in {"full", "plain"} & needs:
            xs, ys = zip(*(_joined(self.whole(phase, c, need == "full")) for c in clients), strict=True)
            data[f"{need}.x"] = torch.nn.utils.rnn.pad_sequence(list(xs), batch_first=True)
            data[f"{need}.y"] = torch.nn.utils.rnn.pad_sequence(list(ys), batch_first=True)
            data[f"{need}.count"] = torch.tensor(counts, dtype=torch.float64)
            data[f"{need}.mask"] = torch.arange(max(counts))[None, :] < torch.tensor(counts)[:, None]
        for need in needs:
            if need.startswith("uniforms"):
                each = (self.uniforms(phase, client, int(need.partition("-")[2])) for client in clients)
                data[need] = torch.stack(list(each))
        return {n: t.to(self.device) for n, t in data.items()}, steps

    def _stack_batches(self, phase: Phase, clients: Sequence[int], steps: int, size: int) -> tuple[Tensor, Tensor]:
        """What `drawn` gives, for all clients: [M, K, B, ...], each example copied once."""
        length = steps * size
        xs = torch.empty((len(clients), length, *self.spec.shape), dtype=self.dtype)
        labels: list[np.ndarray] = []
        for i, client in enumerate(clients):
            x, y, order = self._draw(phase, client, length)
            augment = self._augmenter(Purpose.AUGMENT, phase.round, client)
            for rows in self._pieces(length, size):
                self.spec.transform.write(xs[i, rows], x, order[rows], augment)
            labels.append(y[order])
        xs, ys = self._of_task(phase, xs.flatten(0, 1), torch.from_numpy(np.concatenate(labels)))
        return xs.view(len(clients), steps, size, *self.spec.shape), ys.view(len(clients), steps, size)

    # --- numerics ---------------------------------------------------------------------------------------------------

    def canary(self) -> str:
        """The sha256 of a small made-up gang's answer. Hosts that differ in it would give other bits."""
        if self.spec.began is not None:
            return GangRunner(self.spec.began).canary()
        keep, self.shards = self.shards, _MadeUp(self.spec)
        try:
            x = self.model.vector().cpu().numpy()
            buffers = self.model.buffers().cpu().numpy() if self.model.buffer_size else None
            phase = Phase(("canary", 0), 0, _canary_work, {"x": x}, {}, (), "train", 1.0, buffers, False)
            two = np.ones(2, np.bool_)
            reply = self.run(phase, Gang(0, np.arange(2), np.ones(2), np.ones(2), (Part(two, np.arange(2)),)), tuple)
            if buffers is not None:
                self.model.load_buffers(self._tensor(buffers))
        finally:
            self.shards = keep
        digest = hashlib.sha256()
        for name, total in sorted(reply.totals.items()):
            digest.update(name.encode() + total.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Members:
    """Those of a gang that take part in a phase: m clients."""

    clients: np.ndarray  # [m] int64
    weights: np.ndarray  # [m] float64
    shares: np.ndarray  # [m] float64
    states: Arrays  # name -> [m, ...]

    @staticmethod
    def of(gang: Gang, part: Part) -> "_Members":
        """All arrays are views where everybody takes part."""
        if part.mask.all():
            return _Members(gang.clients, gang.weights, gang.shares, gang.states)
        states = {n: a[part.mask] for n, a in gang.states.items()}
        return _Members(gang.clients[part.mask], gang.weights[part.mask], gang.shares[part.mask], states)


def _selected(rows: Rows, had: np.ndarray, mask: np.ndarray) -> Rows:
    """Of `rows`, one for each client where `had` [M] is true, those where `mask` [M] is true, too."""
    if np.array_equal(had, mask):
        return rows
    chosen = np.flatnonzero(mask[had]).tolist()
    return rows[chosen] if isinstance(rows, Tensor) else [rows[i] for i in chosen]


class _Collector:
    """Gathers clients' answers: weighted sums of vectors in float64, scalars, rows and states client by client."""

    def __init__(self, phase: Phase, some: _Members) -> None:
        self._phase, self._some = phase, some
        self._totals: dict[str, Tensor] = {}
        self._scalars: dict[str, list[float]] = {}
        self._rows: dict[str, Rows] = {}
        self._states: dict[str, Rows] = {}
        self.scratch: dict[str, Rows] = {}
        self.failure: Failure | None = None

    def add(self, i: int, answer: Answer) -> None:
        """The answer of client `i`, in order."""
        for name, u in sorted(answer.update.items()):
            if not finite(u):
                self._fail(name, i)
                return
            if u.ndim == 0:
                self._scalars.setdefault(name, []).append(float(u))
            elif name in self._phase.rows:
                _append(self._rows, name, u)
            else:
                self._add(name, u, float(self._weights(name)[i]))
        for kept, new in ((self._states, answer.state), (self.scratch, answer.scratch)):
            for name, t in (new or {}).items():
                _append(kept, name, t)

    def add_all(self, update: Mapping[str, Tensor], state: Mapping[str, Tensor], scratch: Mapping[str, Tensor]) -> None:
        """All answers, one row per client."""
        bad = [
            (i, name)
            for name, rows in sorted(update.items())
            if not finite(rows)
            for i, u in enumerate(rows)
            if not finite(u)
        ]
        if bad:
            i, name = min(bad)
            self._fail(name, i)
            return
        for name, u in update.items():
            if u.ndim == 1:
                self._scalars[name] = u.tolist()
            elif name in self._phase.rows:
                self._rows[name] = u
            else:
                for row, weight in zip(u, self._weights(name).tolist(), strict=True):
                    self._add(name, row, weight)
        self._states, self.scratch = dict(state), dict(scratch)

    def _fail(self, name: str, i: int) -> None:
        self.failure = Failure("nan", name, int(self._some.clients[i]))

    def _weights(self, name: str) -> np.ndarray:
        return self._some.shares if name in self._phase.shares else self._some.weights

    def _add(self, name: str, u: Tensor, weight: float) -> None:
        if name not in self._totals:
            self._totals[name] = torch.zeros(u.shape, dtype=torch.float64, device=u.device)
        for total, part in zip(self._totals[name].split(SUM_BLOCK), u.split(SUM_BLOCK), strict=True):
            total.add_(part, alpha=weight)

    def reply(self) -> GangReply:
        return GangReply(
            {n: t.cpu().numpy() for n, t in self._totals.items()},
            {n: np.array(v) for n, v in self._scalars.items()},
            {n: _stacked(t).cpu().numpy() for n, t in self._rows.items()},
            {n: _stacked(t).cpu().numpy() for n, t in self._states.items()},
        )


def _append(kept: dict[str, Rows], name: str, t: Tensor) -> None:
    rows = kept.setdefault(name, [])
    assert isinstance(rows, list)
    rows.append(t)


def _stacked(rows: Rows) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.stack(list(rows))


class _MadeUp:
    """Two clients with made-up data of the experiment's shape, for the canary."""

    def __init__(self, spec: HostSpec) -> None:
        self._spec = spec

    def read(self, part: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        generator = rng(self._spec.seed, Purpose.CANARY, index)
        count = 8 + index
        # Raw values of 0..255 are legal for every data set that stores images, and harmless for features.
        x = generator.integers(0, 256, (count, *self._spec.shape), np.uint8)
        classes = self._spec.classes
        return x, generator.standard_normal(count) if classes is None else generator.integers(0, classes, count)


def _canary_work(task: Any, x: Tensor) -> Answer:
    y = x
    for batch, _ in zip(task.batches, range(2), strict=False):
        y = y - 1e-3 * task.grad(y, batch)
    return Answer({"y": y, "g": task.full_grad(x)})


def _checked(phase: Phase, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    taken = {BUFFERS, "train_loss"} & set(update)
    if taken:
        raise TypeError(f"{phase.work.__qualname__} answers {', '.join(taken)}, a name that is taken; choose another")
    return dict(update)


def _joined(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*pieces, strict=True)
    return torch.cat(xs), torch.cat(ys)


def seed_torch(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and `device` only; it costs 200 times less where no GPU is in use."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def check_device(device: str) -> None:
    """Refuse CUDA where torch finds none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("the device is cuda, but torch finds no GPU here; use --device cpu")


def be_deterministic(device: str) -> None:
    """Have torch compute the same bits again on a GPU. On a CPU one thread is enough."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def numerics(spec: HostSpec, canary: str) -> dict[str, str]:
    """What the bits depend on, as recorded in numerics.json."""
    device = torch.device(spec.device)
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": spec.dtype,
        "threads": "1",
        "mode": spec.mode,
        "canary": canary,
    }


def difference(recorded: Mapping[str, str], found: Mapping[str, str]) -> str:
    """How a host's numerics differ from the run's, for people; empty if they do not."""
    differs = [k for k in found if found[k] != recorded.get(k)]
    return ", ".join(f"{k} {found[k][:16]} instead of {str(recorded.get(k))[:16]}" for k in differs)


def refused(host: str, recorded: Mapping[str, str], found: Mapping[str, str]) -> BadInput | None:
    """The error for a host that would compute other bits than the run began with, else None."""
    if found["canary"] == recorded.get("canary"):
        return None
    return BadInput(
        f"{host} would compute other bits than this run began with ({difference(recorded, found)}); use the same torch "
        "build and kind of machine, or --numerics mark"
    )
