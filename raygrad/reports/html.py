"""A document as one HTML page that needs nothing from outside."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from raygrad import logs
from raygrad.reports import pictures
from raygrad.reports.document import Code, Document, Folded, Heading, Part, Picture, Table, Words
from raygrad.reports.report import leaf


def page(document: Document) -> str:
    """The page."""

    def rule(variables: Mapping[str, str]) -> str:
        return "".join(f"{name}:{colour};" for name, colour in variables.items())

    style = (
        f":root{{color-scheme:light dark;{rule(pictures.LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{rule(pictures.DARK)}}}}}" + _STYLE
    )
    head = f'<h1>{escape(document.title)}</h1>\n<p class="sub">{escape(document.sub)}</p>'
    said, count = [head], len(list(document.pictures))
    drawn = 0
    for part in document.parts:
        if isinstance(part, Picture):
            logs.step("drawing", drawn, count, "pictures")
            drawn += 1
        said.append(_part(part))
    logs.step("drawing", count, count, "pictures")
    body = "\n".join(text for text in said if text)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.name)} · raygrad</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _part(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Words(text, note):
            said = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
            return f'<p class="note">{said}</p>' if note else f"<p>{said}</p>"
        case Code(text):
            return f'<pre tabindex="0">{escape(text)}</pre>'
        case Table(header, rows, caption):
            return _table(header, rows, caption)
        case Folded(title, settings, opened) if settings:
            inside = _table([], [(key, leaf(value)) for key, value in settings.items()], title)
            return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inside}</details>"
        case Picture(name, title, caption, drawn, told):
            drawing = pictures.inline(drawn, name, f"{title}. {caption} {told}".strip())
            return (
                f'<figure id="{name}"><div class="wide" tabindex="0">{drawing}</div>'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
    return ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    opening = f'<table class="grid"><caption>{escape(caption)}' if header else f"<table><caption>{escape(caption)}"
    return f'<div class="wide" tabindex="0">{opening}</caption>{head}<tbody>{body}</tbody></table></div>'


_STYLE = """
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{margin:0;font-size:1.75rem;line-height:1.2}
h2{margin:2.5rem 0 .75rem;font-size:1.2rem}
.sub,.note,figcaption{color:var(--muted)}
.sub{margin:.25rem 0 1.5rem}
.note,figcaption{font-size:.875rem;margin:.5rem 0 0}
figure{margin:0 0 1rem;break-inside:avoid}
svg{display:block;width:100%;min-width:36rem;height:auto}
code{white-space:nowrap}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:0 0 .5rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem 1.25rem .3rem 0;border-bottom:1px solid var(--grid)}
th[scope=row]{font-weight:400;color:var(--muted);white-space:nowrap}
thead th{font-weight:600;vertical-align:bottom}
.grid :is(th,td){padding-right:.9rem}
.grid tbody td{white-space:nowrap}
.grid tbody th{white-space:normal;min-width:12rem;overflow-wrap:anywhere}
pre{overflow-x:auto;padding:.75rem 1rem;border:1px solid var(--grid);border-radius:4px;font-size:.875rem}
details{margin:.5rem 0}
summary{cursor:pointer}
details caption{display:none}
@media print{
main{max-width:none;padding:0}
h2,caption,summary{break-after:avoid}
tr,figure{break-inside:avoid}
svg{min-width:0}
.wide,pre{overflow:visible}
pre{white-space:pre-wrap;overflow-wrap:anywhere}
.grid{font-size:.7rem}
.grid :is(th,td),.grid tbody :is(th,td){white-space:normal;min-width:0;padding-right:.5rem;overflow-wrap:break-word}
.grid tbody th{min-width:8rem}
details::details-content{content-visibility:visible;block-size:auto}
}
"""
