"""Runs what docs/methods.md compares, on this machine, and writes its tables and pictures.

    python jobs/results/methods.py RUNS [NAME …] [--write docs/methods.md] [--data-root DIR]

Every arm of a comparison is played with five seeds, in this process. Runs that are there are read, unfinished ones go
on; arms that several comparisons share are played once. With --write the parts between `<!-- NAME: made by
jobs/results/methods.py -->` and `<!-- /NAME -->` are replaced and the pictures go to `results/methods` beside the file.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path

import numpy as np

from jobs.results.tables import give, table
from raygrad import config
from raygrad import run as engine
from raygrad.errors import BadInput
from raygrad.experiment import Experiment, Where
from raygrad.files.runs import is_run, load
from raygrad.recipes import RECIPES
from raygrad.reports import pictures
from raygrad.reports.report import PROBED, RunView, view
from raygrad.reports.sweep_report import paired

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
class Judged:
    """What an arm is judged by, in its table's head, and its value in a run; `before` is what it had been in the same
    run.
    """

    name: str
    value: Callable[[RunView], float]
    before: tuple[str, Callable[[RunView], float]] | None = None


def tested(v: RunView) -> float:
    """The accuracy on the test set after the last round."""
    return v.newest["test", "accuracy"][1]


def third(v: RunView, number: int) -> float:
    """The mean of the validation accuracies at the ends of the first (0), second or last third of a run's tasks."""
    found = v.validation_accuracy[np.isfinite(v.validation_accuracy)]
    return float(np.array_split(found, 3)[number].mean())


AT_THE_END = Judged("test accuracy at the end", tested)
LATE = Judged(
    "validation accuracy, last third of the tasks",
    lambda v: third(v, 2),
    ("its own first third", lambda v: third(v, 0)),
)


@dataclass(frozen=True)
class Comparison:
    """Arms by label. The first one is what the others are compared with, seed by seed; `x` is what they are drawn
    over. `also` are further columns of the table.
    """

    title: str
    arms: Mapping[str, Arm]
    x: str = "communications"
    judged: Judged = AT_THE_END
    panels: tuple[str, ...] = ("validation accuracy", "validation loss")
    also: Mapping[str, Callable[[RunView], float]] = field(default_factory=dict)


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
    "divebatch": Comparison(
        "Batches that grow, on digits with equal random shares",
        {
            "SGD, 1,400 batches of 8": Arm("divebatch", 1400, ("algorithm=fedavg",)),
            "SGD, 400 batches of 8": Arm("divebatch", 400, ("algorithm=fedavg",)),
            "DiveBatch": Arm("divebatch", 400),
            "AdaBatch": Arm("divebatch", 400, ("algorithm=adabatch",)),
        },
        also={"epochs": lambda v: v.newest.get(("algorithm", "epochs"), (0, 8 * len(v.round) / 1295))[1]},
    ),
    "dsgd": Comparison(
        "D-SGD on digits, ten workers of one class each",
        {
            "synchronous SGD": Arm("dsgd", 60, ("algorithm.topology=full", "algorithm.form=adapt-then-combine")),
            "exponential": Arm("dsgd", 60, ("algorithm.topology=exponential",)),
            "ring": Arm("dsgd", 60),
        },
    ),
    "spectral": Comparison(
        "42 tasks of permuted pixels on digits",
        {
            "no regulariser": Arm("spectral", 420, ("regularizer=none",)),
            "spectral": Arm("spectral", 420),
            "Wasserstein": Arm("wasserstein", 420),
            "L2": Arm("spectral", 420, ("regularizer=l2", "regularizer.weight=3e-3")),
            "L2-Init": Arm("spectral", 420, ("regularizer=l2-init", "regularizer.weight=3e-3")),
        },
        judged=LATE,
        panels=("validation accuracy", "pairwise_cosine"),
    ),
    "fedaware": Comparison(
        "FedAWARE on digits, Dirichlet(0.1), six of thirty clients that work unequally",
        {
            "FedAvg": Arm("fedaware", 60, ("algorithm=fedavg", "algorithm.server_lr=1")),
            "FedAWARE": Arm("fedaware", 60),
            "FedAWARE around FedAvg": Arm("fedaware", 60, ("algorithm=fedaware-plugin", "algorithm.inner.server_lr=1")),
        },
    ),
    "lfgd": Comparison(
        "Local descent on digits, 5 of 20 clients of unequal sizes",
        {
            "LFGD, scheme I": Arm("lfgd", 60),
            "LFGD, scheme II": Arm("lfgd", 60, ("sampler=uniform", "sampler.unbiased=true")),
            "LFSGD, scheme I": Arm("lfsgd", 60),
            "LFSGD, scheme II": Arm("lfsgd", 60, ("sampler=uniform", "sampler.unbiased=true")),
        },
        panels=("validation accuracy", "weighted_diversity"),
        also={"largest Λ": lambda v: float(v.probes.values["weighted_diversity"].max())},
    ),
    "dp": Comparison(
        "Differential privacy on digits, 40 of 200 clients",
        {
            "FedAvg": Arm("dp", 60, ("algorithm=fedavg",)),
            "clipped": Arm("dp", 60, ("algorithm.noise=0",)),
            "noise 1": Arm("dp", 60, ("algorithm.noise=1",)),
            "noise 2": Arm("dp", 60),
            "noise 4": Arm("dp", 60, ("algorithm.noise=4",)),
        },
        also={"ε at δ = 10⁻⁵": lambda v: v.newest.get(("algorithm", "epsilon"), (0, float("inf")))[1]},
    ),
    "quantised": Comparison(
        "FedGA in fewer bytes on digits, one class per client",
        {
            "FedGA": FEDGA,
            "8 bits": Arm("quantised", 30),
            "4 bits": Arm("quantised", 30, ("algorithm.levels=7",)),
            "a tenth, at random": Arm(
                "quantised", 30, ("algorithm=sparsified", "algorithm.inner=fedga", "algorithm.beta=0.1")
            ),
            "FedAvg": FEDAVG,
            "FedAvg, largest tenth": Arm(
                "digits", 60, ("algorithm=sparsified", "algorithm.inner=fedavg", "algorithm.largest=true")
            ),
        },
        "bytes",
    ),
    "shakespeare": Comparison(
        "A character LSTM on tiny Shakespeare, eight of 28 speakers",
        {
            "FedAvg": Arm("shakespeare", 60, ("algorithm=fedavg",)),
            "FedGA": Arm("shakespeare", 30),
            "stale FedGA": Arm("shakespeare", 60, ("algorithm=fedga-stale",)),
        },
        also={"test perplexity": lambda v: exp(v.newest["test", "loss"][1])},
    ),
}


def played(root: Path, arm: Arm, seed: int, data_root: str | None = None) -> RunView:
    """The arm's run with a seed, played as far as it has to be."""
    e = arm.experiment(seed)
    name, id = f"{arm.recipe}-{e.algorithm.__class__.__name__.lower()}", f"{e.hash[:12]}-{e.rounds}-{seed}"
    folder = root / name / id
    if not is_run(folder):
        engine.create(
            e, Where(on="local", data_root=data_root, shard_root=str(root / ".shards")), run_root=root, name=name, id=id
        )
    if not (folder / "final.json").is_file():
        print(f"{name}/{id}", flush=True)
        for _ in engine.play(load(str(folder), root)):
            pass
    return view(folder)


def spent(v: RunView, x: str) -> np.ndarray:
    """What a run had spent after each round."""
    return v.communications if x == "communications" else (v.bytes_down + v.bytes_up) / 1e6


def spread(values: np.ndarray) -> str:
    """The mean and the standard deviation; nothing where a value is not finite."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if np.isfinite(values).all() else ""


def measured(v: RunView, what: str) -> np.ndarray:
    """What a panel shows of a run, after each round: [R], NaN where it was not measured."""
    if what in ("validation accuracy", "validation loss"):
        return getattr(v, what.replace(" ", "_"))
    values = np.full(len(v.round), np.nan)
    values[np.searchsorted(v.round, v.probes.round)] = v.probes.values[what]
    return values


def figure(c: Comparison, views: Mapping[str, Sequence[RunView]], out: Path) -> None:
    """Draw what the panels show of each arm: the mean over seeds, and the band from the worst to the best."""
    panels = []
    for title in c.panels:
        curves = []
        for i, (label, of) in enumerate(views.items()):
            y = np.stack([measured(v, title) for v in of])
            at = np.isfinite(y).all(0)
            x = spent(of[0], c.x)[at]
            curves.append(pictures.Curve(label, x, y[:, at].mean(0), y[:, at].min(0), y[:, at].max(0), series=i))
        label = "communications" if c.x == "communications" else "megabytes sent"
        title = PROBED.get(title, title)
        panels.append(pictures.Panel(title, label, curves, log="accuracy" not in title))
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(pictures.lines([panels]), out)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The mean difference in points of what belongs together, seed by seed, and its 95% interval."""
    found = paired(*({i: {"test": value} for i, value in enumerate(values)} for values in (ours, theirs)))
    assert found is not None
    return f"{100 * found[0]:+.2f} ({100 * found[1]:+.2f} … {100 * found[2]:+.2f})"


def part(name: str, c: Comparison, views: Mapping[str, Sequence[RunView]], figures: Path | None) -> str:
    """A comparison's table, commands and picture, in Markdown."""
    first, j = next(iter(c.arms)), c.judged
    rows = []
    for label, of in views.items():
        accuracies = [j.value(v) for v in of]
        against = "" if label == first else difference(accuracies, [j.value(v) for v in views[first]])
        before = [difference(accuracies, [j.before[1](v) for v in of])] if j.before else []
        rows.append([
            label, f"{int(of[0].communications[-1])}", f"{spent(of[0], 'bytes')[-1]:.1f}",
            spread(100 * np.array(accuracies)), *before, against,
            *(spread(np.array([value(v) for v in of])) for value in c.also.values()),
            f"`{c.arms[label].command}`",
        ])  # fmt: skip
    than = [j.before[0]] if j.before else []
    against = [f"against {other}, points (95 %)" for other in (*than, first)]
    head = ["", "communications", "MB sent", f"{j.name}, %", *against, *c.also, "made by"]
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
    parser.add_argument("--data-root", metavar="DIR", help="the folder that holds the data sets read from files")
    given = parser.parse_args()
    try:
        if unknown := [n for n in given.names if n not in COMPARISONS]:
            raise BadInput(f"unknown comparison {', '.join(unknown)}; there are {', '.join(COMPARISONS)}")
        figures = None if given.write is None else given.write.parent / "results" / "methods"
        parts = {}
        for name in given.names or COMPARISONS:
            c = COMPARISONS[name]
            views = {
                label: [played(given.runs, arm, seed, given.data_root) for seed in SEEDS]
                for label, arm in c.arms.items()
            }
            parts[name] = part(name, c, views, figures)
        give(parts, given.write, "jobs/results/methods.py")
    except BadInput as e:
        print(f"methods.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
