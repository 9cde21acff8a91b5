"""The panels of curves that reports and the viewer share."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold
from raygrad.experiment import Where
from raygrad.reports import curves, page, pictures, report
from raygrad.reports.document import Picture
from raygrad.verify import problem


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[report.RunView]:
    root = tmp_path_factory.mktemp("runs")
    found = []
    for algorithm in (FedGA(), Scaffold()):
        for seed in (0, 1):
            experiment = replace(problem(algorithm), seed=seed)
            for round in engine.rounds(experiment, Where(on="local"), run_root=root, name="p"):
                last = round
            found.append(last.folder)  # pyright: ignore[reportPossiblyUnboundVariable]
    return report.views(found)


def test_every_axis_ends_at_what_was_spent(views: list[report.RunView]) -> None:
    groups = report.group(views[:1])
    v = views[0]
    assert curves.axes(groups) == ["round", "communications", "megabytes", "seconds"]
    ends = {
        "round": v.round[-1],
        "communications": v.communications[-1],
        "megabytes": (v.bytes_down[-1] + v.bytes_up[-1]) / 1e6,
        "seconds": v.seconds[-1],
    }
    for axis in curves.axes(groups):
        panels = curves.learning(groups, axis)
        training = next(c for p in panels for c in p.curves if c.label == "training")
        assert training.x[-1] == ends[axis]
        assert {p.x_label for p in panels} == {curves.AXES[axis]}


def test_a_group_is_the_mean_of_its_seeds(views: list[report.RunView]) -> None:
    groups = report.group(views)
    assert [len(g.runs) for g in groups] == [2, 2]
    panel = next(p for p in curves.learning(groups, "communications") if "loss" in p.title)
    for g, curve in zip(groups, panel.curves, strict=True):
        both = np.stack([v.loss[np.isfinite(v.loss)] for v in g.runs])
        np.testing.assert_array_equal(curve.y, both.mean(0))
        assert curve.low is not None and curve.high is not None
        np.testing.assert_array_equal(curve.low, both.min(0))
        np.testing.assert_array_equal(curve.high, both.max(0))


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_titles_stay_inside_the_picture(columns: int) -> None:
    x = np.arange(3.0)
    panel = pictures.Panel("gradient diversity n·Δ (n = 1,000)", "rounds", [pictures.Curve("all", x, x)])
    figure = pictures.lines([[panel] * columns])
    figure.draw_without_rendering()
    texts = [child for axes in figure.axes for child in axes.get_children() if isinstance(child, Text)]
    titles = [t.get_window_extent() for t in texts if t.get_text().startswith("gradient")]
    assert len(titles) == columns
    assert titles[-1].x1 <= figure.bbox.x1
    assert all(a.x1 < b.x0 for a, b in pairwise(titles))


def test_the_caption_says_what_every_panel_shows(views: list[report.RunView]) -> None:
    caption = next(
        p.caption for p in page.document(views[:1]).parts if isinstance(p, Picture) and p.name == "alignment"
    )
    assert "Λ = Σ q_i |g_i|² / |Σ q_i g_i|²" in caption
