"""A client takes so much memory that Ray kills its host, once.

Prints JSON: whether the bits are right, and the gangs' outcomes.

python tests/faults/out_of_memory.py FOLDER
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from torch import Tensor

from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Answer, Task
from raygrad.experiment import Gangs, Where
from raygrad.files.runs import load
from raygrad.verify import problem

SPARE_BYTES = 2 * 2**30
TAKEN_BYTES = 3 * 2**30
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Greedy(FedGA):
    """In round 2 whoever comes first takes more memory than there is to spare, and keeps it."""

    marker: str = ""

    def local(self, task: Task, x: Tensor, g_mean: Tensor, g: Tensor) -> Answer:
        if task.round == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            taken = b"x" * TAKEN_BYTES
            time.sleep(PATIENCE_S)
            del taken
        return super().local(task, x, g_mean, g)


def memory_bytes() -> tuple[int, int]:
    """Of this machine: all, and what is available."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))


def main(folder: Path) -> None:
    digests = []
    for where in (Where(on="local"), Where(hosts=1)):
        marker = folder / f"{where.on}-happened"
        if where.on == "local":
            marker.touch()  # there is nobody to be killed
        else:
            total, available = memory_bytes()
            threshold = (total - available + SPARE_BYTES) / total
            ray.init(
                address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                _system_config={"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100},
            )  # fmt: skip
        e = replace(problem(Greedy(marker=str(marker))), rounds=3, gangs=Gangs(1, "loop"))
        made = engine.create(e, where, run_root=folder, name=where.on)
        for _ in engine.play(made):
            pass
        digests.append(load(made.folder).checkpoint.tensors()["x"].numpy().tobytes().hex())
    outcomes = load(made.folder).table("operations")["outcome"].to_pylist()  # pyright: ignore[reportPossiblyUnbound]
    ray.shutdown()
    print(json.dumps({"same_bits": digests[0] == digests[1], "outcomes": sorted(set(outcomes))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
