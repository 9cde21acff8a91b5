"""What docs/results.md compares: two data sets, four methods, and the commands that make each run.

Runs are found by their names in the run root: `cifar-search-0.1` is a run of the search for beta, `cifar-fedavg` a run
of the comparison. Of several runs of a name the newest counts.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raygrad.errors import BadInput
from raygrad.reports.report import RunView, view


@dataclass(frozen=True)
class Study:
    """One data set's part of the comparison.

    `betas` are searched on validation accuracy, with `search_rounds` rounds of FedGA each; `communications` are the
    marks up to which the four methods are trained in turns. `paper` is table 1 of arXiv 2106.13897: the test accuracy
    in percent, mean and standard deviation.
    """

    name: str  # the first part of the runs' names
    title: str
    recipe: str
    lr: float
    betas: tuple[float, ...]
    communications: tuple[int, ...]
    paper: Mapping[str, tuple[float, float]]
    search_rounds: int = 15
    search_seed: int = 1000
    seed: int = 0

    def search_run(self, beta: float) -> str:
        """The name of the search's run with this beta."""
        return f"{self.name}-search-{beta}"

    def run(self, method: str) -> str:
        """The name of a method's run."""
        return f"{self.name}-{method}"


@dataclass(frozen=True)
class Method:
    """A method of the comparison: `settings` are its `--set` arguments, {beta} the chosen beta.

    `phases` are the communications that a round is charged. A two-phase method is measured and saved after half as many
    rounds, so that all curves have points at the same communications.
    """

    label: str
    settings: tuple[str, ...]
    phases: int


METHODS: dict[str, Method] = {
    "fedga": Method("FedGA", ("algorithm=fedga", "algorithm.beta={beta}"), 2),
    "fedavg": Method("FedAvg", ("algorithm=fedavg",), 1),
    "scaffold": Method("SCAFFOLD, fresh variates", ("algorithm=scaffold-fresh",), 2),
    "fedprox": Method("FedProx, mu = 0.1", ("algorithm=fedprox", "algorithm.mu=0.1"), 1),
}

STUDIES: dict[str, Study] = {
    "cifar": Study(
        "cifar", "CIFAR-10, IID, 10 of 10 clients", "cifar10-iid", 0.1, (0.1, 0.3, 0.9), (100, 200, 300, 400),
        {"fedga": (74.34, 0.48), "scaffold": (73.89, 0.65), "fedavg": (73.1, 0.17), "fedprox": (73.93, 0.38)},
    ),
    "emnist": Study(
        "emnist", "EMNIST47, one class per client, 10 of 47 clients", "emnist47-het", 0.05, (0.025, 0.1, 0.25),
        (40, 80, 120, 160, 200, 300, 400),
        {"fedga": (85.95, 0.56), "scaffold": (84.67, 0.78), "fedavg": (82.9, 0.58), "fedprox": (83.197, 0.19)},
    ),
}  # fmt: skip


def newest(run_root: Path, name: str) -> Path | None:
    """The newest run folder of this name; None if there is none."""
    found = sorted(f.parent for f in (run_root / name).glob("*/experiment.json"))
    return found[-1] if found else None


def runs(run_root: Path, study: Study) -> dict[str, RunView]:
    """The methods' runs that have a finished round, by method. Raises BadInput when one is damaged."""
    found = {m: newest(run_root, study.run(m)) for m in METHODS}
    views = {m: view(folder) for m, folder in found.items() if folder is not None}
    return {m: v for m, v in views.items() if len(v.round)}


def searched(run_root: Path, study: Study) -> dict[float, RunView]:
    """The finished runs of the search, by beta."""
    found = {b: newest(run_root, study.search_run(b)) for b in study.betas}
    views = {b: view(folder) for b, folder in found.items() if folder is not None}
    return {b: v for b, v in views.items() if v.last("accuracy") is not None and v.finished}


def best_beta(study: Study, search: Mapping[float, RunView]) -> float:
    """The beta with the largest validation accuracy at the end of the search. Raises BadInput if a run is missing."""
    missing = [b for b in study.betas if b not in search]
    if missing:
        raise BadInput(
            f"the search for beta on {study.name} lacks {len(missing)} of {len(study.betas)} runs: "
            f"{', '.join(study.search_run(b) for b in missing)}; jobs/results/train.py makes them"
        )
    accuracy = {b: last[1] for b, v in search.items() if (last := v.last("accuracy")) is not None}
    return max(study.betas, key=lambda b: accuracy[b])


def _set(*settings: str) -> list[str]:
    return [word for s in settings for word in ("--set", s)]


def search_command(study: Study, beta: float) -> list[str]:
    """The arguments of `raygrad` for one run of the search."""
    rounds = str(study.search_rounds)
    return [
        "run", study.recipe, "--rounds", rounds, "--seed", str(study.search_seed),
        *_set("algorithm=fedga", f"algorithm.lr={study.lr}", f"algorithm.beta={beta}", "evaluation.mode=validation",
              f"evaluation.every={rounds}", "probe.every=0"),
        "--name", study.search_run(beta),
    ]  # fmt: skip


def run_command(study: Study, method: str, beta: float, communications: int) -> list[str]:
    """The arguments of `raygrad` that start a method's run, to so many communications."""
    m = METHODS[method]
    every = {"evaluation.every": 10, "probe.every": 40, "checkpoints.every": 20}
    return [
        "run", study.recipe, "--rounds", str(communications // m.phases), "--seed", str(study.seed),
        *_set(*(s.format(beta=beta) for s in m.settings), f"algorithm.lr={study.lr}",
              *(f"{name}={n // m.phases}" for name, n in every.items())),
        "--name", study.run(method),
    ]  # fmt: skip


def resume_command(method: str, folder: Path, communications: int) -> list[str]:
    """The arguments of `raygrad` that take a run on to so many communications."""
    return ["resume", str(folder), "--rounds", str(communications // METHODS[method].phases)]


def shown(arguments: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["raygrad", *arguments])
