"""A host that Ray kills for its memory costs time only; in a process of its own, with another Ray."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def test_a_host_that_is_killed_for_its_memory_changes_no_bit(tmp_path: Path) -> None:
    script = Path(__file__).with_name("out_of_memory.py")
    with tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as short:  # socket paths have at most 107 bytes
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, "RAY_TMPDIR": short}, timeout=300, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_bits"] and "lost: OutOfMemoryError" in found["outcomes"]
