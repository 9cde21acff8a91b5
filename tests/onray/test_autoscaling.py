"""An autoscaler adds nodes for a sweep and removes them after it; in a process of its own, with another Ray."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_an_autoscaler_adds_nodes_for_a_sweep(tmp_path: Path) -> None:
    script = Path(__file__).with_name("autoscaling.py")
    with tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as short:  # socket paths have at most 107 bytes
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, "RAY_TMPDIR": short}, timeout=400, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["outcomes"] == ["finished"] * 3
    assert (found["before"], found["after"]) == (0, 0) and 1 <= found["during"] <= 2
    assert found["may_grow"]
