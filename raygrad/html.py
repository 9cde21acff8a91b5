"""What pages are made of: figures, tables, folded settings, and the document around them."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from raygrad import pictures, storage
from raygrad.citations import MAIN
from raygrad.errors import BadInput, Stopped
from raygrad.report import Leaf, leaf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = Mapping[str, Leaf]


def figure(drawn: "Figure", name: str, title: str, caption: str, told: str = "") -> str:
    """A picture with its caption; `told` is further alternative text."""
    drawing = pictures.inline(drawn, name, f"{title}. {caption} {told}".strip())
    return f'<figure id="{name}">{drawing}<figcaption>{escape(caption)}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names the rows. With a header its cells do not wrap."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    opening = '<div class="wide"><table class="grid">' if header else '<div class="wide"><table>'
    return f"{opening}<caption>{escape(caption)}</caption>{head}<tbody>{body}</tbody></table></div>"


def details(title: str, settings: Settings, opened: bool = False) -> str:
    """Settings that can be folded away."""
    if not settings:
        return ""
    inside = table([], [(key, leaf(value)) for key, value in settings.items()], title)
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inside}</details>"


def document(title: str, parts: Sequence[str]) -> str:
    """A page of its own, which needs nothing from outside."""

    def rule(variables: Mapping[str, str]) -> str:
        return "".join(f"{name}:{colour};" for name, colour in variables.items())

    style = (
        f":root{{color-scheme:light dark;{rule(pictures.LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{rule(pictures.DARK)}}}}}" + _STYLE
    )
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · raygrad</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def write(page: str, out: Path) -> Path:
    """Write a page to `out`, or to report.html in that folder. Raises BadInput, or Stopped on a full disk."""
    path = out / "report.html" if out.is_dir() else out
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(path, page.encode())
    except OSError as error:
        if storage.is_full(error):
            raise Stopped(f"{path} cannot be written: {error.strerror}; free some and repeat the command") from error
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error
    return path


CITED = f"<h2>Citation</h2><p>{escape(MAIN.short)}</p><pre>{escape(MAIN.bibtex)}</pre>"

_STYLE = """
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{margin:0;font-size:1.75rem;line-height:1.2}
h2{margin:2.5rem 0 .75rem;font-size:1.2rem}
.sub,.note,figcaption{color:var(--muted)}
.sub{margin:.25rem 0 1.5rem}
.note,figcaption{font-size:.875rem;margin:.5rem 0 0}
figure{margin:0 0 1rem;break-inside:avoid;overflow-x:auto}
svg{display:block;width:100%;min-width:36rem;height:auto}
code{white-space:nowrap}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:0 0 .5rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem 1.25rem .3rem 0;border-bottom:1px solid var(--grid)}
th[scope=row]{font-weight:400;color:var(--muted);white-space:nowrap}
thead th{font-weight:600;vertical-align:bottom}
.grid :is(th,td){padding-right:.9rem}
.grid tbody :is(th,td){white-space:nowrap}
pre{overflow-x:auto;padding:.75rem 1rem;border:1px solid var(--grid);border-radius:4px;font-size:.875rem}
details{margin:.5rem 0}
summary{cursor:pointer}
details caption{display:none}
"""
