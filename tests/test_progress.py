"""What commands show of long work: on a terminal, in a pipe, as JSON, and nothing where it shall be quiet."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raygrad import cli, load, logs
from raygrad.data import shards as shards_module
from raygrad.data.digits import Digits
from raygrad.data.partition import IID
from raygrad.logs import Step
from raygrad.progress import JsonLines, Lines, Pace, Screen, display, finite

QUICK = ["--on", "local", "--no-report", "--rounds", "4", "--set", "model=linear", "--set", "evaluation.every=2"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYGRAD_LOG_LEVEL", raising=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


def clock() -> tuple[list[float], Any]:
    now = [0.0]
    return now, lambda: now[0]


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_something_long_come_ever_more_seldom() -> None:
    now, tick = clock()
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200), tick)
    for second in range(301):
        now[0] = float(second)
        lines.step(Step("writing shards", second, 300, "clients"))
    said = out.getvalue().splitlines()
    assert [int(line.split()[2]) for line in said] == [2, 6, 14, 30, 62, 122, 182, 242, 300]
    assert said[2] == "writing shards: 14 of 300 clients · 4:46 left"


def test_what_is_short_is_no_line() -> None:
    now, tick = clock()
    out = io.StringIO()
    lines, told = Lines(Console(file=out), tick), JsonLines(out, clock=tick)
    for i in range(11):
        now[0] = i * 0.04
        for shown in (lines, told):
            shown.step(Step("writing shards", i, 10, "clients"))
    assert out.getvalue() == ""


def test_further_numbers_of_a_sweep() -> None:
    now, tick = clock()
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200), tick)
    numbers = {"running": 2, "failed": 0, "best": 0.93333, "best_trial": 3, "waiting": None}
    for second, done in ((0, 0), (10, 5)):
        now[0] = second
        lines.step(Step("searching", done, 20, "trials", numbers))
    assert out.getvalue() == "searching: 5 of 20 trials · 2 running · best 0.9333 · 0:30 left\n"


def test_the_time_left_counts_from_where_it_began_here() -> None:
    now, tick = clock()
    pace = Pace(tick)
    pace.take(Step("fetching", 60, 100, "bytes"))
    assert pace.seconds_left is None
    now[0] = 10.0
    pace.take(Step("fetching", 70, 100, "bytes"))
    assert pace.seconds_left == 30.0


def test_a_terminal_shows_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, tick = clock()
    monkeypatch.setattr("raygrad.progress.monotonic", tick)
    monkeypatch.setattr(Pace.__init__, "__defaults__", (tick,))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with display(console=console) as screen:
        assert isinstance(screen, Screen)
        screen.waiting("preparing the data")
        logs.step("writing shards", 3, 10, "clients")
        assert "writing" not in drawn(screen)
        now[0] = 2.0
        logs.step("writing shards", 4, 10, "clients")
        assert "writing shards: 4 of 10 clients" in drawn(screen) and "0:12 left" in drawn(screen)
        with logs.about("digits/a", 3):
            logging.getLogger("raygrad.x").warning("a host was lost")
        logs.step("writing shards", 10, 10, "clients")
        assert "preparing the data" in drawn(screen)
    assert "warning digits/a round 3: a host was lost" in out.getvalue()


def test_names_are_shown_as_they_are() -> None:
    """No markup, no emoji: they are paths to copy."""
    line = "runs/a:bug:b/[red]1"
    for kind, size in ((Lines, {}), (Screen, {"width": 80, "force_terminal": True})):
        out = io.StringIO()
        kind(Console(file=out, **size)).say(line)
        assert line in out.getvalue()


def drawn(screen: Screen) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(screen._draw())
    return out.getvalue()


def test_json_has_one_object_a_line_and_no_numbers_that_json_lacks() -> None:
    out = io.StringIO()
    now, tick = clock()
    told = JsonLines(out, clock=tick)
    for i in range(4):
        now[0] = 0.4 * i
        told.step(Step("fetching", i, 3, "bytes", {"best": float("nan")}))
    told.event({"event": "round", "validation": {"loss": float("inf"), "accuracy": 0.5}})
    found = events(out.getvalue())
    assert [(e["event"], e.get("done")) for e in found] == [("progress", 2), ("progress", 3), ("round", None)]
    assert found[0]["best"] is None and found[2]["validation"] == {"loss": None, "accuracy": 0.5}
    assert all(e["time"].endswith("Z") for e in found)
    assert finite({"a": [float("-inf"), 1.5], 2: None}) == {"a": [None, 1.5], "2": None}


def test_preparing_shards_says_how_far_it_is(tmp_path: Path) -> None:
    heard: list[logging.LogRecord] = []

    class Hear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    with logs.listening(logging.NullHandler(), "error", Hear()):
        shards_module.prepare(Digits(), IID(4), shard_root=tmp_path, data_root=None, seed=0, validation=0.1)
    steps = [r.step for r in heard]  # type: ignore[attr-defined]
    assert steps == [Step("writing shards", n, 4, "clients") for n in (1, 2, 3, 4)]


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    found = cli.run(words)
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def test_a_run_as_json(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    out, err = said(capsys, "run", *QUICK, "--json", "--shard-root", str(shards))
    found = events(out)
    rounds = [e for e in found if e["event"] == "round"]
    assert err == "" and [e["round"] for e in rounds] == [1, 2, 3, 4]
    assert rounds[0]["validation"] is None and 0 <= rounds[1]["validation"]["accuracy"] <= 1
    last = found[-1]
    run = load("digits")
    assert last["event"] == "summary" and last["at"] == str(run.folder.resolve()) and last["digest"] == run.digest()
    assert last["communications"] == rounds[-1]["communications"] == 8 and last["final"]["round"] == 4
    out, _ = said(capsys, "resume", "digits", "--rounds", "5", "--json", "--quiet", "--no-report")
    (only,) = events(out)
    assert (only["event"], only["rounds"]) == ("summary", 5)


def test_runs_and_sweeps_are_listed_as_json(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    said(capsys, "run", *QUICK, "--quiet", "--shard-root", str(shards))
    said(capsys, "run", *QUICK, "--quiet", "--shard-root", str(shards), "--name", "b")
    run = load("b")
    next((run.folder / "rounds").glob("*.parquet")).write_bytes(b"no table")
    damaged, whole = events(said(capsys, "list", "runs", "--json")[0])
    assert (damaged["run"], damaged["state"]) == (f"b/{run.folder.name}", "damaged") and damaged["message"]
    assert (whole["state"], whole["rounds"], whole["settings"]["algorithm.kind"]) == ("finished", 4, "fedga")
    assert 0 <= whole["accuracy"] <= 1
    assert said(capsys, "list", "sweeps", "--json") == ("", "")
    assert "runs and sweeps" in said(capsys, "list", "models", "--json", code=2)[1]


def test_errors_as_json(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    out, err = said(capsys, "run", *QUICK, "--json", "--alpha", "3e38", "--shard-root", str(shards), code=3)
    last = events(out)[-1]
    assert (last["event"], last["exit_code"]) == ("error", 3) and "not finite" in last["message"]
    assert err.startswith("raygrad: ") and last["notes"]
    out, _ = said(capsys, "resume", "nothing", "--json", code=2)
    assert [e["event"] for e in events(out)] == ["error"]


def test_what_may_not_be_written_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "runs/digits")

    monkeypatch.setattr("raygrad.files.runs.load", refused)
    out, err = said(capsys, "resume", "digits", "--json", code=2)
    assert err == "raygrad: runs/digits: Permission denied\n"
    assert [(e["event"], e["message"]) for e in events(out)] == [("error", "runs/digits: Permission denied")]


def test_clients_that_are_left_out_are_logged_and_folded(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    diverging = [*QUICK, "--shard-root", str(shards), "--alpha", "3e38", "--set", "failures.nan=skip",
                 "--set", "failures.quorum=0"]  # fmt: skip
    _, err = said(capsys, "run", *diverging)
    first, folded = err.splitlines()
    run = f"digits/{load('digits').folder.name}"
    assert first.startswith("raygrad: ") and f"warning {run} round 1: 10 of 10 clients left out" in first
    assert folded.endswith("… repeated 3 times") and f"{run} round 4" in folded
    _, err = said(capsys, "run", *diverging, "--quiet")
    assert "left out" not in err
    out, err = said(capsys, "run", *diverging, "--json")
    logged = [e for e in events(out) if e["event"] == "log"]
    assert err == "" and [(e["level"], e["round"]) for e in logged] == [("warning", 1), ("warning", 4)]


def test_the_log_level_may_be_set(
    capsys: pytest.CaptureFixture[str], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", *QUICK, "--shard-root", str(shards), "--rounds", "2"]
    _, err = said(capsys, *words, "--log-level", "info")
    assert "round 2: done in " in err and "10 clients answered" in err
    monkeypatch.setenv("RAYGRAD_LOG_LEVEL", "info")
    assert "round 2: done in " in said(capsys, *words)[1]
    assert said(capsys, *words, "--log-level", "warning")[1] == ""
    assert "loud" in said(capsys, *words, "--log-level", "loud", code=2)[1]


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    yield
    assert logging.getLogger("raygrad").handlers == []
