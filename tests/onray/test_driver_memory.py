"""Without client state the driver's memory does not grow with the cohort."""

import subprocess
import sys
from pathlib import Path

import pytest


def growth(clients: int, folder: Path) -> tuple[int, int]:
    """The model's bytes, and the driver's peak growth in one round of `clients` clients."""
    script = Path(__file__).with_name("memory.py")
    done = subprocess.run(
        [sys.executable, str(script), str(clients), str(folder)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    model, peak = done.stdout.split()[-2:]
    return int(model), int(peak)


@pytest.mark.parametrize("clients", [10, 1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_driver_memory(clients: int, tmp_path: Path) -> None:
    """The answers would take `clients` models; gangs in flight and partial sums (float64) take a few dozen."""
    model, peak = growth(clients, tmp_path)
    assert peak <= 64 * model
