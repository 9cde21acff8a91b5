"""What the viewer answers, without a browser: what it shows, what it refuses, and that it changes nothing."""

import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from conftest import viewing

from raygrad import cli
from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BadInput
from raygrad.experiment import Evaluation, Where
from raygrad.files import tables
from raygrad.files.remote import location
from raygrad.files.runs import locked
from raygrad.reports import report
from raygrad.verify import problem
from raygrad.viewer import answers, charts, server
from raygrad.viewer import catalog as catalog_module
from raygrad.viewer.catalog import Catalog, NotFound, Row


@pytest.fixture
def copy(run_root: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may damage."""
    return shutil.copytree(run_root, tmp_path / "runs")


@pytest.fixture
def catalog(copy: Path) -> Iterator[Catalog]:
    found = Catalog(copy)
    yield found
    found.close()


def runs(root: Path, name: str) -> list[str]:
    return sorted(f"{name}/{p.name}" for p in (root / name).iterdir())


def state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file with its time and content."""
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size, p.read_bytes() if p.is_file() else b"")
        for p in sorted(root.rglob("*"))
    }


def asked(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as e:
        return e.code, e.read(), dict(e.headers)


def test_the_list_says_what_the_runs_are(catalog: Catalog) -> None:
    rows, pending = catalog.rows(wait_s=30)
    assert pending == 0
    assert {(r.name, r.state, r.done, r.planned) for r in rows} == {
        ("fedga", "finished", 4, 4), ("fedavg", "finished", 4, 4), ("stopped", "stopped", 1, 4),
        ("searched", "finished", 4, 4),
    }  # fmt: skip
    for r in (r for r in rows if r.kind == "run"):
        v = report.view(catalog.folder(r.at))
        last = v.last("accuracy")
        assert (r.value, r.measure) == ((last[1], "validation accuracy") if last else (None, ""))
        assert r.seed == str(v.settings["seed"])


@pytest.mark.parametrize("mode", ["validation", "paper"])
def test_the_newest_value_is_the_one_after_the_last_round(tmp_path: Path, mode: Literal["validation", "paper"]) -> None:
    """Where the last round is no multiple of `evaluation.every`, final.json has what was measured after it."""
    for every, name in ((2, "between"), (10, "never")):
        evaluation = Evaluation(mode=mode, every=every)
        experiment = replace(problem(FedGA()), rounds=3, evaluation=evaluation)
        for _ in engine.rounds(experiment, Where(on="local"), run_root=tmp_path, name=name):
            pass
    catalog = Catalog(tmp_path)
    rows, _ = catalog.rows(wait_s=30)
    catalog.close()
    part = "test" if mode == "paper" else "validation"
    assert len(rows) == 2
    for r in rows:
        assert report.view(catalog.folder(r.at)).last("accuracy") == (3, r.value) and r.measure == f"{part} accuracy"


def test_a_run_that_is_being_written_is_running(catalog: Catalog, copy: Path) -> None:
    at = runs(copy, "stopped")[0]
    assert answers.run(catalog, at)["state"] == "stopped"
    with locked(copy / at):
        assert answers.run(catalog, at)["state"] == "running"
        assert {r.at: r.state for r in catalog.rows(30)[0]}[at] == "running"
    assert {r.at: r.state for r in catalog.rows(30)[0]}[at] == "stopped"


def test_the_newest_are_shown_while_the_others_are_read(
    catalog: Catalog, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    read = catalog._line

    def line(folder: Path) -> Row:
        assert folder not in newest[2:] or go_on.wait(30)
        return read(folder)

    folders = [p.parent for kind in ("experiment", "sweep") for p in copy.glob(f"*/*/{kind}.json")]
    newest = sorted(folders, key=lambda p: p.name, reverse=True)
    monkeypatch.setattr(catalog_module, "NEWEST", 2)
    monkeypatch.setattr(catalog, "_line", line)
    rows, pending = catalog.rows(30, whole=False)
    assert ([copy / r.at for r in rows], pending) == (newest[:2], len(newest) - 2)
    go_on.set()
    rows, pending = catalog.rows(30)
    assert ([copy / r.at for r in rows], pending) == (newest, 0)


def test_an_empty_root_has_nothing_to_read(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    assert catalog.rows(30) == ([], 0)
    catalog.close()


def test_what_is_new_is_in_the_next_answer(catalog: Catalog, copy: Path) -> None:
    at = runs(copy, "fedga")[0]
    for i in range(20):
        shutil.copytree(copy / at, copy / f"again/20300101-{i:06d}-again")
        assert catalog.rows(30, whole=False)[0][0].at == f"again/20300101-{i:06d}-again"
        shutil.rmtree(copy / "again")
        assert catalog.rows(30)[0][0].name != "again"


def test_what_may_not_be_looked_into_is_in_the_list(
    copy: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may look into everything, so that it may not is acted."""
    closed = copy / runs(copy, "fedga")[0]
    is_file = Path.is_file

    def asked(path: Path) -> bool:
        if path.parent == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", asked)
    rows, pending = catalog.rows(30)
    (row,) = [r for r in rows if copy / r.at == closed]
    assert pending == 0 and row.state == "damaged" and "Permission denied" in row.message
    scandir = os.scandir

    def scanned(path: Path) -> object:
        if path == closed.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanned)
    rows, _ = catalog.rows(30)
    assert rows and all(row.name != closed.parent.name for row in rows)
    assert catalog.note == f"the folder {closed.parent.name} cannot be read: Permission denied"
    monkeypatch.setattr(os, "scandir", scandir)
    assert catalog.rows(30) and not catalog.note
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cli.run(["view", "--run-root", str(copy)]) == 2
    assert f"the run root {copy} cannot be read" in capsys.readouterr().err


def test_who_looks_keeps_nobody_from_writing(copy: Path) -> None:
    """A run starts although somebody asks all the time whether it is being written."""
    folder = copy / runs(copy, "stopped")[0]
    code = (
        "import sys; from pathlib import Path; from raygrad.files import storage\n"
        "print('looking', flush=True)\nwhile True: storage.held(Path(sys.argv[1]))"
    )
    with locked(folder):
        pass
    looking = subprocess.Popen([sys.executable, "-c", code, str(folder / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert looking.stdout is not None and looking.stdout.readline() == "looking\n"
        for _ in range(200):
            with locked(folder):
                pass
    finally:
        looking.kill()
        looking.communicate()


def test_curves_are_the_tables(catalog: Catalog, copy: Path) -> None:
    at = runs(copy, "fedga")[0]
    v = report.view(copy / at)
    found = answers.run_curves(catalog, at, "communications")
    accuracy = next(p for p in found["learning"] if "accuracy" in p["title"])["curves"][0]
    measured = np.isfinite(v.accuracy)
    assert accuracy["x"] == v.communications[measured].tolist()
    np.testing.assert_allclose(accuracy["y"], v.accuracy[measured], rtol=1e-5)
    r = next(p for p in found["alignment"] if p["title"] == "r(x)")["curves"][0]
    np.testing.assert_allclose(r["y"], v.probes.values["r"], rtol=1e-5)


def test_participation_counts_every_answer(catalog: Catalog, copy: Path) -> None:
    at = runs(copy, "fedga")[0]
    table = tables.read(copy / at, "clients", ["round", "client", "outcome"])
    found = answers.participation(catalog, at)
    assert [k["name"] for k in found["kinds"]] == ["answered"]
    width = len(found["columns"]) - 1
    cells = {
        (c // width, c % width + 1): n
        for c, n in zip(*(found["kinds"][0][k] for k in ("cells", "counts")), strict=True)
    }
    expected = dict.fromkeys(zip(table["client"].to_pylist(), table["round"].to_pylist(), strict=True), 1)
    assert cells == expected


def test_cells_are_shared_where_there_are_many() -> None:
    draw = np.random.default_rng(0)
    rows, columns, kind = draw.integers(0, 1000, 5000), draw.integers(0, 7000, 5000), draw.integers(0, 2, 5000)
    found = charts.counts(rows, columns, kind, ["answered", "late"], (1000, 7000), (100, 300))
    assert (len(found["rows"]), len(found["columns"])) == (101, 301)
    for k in (0, 1):
        assert sum(found["kinds"][k]["counts"]) == int((kind == k).sum())
    cell = found["kinds"][1]["cells"][0]
    down, across = divmod(cell, 300)
    inside = (rows >= found["rows"][down]) & (rows < found["rows"][down + 1]) & (kind == 1)
    inside &= (columns >= found["columns"][across]) & (columns < found["columns"][across + 1])
    assert found["kinds"][1]["counts"][0] == int(inside.sum())


def test_a_comparison_groups_seeds(catalog: Catalog, copy: Path) -> None:
    ats = [*runs(copy, "fedga"), *runs(copy, "fedavg")]
    found = answers.compare(catalog, ats, "communications", None)
    header, rows = report.comparison([copy / at for at in ats])
    assert (found["table"]["header"], found["table"]["rows"]) == (header, rows)
    assert [row[1] for row in rows] == ["2", "2"]
    assert found["differences"]["header"] == ["setting", "fedga", "fedavg"]
    assert ["algorithm.kind", "fedga", "fedavg"] in found["differences"]["rows"]
    for panel in found["learning"]:
        assert [c["label"] for c in panel["curves"]] == ["fedga", "fedavg"]
        assert all(c["low"] is not None for c in panel["curves"])
    with pytest.raises(BadInput, match="no runs are chosen"):
        answers.compare(catalog, [], "round", None)


def test_lineage_and_commands(catalog: Catalog, copy: Path) -> None:
    from raygrad import run as engine
    from raygrad.files.runs import load

    parent = runs(copy, "fedga")[0]
    child = engine.fork(load(copy / parent), ["algorithm.lr=0.05"], run_root=copy, name="child", rounds=6)
    catalog.rows(30)
    at = f"child/{child.folder.name}"
    found = answers.run(catalog, at)
    assert found["lineage"]["parent"]["run"] == parent
    assert found["lineage"]["changes"] == ["4:algorithm.lr=0.05"]
    assert answers.forks(catalog, parent, 30) == [at] and answers.forks(catalog, at, 30) == []
    assert dict(found["commands"])["resume"] == f"raygrad resume {copy}/{at}"
    assert "resume" not in dict(answers.run(catalog, parent)["commands"])


@pytest.mark.parametrize(
    "at",
    [
        "",
        "fedga",
        "fedga/none",
        "../x/y",
        "fedga/../fedga",
        "/etc/passwd",
        "a/\0",
        ".shards/x",
        "fedga//x",
        f"fedga/{'x' * 300}",
    ],
)
def test_paths_stay_under_the_run_root(catalog: Catalog, at: str) -> None:
    with pytest.raises(NotFound):
        catalog.folder(at)


def test_a_link_out_of_the_run_root_is_not_followed(catalog: Catalog, copy: Path, run_root: Path) -> None:
    (copy / "fedga" / "elsewhere").symlink_to(run_root / runs(run_root, "fedga")[0])
    with pytest.raises(NotFound):
        catalog.folder("fedga/elsewhere")


def damages() -> dict[str, tuple[str, bytes]]:
    return {
        "settings that end early": ("experiment.json", b'{"schema_version": 1, "exper'),
        "settings that are no object": ("experiment.json", b"[]"),
        "settings without an experiment": ("experiment.json", b'{"schema_version": 1}'),
        "a table that ends early": ("rounds", b"PAR1"),
        "an empty table": ("rounds", b""),
        "something else": ("probes", b"not a table at all"),
        "settings that are nested too deeply": ("experiment.json", b"[" * 100_000),
    }


@pytest.mark.parametrize("what", damages())
def test_what_is_damaged_is_said_and_hides_nothing_else(catalog: Catalog, copy: Path, what: str) -> None:
    place, content = damages()[what]
    at = runs(copy, "fedga")[0]
    path = copy / at / place
    (path if path.is_file() else sorted(path.glob("*.parquet"))[-1]).write_bytes(content)
    before = state(copy)
    rows = {r.at: r for r in catalog.rows(30)[0]}
    assert sum(r.state == "finished" for r in rows.values()) >= 3
    if place != "probes":  # the list does not read them
        assert rows[at].state == "damaged" and place in rows[at].message
    with pytest.raises(BadInput) as e:
        answers.run(catalog, at)
    assert "\n" not in str(e.value)
    assert state(copy) == before


def test_what_no_raygrad_wrote_hides_nothing_else(copy: Path) -> None:
    """A list, and one line about each run, whatever lies about in the run root."""
    stopped, (fork, nan) = runs(copy, "stopped")[0], runs(copy, "fedga")
    record = json.loads((copy / fork / "experiment.json").read_bytes())
    (copy / fork / "experiment.json").write_text(json.dumps({**record, "forked_from": "x"}))
    for part in (copy / nan / "rounds").iterdir():
        part.unlink()
    (copy / nan / "final.json").write_text('{"validation": {"accuracy": NaN}, "test": {"loss": Infinity}}')
    (copy / "linked").mkdir()
    shutil.move(copy / runs(copy, "fedavg")[0], copy.parent / "away")
    (copy / "linked" / "away").symlink_to(copy.parent / "away")
    shutil.copytree(copy / stopped, os.fsdecode(os.fsencode(copy) + b"/by\xff\xfete/one"))
    (copy / stopped / ".lock").unlink(missing_ok=True)
    os.mkfifo(copy / stopped / ".lock")
    with viewing(copy) as address:
        for _ in range(100):
            status, body, _ = asked(f"{address}api/list")
            assert status == 200
            if not (found := json.loads(body, parse_constant=pytest.fail))["pending"]:
                break
            sleep(0.1)
        assert found["pending"] == 0
        states = {r["at"]: r["state"] for r in found["rows"]}
        assert states[fork] == "finished" and states[stopped] == "stopped" and nan in states
        assert "linked/away" not in states and states["by??te/one"] == "damaged"
        for at in (fork, nan, stopped):
            for what in ("run", "curves", "participation", "hosts", "partition"):
                status, body, headers = asked(f"{address}api/{what}/{at}")
                assert "default-src" in headers["Content-Security-Policy"]
                assert status == 200 or "\n" not in json.loads(body)["error"]


def test_a_sweep_that_was_stopped_can_be_gone_on_with(catalog: Catalog, copy: Path) -> None:
    at = runs(copy, "searched")[0]
    whole = answers.sweep(catalog, at)
    assert (whole["over"], whole["planned"]) == (4, 4)
    assert ["go on with the sweep", f"raygrad sweep --resume {copy}/{at}"] not in whole["commands"]
    (copy / at / "trials.parquet").unlink()
    stopped = answers.sweep(catalog, at)
    assert (stopped["state"], stopped["over"], stopped["planned"]) == ("stopped", 0, 4)
    assert stopped["commands"][0] == ["go on with the sweep", f"raygrad sweep --resume {copy}/{at}"]


def test_a_root_that_cannot_be_read_is_not_called_empty(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "gone")
    said = f"the run root {catalog.root} cannot be read: No such file or directory"
    assert answers.listed(catalog, 10)["note"] == said
    catalog.close()


def test_a_file_that_may_not_be_read_is_not_called_damaged() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/a/rounds")

    response = asyncio.run(server._safely(make_mocked_request("GET", "/"), handler))
    assert isinstance(response, web.Response) and response.status == 422
    assert response.text is not None and "runs/a/rounds cannot be read: Permission denied" in response.text


def test_names_with_commas_are_compared(copy: Path) -> None:
    (copy / "fedga").rename(copy / "fed,ga,x")
    chosen = [runs(copy, "fed,ga,x")[0], runs(copy, "fedavg")[0]]
    with viewing(copy, *(str(copy / at) for at in chosen)) as address:
        status, body, _ = asked(address.replace("/compare?", "/api/compare?"))
        assert status == 200, body
        assert [r["at"] for r in json.loads(body)["runs"]] == chosen


def test_everything_over_http_and_nothing_is_changed(run_root: Path, viewer: str) -> None:
    before = state(run_root)
    for at in (*runs(run_root, "fedga"), *runs(run_root, "stopped")):
        for what in ("run", "curves", "participation", "hosts", "partition"):
            status, body, headers = asked(f"{viewer}api/{what}/{at}")
            assert status == 200 and json.loads(body)
            assert asked(f"{viewer}api/{what}/{at}", **{"If-None-Match": headers["ETag"]})[0] == 304
    for page in (
        "",
        "run/x/y",
        "sweep/x/y",
        "compare",
        "static/app.js",
        "static/echarts/echarts.min.js",
        "palette.css",
    ):
        status, _, headers = asked(viewer + page)
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    for method in ("POST", "PUT", "DELETE"):
        assert asked(f"{viewer}api/list", method=method)[0] == 405
    assert state(run_root) == before


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("api/run/fedga/none", 404, "has no run fedga/none"),
        ("api/run/..%2f..%2fetc/passwd", 404, "has no run"),
        ("api/curves/{run}?axis=furlongs", 422, "axis 'furlongs' is none of round"),
        ("api/hosts/{run}?from=x", 422, "from 'x' is no number"),
        ("api/hosts/{run}?from=nan", 422, "from 'nan' is no number"),
        ("api/compare?runs=", 422, "no runs are chosen"),
        ("api/compare?runs={run}&target=7", 422, "the target accuracy is 7"),
        ("static/..%2f..%2fcli.py", 404, ""),
    ],
)
def test_what_cannot_be_answered_is_one_line(run_root: Path, viewer: str, path: str, status: int, said: str) -> None:
    found, body, _ = asked(viewer + path.format(run=runs(run_root, "fedga")[0]))
    assert found == status
    if said:
        assert said in json.loads(body)["error"] and "\n" not in json.loads(body)["error"]


def test_a_page_elsewhere_cannot_read_here(viewer: str) -> None:
    """A name that leads to loopback (DNS rebinding) is refused."""
    assert asked(f"{viewer}api/list", Host="evil.example:80")[0] == 403


def test_elsewhere_a_token_is_asked_for(run_root: Path) -> None:
    with viewing(run_root, "--host", "0.0.0.0") as address:
        base, _, token = address.partition("?token=")
        here = f"http://127.0.0.1:{base.rsplit(':', 1)[1]}"
        assert len(token) >= 32
        assert asked(f"{here}api/list")[0] == 401
        assert asked(f"{here}static/app.js")[0] == 401
        assert asked(f"{here}api/list?token={token[:-1]}")[0] == 401
        assert asked(f"{here}api/list", Authorization=f"Bearer {token}")[0] == 200
        assert asked(f"{here}api/list", Cookie=f"raygrad-token={token}")[0] == 200

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                return None

        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.build_opener(Stay).open(f"{here}?token={token}")
        assert e.value.code == 302 and "token" not in e.value.headers["Location"]
        assert "HttpOnly" in e.value.headers["Set-Cookie"] and "SameSite=Lax" in e.value.headers["Set-Cookie"]


def test_what_cannot_be_served_is_one_line(run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert cli.run(["view", *words]) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1
        return said.err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused("--port", port, "--run-root", str(run_root))
        assert f"port {port} of 127.0.0.1 is in use; --port 0 takes one that is free" in said
    assert "there is no run root" in refused("--run-root", str(tmp_path / "none"))
    assert "unknown run 'fedgo'; did you mean fedga?" in refused("fedgo", "--run-root", str(run_root))
    assert "is no run folder" in refused(str(tmp_path), "--run-root", str(run_root))
    assert "name too long" in refused("a" * 300, "--run-root", str(run_root))
    assert "cannot be listened at" in refused("--host", "192.0.2.1", "--port", "0", "--run-root", str(run_root))
    assert "at least 8 characters" in refused("--token", "x", "--run-root", str(run_root))


def test_the_first_page(run_root: Path) -> None:
    at = runs(run_root, "fedga")
    with viewing(run_root, "fedga") as address:
        assert address.endswith(f"/run/{at[1]}")
    with viewing("elsewhere", str(run_root / at[0]), str(run_root / at[1])) as address:
        assert address.endswith(f"/compare?runs={at[0]},{at[1]}")


def test_a_run_of_100000_rounds_is_thinned(tmp_path: Path, run_root: Path) -> None:
    """What is sent of it is no more than a screen can show, and its ends are there."""
    source = run_root / runs(run_root, "fedga")[0]
    folder = tmp_path / "runs" / "long" / "one"
    shutil.copytree(source, folder)
    rounds = 100_000
    table = tables.read(source, "rounds")
    rows = np.resize(np.arange(len(table)), rounds)
    longer = table.take(rows).set_column(0, table.schema.field(0), [np.arange(1, rounds + 1, dtype=np.int32)])
    for part in (folder / "rounds").iterdir():
        part.unlink()
    pq.write_table(longer, folder / "rounds" / "part-000001.parquet", write_page_checksum=True)
    catalog = Catalog(tmp_path / "runs")
    try:
        found = answers.run_curves(catalog, "long/one", "round")
        assert catalog.rows(30)[0][0].done == rounds
    finally:
        catalog.close()
    training = next(c for p in found["learning"] for c in p["curves"] if c["label"] == "training")
    assert len(training["x"]) <= charts.MAX_POINTS
    assert (training["x"][0], training["x"][-1]) == (1, rounds)
    assert len(json.dumps(found)) < 400_000


def test_an_object_store(run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs at an address are fetched and shown like others; what is published later comes, too."""
    from object_store import object_store

    from raygrad.files import mirror, remote

    for name, value in {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with object_store() as store:
        store.clear()
        root = location(store.url("runs"))
        assert isinstance(root, remote.Url)
        at = runs(run_root, "fedga")[0]
        mirror.publish(root / "fedga" / at.split("/")[1], run_root / at)
        catalog = Catalog(root)
        try:
            while catalog.fetching.startswith("fetching"):
                sleep(0.01)
            assert catalog.fetching == ""
            assert [r.at for r in catalog.rows(30)[0]] == [at]
            assert answers.run(catalog, at)["state"] == "finished"
        finally:
            catalog.close()
