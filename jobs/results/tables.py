"""Writes the tables and pictures of docs/results.md from the run folders, finished or not.

    python jobs/results/tables.py RUNS --write docs/results.md

What stands between `<!-- NAME: made by jobs/results/tables.py -->` and `<!-- /NAME -->` is replaced; the pictures go to
the folder `results` beside the file. Without --write the tables are printed.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np

from jobs.results.study import (
    METHODS,
    STUDIES,
    Study,
    best_beta,
    resume_command,
    run_command,
    runs,
    search_command,
    searched,
    shown,
)
from raygrad.errors import BadInput
from raygrad.files import tables
from raygrad.reports import pictures, sweep_report
from raygrad.reports.report import RunView
from raygrad.sweeps import sweep
from raygrad.sweeps.space import SHOWN

PAPER_RANKING = "FedGA, SCAFFOLD, FedProx, FedAvg"
"""Table 1's order in percent on CIFAR-10 and on heterogeneous EMNIST, best first; the same on both."""

PROBED = {
    "r": "r(x)",
    "gradient_norm": "norm of the mean gradient",
    "diversity": "gradient diversity n·Δ",
    "cosine": "mean cosine to the mean gradient",
}
"""The columns of the table `probes` that are shown."""

SWEEP = "cifar10-sweep"
"""The sweep's name; docs/results.md has the command that runs it."""

Runs = Mapping[str, RunView]  # by method


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(accuracy: float) -> str:
    """An accuracy in percent, with two decimals."""
    return f"{100 * accuracy:.2f}"


def accuracies(v: RunView) -> dict[int, float]:
    """The measured test accuracies by communications."""
    at = np.flatnonzero(np.isfinite(v.test_accuracy))
    return {int(v.communications[i]): float(v.test_accuracy[i]) for i in at}


def marks(study: Study, views: Runs) -> list[int]:
    """The study's marks at which every method's test accuracy was measured; without any, the last common one."""
    if set(views) != set(METHODS):
        return []
    common = set.intersection(*(set(accuracies(v)) for v in views.values()))
    found = [c for c in (10, *study.communications) if c in common]
    return found or sorted(common)[-1:]


def search_table(study: Study, search: Mapping[float, RunView]) -> str:
    """Every beta's validation accuracy and loss at the end of the search; the chosen one is marked."""
    chosen = best_beta(study, search) if set(search) == set(study.betas) else None
    rows = []
    for beta, v in search.items():
        accuracy, loss = v.last("accuracy"), v.last("loss")
        assert accuracy is not None and loss is not None
        name = f"**{beta}**" if beta == chosen else str(beta)
        rows.append([name, percent(accuracy[1]), f"{loss[1]:.4f}"])
    head = ["beta", f"validation accuracy after {study.search_rounds} rounds, %", "validation loss"]
    missing = [b for b in study.betas if b not in search]
    text = table(head, rows)
    return text + (f"\n\nNot finished: {', '.join(map(str, missing))}." if missing else "")


def method_table(study: Study, views: Runs) -> str:
    """Every method's best and final accuracy, beside the paper's."""
    rows = []
    for method, v in views.items():
        curve = accuracies(v)
        if not curve:
            continue
        best = max(curve, key=lambda c: (curve[c], -c))
        mean, spread = study.paper[method]
        reached = f"{v.communications[-1]:,} ({len(v.round):,} rounds)"
        hours = float(np.nanmax(v.seconds)) / 3600
        rows.append([
            METHODS[method].label, reached, f"{percent(curve[max(curve)])} (at {max(curve):,})",
            f"{percent(curve[best])} (at {best:,})", f"{mean:g} ± {spread:g}", f"{hours:.2f}",
        ])  # fmt: skip
    return table(
        [
            "method", "communications", "last test accuracy, %", "best test accuracy, %",
            "paper, after 2,001 rounds, %", "wall time, h",
        ],
        rows,
    )  # fmt: skip


def equal_table(study: Study, views: Runs) -> str:
    """The methods' test accuracies at equal communications, and their differences to FedAvg at the last mark."""
    at = marks(study, views)
    if not at:
        return "Not all methods have been measured yet."
    curves = {m: accuracies(v) for m, v in views.items()}
    rows = [[METHODS[m].label, *(percent(c[mark]) for mark in at)] for m, c in curves.items()]
    text = table(["test accuracy, %, at so many communications", *(f"{mark:,}" for mark in at)], rows)
    end = at[-1]
    base = curves["fedavg"][end]
    examples = views["fedavg"].data.get("test_examples")
    differences = [
        f"{METHODS[m].label} {100 * (c[end] - base):+.2f}" for m, c in curves.items() if m != "fedavg"
    ]  # fmt: skip
    ranking = ", ".join(METHODS[m].label for m in sorted(curves, key=lambda m: -curves[m][end]))
    text += f"\n\nAt {end:,} communications, in points against FedAvg: {'; '.join(differences)}."
    if isinstance(examples, int):
        error = 100 * sqrt(2 * base * (1 - base) / examples)
        text += (
            f" One standard error of such a difference from the {examples:,} test images alone, "
            f"taken as independent, is {error:.2f} points; the spread over seeds is not known and comes on top."
        )
    return text + f" Best first: {ranking}. The paper's order after 2,001 rounds: {PAPER_RANKING}."


ROUNDS = (10, 20, 50, 100, 150, 200, 300, 400)


def rounds_table(views: Runs) -> str:
    """The methods' test accuracies at equal numbers of rounds, which are equal numbers of local steps."""
    curves = {m: {c // METHODS[m].phases: a for c, a in accuracies(v).items()} for m, v in views.items()}
    at = [r for r in ROUNDS if all(r in c for c in curves.values())]
    if set(views) != set(METHODS) or not at:
        return ""
    rows = [[METHODS[m].label, *(percent(c[r]) for r in at)] for m, c in curves.items()]
    return table(["the same after so many rounds", *(f"{r:,}" for r in at)], rows)


def probes(method: str, v: RunView) -> dict[str, np.ndarray]:
    """What was measured of all clients' gradients: columns of the table `probes`, and `communications` of each."""
    found = tables.read(v.path, "probes", ["round", "clients", *PROBED]).sort_by("round")
    columns = {c: found[c].to_numpy() for c in found.column_names}
    return {**columns, "communications": columns["round"] * METHODS[method].phases}


def probe_table(views: Runs) -> str:
    """The alignment of all clients' gradients at the last probe that all methods have."""
    probed = {m: probes(m, v) for m, v in views.items()}
    common = set.intersection(*(set(p["communications"].tolist()) for p in probed.values()))
    if set(views) != set(METHODS) or not common:
        return "Not all methods have been probed yet."
    end = max(common)
    rows = []
    for method, p in probed.items():
        (at,) = np.flatnonzero(p["communications"] == end)
        rows.append([METHODS[method].label, *(f"{p[c][at]:.4g}" for c in PROBED)])
    clients = int(probed["fedavg"]["clients"][0])
    return table([f"after {end:,} communications, over {clients} clients", *PROBED.values()], rows)


def figure(views: Runs, out: Path) -> None:
    """Draw accuracy, loss, r(x) and diversity against communications into `out`."""
    colour = {m: i for i, m in enumerate(METHODS)}

    def curves(values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[pictures.Curve]:
        return [pictures.Curve(METHODS[m].label, x, y, series=colour[m]) for m, (x, y) in values.items()]

    measured = {
        "test accuracy": {m: (v.communications, v.test_accuracy) for m, v in views.items()},
        "test loss": {m: (v.communications, v.test_loss) for m, v in views.items()},
    }
    probed = {m: probes(m, v) for m, v in views.items()}
    below = {PROBED[c]: {m: (p["communications"], p[c]) for m, p in probed.items()} for c in ("r", "diversity")}
    panels = [
        [pictures.Panel(title, "communications", curves(values), log=row is below) for title, values in row.items()]
        for row in (measured, below)
    ]
    pictures.save(pictures.lines(panels), out)


def commands(run_root: Path, study: Study) -> list[str]:
    """What was typed, `raygrad resume` in one step where the turns took several."""
    search = searched(run_root, study)
    lines = [shown(search_command(study, beta)) for beta in search]
    if set(search) == set(study.betas):
        beta = best_beta(study, search)
        first = study.communications[0]
        for method, v in runs(run_root, study).items():
            lines.append(shown(run_command(study, method, beta, first)))
            if v.planned * METHODS[method].phases > first:
                end = v.planned * METHODS[method].phases
                lines.append(shown(resume_command(method, Path(study.run(method)), end)))
    return lines


def blocks(run_root: Path, pictures_to: Path | None = None) -> dict[str, str]:
    """The parts of docs/results.md by name. Draws the pictures into the folder `pictures_to`, where one is given."""
    made = {}
    for name, study in STUDIES.items():
        views = runs(run_root, study)
        made[f"{name}-search"] = search_table(study, searched(run_root, study))
        made[f"{name}-commands"] = "\n".join(["```", *commands(run_root, study), "```"])
        if not views:
            made[name] = "No run has finished a round yet."
            continue
        parts = [method_table(study, views), equal_table(study, views), rounds_table(views), probe_table(views)]
        if pictures_to is not None:
            figure(views, pictures_to / f"{name}.svg")
            parts.insert(0, f"![{study.title}: curves at equal communications](results/{name}.svg)")
        made[name] = "\n\n".join(part for part in parts if part)
    made["sweep"] = sweep_block(run_root, pictures_to)
    return made


def sweep_block(run_root: Path, pages_to: Path | None) -> str:
    """The best settings of the newest sweep called SWEEP; its page goes into the folder `pages_to`."""
    loaded = sweep.newest(SWEEP, run_root)
    if loaded is None:
        return "The sweep has not been run yet."
    loaded = replace(loaded, recipe=tuple("DIR" if w.startswith("/") else w for w in loaded.recipe))
    found = sweep_report.trials(loaded)
    outcomes = [t.outcome for t in found]
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in sorted(set(outcomes)))
    space = "; ".join(f"{SHOWN.get(n, n)} {text}" for n, text in loaded.sweep.space.items())
    parts = [
        f"{len(found)} trials ({counts}) of at most {loaded.sweep.communications} communications; {space}.",
        table(*sweep_report.table(loaded)),
        "\n".join(["```", *(h.command for h in sweep_report.best(loaded)), "```"]),
    ]
    if pages_to is not None:
        sweep_report.write(loaded, pages_to / f"{SWEEP}.html")
        parts.append(
            f"[The sweep's page](results/{SWEEP}.html): maps of alpha and beta per K, sensitivity, curves, all trials."
        )
    return "\n\n".join(parts)


def filled(text: str, parts: Mapping[str, str], where: Path, by: str = "jobs/results/tables.py") -> str:
    """`text` with each part between the two marks of the program `by`. Raises BadInput when a part has no marks."""
    for name, part in parts.items():
        opening, closing = f"<!-- {name}: made by {by} -->", f"<!-- /{name} -->"
        pattern = re.compile(re.escape(opening) + r".*?" + re.escape(closing), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise BadInput(f"{where}: expected the marks {opening} and {closing} once, with the part between them")
        text = pattern.sub(lambda _, new=f"{opening}\n\n{part}\n\n{closing}": new, text)
    return text


def give(parts: Mapping[str, str], where: Path | None, by: str) -> None:
    """Write the parts between the marks of the program `by` in `where`, or print them. Raises BadInput."""
    if where is None:
        print("\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()))
    else:
        where.write_text(filled(where.read_text(), parts, where, by))


def main() -> int:
    """Read the command line and write or print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document to fill; pictures go beside it")
    given = parser.parse_args()
    try:
        if not given.runs.is_dir():
            raise BadInput(f"{given.runs} is not a folder; give the run root of jobs/results/train.py")
        pictures = None if given.write is None else given.write.parent / "results"
        give(blocks(given.runs, pictures), given.write, "jobs/results/tables.py")
    except BadInput as e:
        print(f"tables.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
