"""What a sweep tells, from trials that are written down here."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_rel

from jobs.results import tables
from raygrad.algorithms.fedavg import FedAvg
from raygrad.experiment import Where
from raygrad.reports import sweep_report
from raygrad.run import create, play
from raygrad.sweeps.sweep import LoadedSweep, Sweep
from raygrad.sweeps.trials import COLUMNS
from raygrad.verify import problem

SPACE = {"algorithm": "fedga,fedavg", "alpha": "loguniform(0.01,0.5)", "beta": "uniform(0,0.4)", "K": "1,5"}
FRESH = {"fedga": (0.91, 0.93, 0.95), "fedavg": (0.90, 0.91, 0.92)}


def row(**values: Any) -> dict[str, Any]:
    return dict.fromkeys((*COLUMNS, "algorithm", "algorithm.lr", "algorithm.beta", "local.steps")) | {
        "role": "search", "seed": 0, "outcome": "finished", "rounds": 4, "communications": 8, "virtual_s": 0.0,
        "wall_s": 1.0,
    } | values  # fmt: skip


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedSweep:
    """Twelve trials of two algorithms, one of them diverged; the run of the first is there."""
    e = replace(problem(FedAvg(), 4), rounds=4)
    made = create(e, Where(on="local"), run_root=tmp_path, name="trials", id="0000-0")
    for _ in play(made):
        pass
    rows = []
    for i in range(12):
        name = ("fedga", "fedavg")[i % 2]
        settings = {"algorithm": name, "algorithm.lr": 0.01 * 1.4**i, "local.steps": (1, 5)[i // 2 % 2]}
        beta = {"algorithm.beta": 0.03 * i} if name == "fedga" else {}
        rows.append(row(trial=i, sample=i, validation=0.5 + 0.03 * i, **settings, **beta))
    rows[4] |= {"outcome": "diverged", "validation": None}
    rows[0]["run"] = "trials/0000-0"
    for trial, name in ((10, "fedga"), (11, "fedavg")):
        for seed, value in enumerate(FRESH[name], start=1):
            rows.append({**rows[trial], "role": "winner", "seed": seed, "validation": value, "test": value + 0.01})
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"metric": "accuracy", "mode": "max"})
    pq.write_table(table, tmp_path / "trials.parquet")
    sweep = Sweep(e, SPACE, samples=12)
    return LoadedSweep(tmp_path, "made", sweep, Where(on="local"), ("digits",))


def test_the_best_of_each_algorithm_is_compared_pair_by_pair(loaded: LoadedSweep) -> None:
    heads = sweep_report.best(loaded)
    assert [(h.algorithm, h.trial) for h in heads] == [("fedavg", 11), ("fedga", 10)]
    assert heads[0].against is None and heads[1].validation == FRESH["fedga"]
    assert heads[1].against is not None
    mean, low, high, p, pairs = heads[1].against
    expected = ttest_rel(FRESH["fedga"], FRESH["fedavg"])
    assert (mean, pairs) == (pytest.approx(0.02), 3) and p == pytest.approx(expected.pvalue)
    t95 = 4.302652729749464  # Student's t, two degrees of freedom
    half = t95 * np.std(np.subtract(FRESH["fedga"], FRESH["fedavg"]), ddof=1) / np.sqrt(3)
    assert (low, high) == (pytest.approx(0.02 - half), pytest.approx(0.02 + half))
    assert "--alpha 0.28925" in heads[1].command and "--seed 1" in heads[1].command


def test_equal_and_single_pairs() -> None:
    ours, theirs = {1: {"test": 0.5}, 2: {"test": 0.5}}, {1: {"test": 0.5}, 2: {"test": 0.5}}
    assert sweep_report.paired(ours, theirs) == (0.0, 0.0, 0.0, 1.0, 2)
    assert sweep_report.paired({1: {"test": 0.5}}, theirs) is None
    assert sweep_report.paired({1: {"test": 0.5}, 2: {"test": None}}, theirs) is None


def test_the_page_has_every_picture_and_the_same_bytes(loaded: LoadedSweep) -> None:
    page = sweep_report.write(loaded).read_text()
    for name in ("maps", "sensitivity", "learning", "parallel"):
        assert f'<figure id="{name}">' in page
    assert page.count("K 1") and "fedga, K 5" in page
    assert "11 finished, 1 diverged" in page
    assert "+0.0200 [" in page and "3 pairs" in page
    assert "raygrad run digits" in page and "http" not in page.replace("http://www.w3.org", "")
    assert sweep_report.write(loaded, loaded.folder / "again.html").read_text() == page


def test_the_line_joins_the_best_of_each_stretch() -> None:
    x, y = np.array([1.0, 1.0, 5.0, 5.0, 10.0]), np.array([0.2, 0.4, 0.9, 0.1, 0.3])
    at, best = sweep_report._envelope(x, y, False, True)
    assert at.tolist() == [1, 5, 10] and best.tolist() == [0.4, 0.9, 0.3]
    at, best = sweep_report._envelope(x, y, False, False)
    assert best.tolist() == [0.2, 0.1, 0.3]
    x = np.geomspace(0.01, 1, 40)
    at, best = sweep_report._envelope(x, np.sin(40 * x), True, True)
    assert len(at) == sweep_report.STRETCHES and (np.diff(at) > 0).all()


def test_a_sweep_without_a_finished_trial_has_a_page(loaded: LoadedSweep) -> None:
    table = pq.read_table(loaded.folder / "trials.parquet").slice(4, 1)
    pq.write_table(table, loaded.folder / "trials.parquet")
    page = sweep_report.write(loaded).read_text()
    assert "No trial has finished" in page and "1 diverged" in page


def test_the_sweep_of_the_results_page_is_told(
    loaded: LoadedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tables.sweep_block(tmp_path, None) == "The sweep has not been run yet."
    made = replace(loaded, recipe=("digits", "--data-root", "/somewhere/else"))
    monkeypatch.setattr(tables.sweep, "newest", lambda name, root: made)
    text = tables.sweep_block(tmp_path, tmp_path / "pages")
    assert text.startswith("12 trials (1 diverged, 11 finished)")
    assert re.search(r"\| fedavg \|.*\n\| fedga \|", text)
    page = (tmp_path / "pages" / "cifar10-sweep.html").read_text()
    for told in (text, page):
        assert "raygrad run digits --data-root DIR" in told and "/somewhere" not in told
