"""`raygrad verify`: does what should hold, hold?"""

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from raygrad.commands import options, output
from raygrad.errors import CheckFailed


def algorithm_names(incomplete: str) -> list[str]:
    """Algorithms, and the theory, for tab completion."""
    from raygrad.algorithms import ALGORITHMS

    return [n for n in (*ALGORITHMS, "theory") if n.startswith(incomplete)]


def verify(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="ALGORITHM|theory",
            help="A registered algorithm, package.module:Class of your own, or the word theory.",
            autocompletion=algorithm_names,
        ),
    ],
    on: Annotated[
        Literal["ray", "local"],
        typer.Option("--on", help="local: leave out the checks that need Ray.", rich_help_panel=options.MACHINE),
    ] = "ray",
) -> None:  # fmt: skip
    """Run the property suite on an algorithm, or measure the theory.

    Loop equals vmap, relabelled clients change nothing, states are values, a
    resumed run has the bits of one that never stopped, and so does a run on 1, 2
    and 3 hosts. One line per check; exit code 1 if one does not hold. Modules in
    the current folder are found.

    theory: what the paper's theorems 1 to 5 and their consequences predict of the
    algorithms, measured in float64, and the same with the sign flipped, which has
    to fail. One row per statement; seconds, without Ray.

    \b
    Examples
      raygrad verify fedga
      raygrad verify my_algorithm:MyAlgorithm --on local
      raygrad verify theory
    """
    if reference == "theory":
        verify_theory()
    else:
        verify_algorithm(reference, on_ray=on == "ray")


def verify_algorithm(reference: str, on_ray: bool) -> None:
    """One line per property. Raises BadInput if there is no such algorithm, CheckFailed if a property does not hold."""
    from raygrad import verify as suite

    console = Console(highlight=False)
    failed = checks = 0
    for check in suite.suite(reference, on_ray=on_ray):
        checks += 1
        failed += not check.ok
        mark = Text("ok    ", style="green") if check.ok else Text("FAILED", style="bold red")
        console.print(Text.assemble(mark, "  ", f"{check.name}  ", (check.detail, "dim")), soft_wrap=True)
    if failed:
        raise CheckFailed(f"{failed} of {checks} checks failed for {reference}")
    console.print(f"all {checks} checks hold for {reference}", markup=False)


def verify_theory() -> None:
    """One row per statement of `raygrad.theory`. Raises CheckFailed if one fails."""
    from raygrad.theory import STATEMENTS

    verdicts = [(s, s.verdict()) for s in STATEMENTS]
    output.table(
        ("statement", "predicted", "measured", "has to fail", "verdict"),
        [(s.name, s.predicted, v.measured, v.broken, "ok" if v.ok else "FAILED") for s, v in verdicts],
    )
    failed = [s.name for s, v in verdicts if not v.ok]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(verdicts)} statements failed: {', '.join(failed)}")
    output.line(f"all {len(verdicts)} statements hold")
