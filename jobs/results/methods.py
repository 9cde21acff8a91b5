"""Runs what docs/methods.md compares, on this machine, and writes its tables and pictures.

    python jobs/results/methods.py RUNS [NAME …] [--write docs/methods.md]

Every arm of a comparison is played with five seeds, in this process. Runs that are there are read, unfinished ones go
on; arms that several comparisons share are played once. With --write the parts between `<!-- NAME: made by
jobs/results/methods.py -->` and `<!-- /NAME -->` are replaced and the pictures go to `results/methods` beside the file.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jobs.results.tables import filled, table
from raygrad import config, pictures
from raygrad import run as engine
from raygrad.errors import BadInput
from raygrad.experiment import Experiment, Where
from raygrad.recipes import RECIPES
from raygrad.report import RunView, view
from raygrad.runs import is_run, load
from raygrad.sweep_report import paired

SEEDS = range(5)


@dataclass(frozen=True)
class Arm:
    """A recipe with changed settings; `rounds` that make it spend what the others spend."""

    recipe: str
    rounds: int
    settings: tuple[str, ...] = ()

    def experiment(self, seed: int) -> Experiment:
        """The experiment of a seed."""
        pairs = [(path, value) for path, _, value in (s.partition("=") for s in self.settings)]
        e = config.assign_all(RECIPES[self.recipe](), pairs)
        return replace(e, rounds=self.rounds, seed=seed)

    @property
    def command(self) -> str:
        """What plays it with seed 0."""
        words = [w for s in self.settings for w in ("--set", s)]
        return " ".join(["raygrad", "run", self.recipe, *words, "--rounds", str(self.rounds)])


@dataclass(frozen=True)
class Comparison:
    """Arms by label. The first one is what the others are compared with, seed by seed; `x` is what they are drawn
    over.
    """

    title: str
    arms: Mapping[str, Arm]
    x: str = "communications"


FEDAVG = Arm("digits", 60, ("algorithm=fedavg",))
FEDGA = Arm("digits", 30)

COMPARISONS = {
    "fedadam": Comparison(
        "Server optimisers on digits, one class per client",
        {
            "FedAvg": FEDAVG,
            "FedAvgM": Arm("digits", 60, ("algorithm=fedavgm",)),
            "FedAdam": Arm("fedadam", 60),
            "FedYogi": Arm("fedadam", 60, ("algorithm=fedyogi",)),
            "FedAdagrad": Arm("fedadam", 60, ("algorithm=fedadagrad", "algorithm.eta=0.1")),
            "FedAdam around FedGA": Arm("fedadam", 30, ("algorithm.inner=fedga", "algorithm.beta=0.1")),
        },
    ),
    "displaced": Comparison(
        "The displacement around FedProx and FedDyn on digits, one class per client",
        {
            "FedAvg": FEDAVG,
            "FedGA": FEDGA,
            "FedProx": Arm("digits", 60, ("algorithm=fedprox",)),
            "displaced FedProx": Arm("displaced", 30, ("algorithm.inner=fedprox",)),
            "FedDyn": Arm("feddyn", 60),
            "displaced FedDyn": Arm("displaced", 30),
        },
    ),
    "fedga-momentum": Comparison(
        "FedGA with momentum on digits, one class per client",
        {
            "FedGA": FEDGA,
            "server momentum": Arm("fedga-momentum", 30),
            "local momentum": Arm("digits", 30, ("local.momentum=0.9",)),
        },
    ),
    "fedga-stale": Comparison(
        "FedGA in one communication, at equal bytes",
        {"FedGA": FEDGA, "stale FedGA": Arm("fedga-stale", 60), "FedAvg": FEDAVG},
        "bytes",
    ),
    "feddyn": Comparison(
        "FedDyn on digits, one class per client",
        {"FedAvg": FEDAVG, "FedDyn": Arm("feddyn", 60), "SCAFFOLD": Arm("digits", 60, ("algorithm=scaffold",))},
    ),
    "fedaware": Comparison(
        "FedAWARE on digits, Dirichlet(0.1), six of thirty clients",
        {
            "FedAvg": Arm("fedaware", 60, ("algorithm=fedavg", "algorithm.server_lr=1")),
            "FedAWARE": Arm("fedaware", 60),
            "FedAWARE around FedAvg": Arm("fedaware", 60, ("algorithm=fedaware-plugin", "algorithm.inner.server_lr=1")),
        },
    ),
}


def played(root: Path, arm: Arm, seed: int) -> RunView:
    """The arm's run with a seed, played as far as it has to be."""
    e = arm.experiment(seed)
    name, id = f"{arm.recipe}-{e.algorithm.__class__.__name__.lower()}", f"{e.hash[:12]}-{e.rounds}-{seed}"
    folder = root / name / id
    if not is_run(folder):
        engine.create(e, Where(on="local", shard_root=str(root / ".shards")), run_root=root, name=name, id=id)
    if not (folder / "final.json").is_file():
        print(f"{name}/{id}", flush=True)
        for _ in engine.play(load(str(folder), root)):
            pass
    return view(folder)


def spent(v: RunView, x: str) -> np.ndarray:
    """What a run had spent after each round."""
    return v.communications if x == "communications" else (v.bytes_down + v.bytes_up) / 1e6


def tested(v: RunView) -> float:
    """The accuracy on the test set after the last round."""
    return v.newest["test", "accuracy"][1]


def figure(c: Comparison, views: Mapping[str, Sequence[RunView]], out: Path) -> None:
    """Draw each arm's validation accuracy and loss: the mean over seeds, and the band from the worst to the best."""
    panels = []
    for title, values in (("validation accuracy", "validation_accuracy"), ("validation loss", "validation_loss")):
        curves = []
        for i, (label, of) in enumerate(views.items()):
            y = np.stack([getattr(v, values) for v in of])
            at = np.isfinite(y).all(0)
            x = spent(of[0], c.x)[at]
            curves.append(pictures.Curve(label, x, y[:, at].mean(0), y[:, at].min(0), y[:, at].max(0), series=i))
        label = "communications" if c.x == "communications" else "megabytes sent"
        panels.append(pictures.Panel(title, label, curves, log="loss" in title))
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(pictures.lines([panels]), out)


def part(name: str, c: Comparison, views: Mapping[str, Sequence[RunView]], figures: Path | None) -> str:
    """A comparison's table, commands and picture, in Markdown."""
    first = next(iter(c.arms))
    rows = []
    for label, of in views.items():
        ours, theirs = ({i: {"test": tested(v)} for i, v in enumerate(views[n])} for n in (label, first))
        found = None if label == first else paired(ours, theirs)
        against = "" if found is None else f"{100 * found[0]:+.2f} ({100 * found[1]:+.2f} … {100 * found[2]:+.2f})"
        accuracies = 100 * np.array([tested(v) for v in of])
        rows.append([
            label, f"{int(of[0].communications[-1])}", f"{spent(of[0], 'bytes')[-1]:.1f}",
            f"{accuracies.mean():.2f} ± {accuracies.std(ddof=1):.2f}", against, f"`{c.arms[label].command}`",
        ])  # fmt: skip
    head = [
        "",
        "communications",
        "MB sent",
        "test accuracy at the end, %",
        f"against {first}, points (95 %)",
        "made by",
    ]
    text = table(head, rows)
    if figures is None:
        return text
    figure(c, views, figures / f"{name}.svg")
    return f"![{c.title}: mean over five seeds, from worst to best](results/methods/{name}.svg)\n\n{text}"


def main() -> int:
    """Read the command line, play and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMPARISONS)}; all if left out")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document to fill; pictures go beside it")
    given = parser.parse_args()
    try:
        if unknown := [n for n in given.names if n not in COMPARISONS]:
            raise BadInput(f"unknown comparison {', '.join(unknown)}; there are {', '.join(COMPARISONS)}")
        figures = None if given.write is None else given.write.parent / "results" / "methods"
        parts = {}
        for name in given.names or COMPARISONS:
            c = COMPARISONS[name]
            views = {label: [played(given.runs, arm, seed) for seed in SEEDS] for label, arm in c.arms.items()}
            parts[name] = part(name, c, views, figures)
        if given.write is None:
            print("\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items()))
        else:
            given.write.write_text(filled(given.write.read_text(), parts, given.write, "jobs/results/methods.py"))
    except BadInput as e:
        print(f"methods.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
