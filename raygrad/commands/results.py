"""`raygrad report`, `raygrad digest` and `raygrad export`: what is made of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raygrad.commands import options, output
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from raygrad.sweeps.sweep import LoadedSweep


def report(
    runs: options.Runs,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The file, by its ending .html, .md, .png or .svg; or a folder.",
            show_default="report.html in the run; of several runs, or of one at an address, in this folder"
        ),
    ] = None,
    format: Annotated[
        Literal["html", "md", "png", "svg", "pdf"] | None,
        typer.Option("--format", help="What to write into a folder; png, svg, pdf: a file for each picture.",
                     show_default="by the ending of --out, else html"),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target", help="Count what it took to reach this accuracy.", show_default="what all runs reach"
        ),
    ] = None,
    run_root: options.RunRoot = "runs",
) -> None:  # fmt: skip
    """Tables and pictures of one run, of several side by side, or of a sweep.

    Several runs are grouped by the settings that differ, with mean and spread
    over seeds, and with the rounds, communications, bytes and seconds that each
    took to a target accuracy. A FedGA round is two communications.

    A .html file needs nothing else. A .md file has its pictures in a folder beside
    it. A .png or .svg file has all pictures below each other, with their captions;
    --format png, svg or pdf writes one file for each, and captions.md.

    \b
    Examples
      raygrad report digits                        the newest run called digits
      raygrad report digits scaffold fedavg        three runs side by side
      raygrad report runs/digits/* --target 0.95   all runs of a name
      raygrad report sweep/ID                      a sweep: maps, best settings
      raygrad report digits --out digits.md        for a repository or a wiki
      raygrad report digits --format pdf --out figures    for a paper
    """
    from rich.console import Console

    from raygrad.files.remote import Url, location
    from raygrad.files.runs import find_run
    from raygrad.progress import display
    from raygrad.reports import page, publish
    from raygrad.reports import report as reports

    if len(runs) == 1 and (sweep := _sweep(runs[0], run_root)) is not None:
        if target is not None:
            raise BadInput("--target is for runs; the trials of a sweep are compared at equal communications")
        report_sweep(sweep, out, format)
        return
    folders = [find_run(r, run_root) for r in runs]
    folders = list({f.resolve(): f for f in folders}.values())
    if target is not None and not 0 < target <= 1:
        raise BadInput(f"--target is {target:g}; an accuracy is above 0 and at most 1")
    here = len(folders) > 1 or any(isinstance(location(place), Url) for place in (runs[0], run_root))
    out = out or _place(Path() if here else folders[0], format)
    publish.destination(out, format)
    with display(console=Console(stderr=True)):
        views = reports.views(folders)
    if len(views) == 1:
        output.pairs(reports.summary_of(views[0]))
    else:
        groups = reports.group(views)
        output.table(*reports.comparison_of(groups, reports.chosen_target(groups, target)[0]))
    with display(console=Console(stderr=True)):
        written = publish.write(page.document(views, target), out, format)
    output.line(f"\nreport  {output.shown(written)}")


def _place(folder: Path, format: str | None) -> Path:
    """Where a report goes without --out: the page to `folder`, pictures to a folder of their own there."""
    return folder / (f"report.{format or 'html'}" if format in (None, "html", "md") else "report-pictures")


def _sweep(reference: str, run_root: str) -> "LoadedSweep | None":
    """The sweep that the reference names, None if it names none."""
    from raygrad.files.mirror import fetch
    from raygrad.files.remote import Url, location
    from raygrad.files.runs import find
    from raygrad.sweeps.sweep import is_sweep, load

    if isinstance(location(run_root), Url) or isinstance(location(reference), Url):
        found = find(reference, location(run_root))
        at_sweep = is_sweep(fetch(found, tensors=False) if isinstance(found, Url) else found)
        return load(reference, run_root) if at_sweep else None
    root = Path(run_root)
    folders = [Path(reference), root / reference, *sorted((root / reference).glob("*"))]
    if not any((folder / "sweep.json").is_file() for folder in folders):
        return None
    return load(reference, run_root)


def report_sweep(
    sweep: "LoadedSweep", out: Path | None = None, format: Literal["html", "md", "png", "svg", "pdf"] | None = None
) -> None:
    """Print the best settings of a sweep and write its report."""
    from rich.console import Console

    from raygrad.progress import display
    from raygrad.reports import publish, sweep_report

    out = out or _place(sweep.folder if sweep.url is None else Path(), format)
    publish.destination(out, format)
    header, rows = sweep_report.table(sweep)
    if rows:
        output.table(header, rows)
    with display(console=Console(stderr=True)):
        page = sweep_report.write(sweep, out, format)
    output.line(f"\nreport  {output.shown(page)}")


def digest(run: options.Run, run_root: options.RunRoot = "runs") -> None:
    """One line: the sha256 of the model and of the tables that equal runs share.

    Equal runs have equal digests: on any number of hosts, in one process, and
    however often they were resumed.

    \b
    Examples
      raygrad digest digits
      test "$(raygrad digest a)" = "$(raygrad digest b)" && echo same bits
    """
    from raygrad.files.runs import load

    output.line(load(run, run_root).digest())


def export(
    run: options.Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    run_root: options.RunRoot = "runs",
) -> None:
    """Write the trained model's state dict as a .safetensors file.

    It is what the newest checkpoint holds. `raygrad run --init FILE` starts from
    it; `raygrad.load(RUN).module()` gives the same model in Python.

    \b
    Examples
      raygrad export digits model.safetensors
      raygrad run --init model.safetensors --alpha 0.01
    """
    from safetensors.torch import save

    from raygrad.files import storage
    from raygrad.files.runs import load

    if file.exists() and not force:
        raise BadInput(f"{file} is there already; --force writes over it")
    loaded = load(run, run_root)
    # Copies: parameters that share memory cannot be written one by one.
    tensors = {name: t.detach().clone().contiguous() for name, t in loaded.module().state_dict().items()}
    record = {
        "format": "pt",
        "raygrad_run": f"{loaded.name}/{loaded.folder.name}",
        "round": str(loaded.checkpoint.round),
    }
    try:
        storage.write_atomic(file, save(tensors, record))
    except OSError as e:
        raise BadInput(f"{file} cannot be written: {e.strerror}") from e
    numbers = sum(t.numel() for t in tensors.values())
    output.line(f"{file}: {len(tensors)} tensors, {numbers:,} numbers, after round {loaded.checkpoint.round}")
