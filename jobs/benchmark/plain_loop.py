"""The yardstick: federated averaging as one plain torch loop, without any framework, in one process on one thread.

    python -m jobs.benchmark.plain_loop --network small --clients 1000 --cohort 100

It takes a client's mini-batches in stored order and draws nothing but the cohort; raygrad draws fresh permutations in
every round. The difference is in the plain loop's favour.
"""

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jobs.benchmark import work

Weights = Mapping[str, Tensor]


def play(
    model: nn.Module, weights: Weights, shards: Sequence[tuple[Tensor, Tensor]], steps: int, batch: int, lr: float
) -> dict[str, Tensor]:
    """One round: the mean of the weights after `steps` steps of SGD from `weights` on each of `shards`."""
    mean = {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in shards:
        model.load_state_dict(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for k in range(steps):
            start = k * batch % len(x)
            optimizer.zero_grad()
            cross_entropy(model(x[start : start + batch]), y[start : start + batch]).backward()
            optimizer.step()
        for name, w in model.state_dict().items():
            mean[name] += w / len(shards)
    return mean


def rounds(network: str, clients: int, cohort: int, seed: int = 0) -> Iterator[float]:
    """The seconds of each round, for ever. All shards are made before the first."""
    for client in range(clients):
        work.shard(seed, client)
    torch.manual_seed(seed)
    model = work.NETWORKS[network]().train()
    weights: Weights = {name: w.clone() for name, w in model.state_dict().items()}
    draw = random.Random(seed)
    while True:
        started = perf_counter()
        shards = [work.shard(seed, client) for client in draw.sample(range(clients), cohort)]
        weights = play(model, weights, shards, work.STEPS, work.BATCH, work.LR)
        yield perf_counter() - started


def serve(source: Iterator[float]) -> None:
    """For every line with a number n on stdin, play n rounds and print their seconds as JSON; between them, sleep."""
    print(json.dumps([next(source)]), flush=True)  # what the first round warms up is not counted
    for line in sys.stdin:
        print(json.dumps([next(source) for _ in range(int(line))]), flush=True)


def summary(side: str, given: argparse.Namespace, first: float, seconds: list[float]) -> str:
    """The figures of a side that ran alone, for people."""
    ordered, quarter = sorted(seconds), len(seconds) // 4
    median = statistics.median(seconds)
    return (
        f"{side}, {given.network}, {given.cohort} of {given.clients} clients: median {median * 1e3:.2f} ms per round "
        f"(middle half {ordered[quarter] * 1e3:.2f} to {ordered[-1 - quarter] * 1e3:.2f}, first {first:.2f} s), "
        f"{given.cohort / median:.1f} clients/s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark.plain_loop",
        description="The plain torch loop, alone: seconds per round and clients per second.",
    )
    parser.add_argument("--network", choices=sorted(work.NETWORKS), default="small")
    parser.add_argument("--clients", type=int, default=100, help="all clients (default 100)")
    parser.add_argument("--cohort", type=int, default=10, help="clients per round (default 10)")
    parser.add_argument("--rounds", type=int, default=25, help="rounds after the first (default 25)")
    parser.add_argument("--cpu", type=int, help="stay on this core")
    parser.add_argument("--serve", action="store_true", help="play as many rounds as each line on stdin asks for")
    given = parser.parse_args(arguments)
    if min(given.clients, given.cohort, given.rounds) < 1 or given.cohort > given.clients:
        parser.error(f"--cohort is {given.cohort}, --clients {given.clients}, --rounds {given.rounds}: "
                     "all must be >= 1, and the cohort no larger than all clients")  # fmt: skip
    torch.set_num_threads(1)
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    source = rounds(given.network, given.clients, given.cohort)
    if given.serve:
        serve(source)
    else:
        first = next(source)
        print(summary("plain loop", given, first, [next(source) for _ in range(given.rounds)]))


if __name__ == "__main__":
    main()
