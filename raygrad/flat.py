"""A model is a vector: an `nn.Module` seen as one flat tensor `x` [d], and its buffers as another [b].

The vector holds the trainable parameters in the order of `named_parameters`. The buffers vector holds everything else
that the module needs to compute: BatchNorm's running statistics, constant tables, frozen parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raygrad.errors import BadInput
from raygrad.models import Model
from raygrad.rng import Purpose, torch_seed

Loss = Callable[[Tensor, Tensor], Tensor]
"""`loss(output, target) -> [B]`, one value per example."""

_ONCE_ONLY = ("is not implemented", "is not supported", "differentiate twice")
"""What torch says of an operation that has no second derivative."""


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
        self._params: list[Tensor] = list(trainable.values())
        names = {id(p): name for name, p in trainable.items()}
        self._places = {  # every place of a parameter, also where layers share it: its name
            f"{prefix}.{key}".lstrip("."): names[id(p)]
            for prefix, layer in self.module.named_modules()
            for key, p in layer.named_parameters(recurse=False)
            if id(p) in names
        }
        self._flat = torch.cat(
            [torch.empty(0, dtype=dtype, device=device), *(p.detach().flatten() for p in self._params)]
        )
        for p, view in zip(self._params, self.split(self._flat).values(), strict=True):
            p.data = view
        self._versions = [p._version for p in self._params]
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
        """Make the parameters views into `x` [d], without a copy; nothing here writes to them."""
        self._flat = x.detach()
        for p, view in zip(self._params, self.split(self._flat).values(), strict=True):
            p.data = view
        self._versions = [p._version for p in self._params]

    def refuse_written(self) -> None:
        """Raise BadInput if the module itself changed its parameters since `load`, in place or by assigning others."""
        storage = self._flat.untyped_storage().data_ptr()
        for name, p, version in zip(self.names, self._params, self._versions, strict=True):
            if p._version != version or p.untyped_storage().data_ptr() != storage:
                raise BadInput(
                    f"the model ({type(self.module).__name__}) changes its parameter {name} while it computes, which "
                    "makes results depend on who computed before; use a parametrization (torch.nn.utils.parametrize)"
                )

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

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, loss: Loss, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """`scale` times the summed loss's gradient [d], and the sum [], at `x` [d], on the module in place."""
        self.load(x)
        value = loss(self.module(inputs), targets).sum()
        grads = self._grads(value, scale)
        self.refuse_written()
        return torch.cat([g.flatten() for g in grads]), value.detach()

    def _grads(self, value: Tensor, scale: float) -> tuple[Tensor, ...]:
        """`scale` times the gradient of `value` [], by parameter; zeros where a parameter is not used."""
        # Without grad_outputs: given some, torch imports sympy, 0.7 s in every process.
        return torch.autograd.grad(value * scale, self._params, allow_unused=True, materialize_grads=True)

    def descend(
        self, x: Tensor, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss, lr: float, weight_decay: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The iterate [d] after one step of SGD on the mean loss of each batch, and the mean losses.

        The bits of the same steps made with `grad`, but the parameters stay where they are.
        """
        y, losses = x.clone(), []
        self.load(y)
        parts = list(self.split(y).values())
        for inputs, targets in batches:
            value = loss(self.module(inputs), targets).sum()
            grads = self._grads(value, 1 / len(targets))
            losses.append(value.detach() / len(targets))
            for part, g in zip(parts, grads, strict=True):
                part.add_(g.add(part, alpha=weight_decay) if weight_decay else g, alpha=-lr)
        self.refuse_written()
        return y, losses

    def hvp(self, x: Tensor, v: Tensor, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """The summed loss's Hessian at `x` [d], times `v` [d] -> [d], on the module in place.

        Raises NotImplementedError as `twice_differentiable` does.
        """
        self.load(x)
        self.module.zero_grad()
        with self.twice_differentiable():
            value = loss(self.module(inputs), targets).sum()
            grads = torch.autograd.grad(value, self._params, create_graph=True, allow_unused=True)
            known = [(g, u) for g, u in zip(grads, self.split(v).values(), strict=True) if g is not None]
            curved = [(g, u) for g, u in known if g.requires_grad]
            if not curved:  # the loss is linear in every parameter
                return torch.zeros_like(x)
            outputs, directions = zip(*curved, strict=True)
            try:  # not autograd.grad, which passes over operations that refuse to be differentiated twice
                torch.autograd.backward(outputs, directions)
                products = [p.grad for p in self._params]
            finally:
                self.module.zero_grad()
        flat = [torch.zeros_like(p) if h is None else h for h, p in zip(products, self._params, strict=True)]
        return torch.cat([h.flatten() for h in flat])

    @contextmanager
    def twice_differentiable(self) -> Iterator[None]:
        """Inside, torch takes kernels that have second derivatives instead of faster ones that lack them.

        Raises NotImplementedError where an operation has none at all.
        """
        recurrent = any(isinstance(layer, nn.RNNBase) for layer in self.module.modules())
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent and self.device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=False, deterministic=True))
            try:
                yield
            except RuntimeError as e:
                if not any(said in str(e) for said in _ONCE_ONLY):
                    raise
                name = type(self.module).__name__
                raise NotImplementedError(f"the model ({name}) has no second derivative: {e}") from e

    def call(self, x: Tensor, inputs: Tensor) -> Tensor:
        """The module's output at `x` [d], without touching its own parameters (for `torch.func`)."""
        return self.place(self.split(x), inputs)

    def place(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The module's output with these parameters by name, without touching its own (for `torch.func`)."""
        # Told every place, torch need not tie them itself, which breaks a module with a layer that comes twice.
        placed = {place: parameters[name] for place, name in self._places.items()}
        return torch.func.functional_call(self.module, placed, (inputs,), tie_weights=False)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The module's state dict; its entries share memory with this model."""
        return self.module.state_dict()


def initial_module(model: Model, shape: tuple[int, ...], classes: int | None, seed: int) -> nn.Module:
    """The module with its initial weights: a function of the seed alone, the same on every host."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.INIT))
        return model.build(shape, classes)
