"""What the documents show works: code blocks run, commands parse, links lead somewhere, tables agree with the code."""

import re
import shlex
from pathlib import Path

import pytest

from raygrad.algorithms import ALGORITHMS
from raygrad.errors import EXIT_CODES
from raygrad.verify import suite

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Every raygrad command in a page: in plain code blocks and in inline code."""
    text = page.read_text()
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    lines = [part for line in lines for part in line.removeprefix("$ ").split(" && ")]
    lines += re.findall(r"`(raygrad [^`]+)`", text)
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"(\S*/)?raygrad ", line)]
    return [c[1:] for c in found if "…" not in " ".join(c) and "=>" not in c]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page: Path) -> None:
    import typer

    from raygrad.cli import app

    group = typer.main.get_command(app)
    assert page.name not in ("README.md", "guide.md") or len(commands(page)) > 10
    for words in commands(page):
        if words[0].startswith("--"):
            continue
        command = group.commands.get(words[0])  # type: ignore[attr-defined]
        assert command is not None, words
        if "--help" not in words and not any(w.isupper() and w.isalpha() for w in words[1:]):
            command.make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(code.replace('"rounds", "20"', '"rounds", "5"'), names)
    assert names["table"].num_rows == 5  # type: ignore[attr-defined]


def test_contributing_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The algorithm that CONTRIBUTING shows passes the property suite as it stands there."""
    monkeypatch.syspath_prepend(tmp_path)
    (code,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    (tmp_path / "fedavgm.py").write_text(code)
    assert [c for c in suite("fedavgm:FedAvgM", on_ray=False) if not c.ok] == []


def test_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", (ROOT / "README.md").read_text(), re.M)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


def test_algorithms_page_lists_every_algorithm() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "algorithms.md").read_text(), re.M)
    assert sorted(listed) == sorted(ALGORITHMS)
