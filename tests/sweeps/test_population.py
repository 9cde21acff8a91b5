"""Population-based training: who ends, who is forked, with what settings; nothing of it depends on time or place."""

from dataclasses import replace
from pathlib import Path

import pytest

from raygrad.algorithms.fedga import FedGA
from raygrad.experiment import Evaluation, Where
from raygrad.sweeps import population, space
from raygrad.sweeps.space import Range
from raygrad.sweeps.sweep import LoadedSweep, Maker, Point, Sweep, recorded_points, remember, remembered
from raygrad.verify import problem

NAN = float("nan")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Maker, list[Point]]:
    e = replace(problem(FedGA()), rounds=20, evaluation=Evaluation(every=2))
    s = Sweep(
        e, {"alpha": "loguniform(0.01, 0.5)", "beta": "uniform(0, 0.4)", "K": "1,5,10,20"}, samples=8, scheduler="pbt"
    )  # fmt: skip
    maker = Maker(s, Where(on="local"), tmp_path_factory.mktemp("runs"))
    return s, maker, maker.known()


def test_stops_are_where_trials_are_evaluated(made: tuple[Sweep, Maker, list[Point]]) -> None:
    s, _, points = made
    assert population.stops(s, points[0]) == [4, 8, 12, 16, 20]
    assert population.stops(replace(s, generations=3), points[0]) == [6, 14, 20]
    assert population.stops(replace(s, generations=50), points[0]) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


@pytest.mark.parametrize(
    ("values", "replaced", "parents"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], {0, 1}, {6, 7}),
        ([8, 7, 6, 5, 4, 3, 2, 1], {6, 7}, {0, 1}),
        ([5, 5, 5, 5, 5, 5, 5, 5], {6, 7}, {0, 1}),  # the first are kept
        ([NAN, 2, 3, 4, 5, 6, 7, 8], {0, 1}, {6, 7}),
        ([NAN, NAN, NAN, 4, 5, 6, 7, 8], {0, 1, 2}, {6, 7}),  # who diverged is replaced even if there are more
        ([NAN, NAN, NAN, NAN, NAN, NAN, NAN, 8], {0, 1, 2, 3, 4, 5, 6}, {7}),
        ([NAN] * 8, set(), set()),
    ],
)
def test_the_worst_give_their_places_to_forks_of_the_best(
    made: tuple[Sweep, Maker, list[Point]], values: list[float], replaced: set[int], parents: set[int]
) -> None:
    s, _, points = made
    found = population.forks(s, points, dict(enumerate(values)), 4, 8)
    assert {p.sample for p in found} == replaced
    assert {p.parent for p in found} <= parents
    assert [p.trial for p in found] == list(range(8, 8 + len(replaced)))
    assert found == population.forks(s, points, dict(enumerate(values)), 4, 8)
    lower = population.forks(replace(s, mode="min"), points, {i: -v for i, v in enumerate(values)}, 4, 8)
    assert lower == found
    after = population.members([*points, *found], 8)
    assert [p.sample for p in after] == list(range(8))
    assert {p.trial for p in after} == {p.trial for p in (*points, *found) if p.trial not in replaced}


def test_settings_move_within_the_space(made: tuple[Sweep, Maker, list[Point]]) -> None:
    s, _, points = made
    moves: dict[str, set[float]] = {"algorithm.lr": set(), "algorithm.beta": set()}
    steps = s.dimensions["local.steps"]
    assert not isinstance(steps, Range)
    shifts = 0
    for after in range(2, 200, 2):
        for point in population.forks(s, points, dict(enumerate(range(8))), after, 8):
            parent = points[point.parent or 0]
            for name, seen in moves.items():
                value, before = point.settings[name], parent.settings[name]
                expression = s.dimensions[name]
                assert isinstance(expression, Range) and expression.holds(value)
                assert not isinstance(value, str) and not isinstance(before, str)
                seen.add(round(value / before, 2))
            at, was = (steps.values.index(p.settings["local.steps"]) for p in (point, parent))
            shifts += abs(at - was) <= 1
            expected = [f"{after}:{n}={space.text_of(v)}" for n, v in point.settings.items() if v != parent.settings[n]]
            assert list(point.experiment.changes) == expected
    for seen in moves.values():
        assert {0.8, 1.2} <= seen
        assert len(seen) > 10  # some are drawn anew
    assert shifts > 150  # of 198


def test_near() -> None:
    assert Range(0.01, 0.5).near(0.1, 1.2) == 0.12
    assert Range(0.01, 0.5).near(0.45, 1.2) == 0.5
    whole = Range(1, 20, step=1.0, whole=True)
    assert [whole.near(v, f) for v, f in ((10, 1.2), (10, 0.8), (2, 1.2), (2, 0.8), (1, 0.8), (20, 1.2))] == [
        12, 8, 3, 1, 1, 20,
    ]  # fmt: skip
    assert Range(0, 0.4, step=0.05).near(0.1, 1.2) == 0.15


def test_forks_of_forks_are_remembered(made: tuple[Sweep, Maker, list[Point]], tmp_path: Path) -> None:
    s, maker, points = made
    first = population.forks(s, points, dict(enumerate(range(8))), 4, 8)
    present = population.members([*points, *first], 8)
    second = population.forks(s, present, {p.trial: float(p.trial) for p in present}, 8, 10)
    assert {p.parent for p in second} == {8, 9}
    loaded = LoadedSweep(tmp_path, "s", s, Where())
    for some in (points, first, second):
        remember(loaded, *some)
    assert recorded_points(maker, remembered(tmp_path)) == [*points, *first, *second]
    stages = second[0].experiment.stages()
    assert [until for until, _ in stages] == [4, 8, 20]
    assert second[0].settings == {
        "algorithm.lr": stages[-1][1].algorithm.lr,
        "algorithm.beta": stages[-1][1].algorithm.beta,  # pyright: ignore[reportAttributeAccessIssue]
        "local.steps": stages[-1][1].local.steps,
    }
