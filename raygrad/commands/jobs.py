"""`raygrad job`: submit, list, logs, stop. A job is a `raygrad run` or `raygrad sweep` on a cluster."""

import re
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from raygrad.commands import options, output, sweeps, train
from raygrad.errors import BadInput, JobLost, Stopped

if TYPE_CHECKING:
    from raygrad.commands.parcel import Check
    from raygrad.onray.jobs import Job, Jobs

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

CHECKS: Mapping[str, "Check"] = {"run": train.check, "sweep": sweeps.check}
"""What is checked here of a command before it is sent. A command without a check is only parsed."""
STOPPED = 143
"""The exit code for a job that was stopped and left no checkpoint, as far as is known."""
INTERRUPTED = 130
PYTHON = ("python", "-m", "raygrad")
_GOES_ON = re.compile(r"^\s*(raygrad: .*)?continue it with `raygrad ", re.M)
_FOLDER = re.compile(r"→ (/.+)$", re.M)

Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="The cluster's dashboard, http://HOST:8265.", rich_help_panel=options.MACHINE,
        show_default="RAY_API_SERVER_ADDRESS, or the Ray on this machine",
    ),
]  # fmt: skip
JobName = Annotated[
    str | None, typer.Argument(metavar="[JOB]", help="A job's id; the newest job without it.", show_default=False)
]


@app.callback()
def job() -> None:
    """Runs and sweeps on a cluster, as Ray jobs: submit, list, logs, stop.

    The cluster is named by its dashboard, --address http://HOST:8265 (through a
    tunnel: http://127.0.0.1:8265). Its token is taken from RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token. docs/jobs.md has more.

    \b
    Examples
      raygrad job submit digits --run-root /shared/runs
      raygrad job list
      raygrad job logs --follow
      raygrad job stop
    """


@app.command("submit", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
def submit(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE [OPTIONS]", help="As for raygrad run, or for raygrad sweep.")
    ],
    sweep: Annotated[bool, typer.Option("--sweep", help="A sweep instead of a run.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
    grace_s: Annotated[
        int, typer.Option("--grace-s", help="Seconds that the job has to write a checkpoint when it is stopped.")
    ] = 60,
    working_dir: Annotated[
        Path | None,
        typer.Option(
            "--working-dir", help="Send this folder along, instead of the recipe and the modules that it imports.",
            show_default=False,
        ),
    ] = None,
    address: Address = None,
) -> None:  # fmt: skip
    """Send a run or a sweep to a cluster, and follow it.

    All options of raygrad run (with --sweep, of raygrad sweep) may be given; they
    are checked here first, and so is the recipe. A recipe file of your own and
    the modules of yours that it imports go along, data never: --run-root and
    --data-root are paths that the cluster's nodes reach, or URLs. raygrad itself
    must be installed there (raygrad doctor).

    The job's exit code is returned: 75 if it was stopped and can go on (submit it
    again with --resume), 143 if it was stopped and cannot. Ctrl-C leaves it running.

    \b
    Examples
      raygrad job submit digits --run-root /shared/runs --hosts auto
      raygrad job submit my_recipe.py --run-root s3://bucket/runs --beta 0.2
      raygrad job submit digits --name a --resume --run-root /shared/runs
      raygrad job submit --sweep digits --alpha 'loguniform(0.01,0.5)' --run-root s3://bucket/runs
      raygrad job submit digits --run-root /shared/runs --no-wait --address http://127.0.0.1:8265
    """
    from raygrad.commands import parcel

    if grace_s < 0:
        raise BadInput(f"--grace-s is {grace_s}; it must be >= 0")
    name = "sweep" if sweep else "run"
    command = getattr(context.find_root().command, "commands", {}).get(name)
    if command is None:
        raise BadInput(f"this raygrad has no command {name}")
    with tempfile.TemporaryDirectory(prefix="raygrad-job-") as folder:
        packed = parcel.pack(name, command, words, Path(folder), CHECKS.get(name), working_dir)
        jobs = _jobs(address)
        if jobs.note:
            print(f"raygrad: warning: {jobs.note}", file=sys.stderr)
        sent = (working_dir or Path(folder)) if packed.full else None
        version = {"raygrad": metadata.version("raygrad")}
        id = jobs.submit([*PYTHON, name, *packed.words], sent, grace_s, version)
    output.pairs([("job", id), ("dashboard", jobs.link(id))])
    if no_wait:
        output.pairs(_afterwards(id, address))
        return
    _follow(jobs, id, address)


@app.command("list")
def list_(address: Address = None) -> None:
    """The jobs of a cluster, the newest first.

    \b
    Examples
      raygrad job list
      raygrad job list --address http://127.0.0.1:8265
    """
    jobs = _jobs(address)
    header = ("job", "status", "exit", "started", "took", "command")
    output.table(header, [_row(j) for j in jobs.all()])


@app.command("logs")
def logs(
    job: JobName = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it ends, and return its exit code.")] = False,
    address: Address = None,
) -> None:
    """What a job has printed.

    \b
    Examples
      raygrad job logs
      raygrad job logs raysubmit_LmDb2KV7cZ1Pq3sT --follow
    """
    jobs = _jobs(address)
    id = (jobs.job(job) if job else jobs.newest()).id
    if follow:
        _follow(jobs, id, address)
    else:
        sys.stdout.write(jobs.log(id))


@app.command("stop")
def stop(job: JobName = None, address: Address = None) -> None:
    """Stop a job: it writes a checkpoint, and can go on later.

    Without JOB it is the one that runs.

    \b
    Examples
      raygrad job stop
      raygrad job stop raysubmit_LmDb2KV7cZ1Pq3sT
    """
    jobs = _jobs(address)
    found = jobs.job(job) if job else _running(jobs)
    if found.over or not jobs.stop(found.id):
        output.line(f"job {found.id} has ended before: {found.status}")
        return
    output.line(f"job {found.id} is stopping; it writes a checkpoint")
    ended = jobs.wait(found.id)
    if ended.status != "STOPPED":
        output.line(f"job {found.id} has ended before: {ended.status}")
    elif left_checkpoint(jobs.log(found.id)):
        output.line("stopped; it can go on: submit it again with --resume")
    else:
        output.line("stopped; it is not known to have left a checkpoint")


def _jobs(address: str | None) -> "Jobs":
    from raygrad.onray import tokens

    tokens.use_by_default()
    from raygrad.onray.jobs import Jobs

    return Jobs(address)


def _running(jobs: "Jobs") -> "Job":
    running = [j for j in jobs.all() if not j.over]
    if len(running) != 1:
        what = f"{len(running)} jobs run: {', '.join(j.id for j in running)}" if running else "no job runs"
        raise BadInput(f"{what}; name the one to stop (`raygrad job list`)")
    return running[0]


def _follow(jobs: "Jobs", id: str, address: str | None) -> NoReturn:
    """Show the job's log until it ends, and leave with its exit code."""
    printed: list[str] = []
    try:
        for text in jobs.follow(id):
            printed.append(text)
            sys.stdout.write(text)
            sys.stdout.flush()
        job = jobs.wait(id)
    except KeyboardInterrupt:
        print(f"\nraygrad: job {id} goes on", file=sys.stderr)
        for label, value in _afterwards(id, address):
            print(f"  {label:<5}  {value}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    code = exit_code(job, "".join(printed))
    if job.status == "STOPPED":
        then = "; submit it again with --resume to go on" if code == Stopped.exit_code else ""
        print(f"raygrad: job {id} was stopped{then}", file=sys.stderr)
    elif code:
        print(f"raygrad: job {id} ended with exit code {code}", file=sys.stderr)
    raise typer.Exit(code)


def exit_code(job: "Job", log: str) -> int:
    """The exit code for a job that has ended. Raises JobLost where it ended in no way that has one."""
    if job.exit_code is not None:
        return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
    if job.status == "STOPPED":
        return Stopped.exit_code if left_checkpoint(log) else STOPPED
    why = " ".join(job.message.split())[:500]
    raise JobLost(f"job {job.id} {job.status.lower()}: {why or 'the cluster does not say why'}")


def left_checkpoint(log: str) -> bool:
    """Whether a job left a checkpoint: by its last words, or in its run folder if that is reached from here."""
    if _GOES_ON.search(log):
        return True
    from raygrad.files.checkpoint import latest

    folder = _FOLDER.search(log)
    return folder is not None and Path(folder[1]).is_dir() and latest(Path(folder[1])) is not None


def _afterwards(id: str, address: str | None) -> list[tuple[str, str]]:
    where = f" --address {address}" if address else ""
    return [("log", f"raygrad job logs {id} --follow{where}"), ("stop", f"raygrad job stop {id}{where}")]


def _row(job: "Job") -> list[str]:
    from raygrad.progress import duration

    took = ((job.ended or datetime.now(UTC)) - job.started).total_seconds() if job.started else 0.0
    started = job.started.astimezone().strftime("%Y-%m-%d %H:%M:%S") if job.started else ""
    command = job.entry_point.removeprefix(" ".join(PYTHON) + " ")
    return [job.id, job.status, _shown_code(job), started, duration(took), command]


def _shown_code(job: "Job") -> Any:
    return "" if job.exit_code is None else str(job.exit_code)
