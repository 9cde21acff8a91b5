"""Runs and shards in an object store: a real S3 server on this machine, failing, and drivers that die in between."""

import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from faults.test_resume import Lab
from object_store import BUCKET, Answer, ObjectStore, object_store

import raygrad
from raygrad import BadInput, Stopped, cli, tracking
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold
from raygrad.data import placed
from raygrad.data.datasets import SyntheticLogistic
from raygrad.data.partition import Natural
from raygrad.errors import Diverged, RaygradWarning
from raygrad.experiment import Checkpoints, Where
from raygrad.files import mirror, remote
from raygrad.files.remote import Url, location
from raygrad.files.runs import all_runs, load
from raygrad.plan import prepare_data
from raygrad.reports import report
from raygrad.run import create, play
from raygrad.sweeps import sweep as sweeps
from raygrad.verify import problem

EXPERIMENT = replace(problem(FedGA()), rounds=3, checkpoints=Checkpoints(every=1))


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store, a machine with an empty cache, and nobody who waits long."""
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "DELAYS_S", (0.0,) * 6)
    monkeypatch.setattr(remote, "SHORT_DELAYS_S", (0.0,) * 2)
    empty_machine(monkeypatch, tmp_path, "first")
    server.clear()
    return server


def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """From here on what runs does so on another machine."""
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / f"cache-{name}"))
    monkeypatch.setattr(mirror, "_machine", lambda: name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def here(shards: Path) -> Where:
    """In this process, with shards on the disk: less to copy."""
    return Where(on="local", shard_root=str(shards))


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> str:
    """Of a run that is on the disk."""
    root = tmp_path_factory.mktemp("runs")
    list(raygrad.rounds(EXPERIMENT, Where(on="local", shard_root=str(shards)), run_root=root))
    return load("run", root).digest()


# --- the same run ---------------------------------------------------------------------------------------------------


def test_a_run_in_a_store_has_the_bits_of_one_on_a_disk(
    store: ObjectStore, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.url("runs")
    list(raygrad.rounds(EXPERIMENT, Where(on="local"), run_root=root, name="a"))
    empty_machine(monkeypatch, tmp_path, "other")
    run = load("a", root)
    assert run.digest() == digest
    assert isinstance(run.at, Url) and load(str(run.at)).digest() == digest
    assert load(str(run.at.parent)).digest() == digest  # the newest of the name
    assert run.folder.is_relative_to(tmp_path / "cache-other")
    assert run.table("rounds").num_rows == 3 and run.table("partition").num_rows == 6
    assert sum(p.numel() for p in run.module().parameters()) > 0
    assert json.loads((run.folder / "final.json").read_text())["round"] == 3
    assert [f.name for f in all_runs(root)] == [run.folder.name]


def test_a_run_is_continued_and_extended_on_an_empty_machine(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, on_disk = store.url("runs"), tmp_path / "runs"
    experiment = replace(EXPERIMENT, algorithm=Scaffold(), rounds=6, checkpoints=Checkpoints(every=2))
    for where in (root, on_disk):
        for round in raygrad.rounds(experiment, Where(on="local"), run_root=where, name="a"):
            if round.index == 3:
                break
        empty_machine(monkeypatch, tmp_path, "second")
        monkeypatch.setattr(SyntheticLogistic, "open", _no_data)  # the shards are in the store
        list(raygrad.resume("a", run_root=where, where=Where(on="local")))
        empty_machine(monkeypatch, tmp_path, "third")
        list(raygrad.resume("a", rounds=8, run_root=where, where=Where(on="local")))
        monkeypatch.undo()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        empty_machine(monkeypatch, tmp_path, "fourth")
    run = load("a", root)
    assert run.digest() == load("a", on_disk).digest()
    assert run.experiment.rounds == 8 and run.checkpoint.round == 8


def _no_data(*_: object) -> None:
    raise AssertionError("the data set was opened")


def test_why_a_run_ended_early_is_in_the_store(
    store: ObjectStore, here: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = location(store.url("runs"))
    run = create(replace(EXPERIMENT, algorithm=FedGA(lr=3e38)), here, run_root=root, name="early")
    with pytest.raises(Diverged):
        list(play(run))
    empty_machine(monkeypatch, tmp_path, "second")
    assert report.view(load("early", root).folder).state == "diverged"


def test_what_is_no_longer_needed_is_removed(store: ObjectStore, here: Where) -> None:
    list(raygrad.rounds(EXPERIMENT, here, run_root=store.url("runs"), name="a"))
    keys = [key.rpartition("/")[2] for key in store.keys("runs/a/")]
    assert "lease.json" not in keys
    assert sum(key.startswith("checkpoints.") for key in keys) == EXPERIMENT.checkpoints.keep
    run = load("a", store.url("runs"))
    assert isinstance(run.at, Url)
    listed = mirror.read_commit(run.at).keys
    assert {key for key in keys if key != mirror.COMMIT} == listed


def test_a_checkpoint_costs_few_requests(store: ObjectStore, here: Where) -> None:
    """docs/storage.md says how many."""
    run = create(EXPERIMENT, here, run_root=store.url("runs"), name="a")
    at = []
    for _ in play(run):
        at.append(len(store.requests))
    assert at[1] - at[0] <= 20 and at[2] - at[1] <= 20
    assert not [r for r in store.requests if r.startswith("GET") and r.endswith(f"/{BUCKET}")][2:]  # hardly any lists


# --- a store that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["busy", "applied"])
def test_requests_that_fail_are_made_again(store: ObjectStore, here: Where, digest: str, answer: Answer) -> None:
    store.fail = lambda number, request: answer if number % 7 == 0 else None
    list(raygrad.rounds(EXPERIMENT, here, run_root=store.url("runs"), name="a"))
    assert load("a", store.url("runs")).digest() == digest
    assert len(store.requests) > 60


def lost_at(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, patch: pytest.MonkeyPatch, at: int, applied: bool
) -> str:
    """The store is lost for good at its n-th request, which is done or not; then it is back, for an empty machine.

    Returns how it ended.
    """
    store.clear()
    empty_machine(patch, tmp_path, f"{at}-{applied}")
    patch.setattr(remote, "DELAYS_S", ())
    patch.setattr(remote, "SHORT_DELAYS_S", ())
    first: Answer = "applied" if applied else "busy"
    store.fail = lambda number, request: None if number < at else first if number == at else "busy"
    root, played = store.url("runs"), []
    try:
        for round in raygrad.rounds(EXPERIMENT, here, run_root=root, name="a"):
            played.append(round.index)
        ended = "whole"
    except (Stopped, BadInput) as e:
        ended = "stopped" if isinstance(e, Stopped) else "refused"
    store.fail = lambda number, request: None
    patch.setattr(remote, "SHORT_DELAYS_S", (0.0,))
    empty_machine(patch, tmp_path, f"{at}-{applied}-again")
    patch.setattr(mirror, "LEASE_S", 0.0)  # the lease could not be given back
    if not all_runs(root):
        assert not played
        return "nothing"
    found = load("a", root)
    if played:
        # The last round that was given out was committed before, as every round has a checkpoint.
        assert found.checkpoint.round in (played[-1], played[-1] + 1)
        assert found.checkpoint.tensors()["x"].numel() > 0
    list(raygrad.resume("a", run_root=root))
    assert load("a", root).digest() == digest
    keys = {key.rpartition("/")[2] for key in store.keys("runs/a/")} - {mirror.COMMIT, mirror.LEASE}
    assert isinstance(found.at, Url) and keys == mirror.read_commit(found.at).keys  # what was torn is cleaned up
    return ended


def test_a_store_that_is_lost_at_any_request_leaves_a_whole_run(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [lost_at(store, here, digest, tmp_path, monkeypatch, at, bool(at % 2)) for at in (5, 8, 19, 26, 33, 36)]
    assert ended[0] == "nothing" and ended[-3:] == ["stopped"] * 3


@pytest.mark.slow
def test_a_store_that_is_lost_at_every_request(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for applied in (False, True):
        for at in range(1, 200):
            if lost_at(store, here, digest, tmp_path, monkeypatch, at, applied) == "whole":
                break
        assert at > 40


def test_the_driver_is_killed_again_and_again(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -9, at seeded requests and moments, each time on another machine."""
    lab, draw = Lab(), random.Random(5)
    try:
        run = create(EXPERIMENT, here, run_root=store.url("runs"), name="a")
        killed = 0
        for attempt in range(9):
            job: dict[str, float | str] = {"cache": str(tmp_path / f"{attempt}")}
            if attempt < 5:
                job |= {"at_request": draw.randrange(8, 60)} if attempt % 2 else {"after_s": draw.uniform(0.2, 1.0)}
            answer = lab.play(run.at, **job)  # pyright: ignore[reportArgumentType]
            killed += bool(answer["killed"])
            if answer["ok"]:
                break
        assert answer["ok"] and killed
        assert load(str(run.at)).digest() == digest
    finally:
        lab.close()


def test_a_torn_upload_is_not_trusted(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.url("runs")
    list(raygrad.rounds(EXPERIMENT, here, run_root=root, name="a"))
    newest = next(key for key in store.keys("runs/a/") if "checkpoints.000003.state" in key)
    store.put(newest, b"half of it")
    empty_machine(monkeypatch, tmp_path, "second")
    with pytest.warns(RaygradWarning, match="000003 is damaged and left out"):
        assert load("a", root).checkpoint.round == 2
    with pytest.warns(RaygradWarning, match="left out"):
        list(raygrad.resume("a", run_root=root))
    empty_machine(monkeypatch, tmp_path, "third")
    assert load("a", root).digest() == digest
    part = next(key for key in store.keys("runs/a/") if "/rounds.part" in key)
    store.put(part, b"other rows")
    empty_machine(monkeypatch, tmp_path, "fourth")
    with pytest.raises(BadInput, match=r"rounds/part-000001.parquet is missing or has not the sha256"):
        load("a", root)


def test_a_reader_keeps_up_with_a_run_that_goes_on(
    store: ObjectStore, here: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reader was about to read may be removed meanwhile: then it reads what is committed now."""
    root = store.url("runs")
    run = create(replace(EXPERIMENT, rounds=4), here, run_root=root, name="a")
    old: list[mirror.Commit] = []
    for _ in play(run):
        assert isinstance(run.at, Url)
        old.append(mirror.read_commit(run.at))
    empty_machine(monkeypatch, tmp_path, "reader")
    plain, late = mirror.read_commit, [old[0]]
    monkeypatch.setattr(mirror, "read_commit", lambda url: late.pop() if late else plain(url))
    found = load("a", root)
    assert not late and found.checkpoint.round == 4


def test_a_file_list_that_leaves_the_folder_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    for path in ("../../x.json", "/x.json", ".lock", "a//b"):
        entry = {"bytes": 2, "sha256": "", "text": "{}"}
        record = {"schema_version": 1, "number": 1, "writer": "", "files": {path: entry}}
        store.put("runs/a/b/commit.json", json.dumps(record).encode())
        with pytest.raises(BadInput, match="damaged: it lists a file"):
            load("a/b", store.url("runs"))


def test_a_local_disk_that_is_full_stops_a_reader(
    store: ObjectStore, here: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(raygrad.rounds(EXPERIMENT, here, run_root=store.url("runs"), name="a"))
    empty_machine(monkeypatch, tmp_path, "second")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raygrad.files.storage.Sink.write", full)
    with pytest.raises(Stopped, match="No space left"):
        load("a", store.url("runs"))


# --- one driver at a time -------------------------------------------------------------------------------------------


def test_a_file_that_grows_while_it_is_saved_is_whole_for_readers(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trackers write when they like; one file grows after it was looked at, another one is gone."""
    folder, url = tmp_path / "grows", location(store.url("runs")) / "grows" / "1"
    assert isinstance(url, Url)
    folder.mkdir()
    (folder / "experiment.json").write_text("{}")
    grows, goes = folder / "events", folder / "goes"
    grows.write_text("one")
    goes.write_text("")
    upload, files = remote.upload, mirror._files

    def growing(file: Path, to: Url) -> None:
        if file == grows and grows.read_text() == "one":
            grows.write_text("one two")
        upload(file, to)

    def going(folder: Path) -> list[str]:
        found = files(folder)
        goes.unlink(missing_ok=True)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(remote, "upload", growing)
        patch.setattr(mirror, "_files", going)
        mirror.publish(url, folder)
    empty_machine(monkeypatch, tmp_path, "elsewhere")
    there = mirror.fetch(url)
    assert (there / "events").read_text() == "one two" and not (there / "goes").exists()
    assert len(list(remote.children(url / mirror.FILES))) == 1  # what was saved in vain is removed


def test_what_a_tracker_writes_when_it_is_closed_is_in_the_store(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late:
        def __init__(self, folder: Path, *_: object) -> None:
            self._file, self._told = folder / "told", []

        def log(self, round: int, values: Mapping[str, float]) -> None:
            self._told += [f"{round} {name}" for name in values]

        def close(self) -> None:
            self._file.write_text("\n".join(self._told))

    monkeypatch.setattr(tracking, "check", lambda kinds: None)
    monkeypatch.setattr("raygrad.run.check_trackers", lambda kinds: None)
    monkeypatch.setitem(tracking._KINDS, "tensorboard", Late)
    url = store.url("runs")
    where = Where(on="local", track=("tensorboard",), shard_root=str(tmp_path / "shards"))
    list(raygrad.rounds(EXPERIMENT, where, run_root=url, name="told"))
    empty_machine(monkeypatch, tmp_path, "elsewhere")
    told = (load("told", url).folder / "told").read_text().splitlines()
    assert "3 test/accuracy" in told and "1 train_loss" in told


def test_a_second_driver_is_refused(
    store: ObjectStore, here: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RENEW_S", 0.02)
    monkeypatch.setattr(mirror, "LOOK_S", 0.05)
    run = create(EXPERIMENT, here, run_root=store.url("runs"), name="a")
    rounds = play(run)
    next(rounds)
    with pytest.raises(BadInput, match="is being written by another process here"):
        next(play(load(str(run.at))))
    assert load(str(run.at)).folder == run.folder  # whoever only reads sees it as it stands
    with monkeypatch.context() as patch:
        empty_machine(patch, tmp_path, "second")
        with pytest.raises(BadInput, match=rf"is being written by process {os.getpid()} on .*; wait for it, or stop"):
            next(play(load(str(run.at))))
    assert [r.index for r in rounds] == [2, 3]


def test_a_driver_that_died_is_waited_for_and_forgotten(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "LOOK_S", 0.05)
    run = create(EXPERIMENT, here, run_root=store.url("runs"), name="a")
    assert isinstance(run.url, Url)
    lease = mirror.Lease(run.url)
    lease._write()
    dead = json.loads(remote.read(run.url / mirror.LEASE))
    # On another machine it may live: it is given time to show it.
    empty_machine(monkeypatch, tmp_path, "second")
    monkeypatch.setattr(mirror, "LEASE_S", 1.5)
    said: list[str] = []
    rounds = play(load(str(run.at)), say=said.append)
    next(rounds)
    assert any("waiting up to" in line for line in said)
    rounds.close()
    # On the same machine it is known to be dead.
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    remote.write(run.url / mirror.LEASE, json.dumps({**dead, "machine": "second", "process": child.pid}).encode())
    monkeypatch.setattr(mirror, "LEASE_S", 1e9)
    list(play(load(str(run.at))))
    assert load(str(run.at)).digest() == digest


def test_a_driver_that_was_taken_for_dead_stops_and_tears_nothing(
    store: ObjectStore, here: Where, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still for longer than its lease; another one went on. Its uploads and commits change nothing."""
    run = create(EXPERIMENT, here, run_root=store.url("runs"), name="a")
    stalled = play(run)
    next(stalled)
    with monkeypatch.context() as patch:
        empty_machine(patch, tmp_path, "second")
        patch.setattr(mirror, "LEASE_S", 0.0)
        other = play(load(str(run.at)))
        next(other)
        monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache-first"))
        with pytest.raises(Stopped, match=r"was taken over by process .*nothing is torn"):
            next(stalled)
        patch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache-second"))
        assert [r.index for r in other] == [3]
    empty_machine(monkeypatch, tmp_path, "reader")
    assert load(str(run.at)).digest() == digest
    # The same where only the commits say so: two drivers that both believe they have it.
    url = run.url
    assert url is not None
    folder = mirror.local_folder(url)
    a, b = (mirror.Mirror(url, folder, mirror.read_commit(url)) for _ in range(2))
    (folder / "note.json").write_text("{}")
    a.commit()
    (folder / "note.json").write_text("[]")
    with pytest.raises(Stopped, match="was continued by another driver"):
        b.commit()


# --- shards ---------------------------------------------------------------------------------------------------------


def test_shards_are_prepared_once_and_copied_once_to_each_machine(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Where(on="local", shard_root=store.url("shards"))
    root = location(store.url("shards"))
    made = prepare_data(EXPERIMENT, where, root)
    assert made.address.startswith("s3://")
    meta = next(i for i, r in enumerate(store.requests) if r.startswith("PUT") and r.endswith("meta.json"))
    assert not [r for r in store.requests[meta + 1 :] if r.startswith(("PUT", "POST"))]  # it was written last

    empty_machine(monkeypatch, tmp_path, "second")
    store.requests.clear()
    found: list[str] = []
    hosts = [threading.Thread(target=lambda: found.append(placed.open_shards(made.address).id)) for _ in range(4)]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert found == [made.id] * 4
    assert len([r for r in store.requests if r.startswith("GET") and "train" in r]) == 1

    monkeypatch.setattr(SyntheticLogistic, "open", _no_data)
    empty_machine(monkeypatch, tmp_path, "third")
    again = placed.prepare_at(
        root, EXPERIMENT.data, Natural(), data_root=None, seed=EXPERIMENT.seed, validation=0.2,
        recorded=made.path.name,
    )  # fmt: skip
    again.verify()
    assert again.id == made.id


def test_damaged_shards_in_a_store_are_refused_by_hosts_and_mended_by_the_driver(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, root = Where(on="local"), location(store.url("shards"))
    made = prepare_data(EXPERIMENT, where, root)
    train = next(key for key in store.keys("shards/") if "/train." in key)
    store.put(train, b"half of it")
    empty_machine(monkeypatch, tmp_path, "second")
    with pytest.raises(BadInput, match="holds no complete shards"):
        placed.open_shards(made.address)
    assert prepare_data(EXPERIMENT, where, root).id == made.id
    empty_machine(monkeypatch, tmp_path, "third")
    assert placed.open_shards(made.address).id == made.id


@pytest.mark.parametrize("at", [1, 3, 6, 9, 12])
def test_a_store_that_is_lost_while_shards_are_copied(
    store: ObjectStore, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, root = Where(on="local"), location(store.url("shards"))
    store.fail = lambda number, request: "busy" if number >= at else None
    with pytest.raises((Stopped, BadInput), match="SlowDown|503|SLOW_DOWN"):
        prepare_data(EXPERIMENT, where, root)
    store.fail = lambda number, request: None
    made = prepare_data(EXPERIMENT, where, root)
    empty_machine(monkeypatch, tmp_path, "second")
    placed.open_shards(made.address).verify()


# --- addresses and bad input ----------------------------------------------------------------------------------------


def test_addresses() -> None:
    url = Url.parse("s3://bucket/runs//a/?scheme=http&endpoint_override=host:9000")
    assert str(url) == "s3://bucket/runs/a?endpoint_override=host:9000&scheme=http"
    assert str(url / "b") == "s3://bucket/runs/a/b?endpoint_override=host:9000&scheme=http"
    assert str(Url.parse("s3://b/x?endpoint_override=http://host:9000/")) == (
        "s3://b/x?endpoint_override=host:9000&scheme=http"
    )
    assert (url.bucket, url.name, url.parent.path) == ("bucket", "a", "bucket/runs")
    assert location("s3://b/x") == location(Path("s3://b/x")) == Url("s3", "b/x")  # a Path loses a slash
    assert location("gcs://b/x") == Url("gs", "b/x")
    assert location("runs/s3") == Path("runs/s3")
    assert Url("s3", "b/x").label != Url("gs", "b/x").label


@pytest.mark.parametrize(("text", "why"), [
    ("s3://AKIAEXAMPLE:wJalrXUtn@bucket/runs", "holds a user or a key"),
    ("s3://AKIAEXAMPLE:wJal/rXUtn@bucket/runs", "holds a user or a key"),
    ("s3://AKIAEXAMPLE@bucket/runs", "holds a user or a key"),
    ("s3://bucket/runs?secret_key=wJalrXUtn", "holds a user or a key"),
    ("s3://bucket/runs?endpoint_override=AKIAEXAMPLE:wJalrXUtn@host:9000", "holds a user or a key"),
    ("gs://AKIAEXAMPLE:wJalrXUtn@bucket/runs", "holds a user or a key"),
    ("s3://bucket/runs?zone=1", "unknown option 'zone' in the s3:// address; known: region, scheme, endpoint_override"),
    ("s3://bucket/runs?region", "not of the form option=value"),
    ("s3://bucket/runs?scheme=ftp", "must be http or https"),
    ("gs://bucket/runs?region=x", "unknown option 'region'"),
    ("s3://", "expected s3://BUCKET/FOLDER"),
    ("s3://bucket/../x", "expected s3://BUCKET/FOLDER"),
    ("http://bucket/runs", r"http:// is no address raygrad can use; give a folder, s3://… or gs://…"),
    ("file:///runs", "file:// is no address"),
])  # fmt: skip
def test_addresses_that_are_refused(text: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run --run-root", "run --shard-root", "digest", "digest x --run-root", "list runs --run-root"):
        words = [*command.split(), text]
        assert cli.run([*words, *(["--on", "local"] if words[0] == "run" else [])]) == 2
        error = capsys.readouterr().err
        assert re.search(why, error) and len(error.splitlines()) == 1
        assert "wJal" not in error and "AKIA" not in error
    with pytest.raises(BadInput, match=why):
        Where(shard_root=text)


def test_a_data_root_is_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", "--on", "local", "--data-root", "s3://bucket/data"]) == 2
    assert "data_root is an address; data sets are read from a folder" in capsys.readouterr().err


@pytest.mark.parametrize(("case", "why"), [
    ("no rights", "cannot be written: access denied; list, read, write and delete must be allowed to AWS_ACCESS_KEY"),
    ("no removing", "cannot be removed: access denied"),
    ("no bucket", "there is no bucket nobody at this store; make it, or correct the address"),
    ("nobody there", r"cannot be (read|written): .*connect.* \(3 attempts in"),
])  # fmt: skip
def test_a_store_that_cannot_be_used_is_refused_before_anything_starts(
    store: ObjectStore, case: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    root = store.url("runs")
    if case == "no rights":
        store.fail = lambda number, request: "refused" if request.startswith(("PUT", "POST")) else None
    elif case == "no removing":
        store.fail = lambda number, request: "refused" if request.startswith("DELETE") else None
    elif case == "no bucket":
        root = root.replace(BUCKET, "nobody", 1)
    else:
        root = root.replace(store.endpoint, "127.0.0.1:9")
    assert cli.run(["run", "digits", "--on", "local", "--run-root", root]) == 2
    error = capsys.readouterr().err
    assert re.search(why, error), error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("experiment.json")) and not list(tmp_path.rglob("*.arrow"))  # not even the data
    assert cli.run(["partition", "digits", "--shard-root", root]) == 2
    assert re.search(why, capsys.readouterr().err)


def test_a_start_that_fails_leaves_nothing(
    store: ObjectStore, here: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BadInput("no such host")

    monkeypatch.setattr("raygrad.player.open_executor", refuse)
    with pytest.raises(BadInput, match="no such host"):
        list(raygrad.rounds(EXPERIMENT, here, run_root=store.url("runs")))
    assert store.keys("runs/") == []
    assert not list(tmp_path.rglob("experiment.json"))


def test_a_run_that_is_not_there(store: ObjectStore, here: Where, capsys: pytest.CaptureFixture[str]) -> None:
    root = store.url("runs")
    list(raygrad.rounds(replace(EXPERIMENT, rounds=1), here, run_root=root, name="digits"))
    for words in (["digest", "digit"], ["resume", "digit"], ["report", "digit"]):
        assert cli.run([*words, "--run-root", root]) == 2
        assert "unknown run 'digit'; did you mean digits?" in capsys.readouterr().err
    assert cli.run(["digest", store.url("runs/digits/x")]) == 2
    assert "unknown run" in capsys.readouterr().err


def test_the_store_is_lost_in_the_middle_of_a_run(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 75 and the line that goes on with it, which works."""
    monkeypatch.chdir(tmp_path)
    words = ["--on", "local", "--shard-root", str(tmp_path), "--no-report", "--quiet"]
    settings = ["--set", "model=linear", "--set", "checkpoints.every=1", "--rounds", "3"]
    commits = 0

    def fail(number: int, request: str) -> Answer:
        nonlocal commits
        commits += request.startswith("PUT") and request.endswith(mirror.COMMIT)
        return "busy" if commits > 2 else None

    store.fail = fail
    root = store.url("runs")
    assert cli.run(["run", "digits", *settings, *words, "--run-root", root]) == 75
    error = capsys.readouterr().err
    assert re.search(r"\.json\S* cannot be (read|written): .*(SLOW_DOWN|503).*\(7 attempts in", error)
    (line,) = re.findall(r"continue it with `raygrad resume '(s3://[^']+)'`", error)
    store.fail = lambda number, request: None
    assert cli.run(["resume", line, *words]) == 0
    assert capsys.readouterr().out.strip() == f"'{line}'"
    assert load(line).checkpoint.round == 3


def test_every_command_takes_an_address(
    store: ObjectStore, here: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.endpoint}")  # another way to say where the store is
    root = f"s3://{BUCKET}/runs"
    words = ["--set", "model=linear", "--rounds", "2", "--on", "local", "--run-root", root]
    assert cli.run(["run", "digits", *words]) == 0
    out = capsys.readouterr().out
    (run,) = re.findall(rf"raygrad resume (s3://{BUCKET}/runs/digits/\S+)", out)
    assert f"{run.removeprefix(f's3://{BUCKET}/')}/report.html" in store.keys("runs/digits/")

    def said(*words: str) -> str:
        assert cli.run(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    digest = load(run).digest()
    assert said("digest", run) == said("digest", "digits", "--run-root", root) == digest + "\n"
    assert "finished" in said("list", "runs", "--run-root", root)
    assert "report  report.html" in said("report", run) and (tmp_path / "report.html").is_file()
    assert "10 numbers" in said("export", run, "m.safetensors") or (tmp_path / "m.safetensors").is_file()
    assert "clients" in said("partition", "digits", "--shard-root", f"s3://{BUCKET}/runs/.shards")
    assert "nothing left to do" in said("resume", run)
    said("run", run, "--on", "local", "--run-root", str(tmp_path / "runs"), "--name", "again", "--no-report")
    assert said("digest", "again", "--run-root", str(tmp_path / "runs")) == digest + "\n"


@pytest.mark.slow
def test_on_ray(store: ObjectStore, tmp_path: Path) -> None:
    """The driver and its hosts, without a folder that they share but for the cache of the machine."""
    words = ["digits", "--hosts", "2", "--rounds", "2", "--set", "model=linear", "--quiet", "--no-report"]
    root = store.url("runs")
    environment = {**os.environ, "AWS_ENDPOINT_URL": ""}
    done = subprocess.run(
        [sys.executable, "-m", "raygrad", "run", *words, "--run-root", root],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    local = ["run", *words[:1], *words[3:], "--on", "local", "--run-root", str(tmp_path / "runs")]
    assert cli.run(local) == 0
    assert load("digits", root).digest() == load("digits", tmp_path / "runs").digest()
    assert {o["host"] for o in load("digits", root).table("operations").to_pylist()} != {"local"}


@pytest.mark.slow
def test_a_sweep_in_a_store_is_killed_and_goes_on_elsewhere(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder, its trials and Ray Tune's snapshots are all in the store; the machine that goes on has nothing."""
    words = ["digits", "--search", "grid", "--alpha", "0.05,0.1,0.2", "--rounds", "3", "--winner-seeds", "1",
             "--set", "model=linear", "--set", "evaluation.every=1", "--max-concurrent", "1"]  # fmt: skip
    root = store.url("runs")

    def sweep(*more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "raygrad", "sweep", *more], cwd=tmp_path, env={**os.environ, "AWS_ENDPOINT_URL": ""},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    with sweep(*words, "--run-root", root) as driver:
        assert driver.stdout is not None
        said = []
        for line in driver.stdout:
            said.append(line)
            if line.startswith("1 of 3"):
                driver.kill()
                break
        assert said and said[-1].startswith("1 of 3"), "".join(said)
    empty_machine(monkeypatch, tmp_path, "second")
    with sweep("--resume", "digits-sweep", "--run-root", root) as driver:
        text = driver.communicate(timeout=300)[0]
        assert driver.returncode == 0, text
    assert "1 of 3 trials are over; 2 to go" in text
    with sweep(*words, "--run-root", str(tmp_path / "here")) as driver:
        text = driver.communicate(timeout=300)[0]
        assert driver.returncode == 0, text
    empty_machine(monkeypatch, tmp_path, "third")
    found, expected = sweeps.load("digits-sweep", root), sweeps.load("digits-sweep", tmp_path / "here")
    there, here = found.trials(), expected.trials()
    assert there.num_rows == 4
    assert there.drop_columns(["wall_s"]).equals(here.drop_columns(["wall_s"]))
    for row in there.to_pylist():
        run = load(f"{str(found.at).partition('?')[0]}/{row['run']}?{str(found.at).partition('?')[2]}")
        assert run.digest() == row["digest"]
    assert cli.run(["report", "digits-sweep", "--run-root", root, "--out", str(tmp_path / "page.html")]) == 0
    assert "The best settings" in (tmp_path / "page.html").read_text()
    assert [f.name for f in all_runs(root)] == []  # a sweep is no run
    with pytest.raises(BadInput, match="is no run: it has no experiment.json"):
        load("digits-sweep", root)
