"""Log lines: what they are about, repeats that are folded, steps that cost nothing unheard."""

import logging
from collections.abc import Iterator

import pytest

from raygrad import logs
from raygrad.errors import BadInput


class Kept(logging.Handler):
    """Keeps lines as they would be shown, without their time."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logs.Line().format(record).partition(" ")[2])


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    with logs.listening(handler, "info"):
        yield handler


LOG = logging.getLogger("raygrad.test_logs")


def test_lines_name_run_round_and_host(kept: Kept) -> None:
    LOG.info("outside")
    with logs.about("digits/a", 12):
        LOG.warning("client %d left out", 3)
        LOG.warning("lost", extra={"host": "n1:7"})
        with logs.about(host="n2:8"):
            LOG.error("two\nlines")
        LOG.debug("too fine")
    assert logs.current() == logs.About()
    assert kept.lines == [
        "info outside",
        "warning digits/a round 12: client 3 left out",
        "warning digits/a round 12 host n1:7: lost",
        "error digits/a round 12 host n2:8: two lines",
    ]


def test_the_same_line_is_shown_once_and_then_counted() -> None:
    kept = Kept()
    with logs.listening(kept, "warning"):
        for _ in range(58):
            LOG.warning("the store is slow")
        LOG.warning("something else")
        assert kept.lines == ["warning the store is slow", "warning something else"]
    assert kept.lines[2:] == ["warning the store is slow … repeated 57 times"]


def test_lines_of_one_pattern_pass_a_few_times() -> None:
    kept = Kept()
    with logs.listening(kept, "warning"):
        for host in range(20):
            LOG.warning("host %d was lost", host)
    assert kept.lines[:-1] == [f"warning host {n} was lost" for n in range(logs.ALIKE)]
    assert kept.lines[-1] == f"warning host 19 was lost … and {20 - logs.ALIKE} more like it"


def test_a_line_is_shown_again_when_its_window_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    kept = Kept()
    with logs.listening(kept, "warning"):
        for seconds in (0, 1, 2, logs.WINDOW_S + 1, logs.WINDOW_S + 2):
            now[0] = seconds
            LOG.warning("again")
        assert kept.lines == ["warning again", "warning again … repeated 2 times", "warning again"]
    assert kept.lines[3:] == ["warning again … repeated 1 times"]


def test_only_the_innermost_hears() -> None:
    outer, inner = Kept(), Kept()
    with logs.listening(outer, "warning"):
        with logs.listening(inner, "error"):
            LOG.warning("expected")
            LOG.error("first")
        LOG.warning("second")
    assert (outer.lines, inner.lines) == (["warning second"], ["error first"])


def test_nothing_is_left_behind() -> None:
    root = logging.getLogger("raygrad")
    before = root.level, list(root.handlers)
    with logs.listening(Kept(), "debug", Kept()):
        assert (root.level, list(root.handlers)) != before
    assert (root.level, list(root.handlers)) == before
    logs.step("unheard", 1, 2)  # goes nowhere


@pytest.mark.parametrize("name", ["loud", "", "NOTSET"])
def test_an_unknown_level_is_bad_input(name: str) -> None:
    with pytest.raises(BadInput, match="debug, info, warning, error"):
        logs.level(name)


@pytest.mark.parametrize(
    ("count", "shown"), [(512, "512 B"), (3_100, "3.1 kB"), (3_100_000, "3.1 MB"), (12e9, "12.0 GB")]
)
def test_bytes_are_short(count: int, shown: str) -> None:
    assert logs.size(count) == shown
