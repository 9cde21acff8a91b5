"""raygrad's side: the same work as an experiment, through the public API, timed round by round.

    python -m jobs.benchmark.on_raygrad --network small --clients 1000 --cohort 100

A round's time is what the loop `for round in raygrad.rounds(...)` waits for it: sampling, messages, sums and tables
are in it. Evaluation, probes and checkpoints are made rare, since the plain loop has none.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter

import raygrad
from jobs.benchmark import work
from jobs.benchmark.experiments import experiment
from jobs.benchmark.plain_loop import serve, summary


def timed(played: Generator[raygrad.Round, None, None], seen: dict[int, float]) -> Iterator[float]:
    """The seconds of each round, for ever; kept in `seen` by the round's index."""
    while True:
        started = perf_counter()
        index = next(played).index
        seen[index] = perf_counter() - started
        yield seen[index]


def costs(run: Path, seen: dict[int, float], cohort: int, hosts: int) -> dict[str, float]:
    """Where the rounds' time went, from the run's table `operations`; the first round warms up and is left out.

    `host_clients_per_s`: of one host while it computes. `overhead_ms`: the time of all hosts that is not computing,
    per client. `busy`: the part of the hosts' time that is.
    """
    table = raygrad.load(run).table("operations")
    computing = dict.fromkeys(seen, 0.0)
    for index, seconds in zip(table["round"].to_pylist(), table["wall_s"].to_pylist(), strict=True):
        computing[index] = computing.get(index, 0.0) + seconds
    rounds = sorted(seen)[1:] or sorted(seen)
    return {
        "host_clients_per_s": cohort / statistics.median(computing[i] for i in rounds),
        "overhead_ms": statistics.median((hosts * seen[i] - computing[i]) / cohort * 1e3 for i in rounds),
        "busy": statistics.median(computing[i] / (hosts * seen[i]) for i in rounds),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark.on_raygrad",
        description="raygrad's side of the comparison, alone: seconds per round and clients per second.",
    )
    parser.add_argument("--network", choices=sorted(work.NETWORKS), default="small")
    parser.add_argument("--clients", type=int, default=100, help="all clients (default 100)")
    parser.add_argument("--cohort", type=int, default=10, help="clients per round (default 10)")
    parser.add_argument("--stored", type=int, help="store this many shards; client i reads shard i mod STORED")
    parser.add_argument("--rounds", type=int, default=25, help="rounds after the first (default 25)")
    parser.add_argument("--on", choices=("ray", "local"), default="ray")
    parser.add_argument("--hosts", type=int, default=2, help="host actors (default 2)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a field, as raygrad run")
    parser.add_argument("--shard-root", type=Path, help="keep the prepared shards here (default: made anew)")
    parser.add_argument("--serve", action="store_true", help="play as many rounds as each line on stdin asks for")
    given = parser.parse_args(arguments)
    try:
        measure(given)
    except raygrad.RaygradError as e:
        sys.exit(f"on_raygrad: {e}")


def measure(given: argparse.Namespace) -> None:
    """Run what the command line asks for and print the figures; the last line is JSON."""
    chosen = experiment(given.network, given.clients, given.cohort, given.stored)
    for setting in given.set:
        path, _, value = setting.partition("=")
        chosen = chosen.set(path, value)
    hosts = 1 if given.on == "local" else given.hosts
    seen: dict[int, float] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where = raygrad.Where(on=given.on, hosts=hosts, shard_root=str(given.shard_root or root / "shards"))
        played = stack.enter_context(closing(raygrad.rounds(chosen, where, run_root=root)))
        source = timed(played, seen)
        if given.serve:
            serve(source)
        else:
            first = next(source)
            print(summary("raygrad", given, first, [next(source) for _ in range(given.rounds)]))
        played.close()
        (run,) = root.glob("run/*")
        print(json.dumps({"case": "raygrad", **costs(run, seen, given.cohort, hosts)}), flush=True)


if __name__ == "__main__":
    main()
