"""What a report consists of, before it is HTML, Markdown or pictures: headings, words, tables, settings and pictures.

`raygrad.reports.page` and `raygrad.reports.sweep_report` make documents, `raygrad.reports.publish` writes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raygrad.reports.report import Leaf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = Mapping[str, Leaf]


@dataclass(frozen=True)
class Heading:
    """The beginning of a section."""

    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph; `like this` is code in it. A note is set smaller."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. With a header its cells do not wrap."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True)
class Folded:
    """Settings that can be folded away."""

    title: str
    settings: Settings
    opened: bool = False


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with its caption. `name` is its file's name and its id; `told` is further alternative text."""

    name: str
    title: str
    caption: str
    drawn: "Figure" = field(repr=False)
    told: str = ""


Part = Heading | Words | Code | Table | Folded | Picture


@dataclass(frozen=True, eq=False)
class Document:
    """A report. `name` is what it is about, in the title of a window; `sub` stands below the title."""

    name: str
    title: str
    sub: str
    parts: Sequence[Part]

    @property
    def pictures(self) -> Iterator[Picture]:
        """Its pictures, in order."""
        return (part for part in self.parts if isinstance(part, Picture))
