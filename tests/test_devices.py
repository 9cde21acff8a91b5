"""Modelled devices against closed forms: distributions, order statistics, integration over traces, day and night.

Bounds of statistical tests are five standard errors at a fixed seed, or a Dvoretzky-Kiefer-Wolfowitz bound at 1e-7.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import exp, inf, log, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from raygrad import cli, config
from raygrad.devices import (
    DEVICES,
    Address,
    Classes,
    Constant,
    Devices,
    Exponential,
    Finish,
    Load,
    LogNormal,
    NotModelled,
    Pareto,
    Trace,
)
from raygrad.devices.diurnal import diurnal_trace, encode
from raygrad.devices.drawn import Drawn
from raygrad.errors import BadInput
from raygrad.rng import Purpose, uniforms

ROOT = Path(__file__).resolve().parents[1]
MANY = np.arange(400_000)
HERE = Address(seed=3, round=1, phase=0)
DRAWN = [Constant(), Exponential(), LogNormal(sigma=0.8), Pareto(shape=3.0), Classes()]


def of_work(examples: Any, down: float = 0.0, up: float = 0.0) -> Load:
    examples = np.asarray(examples, np.float64)
    return Load(examples, np.full(len(examples), down), np.full(len(examples), up))


def slowness(devices: Drawn, clients: np.ndarray = MANY, address: Address = HERE) -> np.ndarray:
    """How many times the mean duration each client takes."""
    return devices.run(clients, of_work(np.full(len(clients), devices.examples_per_s)), 0.0, address).seconds


def is_uniform(u: np.ndarray) -> bool:
    """Whether the empirical distribution is within the DKW bound of the uniform one on (0, 1)."""
    steps = np.arange(len(u) + 1) / len(u)
    ordered = np.sort(u)
    distance = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    return distance < sqrt(log(2 / 1e-7) / (2 * len(u)))


def near(values: np.ndarray, mean: float, sd: float | None = None) -> bool:
    """Whether the mean of `values` is within five standard errors of `mean`."""
    return abs(values.mean() - mean) <= 5 * (values.std() if sd is None else sd) / sqrt(len(values))


# --- uniforms -------------------------------------------------------------------------------------------------------


def test_uniforms_never_change() -> None:
    assert uniforms(0, Purpose.DEVICES, 1, clients=np.arange(3)).tolist() == [
        0.2235726658632432, 0.11557695560359671, 0.06449530614245236,
    ]  # fmt: skip
    assert uniforms(2**63, Purpose.DEVICES, 3, 7, clients=np.array([0, 5, 10**12])).tolist() == [
        0.9043766317460727, 0.0014039789314267415, 0.9495343966946957,
    ]  # fmt: skip


def test_uniforms_are_a_clients_own() -> None:
    some = np.array([99_999, 7, 3, 50_000])
    everyone = uniforms(1, Purpose.DEVICES, 2, clients=np.arange(100_000))
    assert (uniforms(1, Purpose.DEVICES, 2, clients=some) == everyone[some]).all()
    assert some.tolist() == [99_999, 7, 3, 50_000]


@pytest.mark.parametrize("key", [(), (1,), (1, 0), (4, 17, 1)])
def test_uniforms_are_uniform(key: tuple[int, ...]) -> None:
    u = uniforms(0, Purpose.DEVICES, *key, clients=np.arange(1_000_000))
    assert u.min() > 0 and u.max() < 1 and len(np.unique(u)) == len(u)
    assert is_uniform(u)
    low_bits = np.bincount((u * 2.0**52).astype(np.int64) & 255, minlength=256)
    chi2 = ((low_bits - len(u) / 256) ** 2).sum() / (len(u) / 256)
    assert abs(chi2 - 255) < 5 * sqrt(2 * 255)
    centred = (u - 0.5) * sqrt(12)
    for lag in (1, 2, 10, 64, 1000):
        assert abs((centred[lag:] * centred[:-lag]).mean()) < 5 / sqrt(len(u) - lag)


def test_uniforms_of_different_keys_are_independent() -> None:
    keys = [(0, 1), (1, 1), (0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 0, 0), (2**32, 1), (2**40, 1)]
    drawn = [uniforms(seed, Purpose.DEVICES, *key, clients=MANY) for seed, *key in keys]
    correlation = np.corrcoef(np.stack(drawn)) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / sqrt(len(MANY))
    rounds = np.stack([uniforms(0, Purpose.DEVICES, 1, k, clients=np.arange(12)) for k in range(10_000)])
    assert all(is_uniform(of_one) for of_one in rounds.T)
    assert np.abs(np.corrcoef(rounds.T) - np.eye(12)).max() < 5 / sqrt(len(rounds))
    assert abs(np.corrcoef(rounds[1:, 0], rounds[:-1, 0])[0, 1]) < 5 / sqrt(len(rounds))


# --- distributions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "sd"),
    [
        (Constant(), 0.0),
        (Exponential(), 1.0),
        (LogNormal(sigma=0.5), sqrt(exp(0.25) - 1)),
        (LogNormal(sigma=0.0), 0.0),
        (Pareto(shape=6.0), 1 / sqrt(6 * 4)),
    ],
)
def test_mean_slowness_is_one(devices: Drawn, sd: float) -> None:
    s = slowness(devices)
    assert near(s, 1.0, sd) and (s > 0).all()
    assert s.std() == pytest.approx(sd, rel=0.05)


QUANTILES: list[tuple[Drawn, Callable[[float], float]]] = [
    (Exponential(), lambda q: -log(1 - q)),
    (LogNormal(sigma=0.7), lambda q: exp(0.7 * NormalDist().inv_cdf(q) - 0.7**2 / 2)),
    (LogNormal(sigma=5.0), lambda q: exp(5.0 * NormalDist().inv_cdf(q) - 5.0**2 / 2)),
    (Pareto(shape=1.5), lambda q: (0.5 / 1.5) * (1 - q) ** (-1 / 1.5)),
]


@pytest.mark.parametrize(("devices", "quantile"), QUANTILES)
def test_quantiles(devices: Drawn, quantile: Callable[[float], float]) -> None:
    s = slowness(devices)
    for q in (0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999):
        assert near(s <= quantile(q), q, sqrt(q * (1 - q))), q


def test_classes_have_their_shares() -> None:
    s = slowness(Classes(slowness=(0.5, 1.0, 8.0), shares=(0.2, 0.7, 0.1)))
    assert set(np.unique(s)) == {0.5, 1.0, 8.0}
    for factor, share in ((0.5, 0.2), (1.0, 0.7), (8.0, 0.1)):
        assert near(s == factor, share, sqrt(share * (1 - share)))


@pytest.mark.parametrize("m", [1, 2, 10, 100])
def test_order_statistics_of_exponential_durations(m: int) -> None:
    """Of m exponential durations of rate mu the k-th smallest is (H_m - H_(m-k)) / mu on average; k = m: H_m / mu."""
    devices, rounds = Exponential(examples_per_s=100.0, vary="round"), 4000
    load, rate = of_work(np.full(m, 250.0)), 100.0 / 250.0
    runs = [devices.run(np.arange(m), load, 0.0, Address(0, k, 0)).seconds for k in range(1, rounds + 1)]
    ordered = np.sort(np.stack(runs), axis=1)
    for k in {1, max(1, m // 2), max(1, 9 * m // 10), m}:
        left = np.arange(m - k + 1, m + 1)  # H_m - H_(m-k) sums 1 / i over these
        assert near(ordered[:, k - 1], (1 / left).sum() / rate, sqrt((1 / left**2).sum()) / rate), k


@pytest.mark.parametrize("devices", DRAWN[1:], ids=lambda d: type(d).__name__)
def test_slowness_varies_as_asked(devices: Drawn) -> None:
    fixed, anew = replace(devices, vary="client"), replace(devices, vary="round")
    first = slowness(fixed)
    assert (slowness(fixed, address=Address(3, 2, 0)) == first).all()
    assert (slowness(fixed, address=Address(4, 1, 0)) != first).mean() > 0.1
    second = slowness(anew)
    assert (slowness(anew, address=Address(3, 1, 1)) == second).all()  # another phase of the round
    other = slowness(anew, address=Address(3, 2, 0))
    ranks = [np.argsort(np.argsort(s)) for s in (first, second, other)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        if len(np.unique(first)) > 2:
            assert abs(np.corrcoef(ranks[a], ranks[b])[0, 1]) < 5 / sqrt(len(MANY))
        assert (first != other).mean() > 0.1


# --- phases ---------------------------------------------------------------------------------------------------------


def test_a_phase_is_download_compute_upload() -> None:
    devices = Classes(
        examples_per_s=50.0, down_bytes_per_s=1000.0, up_bytes_per_s=250.0, slowness=(2.0, 8.0), shares=(0.5, 0.5)
    )
    clients = np.arange(40)
    s = slowness(devices, clients)
    done = devices.run(clients, of_work(np.arange(40.0), down=500.0, up=500.0), 0.0, HERE)
    assert set(s) == {2.0, 8.0}  # they scale the computing only
    assert done.seconds == pytest.approx(0.5 + np.arange(40.0) / 50.0 * s + 2.0, rel=1e-15)
    assert done.answers.all() and done.answers.dtype == np.bool_
    free = replace(devices, down_bytes_per_s=None, up_bytes_per_s=None)
    assert free.run(clients, of_work(np.zeros(40), 1e9, 1e9), 0.0, HERE).seconds.tolist() == [0.0] * 40


def test_dropout() -> None:
    whole = Exponential(down_bytes_per_s=1e3)
    leaving = replace(whole, dropout=0.3)
    load = of_work(np.full(len(MANY), 2000.0), down=500.0)
    stays, done = whole.run(MANY, load, 0.0, HERE), leaving.run(MANY, load, 0.0, HERE)
    assert stays.answers.all()
    assert near(done.answers, 0.7, sqrt(0.3 * 0.7))
    assert (done.seconds[done.answers] == stays.seconds[done.answers]).all()
    part = (done.seconds / stays.seconds)[~done.answers]
    assert is_uniform(part)
    next_phase = leaving.run(MANY, load, 0.0, Address(3, 1, 1)).answers
    assert near(done.answers & next_phase, 0.49, sqrt(0.49 * 0.51))  # phases are independent
    by_speed = np.corrcoef(done.answers, stays.seconds)[0, 1]
    assert abs(by_speed) < 5 / sqrt(len(MANY))


def test_availability() -> None:
    devices = LogNormal(availability=0.6, dropout=0.1)
    there = devices.available(MANY, 12.5, HERE)
    assert near(there, 0.6, sqrt(0.24))
    done = devices.run(MANY, of_work(np.ones(len(MANY))), 0.0, HERE)
    assert not done.answers[~there].any() and not done.seconds[~there].any()
    assert near(done.answers[there], 0.9, 0.3)
    assert (devices.available(MANY, 99.0, Address(3, 1, 1)) == there).all()  # the same throughout a round
    again = devices.available(MANY, 12.5, Address(3, 2, 0))
    assert near(there & again, 0.36, sqrt(0.36 * 0.64))
    assert Constant().available(MANY, 0.0, HERE).all()


@pytest.mark.parametrize("devices", [NotModelled(), *DRAWN], ids=lambda d: type(d).__name__)
def test_finish_belongs_to_the_client(devices: Devices) -> None:
    if isinstance(devices, Drawn):
        devices = replace(devices, dropout=0.2, availability=0.8)
    order = np.random.Generator(np.random.PCG64(0)).permutation(1000)[:300]
    examples = np.linspace(1, 2, 1000)
    whole = devices.run(np.arange(1000), of_work(examples), 0.0, HERE)
    some = devices.run(order, of_work(examples[order]), 1e6, HERE)  # at any time
    assert (some.seconds == whole.seconds[order]).all() and (some.answers == whole.answers[order]).all()


@settings(deadline=None, max_examples=60)
@given(
    devices=st.sampled_from(DRAWN), seed=st.integers(0, 2**64 - 1), less=st.floats(0, 1e6), more=st.floats(0, 1e6),
    dropout=st.floats(0, 0.9),
)  # fmt: skip
def test_more_work_takes_longer(devices: Drawn, seed: int, less: float, more: float, dropout: float) -> None:
    devices = replace(devices, dropout=dropout, down_bytes_per_s=10.0)
    address, clients = Address(seed, 1, 0), np.arange(20)
    short = devices.run(clients, of_work(np.full(20, less), down=less), 0.0, address)
    long = devices.run(clients, of_work(np.full(20, less + more), down=less), 0.0, address)
    assert (short.seconds <= long.seconds).all() and (short.answers == long.answers).all()


def test_nothing_modelled() -> None:
    devices = NotModelled()
    done = devices.run(np.arange(5), of_work(np.full(5, 1e9), 1e9, 1e9), 3.0, HERE)
    assert done.seconds.tolist() == [0.0] * 5 and done.answers.all()
    assert devices.available(np.arange(5), 0.0, HERE).all()
    assert [d for d, cls in DEVICES.items() if not cls.modelled] == ["none"]


# --- settings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Stands for an experiment."""

    devices: Devices = config.one_of(DEVICES, NotModelled())


def test_devices_are_set_from_text() -> None:
    given = config.assign_all(
        Settings(), [("devices", "lognormal"), ("devices.sigma", "0.25"), ("devices.up_bytes_per_s", "1e6")]
    )
    assert given.devices == LogNormal(sigma=0.25, up_bytes_per_s=1e6)
    given = config.assign_all(
        given, [("devices", "classes"), ("devices.slowness", "1,3"), ("devices.shares", "0.5,0.5")]
    )
    assert given.devices == Classes(up_bytes_per_s=1e6, slowness=(1.0, 3.0), shares=(0.5, 0.5))
    with pytest.raises(BadInput, match=r"set devices\.path too"):
        config.assign(given, "devices", "trace")


@pytest.mark.parametrize("kind", DEVICES)
def test_devices_as_json(kind: str) -> None:
    devices = DEVICES[kind](**({"path": "x.csv"} if kind == "trace" else {}))
    assert isinstance(devices, Devices)
    assert config.load(Settings, config.dump(Settings(devices))).devices == devices


@pytest.mark.parametrize(
    ("kind", "field", "value", "limit"),
    [
        ("constant", "examples_per_s", "0", "> 0"),
        ("exponential", "down_bytes_per_s", "-1", "> 0"),
        ("pareto", "up_bytes_per_s", "0", "> 0"),
        ("pareto", "shape", "1", "> 1"),
        ("lognormal", "sigma", "-0.1", ">= 0 and <= 5"),
        ("lognormal", "sigma", "6", ">= 0 and <= 5"),
        ("constant", "dropout", "1", ">= 0 and < 1"),
        ("constant", "availability", "0", "> 0 and <= 1"),
        ("constant", "availability", "1.5", "> 0 and <= 1"),
        ("constant", "vary", "phase", "client, round"),
        ("classes", "slowness", "1,0", "> 0"),
        ("classes", "slowness", "1,2,3", "one each"),
        ("classes", "shares", "0.5,0.4", "sum to 1"),
        ("classes", "shares", "1.5,-0.5", ">= 0"),
    ],
)
def test_bad_settings_are_refused(kind: str, field: str, value: str, limit: str) -> None:
    with pytest.raises(BadInput, match=rf"devices\.{field}.*{limit}") as e:
        config.assign_all(Settings(), [("devices", kind), (f"devices.{field}", value)])
    assert "\n" not in str(e.value)


def test_numbers_that_are_none_are_refused() -> None:
    for bad in (float("nan"), inf):
        with pytest.raises(BadInput):
            Constant(examples_per_s=bad)
        with pytest.raises(BadInput):
            LogNormal(sigma=bad)
        with pytest.raises(BadInput):
            Constant(dropout=bad)


# --- traces ---------------------------------------------------------------------------------------------------------

# Client 0 is there for 100 s, first at speed 1, from 10 on at 2, from 30 on at 0.5, and away from 100 to 150.
# Client 1 is always there. Client 2 comes at 40; client 5 is never there.
CSV = """\
client,time,available,speed
1,0,1,
0,100,0,
0,0,1,1
0,10,true,2
0,30,1,0.5
0,150,1,1
2,0,false,3
2,40,1,4.0
5,7,0,1
"""


def trace_file(folder: Path, text: str = CSV, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def at(devices: Trace, client: int, start_s: float, examples: float, down: float = 0.0, up: float = 0.0) -> Finish:
    return devices.run(np.array([client]), of_work([examples], down, up), start_s, HERE)


ONCE = [
    # client, start, examples at speed 1 per s, seconds, answers
    (0, 0, 5, 5, True),
    (0, 0, 10, 10, True),
    (0, 0, 20, 10 + 5, True),  # 10 at speed 1, 10 at speed 2
    (0, 0, 60, 30 + 20, True),  # 10 + 40 + 10 at a half
    (0, 0, 85, 100, True),  # done when it leaves
    (0, 0, 86, 100, False),
    (0, 5, 15, 5 + 5, True),
    (0, 20, 0, 0, True),
    (0, 99, 1, 1, False),
    (0, 100, 1, 0, False),
    (0, 149.5, 0, 0, False),
    (0, 150, 7, 7, True),
    (0, 160, 1e6, 1e6, True),  # after its last row it stays as it is
    (1, 0, 123, 123, True),
    (1, 1e6, 123, 123, True),
    (2, 39, 0, 0, False),
    (2, 40, 8, 2, True),
    (5, 0, 0, 0, False),  # before its first row it is as in its first row
    (5, 1e9, 1, 0, False),
]


@pytest.mark.parametrize(("client", "start_s", "examples", "seconds", "answers"), ONCE)
def test_work_is_integrated_over_a_trace(
    client: int, start_s: float, examples: float, seconds: float, answers: bool, tmp_path: Path
) -> None:
    devices = Trace(str(trace_file(tmp_path)), examples_per_s=1.0, repeat=False)
    done = at(devices, client, start_s, examples)
    assert (done.seconds.tolist(), done.answers.tolist()) == ([pytest.approx(seconds)], [answers])
    there = devices.available(np.array([client]), start_s, HERE)
    assert there.tolist() == [seconds > 0 or answers]


def test_transfers_take_their_time_on_a_trace(tmp_path: Path) -> None:
    devices = Trace(str(trace_file(tmp_path)), 1.0, down_bytes_per_s=10.0, up_bytes_per_s=5.0, repeat=False)
    done = at(devices, 0, 0.0, 20.0, down=50.0, up=50.0)  # 5 s down; computes 5 at 1, 15 at 2; 10 s up
    assert done.seconds.tolist() == [5 + 5 + 7.5 + 10]
    done = at(devices, 0, 80.0, 1.0, down=50.0, up=100.0)  # away at 100, during the upload
    assert (done.seconds.tolist(), done.answers.tolist()) == ([20.0], [False])


REPEATED = [
    # The period is 150 s, the last time in the file.
    (0, 150, 20, 15, True),
    (0, 150 * 1000 + 5, 15, 10, True),
    (0, 250, 1, 0, False),
    (0, 290, 1, 0, False),
    (1, 140, 500, 500, True),
    (2, 149, 4, 1, True),  # up to the end of the period, when it is away again
    (2, 149, 5, 1, False),
    (2, 190, 440, 110, True),  # done when it leaves
    (2, 190, 441, 110, False),
    (5, 0, 1, 0, False),
]


@pytest.mark.parametrize(("client", "start_s", "examples", "seconds", "answers"), REPEATED)
def test_a_trace_repeats(
    client: int, start_s: float, examples: float, seconds: float, answers: bool, tmp_path: Path
) -> None:
    devices = Trace(str(trace_file(tmp_path)), examples_per_s=1.0)
    done = at(devices, client, start_s, examples)
    assert (done.seconds.tolist(), done.answers.tolist()) == ([pytest.approx(seconds)], [answers])


def test_work_over_several_periods(tmp_path: Path) -> None:
    """Speed 1 for 4 s and 3 for 6 s: 22 in a period of 10."""
    path = trace_file(tmp_path, "client,time,available,speed\n0,0,1,1\n0,4,1,3\n")
    devices = Trace(str(path), examples_per_s=1.0, period_s=10.0)
    for start_s, examples, seconds in ((0, 22, 10), (0, 23, 11), (0, 220 + 7, 100 + 5), (7, 9 + 4 + 3, 8), (5, 22, 10)):
        assert at(devices, 0, start_s, examples).seconds.tolist() == [pytest.approx(seconds)], start_s
    # Without period_s it begins again after its last time: always speed 1.
    assert at(replace(devices, period_s=None), 0, 3, 100).seconds.tolist() == [pytest.approx(100)]


def test_a_table_of_speeds_is_a_trace(tmp_path: Path) -> None:
    path = trace_file(tmp_path, "client,time,available,speed\n0,0,1,0.5\n1,0,1,2\n")
    devices = Trace(str(path), examples_per_s=10.0)
    done = devices.run(np.array([1, 0]), of_work([10.0, 10.0]), 1e5, HERE)
    assert done.seconds.tolist() == [0.5, 2.0]


def reference(rows: list[tuple[float, bool, float]], start: float, work: float, period: float) -> tuple[float, bool]:
    """One client's phase by walking through its segments; rows begin at 0."""
    time, done = start, 0.0
    for _ in range(100_000):
        local = time % period if period < inf else time
        index = max(i for i, r in enumerate(rows) if r[0] <= local)
        _, available, speed = rows[index]
        if not available:
            return time - start, False
        until = time + (rows[index + 1][0] if index + 1 < len(rows) else period) - local
        if done + speed * (until - time) >= work:
            return time + (work - done) / speed - start, True
        done, time = done + speed * (until - time), until
    raise AssertionError("no end")


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[tuple[float, bool, float]], float]:
    """Rows of a client on a grid of quarter seconds with speeds that are powers of two, and a period."""
    times = sorted(draw(st.sets(st.integers(1, 80), max_size=8)))
    rows = [
        (t / 4, draw(st.integers(0, 5)) > 0, 2.0 ** draw(st.integers(-3, 3))) for t in (0, *times)
    ]  # fmt: skip
    period = draw(st.sampled_from([inf, 20.25, 32.0]))
    return rows, period


@settings(deadline=None, max_examples=150)
@given(line=timelines(), start=st.integers(0, 400), work=st.integers(0, 3000), more=st.integers(0, 50))
def test_traces_against_a_walk(
    tmp_path_factory: pytest.TempPathFactory,
    line: tuple[list[tuple[float, bool, float]], float],
    start: int,
    work: int,
    more: int,
) -> None:
    """All numbers are multiples of 2^-8 or so: sums are exact, and so are ties."""
    rows, period = line
    text = "client,time,available,speed\n" + "".join(f"7,{t},{int(a)},{s}\n" for t, a, s in rows)
    path = trace_file(tmp_path_factory.getbasetemp(), text, "walk.csv")
    devices = Trace(str(path), 1.0, repeat=period < inf, period_s=period if period < inf else None)
    seconds, answers = reference(rows, start / 4, work / 4, period)
    done = at(devices, 7, start / 4, work / 4)
    assert done.answers.tolist() == [answers]
    assert done.seconds.tolist() == [pytest.approx(seconds, rel=1e-9, abs=1e-9)]
    later = at(devices, 7, start / 4, (work + more) / 4)
    assert later.seconds[0] >= done.seconds[0] - 1e-9 and later.answers[0] <= done.answers[0]
    if period < inf:
        shifted = at(devices, 7, start / 4 + 64 * period, work / 4)
        assert shifted.seconds.tolist() == [pytest.approx(seconds, rel=1e-9, abs=1e-9)]


def test_parquet_and_csv_are_the_same_trace(tmp_path: Path) -> None:
    table = diurnal_trace(30, 24, seed=5)
    found = []
    for suffix in (".csv", ".parquet"):
        path = tmp_path / f"trace{suffix}"
        path.write_bytes(encode(table, suffix))
        found.append(Trace(str(path)).timelines)
    for f in fields(found[0]):
        assert np.array_equal(getattr(found[0], f.name), getattr(found[1], f.name)), f.name


def test_parquet_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "narrow.parquet"
    columns = {
        "client": pa.array([1, 0], pa.uint16()), "time": pa.array([0, 0], pa.int32()),
        "available": pa.array([1, 0], pa.uint8()), "note": ["a", "b"],
    }  # fmt: skip
    parquet.write_table(pa.table(columns), path)
    devices = Trace(str(path))
    devices.check(2)
    assert devices.available(np.array([0, 1]), 5.0, HERE).tolist() == [False, True]
    assert devices.timelines.speed.tolist() == [1.0, 1.0]
    parquet.write_table(pa.table(columns | {"time": ["0", "1"]}), path)
    with pytest.raises(BadInput, match="has string in the column time"):
        Trace(str(path)).check(2)


HEAD = "client,time,available,speed\n"
DAMAGED = {
    "no column": ("client,when,available\n0,0,1\n", "lacks time.*client, time and available.*has client, when"),
    "two columns": ("client,time,available,time\n0,0,1,2\n", "2 columns called time"),
    "empty file": ("", "damaged"),
    "no rows": (HEAD, "no rows"),
    "short row": (HEAD + "0,0,1,1\n1,0\n", "Row #3"),
    "text": (HEAD + "0,0,1,1\n0,noon,1,1\n", "Row #3.*noon"),
    "client not whole": (HEAD + "0.5,0,1,1\n", "Row #2.*0.5"),
    "available 2": (HEAD + "0,0,2,1\n", "Row #2.*'2'"),
    "no client": (HEAD + "0,0,1,1\n,5,1,1\n", r"line 3: client is empty \(1 of 2"),
    "negative client": (HEAD + "0,0,1,1\n-1,5,1,1\n", "line 3: client is negative"),
    "nan": (HEAD + "0,0,1,1\n0,nan,1,1\n0,inf,1,1\n", r"line 3: time is not.*\(2 of 3"),
    "negative time": (HEAD + "0,-1,1,1\n", "line 2: time is not a number of seconds >= 0"),
    "speed nan": (HEAD + "0,1,1,nan\n", "line 2: speed is not a number > 0"),
    "speed 0": (HEAD + "0,1,1,0\n", "line 2: speed is not a number > 0"),
    "negative speed": (HEAD + "0,1,1,1\n0,2,0,-2\n", "line 3: speed is not a number > 0"),
    "twice": (HEAD + "0,1,1,1\n1,1,0,2\n0,1,0,1\n", "line 4: another row has the same client and time"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_traces_are_refused(case: str, tmp_path: Path) -> None:
    text, message = DAMAGED[case]
    path = trace_file(tmp_path, text)
    with pytest.raises(BadInput, match=message) as e:
        Trace(str(path)).check(1)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_traces_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = str(trace_file(tmp_path))
    Trace(path).check(3)
    with pytest.raises(BadInput, match=r"lacks 2 of 5 clients, the first is 3"):
        Trace(path).check(5)
    with pytest.raises(BadInput, match=r"lacks 1 of the 2 clients asked, the first is 9"):
        Trace(path).available(np.array([0, 9]), 0.0, HERE)
    with pytest.raises(BadInput, match=r"cannot read the trace .*nowhere\.csv \(No such file"):
        Trace(str(tmp_path / "nowhere.csv")).check(1)
    with pytest.raises(BadInput, match=r"\.parquet or a \.csv file; its name ends in '\.txt'"):
        Trace(str(trace_file(tmp_path, name="trace.txt"))).check(1)
    with pytest.raises(BadInput, match=r"damaged or not parquet"):
        Trace(str(trace_file(tmp_path, name="trace.parquet"))).check(1)
    with pytest.raises(BadInput, match=r"none of 1 clients is ever available"):
        Trace(str(trace_file(tmp_path, HEAD + "0,0,0,1\n1,0,1,1\n", "away.csv"))).check(1)
    with pytest.raises(BadInput, match=r"period_s is 100, but the trace .* until 150 s; it must be >= 150"):
        Trace(path, period_s=100).check(1)
    with pytest.raises(BadInput, match=r"devices\.period_s is 100.*devices\.repeat is false"):
        Trace(path, period_s=100, repeat=False)


def test_a_pinned_trace_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trace_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    pinned = Trace("trace.csv").pinned()
    assert pinned.path == str(path) and len(pinned.sha256 or "") == 64
    assert pinned.pinned() == pinned
    other = trace_file(tmp_path, CSV + "6,0,1,1\n")
    with pytest.raises(BadInput, match="is not the trace this experiment started with"):
        pinned.pinned()
    with pytest.raises(BadInput, match="is not the trace this experiment started with"):
        pinned.check(2)
    Trace(str(other)).check(2)
    assert Trace(str(other)).pinned().sha256 != pinned.sha256
    for devices in (NotModelled(), *DRAWN):
        assert devices.pinned() is devices


def test_a_pinned_trace_is_read_once(tmp_path: Path) -> None:
    path = trace_file(tmp_path)
    pinned = Trace(str(path)).pinned()
    pinned.check(3)
    path.unlink()
    assert replace(pinned, up_bytes_per_s=1.0).available(np.array([0]), 0.0, HERE).all()


# --- day and night --------------------------------------------------------------------------------------------------


def states(table: pa.Table, clients: int, hours: float) -> np.ndarray:
    """Availability by half hour: [clients, steps] bool."""
    client, time, available = (table[n].to_numpy() for n in ("client", "time", "available"))
    grid = np.arange(0, hours, 0.5) * 3600
    return np.stack(
        [available[client == c][np.searchsorted(time[client == c], grid, "right") - 1] for c in range(clients)]
    )


def test_day_and_night() -> None:
    """In one time zone, p(t) = low + (high - low) (1 + cos(2 pi (t - 3) / 24)) / 2 at each half hour."""
    clients, hours = 3000, 36
    there = states(diurnal_trace(clients, hours, seed=1, low=0.1, high=0.7, zones_h=0), clients, hours)
    p = 0.1 + 0.6 * (1 + np.cos(2 * np.pi * (np.arange(0, hours, 0.5) - 3) / 24)) / 2
    for step in range(2 * hours):
        assert near(there[:, step], p[step], sqrt(p[step] * (1 - p[step])))
    assert there[:, 6].mean() > 6 * there[:, 30].mean()  # three in the morning, three in the afternoon


def test_states_persist() -> None:
    """With low = high = p a state changes with probability 2 p (1 - p) (1 - persistence)."""
    clients, hours = 2000, 24
    there = states(diurnal_trace(clients, hours, seed=2, low=0.4, high=0.4, persistence=0.75), clients, hours)
    changes = (there[:, 1:] != there[:, :-1]).mean(axis=1)  # clients are independent
    assert near(changes, 2 * 0.4 * 0.6 * 0.25)


def test_time_zones_and_speeds() -> None:
    clients = 4000
    table = diurnal_trace(clients, 24, seed=3, sigma=0.6)
    there = states(table, clients, 24)
    assert all(near(there[:, step], 0.5, 0.5) for step in range(48))  # it is night somewhere at any time
    speed = table["speed"].to_numpy()[np.unique(table["client"].to_numpy(), return_index=True)[1]]
    assert near(speed, 1.0, sqrt(exp(0.36) - 1)) and near(speed <= exp(-0.18), 0.5, 0.5)


def test_rows_of_a_made_trace() -> None:
    table = diurnal_trace(50, 12.5, seed=4)
    assert table == diurnal_trace(50, 12.5, seed=4) != diurnal_trace(50, 12.5, seed=5)
    client, time, available = (table[n].to_numpy() for n in ("client", "time", "available"))
    for c in range(50):
        t, a = time[client == c], available[client == c]
        assert t[0] == 0 and t[-1] == 12.5 * 3600 and (np.diff(t) > 0).all() and (t % 1800 == 0).all()
        assert (a[1:-1] != a[:-2]).all() and a[-1] == a[-2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clients": 0}, "clients is 0"), ({"hours": 0.75}, "multiple of 0.5"), ({"hours": float("nan")}, "multiple"),
        ({"seed": -1}, "seed is -1"), ({"low": 0.9}, "low <= high"), ({"low": 0, "high": 0}, "high > 0"),
        ({"zones_h": 25}, r"\[0, 24\]"), ({"persistence": 1}, "< 1"), ({"sigma": 9}, "<= 5"),
    ],
)  # fmt: skip
def test_bad_traces_are_not_made(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        diurnal_trace(**{"clients": 3, "hours": 2.0, "seed": 0, **wrong})


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["trace", "diurnal", "--clients", "40", "--hours", "24", "--seed", "7", "--out"]
    for name in ("a.parquet", "b.csv", "c.csv"):
        assert cli.run([*words, name]) == 0
        assert f"devices.path={name}" in capsys.readouterr().out
        Trace(name).pinned().check(40)
        with pytest.raises(BadInput, match="lacks 1 of 41 clients, the first is 40"):
            Trace(name).check(41)
    assert Path("b.csv").read_bytes() == Path("c.csv").read_bytes()
    for more, message in (
        (["b.csv"], "--force writes over it"), (["trace.txt"], r"\.parquet or a \.csv file"),
        (["d.csv", "--zones", "30"], "zones_h is 30"), (["none/d.csv"], "cannot be written"),
    ):  # fmt: skip
        assert cli.run([*words, *more]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert cli.run([*words, "b.csv", "--force", "--zones", "0"]) == 0
    assert Path("b.csv").read_bytes() != Path("c.csv").read_bytes()


@pytest.mark.parametrize("kind", DEVICES)
def test_nobody_asked(kind: str, tmp_path: Path) -> None:
    devices = DEVICES[kind](**({"path": str(trace_file(tmp_path))} if kind == "trace" else {}))
    nobody = np.zeros(0, np.int64)
    done = devices.run(nobody, of_work([]), 0.0, HERE)
    assert len(done.seconds) == len(done.answers) == len(devices.available(nobody, 0.0, HERE)) == 0


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_names_every_kind_and_field() -> None:
    page = (ROOT / "docs" / "devices.md").read_text()
    kinds = page.split("## Kinds")[1].split("\n\n")[1]
    assert re.findall(r"^\| `([a-z]+)` \|", kinds, re.M) == list(DEVICES)
    assert [f.name for cls in DEVICES.values() for f in fields(cls) if f"`{f.name}`" not in page] == []


def test_the_example_is_what_its_command_makes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "devices.md").read_text()
    command = re.search(r"^raygrad (trace diurnal .*) --out docs/examples/diurnal\.csv", page, re.M)
    assert command is not None
    assert cli.run([*command[1].split(), "--out", str(tmp_path / "made.csv")]) == 0
    example = (ROOT / "docs" / "examples" / "diurnal.csv").read_bytes()
    assert (tmp_path / "made.csv").read_bytes() == example and len(example) < 50_000
    shown = re.search(r"^client,time,available,speed\n(?:[\d.,]+\n)+", page, re.M)
    assert shown is not None and example.decode().startswith(shown[0])


def test_the_python_on_the_page() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "devices.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["finish"].seconds.shape == (3,)
