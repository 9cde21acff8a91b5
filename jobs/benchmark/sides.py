"""A side of a comparison: processes that play rounds when they are told to, and wait on a pipe otherwise."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The repository, so that `jobs` can be imported from anywhere."""


class Ended(Exception):
    """A side's process ended before it was told to."""


class Process:
    """One process that plays rounds, one line of JSON for each line it is sent."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._module = module
        words = [sys.executable, "-m", f"jobs.benchmark.{module}", *arguments, "--serve"]
        paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def send(self, rounds: int) -> None:
        """Begin to play."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{rounds}\n")
            self._process.stdin.flush()
        except BrokenPipeError as e:
            raise self._ended() from e

    def receive(self) -> Any:
        """What it answers. Raises Ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("[", "{")):
                return json.loads(line)
        raise self._ended()

    def _ended(self) -> Ended:
        return Ended(f"{self._module} ended with code {self._process.wait()} before it was told to")

    def finish(self) -> Any:
        """Let it end; what it says last."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        last = [line for line in self._process.stdout if line.startswith("{")]
        if self._process.wait(120):
            raise self._ended()
        return json.loads(last[-1]) if last else {}

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class Side:
    """Processes that play at the same moment; `seconds` has one list of round times for each, block by block."""

    name: str
    cohort: int
    processes: list[Process]
    seconds: list[list[list[float]]] = field(default_factory=list)  # [block][process][round]
    start_s: float = 0.0

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes:
            process.stop()

    def start(self) -> None:
        """Wait until every process has played its first round, which is not counted."""
        started = time.perf_counter()
        for process in self.processes:
            process.receive()
        self.start_s = time.perf_counter() - started

    def play(self, rounds: int) -> None:
        """One block of rounds."""
        for process in self.processes:
            process.send(rounds)
        self.seconds.append([process.receive() for process in self.processes])

    def rate(self, block: int | None = None, mean: bool = False) -> float:
        """Clients per second of all processes together, by the median round; `block` None: over all blocks.

        With `mean`, by the mean round: rare slow rounds count, too.
        """
        blocks = self.seconds if block is None else [self.seconds[block]]
        middle = statistics.fmean if mean else statistics.median
        lists = [[s for b in blocks for s in b[p]] for p in range(len(self.processes))]
        return sum(self.cohort / middle(seconds) for seconds in lists)


def others_busy(seconds: float = 0.5) -> float | None:
    """The part of all cores' time that is used while every side waits; None where the system does not tell."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None

    def read() -> tuple[int, int]:
        ticks = [int(t) for t in path.read_text().splitlines()[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]  # all, and idle or waiting for the disk

    before, idle_before = read()
    time.sleep(seconds)
    after, idle_after = read()
    return 1 - (idle_after - idle_before) / max(1, after - before)


def alternate(sides: Sequence[Side], blocks: int, rounds: Sequence[int]) -> list[float]:
    """Play `blocks` blocks by turns, the order turned round every time. `rounds`: of a block, by side.

    Returns how busy the machine was in the pauses.
    """
    found = []
    for block in range(blocks):
        if (busy := others_busy()) is not None:
            found.append(busy)
        order = list(zip(sides, rounds, strict=True))
        for side, count in order if block % 2 == 0 else reversed(order):
            side.play(count)
    return found
