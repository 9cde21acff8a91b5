"""Sweeps without Ray: what they refuse, which trials they have, and that a trial is an ordinary run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raygrad import cli
from raygrad import run as engine
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.commands.sweeps import seconds
from raygrad.errors import BadInput
from raygrad.experiment import Evaluation, Experiment, Where
from raygrad.files.runs import load
from raygrad.sweeps import sweep as sweeps
from raygrad.sweeps.sweep import Book, LoadedSweep, Maker, Point, Sweep, best_settings
from raygrad.sweeps.trial import Trial, evaluations
from raygrad.verify import problem

HERE = Where(on="local")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return replace(problem(FedGA(), clients=4), rounds=6)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def points(sweep: Sweep, root: Path) -> list[Point]:
    return Maker(sweep, HERE, root).known()


def test_survives_json(experiment: Experiment) -> None:
    s = Sweep(experiment, {"alpha": [0.1, 0.2], "K": "randint(1,3)"}, start=({"alpha": 0.3, "K": 2},), seeds=2)
    assert s.space == {"algorithm.lr": "0.1,0.2", "local.steps": "randint(1,3)"}
    assert Sweep.from_json(s.to_json()) == s
    assert Sweep.from_json(s.to_json()).hash == s.hash != replace(s, samples=11).hash
    assert replace(s, max_concurrent=3, retries=1).hash == s.hash  # it may go on elsewhere


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {}}, "the search space is empty"),
        ({"space": {"seed": "1,2"}}, "seed cannot be a dimension"),
        ({"samples": 0}, "samples is 0; it must be >= 1"),
        ({"scheduler": "pbt", "search": "optuna"}, "choose one of them"),
        ({"scheduler": "pbt", "time_budget_s": 60.0}, "leave out time_budget_s"),
        ({"scheduler": "pbt", "space": {"algorithm": "fedga,fedavg"}}, "algorithm cannot change"),
        ({"scheduler": "pbt", "space": {"partition.clients": "5,6"}}, "partition.clients cannot change"),
        ({"scheduler": "pbt", "samples": 1}, "scheduler pbt compares trials, and there is 1"),
        ({"scheduler": "pbt", "communications": 4}, "judged once, at the end"),
        ({"scheduler": "pbt", "generations": 1}, "generations is 1; it must be >= 2"),
        ({"scheduler": "hyperband", "search": "optuna"}, "use asha with search optuna"),
        ({"scheduler": "ahsa"}, "unknown scheduler 'ahsa'; did you mean asha"),
        ({"mode": "maximum"}, "unknown mode 'maximum'"),
        ({"samples": 2.5}, "samples is 2.5; it must be a whole number"),
        ({"space": {"evaluation.mode": "paper,validation"}}, "evaluation.mode cannot be a dimension"),
        ({"space": {"sampler.cohort": "randint(3,9)"}, "search": "optuna"}, "sampler.cohort is 9"),
        ({"space": {"sampler.cohort": "randint(3,9)"}, "scheduler": "pbt", "samples": 2}, "sampler.cohort is 9"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'; did you mean accuracy"),
        ({"time_budget_s": 0}, "time_budget_s is 0; it must be > 0"),
        ({"space": {"algorithm.bta": "1,2"}}, "unknown field of algorithm .FedGA. 'bta'; did you mean beta"),
        ({"space": {"alpha": "1,-1"}}, "algorithm.lr is -1"),
        ({"space": {"algorithm": "fedavg,fedprox", "beta": "0.1,0.2"}}, "unknown field of algorithm"),
        ({"space": {"sampler.cohort": "2,40"}}, "sampler.cohort is 40"),
        ({"communications": 1}, "communications is 1, but one round takes 2"),
        ({"communications": 3}, "a trial has 1 rounds, but evaluation.every is 2"),
        ({"start": ({"K": 3},)}, "unknown dimension of a starting point 'K'"),
        ({"space": {"alpha": "1,2", "beta": "0,1"}, "start": ({"beta": 0},)}, "a starting point lacks alpha"),
    ],
)
def test_what_is_refused(change: dict, message: str, experiment: Experiment, root: Path) -> None:
    with pytest.raises(BadInput, match=message):
        points(Sweep(**{"experiment": experiment, "space": {"alpha": "0.1,0.2"}, "samples": 30, **change}), root)


def test_paper_protocol_is_refused(experiment: Experiment) -> None:
    with pytest.raises(BadInput, match="a sweep compares on validation data"):
        Sweep(replace(experiment, evaluation=Evaluation(mode="paper")), {"alpha": "0.1,0.2"})


def test_fields_that_an_algorithm_lacks_are_left_out_and_nothing_is_repeated(
    experiment: Experiment, root: Path
) -> None:
    s = Sweep(experiment, {"algorithm": "fedga,fedavg", "beta": "0,0.1", "alpha": "0.1,0.2"}, search="grid")
    found = points(s, root)
    assert [p.trial for p in found] == list(range(6))
    avg = [p for p in found if isinstance(p.experiment.algorithm, FedAvg)]
    assert [p.settings for p in avg] == [
        {"algorithm": "fedavg", "algorithm.lr": 0.1}, {"algorithm": "fedavg", "algorithm.lr": 0.2},
    ]  # fmt: skip


def test_budget_in_communications(experiment: Experiment, root: Path) -> None:
    s = Sweep(
        experiment, {"algorithm": "fedga,scaffold,scaffold-fresh", "alpha": "0.1"}, search="grid", communications=13
    )
    assert [(p.charge, p.experiment.rounds, p.budget) for p in points(s, root)] == [(2, 6, 12), (1, 13, 13), (2, 6, 12)]
    maker = Maker(s, HERE, root)
    maker.known()
    assert (maker.unit, maker.most) == (4, 13)  # all have an evaluation after every 4 communications


def test_random_samples_are_the_same_again_and_start_with_the_starting_points(
    experiment: Experiment, root: Path
) -> None:
    s = Sweep(experiment, {"alpha": "loguniform(0.01,1)", "K": "1,2,3"}, samples=5, start=({"alpha": 0.5, "K": 2},))
    first, second = points(s, root), points(Sweep.from_json(s.to_json()), root)
    assert first == second and len(first) == 5
    assert first[0].settings == {"algorithm.lr": 0.5, "local.steps": 2}
    assert first[0].experiment.algorithm == FedGA(lr=0.5)


def alone(e: Experiment, root: Path, name: str) -> str:
    """The digest of the run of an experiment by itself."""
    made = engine.create(e, HERE, run_root=root, name=name)
    for _ in engine.play(made):
        pass
    return load(made.folder).digest()


def test_a_trial_plays_its_seeds_in_turn_and_each_is_an_ordinary_run(
    experiment: Experiment, root: Path, tmp_path: Path
) -> None:
    s = Sweep(experiment, {"alpha": "0.2,0.4"}, search="grid", seeds=2)
    point = points(s, root)[0]
    trial = Trial(point.jobs(tmp_path), HERE)
    reports = [trial.next() for _ in range(3)]
    assert [(r.round, r.communications, r.outcome) for r in reports] == [(2, 4, ""), (4, 8, ""), (6, 12, "finished")]
    jobs = point.jobs(tmp_path)
    for i, report in enumerate(reports):
        each = [evaluations(job.folder)[i].values["accuracy"] for job in jobs]
        assert report.values["accuracy"] == sum(each) / 2
    assert not any((job.folder / "final.json").exists() for job in jobs)  # the test set was not touched
    book = Book(LoadedSweep(tmp_path, "s", s, HERE))
    book.close(point, "finished")
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [r["seed"] for r in rows] == [0, 1] and rows[0]["algorithm.lr"] == 0.2 and rows[0]["test"] is None
    for job, row in zip(jobs, rows, strict=True):
        assert row["digest"] == alone(job.experiment, tmp_path, f"alone{row['seed']}")
    assert Book(LoadedSweep(tmp_path, "s", s, HERE)).outcome(point) == "finished"
    assert book.value(point) == reports[-1].values["accuracy"]


def test_a_trial_that_was_cut_off_reports_what_it_had_and_goes_on(
    experiment: Experiment, root: Path, tmp_path: Path
) -> None:
    s = Sweep(replace(experiment, seed=3), {"alpha": "0.2"}, search="grid")
    (point,) = points(s, root)
    whole = Trial(point.jobs(tmp_path / "whole"), HERE)
    expected = [whole.next() for _ in range(3)]
    first = Trial(point.jobs(tmp_path), HERE)
    first.next()
    first.next()
    first.close()
    second = Trial(point.jobs(tmp_path), HERE)
    assert [second.next() for _ in range(3)] == expected
    digests = [load(p.jobs(r)[0].folder).digest() for p in (point,) for r in (tmp_path, tmp_path / "whole")]
    assert digests[0] == digests[1]


def test_outcomes(experiment: Experiment, root: Path, tmp_path: Path) -> None:
    s = Sweep(experiment, {"alpha": "0.2,1e300"}, search="grid", seeds=2)
    good, bad = points(s, root)
    report = Trial(bad.jobs(tmp_path), HERE, charge=2).next()
    assert (report.outcome, report.communications, report.seed) == ("diverged", 4, 0)
    assert "not finite" in report.message
    slow = Trial(good.jobs(tmp_path), HERE, budget_s=1e-9)
    assert slow.next().outcome == "time"
    book = Book(LoadedSweep(tmp_path, "s", s, HERE))
    book.close(bad, report.outcome, report.message, report.seed)
    assert [r["outcome"] for r in book.rows(bad)] == ["diverged", "stopped"]
    assert book.outcome(bad) == "diverged" and book.value(bad) == s.worst == 0.0
    book.close(good, "failed", "no reason")
    assert Book(LoadedSweep(tmp_path, "s", s, HERE)).outcome(good) == ""  # it is tried again


def test_the_best_of_each_algorithm_is_run_again_with_fresh_seeds(
    experiment: Experiment, root: Path, tmp_path: Path
) -> None:
    s = Sweep(
        experiment, {"algorithm": "fedga,fedavg", "alpha": "0.1,0.2"}, search="grid", seeds=2, winner_seeds=2
    )  # fmt: skip
    played = points(s, root)
    book = Book(LoadedSweep(tmp_path, "s", s, HERE))
    for point, (outcome, value) in zip(
        played, [("finished", 0.5), ("finished", 0.7), ("stopped", 0.9), ("finished", 0.6)], strict=True
    ):
        book.close(point, outcome)
        for row in book.rows(point):
            row |= {"validation": value, "rounds": 6}
    book.write()
    loaded = LoadedSweep(tmp_path, "s", s, HERE, ("digits", "--set", "model=linear"))
    heads = best_settings(loaded)
    assert [(h["trial"], h["value"]) for h in heads] == [(1, 0.7), (3, 0.6)]
    assert loaded.best() == heads[0]
    winners = sweeps.winning_points(loaded, played)
    assert [(p.trial, p.seeds, p.role) for p in winners] == [
        (1, (2,), "winner"), (1, (3,), "winner"), (3, (2,), "winner"), (3, (3,), "winner"),
    ]  # fmt: skip
    row = {**loaded.trials().to_pylist()[2], "rounds": 6}
    command = "raygrad run digits --set model=linear --set algorithm=fedga --alpha 0.2 --rounds 6 --seed 0"
    assert loaded.command(row) == command


def test_the_same_line_starts_a_sweep_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume, the newest sweep of that name; without a space, the one that is named."""
    played: list[str] = []

    def run(s: Sweep, where: Where, *, name: str, **kw: object) -> LoadedSweep:
        folder = tmp_path / "runs" / name / f"{len(played)}"
        folder.mkdir(parents=True)
        record = {"schema_version": 1, "name": name, "hash": s.hash, "sweep": s.to_json()}
        (folder / "sweep.json").write_text(json.dumps(record))
        (folder / "where.json").write_text(json.dumps(where.to_json()))
        played.append(f"run {name}/{folder.name}")
        return sweeps.load(folder)

    def resume(reference: str, **kw: object) -> LoadedSweep:
        played.append("resume " + "/".join(Path(reference).parts[-2:]))
        return sweeps.load(reference)

    monkeypatch.setattr(sweeps, "run", run)
    monkeypatch.setattr(sweeps, "resume", resume)
    monkeypatch.chdir(tmp_path)
    line = ["sweep", "digits", "--alpha", "0.1,0.2", "--quiet"]
    for words in (
        [*line, "--resume"], [*line, "--resume"], [*line, "--name", "x", "--resume"], line,
        [*line, "--name", "x", "--resume"], ["sweep", "--resume", "x", "--quiet"], [*line, "--resume"],
        ["sweep", "--name", "x", "--resume", "--quiet"], ["sweep", "--resume", "digits-sweep/0", "--quiet"],
    ):  # fmt: skip
        assert cli.run(words) == 0
    assert played == [
        "run digits-sweep/0", "resume digits-sweep/0", "run x/2", "run digits-sweep/3", "resume x/2", "resume x/2",
        "resume digits-sweep/3", "resume x/2", "resume digits-sweep/0",
    ]  # fmt: skip
    capsys.readouterr()
    assert cli.run([*line, "--samples", "5", "--resume"]) == 2
    assert "searches something else: give another --name, or leave out --resume" in capsys.readouterr().err
    assert cli.run(["sweep", "--resume", "x", "--samples", "5"]) == 2
    assert "leave out --samples" in capsys.readouterr().err
    assert cli.run(["sweep", "--resume"]) == 2
    assert "name it, as in `raygrad sweep --resume NAME`" in capsys.readouterr().err
    assert cli.run([*line, "--rounds", "3", "--communications", "4"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert cli.run([*line, "--set", "algorithm.lr=0.3"]) == 2
    assert "algorithm.lr is given twice; give it once, as alpha or with --set" in capsys.readouterr().err
    (tmp_path / "runs" / "x" / "2" / "where.json").write_text("{")
    assert cli.run(["list", "sweeps"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"digits-sweep/0 +0 +– +alpha", out) and re.search(r"x/2 +damaged", out)


def test_times() -> None:
    assert [seconds(t) for t in ("2h", "1h30m", "90s", "90", "0.5h")] == [7200, 5400, 90, 90, 1800]
    for text in ("", "2x", "h"):
        with pytest.raises(BadInput, match="is no time"):
            seconds(text)
