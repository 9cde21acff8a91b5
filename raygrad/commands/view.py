"""`raygrad view`: the run viewer in the browser."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from raygrad.commands import options, output
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from raygrad.files.remote import Url
    from raygrad.viewer.catalog import Catalog


def view(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN…]", show_default="the list of all", autocompletion=options.run_names,
            help="What the first page shows: a run, several to compare, or a sweep.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at. Any but loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes one that is free.")] = 8642,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="RAYGRAD_VIEW_TOKEN", help="Ask for this token.", show_default="a new one, "
                     "unless on loopback"),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the browser.")] = False,
    run_root: options.RunRoot = "runs",
) -> None:  # fmt: skip
    """Look at runs and sweeps in the browser: live curves, clients, hosts, comparisons.

    Serves pages at 127.0.0.1 until Ctrl-C, reads only, and needs no network. On
    another machine, tunnel: ssh -L 8642:127.0.0.1:8642 MACHINE

    \b
    Examples
      raygrad view                           all runs in ./runs
      raygrad view digits                    the newest run called digits
      raygrad view digits fedavg scaffold    side by side
      raygrad view --run-root s3://bucket/runs
    """
    from raygrad.viewer import server
    from raygrad.viewer.catalog import Catalog

    root = _root(runs or [], run_root)
    if token is None and not server.is_loopback(host):
        token = server.new_token()
    if token is not None and len(token) < 8:
        raise BadInput("--token needs at least 8 characters, or it could be guessed")
    catalog = Catalog(root)
    try:
        first = _first(catalog, runs or [])

        def ready(address: str) -> None:
            base, _, query = address.partition("?")
            page = base + first.removeprefix("/")
            page += f"{'&' if '?' in page else '?'}{query}" if query else ""
            output.line(f"raygrad view  {page}\nshows {root}, reads only; Ctrl-C ends it")
            if open_browser:
                import webbrowser

                webbrowser.open(page)

        server.serve(catalog, host, port, token, ready)
    finally:
        catalog.close()


def _root(references: list[str], run_root: str) -> "Path | Url":
    """The run root; of runs that are named by a path outside of it, the one they are in. Raises BadInput."""
    from raygrad.files.remote import Url, location

    root = location(run_root)
    places = {place.parent.parent for r in references if (place := _outside(r)) is not None}
    if isinstance(root, Url):
        return root
    if len(places) == 1:
        root = places.pop()
    elif places:
        raise BadInput(f"the runs are in {len(places)} run roots; a viewer shows one: name it with --run-root")
    if not root.is_dir():
        raise BadInput(f"there is no run root {root}; `raygrad run` makes one, --run-root names another")
    if not os.access(root, os.R_OK | os.X_OK):
        raise BadInput(f"the run root {root} cannot be read by the user who starts the viewer")
    return root


def _outside(reference: str) -> Path | None:
    """The folder of a run or sweep that is named by a path. Raises BadInput."""
    folder = Path(reference)
    try:
        found = (folder / "experiment.json").is_file() or (folder / "sweep.json").is_file()
    except OSError as e:
        raise BadInput(f"{reference[:80]} cannot be read: {e.strerror}") from e
    return folder.resolve() if found else None


def _first(catalog: "Catalog", references: list[str]) -> str:
    """The page to begin with. Raises BadInput."""
    found = [_page(catalog, reference) for reference in references]
    if not found:
        return "/"
    if len(found) == 1:
        return quote(found[0])
    if any(not page.startswith("/run/") for page in found):
        raise BadInput("a sweep has a page of its own; name one sweep, or runs")
    return f"/compare?runs={quote(','.join(page.removeprefix('/run/') for page in found), safe=',/')}"


def _page(catalog: "Catalog", reference: str) -> str:
    from raygrad.files.runs import find_run
    from raygrad.sweeps import sweep

    outside = _outside(reference)
    folder = outside or _sweep(catalog, reference) or find_run(reference, catalog.root)
    return f"/{'sweep' if sweep.is_sweep(folder) else 'run'}/{catalog.at(folder)}"


def _sweep(catalog: "Catalog", reference: str) -> Path | None:
    """The sweep that is meant, where its name is no run's."""
    from raygrad.sweeps import sweep

    named = catalog.local / reference
    if (named / "experiment.json").is_file() or any(named.glob("*/experiment.json")):
        return None
    try:
        return sweep.find_sweep(reference, catalog.root)[0]
    except BadInput:
        return None
