"""`raygrad run` and `raygrad resume`."""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from raygrad.commands import options, output
from raygrad.errors import BadInput, BelowQuorum, Diverged, RaygradError, Stopped
from raygrad.hosts import HostRange
from raygrad.interrupts import leaving_at_once

if TYPE_CHECKING:
    from raygrad.experiment import Experiment, Where
    from raygrad.files.runs import LoadedRun
    from raygrad.onray.start import EarlyStart
    from raygrad.progress import Display

ALIAS = "Short for --set"
SHORT = {
    "rounds": "rounds",
    "seed": "seed",
    "alpha": "algorithm.lr",
    "beta": "algorithm.beta",
    "k": "local.steps",
    "init": "init",
}
"""Options of `raygrad run` that set a field."""
PLACE = ("on", "hosts", "address", "gpus_per_host", "device", "numerics", "data_root", "shard_root", "track")
"""Options that say where it runs."""


class Interrupted(RaygradError):
    """Ctrl-C."""

    exit_code = 130


def run(
    recipe: options.Recipe = "digits",
    settings: options.Settings = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Set rounds.", show_default=False)] = None,
    seed: options.Seed = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Set algorithm.lr.", rich_help_panel=ALIAS, show_default=False),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option("--beta", help="Set algorithm.beta.", rich_help_panel=ALIAS, show_default=False),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--K", help="Set local.steps.", rich_help_panel=ALIAS, show_default=False),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Start from the weights in this .safetensors file.", show_default=False),
    ] = None,
    on: options.On = None,
    hosts: options.Hosts = None,
    address: options.Address = None,
    gpus_per_host: options.GpusPerHost = None,
    device: options.Device = None,
    numerics: options.Numerics = None,
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
    run_root: options.RunRoot = "runs",
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The run goes to RUN_ROOT/NAME/ID.",
            rich_help_panel=options.OUTPUT, show_default="the recipe\'s name",
        ),
    ] = None,
    track: options.Track = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the newest run of this name if there is one, else start it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    log_level: options.LogLevel = None,
    no_report: options.NoReport = False,
) -> None:  # fmt: skip
    """Train: a recipe, an experiment.json, or a recipe file of your own.

    Without arguments it trains FedGA on handwritten digits, ten clients of one
    class each, on two hosts of a Ray that it starts. The run goes to
    ./runs/NAME/ID; at its end the model is evaluated on the test set and
    report.html is written.

    \b
    Examples
      raygrad run                                     the main job
      raygrad run --on local --rounds 20              without Ray
      raygrad run digits --set algorithm=scaffold     another algorithm
      raygrad run --set partition=dirichlet --set partition.concentration=0.1
      raygrad run --alpha 0.05 --beta 0.2 --K 10      the paper's letters
      raygrad run --set local.epochs=1 --seed 3       epochs instead of steps
      raygrad run mnist-het --data-root DIR --hosts 4
      raygrad run runs/digits/ID/experiment.json      repeat a run, bit for bit
      raygrad run my_recipe.py                        it defines recipe()
      raygrad run digits --name a --resume            start a, or go on with it

    A recipe file is imported by its name, with its folder on Python's path; be in
    that folder to resume such a run or to repeat its experiment.json.
    `raygrad list algorithms` (datasets, models, …) shows every field.
    """
    with ExitStack() as stack, output.errors(as_json):
        early = None
        until_played = stack.enter_context(ExitStack())
        until_played.enter_context(leaving_at_once())
        if _can_start_early(recipe, on, hosts, address, gpus_per_host, device):
            from raygrad.onray.start import EarlyStart

            early = stack.enter_context(closing(EarlyStart(HOSTS if hosts is None else hosts)))
        from raygrad import run as engine
        from raygrad.commands import experiments
        from raygrad.progress import display

        short = {
            "rounds": rounds,
            "seed": seed,
            "algorithm.lr": alpha,
            "algorithm.beta": beta,
            "local.steps": k,
            "init": init,
        }
        chosen = experiments.choose(recipe, settings or (), short)
        where = experiments.place(
            {
                "on": on, "hosts": hosts, "address": address, "gpus_per_host": gpus_per_host, "device": device,
                "numerics": numerics, "data_root": data_root, "shard_root": shard_root, "track": track,
            }
        )  # fmt: skip
        experiments.check_lasting(run_root)
        experiments.check_reachable(where, run_root)
        with display(quiet, as_json=as_json, log_level=log_level) as screen:
            screen.waiting("preparing the data")
            found = experiments.continued(chosen, where, run_root, name or chosen.name) if go_on else None
            made = found or engine.create(
                chosen.experiment, where, run_root=run_root, name=name or chosen.name, say=screen.say
            )
            done = f", continued after round {_saved_round(made)}" if found is not None else ""
            screen.say(f"{experiments.algorithm_note(made.experiment)}{done} → {output.shown(made.at)}")
            until_played.close()
            try:
                played = _play(made, run_root, screen, early)
            except BadInput:
                if found is None:
                    engine.discard_unplayed(made)
                raise
    if not played:
        _say_finished(made, run_root, quiet or as_json)
    _finish(made, run_root, quiet, as_json, report=not no_report)


def resume(
    run: options.Run,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", help="Go on to this many rounds in total.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set a field of failures: failures.nan=skip, … Repeatable."),
    ] = None,
    on: options.On = None,
    hosts: options.Hosts = None,
    address: options.Address = None,
    gpus_per_host: options.GpusPerHost = None,
    device: options.Device = None,
    numerics: options.Numerics = None,
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
    run_root: options.RunRoot = "runs",
    track: options.Track = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    log_level: options.LogLevel = None,
    no_report: options.NoReport = False,
) -> None:
    """Go on with a run where it stopped, as if it never had; or extend a finished one.

    It starts at the newest checkpoint. What is not given (--on, --hosts, …) is as
    it was when the run started. A finished run with nothing left to do says so.

    \b
    Examples
      raygrad resume digits                   the newest run called digits
      raygrad resume digits/ID --rounds 400   400 rounds in total
      raygrad resume digits --hosts 4         on more hosts: the same bits
      raygrad resume digits --on local        without Ray: the same bits
      raygrad resume digits --set failures.nan=skip    without a failing client
    """
    with output.errors(as_json):
        from dataclasses import replace

        from raygrad import run as engine
        from raygrad.commands import experiments
        from raygrad.files.runs import load
        from raygrad.progress import display

        with display(quiet, as_json=as_json, log_level=log_level) as screen:
            loaded = load(run, run_root)
            if rounds is not None:
                loaded = engine.extend(loaded, rounds)
            if settings:
                loaded = replace(loaded, experiment=experiments.change_failures(loaded.experiment, settings))
            where = experiments.place(
                {
                    "on": on, "hosts": hosts, "address": address, "gpus_per_host": gpus_per_host, "device": device,
                    "numerics": numerics, "data_root": data_root, "shard_root": shard_root, "track": track,
                },
                loaded.where,
            )  # fmt: skip
            experiments.check_reachable(where, run_root)
            loaded = replace(loaded, where=where)
            played = _play(loaded, run_root, screen)
        if not played:
            _say_finished(loaded, run_root, quiet or as_json)
        _finish(loaded, run_root, quiet, as_json, report=not no_report)


def fork(
    run: options.Run,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="PATH=VALUE", help="What changes: algorithm.beta=0.2, … Repeatable."),
    ],
    at: Annotated[
        int | None,
        typer.Option("--at", help="After which round, if there is a checkpoint.", show_default="the newest"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", help="Go on to this many rounds in total.", show_default="as the other run"),
    ] = None,
    on: options.On = None,
    hosts: options.Hosts = None,
    address: options.Address = None,
    gpus_per_host: options.GpusPerHost = None,
    device: options.Device = None,
    numerics: options.Numerics = None,
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
    run_root: options.RunRoot = "runs",
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The run goes to RUN_ROOT/NAME/ID.",
            rich_help_panel=options.OUTPUT, show_default="the other run\'s name",
        ),
    ] = None,
    track: options.Track = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    log_level: options.LogLevel = None,
    no_report: options.NoReport = False,
) -> None:  # fmt: skip
    """Start a new run from another's checkpoint, with other settings from there on.

    Fields of algorithm, local, sampler, schedule and stragglers may change. The new
    run's experiment.json says so, and a run of it from the start has the same bits.

    \b
    Examples
      raygrad fork digits --set algorithm.beta=0.2
      raygrad fork digits/ID --at 50 --set local.steps=10 --rounds 200
    """
    with output.errors(as_json):
        from raygrad import run as engine
        from raygrad.commands import experiments
        from raygrad.files.runs import load
        from raygrad.progress import display

        with display(quiet, as_json=as_json, log_level=log_level) as screen:
            loaded = load(run, run_root)
            where = experiments.place(
                {
                    "on": on, "hosts": hosts, "address": address, "gpus_per_host": gpus_per_host, "device": device,
                    "numerics": numerics, "data_root": data_root, "shard_root": shard_root, "track": track,
                },
                loaded.where,
            )  # fmt: skip
            experiments.check_reachable(where, run_root)
            made = engine.fork(
                loaded, settings, run_root=run_root, name=name or loaded.name, where=where, rounds=rounds, round=at
            )
            screen.say(f"{experiments.algorithm_note(made.experiment)} → {output.shown(made.at)}")
            played = _play(made, run_root, screen)
        if not played:
            _say_finished(made, run_root, quiet or as_json)
        _finish(made, run_root, quiet, as_json, report=not no_report)


def check(params: Mapping[str, Any]) -> "Experiment":
    """The experiment that the options of `raygrad run` ask for. Raises BadInput for what can be known without data."""
    from raygrad.commands import experiments
    from raygrad.files.runs import check_name

    chosen = experiments.choose(
        params["recipe"], params["settings"] or (), {path: params[n] for n, path in SHORT.items()}
    )
    if params["name"] is not None:
        check_name(params["name"])
    if params["address"]:
        raise BadInput("a job joins the Ray that runs it; --address before or after the recipe is the dashboard's")
    experiments.place({n: params[n] for n in PLACE})
    return chosen.experiment


def _say_finished(run: "LoadedRun", run_root: str, quiet: bool) -> None:
    if not quiet:
        done = f"{output.run_name(run.at, run_root)} is finished: {run.experiment.rounds} rounds"
        output.line(f"{done}, nothing left to do; --rounds extends it")


HOSTS = 2
"""How many hosts there are where the user does not say, as in `raygrad.experiment.Where`."""


def _can_start_early(
    recipe: str, on: str | None, hosts: str | None, address: str | None, gpus_per_host: float | None, device: str | None
) -> bool:
    """Whether a Ray may be started before anything is imported or checked.

    It may where it will most probably be used as it is: a recipe of ours, on a local Ray, on CPUs.
    """
    ray, cores = sys.modules.get("ray"), os.cpu_count() or 1
    try:
        fits = HostRange.of(HOSTS if hosts is None else hosts).fewest <= cores
    except BadInput:  # it is raised where everything is checked
        return False
    return (
        fits
        and (Path(__file__).parents[1] / "recipes" / f"{recipe.replace('-', '_')}.py").is_file()
        and on in (None, "ray")
        and not (address or os.environ.get("RAY_ADDRESS") or gpus_per_host)
        and device in (None, "auto", "cpu")
        and (ray is None or not ray.is_initialized())
    )


def _play(run: "LoadedRun", run_root: str, screen: "Display", early: "EarlyStart | None" = None) -> int:
    """Play the rounds that are left and say how to go on if they break off. Returns how many there were."""
    from raygrad import run as engine

    where, played = run.where, 0
    screen.waiting(_starting(where))
    name = output.run_name(run.at, run_root)
    try:
        with closing(engine.play(run, screen.say, early)) as rounds:
            for round in rounds:
                screen.show(round)
                played += 1
    except KeyboardInterrupt:
        _interrupted(run, name)
    except Diverged as e:
        e.add_note(_after_divergence(run, name))
        raise
    except (Stopped, BelowQuorum) as e:
        how = " --set failures.quorum=0` (or lower than it is)" if isinstance(e, BelowQuorum) else "`"
        e.add_note(f"continue it with `raygrad resume {name}{how}")
        raise
    return played


def _starting(where: "Where") -> str:
    if where.on == "local":
        return "starting in this process"
    address = where.address or os.environ.get("RAY_ADDRESS")
    ray = f"the Ray at {address}" if address else "a local Ray"
    if where.hosts == "auto":
        return f"starting hosts on {ray}"
    return f"starting {where.hosts} host{'s' if where.host_range.most != 1 else ''} on {ray}"


def _saved_round(run: "LoadedRun") -> int:
    from raygrad.files.checkpoint import latest

    found = latest(run.folder)
    return 0 if found is None else found.round


def _interrupted(run: "LoadedRun", name: str) -> NoReturn:
    where = f"after round {_saved_round(run)} of {run.experiment.rounds}"
    raise Interrupted(f"interrupted {where}; continue it with `raygrad resume {name}`") from None


def _after_divergence(run: "LoadedRun", name: str) -> str:
    return (
        f"the model after round {_saved_round(run)} is kept in {name}; resuming would diverge again: "
        "start a new run with a smaller --alpha (algorithm.lr) or --set local.clip_norm=10"
    )


def failed(run: "LoadedRun") -> str | None:
    """What became of the clients, if some failed: with a damaged shard, with an update that is not finite, or so that
    their hosts died. None if none did. Who is late or leaves on the modelled clock does not fail.
    """
    from raygrad.reports.turnout import turnout
    from raygrad.stragglers import Buffered

    found = turnout(run.folder, isinstance(run.experiment.stragglers, Buffered))
    return str(found) if found.failed or found.rejected else None


def summary_json(run: "LoadedRun") -> dict[str, Any]:
    """What a run has come to, for programs."""
    from raygrad.files import storage
    from raygrad.reports.report import view

    v, path = view(run.folder), run.folder / "final.json"
    final = storage.read_json(path) if path.is_file() else None
    return {
        "run": v.title, "at": str(run.url or run.folder.resolve()), "hash": v.hash,
        "rounds": len(v.round), "of": v.planned,
        "communications": int(v.communications[-1]) if len(v.round) else 0,
        "bytes_down": int(v.bytes_down[-1]) if len(v.round) else 0,
        "bytes_up": int(v.bytes_up[-1]) if len(v.round) else 0,
        "elapsed_s": float(v.seconds[-1]) if len(v.round) else 0.0, "final": final, "digest": run.digest(),
        "clients_failed": failed(run),
    }  # fmt: skip


def _finish(run: "LoadedRun", run_root: str, quiet: bool, as_json: bool, report: bool) -> None:
    """The table, the report and what can be done next."""
    from raygrad.files.mirror import put_report
    from raygrad.reports.page import write_report
    from raygrad.reports.report import summary

    page = None
    if report:
        page = write_report([run.folder], run.folder / "report.html")
        if run.url is not None:
            put_report(run.url, page)
    if as_json:
        output.record("summary", **summary_json(run), report=None if page is None else str(page))
        return
    if quiet:
        output.line(output.shown(run.at))
        said = failed(run)
        if said is not None:
            print(f"clients  {said}", file=sys.stderr)
        return
    name = output.run_name(run.at, run_root)
    output.line("")
    output.pairs(summary(run.folder))
    output.line("")
    rounds = run.experiment.rounds
    then = []
    if page is not None:
        then.append(("report", output.shown(page) if run.url is None else f"{page}, and {run.url / page.name}"))
    then += [
        ("extend", f"raygrad resume {name} --rounds {2 * rounds}"),
        ("compare", f"raygrad report {name} RUN…"),
        ("export", f"raygrad export {name} model.safetensors"),
    ]
    output.pairs(then)
