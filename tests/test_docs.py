"""What the documents show works: code blocks run, commands parse, links lead somewhere, tables agree with the code."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from raygrad.algorithms import ALGORITHMS
from raygrad.errors import EXIT_CODES
from raygrad.samplers import SAMPLERS
from raygrad.stragglers import POLICIES
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


@pytest.mark.parametrize(("page", "found"), [
    ("stragglers.md", {"present": [10, 10, 8, 8, 9, 9], "len(clients)": 13, "closing.counts.sum()": 10}),
    ("sampling.md", {"set(cohort.clients % 2)": {1}, "len(cohort)": 4}),
    ("progress.md", {"last": 4}),
    ("sweeps.md", {"list(search.dimensions)": ["algorithm.lr", "algorithm"], "search.fresh_seeds": (3, 4, 5)}),
])  # fmt: skip
def test_python_blocks_run(
    page: str, found: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks(ROOT / "docs" / page, "python"):
        exec(code, names)
    for expression, value in found.items():
        assert eval(expression, names) == value


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text()):
        assert (ROOT / file).is_file(), f"{page.name} names {file}"
        assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), f"{page.name} names {name}"


@pytest.mark.parametrize(("page", "registry"), [("stragglers.md", POLICIES), ("sampling.md", SAMPLERS)])
def test_pages_name_every_kind_and_field(page: str, registry: dict[str, type]) -> None:
    text = (ROOT / "docs" / page).read_text()
    for kind, cls in registry.items():
        assert re.search(rf"^\| `{kind}`", text, re.M), kind
        assert [f.name for f in fields(cls) if f"`{f.name}`" not in text] == []


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
