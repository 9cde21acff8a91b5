"""How fast raygrad is, in ratios to a plain torch loop that runs by turns with it and never at the same moment.

    python -m jobs.benchmark.speed                       all cases, about ten minutes
    python -m jobs.benchmark.speed small-10 --blocks 3   one case, shortened

A case plays blocks of rounds by turns: raygrad while the plain loop waits on a pipe, then the plain loop while
raygrad's hosts wait. The figure is the ratio of clients per second by the median round of each side, over all blocks;
behind it stand the smallest and the largest ratio of a single pair of blocks. One line of JSON per case follows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from jobs.benchmark.sides import ROOT, Ended, Process, Side, alternate
from raygrad.commands import output


@dataclass(frozen=True)
class Case:
    """`cohort` of `clients` clients, against `loops` plain loops at once; `loops` 0: against raygrad on `stored`."""

    network: str
    clients: int
    cohort: int
    loops: int
    target: float  # the ratio to reach
    rounds: int  # of a block
    stored: int | None = None


CASES = {
    "small-10": Case("small", 100, 10, 1, 2.2, 40),
    "small-100": Case("small", 1000, 100, 1, 3.0, 8),
    "large": Case("large", 100, 20, 2, 0.9, 4),
    "million": Case("small", 1_000_000, 100, 0, 0.9, 10, stored=1000),
}
START_S = 6.0
"""The start to reach: from the command until the first round is done."""


QUIET = 0.15
"""How much of all cores may be busy in the pauses before the figures are called doubtful."""


def raygrad_side(case: Case, given: argparse.Namespace, folder: Path, stored: bool = False) -> Side:
    """raygrad's side of a case; with `stored`, on the stored clients alone."""
    clients = case.stored if stored and case.stored is not None else case.clients
    words = ["--network", case.network, "--clients", str(clients), "--cohort", str(case.cohort)]
    words += ["--stored", str(case.stored)] if case.stored is not None else []
    words += ["--on", given.on, "--hosts", str(given.hosts), "--shard-root", str(folder)]
    words += [word for setting in given.set for word in ("--set", setting)]
    place = "in one process" if given.on == "local" else f"{given.hosts} hosts"
    name = f"raygrad, {clients:,} clients" if case.stored is not None else f"raygrad, {place}"
    return Side(name, case.cohort, [Process("on_raygrad", words)])


def plain_side(case: Case) -> Side:
    """Plain loops at once, each on a core of its own if there are several."""
    words = ["--network", case.network, "--clients", str(case.clients), "--cohort", str(case.cohort)]
    cores = sorted(os.sched_getaffinity(0)) if case.loops > 1 and hasattr(os, "sched_getaffinity") else []
    pins = [["--cpu", str(cores[i % len(cores)])] if cores else [] for i in range(case.loops)]
    return Side(f"{case.loops} plain loop{'s' if case.loops > 1 else ''}", case.cohort,
                [Process("plain_loop", words + pin) for pin in pins])  # fmt: skip


def compare(name: str, case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one case."""
    with ExitStack() as stack:
        ours = stack.enter_context(raygrad_side(case, given, folder))
        ours.start()
        other = stack.enter_context(plain_side(case) if case.loops else raygrad_side(case, given, folder, stored=True))
        other.start()
        # One more short block each, uncounted: caches fill and both sides leave their first rounds behind.
        for side in (ours, other):
            side.play(1)
            side.seconds.clear()
        count = given.rounds or case.rounds
        busy = alternate([ours, other], given.blocks, [count, max(1, count // 2) if case.loops else count])
        ratios = [ours.rate(block) / other.rate(block) for block in range(given.blocks)]
        ratio = ours.rate() / other.rate()
        record: dict[str, Any] = {
            "case": name, "network": case.network, "clients": case.clients, "cohort": case.cohort,
            "side": ours.name, "clients_per_s": ours.rate(), "against": other.name,
            "against_clients_per_s": other.rate(), "ratio": ratio, "ratio_lowest": min(ratios),
            "ratio_highest": max(ratios), "ratio_of_means": ours.rate(mean=True) / other.rate(mean=True),
            "target": case.target, "reached": ratio >= case.target, "start_s": ours.start_s,
            "against_start_s": other.start_s,
            "blocks": given.blocks, "rounds": count, "others_busy": max(busy, default=None),
        }  # fmt: skip
        record |= {k: v for k, v in ours.processes[0].finish().items() if k != "case"}
        for process in other.processes:
            process.finish()
    return record


def start(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds from the command `raygrad run` until its first round is done, data not prepared, and where they go."""
    marks = [_one_start(folder / str(i), given.hosts, given.on) for i in range(given.starts)]
    totals = [m["first round"] for m in marks]
    middle = {k: statistics.median(m[k] for m in marks) for k in marks[0]}
    return {
        "case": "start", "first_round_s": middle["first round"], "lowest_s": min(totals), "highest_s": max(totals),
        "imported_s": middle["imported"], "prepared_s": middle["prepared"], "starts": given.starts,
        "target_s": START_S, "reached": middle["first round"] <= START_S,
    }  # fmt: skip


def _one_start(folder: Path, hosts: int, on: str) -> dict[str, float]:
    folder.mkdir()
    words = [sys.executable, "-m", "raygrad", "run", "digits", "--rounds", "1", "--no-report"]
    words += ["--on", "local"] if on == "local" else ["--hosts", str(hosts)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = perf_counter()
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    marks: dict[str, float] = {}
    beginnings = {"preparing": "imported", "starting": "prepared", "round 1 of": "first round"}
    for line in process.stdout:
        for text, mark in beginnings.items():
            if line.startswith(text):
                marks.setdefault(mark, perf_counter() - started)
    if process.wait() or len(marks) < len(beginnings):
        raise Ended(f"`{' '.join(words[2:])}` ended with code {process.returncode} and said {', '.join(marks) or '-'}")
    return marks


def row(record: dict[str, Any]) -> list[str]:
    """A case as a row of the table."""
    verdict = "yes" if record["reached"] else "NO"
    if record["case"] == "start":
        spread = f"{record['lowest_s']:.1f} to {record['highest_s']:.1f} s"
        split = f"imports {record['imported_s']:.1f} s, data until {record['prepared_s']:.1f} s"
        return ["start", f"{record['first_round_s']:.1f} s", "", "", "", spread, f"{START_S:g} s", verdict, split]
    where = f"host {record['host_clients_per_s']:,.0f} clients/s, {record['busy']:.0%} busy; "
    where += f"{record['overhead_ms']:.2f} ms per client beside"
    if record["against"].startswith("raygrad"):
        where += f"; start {record['start_s']:.0f} s, against {record['against_start_s']:.0f} s"
    return [
        record["case"], f"{record['clients_per_s']:,.0f}", record["against"], f"{record['against_clients_per_s']:,.0f}",
        f"{record['ratio']:.2f}", f"{record['ratio_lowest']:.2f} to {record['ratio_highest']:.2f}",
        f"{record['target']:g}", verdict,
        where,
    ]  # fmt: skip


HEADER = ["case", "clients/s", "against", "clients/s", "ratio", "by block", "target", "reached", "where it goes"]


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of every case asked for, one after the other."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.cases or [*CASES, "start"]:
            print(f"{name} …", file=sys.stderr, flush=True)
            folder = Path(temporary) / name
            folder.mkdir()
            if name == "start":
                yield start(given, folder)
            else:
                yield compare(name, CASES[name], given, given.shard_root or folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.benchmark.speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}, start (default: all)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks of each side (default 7)")
    parser.add_argument("--rounds", type=int, help="rounds of a block of raygrad's; a plain loop plays half as many")
    parser.add_argument("--starts", type=int, default=5, help="how often the start is timed (default 5)")
    parser.add_argument("--on", choices=("ray", "local"), default="ray")
    parser.add_argument("--hosts", type=int, default=2, help="host actors (default 2)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a field of raygrad's")
    parser.add_argument("--shard-root", type=Path, help="keep the prepared shards here (default: made anew)")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.cases) - {*CASES, "start"}):
        parser.error(f"no case {', '.join(unknown)}; there is {', '.join(CASES)}, start")
    if min(given.blocks, given.starts, given.hosts, 1 if given.rounds is None else given.rounds) < 1:
        parser.error("--blocks, --rounds, --starts and --hosts must be >= 1")
    records = []
    try:
        for record in measured(given):
            records.append(record)
            print(json.dumps(record), flush=True)
    except Ended as e:
        sys.exit(f"speed: {e}")
    print()
    output.table(HEADER, [row(record) for record in records])
    load, cores = os.getloadavg(), os.cpu_count()
    pauses = [r["others_busy"] for r in records if r.get("others_busy") is not None]
    share = f"; busy in the pauses: at most {max(pauses):.0%} of all cores" if pauses else ""
    share += ", which is too much: repeat it on a quiet machine" if pauses and max(pauses) > QUIET else ""
    print(f"\n{cores} cores, load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f} (the benchmark's own included){share}")


if __name__ == "__main__":
    main()
