"""`raygrad benchmark`: how fast is it here?"""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raygrad.commands import options, output
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from raygrad.benchmark import Candidates, Sample

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def benchmark() -> None:
    """How fast a recipe is on this machine, and how it gets faster.

    \b
    Examples
      raygrad benchmark gang digits
      raygrad benchmark gang --help
    """


@app.command("gang")
def gang(
    recipe: options.Recipe = "digits",
    settings: options.Settings = None,
    seed: options.Seed = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed rounds of every gang, by turns.")] = 5,
    hosts: Annotated[
        int, typer.Option("--hosts", help="Hosts that share the gangs.", rich_help_panel=options.MACHINE)
    ] = 2,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option("--device", help="What to compute on; auto: a GPU if there is one.",
                     rich_help_panel=options.MACHINE),
    ] = "auto",
    data_root: options.DataRoot = None,
    shard_root: options.ShardRoot = None,
    run_root: options.RunRoot = "runs",
) -> None:  # fmt: skip
    """The best gang for a recipe's model on this machine, and the line to write.

    Clients train in gangs: one after another (loop) or as one computation (vmap),
    few or many at once. A fixed rule chooses, never a measurement, because the
    choice changes the last bits of a result. This measures one process without
    Ray, by turns, from the initial model. The column for several hosts counts
    hosts that wait for the last gang, but no messages.

    \b
    Examples
      raygrad benchmark gang digits
      raygrad benchmark gang digits --set sampler.cohort=5 --hosts 1
      raygrad benchmark gang cifar10-iid --data-root DIR --repeats 2
      raygrad run digits --set gangs.mode=loop --set gangs.size=2
    """
    from raygrad import benchmark as search
    from raygrad.commands import experiments
    from raygrad.run import check_where
    from raygrad.run import shard_root as shards_of

    if repeats < 1 or hosts < 1:
        raise BadInput(f"--repeats is {repeats} and --hosts {hosts}; both must be >= 1")
    chosen = experiments.choose(recipe, settings or (), {"seed": seed})
    where = experiments.place({"on": "local", "device": device, "data_root": data_root, "shard_root": shard_root})
    experiments.check_reachable(where, run_root)
    check_where(where)
    found = search.candidates(chosen.experiment, where, shards_of(where, experiments.root(run_root) / "name" / "id"))
    measured = []
    progress = _Progress(len(found.choices) * repeats)
    for sample in search.samples(found, hosts, repeats):
        measured.append(sample)
        progress.show(sample)
    progress.end()
    _print(found, measured, hosts)


class _Progress:
    """How far it is, on stderr, at most every two seconds."""

    def __init__(self, count: int) -> None:
        self._count, self._done, self._next_s = count, 0, time.monotonic() + 2.0
        self._live = sys.stderr.isatty()

    def show(self, sample: "Sample") -> None:
        self._done += 1
        if (now := time.monotonic()) < self._next_s:
            return
        self._next_s = now + 2.0
        text = f"round {self._done} of {self._count}: {sample.choice.mode} {sample.choice.size}"
        print(f"\r{text:<40}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print(f"\r{'':<40}\r", end="", file=sys.stderr, flush=True)


def _print(found: "Candidates", measured: list["Sample"], hosts: int) -> None:
    from raygrad.benchmark import timings

    rows = timings(measured)
    best = max(rows, key=lambda t: t.on_hosts)
    rule = next((t for t in rows if t.choice.by_rule), None)
    of_hosts = f"clients/s on {hosts} host{'s' if hosts > 1 else ''}"
    table = []
    for t in rows:
        marks = [word for word, row in (("best", best), ("the rule's", rule)) if row is t]
        spread = f"{t.lowest:,.0f} to {t.highest:,.0f}"
        cells = [t.choice.mode, str(t.choice.size), str(t.choice.gangs), f"{t.clients_per_s:,.0f}", spread]
        table.append([*cells, f"{t.on_hosts:,.0f}", ", ".join(marks)])
    output.table(["mode", "size", "gangs", "clients/s", "spread", of_hosts, ""], table)
    output.line("")
    for note in found.notes:
        output.line(note)
    if rule is not None and rule is not best:
        output.line(
            f"the rule's {rule.choice.mode} {rule.choice.size} reaches {rule.on_hosts / best.on_hosts:.0%} of the best"
        )
    output.line(f"best here: {best.choice.settings}")
