"""Search spaces: what is allowed, what is refused, and that the same seed always gives the same settings."""

import numpy as np
import pytest

from raygrad.errors import BadInput
from raygrad.sweeps.space import Range, Values, draw, field_of, grid, parse, point, text_of, value_of


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("0.1", Values((0.1,))),
        ("1, 5,10", Values((1, 5, 10))),
        ("choice(1,a,0.5)", Values((1, "a", 0.5))),
        ("fedga,fedavg", Values(("fedga", "fedavg"))),
        ("uniform(0, 0.4)", Range(0, 0.4)),
        ("loguniform(1e-2,0.5)", Range(0.01, 0.5, log=True)),
        ("quniform(0,1,0.25)", Range(0, 1, step=0.25)),
        ("qloguniform(1,100,5)", Range(1, 100, log=True, step=5)),
        ("randint(5,20)", Range(5, 20, step=1, whole=True)),
        ("linspace(0,0.4,3)", Values((0.0, 0.2, 0.4))),
        ("logspace(0.01,1,3)", Values((0.01, 0.1, 1.0))),
    ],
)
def test_what_is_allowed(text: str, expression: object) -> None:
    assert parse(text, "alpha") == expression


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loguni(1,2)", "unknown expression for alpha, 'loguni'; did you mean loguniform"),
        ("__import__('os')", "unknown expression for alpha, '__import__'"),
        ("uniform(1)", r"alpha is 'uniform\(1\)': uniform takes 2 numbers: uniform\(low, high\)"),
        ("uniform(a,1)", "uniform takes numbers"),
        ("uniform(0,inf)", "must be finite"),
        ("uniform(2,1)", "2 is not less than 1"),
        ("loguniform(0,1)", "loguniform needs numbers above 0, the first is 0"),
        ("randint(0.5,2)", "whole numbers"),
        ("quniform(0.1,0.2,1)", "no multiple of 1 lies between 0.1 and 0.2"),
        ("linspace(0,1,2.5)", "says how many"),
        ("1,,2", "a value is missing"),
        ("1,1", "stands in the list twice"),
        ("uniform(0,1", "it must be a value, a list"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(text, "alpha")


SPACE = {
    "algorithm": parse("fedga,scaffold", "algorithm"), "algorithm.lr": parse("loguniform(0.01,1)", "alpha"),
    "local.steps": parse("randint(1,4)", "K"), "q": parse("quniform(0,1,0.25)", "q"), "c": parse("a,b,c", "c"),
}  # fmt: skip


def test_draws_are_a_function_of_seed_sample_and_name() -> None:
    drawn = [draw(SPACE, 7, i) for i in range(20)]
    assert drawn == [draw(SPACE, 7, i) for i in range(20)]
    fewer = {n: e for n, e in reversed(SPACE.items()) if n != "c"}
    assert [draw(fewer, 7, i)["algorithm.lr"] for i in range(20)] == [d["algorithm.lr"] for d in drawn]
    assert draw(SPACE, 8, 0)["algorithm.lr"] != drawn[0]["algorithm.lr"]
    assert [d["algorithm"] for d in drawn[:4]] == ["fedga", "scaffold", "fedga", "scaffold"]


def test_draws_fill_their_ranges() -> None:
    drawn = [draw(SPACE, 0, i) for i in range(2000)]
    lr = np.log10([d["algorithm.lr"] for d in drawn])
    assert -2 <= lr.min() < -1.98 and -0.02 < lr.max() <= 0
    assert abs(lr.mean() + 1) < 0.05
    for name, values in (("local.steps", {1, 2, 3, 4}), ("q", {0, 0.25, 0.5, 0.75, 1}), ("c", set("abc"))):
        found, counts = np.unique([d[name] for d in drawn], return_counts=True)
        assert {value_of(str(f)) for f in found} == values
        assert counts.min() > 0.8 * len(drawn) / len(values)
    assert all(isinstance(d["local.steps"], int) for d in drawn)


def test_drawn_numbers_survive_the_command_line() -> None:
    for i in range(50):
        for value in draw(SPACE, 3, i).values():
            assert value_of(text_of(value)) == value
            assert not isinstance(value, float) or len(f"{value:.10g}".replace(".", "").strip("0")) <= 6


def test_grid() -> None:
    lists = {"a": parse("1,2", "a"), "b": parse("x,y", "b")}
    assert grid(lists) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(BadInput, match="b is a range, and a grid needs lists"):
        grid({**lists, "b": parse("uniform(0,1)", "b")})
    with pytest.raises(BadInput, match="1,000,000 settings"):
        grid({n: parse("linspace(0,1,100)", n) for n in "abc"})


def test_starting_points() -> None:
    assert point("alpha=0.1, beta=0.05,K=5") == {"algorithm.lr": 0.1, "algorithm.beta": 0.05, "local.steps": 5}
    assert field_of("local.batch_size") == "local.batch_size"
    for text in ("alpha", "alpha=", "alpha=1,algorithm.lr=2"):
        with pytest.raises(BadInput, match="starting point"):
            point(text)
