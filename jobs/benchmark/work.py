"""The work that every side of a benchmark does: made shards and two networks. Needs torch and numpy only."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

SHAPE = (3, 32, 32)
CLASSES = 10
EXAMPLES = 50
"""Examples of each client."""
STEPS, BATCH, LR = 5, 10, 0.05
"""K, B and the step size: K * B = EXAMPLES, so a round is one epoch."""


@cache
def shard(seed: int, client: int) -> tuple[Tensor, Tensor]:
    """Client `client`'s x [50, 3, 32, 32] float32 and y [50] int64: a function of both numbers, kept in memory."""
    draw = np.random.default_rng([seed, client])
    y = draw.integers(0, CLASSES, EXAMPLES).astype(np.int64)
    noise = draw.standard_normal((EXAMPLES, *SHAPE), dtype=np.float32)
    x = noise + 0.1 * y[:, None, None, None].astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(y)


def small(shape: tuple[int, ...] = SHAPE, classes: int | None = CLASSES) -> nn.Module:
    """26,842 parameters: two strided 3x3 convolutions (8, 16) and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(7 * 7 * 16, 32), nn.ReLU(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def large(shape: tuple[int, ...] = SHAPE, classes: int | None = CLASSES) -> nn.Module:
    """1,626,442 parameters: pfl-research's published CNN for CIFAR-10, without its dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(14 * 14 * 64, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


NETWORKS = {"small": small, "large": large}
