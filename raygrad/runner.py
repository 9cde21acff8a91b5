"""Runs a gang's clients one after another on one module ("loop"), or as one vmapped computation ("vmap").

A `GangRunner` holds what a host needs (model, shards) and nothing that cannot be rebuilt.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raygrad.contract import Answer
from raygrad.data.shards import Shards
from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.flat import FlatModel, Loss, initial_module
from raygrad.gang import BUFFERS, Arrays, Gang, GangReply, Phase
from raygrad.local import Local
from raygrad.models import Model
from raygrad.objectives import load_loss, load_metrics
from raygrad.rng import Purpose, rng, torch_seed
from raygrad.tasks import LoopTask, NotPrepared, VmapTask

Rows = Tensor | Sequence[Tensor]  # one per client
Mode = Literal["loop", "vmap"]

CHUNK_BYTES = 16 * 2**20
"""Whole shards and long rows of batches are converted in pieces of about this size. It decides the order of sums, so
another value gives other bits."""


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


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def parameters(work: Callable[..., Answer]) -> tuple[str, ...]:
    """The names that a client method takes besides its task."""
    bound = getattr(work, "__func__", None)
    names = _parameters(work if bound is None else bound)
    return names[1:] if bound is None else names[2:]


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
        self.chunk = max(1, CHUNK_BYTES // (max(1, int(np.prod(spec.shape))) * self.dtype.itemsize))
        self.shards: Any = None
        self._needs: dict[str, set[str]] = {}
        self._scratch: dict[int, dict[str, Sequence[Tensor]]] = {}
        self._conversation: tuple[str, int] | None = None
        self._received: tuple[tuple[tuple[str, int], int], dict[str, Tensor]] | None = None

    # --- data -------------------------------------------------------------------------------------------------------

    def drawn(self, phase: Phase, client: int, steps: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A client's mini-batches, laid end to end, in pieces of whole batches.

        They are fresh permutations of its shard, drawn for (seed, round, client).
        """
        x, y = self.shards.read(phase.part, client)
        generator, length = rng(self.spec.seed, Purpose.BATCHES, phase.round, client), steps * size
        order = np.concatenate([generator.permutation(len(y)) for _ in range(-(-length // len(y)))])[:length]
        augment = self._augmenter(Purpose.AUGMENT, phase.round, client)
        together = max(1, self.chunk // size) * size
        for a in range(0, length, together):
            picked = order[a : a + together]
            yield self._convert(x[picked], y[picked], augment)

    def whole(self, phase: Phase, client: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A client's shard, each example once, in pieces (one may be empty). Training data is augmented."""
        x, y = self.shards.read(phase.part, client)
        augment = self._augmenter(Purpose.AUGMENT_FULL, phase.round, client) if phase.part == "train" else None
        for a in range(0, max(1, len(y)), self.chunk):
            yield self._convert(x[a : a + self.chunk], y[a : a + self.chunk], augment)

    def _augmenter(self, purpose: Purpose, round: int, client: int) -> np.random.Generator | None:
        return rng(self.spec.seed, purpose, round, client) if self.spec.transform.augment != "none" else None

    def _convert(self, x: np.ndarray, y: np.ndarray, augment: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Stored examples as fresh tensors on the device."""
        xs = self.spec.transform(x, self.dtype, augment)
        ys = torch.from_numpy(np.array(y))
        return xs.to(self.device), (ys if self.spec.classes is not None else ys.to(self.dtype)).to(self.device)

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, phase: Phase, gang: Gang, earlier: Callable[[int], Phase]) -> GangReply:
        """Run `phase` at the gang's clients. `earlier(k)` gives phase k of the same conversation, to compute lost
        scratch again.
        """
        started = perf_counter()
        if self.shards is None:
            self.shards = Shards.open(Path(self.spec.shards))
        if self._conversation != phase.conversation:
            self._conversation, self._scratch = phase.conversation, {}
        provided = {*phase.down, *phase.each, *gang.states, *self._scratch.get(gang.index, ())}
        missing = [name for name in parameters(phase.work) if name not in provided]
        if missing:
            for k in range(phase.number):
                self._run(earlier(k), gang)
            missing = [name for name in missing if name not in self._scratch.get(gang.index, ())]
            if missing:
                raise TypeError(
                    f"{phase.work.__qualname__} takes {', '.join(missing)}: neither sent down, nor state, nor scratch"
                )
        reply = self._run(phase, gang)
        return GangReply(reply.totals, reply.scalars, reply.rows, reply.states, perf_counter() - started, reply.failure)

    def _run(self, phase: Phase, gang: Gang) -> GangReply:
        names = parameters(phase.work)
        scratch = self._scratch.setdefault(gang.index, {})
        down = {n: t for n, t in self._down(phase).items() if n in names}
        mine = slice(gang.start, gang.start + len(gang.clients))
        rows: dict[str, Rows] = {
            **{n: self._tensor(a[mine]) for n, a in phase.each.items() if n in names},
            **{n: self._tensor(a) for n, a in gang.states.items() if n in names},
            **{n: t for n, t in scratch.items() if n in names},
        }
        run = self._vmap if self.spec.mode == "vmap" and phase.part != "test" else self._loop
        versions = {n: t._version for n, t in down.items()}
        collected = _Collector(phase, gang)
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            for i, answer in enumerate(run(phase, gang, down, rows)):
                collected.add(i, answer)
                if collected.failure:
                    return GangReply({}, {}, {}, {}, failure=collected.failure)
        changed = [n for n, t in down.items() if t._version != versions[n]]
        if changed:
            raise TypeError(
                f"{phase.work.__qualname__} changed {', '.join(changed)} in place; return new tensors instead"
            )
        scratch.update(collected.scratch)
        return collected.reply()

    def _down(self, phase: Phase) -> dict[str, Tensor]:
        key = (phase.conversation, phase.number)
        if self._received is None or self._received[0] != key:
            self._received = (key, {n: self._tensor(a) for n, a in phase.down.items()})
        return self._received[1]

    def _tensor(self, a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(a)).to(self.device)

    def _loop(self, phase: Phase, gang: Gang, down: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> Iterator[Answer]:
        model = self.model
        own = gang.states.get(BUFFERS)
        for i, client in enumerate(gang.clients.tolist()):
            torch.manual_seed(torch_seed(self.spec.seed, Purpose.DROPOUT, phase.round, phase.number, client))
            if phase.buffers is not None:
                model.load_buffers(self._tensor(phase.buffers if own is None else own[i]))
            task = LoopTask(self, phase, client)
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

    def _vmap(self, phase: Phase, gang: Gang, down: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> Iterable[Answer]:
        needs = self._needs.setdefault(f"{phase.work.__qualname__}:{phase.part}", set())
        if phase.buffers is not None:
            self.model.load_buffers(self._tensor(phase.buffers))
        stacked = {n: r if isinstance(r, Tensor) else torch.stack(list(r)) for n, r in rows.items()}
        while True:
            data, steps = self._stack(phase, gang, needs)

            def one(data: dict[str, Tensor], args: dict[str, Tensor], steps: int = steps) -> tuple[dict[str, Any], ...]:
                task = VmapTask(self, phase, steps, data)
                answer = phase.work(task, **down, **args)
                update = _checked(phase, answer.update)
                if task.losses:
                    update["train_loss"] = torch.stack(task.losses).mean()
                return update, dict(answer.state or {}), dict(answer.scratch or {})

            try:
                update, state, scratch = torch.func.vmap(one)(data, stacked)
            except NotPrepared as e:
                needs.add(str(e))
                continue
            break
        return [
            Answer(
                {n: t[i] for n, t in update.items()},
                {n: t[i] for n, t in state.items()} or None,
                {n: t[i] for n, t in scratch.items()} or None,
            )
            for i in range(len(gang.clients))
        ]

    def _stack(self, phase: Phase, gang: Gang, needs: set[str]) -> tuple[dict[str, Tensor], int]:
        """The gang's data, one row per client, as far as `needs` names it, and K."""
        clients, local = gang.clients.tolist(), self.spec.local
        counts = [len(self.shards.read(phase.part, c)[1]) for c in clients]
        steps = local.steps_for(counts[0]) if counts[0] else 0
        # vmap needs one tensor to batch over, also for a method that uses no data.
        data: dict[str, Tensor] = {"slot": torch.arange(len(counts))}
        if "batches" in needs:
            size = local.batch_size
            assert size != "full"
            xs, ys = zip(*(_joined(self.drawn(phase, c, steps, size)) for c in clients), strict=True)
            data["batches.x"] = torch.stack([x.view(steps, size, *x.shape[1:]) for x in xs])
            data["batches.y"] = torch.stack([y.view(steps, size, *y.shape[1:]) for y in ys])
        if "full" in needs:
            xs, ys = zip(*(_joined(self.whole(phase, c)) for c in clients), strict=True)
            data["full.x"] = torch.nn.utils.rnn.pad_sequence(list(xs), batch_first=True)
            data["full.y"] = torch.nn.utils.rnn.pad_sequence(list(ys), batch_first=True)
            data["full.count"] = torch.tensor(counts, dtype=torch.float64)
            data["full.mask"] = torch.arange(max(counts))[None, :] < torch.tensor(counts)[:, None]
        return {n: t.to(self.device) for n, t in data.items()}, steps

    # --- numerics ---------------------------------------------------------------------------------------------------

    def canary(self) -> str:
        """The sha256 of a small made-up gang's answer. Hosts that differ in it would give other bits."""
        keep, self.shards = self.shards, _MadeUp(self.spec)
        try:
            x = self.model.vector().cpu().numpy()
            buffers = self.model.buffers().cpu().numpy() if self.model.buffer_size else None
            phase = Phase(("canary", 0), 0, _canary_work, {"x": x}, {}, (), "train", 1.0, buffers, False)
            reply = self.run(phase, Gang(0, 0, np.arange(2), np.ones(2)), lambda k: phase)
            if buffers is not None:
                self.model.load_buffers(self._tensor(buffers))
        finally:
            self.shards = keep
        digest = hashlib.sha256()
        for name, total in sorted(reply.totals.items()):
            digest.update(name.encode() + total.tobytes())
        return digest.hexdigest()


class _Collector:
    """Gathers a gang's answers: weighted sums of vectors, scalars and states client by client."""

    def __init__(self, phase: Phase, gang: Gang) -> None:
        self._phase, self._gang = phase, gang
        self._totals: dict[str, Tensor] = {}
        self._scalars: dict[str, list[float]] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._states: dict[str, list[Tensor]] = {}
        self.scratch: dict[str, list[Tensor]] = {}
        self.failure: tuple[str, int] | None = None

    def add(self, i: int, answer: Answer) -> None:
        weight = float(self._gang.weights[i])
        for name, u in sorted(answer.update.items()):
            if not bool(torch.isfinite(u).all()):
                self.failure = (name, int(self._gang.clients[i]))
                return
            if u.ndim == 0:
                self._scalars.setdefault(name, []).append(float(u))
            elif name in self._phase.rows:
                self._rows.setdefault(name, []).append(u)
            elif name in self._totals:
                self._totals[name].add_(u, alpha=weight)
            else:
                self._totals[name] = u.to(torch.float64, copy=True).mul_(weight)
        for kept, new in ((self._states, answer.state), (self.scratch, answer.scratch)):
            for name, t in (new or {}).items():
                kept.setdefault(name, []).append(t)

    def reply(self) -> GangReply:
        def stack(parts: dict[str, list[Tensor]]) -> Arrays:
            return {n: torch.stack(ts).cpu().numpy() for n, ts in parts.items()}

        return GangReply(
            {n: t.cpu().numpy() for n, t in self._totals.items()},
            {n: np.array(v) for n, v in self._scalars.items()},
            stack(self._rows),
            stack(self._states),
        )


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


def check_device(device: str) -> None:
    """Refuse CUDA where torch finds none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("the device is cuda, but torch finds no GPU here; use --device cpu")


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
