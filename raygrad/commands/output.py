"""How commands print: text that fits a terminal there, and plain aligned text in a pipe."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from raygrad.errors import BadInput, RaygradError
from raygrad.files.remote import Url


def error(error: RaygradError) -> None:
    """One line on stderr, and the error's notes."""
    first, *notes = [str(error), *getattr(error, "__notes__", ())]
    print(f"raygrad: {' '.join(first.split())}", file=sys.stderr)
    for note in notes:
        print(f"  {note}", file=sys.stderr)


@contextmanager
def errors(as_json: bool = False) -> Iterator[None]:
    """Inside, errors are printed as soon as they come: what follows, as shutting Ray down, may take seconds.

    With `as_json` also as an object on stdout.
    """
    try:
        yield
    except (RaygradError, PermissionError) as found:
        e = found if isinstance(found, RaygradError) else not_permitted(found)
        error(e)
        if as_json:
            notes = list(getattr(e, "__notes__", ()))
            record("error", message=" ".join(str(e).split()), notes=notes, exit_code=e.exit_code)
        raise typer.Exit(e.exit_code) from found


def not_permitted(error: PermissionError) -> BadInput:
    """Which file it is that may not be read or written."""
    return BadInput(f"{error.filename}: {error.strerror}")


def record(event: str, **values: object) -> None:
    """A JSON object on a line of its own on stdout."""
    from raygrad.progress import JsonLines

    JsonLines(sys.stdout).event({"event": event, **values})


def line(text: str) -> None:
    """One line as it is, never wrapped or coloured."""
    print(text)


class Busy:
    """Told what is going on, it shows it below the `console`'s lines on a terminal, and nothing elsewhere."""

    def __init__(self, console: Console, status: Status | None) -> None:
        self.console, self._status = console, status

    def __call__(self, what: str) -> None:
        if self._status is not None:
            self._status.update(Text(f"{what} …", style="dim"))


@contextmanager
def busy() -> Iterator[Busy]:
    """Around something that takes its time and prints a line now and then."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield Busy(console, None)
        return
    with console.status("") as status:
        yield Busy(console, status)


def verdict(ok: bool, name: str, detail: str, console: Console) -> None:
    """A check and how it went."""
    mark = Text("ok    ", style="green") if ok else Text("FAILED", style="bold red")
    console.print(Text.assemble(mark, "  ", f"{name}  ", (detail, "dim")), soft_wrap=True)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Labels and values, one below the other."""
    rows = list(rows)
    width = max((len(label) for label, _ in rows), default=0)
    console = Console(highlight=False)
    if not console.is_terminal:
        for label, value in rows:
            line(f"{label:<{width}}  {value}")
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    for label, value in rows:
        grid.add_row(label, Text(value))
    console.print(grid)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a header."""
    rows = [list(row) for row in rows]
    console = Console(highlight=False)
    if not console.is_terminal:
        widths = [max(len(r[i]) for r in [list(header), *rows]) for i in range(len(header))]
        for row in [list(header), *rows]:
            line("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


def shown(path: Path | Url) -> str:
    """A path as short as it can be said from the current folder; inside of a Ray job, whose folder goes, the whole; an
    address as a shell takes it.
    """
    if isinstance(path, Url):
        return shlex.quote(str(path))
    resolved = path.resolve()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return str(resolved)
    here = Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(resolved)


def run_name(folder: Path | Url, run_root: str) -> str:
    """What to write for RUN in a shell: `name/id` under the default run root, else the path or the address."""
    if isinstance(folder, Url):
        return shown(folder)
    if run_root == "runs" and folder.resolve().parent.parent == Path(run_root).resolve():
        return shlex.quote(f"{folder.parent.name}/{folder.name}")
    return shlex.quote(shown(folder))
