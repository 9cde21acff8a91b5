"""Plans of faults on several nodes that come and go, in a process of its own: that is another Ray."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def test_plans_on_nodes_that_come_and_go(tmp_path: Path) -> None:
    script = Path(__file__).with_name("plans_on_nodes.py")
    with tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as short:  # socket paths have at most 107 bytes
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, "RAY_TMPDIR": short}, timeout=600, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [p for p in found["plans"] if not p["ok"]] == []
    assert len(found["plans"]) == 2 and found["changes"] >= 1
