"""`raygrad verify`: does what should hold, hold?"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from raygrad import logs
from raygrad.commands import options, output
from raygrad.errors import CheckFailed


def algorithm_names(incomplete: str) -> list[str]:
    """Algorithms, the theory and faults, for tab completion."""
    from raygrad.algorithms import ALGORITHMS

    return [n for n in (*ALGORITHMS, "theory", "faults") if n.startswith(incomplete)]


def verify(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="ALGORITHM|theory|faults",
            help="A registered algorithm, package.module:Class of your own, or the word theory or faults.",
            autocompletion=algorithm_names,
        ),
    ],
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="[RECIPE]", help="faults: what to run, as for `raygrad run`.", autocompletion=options.recipe_names
        ),
    ] = "digits",
    settings: options.Settings = None,
    plans: Annotated[int, typer.Option("--plans", help="faults: how many random plans.", min=1)] = 20,
    seed: Annotated[int, typer.Option("--seed", help="faults: which plans.", min=0)] = 1,
    rounds: Annotated[int, typer.Option("--rounds", help="faults: rounds of each run.", min=1)] = 4,
    on: Annotated[
        Literal["ray", "local"],
        typer.Option("--on", help="local: leave out what needs Ray.", rich_help_panel=options.MACHINE),
    ] = "ray",
    hosts: options.Hosts = None,
    address: options.Address = None,
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
) -> None:  # fmt: skip
    """Run the property suite on an algorithm, measure the theory, or let things
    fail.

    Loop equals vmap, relabelled clients change nothing, states are values, a
    resumed run has the bits of one that never stopped, and so does a run on 1, 2
    and 3 hosts. One line per check; exit code 1 if one does not hold. Modules in
    the current folder are found.

    theory: what the paper's theorems 1 to 5 and their consequences predict of the
    algorithms, measured in float64, and the same with the sign flipped, which has
    to fail. One row per statement; seconds, without Ray.

    faults: a recipe is played without and with random plans of faults: hosts are
    killed, the driver dies with -9, the disk is full, a client's update is NaN, its
    shard is damaged, it kills every host. What costs time must not change a bit;
    what removes a client must equal a run in which it was absent.

    \b
    Examples
      raygrad verify fedga
      raygrad verify my_algorithm:MyAlgorithm --on local
      raygrad verify theory
      raygrad verify faults digits --plans 5 --on local
      raygrad verify faults digits --plans 20 --seed 1 --hosts 2
    """
    if reference == "theory":
        verify_theory()
    elif reference == "faults":
        place = {"on": on, "hosts": hosts, "address": address, "data_root": data_root, "shard_root": shard_root}
        verify_faults(recipe, settings or [], place, plans, seed, rounds)
    else:
        verify_algorithm(reference, on_ray=on == "ray")


def verify_algorithm(reference: str, on_ray: bool) -> None:
    """One line per property. Raises BadInput if there is no such algorithm, CheckFailed if a property does not hold."""
    from raygrad import verify as suite
    from raygrad.commands import experiments

    if on_ray:
        experiments.show_token(None)
    failed = checks = 0
    with output.busy() as doing:
        doing("check 1")
        for check in suite.suite(reference, on_ray=on_ray):
            checks += 1
            failed += not check.ok
            output.verdict(check.ok, check.name, check.detail, doing.console)
            doing(f"check {checks + 1}")
    if failed:
        raise CheckFailed(f"{failed} of {checks} checks failed for {reference}")
    output.line(f"all {checks} checks hold for {reference}")


def verify_theory() -> None:
    """One row per statement of `raygrad.theory`. Raises CheckFailed if one fails."""
    from raygrad.theory import STATEMENTS

    verdicts = []
    with output.busy() as doing:
        for i, statement in enumerate(STATEMENTS, 1):
            doing(f"statement {i} of {len(STATEMENTS)}: {statement.name}")
            verdicts.append((statement, statement.verdict()))
    output.table(
        ("statement", "predicted", "measured", "has to fail", "verdict"),
        [(s.name, s.predicted, v.measured, v.broken, "ok" if v.ok else "FAILED") for s, v in verdicts],
    )
    failed = [s.name for s, v in verdicts if not v.ok]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(verdicts)} statements failed: {', '.join(failed)}")
    output.line(f"all {len(verdicts)} statements hold")


def verify_faults(
    recipe: str, settings: list[str], place: Mapping[str, str | int | Path | None], plans: int, seed: int, rounds: int
) -> None:
    """One line per plan. Raises BadInput as a run does, CheckFailed if a run is not what it should be."""
    from raygrad.commands import experiments
    from raygrad.verify_faults import trials

    experiment = experiments.choose(recipe, settings, {}).experiment
    where = experiments.place(place)
    failed = missed = 0
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="raygrad-faults-"))
        doing = stack.enter_context(output.busy())
        doing("the run to which nothing happens")
        stack.enter_context(logs.listening(logs.OnStderr(), "error"))  # faults are what is asked for
        if where.on == "ray":
            experiments.show_token(where.address)
            from raygrad.onray.cluster import connected

            stack.enter_context(connected(where))  # once for all runs
        for trial in trials(experiment, where, Path(folder), plans, seed, rounds):
            failed += not trial.ok
            missed += trial.missed
            plan = "; ".join(map(str, trial.plan))
            output.verdict(trial.ok, f"plan {trial.number}", f"{plan}: {trial.detail}", doing.console)
            doing(f"plan {min(trial.number + 1, plans)} of {plans}")
    if failed:
        raise CheckFailed(f"{failed} of {plans} plans of seed {seed} left what they must not")
    but = f"; {missed} of their faults never happened" if missed else ""
    output.line(f"all {plans} plans of seed {seed} left what they must{but}")
