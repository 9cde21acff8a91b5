"""The programs behind docs/results.md: the plain loop agrees with raygrad, runs take turns, tables are filled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import raygrad
from jobs.results import plain, study, tables, train
from raygrad import cli
from raygrad.algorithms import ALGORITHMS
from raygrad.config import assign_all
from raygrad.contract import Algorithm
from raygrad.data.datasets import Dataset, Digits, ImageFolder
from raygrad.data.partition import IID, Partitioner
from raygrad.data.transform import Transform
from raygrad.errors import BadInput
from raygrad.experiment import Evaluation, Experiment, Probe, Where
from raygrad.files.runs import LoadedRun
from raygrad.local import Local
from raygrad.models import CIFARCNN, DigitsCNN, Model
from raygrad.recipes import RECIPES
from raygrad.regularizers import L2
from raygrad.reports import report
from raygrad.samplers import Uniform
from raygrad.streams import LabelFlips

ROOT = Path(__file__).resolve().parents[2]
HERE = Where(on="local")


def method(name: str) -> Algorithm:
    settings = {"fedga": {"beta": 0.2}, "fedprox": {"mu": 1.0}}
    return ALGORITHMS[name](lr=0.2, **settings.get(name, {}))


def trained(folder: Path, algorithm: Algorithm, data: Dataset, model: Model, clients: int = 6) -> LoadedRun:
    """Two rounds of four clients in float64."""
    partition: Partitioner = IID(clients=clients)
    experiment = Experiment(
        data=data, partition=partition, model=model, algorithm=algorithm, dtype="float64", rounds=2,
        local=Local(steps=4, batch_size=7, weight_decay=0.01), sampler=Uniform(cohort=4), probe=Probe(every=0),
        evaluation=Evaluation("paper", 1),
    )  # fmt: skip
    played = list(raygrad.rounds(experiment, HERE, run_root=folder, name="run"))
    return raygrad.load(played[-1].folder)


def apart(run: LoadedRun, theirs: LoadedRun | None = None) -> list[plain.Compared]:
    shards = plain.shards_of(run)
    stored = plain._losses(run.table("clients"))
    return list(plain.compare(run, shards, plain.beside(theirs or run, shards, 2), stored))


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedga", "scaffold-fresh"])
def test_the_plain_loop_gives_raygrads_numbers(name: str, tmp_path: Path) -> None:
    for c in apart(trained(tmp_path, method(name), Digits(), DigitsCNN())):
        assert c.model < 1e-12 < 1e-3 < c.moved
        assert c.loss < 1e-12
        assert c.images == 0
        assert c.same_rows


def test_other_methods_are_told_apart(tmp_path: Path) -> None:
    """Each part of a method counts: without it the difference is far above rounding."""
    run = trained(tmp_path, method("fedavg"), Digits(), DigitsCNN())
    for name in ("fedprox", "fedga", "scaffold-fresh"):
        other = replace(run, experiment=replace(run.experiment, algorithm=method(name)))
        (_, c) = apart(other, run)
        assert c.model > 1e-4, name
    decayed = replace(run, experiment=replace(run.experiment, local=replace(run.experiment.local, weight_decay=0.0)))
    (_, c) = apart(decayed, run)
    assert c.model > 1e-5


def test_augmented_images_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops, flips and normalisation, also where raygrad augments in several pieces."""
    noise = np.random.Generator(np.random.PCG64(5))
    for part, count in (("train", 12), ("test", 4)):
        for label in "ab":
            for i in range(count):
                file = tmp_path / "images" / part / label / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    data = ImageFolder(path=str(tmp_path / "images"), size=16, augment=True)
    for module in ("raygrad.runner", "jobs.results.plain"):
        monkeypatch.setattr(f"{module}.CHUNK_BYTES", 10 * 3 * 16 * 16 * 8)
    run = trained(tmp_path, method("fedga"), data, CIFARCNN(), clients=4)
    assert plain.shards_of(run).transform.augment == "crop-flip"
    assert plain.same_draws(run.experiment, plain.shards_of(run)).piece == 7
    for c in apart(run):
        assert c.model < 1e-12 < 1e-4 < c.moved
        assert c.loss < 1e-12


def test_crops_are_raygrads() -> None:
    x = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (40, 3, 9, 7), np.uint8)
    theirs = Transform(augment="crop-flip")(x, torch.float64, np.random.Generator(np.random.PCG64(2)))
    mine = plain.cropped(x, plain._crops(np.random.Generator(np.random.PCG64(2)), len(x)))
    assert np.array_equal(mine, theirs.numpy())


def test_draws_of_its_own_and_the_control(tmp_path: Path) -> None:
    run = trained(tmp_path, method("fedga"), Digits(), DigitsCNN())
    shards = plain.shards_of(run)
    first, again, other = (plain.PlainLoop(run, shards, plain.OwnDraws(seed, shards.clients, 4)) for seed in (1, 1, 2))
    for loop in (first, again, other):
        loop.play(1)
    assert torch.equal(first.vector(), again.vector())
    assert not torch.allclose(first.vector(), other.vector(), rtol=0, atol=1e-4)
    for c in plain.compare(run, shards, plain.control(run, shards, 2), {}):
        assert 0 < c.model < 1e-12
        assert c.same_rows is None


def test_what_the_plain_loop_cannot_do_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, method("fedavg"), Digits(), DigitsCNN())
    shards = plain.shards_of(run)
    draws = plain.same_draws(run.experiment, shards)
    clipped = replace(run.experiment, local=replace(run.experiment.local, clip_norm=1.0))
    for e, said in (
        (clipped, "clip_norm"),
        (replace(run.experiment, algorithm=ALGORITHMS["scaffold"]()), "algorithm scaffold"),
        (replace(run.experiment, weights="examples"), "weights=examples"),
        (replace(run.experiment, regularizer=L2()), "regulariser"),
        (replace(run.experiment, tasks=LabelFlips()), "stream of tasks"),
    ):
        with pytest.raises(BadInput, match=said):
            plain.PlainLoop(replace(run, experiment=e), shards, draws)
    (shards.path / "meta.json").unlink()
    with pytest.raises(BadInput, match="has no shards with the id"):
        plain.shards_of(run)


# --- runs and tables

RECIPE = """
from raygrad.data.datasets import SyntheticLogistic
from raygrad.data.partition import IID
from raygrad.experiment import Evaluation, Experiment
from raygrad.local import Local
from raygrad.models import Linear
from raygrad.samplers import Uniform


def recipe() -> Experiment:
    return Experiment(
        data=SyntheticLogistic(clients=4, examples=40, features=5, classes=3), partition=IID(clients=4),
        model=Linear(), local=Local(steps=2, batch_size=5), sampler=Uniform(cohort=2),
        evaluation=Evaluation("paper"),
    )
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study.Study:
    """A study that takes seconds, in place of the two."""
    (tmp_path / "small_recipe.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    made = replace(
        study.STUDIES["cifar"], recipe="small_recipe.py", betas=(0.1, 0.4), communications=(20, 40), search_rounds=2
    )
    monkeypatch.setitem(study.STUDIES, "cifar", made)
    return made


class Recorded:
    """`raygrad` in this process; keeps what it was asked, and fails at the call number `fails`."""

    def __init__(self, fails: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.fails = fails

    def __call__(self, arguments: list[str]) -> int:
        self.calls.append(arguments)
        return 75 if len(self.calls) - 1 == self.fails else cli.run([*arguments, "--quiet", "--no-report"])

    def told(self) -> list[str]:
        """Which run each call was about, and to how many rounds."""
        return [_about(c) for c in self.calls]


def _about(c: Sequence[str]) -> str:
    name = c[c.index("--name") + 1] if "--name" in c else Path(c[1]).parent.name
    return f"{c[0]} {name} {c[c.index('--rounds') + 1]}"


def test_runs_are_made_in_turns_and_tables_filled(small: study.Study, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    places = ["--on", "local", "--run-root", str(root)]
    broken = Recorded(fails=4)
    with pytest.raises(train.Failed) as failed:
        train.train(small, root, places, 40, broken)
    assert failed.value.code == 75
    started = ["run cifar-search-0.1 2", "run cifar-search-0.4 2", "run cifar-fedga 10", "run cifar-fedavg 20"]
    assert broken.told()[:4] == started
    text = "\n".join(tables.blocks(root).values())
    assert "Not all methods have been measured yet." in text

    rest = Recorded()
    train.train(small, root, places, 40, rest)
    assert rest.told() == [
        "run cifar-scaffold 10", "run cifar-fedprox 20",
        "resume cifar-fedga 20", "resume cifar-fedavg 40", "resume cifar-scaffold 20", "resume cifar-fedprox 40",
    ]  # fmt: skip
    nothing = Recorded()
    train.train(small, root, places, 40, nothing)
    assert nothing.calls == []

    search = study.searched(root, small)
    beta = study.best_beta(small, search)
    accuracy = {b: v.last("accuracy") for b, v in search.items()}
    assert accuracy[beta] == max(a for a in accuracy.values() if a is not None)
    views = study.runs(root, small)
    assert views["fedga"].settings["algorithm.beta"] == beta
    assert [v.communications[-1] for v in views.values()] == [40] * 4
    assert {m: v.settings["evaluation.mode"] for m, v in views.items()} == dict.fromkeys(views, "paper")

    document = tmp_path / "docs" / "results.md"
    document.parent.mkdir()
    document.write_text((ROOT / "docs" / "results.md").read_text())
    found, drawn = "", b""
    for _ in range(2):  # the second time changes nothing
        document.write_text(
            tables.filled(document.read_text(), tables.blocks(root, document.parent / "results"), document)
        )
        found = document.read_text()
        drawn = (document.parent / "results" / "cifar.svg").read_bytes()
    assert tables.filled(found, tables.blocks(root, document.parent / "again"), document) == found
    assert (document.parent / "again" / "cifar.svg").read_bytes() == drawn
    last = {m: f"{100 * v.test_accuracy[-1]:.2f}" for m, v in views.items()}
    assert f"| FedGA | {tables.percent(tables.accuracies(views['fedga'])[10])} |" in found
    for m, v in last.items():
        assert (
            f"| {study.METHODS[m].label} | 40 ({20 if m in ('fedga', 'scaffold') else 40} rounds) | {v} (at 40)"
            in found
        )
    assert "| the same after so many rounds | 10 | 20 |" in found
    assert "after 40 communications, over 4 clients" in found
    assert f"raygrad resume cifar-fedga --rounds {20}" in found


def test_marks_that_are_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected the marks <!-- cifar"):
        tables.filled("no marks", {"cifar": "text"}, tmp_path / "x.md")


def test_the_search_must_be_whole(small: study.Study, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lacks 2 of 2 runs: cifar-search-0.1, cifar-search-0.4"):
        study.best_beta(small, study.searched(tmp_path, small))


@pytest.mark.parametrize("name", ["cifar", "emnist"])
def test_commands_are_raygrads(name: str) -> None:
    """The recipes take the settings: each command gives the experiment that it should."""
    s = study.STUDIES[name]
    for m, kind in (("fedga", "fedga"), ("fedavg", "fedavg"), ("scaffold", "scaffold-fresh"), ("fedprox", "fedprox")):
        words = study.run_command(s, m, 0.3, 100)
        settings = [words[i + 1].partition("=") for i, w in enumerate(words) if w == "--set"]
        e = assign_all(RECIPES[s.recipe](), [(path, text) for path, _, text in settings])
        assert type(e.algorithm) is ALGORITHMS[kind]
        flat = report.flatten(e.to_json())
        assert flat["algorithm.lr"] == s.lr
        assert flat.get("algorithm.beta", 0.3) == 0.3
        assert flat.get("algorithm.mu", 0.1) == 0.1
        assert flat["evaluation.mode"] == "paper"
        assert (flat["local.weight_decay"], flat["local.clip_norm"]) == (1e-3, None)
        expected = (20, 100, 10, "iid") if name == "cifar" else (10, 240, 47, "labels")
        assert (
            flat["local.steps"],
            flat["local.batch_size"],
            flat["partition.clients"],
            flat["partition.kind"],
        ) == expected
        rounds = int(words[words.index("--rounds") + 1])
        every = flat["evaluation.every"]
        assert isinstance(every, int)
        assert rounds * study.METHODS[m].phases == 100
        assert every * study.METHODS[m].phases == 10
