"""The program behind what docs/methods.md says of networks without a server: what it measures, and a small play."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.results import networks
from jobs.results.methods import Arm
from raygrad.experiment import Where
from raygrad.files.runs import load
from raygrad.plan import make_plan
from raygrad.reports.report import view
from raygrad.rng import Purpose, rng
from raygrad.runner import GangRunner

SMALL = (*networks.IID, "model=linear", "partition.clients=4", "sampler.cohort=4", "evaluation.every=2")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds, few rounds, a linear model; D-SGD and its alignment on a ring of four."""
    monkeypatch.setattr(networks, "SEEDS", range(2))
    monkeypatch.setattr(
        networks, "SHARPNESS",
        {(label, 8): Arm("dsgd", 4, (*SMALL, *settings))
         for label, settings in (("synchronous", networks.SYNCHRONOUS), ("ring", ()))},
    )  # fmt: skip
    monkeypatch.setattr(networks, "WORKERS", 4)
    probed = (*SMALL[:2], "model=linear", "partition.clients=4", "sampler.cohort=4", "probe.every=2")
    arms = {"D-SGD": Arm("dga", 6, (*networks.PLAIN, *probed)), "aligned, gossip": Arm("dga", 6, probed)}
    monkeypatch.setattr(networks, "ALIGNMENT", arms)
    monkeypatch.setattr(
        networks, "MEASURED",
        {"r(x)": (".1f", lambda v: networks.late(networks.probes(v, "r"), 0, 6)),
         "test accuracy, %": (".2f", lambda v: 100 * networks.tested(v))},
    )  # fmt: skip


def test_a_play_fills_its_parts(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "methods.md"
    names = ("alignment", "sharpness")
    page.write_text("".join(f"<!-- {n}: made by jobs/results/networks.py -->\n<!-- /{n} -->\n" for n in names))
    monkeypatch.setattr(sys, "argv", ["networks.py", str(tmp_path / "runs"), "--write", str(page)])
    assert networks.main() == 0
    text = page.read_text()
    assert (tmp_path / "results" / "methods" / "dga.svg").is_file() and "nan" not in text
    assert "| aligned, gossip | against D-SGD (95 %) |" in text and "| ring | 32 |" in text
    runs = sorted((tmp_path / "runs").glob("dsgd-*/*"))
    assert len(runs) == 4
    found = np.array([networks.sharpness(view(folder)) for folder in runs])
    assert (found > 0).all()  # a linear model's loss is convex: noise and curvature raise it
    lines = [line for line in text.splitlines() if line.startswith(("| synchronous |", "| ring |"))]
    losses = [float(line.split("|")[3].split("±")[0]) for line in lines]
    assert len(losses) == 2 and np.mean(losses) == pytest.approx(found[:, 0].mean(), abs=1e-4)
    monkeypatch.setattr(sys, "argv", ["networks.py", str(tmp_path / "runs"), "sharpest"])
    assert networks.main() == 2


def test_sharpness_is_that_of_the_hessian(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v = networks.played(tmp_path, networks.SHARPNESS["ring", 8], 0)
    run = load(str(v.path))
    plan = make_plan(run.experiment, Where(on="local"), v.path.parents[1] / ".shards")
    runner, x = GangRunner(plan.spec), run.checkpoint.tensors()["x"]
    parts = [plan.shards.read("train", i) for i in range(len(plan.population))]
    xs = plan.spec.transform(np.concatenate([a for a, _ in parts]), x.dtype, None)
    ys = torch.from_numpy(np.concatenate([b for _, b in parts]))

    def loss(at: torch.Tensor) -> torch.Tensor:
        return runner.loss(runner.model.call(at, xs), ys).mean()

    hessian = torch.autograd.functional.hessian(loss, x)
    assert isinstance(hessian, torch.Tensor)
    values = torch.linalg.eigvalsh(hessian.double())
    plain, increase, top = networks.sharpness(v)
    assert plain == pytest.approx(float(loss(x)), rel=1e-5)
    monkeypatch.setattr(networks, "POWER", 300)
    assert networks.sharpness(v)[2] == pytest.approx(float(values[-1]), rel=1e-3)
    assert 0.8 * float(values[-1]) < top <= float(values[-1]) * (1 + 1e-6)
    draws = rng(run.experiment.seed, Purpose.SYNTHETIC, 2).standard_normal((networks.DRAWS, len(x)))
    e = networks.SIGMA * torch.from_numpy(draws).to(x.dtype)
    second_order = (e @ torch.func.grad(loss)(x) + 0.5 * (e @ hessian * e).sum(1)).mean()
    assert increase == pytest.approx(float(second_order), rel=0.02)


def fake(**values: Any) -> Any:
    """A view of a run that has these columns."""
    return SimpleNamespace(**{n: np.array(v) for n, v in values.items()})


def test_late_and_budgeted_means() -> None:
    values = {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}
    assert networks.late(values, 10, 30) == 2.5
    v = fake(round=[10, 20, 30, 40], bytes_down=[0, 30e6, 60e6, 90e6], bytes_up=[0, 5e6, 10e6, 15e6])
    assert networks.budgeted(v, values) == 2.5  # 96 MB are enough for 30 rounds: those after the 15th


def test_r_where_a_level_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    r, losses = {10: 9.0, 20: 6.0, 30: 3.0, 40: 0.0}, {10: 2.0, 20: 0.8, 30: 0.5, 40: 0.4}
    monkeypatch.setattr(networks, "probes", lambda v, column: r)
    monkeypatch.setattr(networks, "validation", lambda v: losses)
    assert networks.at_level(fake()) == 3.0  # (0.8 + 0.5 + 0.4) / 3 is the first mean below 0.6
    losses[40] = 1.0
    with pytest.raises(networks.BadInput, match="never comes below"):
        networks.at_level(SimpleNamespace(path="x"))  # type: ignore[arg-type]
