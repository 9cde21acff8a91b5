"""`raygrad trace`: files that say when modelled devices are available, and how fast they are."""

from pathlib import Path
from typing import Annotated

import typer

from raygrad.commands import output
from raygrad.errors import BadInput

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def trace() -> None:
    """Make a trace: when each client's device is available, and how fast it is.

    A trace is a Parquet or CSV file with the columns client, time, available and
    speed; docs/devices.md has the format, for traces of your own.

    \b
    Examples
      raygrad trace diurnal --clients 100 --hours 48 --out trace.parquet
      raygrad trace diurnal --help
    """


@app.command("diurnal")
def diurnal(
    out: Annotated[
        Path, typer.Option("--out", help="The .parquet or .csv file to write.", show_default=False)
    ],
    clients: Annotated[int, typer.Option("--clients", help="Clients, numbered from 0.")] = 100,
    hours: Annotated[float, typer.Option("--hours", help="How long it is; it can repeat.")] = 48.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same file.")] = 0,
    low: Annotated[float, typer.Option("--low", help="Probability of being available at 3 in the afternoon.")] = 0.2,
    high: Annotated[float, typer.Option("--high", help="The same at 3 in the morning.")] = 0.8,
    zones: Annotated[float, typer.Option("--zones", help="Over how many hours time zones spread; 0: one zone.")] = 24.0,
    persistence: Annotated[
        float, typer.Option("--persistence", help="Probability that a half hour draws nothing anew.")
    ] = 0.8,
    sigma: Annotated[float, typer.Option("--sigma", help="Spread of the log-normal speeds, whose mean is 1.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:  # fmt: skip
    """Day and night: clients are available when they charge, mostly at night.

    Each client has a time zone; its probability of being available follows the
    cosine of a day, and states last half an hour or more. docs/devices.md has the
    formula.

    \b
    Examples
      raygrad trace diurnal --clients 100 --hours 48 --seed 0 --out trace.parquet
      raygrad trace diurnal --clients 20 --zones 0 --out one-zone.csv
    """
    from raygrad.devices.diurnal import diurnal_trace, encode
    from raygrad.files import storage

    if (suffix := out.suffix.lower()) not in (".csv", ".parquet"):
        raise BadInput(f"--out is {out}; a trace is a .parquet or a .csv file")
    if out.exists() and not force:
        raise BadInput(f"{out} is there already; --force writes over it")
    table = diurnal_trace(clients, hours, seed, low=low, high=high, zones_h=zones, persistence=persistence, sigma=sigma)
    try:
        storage.write_atomic(out, encode(table, suffix))
    except OSError as e:
        raise BadInput(f"{out} cannot be written: {e.strerror}") from e
    output.line(f"{out}: {clients:,} clients, {len(table):,} rows, {hours:g} hours")
    output.line(f"use it: raygrad run --set devices=trace --set devices.path={out}")
