"""Folders of images."""

from pathlib import Path

import numpy as np
import pytest
from made_files import check
from PIL import Image

from raygrad.data.datasets import ImageFolder
from raygrad.errors import BadInput


def write_folder(root: Path, per_class: int = 5) -> None:
    for level, name in ((40, "ants"), (200, "bees")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(np.full((9, 12, 3), level + i, np.uint8)).save(root / name / f"{i}.png")


def test_image_folder_holds_out_a_part_or_uses_the_test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    source = ImageFolder("a", size=8).open(tmp_path, tmp_path / "cache", seed=0)
    check(source)
    assert source.train.x.shape == (8, 3, 8, 8)
    assert source.class_names == ("ants", "bees")
    assert np.bincount(source.test.y).tolist() == [1, 1]
    levels = [*source.train.x[:, 0, 0, 0], *source.test.x[:, 0, 0, 0]]
    assert sorted(levels) == [*range(40, 45), *range(200, 205)]
    assert ImageFolder("a", size=8).open(tmp_path, tmp_path / "cache", seed=5).fingerprint == source.fingerprint

    write_folder(tmp_path / "b" / "train")
    write_folder(tmp_path / "b" / "test", 2)
    source = ImageFolder("b", size=4, channels=1).open(tmp_path, tmp_path / "cache", seed=0)
    assert source.train.x.shape == (10, 1, 4, 4)
    assert source.test.x.shape == (4, 1, 4, 4)
    (tmp_path / "b/train/bees/3.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"b/train/bees/3\.png.*expected an image"):
        ImageFolder("b", size=4).open(tmp_path, tmp_path / "cache", seed=0)
    with pytest.raises(BadInput, match=r"there is no folder .*nowhere"):
        ImageFolder("nowhere").open(tmp_path, tmp_path / "cache", seed=0)
