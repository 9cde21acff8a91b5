"""A document written as a file or a folder: HTML, Markdown with its pictures beside it, or the pictures alone.

Everything is drawn before anything is written, and each file appears whole or not at all.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from raygrad import logs
from raygrad.errors import BadInput, Stopped
from raygrad.files import storage
from raygrad.reports import html, pictures
from raygrad.reports.document import Code, Document, Folded, Heading, Part, Picture, Table, Words
from raygrad.reports.report import leaf

Format = Literal["html", "md", "png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)
_PAGES = ("html", "md")


def destination(out: Path, format: Format | None = None) -> tuple[Path, Format]:
    """The file, or for pictures one by one the folder, that a report goes to, and in which format.

    Without a `format` it is that of the ending of `out`, for a folder HTML. In a folder the page is report.html or
    report.md; pictures without a page are a folder of files, named as a file with their ending all on one sheet. Raises
    BadInput where that cannot be written.
    """
    ending = out.suffix.lower().removeprefix(".")
    ending = "html" if ending == "htm" else "md" if ending == "markdown" else ending
    if format is None:
        if out.is_dir() or not ending:
            format = "html"
        elif ending in FORMATS:
            format = ending
        else:
            raise BadInput(f"{out}: a report is written as {', '.join(f'.{f}' for f in FORMATS)}, or with --format")
    named = ending == format and not out.is_dir()
    if format == "pdf" and named:
        raise BadInput(f"{out}: PDF is for one picture each; write all into a folder with --format pdf --out FOLDER")
    if not named and ending in FORMATS and not out.is_dir():
        raise BadInput(f"{out} is not named as {format}: leave out --format, or name a folder or a .{format} file")
    path = out / f"report.{format}" if format in _PAGES and not named else out
    _check(path, folder=format not in _PAGES and not named)
    return path, format


def _check(path: Path, folder: bool) -> None:
    """Refuse what cannot be written, as far as it can be told before."""
    if folder and path.exists() and not path.is_dir():
        raise BadInput(f"{path} cannot be written: it is a file, but pictures one by one go to a folder")
    if not folder and path.is_dir():
        raise BadInput(f"{path} cannot be written: it is a folder")
    above = next((p for p in path.absolute().parents if p.exists()), None)
    if above is not None and not above.is_dir():
        raise BadInput(f"{path} cannot be written: {above} is a file")


def write(document: Document, out: Path, format: Format | None = None) -> Path:
    """Write a document to `out`, as `destination` has it, and return the file or folder. Raises BadInput, or Stopped on
    a full disk.
    """
    path, format = destination(out, format)
    single = path.suffix.lower() == f".{format}" and not path.is_dir()
    for name, content in files(document, path, format, single).items():
        _write(name, content)
    return path


def files(document: Document, path: Path, format: Format, single: bool = True) -> dict[Path, bytes]:
    """What a document is written as: every file and its content, the page last."""
    if format == "html":
        return {path: html.page(document).encode()}
    drawn = list(document.pictures)

    def each(folder: Path, kind: Format) -> dict[Path, bytes]:
        found = {}
        for i, p in enumerate(drawn):
            logs.step("drawing", i, len(drawn), "pictures")
            found[folder / f"{p.name}.{kind}"] = pictures.encoded(p.drawn, kind)
        logs.step("drawing", len(drawn), len(drawn), "pictures")
        return found

    if format == "md":
        beside = path.with_name(f"{path.stem}-pictures")
        return {**each(beside, "png"), path: markdown(document, beside.name).encode()}
    if not drawn:
        raise BadInput(f"{path} is not written: there is nothing to draw yet; --out FILE.html has the tables")
    if single:
        return {path: _sheet(document, format)}
    told = "\n".join([f"# {_plain(document.title)}", "", _plain(document.sub), ""])
    told += "".join(f"\n**{p.name}.{format}**: {_plain(p.title)}. {_plain(p.caption)}\n" for p in drawn)
    return {**each(path, format), path / "captions.md": told.encode()}


def _sheet(document: Document, format: Format) -> bytes:
    """All pictures below each other, with the title and the captions."""
    strips = [pictures.words(document.title, 14, bold=True), pictures.words(document.sub)]
    for p in document.pictures:
        strips += [pictures.words(p.title, 11, bold=True), p.drawn, pictures.words(p.caption)]
    return pictures.sheet(strips, format)


def markdown(document: Document, folder: str) -> str:
    """The document as Markdown, with its pictures in `folder` beside it."""
    head = [f"# {_plain(document.title)}", _plain(document.sub)]
    return "\n\n".join([*head, *(text for part in document.parts if (text := _part(part, folder)))]) + "\n"


def _part(part: Part, folder: str) -> str:
    match part:
        case Heading(text):
            return f"## {_plain(text)}"
        case Words(text):
            words = re.split(r"(`[^`]+`)", " ".join(text.split()))
            return "".join(p if i % 2 else _escaped(p) for i, p in enumerate(words))
        case Code(text):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Table(header, rows, caption):
            return _table(header, rows, caption)
        case Folded(title, settings) if settings:
            return _table([], [(key, leaf(value)) for key, value in settings.items()], title)
        case Picture(name, title, caption):
            file = f"{quote(folder)}/{name}.png"
            return f"![{_plain(title)}]({file})\n\n*{_plain(title)}.* {_plain(caption)}"
    return ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    width = max((len(row) for row in [header, *rows]), default=0)
    if not width:
        return ""
    head = header or [""] * width
    lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in [head, *rows]]
    return "\n".join([f"**{_plain(caption)}**", "", lines[0], "|" + " --- |" * width, *lines[1:]])


def _plain(text: str) -> str:
    """Text in which nothing is Markdown."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(path, content)
    except OSError as error:
        if storage.is_full(error):
            raise Stopped(f"{path} cannot be written: {error.strerror}; free some and repeat the command") from error
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error
