"""`raygrad sweep`."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raygrad.commands import options, output
from raygrad.commands.train import Interrupted
from raygrad.errors import BadInput, Stopped
from raygrad.interrupts import leaving_at_once

if TYPE_CHECKING:
    from raygrad.commands.experiments import Chosen
    from raygrad.experiment import Experiment
    from raygrad.sweeps.sweep import LoadedSweep, Sweep

SPACE, SEARCH = "Search space", "Search"
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


SHORT = {"algorithm": "algorithm", "alpha": "algorithm.lr", "beta": "algorithm.beta", "k": "local.steps"}
"""Dimensions that have an option of their own, by its name."""
SAME = (
    "samples", "search", "scheduler", "seeds", "communications", "hosts_per_trial", "max_concurrent", "metric", "mode",
    "seed", "winner_seeds", "retries", "generations",
)  # fmt: skip
"""Options that are fields of a sweep."""


def sweep(
    ctx: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="[RECIPE]", help="As for raygrad run. With --resume and no space: a sweep's path, name/id, or name."
        ),
    ] = "digits",
    alpha: Annotated[
        str | None, typer.Option("--alpha", metavar="EXPR", help="Values of algorithm.lr.", rich_help_panel=SPACE)
    ] = None,
    beta: Annotated[
        str | None, typer.Option("--beta", metavar="EXPR", help="Values of algorithm.beta.", rich_help_panel=SPACE)
    ] = None,
    k: Annotated[
        str | None, typer.Option("--K", metavar="EXPR", help="Values of local.steps.", rich_help_panel=SPACE)
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option("--algorithm", metavar="LIST", help="Algorithms to compare.", rich_help_panel=SPACE)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=EXPR", help="A dimension, or with one value a setting. Repeatable.",
            rich_help_panel=SPACE,
        ),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            "--start", metavar="POINT", help="Try first: alpha=0.1,beta=0.05,K=5. Repeatable.", rich_help_panel=SPACE
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Settings to try; a grid has its own number.", rich_help_panel=SEARCH)
    ] = 10,
    search: Annotated[
        Literal["random", "grid", "optuna"], typer.Option("--search", help="How settings come.", rich_help_panel=SEARCH)
    ] = "random",
    scheduler: Annotated[
        Literal["none", "asha", "median", "hyperband", "pbt"],
        typer.Option("--scheduler", help="What stops bad trials, at equal communications.", rich_help_panel=SEARCH),
    ] = "none",
    generations: Annotated[
        int, typer.Option("--generations", help="With pbt: so often trials are compared.", rich_help_panel=SEARCH)
    ] = 5,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Seeds of each setting; their mean counts.", rich_help_panel=SEARCH)
    ] = 1,
    winner_seeds: Annotated[
        int,
        typer.Option(
            "--winner-seeds", help="Fresh seeds with which the best settings are run again and tested.",
            rich_help_panel=SEARCH,
        ),
    ] = 3,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="What is compared, on validation data.", rich_help_panel=SEARCH,
            show_default="accuracy, or the loss where there is none",
        ),
    ] = None,
    mode: Annotated[
        Literal["max", "min"] | None,
        typer.Option(
            "--mode", help="Whether more of it is better.", rich_help_panel=SEARCH, show_default="max; of the loss min"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The seed of the search.", rich_help_panel=SEARCH)] = 0,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds of a trial.", rich_help_panel=SEARCH, show_default=False)
    ] = None,
    communications: Annotated[
        int | None,
        typer.Option(
            "--communications", help="Communications of a trial: FedGA charges two for a round.",
            rich_help_panel=SEARCH, show_default=False,
        ),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            "--time-budget", metavar="TIME", help="The longest that a trial may take: 2h, 30m, 90s.",
            rich_help_panel=SEARCH, show_default=False,
        ),
    ] = None,
    hosts_per_trial: Annotated[
        int,
        typer.Option("--hosts-per-trial", help="Hosts reserved for each trial.", rich_help_panel=options.MACHINE),
    ] = 1,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            "--max-concurrent", help="Trials at the same time.", rich_help_panel=options.MACHINE,
            show_default="as many as there is room for",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            "--retries", help="How often a trial is started again that lost its machine.",
            rich_help_panel=options.MACHINE,
        ),
    ] = 3,
    go_on: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with SWEEP; or with a space, with the newest sweep of this name, or start it.",
        ),
    ] = False,
    address: options.Address = None,
    gpus_per_host: options.GpusPerHost = None,
    device: options.Device = None,
    numerics: options.Numerics = None,
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
    run_root: options.RunRoot = "runs",
    track: options.Track = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The sweep goes to RUN_ROOT/NAME/ID.", rich_help_panel=options.OUTPUT,
            show_default="the recipe's name with -sweep",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the sweep's folder only.", rich_help_panel=options.OUTPUT)
    ] = False,
    as_json: options.Json = False,
    log_level: options.LogLevel = None,
) -> None:  # fmt: skip
    """Search settings with Ray Tune, and run the best ones again with fresh seeds.

    Every trial is a run of its own. They are compared on validation data at
    equal communications; the test set is used for the best settings only, at
    the end. Results go to ./runs/NAME/ID: trials.parquet and the trials' runs.

    \b
    Values
      1,5,10,20   loguniform(0.01,0.5)   uniform(0,0.4)   randint(5,20)
      linspace(0,0.4,5)   logspace(0.01,0.5,6)   quniform(0,0.4,0.05)

    \b
    Examples
      raygrad sweep digits --alpha 'loguniform(0.01,0.5)' --beta 'uniform(0,0.4)' --K 1,5,10,20 --samples 40
      raygrad sweep digits --alpha 'loguniform(0.01,0.5)' --scheduler asha --seeds 3
      raygrad sweep digits --alpha 'loguniform(0.01,0.5)' --samples 8 --scheduler pbt --generations 5
      raygrad sweep digits --search grid --alpha 0.05,0.1,0.2 --beta 'linspace(0,0.4,5)'
      raygrad sweep digits --algorithm fedga,scaffold,fedavg --alpha 'loguniform(0.01,0.5)' --communications 200
      raygrad sweep digits --set local.batch_size=10,32 --set model=linear
      raygrad sweep digits --alpha 0.05,0.1 --address auto --hosts-per-trial 2 --max-concurrent 4
      raygrad sweep --resume digits-sweep
      raygrad sweep digits --alpha 0.05,0.1 --name a --resume     start a, or go on with it
    """
    with output.errors(as_json):
        from raygrad.commands import experiments
        from raygrad.progress import display
        from raygrad.sweeps import sweep as sweeps

        place = {
            "address": address, "gpus_per_host": gpus_per_host, "device": device, "numerics": numerics,
            "data_root": data_root, "shard_root": shard_root, "track": track,
        }  # fmt: skip
        old, made, words = None, None, []
        if rounds is not None and communications is not None:
            raise BadInput("--rounds and --communications are both the budget of a trial; give one of them")
        if _named(ctx.params) and name is None and str(ctx.get_parameter_source("recipe")).endswith("DEFAULT"):
            raise BadInput("--resume goes on with a sweep: name it, as in `raygrad sweep --resume NAME`")
        with display(quiet, as_json=as_json, log_level=log_level) as screen:
            if _named(ctx.params):
                for n in (*SAME, "time_budget"):
                    if n != "max_concurrent" and str(ctx.get_parameter_source(n)).endswith("COMMANDLINE"):
                        option = "--" + n.replace("_", "-")
                        raise BadInput(f"--resume goes on with a sweep as it was begun; leave out {option}")
                old = sweeps.load(name or recipe, run_root)
            else:
                made, words, called = asked(ctx.params)
                name = name or f"{called}-sweep"
                old = sweeps.newest(name, run_root) if go_on else None
                if old is not None and old.sweep.hash != made.hash:
                    raise BadInput(
                        f"{output.run_name(old.at, run_root)}, the newest sweep called {name}, searches something "
                        "else: give another --name, or leave out --resume"
                    )
            where = experiments.place(place) if old is None else experiments.place(place, old.where)
            experiments.check_reachable(where, run_root)
            screen.waiting("preparing the data and Ray")
            with _stopping(run_root) as began:
                if old is not None:
                    began(old)
                    loaded = sweeps.resume(
                        str(old.at), run_root=run_root, where=where, max_concurrent=max_concurrent, say=screen.say
                    )
                else:
                    assert made is not None and name is not None
                    if data_root is not None:
                        words += ["--data-root", str(data_root)]
                    loaded = sweeps.run(
                        made, where, run_root=run_root, name=name, recipe=words, say=screen.say, began=began
                    )
        if as_json:
            _record(loaded)
        elif quiet:
            output.line(output.shown(loaded.at))
        else:
            _finish(loaded, run_root)


def _record(loaded: "LoadedSweep") -> None:
    """What came of it, for programs."""
    from raygrad.reports import sweep_report

    rows = loaded.trials().to_pylist()
    outcomes = [r["outcome"] for r in rows if r["role"] == "search"]
    best = [
        {
            "trial": head.trial, "settings": dict(head.settings), "validation": head.searched,
            "test": list(head.test), "command": head.command,
        }
        for head in sweep_report.best(loaded)
    ]  # fmt: skip
    output.record(
        "summary", sweep=f"{loaded.name}/{loaded.folder.name}", at=str(loaded.url or loaded.folder.resolve()),
        metric=loaded.sweep.measure, runs={o: outcomes.count(o) for o in dict.fromkeys(outcomes)}, best=best,
        trials=str(loaded.folder.resolve() / "trials.parquet"), report=str(sweep_report.to_storage(loaded)),
    )  # fmt: skip


def _named(params: Mapping[str, Any]) -> bool:
    """Whether the options name a sweep to go on with, and nothing that it searches."""
    space = (*SHORT, "settings", "start", "rounds", "communications")
    return bool(params["go_on"]) and not any(params[n] for n in space)


def asked(params: Mapping[str, Any]) -> tuple["Sweep", list[str], str]:
    """The sweep that the command's options ask for, the words that name its experiment, and the recipe's name.

    Raises BadInput for what can be known without data.
    """
    from raygrad.sweeps.space import point
    from raygrad.sweeps.sweep import Sweep

    chosen, dimensions, words = _split(
        params["recipe"], {path: params[n] for n, path in SHORT.items()}, params["settings"] or [], params["rounds"]
    )
    budget = params["time_budget"]
    made = Sweep(
        chosen.experiment, dimensions, time_budget_s=None if budget is None else seconds(budget),
        start=tuple(point(p) for p in params["start"] or ()), **{n: params[n] for n in SAME},
    )  # fmt: skip
    return made, words, chosen.name


def check(params: Mapping[str, Any]) -> "Experiment | None":
    """The experiment that is searched; None for a sweep that goes on. Raises BadInput."""
    from raygrad.files.runs import check_name
    from raygrad.sweeps import space

    if params["name"] is not None:
        check_name(params["name"])
    if _named(params):
        return None
    made, *_ = asked(params)
    made.with_settings(made.fitting(space.draw(made.dimensions, made.seed, 0)))  # are there such fields?
    return made.experiment


def seconds(text: str) -> float:
    """A time such as 2h, 1h30m, 90s or 90 in seconds. Raises BadInput."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise BadInput(f"time budget {text!r} is no time; write it as 2h, 30m, 1h30m or 90s")
    h, m, s = (float(g or 0) for g in found.groups())
    return 3600 * h + 60 * m + s


@contextmanager
def _stopping(run_root: str) -> "Iterator[Callable[[LoadedSweep], None]]":
    """Around a sweep: says how to go on where it breaks off. It gives a function that is told which sweep it is."""
    known: list[LoadedSweep] = []
    early = ExitStack()

    def began(loaded: "LoadedSweep") -> None:
        early.close()
        known.append(loaded)

    try:
        with early:
            early.enter_context(leaving_at_once())
            yield began
    except (Stopped, KeyboardInterrupt) as e:
        how = f"continue it with `raygrad sweep --resume {output.run_name(known[0].at, run_root)}`" if known else ""
        if isinstance(e, Stopped):
            e.add_note(how or "nothing was played: start the sweep again")
            raise
        raise Interrupted(f"interrupted; {how or 'start the sweep again'}") from None


def _split(
    recipe: str, short: dict[str, str | None], settings: list[str], rounds: int | None
) -> tuple["Chosen", dict[str, str], list[str]]:
    """The experiment with what has one value, the dimensions, and the words that name the experiment."""
    from raygrad import config
    from raygrad.commands import experiments
    from raygrad.sweeps import space

    given = {n: v for n, v in short.items() if v is not None}
    for path, text in map(experiments.split, settings):
        if path in given:
            raise BadInput(f"{path} is given twice; give it once, as {space.SHOWN.get(path, path)} or with --set")
        given[path] = text
    base = experiments.choose(recipe).experiment
    several = {
        n
        for n, text in given.items()
        if _several(space.parse(text, space.SHOWN.get(n, n))) and not _is_list(config, base, n, text)
    }
    # One value of a field of a kind that is itself searched (beta, where algorithms are compared) is set per trial.
    several |= {n for n in given if n.rpartition(".")[0] in several}
    fixed = [f"{n}={text}" for n, text in given.items() if n not in several]
    chosen = experiments.choose(recipe, fixed, {"rounds": rounds})
    return chosen, {n: given[n] for n in given if n in several}, [recipe, *(w for f in fixed for w in ("--set", f))]


def _several(expression: object) -> bool:
    from raygrad.sweeps.space import Values

    return not (isinstance(expression, Values) and len(expression.values) == 1)


def _is_list(config: ModuleType, base: object, path: str, text: str) -> bool:
    """Whether the field takes a list as its one value, as metrics does."""
    try:
        value = config.assign(base, path, text)
        for part in path.split("."):
            value = getattr(value, part)
    except BadInput:
        return False
    return isinstance(value, tuple)


def _finish(loaded: "LoadedSweep", run_root: str) -> None:
    """What came of it, the best settings, and how to repeat them."""
    from raygrad.reports import sweep_report
    from raygrad.reports.report import spread
    from raygrad.sweeps import space

    rows = loaded.trials().to_pylist()
    outcomes = [r["outcome"] for r in rows if r["role"] == "search"]
    counts = [f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes)]
    told = [("sweep", output.run_name(loaded.at, run_root)), ("runs", ", ".join(counts))]
    s, heads = loaded.sweep, sweep_report.best(loaded)
    if not heads:
        told.append(("best", "none: no trial finished; give wider ranges of smaller step sizes, or more rounds"))
    for head in heads:
        shown = " ".join(f"{space.SHOWN.get(n, n)} {v}" for n, v in head.settings.items())
        seeds = f", mean of {s.seeds} seeds" if s.seeds > 1 else ""
        told.append(("best", f"{shown}: validation {s.measure} {head.searched:.4g}{seeds} (trial {head.trial})"))
        if head.test:
            again = f"{len(head.test)} fresh seeds" if len(head.test) > 1 else "a fresh seed"
            told.append(("test", f"{s.measure} {spread(head.test)}, {again}"))
    commands = [("again", head.command) for head in heads]
    output.line("")
    page = sweep_report.to_storage(loaded)
    output.pairs(
        [*told, ("trials", output.shown(loaded.folder / "trials.parquet")), ("report", output.shown(page)), *commands]
    )
    failed = sum(o == "failed" for o in outcomes)
    if failed:
        name = output.run_name(loaded.at, run_root)
        output.line(f"{failed} runs failed; `raygrad sweep --resume {name}` tries them again")
