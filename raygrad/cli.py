"""The entry of the command line: the list of commands, and one way for errors to become a line and an exit code.

Nothing slow is imported here: torch and Ray come with the command that needs them, so --help is quick.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, NoReturn, TextIO

import typer

from raygrad import logs
from raygrad.commands import benchmark, check, doctor, jobs, output, results, show, sweeps, traces, train, view
from raygrad.errors import EXIT_CODES, RaygradError, RaygradWarning

_ABOUT = """Distributed and federated learning on Ray, built around gradient alignment.

\b
Start here
  raygrad run                 train FedGA on handwritten digits, with Ray
  raygrad resume digits       go on where it stopped
  raygrad report digits       tables and pictures
  raygrad view                look at runs in the browser, live
  raygrad sweep digits --alpha 0.05,0.1,0.2    search settings with Ray Tune
  raygrad list algorithms     what there is, with every field for --set
  raygrad COMMAND --help      more, with examples
"""
_CODES = "\b\nExit codes\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="raygrad", help=_ABOUT, epilog=_CODES, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)  # fmt: skip
app.command("run", rich_help_panel="Train")(train.run)
app.command("resume", rich_help_panel="Train")(train.resume)
app.command("fork", rich_help_panel="Train")(train.fork)
app.command("sweep", rich_help_panel="Train")(sweeps.sweep)
app.add_typer(jobs.app, name="job", rich_help_panel="On a cluster")
app.command("doctor", rich_help_panel="On a cluster")(doctor.doctor)
app.command("report", rich_help_panel="Results")(results.report)
app.command("view", rich_help_panel="Results")(view.view)
app.command("export", rich_help_panel="Results")(results.export)
app.command("digest", rich_help_panel="Results")(results.digest)
app.command("list", rich_help_panel="Before you train")(show.list_)
app.command("partition", rich_help_panel="Before you train")(show.partition)
app.command("verify", rich_help_panel="Before you train")(check.verify)
app.add_typer(benchmark.app, name="benchmark", rich_help_panel="Before you train")
app.add_typer(traces.app, name="trace", rich_help_panel="Before you train")
app.command("cite", rich_help_panel="Results")(show.cite)


def _version(asked: bool) -> None:
    if asked:
        print(f"raygrad {metadata.version('raygrad')}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default this process's) and return its exit code, one of `raygrad.errors.EXIT_CODES`.

    What the user can put right becomes one line on stderr; what is wrong in raygrad raises.
    """
    warnings.showwarning = _warn
    try:
        with logs.listening(logs.OnStderr(), "warning"):
            code = app(None if arguments is None else list(arguments), prog_name="raygrad", standalone_mode=False)
    except RaygradError as e:
        output.error(e)
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("raygrad: interrupted", file=sys.stderr)
        return 130
    except PermissionError as e:
        output.error(output.not_permitted(e))
        return 2
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        return _usage(e)
    return code if isinstance(code, int) else 0


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """raygrad's own warnings as one line; others as Python shows them."""
    if issubclass(category, RaygradWarning):
        print(f"raygrad: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _usage(error: Exception) -> int:
    """What the parser of the command line found wrong."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "raygrad")
    text = " ".join(str(error.format_message()).split())  # pyright: ignore[reportAttributeAccessIssue]
    text = text.replace("Value error, ", "")
    if text:
        print(f"raygrad: {text.rstrip('.')}; `{command} --help` shows how", file=sys.stderr)
    return 2


def main() -> NoReturn:
    """The `raygrad` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
