"""raygrad beside Flower and pfl-research: the peers' own programs, one side after another, again and again.

    python -m jobs.benchmark.peers --programs DIR/peers --python ENV/torch/bin/python

`--programs` is a folder with floor_bench.py, pfl_bench.py and flower_bench.py, which do the work of work.py and print
one line `RESULT … first=…s … clients_per_s=…`; `--python` is an interpreter that has the peers installed. Every side
runs alone, from its start to its end; the figures are of the rounds after the first.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.benchmark import work
from jobs.benchmark.sides import ROOT
from raygrad.commands import output

PEER_NAMES = {"small": "small", "large": "pfl"}
"""What the peers' programs call the networks."""


@dataclass(frozen=True)
class Contestant:
    """A side and the command that runs it once."""

    name: str
    words: list[str]
    ours: bool = False


def contestants(given: argparse.Namespace) -> list[Contestant]:
    """Ours first, then every peer whose program is there."""
    size = ["--network", given.network, "--clients", str(given.clients), "--cohort", str(given.cohort)]
    size += ["--rounds", str(given.rounds - 1)]
    ours, peer, programs = [sys.executable, "-m"], str(given.python), given.programs.resolve()
    two = [peer, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = [
        Contestant("plain loop (jobs/benchmark)", [*ours, "jobs.benchmark.plain_loop", *size], ours=True),
        Contestant("plain loop (peers' floor)", [peer, str(programs / "floor_bench.py")]),
        Contestant("raygrad, 2 hosts", [*ours, "jobs.benchmark.on_raygrad", *size], ours=True),
        Contestant("pfl, 1 process", [peer, str(programs / "pfl_bench.py")]),
        Contestant("pfl, 2 processes", [*two, str(programs / "pfl_bench.py")]),
        Contestant("Flower, 2 actors", [peer, str(programs / "flower_bench.py")]),
    ]
    return [c for c in found if c.ours or Path(c.words[-1]).is_file()]


def run(contestant: Contestant, given: argparse.Namespace, home: str) -> tuple[float, float]:
    """Clients per second and the seconds of the first round. Raises ValueError with what a failed side said."""
    work_of_peers = {
        "B_CLIENTS": given.clients, "B_COHORT": given.cohort, "B_ROUNDS": given.rounds, "B_N": work.EXAMPLES,
        "B_BS": work.BATCH, "B_LR": work.LR, "B_MODEL": PEER_NAMES[given.network], "B_CPUS": 2,
    }  # fmt: skip
    environment = {
        **os.environ, **{k: str(v) for k, v in work_of_peers.items()}, "OMP_NUM_THREADS": "1", "FLWR_HOME": home,
        "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    place = ROOT if contestant.ours else given.programs
    done = subprocess.run(contestant.words, cwd=place, env=environment, capture_output=True, text=True, timeout=1800)
    rate = re.search(r"([\d.]+) clients/s" if contestant.ours else r"clients_per_s=([\d.]+)", done.stdout)
    first = re.search(r"first ([\d.]+) s" if contestant.ours else r"first=([\d.]+)s", done.stdout)
    if rate is None or first is None:
        raise ValueError(f"{contestant.name} gave no result: {(done.stderr or done.stdout).strip()[-500:]}")
    return float(rate[1]), float(first[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.benchmark.peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--programs", type=Path, required=True, help="the folder of the peers' programs")
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of the peers' environment")
    parser.add_argument("--network", choices=sorted(work.NETWORKS), default="small")
    parser.add_argument("--clients", type=int, default=100, help="all clients (default 100)")
    parser.add_argument("--cohort", type=int, default=10, help="clients per round (default 10)")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of a run, the first included (default 25)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default 3)")
    given = parser.parse_args(arguments)
    given.python = given.python.absolute()  # the link itself: what it leads to is another environment
    for path in (given.programs / "pfl_bench.py", given.python):
        if not path.exists():
            parser.error(f"{path} is missing: expected the peers' programs, and an interpreter that has the peers")
    if given.rounds < 2 or given.repeats < 1:
        parser.error("--rounds must be >= 2 and --repeats >= 1")
    sides = contestants(given)
    found: dict[str, list[tuple[float, float]]] = {c.name: [] for c in sides}
    with tempfile.TemporaryDirectory() as home:
        for repeat in range(given.repeats):
            for side in sides if repeat % 2 == 0 else reversed(sides):
                print(f"{repeat + 1} of {given.repeats}: {side.name} …", file=sys.stderr, flush=True)
                try:
                    found[side.name].append(run(side, given, home))
                except ValueError as e:
                    print(f"peers: {e}", file=sys.stderr)
    floor = statistics.median(rate for rate, _ in found[sides[0].name] or [(float("nan"), 0.0)])
    rows = []
    for name, results in found.items():
        rates = [rate for rate, _ in results]
        if not rates:
            rows.append([name, "failed", "", "", ""])
            continue
        middle, first = statistics.median(rates), statistics.median(first for _, first in results)
        rows.append([name, f"{middle:,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{middle / floor:.2f}",
                     f"{first:.1f} s"])  # fmt: skip
    output.table(["side", "clients/s", "spread", "x plain loop", "first round"], rows)
    load = os.getloadavg()
    print(f"\n{given.network}, {given.cohort} of {given.clients} clients, {given.rounds} rounds, {given.repeats} runs; "
          f"{os.cpu_count()} cores, load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
