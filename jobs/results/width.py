"""Counts a wide and a deep network's updates to a loss, batch by batch, and writes what docs/methods.md says of width.

    python jobs/results/width.py RUNS [--write docs/methods.md]

Networks of nearly as many parameters, with PyTorch's initial weights and with He's, are trained by sequential SGD on
one client that holds the digits, in this process, with five seeds. A run ends where its validation loss first falls
below the target. Each batch has the best of the step sizes 2^k: they are doubled and halved until both neighbours of
the best are slower. Runs that are there are read, unfinished ones go on where they have to.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf, log2
from pathlib import Path

import numpy as np
from torch import nn

from jobs.results.tables import give, table
from raygrad import config
from raygrad import run as engine
from raygrad.errors import BadInput, Diverged
from raygrad.experiment import Experiment, Where
from raygrad.files import tables
from raygrad.files.runs import is_run, load
from raygrad.models import MLP, Custom
from raygrad.recipes import RECIPES
from raygrad.reports import pictures
from raygrad.reports.sweep_report import paired

SEEDS = range(5)
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)
TARGET = 0.4
MOST = 2400
"""After so many updates a run counts as one that does not get there."""
STOPPED = 0.9
"""The speed-up has stopped where it has come to so much of its largest."""
MEASURED = 32
"""The batch on whose way to the target B is measured."""
FIRST = -3
"""The search for the smallest batch's step size begins at 2^-3."""


@dataclass(frozen=True)
class Network:
    """Hidden layers, whether their weights begin as He's, and how many updates lie between two evaluations."""

    label: str
    hidden: tuple[int, ...]
    he: bool
    steps: int

    @property
    def parameters(self) -> int:
        """How many it has on digits."""
        model = self.experiment(BATCHES[0], 0.1, 0).model
        return sum(p.numel() for p in model.build((1, 8, 8), 10).parameters())

    def experiment(self, batch: int, lr: float, seed: int, probe: int = 0) -> Experiment:
        """Recipe `width` with this network; evaluated, and probed if at all, every so many rounds."""
        e = config.assign_all(
            RECIPES["width"](),
            [("local.steps", f"{self.steps}"), ("local.batch_size", f"{batch}"), ("algorithm.lr", f"{lr}")],
        )
        own = Custom("jobs.results.width:he", {"hidden": list(self.hidden)}) if self.he else MLP(self.hidden)
        return replace(
            e, model=own, seed=seed, rounds=MOST // self.steps, probe=replace(e.probe, every=probe),
            evaluation=replace(e.evaluation, every=1, validation=0.2), checkpoints=replace(e.checkpoints, every=10**6),
        )  # fmt: skip


def he(shape: tuple[int, ...], classes: int | None, hidden: list[int]) -> nn.Module:
    """An MLP with the initial weights of He et al. (arXiv 1502.01852): normal, of variance 2 / inputs; biases are 0."""
    module = MLP(tuple(hidden)).build(shape, classes)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return module


WIDE, DEEP = (64,), (26, 26, 26, 26, 26)

PAIRS = {
    "PyTorch's initial weights": (Network("wide", WIDE, False, 2), Network("deep", DEEP, False, 8)),
    "He's initial weights": (Network("wide", WIDE, True, 2), Network("deep", DEEP, True, 8)),
}


def crossing(loss: Sequence[float] | np.ndarray, target: float) -> float:
    """After how many evaluations `loss` is first below `target`, on a line through its logarithm; inf if never."""
    below = np.flatnonzero(np.asarray(loss) < target)
    if not len(below):
        return inf
    i = int(below[0])
    if i == 0:
        return 1.0
    above, under = np.log(loss[i - 1]), np.log(loss[i])
    return i + float((above - np.log(target)) / (above - under))


def reaches(batches: Sequence[int], updates: np.ndarray, share: float) -> float:
    """The batch at which the speed-up, least / `updates` [b], has first come to `share` of its largest.

    Between two batches it lies on a line through the logarithms of both. nan if no batch gets to the target.
    """
    if not np.isfinite(updates).any():
        return np.nan
    limit = updates.min() / share
    i = int(np.flatnonzero(updates <= limit)[0])
    if i == 0 or np.isinf(updates[i - 1]):
        return float(batches[i])
    above, under = np.log(updates[i - 1]), np.log(updates[i])
    along = (above - np.log(limit)) / (above - under)
    return float(2 ** (log2(batches[i - 1]) + along * log2(batches[i] / batches[i - 1])))


def searched(attempt: Callable[[int, float], np.ndarray], first: int) -> tuple[int, np.ndarray]:
    """The k whose `attempt(k, limit)` has the least mean, and what it gave; neighbours are tried from `first` on.

    An attempt may give up, and say inf, once its mean is above `limit`.
    """
    best, found = first, attempt(first, inf)
    for way in (1, -1):
        while (more := attempt(best + way, float(found.mean()))).mean() < found.mean():
            best, found = best + way, more
        if best != first:
            break
    return best, found


def played(root: Path, e: Experiment, updates: float) -> Path:
    """The experiment's run, played until it is below the target or has made so many updates."""
    folder = root / "width" / e.hash[:16]
    if not is_run(folder):
        engine.create(
            e, Where(on="local", shard_root=str(root / ".shards")), run_root=root, name="width", id=folder.name
        )
    made = losses(folder)
    assert e.local.steps is not None
    last = min(e.rounds, updates / e.local.steps)
    if len(made) < last and not (made < TARGET).any():
        with closing(engine.play(load(str(folder), root))) as rounds:
            for r in rounds:
                if r.index >= last or (r.validation is not None and r.validation["loss"] < TARGET):
                    break
    return folder


def losses(folder: Path) -> np.ndarray:
    """A run's validation losses."""
    return tables.read(folder, "rounds", ["validation_loss"])["validation_loss"].to_numpy()


def updates_with(root: Path, network: Network, batch: int, lr: float, limit: float = inf) -> np.ndarray:
    """Every seed's updates to the target; inf for all if one does not get there or their mean is above `limit`."""
    made: list[float] = []
    for seed in SEEDS:
        left = len(SEEDS) * limit - sum(made)
        try:
            folder = played(root, network.experiment(batch, lr, seed), min(MOST, left))
        except Diverged:
            return np.full(len(SEEDS), inf)
        made.append(network.steps * crossing(losses(folder), TARGET))
        if made[-1] > min(MOST, left):
            return np.full(len(SEEDS), inf)
    return np.array(made)


@dataclass(frozen=True, eq=False)
class Measured:
    """Of one network: `updates` [b, seeds], the steps 2^k they took, B at the start and on the way [seeds]."""

    network: Network
    updates: np.ndarray
    k: tuple[int, ...]
    start: np.ndarray
    way: np.ndarray

    def batch(self, share: float) -> np.ndarray:
        """Every seed's batch at which the speed-up has come to `share` of its largest."""
        return np.array([reaches(BATCHES, u, share) for u in self.updates.T])


def measured(root: Path, network: Network) -> Measured:
    """Search each batch's step size, then measure B where nothing has moved yet and on the way to the target."""
    k, found, ks = FIRST, [], []
    for batch in BATCHES:
        k, made = searched(lambda n, limit, b=batch: updates_with(root, network, b, 2.0**n, limit), k)
        whose = "He" if network.he else "PyTorch"
        print(f"{network.label}, {whose}: batch {batch}, step 2^{k}, {made.mean():.0f} updates", flush=True)
        found.append(made)
        ks.append(k)
    lr = 2.0 ** ks[BATCHES.index(MEASURED)]
    start, way = [], []
    for seed in SEEDS:
        for values, rate, updates in ((start, 0.0, 1), (way, lr, MOST)):
            folder = played(root, network.experiment(MEASURED, rate, seed, probe=1), updates)
            values.append(float(np.median(tables.read(folder, "probes", ["batch_bound"])["batch_bound"].to_numpy())))
    return Measured(network, np.stack(found), tuple(ks), np.array(start), np.array(way))


def figure(found: Mapping[str, Sequence[Measured]], out: Path) -> None:
    """Draw updates and speed-up over the batch: the mean over seeds, and the band from the least to the largest."""
    grid = []
    for title, pair in found.items():
        row = []
        for what, line in ((f"updates to a loss of {TARGET:g}", None), ("speed-up, of its largest", STOPPED)):
            curves = []
            for i, m in enumerate(pair):
                y = m.updates if line is None else m.updates.min(0) / m.updates
                curves.append(
                    pictures.Curve(m.network.label, np.array(BATCHES), y.mean(1), y.min(1), y.max(1), series=i)
                )
            row.append(pictures.Panel(f"{title}: {what}", "batch size", curves, line, log=line is None, log_x=True))
        grid.append(row)
    pictures.save(pictures.lines(grid), out)


def doublings(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How many times `ours` [seeds] has to be halved to be `theirs`, with the 95 % interval of the paired seeds."""
    found = paired(*({i: {"test": log2(v)} for i, v in enumerate(values)} for values in (ours, theirs)))
    return "" if found is None else f"{found[0]:+.2f} ({found[1]:+.2f} … {found[2]:+.2f})"


def geometric(values: np.ndarray) -> float:
    """The geometric mean."""
    return float(2 ** np.log2(values).mean())


def part(found: Mapping[str, Sequence[Measured]], figures: Path | None) -> str:
    """The table and the picture, in Markdown."""
    ends = {f"updates with batches of {BATCHES[i]}, step": i for i in (0, -1)}
    compared: dict[str, Callable[[Measured], np.ndarray]] = {
        "B at the start": lambda m: m.start,
        "B on the way, median": lambda m: m.way,
        "batch with half the largest speed-up": lambda m: m.batch(0.5),
        f"batch with {100 * STOPPED:g} % of it": lambda m: m.batch(STOPPED),
    }
    rows: dict[str, list[str]] = {name: [name] for name in ("parameters", *ends, *compared)}
    head = [""]
    for title, pair in found.items():
        for m in pair:
            head.append(f"{m.network.label}, {title}")
            rows["parameters"].append(f"{m.network.parameters:,}")
            for name, i in ends.items():
                rows[name].append(f"{m.updates[i].mean():.0f}, 2^{m.k[i]}")
            for name, of in compared.items():
                rows[name].append(f"{geometric(of(m)):.0f}")
        head.append(f"{pair[1].network.label} against {pair[0].network.label}, doublings (95 %)")
        for name, row in rows.items():
            row.append(doublings(compared[name](pair[1]), compared[name](pair[0])) if name in compared else "")
    text = table(head, list(rows.values()))
    if figures is None:
        return text
    figure(found, figures / "width.svg")
    said = "Updates and speed-up over the batch, wide and deep: mean over five seeds, from least to largest"
    return f"![{said}](results/methods/width.svg)\n\n{text}"


def main() -> int:
    """Read the command line, play and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document to fill; the picture goes beside it")
    given = parser.parse_args()
    try:
        figures = None if given.write is None else given.write.parent / "results" / "methods"
        text = part({title: [measured(given.runs, n) for n in pair] for title, pair in PAIRS.items()}, figures)
        give({"width": text}, given.write, "jobs/results/width.py")
    except BadInput as e:
        print(f"width.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
