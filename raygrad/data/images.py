"""Encoded images (PNG, JPEG and what else Pillow reads), and folders of them with one subfolder per class."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from raygrad.data.locate import resolve
from raygrad.data.source import Examples, Source, hold_out
from raygrad.data.staging import reading, stage
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

ANNOTATIONS = "val_annotations.txt"
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, one subfolder per class (torchvision's ImageFolder layout), decoded to size x size pixels.

    With `path/train/<class>/` and `path/test/<class>/`, or `path/val/<class>/`, these are the parts; otherwise
    `path/<class>/`, of which the fraction `holdout` of each class, drawn once and for all, is the test set. As in
    Tiny-ImageNet, images may lie deeper in their class's folder, and `path/val/val_annotations.txt` (a line per image
    with its name and its class, separated by tabs) may say the classes of `path/val/images/`. Images are scaled to
    cover the square and cut in the middle. `channels` is 3 (RGB) or 1 (grey).
    """

    path: str
    size: int = 32
    channels: int = 3
    holdout: float = 0.2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augment: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInput(f"data set image-folder: size = {self.size}; it must be at least 1")
        if self.channels not in (1, 3):
            raise BadInput(f"data set image-folder: channels = {self.channels}; it must be 1 (grey) or 3 (RGB)")
        if not 0 <= self.holdout < 1:
            raise BadInput(f"data set image-folder: holdout = {self.holdout}; it must be in [0, 1)")

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        root = resolve(self.path, data_root)
        return _image_files(root) if root.is_dir() else None

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        root = resolve(self.path, data_root)
        held = _test_folder(root)
        train = _images_by_class(root if held is None else root / "train")
        names = tuple(train)
        paths, y = _labelled(train, names)
        if held is not None:
            notes = held / ANNOTATIONS
            test = _annotated(notes) if notes.is_file() else _images_by_class(held)
            if new := sorted(test.keys() - train.keys()):
                raise BadInput(f"{held}: class {new[0]!r} is not among those of {root / 'train'}")
            parts = [(paths, y), _labelled(test, names)]
        else:
            parts = [([paths[i] for i in rows], y[rows]) for rows in hold_out(y, self.holdout)]
        examples = [Examples(self._stage(paths, cache), y) for paths, y in parts]
        transform = Transform.of_images(self.mean, self.std, self.augment)
        return Source.of(examples[0], examples[1], names, transform)

    def _stage(self, paths: Sequence[Path], cache: Path) -> np.ndarray:
        shape = (self.channels, self.size, self.size)
        key = hashlib.sha256(repr(shape).encode())
        for path in paths:
            stat = path.stat()
            key.update(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())

        def rows() -> Iterator[np.ndarray]:
            for path in paths:
                with decoded(path, str(path)) as image:
                    yield _fitted(image, self.size, self.channels)[None]

        return stage(cache, f"folder-{key.hexdigest()[:24]}", (len(paths), *shape), np.uint8, rows())


@contextmanager
def decoded(file: "Path | BinaryIO", where: str) -> Iterator["Image"]:
    """The image in `file`; `where` is what an error calls it. Raises BadInput for what is no image."""
    from PIL import Image

    with reading(where, "an image that Pillow can read"):
        try:
            with Image.open(file) as image:
                image.load()
                yield image
        except Image.DecompressionBombError as e:
            raise BadInput(f"{where}: {e}") from e


def pixels(image: "Image", channels: int) -> np.ndarray:
    """[channels, height, width] uint8; 1 channel is grey, 3 are RGB."""
    mode = "L" if channels == 1 else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _fitted(image: "Image", size: int, channels: int) -> np.ndarray:
    """[channels, size, size] uint8: the image scaled to cover the square and cut in the middle."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    return pixels(ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR), channels)


def _image_files(folder: Path) -> list[Path]:
    """All images under `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _images_by_class(root: Path) -> dict[str, list[Path]]:
    """The images in each subfolder of `root`, in the order of the names. Raises BadInput when there are none."""
    if not root.is_dir():
        raise BadInput(f"data set image-folder: there is no folder {root}; expected one with a subfolder per class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise BadInput(f"{root}: it has no subfolders; expected one folder of images per class")
    found = {folder.name: _image_files(folder) for folder in folders}
    for name, images in found.items():
        if not images:
            raise BadInput(
                f"{root / name}: it has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); expected at least one"
            )
    return found


def _test_folder(root: Path) -> Path | None:
    """What is to be the test set beside `train`: an annotated `val` first, for Tiny-ImageNet's `test` has no labels."""
    if not (root / "train").is_dir():
        return None
    if (root / "val" / ANNOTATIONS).is_file():
        return root / "val"
    return next((root / name for name in ("test", "val") if (root / name).is_dir()), None)


def _annotated(notes: Path) -> dict[str, list[Path]]:
    """The images beside an annotation file, by class. Raises BadInput for a line or an image that is not as said."""
    found: dict[str, list[Path]] = {}
    with reading(str(notes), "an image's name and its class in each line, separated by a tab"):
        for i, line in enumerate(notes.read_text().splitlines()):
            name, cls, *_ = [*line.split("\t"), "", ""]
            image = notes.parent / "images" / name
            if not (name and cls and image.is_file()):
                raise BadInput(f"{notes}: line {i + 1}: there is no image {image} with a class")
            found.setdefault(cls, []).append(image)
    return dict(sorted(found.items()))


def _labelled(by_class: dict[str, list[Path]], names: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """All paths, and the class of each by its place in `names`."""
    y = np.repeat([names.index(name) for name in by_class], [len(paths) for paths in by_class.values()])
    return [path for paths in by_class.values() for path in paths], y
