"""Encoded images (PNG, JPEG and what else Pillow reads), and folders of them with one subfolder per class."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from raygrad.data.staging import reading
from raygrad.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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


def fitted(image: "Image", size: int, channels: int) -> np.ndarray:
    """[channels, size, size] uint8: the image scaled to cover the square and cut in the middle."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    return pixels(ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR), channels)


def image_files(folder: Path) -> list[Path]:
    """All images under `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def images_by_class(root: Path) -> dict[str, list[Path]]:
    """The images in each subfolder of `root`, in the order of the names. Raises BadInput when there are none."""
    if not root.is_dir():
        raise BadInput(f"data set image-folder: there is no folder {root}; expected one with a subfolder per class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise BadInput(f"{root}: it has no subfolders; expected one folder of images per class")
    found = {folder.name: image_files(folder) for folder in folders}
    for name, images in found.items():
        if not images:
            raise BadInput(f"{root / name}: it has no images ({', '.join(sorted(SUFFIXES))}); expected at least one")
    return found
