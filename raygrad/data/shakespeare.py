"""Tiny Shakespeare: forty thousand lines of the plays, in the public domain, collected for karpathy/char-rnn."""

import gzip
import re
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raygrad.data.locate import locate, obtain
from raygrad.data.source import Examples, Source
from raygrad.data.staging import reading
from raygrad.data.transform import Transform
from raygrad.errors import BadInput

CHARACTERS = string.printable
"""A character's id is its place among these 100 printable ASCII characters."""

_FILE = "shakespeare/tinyshakespeare.txt"
_SPEECH = re.compile(r"([^\n:]+):\n(.+)", re.DOTALL)


@dataclass(frozen=True)
class Shakespeare:
    """Tiny Shakespeare: `length` characters and the one that follows; the speakers are the partition.

    The task is that of LEAF, Caldas et al. (arXiv:1812.01097), on about a fifth of its text.
    Reads `shakespeare/tinyshakespeare.txt[.gz]` under the data root; cannot be downloaded. A speaker's speeches are one
    text, of which the last part, the fraction `holdout`, is for the test. Windows begin every `stride` characters and
    lie in one part: each character is the label of one example at most, and none of the test is seen in training.
    Speakers with fewer than `least` training examples are left out. x [n, length] uint8 are ids in `CHARACTERS`.
    """

    length: int = 80
    stride: int = 1
    least: int = 1000
    holdout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("length", "stride", "least"):
            if (value := getattr(self, name)) < 1:
                raise BadInput(f"data set shakespeare: {name} = {value}; it must be at least 1")
        if not 0 < self.holdout < 1:
            raise BadInput(f"data set shakespeare: holdout = {self.holdout}; it must be between 0 and 1")

    def files(self, data_root: Path | None, cache: Path) -> list[Path] | None:
        """See `HasFiles.files`."""
        return locate([_FILE], data_root, cache)

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        (path,) = obtain("shakespeare", None, [_FILE], data_root, cache)
        texts = by_speaker(_read(path))
        parts = []
        for ids in map(_encoded, texts.values()):
            cut = len(ids) - round(self.holdout * len(ids))
            train, test = self._windows(ids[:cut]), self._windows(ids[cut:])
            if len(train) >= self.least:
                parts.append((train, test))
        if not parts:
            raise BadInput(f"{path}: none of {len(texts)} speakers has {self.least} training examples; lower least")
        natural = np.repeat(np.arange(len(parts)), [len(train) for train, _ in parts])
        train, test = (Examples(*_split(np.concatenate(of))) for of in zip(*parts, strict=True))
        return Source.of(train, test, tuple(map(repr, CHARACTERS)), Transform(), natural)

    def _windows(self, ids: np.ndarray) -> np.ndarray:
        """[n, length + 1], the last column the character that follows."""
        if len(ids) <= self.length:
            return np.empty((0, self.length + 1), np.uint8)
        return np.lib.stride_tricks.sliding_window_view(ids, self.length + 1)[:: self.stride]


def by_speaker(text: str) -> dict[str, str]:
    """All that each speaker says, speeches joined by newlines, from blocks `Name:` and lines with a blank line between;
    in the order in which they first speak.
    """
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n{2,}", text.strip()):
        if match := _SPEECH.fullmatch(block):
            found.setdefault(match[1], []).append(match[2])
    return {name: "\n".join(speeches) for name, speeches in found.items()}


def _read(path: Path) -> str:
    with reading(str(path), "speeches in printable ASCII, `Name:` and lines, with a blank line between"):
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("ascii")
        if strange := set(text) - set(CHARACTERS):
            raise ValueError(f"it has the character {min(strange)!r}")
        return text


def _encoded(text: str) -> np.ndarray:
    """The ids of a text's characters [n] uint8."""
    places = np.zeros(128, np.uint8)
    places[list(CHARACTERS.encode())] = np.arange(len(CHARACTERS))
    return places[np.frombuffer(text.encode(), np.uint8)]


def _split(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(windows[:, :-1]), windows[:, -1].astype(np.int64)
