"""A run that ends before its last round says why: in its folder, its report, the list and the viewer."""

from dataclasses import replace
from pathlib import Path

import pytest

from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BadInput, BelowQuorum, Diverged, RaygradError
from raygrad.experiment import Checkpoints, Experiment, Where
from raygrad.faults import Fault
from raygrad.files.runs import LoadedRun, load
from raygrad.files.storage import read_json
from raygrad.player import Injector
from raygrad.reports import report
from raygrad.run import create, fork, play
from raygrad.talk import Failures
from raygrad.verify import problem
from raygrad.verify_faults import FaultInjector
from raygrad.viewer import answers
from raygrad.viewer.catalog import Catalog

GOES_WELL = replace(problem(FedGA(lr=0.1)), rounds=4, checkpoints=Checkpoints(every=1))
DIVERGES = replace(GOES_WELL, algorithm=FedGA(lr=3e38))
QUORUM = replace(GOES_WELL, failures=Failures(nan="skip", quorum=2))
HERE = Where(on="local")


def ended(experiment: Experiment, root: Path, error: type[RaygradError], injector: Injector | None = None) -> LoadedRun:
    """A run of it, which ends with this error."""
    run = create(experiment, HERE, run_root=root, name="early")
    with pytest.raises(error):
        list(play(run, injector=injector))
    return run


def shown(run: LoadedRun, root: Path) -> tuple[str, str]:
    """The run's state in the viewer's list and on its page."""
    catalog = Catalog(root)
    rows, _ = catalog.rows(30)
    at = f"early/{run.folder.name}"
    state = {r.at: r.state for r in rows}[at], answers.run(catalog, at)["state"]
    catalog.close()
    return state


def test_a_diverged_run_says_so(tmp_path: Path) -> None:
    run = ended(DIVERGES, tmp_path, Diverged)
    note = read_json(run.folder / "ended.json")
    assert note["state"] == "diverged" and "is not finite in round" in note["message"]
    v = report.view(run.folder)
    assert v.state == "diverged" and v.rounds == f"{note['round']} of 4 (diverged)"
    assert dict(report.summary_of(v))["ended early"] == note["message"]
    assert shown(run, tmp_path) == ("diverged", "diverged")
    catalog = Catalog(tmp_path)
    page = answers.run(catalog, f"early/{run.folder.name}")
    catalog.close()
    assert "resume" not in dict(page["commands"])  # it would diverge again


def test_it_counts_until_a_round_more_is_played(tmp_path: Path) -> None:
    fault = FaultInjector([Fault("nan", 2, 0, client) for client in range(6)], tmp_path / "stash")
    run = ended(QUORUM, tmp_path, BelowQuorum, fault)
    assert report.view(run.folder).rounds == "1 of 4 (below quorum)"
    assert shown(run, tmp_path) == ("below_quorum", "below_quorum")
    other = fork(load(run.folder), ["algorithm.lr=0.05"], run_root=tmp_path, name="other")
    assert report.view(other.folder).state == "unfinished"
    rounds = play(load(run.folder))
    next(rounds)
    rounds.close()
    assert (run.folder / "ended.json").is_file()
    assert report.view(run.folder).state == "unfinished" and shown(run, tmp_path) == ("stopped", "stopped")
    list(play(load(run.folder)))
    v = report.view(run.folder)
    assert v.state == "finished" and not v.ended and "ended early" not in dict(report.summary_of(v))
    assert shown(run, tmp_path) == ("finished", "finished")


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    run = ended(DIVERGES, tmp_path, Diverged)
    (run.folder / "ended.json").write_text("{")
    with pytest.raises(BadInput, match=r"ended\.json"):
        report.view(run.folder)
    catalog = Catalog(tmp_path)
    (row,) = catalog.rows(30)[0]
    catalog.close()
    assert row.state == "damaged" and "ended.json" in row.message


def test_who_leaves_the_loop_ends_nothing(tmp_path: Path) -> None:
    run = create(GOES_WELL, HERE, run_root=tmp_path, name="early")
    rounds = play(run)
    next(rounds)
    rounds.close()
    assert not (run.folder / "ended.json").exists()
    assert report.view(run.folder).state == "unfinished"
