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


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Images one folder deeper, an annotated `val`, and a `test` without labels, which is not read."""

    def write(path: Path, level: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), level, np.uint8)).save(path)

    root = tmp_path / "tiny"
    for c, cls in enumerate(("n01", "n02")):
        for i in range(3):
            write(root / "train" / cls / "images" / f"{cls}_{i}.JPEG", 100 * c + i)
        (root / "train" / cls / f"{cls}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t5\t5")
        write(root / "val" / "images" / f"val_{c}.JPEG", 200 + c)
    write(root / "test" / "images" / "test_0.JPEG", 7)
    notes = root / "val" / "val_annotations.txt"
    notes.write_text("val_0.JPEG\tn02\t0\t0\t5\t5\nval_1.JPEG\tn01\t0\t0\t5\t5\n")
    source = ImageFolder("tiny", size=4).open(tmp_path, tmp_path / "cache", seed=0)
    check(source)
    assert source.class_names == ("n01", "n02")
    assert source.train.x[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert (source.test.y.tolist(), source.test.x[:, 0, 0, 0].tolist()) == ([0, 1], [201, 200])
    for line, said in (("val_9.JPEG\tn01", "line 1: there is no image .*val_9"), ("val_0.JPEG", "line 1"),
                       ("val_0.JPEG\tn03", "class 'n03' is not among")):  # fmt: skip
        notes.write_text(line)
        with pytest.raises(BadInput, match=said):
            ImageFolder("tiny", size=4).open(tmp_path, tmp_path / "cache", seed=0)


def test_class_folders_in_val(tmp_path: Path) -> None:
    write_folder(tmp_path / "b" / "train")
    write_folder(tmp_path / "b" / "val", 2)
    source = ImageFolder("b", size=4).open(tmp_path, tmp_path / "cache", seed=0)
    assert (source.train.x.shape, source.test.x.shape) == ((10, 3, 4, 4), (4, 3, 4, 4))
    (tmp_path / "b/val/wasps").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "b/val/wasps/0.png")
    with pytest.raises(BadInput, match=r"b/val: class 'wasps' is not among those of .*b/train"):
        ImageFolder("b", size=4).open(tmp_path, tmp_path / "cache", seed=0)
