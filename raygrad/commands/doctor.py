"""`raygrad doctor`: is this cluster fit for a run?"""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from raygrad.commands import options, output

if TYPE_CHECKING:
    from raygrad.onray.doctor import Examined, Node


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="A running Ray (auto or HOST:PORT).", rich_help_panel=options.MACHINE,
            show_default="RAY_ADDRESS, or this machine alone",
        ),
    ] = None,
    run_root: Annotated[
        str | None,
        typer.Option("--run-root", help="Try this folder or URL: all nodes read and write it.", show_default=False),
    ] = None,
    shard_root: Annotated[
        str | None, typer.Option("--shard-root", help="Try this one, too: all nodes read it.", show_default=False)
    ] = None,
) -> None:  # fmt: skip
    """Look at every node of a cluster, or at this machine, and say what to mend.

    Versions on each node against this machine's, what it computes with (the same
    digest: the same bits), CPUs, GPUs, /dev/shm, storage, tokens, free resources.
    Exit 0 if a run can go there, 2 if something must be mended first. Without
    an address Ray need not run.

    \b
    Examples
      raygrad doctor
      raygrad doctor --address auto --run-root /shared/runs
      raygrad doctor --address 10.0.0.7:6379 --run-root s3://bucket/runs
    """
    from raygrad.onray import tokens

    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        tokens.use_by_default()
    from raygrad.onray.doctor import examine, findings

    found = examine(address, run_root, shard_root)
    header = ("node", "raygrad", "ray", "torch", "python", "numerics", "CPUs", "GPUs", "memory", "/dev/shm", "storage")
    output.table(header, [_row(n, found) for n in found.nodes])
    output.line("")
    output.pairs(_facts(found))
    judged = findings(found)
    for note in judged.notes:
        output.line(f"note    {note}")
    for problem in judged.problems:
        output.line(f"mend    {problem}")
    if judged.problems:
        raise typer.Exit(2)
    output.line("nothing to mend")


def _row(n: "Node", found: "Examined") -> list[str]:
    from raygrad.onray.doctor import gigabytes, shown

    facts = n.facts
    resources = [f"{n.cpus:g}", f"{n.gpus:g}", gigabytes(n.memory_bytes)]
    if facts is None:
        return [shown(n), *["?"] * 5, *resources, "?", "?"]
    digest = facts["cpu_digest"][:8] + (f" {facts['gpu_digest'][:8]}" if facts["gpu_digest"] else "")
    bad = any(facts["storage"].values())
    storage = "bad" if bad else "ok" if facts["storage"] else "bad" if found.errors else "not tried"
    versions = [facts[p] or "none" for p in ("raygrad", "ray", "torch", "python")]
    return [shown(n), *versions, digest or "none", *resources, gigabytes(facts["shm_bytes"]), storage]


def _facts(found: "Examined") -> list[tuple[str, str]]:
    facts = found.nodes[0].facts
    rows = []
    if found.address is not None:
        free = ", ".join(f"{found.free.get(kind, 0.0):g} {kind}s" for kind in ("CPU", "GPU"))
        rows.append(("free", free))
        rows.append(("tokens", "asked for" if facts and facts["auth"].lower() == "token" else "not asked for"))
    if facts:
        rows.append(("computes with", ", ".join(x for x in (facts["cpu"], facts["gpu"]) if x)))
    return rows
