"""What `keep_memory` changes, seen from outside: the resident size after large blocks were freed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from ctypes import CDLL, c_void_p, memset
from pathlib import Path
from raygrad.memory import keep_memory

def resident():  # KiB
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")).split()[1])

if {keep}:
    keep_memory()
    keep_memory()
c = CDLL(None)
c.malloc.restype, c.free.argtypes, c.free.restype = c_void_p, [c_void_p], None
before = resident()
blocks = [c.malloc(2**26) for _ in range(2)]
for block in blocks:
    memset(block, 1, 2**26)
for block in blocks:
    c.free(block)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_blocks_stay(keep: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True, timeout=100
    )
    kept = int(done.stdout) / 1024
    assert kept > 120 if keep else kept < 20
