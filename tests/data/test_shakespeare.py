"""Tiny Shakespeare: speeches by speaker, windows, parts; and a character LSTM on them."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import SHARED, check, shared

from raygrad import Where, load, rounds
from raygrad.data.datasets import Shakespeare
from raygrad.data.shakespeare import CHARACTERS, by_speaker
from raygrad.data.source import Source
from raygrad.errors import BadInput
from raygrad.experiment import Evaluation
from raygrad.models import CharLSTM
from raygrad.recipes import RECIPES

PLAY = """First Lord:
To be, or not: 'tis so!

KATE:
Nay.


First Lord:
Then is
it so.

KATE:

KATE:
Yea, then."""


def write(root: Path, text: str = PLAY, zipped: bool = False) -> None:
    folder = root / "shakespeare"
    folder.mkdir(parents=True)
    if zipped:
        (folder / "tinyshakespeare.txt.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "tinyshakespeare.txt").write_bytes(text.encode())


def opened(root: Path, dataset: Shakespeare) -> Source:
    source = dataset.open(root, root / "cache", 0)
    check(source)
    return source


def text_of(ids: np.ndarray) -> str:
    return "".join(CHARACTERS[i] for i in ids)


def test_speeches_by_speaker() -> None:
    assert by_speaker(PLAY) == {"First Lord": "To be, or not: 'tis so!\nThen is\nit so.", "KATE": "Nay.\nYea, then."}
    assert by_speaker("") == by_speaker("No speaker here.") == {}


@pytest.mark.parametrize("zipped", [False, True])
def test_windows_and_what_follows(tmp_path: Path, zipped: bool) -> None:
    write(tmp_path, zipped=zipped)
    source = opened(tmp_path, Shakespeare(length=4, least=1, holdout=0.4))
    lord, kate = by_speaker(PLAY).values()
    rows = [text_of([*x, y]) for x, y in zip(source.train.x, source.train.y, strict=True)]
    windows = [
        [text[i : i + 5] for i in range(len(text) - 4)] for text in (lord[:23], kate[:9])
    ]  # 38 and 15 characters
    assert rows == [*windows[0], *windows[1]]
    assert source.natural is not None and np.bincount(source.natural).tolist() == [len(w) for w in windows]
    assert (source.train.x.dtype, source.classes) == (np.uint8, 100)
    assert (source.class_names[:2], source.class_names[CHARACTERS.index("\n")]) == (("'0'", "'1'"), "'\\n'")
    assert torch.equal(source.transform(source.train.x, torch.float32, None), torch.from_numpy(source.train.x).float())


def test_no_character_of_the_test_is_in_a_training_window(tmp_path: Path) -> None:
    """A speaker whose text never repeats a character: the parts have none in common, and no character follows twice."""
    write(tmp_path, "ALL:\n" + CHARACTERS[:90])
    source = opened(tmp_path, Shakespeare(length=3, least=1, holdout=0.2))
    seen, tested = ({*part.x.ravel().tolist(), *part.y.tolist()} for part in (source.train, source.test))
    assert (seen, tested) == (set(range(72)), set(range(72, 90)))
    assert len(set(source.train.y)) == len(source.train) == 69 and len(source.test) == 15


def test_stride_and_least(tmp_path: Path) -> None:
    write(tmp_path)
    whole = opened(tmp_path, Shakespeare(length=4, least=1, holdout=0.1))
    some = opened(tmp_path, Shakespeare(length=4, stride=3, least=1, holdout=0.1))
    assert whole.natural is not None and some.natural is not None
    for client in (0, 1):
        assert np.array_equal(some.train.x[some.natural == client], whole.train.x[whole.natural == client][::3])
    one = opened(tmp_path, Shakespeare(length=4, least=15, holdout=0.1))
    assert one.natural is not None and set(one.natural) == {0}
    with pytest.raises(BadInput, match="none of 2 speakers has 1000 training examples; lower least"):
        opened(tmp_path, Shakespeare())


def test_what_is_missing_or_strange_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"under the data root .*shakespeare/tinyshakespeare\.txt, plain or with \.gz"):
        Shakespeare().open(tmp_path, tmp_path, 0)
    with pytest.raises(BadInput, match=r"cannot be downloaded: give --data-root DIR.*shakespeare/tinyshakespeare\.txt"):
        Shakespeare().open(None, tmp_path, 0)
    write(tmp_path / "a", "ALL:\nÉtoile")
    with pytest.raises(BadInput, match=r"tinyshakespeare\.txt: .*ascii.*; expected speeches"):
        Shakespeare().open(tmp_path / "a", tmp_path, 0)
    write(tmp_path / "b", "ALL:\n\x07")
    with pytest.raises(BadInput, match=r"tinyshakespeare\.txt: it has the character '\\x07'; expected speeches"):
        Shakespeare().open(tmp_path / "b", tmp_path, 0)
    write(tmp_path / "c", zipped=True)
    (path := tmp_path / "c/shakespeare/tinyshakespeare.txt.gz").write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadInput, match=r"tinyshakespeare\.txt\.gz: .*expected speeches"):
        Shakespeare().open(tmp_path / "c", tmp_path, 0)


@pytest.mark.parametrize("field", ["length", "stride", "least", "holdout"])
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(BadInput, match=f"shakespeare: {field} = 0"):
        Shakespeare(**{field: 0})


# --- the network ----------------------------------------------------------------------------------------------------


def test_char_lstm_is_the_papers() -> None:
    module = CharLSTM().build((80,), 100)
    assert sum(p.numel() for p in module.parameters()) == 135_700
    ids = torch.randint(0, 100, (3, 80))
    assert module(ids).shape == (3, 100)
    assert torch.equal(module(ids.float()), module(ids))  # examples arrive as the experiment's dtype
    assert torch.equal(module(ids + 100), module(ids))  # any byte may stand in for an id
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % 100
    assert not torch.equal(module(changed), module(ids))  # the whole window counts


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((80,), None)])
def test_char_lstm_refuses_what_is_no_text(shape: tuple[int, ...], classes: int | None) -> None:
    with pytest.raises(BadInput, match="model char-lstm takes rows of ids"):
        CharLSTM().build(shape, classes)
    with pytest.raises(BadInput, match=r"model\.layers is 0"):
        CharLSTM(layers=0)


def test_a_run_on_real_text_lowers_perplexity(tmp_path: Path) -> None:
    """Eight rounds of the recipe with a smaller network: 100 is guessing among all characters."""
    shared("shakespeare")
    recipe = RECIPES["shakespeare"]()
    experiment = replace(
        recipe,
        data=Shakespeare(length=10, stride=40, least=500),
        model=CharLSTM(hidden=24, layers=1),
        sampler=replace(recipe.sampler, cohort=4),  # pyright: ignore[reportArgumentType]
        rounds=8,
        evaluation=Evaluation(every=4),
        probe=replace(recipe.probe, every=8, clients=4),
    )
    where = Where(on="local", data_root=str(SHARED))
    played = list(rounds(experiment, where, run_root=tmp_path, name="words"))
    first, last = (np.exp(r.validation["loss"]) for r in played if r.validation)
    assert last < first < 100
    assert load("words", tmp_path).experiment.gangs.mode == "loop"
    assert played[-1].alignment is not None and played[-1].alignment.r_gradient_norm
