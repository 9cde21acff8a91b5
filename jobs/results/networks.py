"""Runs what docs/methods.md says of networks without a server, and writes its tables and picture.

    python jobs/results/networks.py RUNS [alignment] [sharpness] [--write docs/methods.md]

Arms, seeds, differences and marks in the document are those of jobs/results/methods.py.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from jobs.results.methods import SEEDS, Arm, played, tested
from jobs.results.tables import give, table
from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.files import tables
from raygrad.files.runs import load
from raygrad.plan import make_plan
from raygrad.reports import pictures
from raygrad.reports.report import RunView
from raygrad.reports.sweep_report import paired
from raygrad.rng import Purpose, rng
from raygrad.runner import GangRunner

Views = Mapping[str, Sequence[RunView]]  # by arm and seed

ROUNDS, LATE, LEVEL, BUDGET_MB = 120, 60, 0.6, 96
PLAIN = ("algorithm=dsgd", "algorithm.form=adapt-then-combine")
ALIGNMENT = {
    "D-SGD": Arm("dga", ROUNDS, PLAIN),
    "aligned, gossip": Arm("dga", ROUNDS),
    "aligned, tracking": Arm("dga", ROUNDS, ("algorithm.estimate=tracking", "algorithm.beta=0.3")),
}
"""Ten workers of one class each on a ring; the late rounds are those after LATE, LEVEL is a validation loss,
BUDGET_MB what D-SGD sends in ROUNDS."""

SYNCHRONOUS = ("algorithm.topology=full", "algorithm.form=adapt-then-combine")
WORKERS, STEPS = 16, 100
IID = (
    "partition=iid", f"partition.clients={WORKERS}", f"sampler.cohort={WORKERS}", "algorithm.lr=0.2", "probe.every=0",
    "evaluation.every=50",
)  # fmt: skip
SHARPNESS = {
    (label, batch): Arm("dsgd", STEPS, (*IID, f"local.batch_size={batch}", *settings))
    for batch in (4, 32)
    for label, settings in (
        ("synchronous", SYNCHRONOUS),
        ("ring", ()),
    )
}
"""Sixteen workers with equal random shares; label and batch size per worker."""
SIGMA, DRAWS, POWER = 0.05, 20, 20


def against(ours: Sequence[float], theirs: Sequence[float], form: str) -> str:
    """The mean difference of two arms with its 95 % interval, paired by seed."""
    found = paired(*({i: {"test": v} for i, v in enumerate(values)} for values in (ours, theirs)))
    assert found is not None
    return "{} ({} … {})".format(*(format(v, form) for v in found[:3]))


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}"


def probes(v: RunView, column: str) -> dict[int, float]:
    """What the probes of a run measured, by round."""
    found = tables.read(v.path, "probes", ["round", column])
    return dict(zip(found["round"].to_pylist(), found[column].to_pylist(), strict=True))


def validation(v: RunView) -> dict[int, float]:
    """The validation loss by round."""
    at = np.flatnonzero(np.isfinite(v.validation_loss))
    return {int(v.round[i]): float(v.validation_loss[i]) for i in at}


def late(values: Mapping[int, float], first: int = LATE, last: int = ROUNDS) -> float:
    """The mean over the rounds after `first`, the late ones unless others are named."""
    return float(np.mean([x for t, x in values.items() if first < t <= last]))


def budgeted(v: RunView, values: Mapping[int, float]) -> float:
    """The mean over the second half of the rounds that a run can pay with BUDGET_MB."""
    last = int(v.round[(v.bytes_down + v.bytes_up) / 1e6 <= BUDGET_MB][-1])
    return late(values, last // 2, last)


def at_level(v: RunView) -> float:
    """r(x) over the first three probes at which the validation loss is below LEVEL on average."""
    r, loss = probes(v, "r"), validation(v)
    rounds = sorted(r)
    for i in range(len(rounds) - 2):
        if np.mean([loss[t] for t in rounds[i : i + 3]]) < LEVEL:
            return float(np.mean([r[t] for t in rounds[i : i + 3]]))
    raise BadInput(f"{v.path} never comes below a validation loss of {LEVEL}")


MEASURED: dict[str, tuple[str, Callable[[RunView], float]]] = {
    f"r(x), rounds 10 to {LATE}": (".1f", lambda v: late(probes(v, "r"), 0, LATE)),
    f"r(x), rounds {LATE + 10} to {ROUNDS}": (".1f", lambda v: late(probes(v, "r"))),
    "change of r(x) from the one to the other": (".1f", lambda v: late(probes(v, "r")) - late(probes(v, "r"), 0, LATE)),
    f"r(x) where the validation loss comes below {LEVEL}": (".1f", at_level),
    f"validation loss, rounds {LATE + 5} to {ROUNDS}": (".3f", lambda v: late(validation(v))),
    f"r(x), second half of {BUDGET_MB} MB": (".1f", lambda v: budgeted(v, probes(v, "r"))),
    f"validation loss, second half of {BUDGET_MB} MB": (".3f", lambda v: budgeted(v, validation(v))),
    f"test accuracy after round {ROUNDS}, %": (".2f", lambda v: 100 * tested(v)),
}
"""What the table of alignment shows of a run, and how it is written."""


def alignment(root: Path, figures: Path | None) -> str:
    """The table and picture of alignment on a ring."""
    views = {label: [played(root, arm, seed) for seed in SEEDS] for label, arm in ALIGNMENT.items()}
    first, *others = views
    rows = []
    for name, (form, f) in MEASURED.items():
        found = {label: [f(v) for v in of] for label, of in views.items()}
        row = [name, spread(found[first], form)]
        for label in others:
            row += [spread(found[label], form), against(found[label], found[first], f"+{form}")]
        rows.append(row)
    sent = {label: f"{(of[0].bytes_down + of[0].bytes_up)[-1] / 1e6:.1f}" for label, of in views.items()}
    asked = {label: f"{int(of[0].communications[-1])}" for label, of in views.items()}
    for name, told in (("communications", asked), ("MB sent", sent)):
        rows.append([name, told[first], *(cell for label in others for cell in (told[label], ""))])
    head = ["", first, *(cell for label in others for cell in (label, f"against {first} (95 %)"))]
    made = "\n".join(f"- {label}: `{arm.command}`" for label, arm in ALIGNMENT.items())
    text = f"{table(head, rows)}\n\n{made}"
    if figures is None:
        return text
    pictures.save(pictures.lines([[panel(t, views, f) for t, f in SHOWN.items()]]), figures / "dga.svg")
    title = "Decentralised alignment on a ring of ten workers of one class each"
    return f"![{title}: mean over five seeds, from worst to best](results/methods/dga.svg)\n\n{text}"


SHOWN: dict[str, Callable[[RunView], Mapping[int, float]]] = {
    "r(x)": lambda v: probes(v, "r"),
    "validation loss": validation,
}


def panel(title: str, views: Views, f: Callable[[RunView], Mapping[int, float]]) -> pictures.Panel:
    """Each arm's mean over seeds by round, and the band from the worst to the best."""
    curves = []
    for i, (label, of) in enumerate(views.items()):
        found = [f(v) for v in of]
        x = np.array(sorted(found[0]))
        y = np.array([[values[t] for t in x.tolist()] for values in found])
        curves.append(pictures.Curve(label, x, y.mean(0), y.min(0), y.max(0), series=i))
    return pictures.Panel(title, "rounds", curves, log=True)


def sharpness(v: RunView) -> tuple[float, float, float]:
    """Of the model at the end and all training examples: the mean loss, its mean increase under Gaussian noise of
    standard deviation SIGMA on every parameter, and the largest eigenvalue of its Hessian, by power iteration.
    """
    run = load(str(v.path))
    plan = make_plan(run.experiment, Where(on="local"), v.path.parents[1] / ".shards")
    runner = GangRunner(plan.spec)
    model, x = runner.model, run.checkpoint.tensors()["x"]
    parts = [plan.shards.read("train", i) for i in range(len(plan.population))]
    xs = plan.spec.transform(np.concatenate([a for a, _ in parts]), x.dtype, None)
    ys = torch.from_numpy(np.concatenate([b for _, b in parts]))

    def loss(at: torch.Tensor) -> float:
        with torch.no_grad():
            return float(runner.loss(model.call(at, xs), ys).double().mean())

    draw = rng(run.experiment.seed, Purpose.SYNTHETIC, 2)
    noise = torch.from_numpy(draw.standard_normal((DRAWS, len(x)))).to(x.dtype)
    increase = float(np.mean([loss(x + SIGMA * e) for e in noise])) - loss(x)
    u, top = noise[0] / noise[0].norm(), 0.0
    for _ in range(POWER):
        turned = model.hvp(x, u, xs, ys, runner.loss) / len(ys)
        top, u = float(u @ turned), turned / turned.norm()
    return loss(x), increase, top


def sharp_table(root: Path) -> str:
    """The table of the sharpness that D-SGD ends at."""
    views = {key: [played(root, arm, seed) for seed in SEEDS] for key, arm in SHARPNESS.items()}
    found = {key: np.array([sharpness(v) for v in of]) for key, of in views.items()}
    head = [
        "",
        "batch in all",
        "training loss",
        "loss under noise, more by",
        "against synchronous (95 %)",
        "largest eigenvalue",
    ]
    head += ["against synchronous (95 %)", "test accuracy, %", "against synchronous, points (95 %)", "made by"]
    rows = []
    for (label, batch), values in found.items():
        base, of = found["synchronous", batch], views[label, batch]
        accuracies, theirs = ([100 * tested(v) for v in views[n, batch]] for n in (label, "synchronous"))
        row = [label, str(batch * WORKERS), spread(values[:, 0], ".4f")]
        for ours, plain, form in (
            (values[:, 1], base[:, 1], ".4f"), (values[:, 2], base[:, 2], ".2f"), (accuracies, theirs, ".2f"),
        ):  # fmt: skip
            row += [spread(ours, form), "" if label == "synchronous" else against(ours, plain, f"+{form}")]
        rows.append([*row, f"`{SHARPNESS[label, batch].command}`"])
        assert len(of) == len(SEEDS)
    return table(head, rows)


def main() -> int:
    """Read the command line, play and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="alignment or sharpness; both if left out")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document to fill; pictures go beside it")
    given = parser.parse_args()
    try:
        figures = None if given.write is None else given.write.parent / "results" / "methods"
        makers = {"alignment": lambda: alignment(given.runs, figures), "sharpness": lambda: sharp_table(given.runs)}
        if unknown := [n for n in given.names if n not in makers]:
            raise BadInput(f"unknown part {', '.join(unknown)}; there are {', '.join(makers)}")
        parts = {name: makers[name]() for name in given.names or makers}
        give(parts, given.write, "jobs/results/networks.py")
    except BadInput as e:
        print(f"networks.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
