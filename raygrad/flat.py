"""A model is a vector: an `nn.Module` seen as one flat tensor `x` [d], and its buffers as another [b].

The vector holds the trainable parameters in the order of `named_parameters`. The buffers vector holds everything else
that the module needs to compute: BatchNorm's running statistics, constant tables, frozen parameters.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raygrad.models import Model
from raygrad.rng import Purpose, torch_seed

Loss = Callable[[Tensor, Tensor], Tensor]
"""`loss(output, target) -> [B]`, one value per example."""


class FlatModel:
    """`module` with its trainable parameters as views into one vector.

    The module is moved to `device` and `dtype` and belongs to this object from then on.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device=device, dtype=dtype)
        trainable = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        frozen = {n: p for n, p in self.module.named_parameters() if not p.requires_grad}
        self.names = list(trainable)
        self.shapes = [p.shape for p in trainable.values()]
        self.sizes = [p.numel() for p in trainable.values()]
        self.dtype, self.device = dtype, torch.device(device)
        self._params = list(trainable.values())
        self._flat = torch.cat(
            [torch.empty(0, dtype=dtype, device=device), *(p.detach().flatten() for p in self._params)]
        )
        for p, view in zip(self._params, self.split(self._flat).values(), strict=True):
            p.data = view
        self._frozen = frozen
        self.buffer_size = sum(t.numel() for t in self._rest())

    @property
    def size(self) -> int:
        """d, the number of trainable parameters."""
        return self._flat.numel()

    def _rest(self) -> list[Tensor]:
        """The tensors behind the buffers vector, looked up anew: a module may assign a new tensor to a buffer."""
        return [*self._frozen.values(), *self.module.buffers()]

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views into `x` [d]."""
        parts = x.split(self.sizes) if self.sizes else ()
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def vector(self) -> Tensor:
        """A copy of the current parameters [d]."""
        return self._flat.clone()

    def load(self, x: Tensor) -> None:
        """Set the parameters to `x` [d]."""
        self._flat.copy_(x)

    def buffers(self) -> Tensor:
        """A copy of the current buffers [b], in the model's dtype. Raises TypeError if their size changed."""
        parts = [t.detach().flatten().to(self.dtype) for t in self._rest()]
        b = torch.cat([torch.empty(0, dtype=self.dtype, device=self.device), *parts])
        if len(b) != self.buffer_size:
            raise TypeError(
                f"the model's buffers had {self.buffer_size} numbers and now have {len(b)}; keep their shapes"
            )
        return b

    def load_buffers(self, b: Tensor) -> None:
        """Set the buffers to `b` [b]; whole-number buffers are rounded."""
        start = 0
        with torch.no_grad():
            for t in self._rest():
                part = b[start : start + t.numel()].view(t.shape)
                t.copy_(part if t.is_floating_point() else part.round())
                start += t.numel()

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The summed loss's gradient [d] and value [] at `x` [d], on the module in place."""
        self.load(x)
        value = loss(self.module(inputs), targets).sum()
        grads = torch.autograd.grad(value, self._params, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self._params, strict=True)]
        return torch.cat([g.flatten() for g in flat]), value.detach()

    def call(self, x: Tensor, inputs: Tensor) -> Tensor:
        """The module's output at `x` [d], without touching its own parameters (for `torch.func`)."""
        return torch.func.functional_call(self.module, self.split(x), (inputs,))

    def state_dict(self) -> Mapping[str, Tensor]:
        """The module's state dict; its entries share memory with this model."""
        return self.module.state_dict()


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

        def summed(y: Tensor) -> Tensor:
            return loss(model.call(y, inputs), targets).sum()

        torch.func.vmap(torch.func.grad(summed))(torch.stack([x, x]))
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as e:
        return f"torch.func.vmap cannot run the model ({name}): {str(e).splitlines()[0]}"
    finally:
        model.load(x)
        model.load_buffers(before)
    return None


def initial_module(model: Model, shape: tuple[int, ...], classes: int | None, seed: int) -> nn.Module:
    """The module with its initial weights: a function of the seed alone, the same on every host."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.INIT))
        return model.build(shape, classes)
