"""A small computation whose bits tell what a host on this node would compute."""

import torch

from raygrad.data.transform import Transform
from raygrad.local import Local
from raygrad.models import DigitsCNN
from raygrad.runner import GangRunner, HostSpec, be_deterministic


def digest(device: str) -> str:
    """The digest of the canary gang on the digits' network, computed as a host computes on "cpu" or "cuda"."""
    be_deterministic(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spec = HostSpec(
            DigitsCNN(), "cross_entropy", ("accuracy",), "", Transform(scale=1 / 16), (1, 8, 8), 10,
            Local(steps=2, batch_size=4), 0, "float32", "loop", device,
        )  # fmt: skip
        return GangRunner(spec).canary()
    finally:
        torch.set_num_threads(threads)
