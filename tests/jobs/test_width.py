"""The program behind what docs/methods.md says of width: crossings, step sizes, where speed-up stops; a small play."""

import sys
from collections.abc import Iterator
from math import inf, isinf, isnan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.results import width
from raygrad import run as engine
from raygrad.flat import initial_module
from raygrad.models import Custom
from raygrad.player import Round


def test_crossings_are_on_a_line_through_the_logarithms() -> None:
    falling = [2.0**-i for i in range(1, 6)]  # after 1, 2, ... evaluations
    assert width.crossing(falling, 0.25 / sqrt(2)) == pytest.approx(2.5)
    assert width.crossing(falling, 0.125 * (1 + 1e-12)) == pytest.approx(3)
    assert width.crossing([1.0, 0.5, 2.0, 0.1], 0.6) == pytest.approx(1 + np.log(1 / 0.6) / np.log(2))  # the first one
    assert width.crossing([0.3, 0.2], 0.4) == 1
    assert isinf(width.crossing([1.0, 0.4], 0.4))
    assert isinf(width.crossing([], 0.4))


@pytest.mark.parametrize("b", [5, 33, 129])
def test_half_the_speed_up_of_a_bound_b_is_at_b_less_one(b: int) -> None:
    """A speed-up of m B / (m + B - 1) has come to a share s of B at m = s (B - 1) / (1 - s)."""
    batches = [2**i for i in range(21)]
    updates = np.array([1000 * (m + b - 1) / (m * b) for m in batches])
    assert width.reaches(batches, updates, 0.5) == pytest.approx(b - 1, rel=1e-3)
    assert width.reaches(batches, updates, 8 / 9) == pytest.approx(8 * (b - 1), rel=2e-3)
    assert width.reaches(batches, 7 * updates, 0.5) == pytest.approx(width.reaches(batches, updates, 0.5))


def test_where_speed_up_stops_at_the_ends() -> None:
    batches = [4, 8, 16]
    assert width.reaches(batches, np.array([50.0, 50.0, 50.0]), 0.9) == 4
    assert width.reaches(batches, np.array([40.0, 20.0, 10.0]), 1.0) == pytest.approx(16)
    assert width.reaches(batches, np.array([40.0, 20.0, 10.0]), 0.5) == pytest.approx(8)
    assert width.reaches(batches, np.array([inf, 10.0, 30.0]), 0.9) == 8
    assert isnan(width.reaches(batches, np.full(3, inf), 0.9))


@pytest.mark.parametrize("best", [-5, -3, 2])
def test_the_best_step_size_is_found_from_anywhere(best: int) -> None:
    tried: list[int] = []

    def attempt(k: int, limit: float) -> np.ndarray:
        tried.append(k)
        mean = 10.0 + (k - best) ** 2
        return np.array([mean - 1, mean + 1]) if mean <= limit else np.full(2, inf)

    k, found = width.searched(attempt, -3)
    assert k == best and found.tolist() == [9, 11]
    assert {best - 1, best + 1} <= set(tried) and len(tried) == len(set(tried))


def test_no_step_size_gets_there() -> None:
    k, found = width.searched(lambda k, limit: np.full(2, inf), 1)
    assert k == 1 and np.isinf(found).all()


def test_he_weights() -> None:
    model = Custom("jobs.results.width:he", {"hidden": [400]})
    first, again, other = (initial_module(model, (1, 20, 20), 10, seed) for seed in (1, 1, 2))
    layers = [m for m in first.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        assert float(layer.weight.detach().std()) == pytest.approx(sqrt(2 / layer.in_features), rel=0.05)
        assert not layer.bias.any()
    a, b, c = (nn.utils.parameters_to_vector(m.parameters()) for m in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_networks_have_nearly_as_many_parameters() -> None:
    for pair in width.PAIRS.values():
        assert [n.parameters for n in pair] == [4810, 4768]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks, two batches, two seeds and a loss that is soon reached."""
    pair = (width.Network("wide", (12,), True, 2), width.Network("deep", (8, 8), True, 2))
    changed = {"SEEDS": range(2), "BATCHES": (16, 64), "TARGET": 2.0, "MOST": 30, "MEASURED": 64, "FIRST": -4}
    for name, value in {**changed, "PAIRS": {"He's initial weights": pair}}.items():
        monkeypatch.setattr(width, name, value)


def test_a_play_fills_its_part_and_is_read_again(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "methods.md"
    document.write_text("<!-- width: made by jobs/results/width.py -->\n<!-- /width -->\n")
    monkeypatch.setattr(sys, "argv", ["width.py", str(tmp_path / "runs"), "--write", str(document)])
    assert width.main() == 0
    text, drawn = document.read_text(), tmp_path / "results" / "methods" / "width.svg"
    picture = drawn.read_bytes()
    (smallest,) = [line for line in text.splitlines() if line.startswith("| updates with batches of 16")]
    assert "| batch with 90 % of it |" in text
    assert "inf" not in text and "nan" not in text

    def refused(*_: object) -> Iterator[Round]:
        raise AssertionError("what was played is read")

    monkeypatch.setattr(engine, "play", refused)
    assert width.main() == 0
    assert (document.read_text(), drawn.read_bytes()) == (text, picture)
    wide = width.PAIRS["He's initial weights"][0]
    updates, _, power = smallest.split("|")[2].partition(", 2^")
    k = int(power)
    made = width.updates_with(tmp_path / "runs", wide, 16, 2.0**k)
    assert f"{made.mean():.0f}" == updates.strip()
    for neighbour in (k - 1, k + 1):  # both are slower
        again = width.updates_with(tmp_path / "runs", wide, 16, 2.0**neighbour, float(made.mean()))
        assert again.mean() > made.mean()


def test_a_document_without_the_marks_is_refused(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "x.md"
    document.write_text("no marks")
    monkeypatch.setattr(width, "measured", lambda *_: None)
    monkeypatch.setattr(width, "part", lambda *_: "text")
    monkeypatch.setattr(sys, "argv", ["width.py", str(tmp_path), "--write", str(document)])
    assert width.main() == 2
    assert "expected the marks <!-- width" in capsys.readouterr().err
