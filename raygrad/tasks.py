"""A client's work as its method sees it (`raygrad.contract.Task`): one client at a time, or in `torch.func.vmap`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raygrad.contract import Batch
from raygrad.gang import Phase
from raygrad.local import Local
from raygrad.regularizers import VALUE, hvp
from raygrad.rng import Purpose, torch_seed
from raygrad.stacked import on_plain_tensors

if TYPE_CHECKING:
    from raygrad.runner import GangRunner

FULL = Batch(torch.empty(0), torch.empty(0))
"""The whole shard as one batch, each example once."""


class NotPrepared(Exception):
    """A vmapped client method used a kind of data that was not stacked yet."""


class _Round:
    """What a task knows of its round."""

    def __init__(self, runner: "GangRunner", phase: Phase) -> None:
        self._runner, self._phase = runner, phase
        self.round = phase.round
        local = runner.spec.local
        self.weight_decay, self.clip_norm, self.momentum = local.weight_decay, local.clip_norm, local.momentum
        self.losses: list[Tensor] = []

    def lr(self, base: float) -> float:
        return base * self._phase.lr_factor

    @property
    def _plain(self) -> bool:
        """Whether a local step is one along the loss's gradient."""
        return self.clip_norm is None and not self.momentum and self._runner.term is None

    def _record(self, loss: Tensor) -> None:
        # What only measures reports no training loss: local steps that go astray in a probe must not stop the run.
        if self._phase.keep_buffers:
            self.losses.append(loss)


class LoopTask(_Round):
    """One client's work on the runner's module, one client at a time."""

    def __init__(self, runner: "GangRunner", phase: Phase, client: int, steps: int | None = None) -> None:
        super().__init__(runner, phase)
        self._client, self._steps = client, steps

    def uniforms(self, number: int = 0) -> Tensor:
        return self._runner.uniforms(self._phase, self._client, number)

    @cached_property
    def examples(self) -> int:
        return len(self._runner.shards.read(self._phase.part, self._client)[1])

    @cached_property
    def _local(self) -> Local:
        return self._runner.local(self._phase).at(self._runner.spec.seed, self.round, self._client, self.examples)

    @property
    def steps(self) -> int:
        return self._local.steps_for(self.examples) if self._steps is None else self._steps

    @property
    def batches(self) -> Iterator[Batch]:
        size = self._local.batch_size
        return iter([FULL] * self.steps) if size == "full" else self._cut_batches(size)

    def _cut_batches(self, size: int) -> Iterator[Batch]:
        for xs, ys in self._runner.drawn(self._phase, self._client, self.steps, size):
            yield from (Batch(x, y) for x, y in zip(xs.split(size), ys.split(size), strict=True))

    def _pieces(self, train: bool = True) -> Iterator[Batch]:
        pieces = self._runner.whole(self._phase, self._client, train)
        return (Batch(x, y) for x, y in pieces if len(y))

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        if batch is FULL:
            return self._whole(x)
        g, loss = self._runner.model.grad(x, batch.x, batch.y, self._runner.loss, 1 / len(batch.y))
        self._record(loss / len(batch.y))
        return self._regularised(g, x)

    def _regularised(self, g: Tensor, x: Tensor) -> Tensor:
        term = self._runner.term
        return g if term is None else g + term.grad(x)

    def descend(self, start: Tensor, lr: float) -> Tensor | None:
        size = self._local.batch_size
        if size == "full" or not self._plain:
            return None
        drawn = ((b.x, b.y) for b in self._cut_batches(size))
        y, losses = self._runner.model.descend(start, drawn, self._runner.loss, lr, self.weight_decay)
        for loss in losses:
            self._record(loss)
        return y

    def full_grad(self, x: Tensor) -> Tensor:
        with self._buffers_kept():
            return self._whole(x)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        runner, total = self._runner, torch.zeros_like(x)
        seed = torch_seed(runner.spec.seed, Purpose.DROPOUT, self.round, 0, self._client)
        with self._buffers_kept(), torch.random.fork_rng(devices=[] if runner.device.type == "cpu" else None):
            torch.manual_seed(seed)
            for chunk in self._pieces():
                total.add_(runner.model.hvp(x, v, chunk.x, chunk.y, runner.loss))
        mean = total.div_(self.examples)
        return mean if runner.term is None else mean + hvp(runner.term, x, v)

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """The model's buffers afterwards as they were before."""
        model = self._runner.model
        before = model.buffers() if model.buffer_size else None
        try:
            yield
        finally:
            if before is not None:
                model.load_buffers(before)

    def _whole(self, x: Tensor) -> Tensor:
        total, loss = torch.zeros_like(x), torch.zeros((), dtype=x.dtype, device=x.device)
        for chunk in self._pieces():
            g, value = self._runner.model.grad(x, chunk.x, chunk.y, self._runner.loss)
            total, loss = total.add_(g), loss + value
        self._record(loss / self.examples)
        return self._regularised(total.div_(self.examples), x)

    def square_norms(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        pieces = self._pieces() if batch is None or batch is FULL else [batch]
        return torch.stack([self._runner.square_norms(x, piece.x, piece.y) for piece in pieces]).sum()

    def evaluate(self, x: Tensor) -> Mapping[str, Tensor]:
        model, functions = self._runner.model, self._runner.measures
        model.load(x)
        model.module.eval()
        sums = {name: torch.zeros((), dtype=torch.float64) for name in functions}
        with torch.no_grad():
            for chunk in self._pieces(train=False):
                out = model.module(chunk.x)
                for name, f in functions.items():
                    sums[name] += f(out, chunk.y).sum().double().cpu()
        model.module.train()
        model.refuse_written()
        if (term := self._runner.term) is not None:
            sums[VALUE] = term.value(x).double().cpu() * self.examples
        return {**sums, "count": torch.tensor(float(self.examples), dtype=torch.float64)}


class VmapTask(_Round):
    """One client's work inside `torch.func.vmap`: every tensor stands for all clients of the gang at once."""

    def __init__(self, runner: "GangRunner", phase: Phase, steps: int, data: Mapping[str, Tensor]) -> None:
        super().__init__(runner, phase)
        self._data, self.steps = data, steps

    def _get(self, name: str) -> Tensor:
        if name not in self._data:
            raise NotPrepared(name.split(".")[0])
        return self._data[name]

    def uniforms(self, number: int = 0) -> Tensor:
        return self._get(f"uniforms-{number}")

    @property
    def examples(self) -> Tensor:
        return self._get("full.count")

    @property
    def batches(self) -> Iterator[Batch]:
        if self._runner.local(self._phase).batch_size == "full":
            return iter([FULL] * self.steps)
        xs, ys = self._get("batches.x"), self._get("batches.y")
        return (Batch(xs[k], ys[k]) for k in range(self.steps))

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        if batch is FULL:
            return self.full_grad(x)
        mean = partial(self._runner.stacked.grads, scale=1 / len(batch.y))
        g, loss = on_plain_tensors(mean, x, batch.x, batch.y)
        self._record(loss / len(batch.y))
        return self._regularised(g, x)

    def _regularised(self, g: Tensor, x: Tensor) -> Tensor:
        term = self._runner.term
        return g if term is None else g + on_plain_tensors(lambda y: (term.grad(y),), x)[0]

    def descend(self, start: Tensor, lr: float) -> Tensor | None:
        if self._runner.local(self._phase).batch_size == "full" or not self._plain:
            return None
        xs, ys = self._get("batches.x"), self._get("batches.y")
        descend = partial(self._runner.stacked.descend, lr=lr, weight_decay=self.weight_decay)
        y, losses = on_plain_tensors(descend, start, xs, ys)
        for loss in losses:
            self._record(loss)
        return y

    def _chunks(self, what: str = "full") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        xs, ys, mask = (self._get(f"{what}.{column}") for column in ("x", "y", "mask"))
        return zip(
            xs.split(self._runner.chunk), ys.split(self._runner.chunk), mask.split(self._runner.chunk), strict=True
        )

    def full_grad(self, x: Tensor) -> Tensor:
        count = self._get("full.count").to(x.dtype)
        parts = [on_plain_tensors(self._runner.stacked.grads, x, *chunk) for chunk in self._chunks()]
        total, loss = parts[0]
        for g, value in parts[1:]:
            total, loss = total + g, loss + value
        self._record(loss / count)
        return self._regularised(total / count, x)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        count = self._get("full.count").to(x.dtype)

        def summed(p: Tensor, xs: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
            values = self._runner.loss(self._runner.model.call(p, xs), ys)
            return torch.where(mask, values, 0.0).sum()

        def along(p: Tensor, xs: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
            return (torch.func.grad(summed)(p, xs, ys, mask) * v).sum()

        with self._runner.model.twice_differentiable():
            parts = [torch.func.grad(along)(x, *chunk) for chunk in self._chunks()]
        mean, term = sum(parts[1:], parts[0]) / count, self._runner.term
        return mean if term is None else mean + on_plain_tensors(lambda y, u: (hvp(term, y, u),), x, v)[0]

    def square_norms(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        if batch is None or batch is FULL:
            chunks = self._chunks()
        else:
            chunks = iter([(batch.x, batch.y, torch.ones_like(batch.y, dtype=torch.bool))])

        def norms(x: Tensor, xs: Tensor, ys: Tensor, mask: Tensor) -> tuple[Tensor]:
            rows = zip(x, xs, ys, mask, strict=True)
            return (torch.stack([self._runner.square_norms(y, a[m], b[m]) for y, a, b, m in rows]),)

        parts = [on_plain_tensors(norms, x, *chunk)[0] for chunk in chunks]
        return sum(parts[1:], parts[0])

    def evaluate(self, x: Tensor) -> Mapping[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for xs, ys, mask in self._chunks("plain"):
            out = self._runner.model.call(x, xs)
            for name, f in self._runner.measures.items():
                value = torch.where(mask, f(out, ys), 0.0).sum().double()
                sums[name] = sums[name] + value if name in sums else value
        count = self._get("plain.count")
        if (term := self._runner.term) is not None:
            sums[VALUE] = term.value(x).double() * count
        return {**sums, "count": count}
