"""A module as a vector, and local SGD on it, against torch's own."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygrad import local
from raygrad.contract import Batch
from raygrad.errors import BadInput
from raygrad.flat import FlatModel
from raygrad.objectives import accuracy, cross_entropy, squared_error


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def test_vector_holds_the_trainable_parameters_in_order() -> None:
    m = module()
    m[0].bias.requires_grad_(False)
    expected = torch.cat([p.detach().flatten() for p in m.parameters() if p.requires_grad])
    flat = FlatModel(m, torch.float32)
    assert flat.names == ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert torch.equal(flat.vector(), expected)
    flat.load(2 * expected)
    assert torch.equal(torch.cat([p.detach().flatten() for p in m.parameters() if p.requires_grad]), 2 * expected)


def test_buffers_hold_the_rest() -> None:
    m = module()
    m[0].bias.requires_grad_(False)
    flat = FlatModel(m, torch.float64)
    m(torch.randn(7, 4, dtype=torch.float64))
    b = flat.buffers()
    assert len(b) == flat.buffer_size == 5 + 5 + 5 + 1  # the frozen bias, mean, variance, number of batches
    other = FlatModel(module(), torch.float64)
    with torch.no_grad():
        other.module[0].bias.requires_grad_(False)
    fresh = module()
    fresh[0].bias.requires_grad_(False)
    target = FlatModel(fresh, torch.float64)
    target.load_buffers(b)
    assert torch.equal(target.buffers(), b)
    assert int(fresh[1].num_batches_tracked) == 1


def test_grad_is_autograds() -> None:
    m = module()
    flat = FlatModel(m, torch.float64)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    g, value = flat.grad(flat.vector(), x, y, cross_entropy)
    loss = F.cross_entropy(m(x), y, reduction="sum")
    loss.backward()
    assert float(value) == pytest.approx(loss.item())
    assert torch.allclose(g, torch.cat([p.grad.flatten() for p in m.parameters()]), rtol=0, atol=1e-14)  # type: ignore[union-attr]


@dataclass
class Plain:
    """A task on given batches, without an engine."""

    model: FlatModel
    data: list[Batch]
    weight_decay: float = 0.0
    clip_norm: float | None = None
    momentum: float = 0.0
    steps: int = 0
    examples: int = 0
    round: int = 1
    norms: list[float] = field(default_factory=list)

    @property
    def batches(self) -> list[Batch]:
        return self.data

    def grad(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        g, _ = self.model.grad(x, batch.x, batch.y, cross_entropy)
        return g / len(batch.y)

    def full_grad(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def hvp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def evaluate(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def lr(self, base: float) -> float:
        return base


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_local_sgd_is_torch_optim_sgd(clip_norm: float | None, weight_decay: float) -> None:
    torch.manual_seed(1)
    batches = [Batch(torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))) for _ in range(5)]
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    flat = FlatModel(net, torch.float64)
    start = flat.vector()
    found = local.sgd(Plain(flat, batches, weight_decay, clip_norm), start, 0.2)
    flat.load(start)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=weight_decay)
    for b in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(b.x), b.y).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        optimizer.step()
    assert (found - flat.vector()).abs().max() <= 1e-14


def test_losses_and_metrics_give_one_value_per_example() -> None:
    out, y = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    assert torch.allclose(cross_entropy(out, y), F.cross_entropy(out, y, reduction="none"))
    assert accuracy(out, y).tolist() == [1.0, 1.0, 0.0]
    assert squared_error(torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 4.0])).tolist() == [2.0, 0.0]


class Writes(nn.Linear):
    """A layer that bounds its own weight, by `how`."""

    def __init__(self, how: str) -> None:
        super().__init__(3, 2)
        self.how = how

    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            if self.how == "in place":
                self.weight.mul_(0.9)
            elif self.how == "assigned":
                self.weight.data = self.weight.clamp(-0.1, 0.1)
        return super().forward(input)


@pytest.mark.parametrize("how", ["in place", "assigned", "not at all"])
@pytest.mark.parametrize("call", ["grad", "descend"])
def test_a_model_that_writes_its_parameters_is_refused(how: str, call: str) -> None:
    model = FlatModel(Writes(how), torch.float64)
    x, inputs, targets = model.vector(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])

    def compute() -> None:
        if call == "grad":
            model.grad(x, inputs, targets, cross_entropy)
        else:
            model.descend(x, [(inputs, targets)] * 2, cross_entropy, 0.1, 0.0)

    if how == "not at all":
        compute()
    else:
        with pytest.raises(BadInput, match="changes its parameter weight"):
            compute()
