"""What is exported: every reading fits the table, counts what the tables of the run count, and documents say so."""

import math
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raygrad import metrics, player
from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BadInput, BelowQuorum, Diverged, Stopped
from raygrad.experiment import Where
from raygrad.files.runs import LoadedRun, load
from raygrad.metrics import METRICS, Reading, Slots
from raygrad.run import create, play
from raygrad.talk import Operation
from raygrad.verify import problem

ROOT = Path(__file__).resolve().parents[1]
Read = list[Reading]


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """What a run in this process would export if it had a Ray."""
    found: Read = []
    monkeypatch.setattr(player.Player, "_exporting", lambda self: nullcontext(found.extend))
    yield found
    for r in found:  # whatever the test: all of it fits the table
        assert set(r.labels) == set(METRICS[r.metric].labels)


def made(folder: Path, rounds: int = 4) -> LoadedRun:
    return create(replace(problem(FedGA(), 4), rounds=rounds), Where(on="local"), run_root=folder, name="counted")


def total(readings: Iterable[Reading], metric: str, **labels: str) -> float:
    return sum(r.value for r in readings if r.metric == metric and labels.items() <= r.labels.items())


def newest(readings: Iterable[Reading], metric: str, **labels: str) -> float:
    return [r.value for r in readings if r.metric == metric and labels.items() <= r.labels.items()][-1]


def states(readings: Read) -> list[str]:
    return [r.labels["state"] for r in readings if r.metric == "raygrad_run_state_time_seconds"]


def test_a_run_counts_what_its_tables_hold(tmp_path: Path, readings: Read) -> None:
    made_run = made(tmp_path)
    for _ in play(made_run):
        pass
    rows = load(made_run.folder).table("rounds").to_pylist()
    probes = load(made_run.folder).table("probes").to_pylist()
    assert total(readings, "raygrad_rounds_total") == len(rows) == 4
    assert newest(readings, "raygrad_round") == newest(readings, "raygrad_rounds_planned") == 4
    for name in ("answered", "late", "left", "failed", "rejected"):
        assert total(readings, "raygrad_clients_total", outcome=name) == sum(r[f"clients_{name}"] for r in rows)
    assert total(readings, "raygrad_clients_asked_total") == sum(r["clients_asked"] for r in rows) > 0
    assert total(readings, "raygrad_communications_total") == sum(r["communications"] for r in rows) > 0
    for direction in ("down", "up"):
        found = total(readings, "raygrad_charged_bytes_total", direction=direction)
        assert found == sum(r[f"bytes_{direction}"] for r in rows) > 0
    assert newest(readings, "raygrad_loss", part="train") == rows[-1]["train_loss"]
    measured = [r for r in rows if r["validation_accuracy"] is not None]
    assert newest(readings, "raygrad_accuracy", part="validation") == measured[-1]["validation_accuracy"]
    assert newest(readings, "raygrad_loss", part="validation") == measured[-1]["validation_loss"]
    assert 0 <= newest(readings, "raygrad_accuracy", part="test") <= 1
    assert newest(readings, "raygrad_alignment_r") == probes[-1]["r"]
    assert newest(readings, "raygrad_gradient_diversity") == probes[-1]["diversity"]
    phases = {r.labels["phase"] for r in readings if r.metric == "raygrad_phase_seconds"}
    assert phases == {"gradient", "local", "measure", "save"}
    assert states(readings) == ["running", "finished"]


def test_a_run_that_is_left_and_goes_on(tmp_path: Path, readings: Read) -> None:
    made_run = made(tmp_path)
    rounds = play(made_run)
    for round in rounds:
        if round.index == 2:
            break
    rounds.close()
    assert states(readings) == ["running", "stopped"]
    readings.clear()
    for _ in play(load(made_run.folder)):
        pass
    assert total(readings, "raygrad_rounds_total") == 2
    assert [r.value for r in readings if r.metric == "raygrad_round"] == [2, 3, 4]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Diverged("the model", 3, None), "diverged"),
        (BelowQuorum("1 of 3"), "below_quorum"),
        (Stopped("no hosts"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (GeneratorExit(), "stopped"),
        (BadInput("no"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_states(error: BaseException, state: str) -> None:
    assert metrics.state_after(error) == state and state in metrics.STATES


def operation(host: str, outcome: str = "answered", attempt: int = 1, start_s: float = 0.0) -> Operation:
    return Operation(0, host, attempt, 4, start_s, 2.0, 0, 0, outcome, 0, "local")


def test_hosts_and_their_stragglers() -> None:
    """Two hosts in a round of eight seconds: one dies, and its gang goes to the other."""
    some = [operation("m:7"), operation("m:8", "lost: ActorDiedError"), operation("m:7", attempt=2, start_s=2.0)]
    found = list(metrics._of_operations(some, 8.0, Slots()))
    assert newest(found, "raygrad_host_busy_share", host="m/0") == 0.5
    assert newest(found, "raygrad_host_busy_share", host="m/1") == 0.0
    assert newest(found, "raygrad_host_seconds_per_client", host="m/0") == 0.5
    assert total(found, "raygrad_gangs_total", outcome="answered") == 2
    assert total(found, "raygrad_gangs_total", host="m/1", outcome="lost") == 1
    assert total(found, "raygrad_clients_repeated_total") == 4
    assert newest(found, "raygrad_phase_seconds", phase="local") == 4.0


def test_a_host_that_is_gone_is_not_busy() -> None:
    slots = Slots()
    list(metrics._of_operations([operation("m:7"), operation("m:8")], 8.0, slots))
    found = list(metrics._of_operations([operation("m:7")], 8.0, slots))
    assert newest(found, "raygrad_host_busy_share", host="m/1") == 0.0


@pytest.mark.parametrize(
    ("said", "outcome"),
    [("lost for good: ActorDiedError", "lost"), ("hung: for 40 s", "hung"), ("superseded", "superseded")],
)
def test_outcomes_of_gangs_are_few(said: str, outcome: str) -> None:
    found = list(metrics._of_operations([operation("m:7", said)], 8.0, Slots()))
    assert total(found, "raygrad_gangs_total", outcome=outcome) == 1


def test_names_of_hosts_stay_few() -> None:
    """However many processes come and go, no more names than were at work at once."""
    slots, seen = Slots(), set[str]()
    for process in range(100):
        slots.update([f"a:{process}", f"a:{process + 1}", "b:1"])
        seen |= set(slots.names.values())
        assert len(set(slots.names.values())) == len(slots.names) == 3
    assert seen == {"a/0", "a/1", "b/0"}


def test_a_host_keeps_its_name() -> None:
    slots = Slots()
    slots.update(["a:1", "a:2"])
    slots.update(["a:2"])
    slots.update(["a:2", "a:1"])
    assert slots.names == {"a:1": "a/0", "a:2": "a/1"}


@pytest.mark.parametrize(
    ("metric", "value", "exported"),
    [
        ("raygrad_rounds_total", 1, True),
        ("raygrad_rounds_total", 0, False),
        ("raygrad_alignment_r", 0.0, True),
        ("raygrad_alignment_r", math.inf, False),
        ("raygrad_loss", math.nan, False),
    ],
)
def test_what_is_not_exported(metric: str, value: float, exported: bool) -> None:
    assert metrics.exported(Reading(metric, value)) is exported


def test_a_sweep() -> None:
    found = list(metrics.of_sweep(5, {"running": 2, "waiting": 3}, 0.75))
    assert newest(found, "raygrad_trials", state="running") == 2
    assert newest(found, "raygrad_trials", state="diverged") == 0
    assert newest(found, "raygrad_trial_best") == 0.75
    assert all(set(r.labels) == set(METRICS[r.metric].labels) for r in found)


def test_the_table_is_documented() -> None:
    documented = (ROOT / "docs/metrics.md").read_text()
    assert metrics.table() in documented, "docs/metrics.md has another table; print(raygrad.metrics.table())"
    assert set(re.findall(r"\| `ray_(raygrad_\w+)`", documented)) == set(METRICS)


def test_the_table_is_sound() -> None:
    for name, m in METRICS.items():
        assert re.fullmatch(r"raygrad_[a-z_]+", name)
        assert (m.kind == "counter") == name.endswith("_total")
        assert not {"round", "client", "id", "trial", "run", "sweep"} & set(m.labels)
    assert np.all(np.diff(metrics.SECONDS) > 0) and metrics.SECONDS[0] > 0


def test_what_goes_wrong_never_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from raygrad.onray import metrics as exporter

    exported: list[Reading] = []

    def export(owner: str, reading: Reading) -> None:
        exported.append(reading)
        raise RuntimeError("no Ray is here")

    monkeypatch.setattr(exporter, "_export", export)
    exporter.record("run", [Reading("raygrad_round", 1), Reading("raygrad_round", 2)])
    assert len(exported) == 2


def test_gauges_are_there_until_their_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets a gauge that it has sent: what is set once, or before a long round, would vanish under a run."""
    from raygrad.onray import metrics as exporter

    set_to: dict[str, list[float]] = {}
    again = threading.Event()

    def made(name: str) -> Any:
        def note(value: float, labels: dict[str, str]) -> None:
            values = set_to.setdefault(" ".join([name, *labels.values()]), [])
            values.append(value)
            if name == "raygrad_round" and len(values) > 4:
                again.set()

        return SimpleNamespace(set=note, inc=note)

    monkeypatch.setattr(exporter, "HOLD_S", 0.001)
    monkeypatch.setattr(exporter, "_made", made)
    with exporter.exporting("run") as record:
        record([Reading("raygrad_hosts_ready", 2), Reading("raygrad_hosts_lost_total", 1, {"machine": "m"})])
        record(metrics.at_start(3, 9, 2, 7.0))
        record([Reading("raygrad_round", 4)])
        assert again.wait(30)
        (thread,) = [t for t in threading.enumerate() if t.name == "raygrad-metrics"]
    assert not thread.is_alive()
    rounds = set_to["raygrad_round run"]
    assert rounds[0] == 3 and set(rounds[rounds.index(4) :]) == {4}
    for name in ("hosts_ready run", "rounds_planned run", "quorum run", "run_state_time_seconds run running"):
        assert len(set_to["raygrad_" + name]) > 1, name
    assert set_to["raygrad_hosts_lost_total run m"] == [1]
    exporter.record("run", [Reading("raygrad_hosts_ready", 0)])
    assert set_to["raygrad_hosts_ready run"][-1] == 0 and exporter._HELD == {}


def test_runs_of_one_name_are_exported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of a trial are played in turn by one process; whichever ends first, the other's gauges stay."""
    from raygrad.onray import metrics as exporter

    set_to: list[float] = []
    again = threading.Event()

    def note(value: float, labels: dict[str, str]) -> None:
        set_to.append(value)
        if set_to.count(2.0) > 2:
            again.set()

    monkeypatch.setattr(exporter, "HOLD_S", 0.001)
    monkeypatch.setattr(exporter, "_made", lambda name: SimpleNamespace(set=note))
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(exporter.exporting("trials"))([Reading("raygrad_round", 1)])
        record = second.enter_context(exporter.exporting("trials"))
        first.close()
        record([Reading("raygrad_round", 2)])
        assert again.wait(30)
    assert exporter._HELD == {} and not exporter._HOLDERS


def test_what_cannot_be_set_again_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from raygrad.onray import metrics as exporter

    tried = threading.Semaphore(0)

    def broken(value: float, labels: dict[str, str]) -> None:
        tried.release()
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Ray is gone")

    monkeypatch.setattr(exporter, "HOLD_S", 0.001)
    monkeypatch.setattr(exporter, "_made", lambda name: SimpleNamespace(set=broken))
    with exporter.exporting("run") as record:
        record([Reading("raygrad_round", 4)])
        assert all(tried.acquire(timeout=30) for _ in range(3))


def test_a_local_run_exports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raygrad.onray import metrics as exporter

    exported: list[Reading] = []
    monkeypatch.setattr(exporter, "record", lambda owner, readings: exported.extend(readings))
    for _ in play(made(tmp_path, 1)):
        pass
    assert exported == []
