"""Panels of reports and arrays as what a page draws: plain JSON, thinned to what a screen can show."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raygrad.reports.pictures import Axis, Curve, Map, Panel, Scatter, bins, thin

MAX_POINTS = 1000
"""A curve is sent with at most so many points."""
_DIGITS = 6

Json = dict[str, Any]


def numbers(values: np.ndarray) -> list[float | int | None]:
    """An array [n] with six significant digits; null for what is not finite."""
    if values.dtype.kind in "iub":
        return values.tolist()
    return [float(f"{x:.{_DIGITS}g}") if ok else None for x, ok in zip(values, np.isfinite(values), strict=True)]


def panel(p: Panel) -> Json:
    """Axes with curves."""
    positive = all(bool((c.y[np.isfinite(c.y)] > 0).all()) for c in p.curves)
    return {
        "kind": "lines", "title": p.title, "x": p.x_label, "log": p.log and positive, "log_x": p.log_x,
        "line": p.line, "curves": [curve(c) for c in p.curves],
    }  # fmt: skip


def curve(c: Curve) -> Json:
    """One line with its band."""
    kept = thin(c.y, MAX_POINTS)
    band = c.low is not None and c.high is not None
    return {
        "label": c.label, "look": c.series, "x": numbers(c.x[kept]), "y": numbers(c.y[kept]),
        "low": numbers(c.low[kept]) if band and c.low is not None else None,
        "high": numbers(c.high[kept]) if band and c.high is not None else None,
    }  # fmt: skip


def scatter(s: Scatter, y: str) -> Json:
    """Points with the line that joins the best."""
    return {
        "kind": "scatter", "title": s.title, "x": s.title, "y": y, "log_x": s.log_x,
        "groups": [
            {
                "label": label, "look": s.series.get(label), "x": numbers(gx), "y": numbers(gy),
                "best_x": numbers(best[0]), "best_y": numbers(best[1]),
            }
            for label, gx, gy, best in s.groups
        ],
    }  # fmt: skip


def value_map(m: Map, x: str, y: str, value: str) -> Json:
    """Values at points of two settings."""
    return {
        "kind": "map", "title": m.title, "x": x, "y": y, "value": value, "log_x": m.log_x,
        "points": [numbers(a) for a in (m.x, m.y, m.value)],
    }  # fmt: skip


def parallel(axes: Sequence[Axis], value: np.ndarray, label: str) -> Json:
    """Parallel coordinates: each axis has positions in 0 .. 1 and its marks."""
    return {
        "kind": "parallel", "label": label, "value": numbers(value),
        "axes": [
            {"name": a.name, "position": numbers(a.position), "ticks": [[float(p), text] for p, text in a.ticks]}
            for a in axes
        ],
    }  # fmt: skip


def counts(
    rows: np.ndarray, columns: np.ndarray, kind: np.ndarray, kinds: Sequence[str], shape: tuple[int, int],
    limit: tuple[int, int],
) -> Json:  # fmt: skip
    """How often each of the `kinds` came in each cell: `rows`, `columns` and `kind` [n] from 0, cells that share where
    there are more of them than `limit`.
    """
    down, across = bins(shape[0], limit[0]), bins(shape[1], limit[1])
    height, width = len(down) - 1, len(across) - 1
    cell = (np.searchsorted(down, rows, "right") - 1) * width + np.searchsorted(across, columns, "right") - 1
    found = []
    for k, name in enumerate(kinds):
        often = np.bincount(cell[kind == k], minlength=height * width)
        at = np.flatnonzero(often)
        found.append({"name": name, "cells": at.tolist(), "counts": often[at].tolist()})
    return {"kind": "counts", "rows": down.tolist(), "columns": across.tolist(), "kinds": found}
