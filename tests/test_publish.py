"""Reports as files: every format, what cannot be written, damaged runs, and what a page says of a run's origin."""

import errno
import json
import logging
import os
import platform
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from raygrad import citations, cli, logs
from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BadInput, Stopped
from raygrad.experiment import Where
from raygrad.files import runs, storage, tables
from raygrad.recipes import RECIPES
from raygrad.reports import page as pages
from raygrad.reports import pictures, provenance, publish, report, turnout
from raygrad.reports.document import Code, Document, Folded, Heading, Picture, Table, Words
from raygrad.reports.timeline import Timeline, slowest
from raygrad.verify import problem


def made() -> Document:
    """A document with one of each part, and with text that means something in HTML and in Markdown."""
    curve = pictures.Curve("a", np.arange(3.0), np.arange(3.0))
    drawn = [pictures.lines([[pictures.Panel(t, "rounds", [curve])]]) for t in ("one", "two")]
    parts = [
        Heading("A <b> *title*"),
        Words("Run `raygrad run --rounds` for r_i | 2."),
        Table(["group", "a|b"], [["<a>", "1_2_3"], ["c*d*", ""]], "A [table]"),
        Picture("learning", "Learning", "It learns, |g_i|.", drawn[0]),
        Picture("hosts", "Hosts", "They work.", drawn[1]),
        Folded("Settings", {"algorithm.beta": 0.05}),
        Code("a = `b`\n```"),
    ]
    return Document("d/1", "d", "run d/1", parts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, finished."""
    root = tmp_path_factory.mktemp("runs")
    return list(engine.rounds(problem(FedGA()), Where(on="local"), run_root=root, name="digits"))[-1].folder


# --- formats


def test_markdown_has_its_pictures_beside_it_and_says_what_the_document_says(tmp_path: Path) -> None:
    out = publish.write(made(), tmp_path / "my report.md")
    html = MarkdownIt().enable("table").render(out.read_text())
    tree = ElementTree.fromstring(f"<x>{html.replace('<br>', '')}</x>")
    images = [image.get("src") for image in tree.iter("img")]
    assert images == ["my%20report-pictures/learning.png", "my%20report-pictures/hosts.png"]
    for name in ("learning", "hosts"):
        assert Image.open(tmp_path / "my report-pictures" / f"{name}.png").width == 1840
    assert [h.text for h in tree.iter("h2")] == ["A <b> *title*"]
    cells = ["".join(cell.itertext()) for table in list(tree.iter("table"))[:1] for cell in table.iter("td")]
    assert cells == ["<a>", "1_2_3", "c*d*", ""]
    assert "Run raygrad run --rounds for r_i | 2." in ["".join(p.itertext()) for p in tree.iter("p")]
    assert [c.text for c in tree.iter("code")] == ["raygrad run --rounds", "a = `b`\n```\n"]
    assert not list(tree.iter("em"))[2:], "only the pictures' titles are set apart"


def test_a_sheet_has_all_pictures_below_each_other(tmp_path: Path) -> None:
    png, svg = (publish.write(made(), tmp_path / f"a.{kind}") for kind in ("png", "svg"))
    single = Image.open(publish.write(made(), tmp_path / "each", "png") / "learning.png")
    sheet = Image.open(png)
    assert sheet.width == single.width and sheet.height > 2 * single.height
    root = ElementTree.fromstring(svg.read_bytes())
    tops = [float(part.get("y", "")) for part in root if part.tag.endswith("svg")]
    assert len(tops) == 8 and tops == sorted(tops)  # title, sub; then a title, a picture and a caption for each
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    texts = {" ".join("".join(e.itertext()).split()) for e in root.iter() if e.tag.endswith("text")}
    assert {"run d/1", "Learning", "It learns, |g_i|.", "one", "two"} <= texts


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_folder_takes_one_file_for_each_picture_and_the_captions(tmp_path: Path, kind: str, start: bytes) -> None:
    folder = publish.write(made(), tmp_path / "figures", kind)  # pyright: ignore[reportArgumentType]
    assert sorted(p.name for p in folder.iterdir()) == ["captions.md", f"hosts.{kind}", f"learning.{kind}"]
    first = (folder / f"learning.{kind}").read_bytes()
    assert first.startswith(start)
    assert f"**learning.{kind}**: Learning. It learns, \\|g\\_i\\|." in (folder / "captions.md").read_text()
    publish.write(made(), folder, kind)  # pyright: ignore[reportArgumentType]
    assert (folder / f"learning.{kind}").read_bytes() == first


def test_many_grey_curves_stay_small() -> None:
    x = np.arange(200.0)
    grey = [pictures.Curve("", x, np.sin(x + i), series=None) for i in range(1000)]
    figure = pictures.lines([[pictures.Panel("t", "x", [*grey, pictures.Curve("best", x, x / 200)])]])
    assert len(pictures.encoded(figure, "svg")) < 500_000
    few = pictures.lines([[pictures.Panel("t", "x", grey[:3])]])
    assert len(few.axes[0].lines) == 3


# --- what cannot be written


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a.gif", None, "is written as .html, .md, .png, .svg, .pdf"),
        ("a.pdf", None, "--format pdf --out FOLDER"),
        ("a.md", "html", "is not named as html"),
        ("file", "png", "it is a file"),
        ("file/a.html", None, "is a file"),
        ("folder.html/..", None, None),
        ("", None, None),
    ],
)
def test_destinations(tmp_path: Path, name: str, format: publish.Format | None, message: str | None) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    if message is None:
        assert publish.destination(tmp_path / name, format)[0].name == "report.html"
        return
    with pytest.raises(BadInput, match=message):
        publish.destination(tmp_path / name, format)


def test_what_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.md"
    out.write_text("before")

    for number, kind in ((errno.EROFS, BadInput), (errno.ENOSPC, Stopped)):

        def refuse(path: Path, data: bytes, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(storage, "write_atomic", refuse)
        with pytest.raises(kind, match="cannot be written"):
            publish.write(made(), out)
    assert out.read_text() == "before"


def test_the_command_refuses_before_it_reads(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "view", lambda run: pytest.fail("it was read"))
    for arguments, said in (
        (["--out", "a.gif"], "a.gif: a report is written as"),
        (["--out", str(run / "experiment.json" / "a.html")], "is a file"),
        (["--out", "a.png", "--format", "svg"], "a.png is not named as svg"),
    ):
        code = cli.run(["report", str(run), *arguments])
        out = capsys.readouterr()
        assert code == 2 and said in out.err and out.err.count("\n") == 1 and not out.out
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


# --- damaged runs


def damages(run: Path) -> Iterator[str]:
    """Every file of a run in turn: cut, emptied, overwritten, gone, a folder; JSON files also with other values."""
    for file in sorted(p for p in run.rglob("*") if p.is_file() and "checkpoints" not in p.parts):
        kept = file.read_bytes()
        for what, content in (("half", kept[: len(kept) // 2]), ("empty", b""), ("junk", b"\x00\xff" * 50)):
            file.write_bytes(content)
            yield f"{file.name} {what}"
        file.unlink()
        yield f"{file.name} gone"
        file.mkdir()
        yield f"{file.name} a folder"
        file.rmdir()
        if file.suffix == ".json":
            for value in (None, [], 3):
                file.write_text(json.dumps(value))
                yield f"{file.name} {value}"
            whole = json.loads(kept)
            for key, value in ((k, v) for k in whole for v in (None, [], {}, "x", -7)):
                file.write_text(json.dumps({**whole, key: value}))
                yield f"{file.name} {key}={value}"
        file.write_bytes(kept)


def test_a_damaged_run_is_one_clear_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a run's files, a report is made or BadInput says what it is; nothing else is raised."""
    for name in ("lines", "participation", "partition", "timeline"):
        monkeypatch.setattr(pictures, name, lambda *args: None)
    copy = tmp_path / "digits" / "1"
    shutil.copytree(run, copy)
    refused = 0
    for what in damages(copy):
        try:
            pages.document(report.views([copy]))
        except BadInput as error:
            assert len(str(error).splitlines()) == 1 and str(tmp_path) in str(error), what
            refused += 1
    assert refused > 40
    assert pages.document(report.views([copy])).title == "digits"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("clients", "client", -1), ("clients", "client", 1 << 40), ("clients", "round", 0), ("rounds", "round", -3),
        ("seconds", "round", -50), ("seconds", "process", -2), ("seconds", "elapsed_s", float("nan")),
        ("operations", "start_s", float("nan")), ("operations", "wall_s", float("inf")),
    ],
)  # fmt: skip
def test_tables_with_values_that_no_run_writes_are_one_clear_line(
    run: Path, tmp_path: Path, table: str, column: str, value: float
) -> None:
    copy = tmp_path / "digits" / "1"
    shutil.copytree(run, copy)
    (part, *_) = sorted(tables.folder(copy, table).glob("*.parquet"))
    rows = pq.read_table(part)
    at, field = rows.schema.get_field_index(column), rows.schema.field(column)
    changed = pa.array([value, *rows[column].to_pylist()[1:]], field.type)
    pq.write_table(rows.set_column(at, field, changed), part)
    with pytest.raises(BadInput, match="does not fit") as caught:
        pages.document(report.views([copy]))
    assert str(part.parent) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_client_that_the_run_does_not_have() -> None:
    ids = np.arange(3)
    turnout.check(Path("r"), ids + 1, ids, 3)
    turnout.check(Path("r"), ids + 1, ids + 1000, 0)
    for rounds, clients in ((ids + 1, ids + 1), (ids, ids)):
        with pytest.raises(BadInput, match="r/clients does not fit a run of 3 clients"):
            turnout.check(Path("r"), rounds, clients, 3)


def test_a_round_number_takes_no_memory(tmp_path: Path, run: Path) -> None:
    """A damaged table may say that round 30,000,000 is over."""
    copy = tmp_path / "digits" / "1"
    shutil.copytree(run, copy)
    (part, *_) = sorted(tables.folder(copy, "seconds").glob("*.parquet"))
    rows = pq.read_table(part)
    at = rows.schema.get_field_index("round")
    rounds = pa.array([*rows["round"].to_pylist(), 30_000_000], pa.int32())
    longer = rows.take([*range(len(rows)), 0])
    pq.write_table(longer.set_column(at, rows.schema.field(at), rounds), part)
    tracemalloc.start()
    seconds = report.view(copy).seconds
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(seconds).all() and len(seconds) and most < 1e8


def test_json_that_is_nested_too_deep_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(BadInput, match=r"a\.json is damaged"):
        storage.read_json(tmp_path / "a.json")


# --- progress


def test_reading_and_drawing_say_how_far_they_are(run: Path, tmp_path: Path) -> None:
    shown = Steps()
    with logs.listening(logging.NullHandler(), "warning", shown):
        views = report.views([run])
        for name in ("a.html", "a.md"):
            publish.write(made(), tmp_path / name)
    assert len(views) == 1
    assert shown.said[:2] == ["reading runs: 0 of 1", "reading runs: 1 of 1"]
    assert shown.said[2:] == 2 * [f"drawing: {i} of 2 pictures" for i in range(3)]


class Steps(logging.Handler):
    """Remembers the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(str(getattr(record, "step", "")))


# --- where a run comes from


def test_environment_and_lineage(run: Path, tmp_path: Path) -> None:
    ray_version = metadata.version("ray")
    v = report.view(run)
    told = dict(provenance.environment(v))
    made_on = storage.read_json(run / "environment.json")
    assert f"python {platform.python_version()}" in told["software"] and f"ray {ray_version}" in told["software"]
    assert f"{made_on['cores']} cores" in told["machine"] and made_on["system"] in told["machine"]
    recorded = storage.read_json(run / "numerics.json")["numerics"]
    assert told["PyTorch"] == recorded["torch"] and told["NumPy"] == recorded["numpy"]
    assert told["ran"] == "in one process" and told["CPU kernels"] == recorded["cpu_capability"]
    assert provenance.lineage(v) == []
    forked = engine.fork(runs.load(run), ["algorithm.beta=0.3"], run_root=tmp_path, name="fork", rounds=99)
    rows = dict(provenance.lineage(report.view(forked.folder)))
    last = len(v.round)
    assert rows["forked from"].startswith(f"{v.title} after round {last},")
    assert rows["changed"] == f"algorithm.beta=0.3 after round {last}"
    text = publish.markdown(pages.document([report.view(forked.folder)]), "p")
    assert "## Lineage" in text and "## Environment" in text


def test_differences_are_settings_machines_and_numerics(run: Path) -> None:
    v = report.view(run)
    a = replace(v, settings={**v.settings, "algorithm.beta": 0.2}, where={**v.where, "on": "ray"})
    b = replace(v, numerics={**v.numerics, "numerics.torch": "1"}, settings={**v.settings, "seed": 7})
    groups = [report.Group("a", {}, (a,)), report.Group("b", {}, (v, b))]
    found = dict(provenance.differences(groups))
    assert found["algorithm.beta"] == ["0.2", report.leaf(v.settings["algorithm.beta"])]
    assert found["where: on"] == ["ray", "local"]
    torch = str(v.numerics["numerics.torch"])
    assert found["numerics: torch"] == [torch, f"{torch} or 1"] and len(found) == 3


def test_a_page_cites_what_the_command_cites(run: Path) -> None:
    for name, recipe in RECIPES.items():
        e = recipe()
        cited = list(dict.fromkeys([*citations.of(e), *citations.named(recipe.__doc__)]))
        assert citations.of_record(name, e.to_json()) == (cited, [])
    found, others = citations.of_record("mine", {"algorithm": {"kind": "nowhere:Mine", "inner": {"kind": "scaffold"}}})
    assert others == ["nowhere:Mine"] and "1910.06378" in found
    _, entries, _ = provenance.bibliography([report.view(run)])
    assert entries[0] == citations.MAIN.bibtex and entries[-1] == citations.software()


def attempts(*rows: tuple[int, int, float, int]) -> Timeline:
    """Round, phase, seconds and outcome of each."""
    rounds, phase, took, outcome = (np.array(c) for c in zip(*rows, strict=True))
    zero = np.zeros(len(rows), np.int64)
    return Timeline(
        ("a",), zero, zero * 1.0, took * 1.0, rounds, phase, zero, zero + 1, zero, ("answered", "lost"), outcome
    )


def test_stragglers_are_held_against_the_median_of_their_phase() -> None:
    found = attempts(
        (1, 0, 1.0, 0), (1, 0, 3.0, 0), (1, 0, 2.0, 0), (1, 1, 1.0, 0), (1, 1, 9.0, 1),  # the lost one does not count
        (2, 0, 1.0, 0), (2, 0, 4.0, 0), (2, 1, 5.0, 0), (2, 1, 5.0, 0),
        (3, 0, 7.0, 0),
    )  # fmt: skip
    rounds, ratio = slowest(found)
    assert rounds.tolist() == [1, 2] and ratio.tolist() == [1.5, 1.6]
    assert len(slowest(attempts((3, 0, 7.0, 1)))[0]) == 0


@pytest.mark.parametrize("n", [3, pictures.MAX_BARS + 1])
def test_the_hosts_picture_marks_what_was_not_answered(n: int) -> None:
    found = attempts(*((1 + i, 0, 1.0 + i, int(i == 2)) for i in range(n)))
    figure = pictures.timeline(found, slowest(found))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lost"]
    axes = figure.axes[0]
    assert len(axes.images) == (n > 3) and len(axes.collections) == (n == 3)
