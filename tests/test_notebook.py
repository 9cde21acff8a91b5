"""What notebooks show of runs and rounds, and the tutorial, which is run."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import raygrad
from raygrad.algorithms.fedga import FedGA
from raygrad.files import tables
from raygrad.files.runs import LoadedRun
from raygrad.notebook import run_html
from raygrad.verify import problem

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


class Balanced(HTMLParser):
    """Fails on tags that are not closed."""

    VOID = ("use", "path", "rect", "line", "image", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path: Path) -> tuple[LoadedRun, list[raygrad.Round]]:
    experiment = problem(FedGA()).set("rounds", "4").set("evaluation.every", "2").set("probe.every", "2")
    rounds = list(raygrad.rounds(experiment, raygrad.Where(on="local"), run_root=tmp_path, name="a"))
    return raygrad.load(rounds[-1].folder), rounds


def test_a_round_is_a_table(run: tuple[LoadedRun, list[raygrad.Round]]) -> None:
    loaded, rounds = run
    text = rounds[1]._repr_html_()
    assert {"table", "td"} <= Balanced(text).seen
    assert f"a/{loaded.folder.name} · round 2 of 4" in text and "validation loss" in text and "r(x)" in text
    assert "validation" not in rounds[0]._repr_html_()
    assert len(text) < 2000


def test_a_run_is_a_table_with_its_curves(run: tuple[LoadedRun, list[raygrad.Round]]) -> None:
    text = run[0]._repr_html_()
    assert {"table", "svg", "style"} <= Balanced(text).seen
    assert "finished" in text and "communications" in text and "<script" not in text
    assert len(text) < 60_000
    assert "legend_1" not in text, "each panel has one curve, and its title says which"
    ids = re.findall(r'\bid="([^"]+)"', text + run[0]._repr_html_())
    assert len(ids) == len(set(ids)), "two pictures on a page may not share ids"


def test_a_run_that_goes_on_shows_what_there_is(tmp_path: Path) -> None:
    experiment = problem(FedGA()).set("rounds", "4").set("evaluation.every", "2")
    going = raygrad.rounds(experiment, raygrad.Where(on="local"), run_root=tmp_path, name="a")
    first = next(going)
    text = raygrad.load(first.folder)._repr_html_()
    assert "of 4 rounds</b>" in text and "finished</b>" not in text
    Balanced(text)
    going.close()
    assert "1 of 4 rounds" in raygrad.load(first.folder)._repr_html_()


@pytest.mark.parametrize("harm", ["no rounds", "a damaged table", "no folder", "a changed experiment"])
def test_a_run_that_cannot_be_read_says_so(
    harm: str, run: tuple[LoadedRun, list[raygrad.Round]], tmp_path: Path
) -> None:
    folder = run[0].folder
    part = next(tables.folder(folder, "rounds").glob("*.parquet"))
    if harm == "no rounds":
        for name in tables.TABLES:
            for file in tables.folder(folder, name).glob("*.parquet"):
                file.unlink()
        (folder / "final.json").unlink()
    elif harm == "a damaged table":
        part.write_bytes(part.read_bytes()[:-20])
    elif harm == "no folder":
        folder = tmp_path / "nothing"
    else:
        path = folder / "experiment.json"
        path.write_text(path.read_text().replace('"rounds"', '"<script>"'))
    text = run_html(folder)
    Balanced(text)
    assert ("0 of 4 rounds" if harm == "no rounds" else "cannot be shown") in text
    assert "<script>" not in text


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    assert all(not c.get("outputs") for c in notebook.cells), "strip the outputs before it is committed"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell fails
    shown = [out for c in notebook.cells for out in c.get("outputs", [])]
    text = "".join(out.get("text", "") for out in shown)
    assert "8 True" in text and "the bits of FedAvg: True" in text and "16 communications" in text
    assert not [out for out in shown if out.get("name") == "stderr"]
    drawn = [out["data"]["text/html"] for out in shown if "text/html" in out.get("data", {})]
    assert sum('class="raygrad"' in html for html in drawn) == 4
    assert not [html for html in drawn if "cannot be shown" in html]


def test_links_of_the_tutorial_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TUTORIAL.read_text()):
        assert (TUTORIAL.parent / target).exists(), target
