"""Gradients of many clients at once: every rule against torch.func, and everything that must not run by rules."""

import pytest
import torch
from torch import Tensor, nn

from raygrad.flat import FlatModel
from raygrad.objectives import cross_entropy
from raygrad.stacked import StackedModel, on_plain_tensors

CLIENTS, BATCH, CLASSES = 3, 4, 5


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


class _Shared(nn.Module):
    """One matrix in two layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(12, 12)
        self.layers = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _shared() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(12, CLASSES))


def _frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    module[0].weight.requires_grad_(False)
    return module


def _hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, CLASSES))
    module[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return module


IMAGES = {
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES)),
    "stride, padding, dilation, no bias": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES)
    ),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding="same"), nn.GELU(), nn.Flatten(), nn.Linear(256, CLASSES)
    ),
    "pools": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Sigmoid(), nn.Linear(6, CLASSES, bias=False),
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.ReLU(), nn.Identity())),
        nn.Flatten(), nn.Linear(108, CLASSES),
    ),
    "linear on channels": lambda: nn.Sequential(nn.Linear(8, 3), nn.Flatten(), nn.Linear(2 * 8 * 3, CLASSES)),
}  # fmt: skip
FEATURES = {
    "mlp": lambda: nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, CLASSES)),
    "one layer": lambda: nn.Linear(12, CLASSES),
}
NOT_BY_RULES = {
    "own module": lambda: nn.Sequential(_Residual(), nn.Linear(12, CLASSES)),
    "norm": lambda: nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES)),
    "shared": _shared,
    "shared inside": _Shared,
    "frozen": _frozen,
    "hooked": _hooked,
}
CASES = [
    *((name, make, (2, 8, 8), True) for name, make in IMAGES.items()),
    *((name, make, (12,), True) for name, make in FEATURES.items()),
    *((name, make, (12,), False) for name, make in NOT_BY_RULES.items()),
]


def _made(make, shape: tuple[int, ...]) -> tuple[FlatModel, Tensor, Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = FlatModel(make(), torch.float64)
    x = model.vector() + 0.1 * torch.randn(CLIENTS, model.size, dtype=torch.float64)
    inputs = torch.randn(CLIENTS, BATCH, *shape, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, (CLIENTS, BATCH))
    mask = torch.tensor([[True, True, False, True]] * CLIENTS)
    mask[1] = True
    return model, x, inputs, targets, mask


@pytest.mark.parametrize(("name", "make", "shape", "by_rules"), CASES, ids=[case[0] for case in CASES])
def test_gradients_are_those_of_each_client_alone(name, make, shape, by_rules) -> None:  # type: ignore[no-untyped-def]
    model, x, inputs, targets, mask = _made(make, shape)
    stacked = StackedModel(model, cross_entropy)
    assert stacked.by_rules == by_rules
    g, sums = stacked.grads(x, inputs, targets, scale=0.5)
    masked, some = stacked.grads(x, inputs, targets, mask)
    for i in range(CLIENTS):
        wanted, value = model.grad(x[i], inputs[i], targets[i], cross_entropy)
        assert torch.allclose(g[i], 0.5 * wanted, rtol=0, atol=1e-13)
        assert torch.allclose(sums[i], value, rtol=0, atol=1e-13)
        wanted, value = model.grad(x[i], inputs[i][mask[i]], targets[i][mask[i]], cross_entropy)
        assert torch.allclose(masked[i], wanted, rtol=0, atol=1e-13)
        assert torch.allclose(some[i], value, rtol=0, atol=1e-13)
    assert not g.requires_grad


def test_a_loss_of_ones_own() -> None:
    def focal(output: Tensor, target: Tensor) -> Tensor:
        p = output.softmax(-1).gather(-1, target[:, None])[:, 0]
        return -((1 - p) ** 2) * p.log()

    model, x, inputs, targets, _ = _made(FEATURES["mlp"], (12,))
    g, _ = StackedModel(model, focal).grads(x, inputs, targets)
    for i in range(CLIENTS):
        assert torch.allclose(g[i], model.grad(x[i], inputs[i], targets[i], focal)[0], rtol=0, atol=1e-13)


def test_inside_vmap_rows_and_shared_arguments() -> None:
    model, x, inputs, targets, _ = _made(IMAGES["conv"], (2, 8, 8))
    stacked = StackedModel(model, cross_entropy)
    shared = model.vector()

    def one(x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        own, _ = on_plain_tensors(stacked.grads, x, inputs, targets)
        same, _ = on_plain_tensors(stacked.grads, shared, inputs, targets)
        return own - 2 * x, same

    own, same = torch.func.vmap(one)(x, inputs, targets)
    for i in range(CLIENTS):
        assert torch.allclose(own[i], model.grad(x[i], inputs[i], targets[i], cross_entropy)[0] - 2 * x[i])
        assert torch.allclose(same[i], model.grad(shared, inputs[i], targets[i], cross_entropy)[0])


def test_it_cannot_be_differentiated() -> None:
    model, x, inputs, targets, _ = _made(FEATURES["mlp"], (12,))
    stacked = StackedModel(model, cross_entropy)

    def one(x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.func.grad(lambda y: on_plain_tensors(stacked.grads, y, inputs, targets)[1])(x)

    with pytest.raises(TypeError, match="cannot be differentiated"):
        torch.func.vmap(one)(x, inputs, targets)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_descending_at_once_has_the_bits_of_single_steps(weight_decay: float) -> None:
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = FlatModel(IMAGES["pools"](), dtype)
        start = model.vector() + 0.1
        xs, ys = torch.randn(CLIENTS, 3, BATCH, 2, 8, 8, dtype=dtype), torch.randint(0, CLASSES, (CLIENTS, 3, BATCH))

        def step(y: Tensor, g: Tensor) -> Tensor:
            return torch.add(y, torch.add(g, y, alpha=weight_decay) if weight_decay else g, alpha=-0.3)

        kept = start.clone()
        end, losses = model.descend(start, zip(xs[0], ys[0], strict=True), cross_entropy, 0.3, weight_decay)
        y = start
        for k in range(3):
            g, value = model.grad(y, xs[0, k], ys[0, k], cross_entropy, 1 / BATCH)
            assert torch.equal(losses[k], value / BATCH)
            y = step(y, g)
        assert torch.equal(end, y)
        assert torch.equal(start, kept)

        stacked = StackedModel(model, cross_entropy)
        starts = start + torch.zeros(CLIENTS, 1, dtype=dtype)
        ends, all_losses = stacked.descend(starts, xs, ys, 0.3, weight_decay)
        y = starts
        for k in range(3):
            g, sums = stacked.grads(y, xs[:, k], ys[:, k], scale=1 / BATCH)
            assert torch.equal(all_losses[:, k], sums / BATCH)
            y = step(y, g)
        assert torch.equal(ends, y)
        assert torch.allclose(ends[0], end, rtol=0, atol=1e-5)
        alone, _ = stacked.descend(starts[:1], xs[:1], ys[:1], 0.3, weight_decay)
        assert torch.allclose(alone, ends[:1], rtol=0, atol=1e-5)
        assert torch.equal(starts, start + torch.zeros(CLIENTS, 1, dtype=dtype))
