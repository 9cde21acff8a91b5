"""Every recipe runs: at smoke size, on made data of the same shape and labels where it needs files."""

import ast
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

from raygrad import Experiment, Where, load, rounds
from raygrad.data.datasets import Idx, Shakespeare
from raygrad.recipes import RECIPES
from raygrad.stragglers import WaitForAll

FOLDER = Path(__file__).resolve().parents[1] / "raygrad" / "recipes"
SHAPES = {
    "mnist": ((1, 28, 28), 10), "emnist": ((1, 28, 28), 26), "emnist47": ((1, 28, 28), 47),
    "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100),
}  # fmt: skip
"""The shape of an example and the number of classes of the images that recipes read from files."""


def idx(array: np.ndarray, path: Path) -> str:
    """Write an array of bytes as an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())
    return str(path)


def made(kind: str, folder: Path) -> Idx:
    """Images of the data set's shape, eight per class for training and two for the test."""
    shape, classes = SHAPES[kind]
    drawn = np.random.default_rng(0)
    files = []
    for part, each in (("train", 8), ("test", 2)):
        y = np.repeat(np.arange(classes), each).astype(np.uint8)
        noise = drawn.integers(0, 32, (len(y), prod(shape)))
        x = (noise + 4 * y[:, None]).astype(np.uint8).reshape(len(y), *(shape if shape[0] > 1 else shape[1:]))
        files += [idx(x, folder / f"{part}-x"), idx(y, folder / f"{part}-y")]
    return Idx(*files)


def made_text(folder: Path) -> Shakespeare:
    """Three speakers, under the data root `folder`."""
    (folder / "shakespeare").mkdir()
    speeches = [f"{name}:\n{40 * word}" for name, word in (("ANNE", "Ay, "), ("KATE", "Nay. "), ("HAL", "Oh! "))]
    (folder / "shakespeare" / "tinyshakespeare.txt").write_text("\n\n".join(speeches))
    return Shakespeare(length=8, least=20)


def smoke(experiment: Experiment, folder: Path) -> Experiment:
    """The same experiment with a few small steps, on made data in place of files; `folder` is its data root."""
    kind = experiment.to_json()["data"]["kind"]
    data = made(kind, folder) if kind in SHAPES else made_text(folder) if kind == "shakespeare" else experiment.data
    local, sampler, partition = experiment.local, experiment.sampler, experiment.partition
    batch = local.batch_size if local.batch_size == "full" else 4
    few = min(3, sampler.cohort)
    few_steps = {"epochs": 1, "epochs_to": 2} if local.epochs_to else {"steps": 2, "epochs": None}
    return replace(
        experiment,
        data=data,
        partition=replace(partition, clients=min(partition.clients, 47)),  # pyright: ignore[reportArgumentType]
        local=replace(local, batch_size=batch, **few_steps),
        sampler=replace(sampler, cohort=few),  # pyright: ignore[reportArgumentType]
        rounds=2,
        evaluation=replace(experiment.evaluation, every=2, clients=3),
        probe=replace(experiment.probe, every=2, clients=3),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_at_smoke_size(name: str, tmp_path: Path) -> None:
    experiment = smoke(RECIPES[name](), tmp_path)
    where = Where(on="local", data_root=str(tmp_path))
    played = list(rounds(experiment, where, run_root=tmp_path / "runs", name=name))
    assert [r.index for r in played] == [1, 2]
    last = played[-1]
    judged = last.test if experiment.evaluation.mode == "paper" else last.validation
    assert judged is not None and np.isfinite(judged["loss"])
    assert last.alignment is not None and (last.alignment.r > 0 or last.alignment.clients == 1)
    kind = RECIPES[name]().to_json()["data"]["kind"]
    if kind in SHAPES:
        plan = load(name, tmp_path / "runs").table("partition")
        assert np.array(plan["label_counts"].to_pylist()).shape[1] == SHAPES[kind][1]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_value_with_an_explanation(name: str) -> None:
    first, second = RECIPES[name](), RECIPES[name]()
    assert first == second == Experiment.from_json(first.to_json())
    assert first.hash == Experiment.from_json(first.to_json()).hash
    said = RECIPES[name].__doc__ or ""
    assert 20 < len(said.split("\n\n")[0]) < 160


def test_every_file_is_registered_under_its_name() -> None:
    files = {p.stem.replace("_", "-") for p in FOLDER.glob("[a-z]*.py")}
    assert files == set(RECIPES)


@pytest.mark.parametrize("name", ["emnist47-het", "emnist47-iid", "emnist-letters-het"])
def test_the_papers_emnist_settings(name: str) -> None:
    e = RECIPES[name]().to_json()
    assert e["model"] == {"kind": "emnist-cnn"}
    assert e["local"] == {
        "steps": 10,
        "epochs": None,
        "batch_size": 240,
        "weight_decay": 1e-3,
        "clip_norm": None,
        "momentum": 0.0,
        "epochs_to": None,
        "batch_size_to": None,
    }
    assert (e["algorithm"]["kind"], e["algorithm"]["lr"], e["algorithm"]["server_lr"]) == ("fedga", 0.05, 1.0)
    assert (e["sampler"]["cohort"], e["evaluation"]["mode"]) == (10, "paper")
    assert e["partition"]["clients"] == (26 if "letters" in name else 47)


def test_the_papers_cifar_settings() -> None:
    e = RECIPES["cifar10-iid"]().to_json()
    assert (e["model"]["kind"], e["data"]) == ("cifar-cnn", {"kind": "cifar10", "augment": True})
    assert e["local"] == {
        "steps": 20,
        "epochs": None,
        "batch_size": 100,
        "weight_decay": 1e-3,
        "clip_norm": None,
        "momentum": 0.0,
        "epochs_to": None,
        "batch_size_to": None,
    }
    assert (e["algorithm"]["lr"], e["sampler"]["cohort"], e["partition"]) == (0.1, 10, {"kind": "iid", "clients": 10})
    assert e["evaluation"]["mode"] == "paper"


def test_cifar100_is_cifar10_with_more_classes() -> None:
    few, many = (RECIPES[name]().to_json() for name in ("cifar10-iid", "cifar100"))
    assert many.pop("data") == {"kind": "cifar100", "augment": True} and few.pop("data")
    assert few == many


def test_the_main_job_learns(tmp_path: Path) -> None:
    """Ten rounds of FedGA get past what one class per client usually allows (ten per cent is guessing)."""
    experiment = replace(RECIPES["digits"](), rounds=10)
    last = list(rounds(experiment, Where(on="local"), run_root=tmp_path))[-1]
    assert last.validation is not None and last.validation["accuracy"] > 0.8


def test_the_asynchronous_recipe_learns(tmp_path: Path) -> None:
    """In a tenth of the virtual time that a round of five takes on average when the slowest is waited for."""
    experiment = replace(RECIPES["fedbuff"](), rounds=25, probe=replace(RECIPES["fedbuff"]().probe, every=0))
    last = list(rounds(experiment, Where(on="local"), run_root=tmp_path))[-1]
    assert last.validation is not None and last.validation["accuracy"] > 0.8
    waiting = replace(experiment, stragglers=WaitForAll(), rounds=3)
    slow = list(rounds(waiting, Where(on="local"), run_root=tmp_path))[-1]
    assert last.virtual_s / 25 < 0.1 * slow.virtual_s / 3


def test_a_copied_recipe_stands_alone() -> None:
    """Recipes import raygrad only, so that a copy of one is a recipe of one's own."""
    for path in FOLDER.glob("[a-z]*.py"):
        tree = ast.parse(path.read_text())
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert all(m and m.startswith("raygrad.") and not m.startswith("raygrad.recipes") for m in modules)
        assert [n.name for n in tree.body if isinstance(n, ast.FunctionDef)] == ["recipe"]
