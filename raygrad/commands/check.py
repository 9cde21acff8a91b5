"""`raygrad verify`: does what should hold, hold?"""

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from raygrad.commands import options
from raygrad.errors import CheckFailed


def algorithm_names(incomplete: str) -> list[str]:
    """Algorithms for tab completion."""
    from raygrad.algorithms import ALGORITHMS

    return [n for n in ALGORITHMS if n.startswith(incomplete)]


def verify(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="ALGORITHM", help="A registered algorithm, or package.module:Class of your own.",
            autocompletion=algorithm_names,
        ),
    ],
    on: Annotated[
        Literal["ray", "local"],
        typer.Option("--on", help="local: leave out the checks that need Ray.", rich_help_panel=options.MACHINE),
    ] = "ray",
) -> None:  # fmt: skip
    """Run the property suite on an algorithm, also on one of your own.

    Loop equals vmap, relabelled clients change nothing, states are values, a
    resumed run has the bits of one that never stopped, and so does a run on 1, 2
    and 3 hosts. One line per check; exit code 1 if one does not hold. Modules in
    the current folder are found.

    \b
    Examples
      raygrad verify fedga
      raygrad verify my_algorithm:MyAlgorithm --on local
    """
    from raygrad import verify as suite

    console = Console(highlight=False)
    failed = checks = 0
    for check in suite.suite(reference, on_ray=on == "ray"):
        checks += 1
        failed += not check.ok
        mark = Text("ok    ", style="green") if check.ok else Text("FAILED", style="bold red")
        console.print(Text.assemble(mark, "  ", f"{check.name}  ", (check.detail, "dim")), soft_wrap=True)
    if failed:
        raise CheckFailed(f"{failed} of {checks} checks failed for {reference}")
    console.print(f"all {checks} checks hold for {reference}", markup=False)
