"""The driver is killed with -9 at thirty seeded moments, some inside a write; what is resumed equals never having
stopped.
"""

import errno
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.scaffold import Scaffold
from raygrad.errors import BadInput, Stopped
from raygrad.experiment import Checkpoints, Experiment, Where
from raygrad.files.runs import load
from raygrad.reports.report import experiment_hash
from raygrad.run import create, extend, play, resume, rounds
from raygrad.verify import problem

ROUNDS = 24
MOMENTS = 30


def experiment(algorithm: object) -> Experiment:
    return replace(problem(algorithm), rounds=ROUNDS, checkpoints=Checkpoints(every=3))  # pyright: ignore[reportArgumentType]


class Lab:
    """The process that plays and kills."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("lab.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def play(self, run: Path, **job: float | int) -> dict[str, float]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"run": str(run), **job}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> dict[str, tuple[Path, str, float]]:
    """For a stateless and a stateful algorithm: a run folder before its first round, the undisturbed digest and
    seconds.
    """
    root = tmp_path_factory.mktemp("kill")
    made = {}
    for name, algorithm in (("fedga", FedGA()), ("scaffold", Scaffold())):
        run = create(experiment(algorithm), Where(on="local"), run_root=root, name=name)
        whole = run.folder.with_name("whole")
        shutil.copytree(run.folder, whole)
        answer = lab.play(whole)
        assert answer["ok"]
        made[name] = (run.folder, load(whole).digest(), answer["seconds"])
    return made


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_and_resumed(
    moment: int, fresh: dict[str, tuple[Path, str, float]], lab: Lab, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(moment)
    folder, digest, seconds = fresh["scaffold" if moment % 2 else "fedga"]
    run = folder.with_name(f"moment{moment}")
    killer = {"at_write": draw.randrange(1, 60)} if moment % 3 == 0 else {"after_s": draw.uniform(0.1, 0.9) * seconds}
    killed = False
    while not killed:  # on a machine that got faster meanwhile it may end before it is killed: then sooner
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder, run)
        killed = lab.play(run, **killer)["killed"]
        killer = {name: value * 0.7 if name == "after_s" else max(1, value // 2) for name, value in killer.items()}
    if moment % 10 == 1:
        request.getfixturevalue("ray_local")
        for _ in resume(run, where=Where(on="ray", hosts=1 + moment // 10)):
            pass
    else:
        assert lab.play(run)["ok"]
    assert load(run).digest() == digest


def test_a_run_killed_again_and_again(fresh: dict[str, tuple[Path, str, float]], lab: Lab) -> None:
    folder, digest, seconds = fresh["scaffold"]
    run = folder.with_name("again")
    shutil.copytree(folder, run)
    draw = random.Random(0)
    for _ in range(5):
        lab.play(run, after_s=draw.uniform(0.3, 0.6) * seconds)
    assert lab.play(run)["ok"]
    assert load(run).digest() == digest


def test_an_extended_run_equals_a_long_one(tmp_path: Path) -> None:
    short = create(replace(experiment(FedGA()), rounds=7), Where(on="local"), run_root=tmp_path, name="short")
    for _ in play(short):
        pass
    before = json.loads((short.folder / "final.json").read_text())
    for _ in resume(short.folder, rounds=12):
        pass
    long = create(replace(experiment(FedGA()), rounds=12), Where(on="local"), run_root=tmp_path, name="long")
    for _ in play(long):
        pass
    assert load(short.folder).digest() == load(long.folder).digest()
    after = json.loads((short.folder / "final.json").read_text())
    assert (before["round"], after["round"]) == (7, 12)
    assert json.loads((short.folder / "experiment.json").read_text())["experiment"]["rounds"] == 12
    assert after == json.loads((long.folder / "final.json").read_text())


def test_leaving_the_loop_early_keeps_what_was_done(tmp_path: Path) -> None:
    run = create(experiment(FedGA()), Where(on="local"), run_root=tmp_path, name="left")
    for round in play(run):
        if round.index == 5:
            break
    assert load(run.folder).checkpoint.round == 5
    rest = [round.index for round in resume(run.folder)]
    assert rest == list(range(6, ROUNDS + 1))


def test_what_must_not_be_resumed(tmp_path: Path) -> None:
    run = create(replace(experiment(FedGA()), rounds=2), Where(on="local"), run_root=tmp_path, name="r")
    for _ in play(run):
        pass
    assert list(resume(run.folder)) == []
    with pytest.raises(BadInput, match="rounds is 1, but .* already has 2"):
        extend(load(run.folder), 1)
    path = run.folder / "experiment.json"
    whole = path.read_text()
    path.write_text(whole.replace('"beta": 0.05', '"beta": 0.06'))
    with pytest.raises(BadInput, match="was changed since the run started"):
        list(resume(run.folder))
    record = json.loads(whole)
    del record["experiment"]["stragglers"]  # as a run of an earlier version
    record["hash"] = experiment_hash(record["experiment"])
    path.write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"was written before there was stragglers\S*; start a new run instead"):
        list(resume(run.folder))


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    run = create(experiment(FedGA()), Where(on="local"), run_root=tmp_path, name="r")
    going = play(run)
    next(going)
    with pytest.raises(BadInput, match="is being written by another process"):
        next(play(load(run.folder)))
    going.close()


def test_tables_that_lack_rounds_are_found_before_any_work(tmp_path: Path) -> None:
    run = create(replace(experiment(FedGA()), rounds=6), Where(on="local"), run_root=tmp_path, name="r")
    for _ in play(run):
        pass
    digest = load(run.folder).digest()
    first = sorted((run.folder / "rounds").iterdir())[0]
    kept = first.read_bytes()
    first.unlink()
    for read in (lambda: load(run.folder).digest(), lambda: next(resume(run.folder, rounds=9))):
        with pytest.raises(BadInput, match="lacks some of the rounds 1 to 6"):
            read()
    first.write_bytes(b"garbage")
    with pytest.raises(BadInput, match="is damaged"):
        next(resume(run.folder, rounds=9))
    first.write_bytes(kept)
    assert load(run.folder).digest() == digest


def test_a_damaged_final_json_is_made_again(tmp_path: Path) -> None:
    run = create(replace(experiment(FedGA()), rounds=2), Where(on="local"), run_root=tmp_path, name="r")
    for _ in play(run):
        pass
    path = run.folder / "final.json"
    whole = path.read_text()
    path.write_text(whole[:20])
    assert list(resume(run.folder)) == []
    assert path.read_text() == whole


def test_a_start_that_fails_leaves_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BadInput("nothing here")

    monkeypatch.setattr("raygrad.player.open_executor", fail)
    with pytest.raises(BadInput, match="nothing here"):
        next(rounds(experiment(FedGA()), Where(on="local"), run_root=tmp_path, name="r"))
    assert list((tmp_path / "r").iterdir()) == []


def test_a_disk_that_is_full_at_the_start_leaves_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an experiment.json nothing could be resumed, and that is not said."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("raygrad.run._write_experiment", full)
    with pytest.raises(Stopped, match="storage lost while making .*No space left.*start the run again") as caught:
        create(experiment(FedGA()), Where(on="local"), run_root=tmp_path, name="r")
    assert caught.value.exit_code == 75 and "resum" not in str(caught.value)
    assert list((tmp_path / "r").iterdir()) == []


def test_numbers_keep_their_hash_through_json() -> None:
    e = experiment(FedGA(lr=1, beta=0))
    assert Experiment.from_json(json.loads(json.dumps(e.to_json()))).hash == e.hash
