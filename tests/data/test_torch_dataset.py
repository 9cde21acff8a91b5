"""Any torch Datasets: what is read, and what is said about code that does not fit."""

import sys
from pathlib import Path

import numpy as np
import pytest
from made_files import check

from raygrad.data.datasets import TorchDataset
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

MODULE = """
import torch
from torch.utils.data import TensorDataset

X = torch.arange(24.0).reshape(6, 1, 2, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])

def both(): return TensorDataset(X, Y), TensorDataset(X[:2], Y[:2])
def no_test(): return TensorDataset((X * 10).to(torch.uint8), Y), None
def regression(): return TensorDataset(X, Y.double()), None
def ragged(): return [(X[0], 0), (X[0, 0], 1)], None
def one(): return TensorDataset(X, Y)
def tokens(): return TensorDataset(Y, Y), None
class Broken:
    def __len__(self): return 3
    def __getitem__(self, i): return (X[i], int(Y[i])) if i < 2 else {}["lost"]
def broken(): return Broken(), None
def raises(): raise FileNotFoundError("no such folder")
NOT_CALLABLE = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "raygrad_test_factories.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "raygrad_test_factories", raising=False)
    return "raygrad_test_factories"


def test_any_torch_dataset(tmp_path: Path, module: str) -> None:
    source = TorchDataset(f"{module}:both").open(None, tmp_path / "cache", 0)
    check(source)
    assert source.train.x.dtype == np.float32
    assert source.train.x.reshape(-1).tolist() == list(range(24))
    assert source.classes == 3
    assert len(source.test) == 2
    assert source.transform == Transform()
    source = TorchDataset(f"{module}:no_test").open(None, tmp_path / "cache", 0)
    assert source.train.x.dtype == np.uint8
    assert source.transform.scale == 1 / 255
    assert len(source.test) == 0
    assert TorchDataset(f"{module}:regression").open(None, tmp_path / "cache", 0).classes is None
    files = TorchDataset(f"{module}:both").files(None, tmp_path)
    assert files == [tmp_path / "raygrad_test_factories.py"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ragged", r"train\[1\]: float32 \(2, 2\), but item 0 is"),
        ("one", r"must return \(train, test\)"),
        ("tokens", "x has type int64; expected uint8"),
        ("broken", r"train\[2\] raised KeyError: 'lost'"),
        ("raises", r"raises\(\) raised FileNotFoundError: no such folder"),
        ("NOT_CALLABLE", "not callable"),
        ("bth", "did you mean both\\?"),
    ],
)
def test_a_torch_dataset_that_does_not_fit(tmp_path: Path, module: str, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TorchDataset(f"{module}:{name}").open(None, tmp_path / "cache", 0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("pathlib.Path", "'pathlib.Path' is not of the form package.module:attribute"),
        ("nowhere_at_all:x", "'nowhere_at_all:x': cannot import nowhere_at_all"),
        ("pathlib:Paht", "in pathlib 'Paht'; did you mean Path\\?"),
        ("raygrad_test_breaks:x", "cannot import raygrad_test_breaks \\(ZeroDivisionError: division by zero"),
    ],
)
def test_a_factory_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, message: str
) -> None:
    (tmp_path / "raygrad_test_breaks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for read in (
        lambda: TorchDataset(factory).open(None, tmp_path, 0),
        lambda: TorchDataset(factory).files(None, tmp_path),
    ):
        with pytest.raises(BadInput, match=message):
            read()


def test_a_factory_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raygrad_test_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "raygrad_test_here", raising=False)
    dataset = TorchDataset("raygrad_test_here:both")
    assert dataset.files(None, tmp_path) == [tmp_path / "raygrad_test_here.py"]
    assert len(dataset.open(None, tmp_path / "cache", 0).train) == 6
