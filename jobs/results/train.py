"""Makes the runs behind docs/results.md, by turns: `python jobs/results/train.py --data-root DIR --run-root runs`.

For each data set a short search chooses FedGA's beta on validation accuracy; then the methods go on in turns from mark
to mark of communications, so that a stop at any moment leaves curves of about equal length. What is done already is not
done again: the same command goes on after a stop. Every command is printed before it starts.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.results.study import (
    METHODS,
    STUDIES,
    Study,
    best_beta,
    newest,
    resume_command,
    run_command,
    search_command,
    searched,
    shown,
)
from raygrad.errors import BadInput
from raygrad.reports.report import view

Raygrad = Callable[[list[str]], int]
"""Runs `raygrad` with these arguments and returns its exit code."""


class Failed(Exception):
    """A command ended with the exit code `code`."""

    def __init__(self, command: Sequence[str], code: int) -> None:
        super().__init__(f"exit {code}: {shown(command)}; the same train.py command goes on from here")
        self.code = code


def train(study: Study, run_root: Path, places: Sequence[str], most: int, raygrad: Raygrad) -> None:
    """Search, then train the four methods in turns up to `most` communications.

    `places` are arguments that every new run gets (`--data-root`, `--on`). Raises Failed when a command fails.
    """

    def call(command: list[str]) -> None:
        print(f"$ {shown(command)}", flush=True)
        if code := raygrad(command):
            raise Failed(command, code)

    for beta in study.betas:
        folder = newest(run_root, study.search_run(beta))
        if folder is None:
            call([*search_command(study, beta), *places])
        elif beta not in searched(run_root, study):
            call(["resume", str(folder)])
    search = searched(run_root, study)
    beta = best_beta(study, search)
    print(f"{study.name}: beta {beta} of {', '.join(map(str, study.betas))}", flush=True)
    for mark in (c for c in study.communications if c <= most):
        for method in METHODS:
            folder = newest(run_root, study.run(method))
            if folder is None:
                call([*run_command(study, method, beta, mark), *places])
            elif finished_communications(method, folder) < mark:
                call(resume_command(method, folder, mark))


def finished_communications(method: str, folder: Path) -> int:
    """The communications after which the run was last finished, with its test evaluation."""
    end = view(folder).final.get("round")
    return end * METHODS[method].phases if isinstance(end, int) else 0


def _raygrad(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "raygrad", *arguments], check=False).returncode


def main() -> int:
    """Read the command line and train; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"{' or '.join(STUDIES)}; both by default")
    parser.add_argument("--data-root", help="the folder that holds the data sets; as for `raygrad run`")
    parser.add_argument("--run-root", type=Path, default=Path("runs"), help="the folder that holds the runs")
    parser.add_argument("--communications", type=int, default=400, help="stop at the last mark up to here")
    parser.add_argument("--on", choices=("local", "ray"), default="local", help="the same bits either way")
    given = parser.parse_args()
    if unknown := [s for s in given.studies if s not in STUDIES]:
        parser.error(f"unknown study {unknown[0]}; there is {' and '.join(STUDIES)}")
    places = ["--on", given.on, "--run-root", str(given.run_root), "--no-report"]
    places += ["--data-root", given.data_root] if given.data_root else []
    try:
        for name in given.studies or STUDIES:
            train(STUDIES[name], given.run_root, places, given.communications, _raygrad)
    except KeyboardInterrupt:
        return 130
    except Failed as e:
        print(f"train.py: {e}", file=sys.stderr)
        return e.code
    except BadInput as e:
        print(f"train.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
