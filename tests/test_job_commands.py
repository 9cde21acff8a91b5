"""Jobs and the doctor without a cluster: what is checked, sent, said and returned."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
import ray
import typer

from raygrad import cli, load
from raygrad.commands import experiments, parcel, train
from raygrad.commands import jobs as job_commands
from raygrad.errors import BadInput, JobLost
from raygrad.onray import contact, doctor, node, tokens
from raygrad.onray import jobs as onray_jobs
from raygrad.onray.doctor import Examined, Node, findings
from raygrad.onray.jobs import Job, Jobs

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--set", "model=linear", "--set", "probe.every=0", "--on", "local", "--no-report"]
RUN = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of one's own, and no module of an earlier test's recipe."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("shards"))


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints, after its exit code was checked."""
    capsys.readouterr()
    found = cli.run(words)
    out, err = capsys.readouterr()
    assert found == code, out + err
    return out if code == 0 else err


# --- what is sent ---------------------------------------------------------------------------------------------------


def packed(*words: str, working_dir: Path | None = None) -> tuple[list[str], set[str]]:
    """The words for the cluster, and the files that go along."""
    folder = Path("parcel")
    folder.mkdir()
    found = parcel.pack("run", RUN, [*words, "--run-root", "/shared/runs"], folder, train.check, working_dir)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found.full == bool(files or working_dir)
    return found.words[:-2], files - {".job"}


def test_a_recipe_of_ours_sends_nothing() -> None:
    assert packed("digits", "--beta", "0.3") == (["digits", "--beta", "0.3"], set())


def test_a_recipe_file_goes_with_the_modules_that_it_uses(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "package").mkdir(parents=True)
    (mine / "package" / "__init__.py").write_text("")
    (mine / "package" / "inner.py").write_text("ROUNDS = 7\n")
    (mine / "beside.py").write_text("from package.inner import ROUNDS\n")
    (mine / "unused.py").write_text("")
    (mine / "data.bin").write_bytes(bytes(9))
    (tmp_path / "my_model.py").write_text("from torch import nn\ndef net(shape, classes): return nn.Linear(64, 10)\n")
    (mine / "recipe.py").write_text(
        "from beside import ROUNDS\nfrom raygrad.recipes import RECIPES\n"
        "def recipe(): return RECIPES['digits']().set('rounds', str(ROUNDS))\n"
    )
    model = ["--set", "model=custom", "--set", "model.factory=my_model:net"]
    words, files = packed("--name", "x", "mine/recipe.py", *model)
    assert words == ["--name", "x", "recipe.py", *model]
    assert parcel.renamed("run", RUN, ["--name", "a.py", "a.py"], "a.py", "b.py") == ["--name", "a.py", "b.py"]
    assert files == {"recipe.py", "beside.py", "package/__init__.py", "package/inner.py", "my_model.py"}


def test_an_experiment_file_goes_along(capsys: pytest.CaptureFixture[str], shards: str, tmp_path: Path) -> None:
    folder = said(capsys, "run", *QUICK, "--rounds", "1", "--quiet", "--shard-root", shards).strip()
    assert packed(folder) == (["experiment.json"], {"experiment.json"})
    assert (tmp_path / "parcel" / "experiment.json").read_text() == (Path(folder) / "experiment.json").read_text()


def test_a_working_dir_goes_along_as_it_is(tmp_path: Path) -> None:
    inner = tmp_path / "code" / "recipes"
    inner.mkdir(parents=True)
    (inner / "r.py").write_text("from raygrad.recipes import RECIPES\nrecipe = RECIPES['digits']\n")
    assert packed("code/recipes/r.py", working_dir=Path("code")) == (["recipes/r.py"], set())
    (tmp_path / "parcel").rmdir()
    (tmp_path / "outside.py").write_text("from raygrad.recipes import RECIPES\nrecipe = RECIPES['digits']\n")
    with pytest.raises(BadInput, match=r"outside\.py is not inside of --working-dir code"):
        packed("outside.py", working_dir=Path("code"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digit"], "did you mean digits"),
        (["digits", "--set", "algorithm.bta=1"], "did you mean beta"),
        (["none.py"], r"none\.py is missing"),
        (["digits", "--data-root", "data"], "--data-root is data, which is relative"),
        (["digits", "--init", "w.safetensors"], "--init is w.safetensors, which is relative"),
        (["digits", "--shard-root", "s3://key:secret@bucket/x"], r"s3… holds a secret"),
        (["digits", "--shard-root", "s3://bucket/x?secret_key=abc"], r"s3… holds a secret"),
        (["digits", "--shard-root", "s3://bucket/x?secret%5Fkey=abc"], r"holds a user or a key"),
        (["digits", "--name", "a/b"], r"name 'a/b' cannot name a folder"),
        (["digits", "--name", "two\nlines"], r"name 'two\\nlines' cannot name a folder"),
        (["digits", "--hosts", "0"], "hosts is 0"),
        (["digits", "--address", "auto"], "a job joins the Ray that runs it"),
    ],
)
def test_what_cannot_be_sent(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        packed(*words)


def test_runs_need_a_root_that_the_cluster_reaches(capsys: pytest.CaptureFixture[str]) -> None:
    error = said(capsys, "job", "submit", "digits", code=2)
    assert "--run-root is runs, which is relative" in error and "s3://BUCKET/runs" in error
    error = said(capsys, "job", "submit", "digits", "--run-root", "/x", "--bogus", code=2)
    assert "--bogus" in error and "raygrad run --help" in error


def test_the_check_sees_what_the_run_sees(capsys: pytest.CaptureFixture[str], shards: str) -> None:
    words = ["digits", *QUICK, "--alpha", "0.03", "--beta", "0.2", "--K", "3", "--seed", "4", "--rounds", "1"]
    folder = said(capsys, "run", *words, "--quiet", "--shard-root", shards).strip()
    checked = train.check(RUN.make_context("run", list(words)).params)
    ran = load(folder).experiment
    assert (checked.algorithm, checked.local, checked.seed, checked.rounds) == (
        ran.algorithm, ran.local, ran.seed, ran.rounds,
    )  # fmt: skip
    assert (checked.seed, checked.local.steps) == (4, 3)


def test_a_job_does_not_write_where_ray_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "working_dir_files" / "_ray_pkg_1"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises(BadInput, match="which Ray removes after it"):
        experiments.check_lasting(Path("runs"))
    experiments.check_lasting(tmp_path / "runs")


# --- continuing by name ---------------------------------------------------------------------------------------------


def test_a_run_is_continued_by_its_name_or_started(
    capsys: pytest.CaptureFixture[str], shards: str, tmp_path: Path
) -> None:
    words = ["run", *QUICK, "--shard-root", shards, "--name", "x", "--resume"]
    out = said(capsys, *words, "--rounds", "2")
    assert "continued" not in out
    out = said(capsys, *words, "--rounds", "2")
    assert "x/" in out and "is finished: 2 rounds, nothing left to do" in out
    out = said(capsys, *words, "--rounds", "4")
    assert ", continued after round 2 → runs/x/" in out
    (folder,) = (tmp_path / "runs" / "x").iterdir()
    said(capsys, "run", *QUICK, "--shard-root", shards, "--name", "y", "--rounds", "4")
    assert load(folder).digest() == load("y").digest()

    changed = said(capsys, *words, "--beta", "0.3", "--set", "local.steps=2", code=2)
    assert "was started with algorithm.beta=0.1, and this asks for 0.3; choose another --name" in changed
    kind = said(capsys, *words, "--set", "algorithm=fedavg", code=2)
    assert "was started with algorithm=fedga, and this asks for fedavg" in kind
    assert "ask for more" in said(capsys, *words, "--rounds", "3", code=2)
    said(capsys, *words, "--rounds", "4", "--set", "failures.nan=skip")
    assert len(list((tmp_path / "runs" / "x").iterdir())) == 1


def test_the_script_is_the_command(shards: str, tmp_path: Path) -> None:
    def script(*words: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "jobs" / "train.py"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    done = script("digits", *QUICK, "--rounds", "2", "--shard-root", shards)
    assert done.returncode == 0, done.stderr
    assert "round 2 of 2 · " in done.stdout and "\033" not in done.stdout
    done = script("digit")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


# --- how a job ended ------------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STOPPED_LOG = "round 5 of 9\nraygrad: stopped by SIGTERM\n  continue it with `raygrad resume /runs/x/1`\n"


def a_job(status: str, code: int | None = None, id: str = "j", message: str = "") -> Job:
    return Job(id, status, "python -m raygrad run digits", message, code, NOW, NOW)


@pytest.mark.parametrize(
    ("job", "log", "code"),
    [
        (a_job("SUCCEEDED", 0), "", 0),
        (a_job("FAILED", 3), "", 3),
        (a_job("FAILED", 75), "", 75),
        (a_job("FAILED", -9), "", 137),
        (a_job("STOPPED"), STOPPED_LOG, 75),
        (a_job("STOPPED"), "preparing the data …\n", 143),
        (a_job("STOPPED"), "fedga → /nowhere/x/1\n", 143),
    ],
)
def test_exit_codes(job: Job, log: str, code: int) -> None:
    assert job_commands.exit_code(job, log) == code


def test_a_lost_job_says_why() -> None:
    with pytest.raises(JobLost, match="job j failed: the supervisor died"):
        job_commands.exit_code(a_job("FAILED", message="the supervisor\ndied"), "")


def test_a_job_killed_without_last_words_left_a_checkpoint_if_its_folder_has_one(
    capsys: pytest.CaptureFixture[str], shards: str, tmp_path: Path
) -> None:
    folder = said(capsys, "run", *QUICK, "--rounds", "1", "--quiet", "--shard-root", shards).strip()
    assert job_commands.left_checkpoint(f"fedga, 3 rounds → {tmp_path / folder}\nround 1 of 3\n")
    assert not job_commands.left_checkpoint("fedga, 3 rounds → runs/x\n")


class Cluster:
    """A stand-in for `Jobs`."""

    url, note = "http://head:8265", None

    def __init__(self, *jobs: Job, log: str = "", breaks: BaseException | None = None) -> None:
        self.jobs, self.text, self.breaks, self.sent, self.stopped = list(jobs), log, breaks, [], []

    def link(self, id: str) -> str:
        return f"{self.url}/#/jobs/{id}"

    def submit(self, words: list[str], folder: Path | None, grace_s: int, metadata: dict[str, str]) -> str:
        self.sent.append((words, folder, grace_s, metadata))
        return "j"

    def all(self) -> list[Job]:
        return self.jobs

    def job(self, id: str) -> Job:
        return next(j for j in self.jobs if j.id == id)

    def newest(self) -> Job:
        return self.jobs[0]

    wait = job

    def log(self, id: str) -> str:
        return self.text

    def stop(self, id: str) -> bool:
        self.stopped.append(id)
        return True

    def follow(self, id: str) -> Iterator[str]:
        yield self.text
        if self.breaks is not None:
            raise self.breaks


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    def make(*jobs: Job, **how: Any) -> Cluster:
        made = Cluster(*jobs, **how)
        monkeypatch.setattr(job_commands, "_jobs", lambda address: made)
        return made

    return make


def test_submitting_and_following(cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]) -> None:
    there = cluster(a_job("SUCCEEDED", 0), log="round 1 of 1\n")
    out = said(
        capsys, "job", "submit", "--alpha", "0.5", "digits", "--grace-s", "9", "--run-root", "/r", "--name", "a b"
    )
    assert "http://head:8265/#/jobs/j" in out and out.endswith("round 1 of 1\n")
    ((words, folder, grace_s, metadata),) = there.sent
    assert words == ["python", "-m", "raygrad", "run", "--alpha", "0.5", "digits", "--run-root", "/r", "--name", "a b"]
    assert (folder, grace_s, list(metadata)) == (None, 9, ["raygrad"])


def test_not_waiting_says_how_to_look_and_stop(
    cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster(a_job("RUNNING"))
    where = ["--address", "http://head:8265"]
    out = said(capsys, "job", "submit", "digits", "--run-root", "/r", "--no-wait", *where)
    assert "raygrad job logs j --follow --address http://head:8265" in out
    assert "raygrad job stop j --address http://head:8265" in out


def test_ctrl_c_leaves_the_job_running(cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]) -> None:
    there = cluster(a_job("RUNNING"), breaks=KeyboardInterrupt())
    error = said(capsys, "job", "submit", "digits", "--run-root", "/r", code=130)
    assert "job j goes on" in error and "raygrad job logs j --follow" in error and "raygrad job stop j" in error
    assert there.stopped == []


def test_a_stopped_job_is_continued(cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]) -> None:
    cluster(a_job("STOPPED"), log=STOPPED_LOG)
    assert "submit it again with --resume" in said(capsys, "job", "logs", "--follow", code=75)
    cluster(a_job("STOPPED"), log="starting\n")
    assert "was stopped\n" in said(capsys, "job", "logs", "j", "--follow", code=143)


def test_stopping_needs_to_know_which(cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]) -> None:
    there = cluster(a_job("RUNNING", id="a"), a_job("PENDING", id="b"), a_job("FAILED", 1, id="c"))
    assert "2 jobs run: a, b; name the one to stop" in said(capsys, "job", "stop", code=2)
    assert "c has ended before: FAILED" in said(capsys, "job", "stop", "c")
    cluster(a_job("FAILED", 1))
    assert "no job runs" in said(capsys, "job", "stop", code=2)
    assert there.stopped == []


def test_a_list_of_jobs(cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]) -> None:
    cluster(a_job("FAILED", 3), a_job("RUNNING", id="k"))
    header, first, second = said(capsys, "job", "list").splitlines()
    assert header.split() == ["job", "status", "exit", "started", "took", "command"]
    assert first.split()[:3] == ["j", "FAILED", "3"] and first.endswith("run digits")
    assert second.startswith("k")


def test_a_sweep_is_checked_before_it_is_sent(
    cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    there = cluster(a_job("SUCCEEDED", 0))
    space = ["--alpha", "loguniform(0.01,0.5)", "--samples", "40", "--run-root", "/r"]
    said(capsys, "job", "submit", "--sweep", "digits", *space)
    assert there.sent[0][0][3:] == ["sweep", "digits", *space]
    for words, told in (
        (["--samples", "x"], "--samples"),
        (["--alpha", "loguniform(0.5,0.01)"], "alpha"),
        (["--set", "algorithm.bta=1,2"], "did you mean beta"),
        (["--alpha", "0.1"], "the search space is empty"),
        (["--alpha", "0.1,0.2", "--time-budget", "soon"], "is no time"),
    ):
        assert told in said(capsys, "job", "submit", "--sweep", "digits", "--run-root", "/r", *words, code=2)
    assert len(there.sent) == 1


# --- following through a bad connection -----------------------------------------------------------------------------


def test_a_broken_connection_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {i}\n" for i in range(6)]
    attempts = iter([2, 4, 6])
    states = iter(["RUNNING", "SUCCEEDED"])

    class Client:
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            count = next(attempts)
            for line in lines[:count]:
                yield line
            if count < 6:
                raise RuntimeError("closed unexpectedly")

    there = Jobs.__new__(Jobs)
    there.url, there._client = "http://head", Client()  # type: ignore[assignment]
    monkeypatch.setattr(there, "job", lambda id: a_job(next(states)))
    monkeypatch.setattr(onray_jobs, "sleep", lambda s: None)
    monkeypatch.setattr(there, "_answers", lambda: True)
    assert list(there.follow("j")) == lines


def test_a_cluster_that_stays_away_has_lost_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            raise OSError("gone")
            yield ""

    there = Jobs.__new__(Jobs)
    there.url, there._client = "http://head", Client()  # type: ignore[assignment]
    monkeypatch.setattr(there, "job", lambda id: a_job("RUNNING"))
    monkeypatch.setattr(onray_jobs, "sleep", lambda s: None)
    monkeypatch.setattr(onray_jobs, "LOST_S", 0.0)
    with pytest.raises(JobLost, match="job j may still run"):
        list(there.follow("j"))


# --- addresses and tokens -------------------------------------------------------------------------------------------


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tokens.configured() is None
    tokens.use_by_default()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    found = tokens.configured()
    assert found is not None and found.value == "home" and found.source == str(tmp_path / ".ray" / "auth_token")
    assert "home\n" not in repr(found) and "'home'" not in repr(found)
    (tmp_path / "other").write_text("other")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert tokens.configured() == tokens.Token("other", str(tmp_path / "other"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert tokens.configured() == tokens.Token("given", "RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "x")  # so that it is restored
    monkeypatch.delenv("RAY_AUTH_MODE")
    tokens.use_by_default()
    assert os.environ.pop("RAY_AUTH_MODE") == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert tokens.configured() is None
    tokens.use_by_default()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_MODE is disabled here" in tokens.missing("it")


def test_what_is_no_token_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc\ndef")
    error = said(capsys, "job", "list", "--address", "http://127.0.0.1:1", code=2)
    assert "the token in RAY_AUTH_TOKEN is damaged" in error and "def" not in error
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="RAY_AUTH_MODE is token, and there is no token here"):
        tokens.check()


@pytest.fixture
def dashboard() -> Iterator[tuple[str, dict[str, Any]]]:
    """An HTTP server that gives prepared answers: path -> (status, JSON)."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.setdefault("headers", []).append(dict(self.headers))
            status, body = answers.get(self.path, (404, {}))
            self.send_response(status)
            if "location" in answers:
                self.send_header("Location", answers["location"])
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


VERSION = "/api/version"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({VERSION: (401, {})}, "asks for a token"),
        ({VERSION: (403, {})}, "refuses the token"),
        ({VERSION: (200, {"ray_version": "2.40.0"})}, "has Ray 2.40.0, this is Ray .*: install ray==2.40.0 here"),
        ({VERSION: (200, {})}, "no Ray's dashboard answers at"),
        ({}, r"no Ray's dashboard answers at http://127.0.0.1:\d+ \(HTTP 404\)"),
    ],
)
def test_a_dashboard_that_will_not_do(
    answers: dict[str, Any], message: str, dashboard: tuple[str, dict[str, Any]]
) -> None:
    url, prepared = dashboard
    prepared |= answers
    with pytest.raises(BadInput, match=message):
        contact.check_dashboard(url)


def test_a_dashboard_that_will_do(dashboard: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers = dashboard
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    answers |= {VERSION: (200, {"ray_version": ray.__version__})}
    assert contact.check_dashboard(url) is None
    assert answers["headers"][0]["Authorization"] == "Bearer abc"
    answers |= {"/api/v0/cluster_metadata": (200, {"data": {"pythonVersion": "3.11.99"}})}
    assert "the cluster has Python 3.11.99" in str(contact.check_dashboard(url))


def test_the_token_goes_to_nobody_else(dashboard: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers = dashboard
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    answers |= {VERSION: (302, {}), "location": url + "/elsewhere"}
    with pytest.raises(BadInput, match=r"\(HTTP 302\)"):
        contact.check_dashboard(url)
    assert len(answers["headers"]) == 1


def test_a_dashboard_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the first question, and no other."""
    monkeypatch.setattr(onray_jobs, "SILENT_S", 0.3)
    version = json.dumps({"ray_version": ray.__version__, "version": "4", "session_name": "s"}).encode()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != VERSION:
                ended.wait(20)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    monkeypatch.setattr(contact, "CONNECT_S", 0.5)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(BadInput, match="no Ray's dashboard answers"):
        Jobs(f"http://127.0.0.1:{server.server_port}").all()
    ended.set()
    server.shutdown()
    server.server_close()


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    error = said(capsys, "job", "list", "--address", "http://127.0.0.1:1", code=2)
    assert error.startswith("raygrad: no Ray's dashboard answers at http://127.0.0.1:1") and error.count("\n") == 1
    assert "no dashboard's" in said(capsys, "job", "list", "--address", "ray://x:10001", code=2)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_who_listens_may_be_no_ray(greeting: bytes) -> None:
    with create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                connection.recv(64)
                connection.sendall(greeting)
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(BadInput, match="no cluster for drivers to join"):
            contact.check_cluster(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        ({"ray_version": ray.__version__, "python_version": contact.python_version()}, False),
        ({"ray_version": ray.__version__, "python_version": "3.11.99"}, True),
        ({"ray_version": "2.40.0", "python_version": contact.python_version()}, True),
    ],
)
def test_versions_of_a_cluster(theirs: dict[str, str], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "_speaks_http2", lambda host, port: True)
    monkeypatch.setattr(contact, "_versions", lambda address: theirs)
    monkeypatch.delenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", raising=False)
    if refused:
        with pytest.raises(BadInput, match=f"has Ray {theirs['ray_version']} on Python {theirs['python_version']}"):
            contact.check_cluster("head:6379")
    else:
        contact.check_cluster("head:6379")


# --- the doctor -----------------------------------------------------------------------------------------------------

WELL: dict[str, Any] = {
    "host": "a", "raygrad": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "python": "3.11.7", "auth": "token",
    "shm_bytes": 4e9, "cpu": "AVX512", "cpu_digest": "c" * 64, "gpus": 1, "gpu": "L4", "gpu_digest": "g" * 64,
    "error": "", "storage": {"/r/.raygrad-doctor-1": "", "/r": ""},
}  # fmt: skip


def a_node(name: str = "a", cpus: float = 8.0, offers: float = 1.0, **facts: Any) -> Node:
    return Node(name, "10.0.0.1", cpus, offers, 3e10, 2e9, {**WELL, **facts})


def examined(*nodes: Node, free: float = 8.0) -> Examined:
    return Examined("auto", {**WELL, "storage": {}}, nodes, {"CPU": free}, ["/r"])


def test_a_healthy_cluster() -> None:
    found = findings(examined(a_node("head", cpus=0.0, offers=0.0, cpu_digest="x"), a_node("a"), a_node("b")))
    assert (found.problems, found.notes) == ([], [])


@pytest.mark.parametrize(
    ("sick", "message"),
    [
        (a_node(torch="2.12.0"), r"a \(10.0.0.1\) has torch 2.12.0, this machine 2.13.0"),
        (a_node(python="3.11.8"), "has python 3.11.8"),
        (a_node(raygrad="", error="ModuleNotFoundError"), "has no raygrad: install raygrad==0.1.0"),
        (a_node(error="OSError: libcudart"), "cannot compute: OSError"),
        (a_node(gpus=0, gpu_digest=""), "offers 1 GPUs, and torch finds none"),
        (a_node(shm_bytes=64e6), r"object store of 2.0 GB and a /dev/shm of 0.1 GB"),
        (a_node(cpu_digest="d" * 64), "compute different bits on their CPUs"),
        (a_node(gpu_digest="h" * 64), "compute different bits on their GPUs"),
        (a_node(storage={"/r/.raygrad-doctor-1": "cannot be read: no such file"}), "/r cannot be read: no such file"),
        (Node("a", "", 8, 0, 3e10, 2e9, None, "GetTimeoutError"), "a did not answer"),
    ],
)  # fmt: skip
def test_what_is_to_be_mended(sick: Node, message: str) -> None:
    (problem,) = findings(examined(sick, a_node("b"))).problems
    with pytest.raises(BadInput, match=message):
        raise BadInput(problem)


def test_what_is_to_be_known() -> None:
    assert "no node has CPUs now" in findings(examined(a_node(cpus=0.0))).notes[0]
    assert "no CPU is free now" in findings(examined(a_node(), free=0.0)).notes[0]
    assert "nodes do not ask for a token" in findings(examined(a_node(auth="disabled"))).notes[0]


def test_the_doctor_refuses_keys_and_puts_its_files_where_they_belong() -> None:
    with pytest.raises(BadInput, match="holds a user or a key"):
        doctor.examine(None, "s3://AKIA123:SEKRET@bucket/runs?region=x", None)
    name = node.inside("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http")
    assert re.fullmatch(r"s3://bucket/runs/\.raygrad-doctor-\w+\?endpoint_override=127\.0\.0\.1:9&scheme=http", name)
    assert re.fullmatch(r"/what\?/\.raygrad-doctor-\w+", node.inside("/what?"))


def test_the_doctor_on_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    out = said(capsys, "doctor", "--run-root", "runs")
    assert ray.__version__ in out and "nothing to mend" in out and " ok" in out
    assert list((tmp_path / "runs").iterdir()) == []
    assert cli.run(["doctor", "--run-root", "nowhere"]) == 2
    assert "mend    " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["job"], ["doctor"], *(["job", w] for w in ("submit", "list", "logs", "stop"))])
def test_every_command_teaches_with_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, *words, "--help")
    assert f"raygrad {' '.join(words)}" in text.split("Example")[1]


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from raygrad.cli import run\n"
        "assert run(['job', 'submit', '--help']) == 0 and run(['doctor', '--help']) == 0\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
