"""The gang search: what it tries, what it says, and that its advice can be used. Nothing here is timed."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raygrad import BadInput, Where, benchmark, cli
from raygrad.benchmark import Candidates, Choice, Sample, candidates, makespan, samples, timings
from raygrad.commands import experiments
from raygrad.data.partition import IID
from raygrad.experiment import Experiment, Gangs
from raygrad.gang import cut
from raygrad.models import Linear, ResNet
from raygrad.samplers import Uniform

QUICK = Experiment(partition=IID(clients=20), model=Linear(), sampler=Uniform(12))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


def found(experiment: Experiment, shards: Path) -> Candidates:
    return candidates(experiment, Where(on="local"), shards)


def test_every_cut_of_the_cohort_is_tried_once_in_both_modes(shards: Path) -> None:
    choices = found(QUICK, shards).choices
    for mode in ("loop", "vmap"):
        mine = [c for c in choices if c.mode == mode]
        assert {c.size for c in mine} >= {1, 2, 4}
        assert len({c.gangs for c in mine}) == len(mine)
        for c in mine:  # the advised size cuts the cohort as it was timed
            assert len(cut(np.arange(12), np.ones(12), np.ones(12), c.size)) == c.gangs
            assert c.size <= 12
    (rule,) = [c for c in choices if c.by_rule]
    plan = found(QUICK, shards).plan
    assert (rule.size, rule.mode) == (plan.experiment.gangs.size, plan.experiment.gangs.mode)


def test_the_recipes_own_gangs_are_set_aside(shards: Path) -> None:
    own = replace(QUICK, gangs=Gangs(5, "loop"))
    assert found(own, shards).choices == found(QUICK, shards).choices


def test_a_cohort_of_one(shards: Path) -> None:
    choices = found(replace(QUICK, sampler=Uniform(1)), shards).choices
    assert [(c.mode, c.size, c.gangs) for c in choices] == [("loop", 1, 1), ("vmap", 1, 1)]


def test_why_there_is_no_vmap(shards: Path) -> None:
    none = found(replace(QUICK, model=ResNet(blocks=(1,), width=4, norm="batch")), shards)
    assert {c.mode for c in none.choices} == {"loop"}
    assert len(none.notes) == 1 and re.match(r"no vmap: layer \S+ \(BatchNorm2d\) keeps running", none.notes[0])


def test_gangs_that_take_too_much_memory_are_left_out(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_client = 5 * 10 * 64 * 4  # K B pixels bytes
    monkeypatch.setattr(benchmark, "VMAP_GANG_BYTES", 2 * one_client)
    small = found(QUICK, shards)
    assert {c.size for c in small.choices if c.mode == "vmap"} == {1, 2}
    assert {c.size for c in small.choices if c.mode == "loop"} > {1, 2}
    assert any(note.startswith("no vmap of 4: ") for note in small.notes)


@pytest.mark.parametrize("algorithm", ["fedga", "scaffold"])
def test_a_round_of_every_choice_is_timed(algorithm: str, shards: Path) -> None:
    experiment = replace(QUICK, sampler=Uniform(4)).set("algorithm", algorithm)
    these = found(experiment, shards)
    measured = list(samples(these, hosts=2, repeats=2))
    assert [s.choice for s in measured] == [*these.choices, *these.choices]
    for s in measured:  # two hosts are at most twice as fast, and no slower
        assert 0 < s.clients_per_s <= s.on_hosts * (1 + 1e-9) <= 2 * s.clients_per_s * (1 + 1e-6)
    alone = list(samples(these, hosts=1, repeats=1))
    assert all(s.on_hosts == pytest.approx(s.clients_per_s) for s in alone)


def test_hosts_share_gangs_as_they_become_free() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1, 3], 2) == 4
    assert makespan([1, 2, 3], 1) == 6
    assert makespan([1, 2], 5) == 2


def test_timings_are_medians_with_their_spread() -> None:
    a, b = Choice("loop", 1, 4, False), Choice("vmap", 2, 2, True)
    measured = [Sample(c, rate, 2 * rate) for rate in (5.0, 9.0, 6.0) for c in (a, b)]
    first, second = timings(measured)
    assert (first.choice, second.choice) == (a, b)
    assert (first.clients_per_s, first.lowest, first.highest, first.on_hosts) == (6, 5, 9, 12)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_names_the_best_and_how_to_use_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(these: Candidates, hosts: int, repeats: int) -> Iterator[Sample]:
        assert (hosts, repeats) == (3, 2)
        for choice in these.choices * repeats:
            rate = 100.0 * choice.size + (1 if choice.mode == "vmap" else 0)
            yield Sample(choice, rate, rate * (50 if choice.size == 2 else 1))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "samples", made)
    words = ["benchmark", "gang", "digits", "--set", "model=linear", "--repeats", "2", "--hosts", "3"]
    assert cli.run([*words, "--shard-root", str(shards)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "mode" and "clients/s on 3 hosts" in lines[0]
    (best,) = [line for line in lines if line.startswith("vmap") and "best" in line]
    assert best.split()[:3] == ["vmap", "2", "5"] and "10,050" in best
    assert sum("the rule's" in line for line in lines if "reaches" not in line) == 1
    advice = lines[-1].removeprefix("best here: ").split()
    assert advice == ["--set", "gangs.mode=vmap", "--set", "gangs.size=2"]
    assert experiments.choose("digits", advice[1::2]).experiment.gangs == Gangs(2, "vmap")


def test_the_command_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path,
                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = ["benchmark", "gang", "digits", "--set", "model=linear", "--repeats", "1", "--shard-root", str(shards)]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"^best here: --set gangs\.mode=(loop|vmap) --set gangs\.size=\d+$", out, re.M)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "--repeats", "0"], "--repeats is 0"),
        (["digits", "--hosts", "0"], "--hosts 0"),
        (["digitz"], "did you mean digits"),
        (["digits", "--set", "sampler.cohort=11"], "only 10 clients"),
        (["digits", "--set", "gangs.mode=fast"], "gangs.mode"),
        (["digits", "--device", "tpu"], "--device"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["benchmark", "gang", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_benchmark_refuses_by_the_packages_error(shards: Path) -> None:
    with pytest.raises(BadInput, match="only 20 clients"):
        found(replace(QUICK, sampler=Uniform(21)), shards)
