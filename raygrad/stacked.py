"""The gradients of a gang's clients side by side: M models of one architecture, evaluated at once on plain tensors.

Every client's loss depends on its own row of `x` [M, d] alone, so one ordinary backward pass through the sum of all
losses gives each client's gradient in its row. A sequence of common layers is run by rules of its own (convolutions
of M clients are one convolution in M groups, linear layers one batched product); any other module by
`torch.func.vmap`, which costs more per call and means the same.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, _add_batch_dim, _unwrap_batched  # pyright: ignore
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.nn import functional as F

from raygrad.flat import FlatModel, Loss
from raygrad.objectives import LOSSES

Rule = Callable[..., Tensor]


def on_plain_tensors(function: Callable[..., tuple[Tensor, ...]], *args: Tensor | None) -> tuple[Tensor, ...]:
    """`function(*args)` inside `torch.func.vmap`, called once for all rows: it gets and gives tensors [M, ...].

    What a custom operator with a vmap rule would do at a third of its cost, which counts when a step takes a
    millisecond.
    """
    interpreter = retrieve_current_functorch_interpreter()
    if interpreter.key() != TransformType.Vmap:
        raise TypeError("task.grad and task.full_grad cannot be differentiated; use task.hvp for second derivatives")
    level, rows = interpreter.level(), interpreter.batch_size()  # pyright: ignore[reportAttributeAccessIssue]
    plain = [None if t is None else _rows(t, level, rows) for t in args]
    with interpreter.lower():
        results = function(*plain)
    return tuple(_add_batch_dim(t, 0, level) for t in results)


def _rows(t: Tensor, level: int, rows: int) -> Tensor:
    """The tensor [M, ...] behind `t`; what is the same for all rows is expanded."""
    plain, dim = _unwrap_batched(t, level)
    return plain.expand(rows, *plain.shape) if dim is None else plain.movedim(dim, 0)


class StackedModel:
    """`model` for many clients at once. It reads the model's architecture and buffers, never its parameters."""

    def __init__(self, model: FlatModel, loss: Loss) -> None:
        self._model, self._loss = model, loss
        self._layers = list(_flattened(model.module, ""))
        self.by_rules = all(
            type(layer) in _RULES
            and not _hooked(layer)
            and _covered(layer)
            and all(f"{name}{key}" in model.names for key, _ in layer.named_parameters())  # none frozen, none shared
            for name, layer in self._layers
        )

    def grads(
        self, x: Tensor, inputs: Tensor, targets: Tensor, mask: Tensor | None = None, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`scale` times the gradients [M, d] of each client's summed loss at its row of `x` [M, d], and the sums [M].

        `inputs` [M, B, ...] and `targets` [M, B]; examples where `mask` [M, B] is False count nothing.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            values = self._losses(self._outputs(self._split(x), inputs), targets)
            if mask is not None:
                values = torch.where(mask, values, 0.0)
            sums = values.sum(1)
            (g,) = torch.autograd.grad((sums * scale).sum(), x)
        return g, sums.detach()

    def descend(
        self, x: Tensor, inputs: Tensor, targets: Tensor, lr: float, weight_decay: float
    ) -> tuple[Tensor, Tensor]:
        """Each client's iterate [M, d] after K steps of SGD on the mean losses of its batches, and those losses [M, K].

        `inputs` [M, K, B, ...] and `targets` [M, K, B]. The parameters stay apart, and are put together at the end.
        """
        copies = {name: w.clone(memory_format=torch.contiguous_format) for name, w in self._split(x.detach()).items()}
        weights = {name: w.requires_grad_() for name, w in copies.items()}
        leaves, losses, batch = list(weights.values()), [], targets.shape[2]
        for xs, ys in zip(inputs.unbind(1), targets.unbind(1), strict=True):
            with torch.enable_grad():
                sums = self._losses(self._outputs(weights, xs), ys).sum(1)
                grads = torch.autograd.grad((sums * (1 / batch)).sum(), leaves, materialize_grads=True)
            losses.append(sums.detach() / batch)
            with torch.no_grad():
                for w, g in zip(leaves, grads, strict=True):
                    w.add_(torch.add(g, w, alpha=weight_decay) if weight_decay else g, alpha=-lr)
        return torch.cat([w.detach().flatten(1) for w in leaves], 1), torch.stack(losses, 1)

    def _split(self, x: Tensor) -> dict[str, Tensor]:
        """Each parameter of all clients [M, ...] by name, as views into `x` [M, d]."""
        parts = zip(self._model.names, x.split(self._model.sizes, dim=1), self._model.shapes, strict=True)
        return {name: part.view(len(x), *shape) for name, part, shape in parts}

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One value per example [M, B]."""
        if self._loss in LOSSES.values():
            return self._loss(outputs.flatten(0, 1), targets.flatten(0, 1)).view(targets.shape)
        return torch.func.vmap(self._loss)(outputs, targets)

    def _outputs(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What each client's model makes of its inputs: [M, B, ...]."""
        if not self.by_rules:
            return torch.func.vmap(self._model.place)(weights, inputs)
        h = inputs
        for name, layer in self._layers:
            own = {key: weights[f"{name}{key}"] for key, _ in layer.named_parameters()}
            h = _RULES[type(layer)](layer, h, **own)
        return h


_UNVMAPPABLE = {
    nn.modules.batchnorm._NormBase: "keeps running statistics while it trains",
    nn.modules.dropout._DropoutNd: "draws one mask per client",
    nn.RNNBase: "has recurrent kernels that torch.func.vmap cannot batch",
}


def vmap_obstacle(model: FlatModel, inputs: Tensor, targets: Tensor, loss: Loss) -> str | None:
    """Why clients of this model cannot be vmapped, naming the layer where it is known; None if they can.

    Known layers are named; anything else is found by trying one gradient of two clients on `inputs` [B, ...] and
    `targets` [B]. The model's parameters and buffers are left as they were.
    """
    for name, layer in model.module.named_modules():
        for kind, reason in _UNVMAPPABLE.items():
            if isinstance(layer, kind) and getattr(layer, "track_running_stats", True):
                return f"layer {name or '(model)'} ({type(layer).__name__}) {reason}"
    x, before, tensors = model.vector(), model.buffers(), [id(t) for t in model.module.buffers()]
    name = type(model.module).__name__
    try:
        model.grad(x, inputs, targets, loss)
        if not torch.equal(model.buffers(), before) or [id(t) for t in model.module.buffers()] != tensors:
            return f"the model ({name}) changes its buffers while it trains"

        stacked, two = StackedModel(model, loss), torch.stack([x, x])
        stacked.grads(two, inputs.expand(2, *inputs.shape), targets.expand(2, *targets.shape))
        if not stacked.by_rules:  # as second derivatives need it; this imports much of torch, for seconds

            def summed(y: Tensor) -> Tensor:
                return loss(model.call(y, inputs), targets).sum()

            torch.func.vmap(torch.func.grad(summed))(two)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as e:
        return f"torch.func.vmap cannot run the model ({name}): {str(e).splitlines()[0]}"
    finally:
        model.load(x)
        model.load_buffers(before)
    return None


def _flattened(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested sequences in order, each with the prefix of its parameters' names."""
    if type(module) is nn.Sequential and not _hooked(module):
        for key, child in module._modules.items():  # named_children() leaves out a layer that comes twice
            assert child is not None
            yield from _flattened(child, f"{name}{key}.")
    else:
        yield name, module


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def _covered(layer: nn.Module) -> bool:
    """Whether the rule of the layer's type covers its settings."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros"
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return not getattr(layer, "return_indices", False)


def _conv2d(layer: nn.Conv2d, h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    clients, batch = h.shape[:2]
    wide = h.transpose(0, 1).reshape(batch, -1, *h.shape[3:])  # [B, M c, height, width]
    out = F.conv2d(
        wide, weight.flatten(0, 1), None if bias is None else bias.flatten(), layer.stride, layer.padding,
        layer.dilation, clients * layer.groups,
    )  # fmt: skip
    return out.view(batch, clients, -1, *out.shape[2:]).transpose(0, 1)


def _linear(layer: nn.Linear, h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = h.flatten(1, -2)  # [M, B, features]
    if bias is None:
        out = torch.bmm(rows, weight.transpose(1, 2))
    else:
        out = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
    return out.view(*h.shape[:-1], -1)


def _on_images(layer: nn.Module, h: Tensor) -> Tensor:
    """Layers that take images one by one: all clients' images are one batch of channels."""
    clients, batch = h.shape[:2]
    wide = layer(h.transpose(0, 1).reshape(batch, -1, *h.shape[3:]))
    return wide.view(batch, clients, -1, *wide.shape[2:]).transpose(0, 1)


def _elementwise(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h)


def _flatten(layer: nn.Flatten, h: Tensor) -> Tensor:
    return h.flatten(2)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.MaxPool2d: _on_images,
    nn.AvgPool2d: _on_images,
    nn.AdaptiveAvgPool2d: _on_images,
    nn.ReLU: _elementwise,
    nn.Tanh: _elementwise,
    nn.Sigmoid: _elementwise,
    nn.GELU: _elementwise,
    nn.Identity: _elementwise,
}
"""How a layer runs for M clients: `rule(layer, h, **parameters)` with h [M, B, ...] and parameters [M, ...]."""
