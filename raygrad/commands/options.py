"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

MACHINE, DATA, OUTPUT = "Where it runs", "Data", "Output"


def recipe_names(incomplete: str) -> list[str]:
    """Recipes for tab completion: from the file names, which is quick."""
    here = Path(__file__).parent.parent / "recipes"
    names = sorted(p.stem.replace("_", "-") for p in here.glob("[a-z]*.py"))
    return [n for n in names if n.startswith(incomplete)]


def run_names(incomplete: str) -> list[str]:
    """Runs in ./runs for tab completion."""
    found = sorted(p.parent for p in Path("runs").glob("*/*/experiment.json"))
    names = sorted({p.parent.name for p in found}) + [f"{p.parent.name}/{p.name}" for p in found]
    return [n for n in names if n.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's name, an experiment.json, a run's folder, or a Python file that defines recipe().",
        autocompletion=recipe_names,
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run: its path or address, name/id, or name (its newest).", autocompletion=run_names
    ),
]
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN…", help="Runs: paths or addresses, name/id, or name (its newest).", autocompletion=run_names
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a field: algorithm=scaffold, local.epochs=2, … Repeatable.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Set seed.", show_default=False)]
RunRoot = Annotated[
    str,
    typer.Option("--run-root", help="The folder that holds the runs, or s3://… or gs://….", rich_help_panel=OUTPUT),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", help="The folder that holds the data sets; only read. Without it they are downloaded.",
        rich_help_panel=DATA, show_default=False,
    ),
]  # fmt: skip
ShardRoot = Annotated[
    str | None,
    typer.Option(
        "--shard-root", help="Where prepared shards go: a folder that every host sees, or s3://… or gs://….",
        rich_help_panel=DATA, show_default=".shards in the run root",
    ),
]  # fmt: skip
On = Annotated[
    Literal["ray", "local"] | None,
    typer.Option(
        "--on", help="Host actors of Ray, or this process without Ray.", rich_help_panel=MACHINE,
        show_default="ray; resume: as before",
    ),
]  # fmt: skip
Hosts = Annotated[
    str | None,
    typer.Option(
        "--hosts", metavar="NUMBER", help="Host actors: 4, auto, or fewest and most: 2..16.", rich_help_panel=MACHINE,
        show_default="2; resume: as before",
    ),
]  # fmt: skip
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="A running Ray (auto or HOST:PORT). Without it one is started.",
        rich_help_panel=MACHINE, show_default=False,
    ),
]  # fmt: skip
GpusPerHost = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-host", help="GPUs of each host, also a fraction.", rich_help_panel=MACHINE,
        show_default="0; resume: as before",
    ),
]  # fmt: skip
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option(
        "--device", help="What hosts compute on; auto: a GPU where they have one.",
        rich_help_panel=MACHINE, show_default="auto; resume: as before",
    ),
]  # fmt: skip
Numerics = Annotated[
    Literal["strict", "mark"] | None,
    typer.Option(
        "--numerics", help="Refuse hosts that compute other bits, or admit and mark them.",
        rich_help_panel=MACHINE, show_default="strict; resume: as before",
    ),
]  # fmt: skip
Track = Annotated[
    str | None,
    typer.Option(
        "--track", metavar="KIND,…", help="Tell tensorboard, mlflow or wandb of every round, too.",
        rich_help_panel=OUTPUT, show_default=False,
    ),
]  # fmt: skip
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object a line and nothing else; with --quiet the last one only.",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option(
        "--log-level", help="From which level on log lines are shown, here and by hosts.", rich_help_panel=OUTPUT,
        envvar="RAYGRAD_LOG_LEVEL", show_default="warning; with --quiet error",
    ),
]  # fmt: skip
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the run's folder only.", rich_help_panel=OUTPUT)]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html.", rich_help_panel=OUTPUT)]
