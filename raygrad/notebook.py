"""Runs and rounds as notebooks draw them: a small table, and of a run its learning curves.

Read from the tables, which may be empty or grow meanwhile. Nothing here raises: what cannot be read is said instead.
"""

import uuid
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raygrad.player import Round
    from raygrad.reports.report import RunView

_VARIABLES = (
    ".raygrad{{{light}font-variant-numeric:tabular-nums}}"
    ".raygrad table{{border-collapse:collapse}}.raygrad :is(td,th){{text-align:left;padding:.1rem 1rem .1rem 0}}"
    ".raygrad th{{font-weight:400;opacity:.7}}.raygrad svg{{max-width:46rem;width:100%;height:auto}}"
    "@media(prefers-color-scheme:dark){{.raygrad{{{dark}}}}}"
    ":is([data-jp-theme-light=false],.vscode-dark) .raygrad{{{dark}}}"
    "[data-jp-theme-light=true] .raygrad{{{light}}}"
)


def _box(title: str, rows: Sequence[tuple[str, str]], more: str = "", style: str = "") -> str:
    body = "".join(f'<tr><th scope="row">{escape(n)}</th><td>{escape(v)}</td></tr>' for n, v in rows)
    table = f"<table><caption><b>{escape(title)}</b></caption><tbody>{body}</tbody></table>"
    return f'<div class="raygrad">{style}{table}{more}</div>'


def round_html(round: "Round") -> str:
    """A round as a small table."""
    from raygrad.logs import size
    from raygrad.progress import virtual

    rows = [("clients", f"{round.answered:,} of {len(round.clients):,} answered")]
    if round.train_loss is not None:
        rows.append(("training loss", f"{round.train_loss:.4g}"))
    for part, values in (("validation", round.validation), ("test", round.test)):
        rows += [(f"{part} {n}", f"{v:.4g}") for n, v in _known(values).items() if n != "examples"]
    if (a := round.alignment) is not None:
        rows += [("r(x)", f"{a.r:.3g}"), ("gradient diversity n·Δ", f"{a.diversity:.3g}")]
    rows += [(n, f"{v:.4g}") for n, v in _known(round.algorithm).items()]
    rows += [
        ("communications so far", f"{round.communications:,}"),
        ("bytes so far", f"{size(round.bytes_down)} down, {size(round.bytes_up)} up"),
        ("seconds", f"{round.wall_s:.3g}, {round.elapsed_s:.3g} so far"),
    ]
    if round.virtual_s:
        rows.append(("modelled clock", virtual(round.virtual_s)))
    return _box(f"{round.run} · round {round.index:,} of {round.of:,}", rows)


def _known(values: Mapping[str, float] | None) -> dict[str, float]:
    return {n: v for n, v in (values or {}).items() if isinstance(v, int | float)}


def run_html(folder: Path) -> str:
    """A run as a small table with its learning curves."""
    try:
        from raygrad.reports import pictures
        from raygrad.reports.report import summary_of, view

        v = view(folder)
        done = len(v.round)
        ended = f", {v.state.replace('_', ' ')}" if v.ended else ""
        state = "finished" if v.state == "finished" else f"{done:,} of {v.planned:,} rounds{ended}"
        rows = summary_of(v) if done else []
        light, dark = ("".join(f"{n}:{c};" for n, c in found.items()) for found in (pictures.LIGHT, pictures.DARK))
        style = f"<style>{_VARIABLES.format(light=light, dark=dark)}</style>"
        return _box(f"{v.title} · {state}", rows, _curves(v) if done else "", style)
    except Exception as e:  # of whatever kind: a notebook would show its traceback in place of the run
        return _box(f"{folder.parent.name}/{folder.name}", [("cannot be shown", " ".join(str(e).split()))])


def _curves(v: "RunView") -> str:
    from raygrad.reports import pictures
    from raygrad.reports.pictures import Curve, Panel

    x = v.communications.astype(np.float64)
    panels = []
    if np.isfinite(v.accuracy).any():
        panels.append(Panel(f"{v.part} accuracy", "communications", [Curve("", x, v.accuracy)]))
    loss, name = (v.loss, f"{v.part} loss") if np.isfinite(v.loss).any() else (v.train_loss, "training loss")
    if np.isfinite(loss).any():
        panels.append(Panel(name, "communications", [Curve("", x, loss)], log=True))
    if "r" in v.probes.named:
        at = v.probes.round > 0
        charged = np.interp(v.probes.round[at], v.round, x)
        panels.append(Panel("r(x)", "communications", [Curve("", charged, v.probes.values["r"][at])], log=True))
    if not panels:
        return ""
    told = ", ".join(p.title for p in panels)
    return pictures.inline(pictures.lines([panels]), f"rg{uuid.uuid4().hex[:8]}", f"{told} of {v.title}")
