"""Draws where Local-GD goes on separable data, for docs/methods.md: no runs, a minute on one core.

    python jobs/results/margins.py [--write docs/methods.md]

The rounds of the shipped algorithm on made data of five seeds, 4 clients with 3 examples each in 20 features; the part
between `<!-- local-gd: made by jobs/results/margins.py -->` and `<!-- /local-gd -->` is replaced, and the picture goes
to `results/methods` beside the file.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from jobs.results.tables import give, table
from raygrad.algorithms.local_gd import LocalGD
from raygrad.errors import BadInput
from raygrad.reports import pictures
from raygrad.reports.sweep_report import paired
from raygrad.theory.local_gd import Shards, cosine, descending, shards, solving

SEEDS, ROUNDS, STEPS = range(5), 1000, 4
MARKS = 10, 100, 1000
AT = np.unique(np.geomspace(1, ROUNDS, 60).round().astype(int))

ARMS: dict[str, Callable[[Shards], Iterator[Tensor]]] = {
    "Local-GD, K = 4": lambda s: descending(LocalGD(20.0), s, STEPS),
    "the same, anchored": lambda s: descending(LocalGD(20.0, anchored=True), s, STEPS),
    "exact solutions, averaged": lambda s: solving(LocalGD(), s),
    "exact solutions, anchored": lambda s: solving(LocalGD(anchored=True), s),
}
"""The model after each round, from 0. Each but the first of a pair is compared with the first, seed by seed."""


def gaps(arm: Callable[[Shards], Iterator[Tensor]], iid: bool) -> np.ndarray:
    """1 - cosine to the pooled hard-margin solution, after each round of each seed: [seeds, rounds]."""
    problems = [shards(3, 20, iid, seed) for seed in SEEDS]
    return np.array([[1 - cosine(w, s.margin) for w in islice(arm(s), ROUNDS)] for s in problems])


def part(figures: Path | None) -> str:
    """The picture and the table, in Markdown."""
    panels, rows = [], []
    for title, iid in (("unlike clients", False), ("the same examples dealt at random", True)):
        found = {label: gaps(arm, iid) for label, arm in ARMS.items()}
        curves = []
        for i, (label, gap) in enumerate(found.items()):
            y = gap[:, AT - 1]
            curves.append(pictures.Curve(label, np.log10(AT), y.mean(0), y.min(0), y.max(0), series=i))
            against = ""
            if i % 2:
                ours, theirs = (
                    {j: {"test": float(v)} for j, v in enumerate(-np.log10(g[:, -1]))}
                    for g in (gap, found[list(found)[i - 1]])
                )
                difference = paired(ours, theirs)
                assert difference is not None
                mean, low, high = 10 ** np.array(difference[:3])
                against = f"{mean:.3g} times less ({low:.3g} … {high:.3g})"
            rows.append([title, label, *(f"{gap[:, k - 1].mean():.2g}" for k in MARKS), against])
        panels.append(pictures.Panel(f"1 − cosine, {title}", "log₁₀ of the round", curves, log=True))
    head = ["", "", *(f"1 − cosine after {k}" for k in MARKS), f"against the row above, after {ROUNDS} (95 %)"]
    if figures is None:
        return table(head, rows)
    figures.mkdir(parents=True, exist_ok=True)
    pictures.save(pictures.lines([panels]), figures / "local-gd.svg")
    said = "1 − cosine to the pooled maximum margin: mean over five draws, from worst to best"
    return f"![{said}](results/methods/local-gd.svg)\n\n{table(head, rows)}"


def main() -> int:
    """Read the command line, compute and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document to fill; the picture goes beside it")
    given = parser.parse_args()
    try:
        figures = None if given.write is None else given.write.parent / "results" / "methods"
        give({"local-gd": part(figures)}, given.write, "jobs/results/margins.py")
    except BadInput as e:
        print(f"margins.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
