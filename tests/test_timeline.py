"""The timeline of hosts and gangs."""

from pathlib import Path

import numpy as np

from raygrad.files import tables
from raygrad.reports.timeline import Timeline, timeline


def rows(*made: tuple[int, str, float, float, int, str]) -> list[dict[str, object]]:
    return [
        {
            "round": r, "phase": 0, "work": "train", "gang": 0, "host": host, "attempt": attempt, "clients": 2,
            "start_s": start, "wall_s": wall, "bytes_down": 0, "bytes_up": 0, "outcome": outcome,
        }
        for r, host, start, wall, attempt, outcome in made
    ]  # fmt: skip


def written(run: Path, operations: list[dict[str, object]], seconds: list[tuple[int, float, int]]) -> Timeline:
    for name, content in (
        ("operations", operations),
        ("seconds", [{"round": r, "wall_s": 1.0, "elapsed_s": e, "process": p} for r, e, p in seconds]),
    ):
        writer = tables.TableWriter(tables.folder(run, name), tables.TABLES[name], 1)
        writer.append(content)
        writer.flush(force=True)
    return timeline(run)


def test_a_restart_goes_on_where_the_clock_stood(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        rows(
            (1, "b", 0.5, 1.0, 1, "answered"),
            (2, "a", 1.0, 2.0, 1, "lost for good: ActorDiedError"),
            (3, "a", 0.25, 1.0, 2, "answered"),
            (4, "b", 2.0, 1.0, 1, "answered"),  # a round that goes on: no row in `seconds`
        ),
        [(1, 2.0, 0), (2, 5.0, 0), (3, 6.0, 1)],
    )
    assert found.hosts == ("a", "b") and found.outcomes == ("answered", "lost for good")
    assert found.start_s.tolist() == [0.5, 1.0, 5.25, 7.0] and found.end_s.tolist() == [1.5, 3.0, 6.25, 8.0]
    assert found.span == (0.5, 8.0)
    assert found.troubled().round.tolist() == [2, 3]
    assert found.within(1.5, 5.3).round.tolist() == [2, 3]


def test_busy_shares_are_the_integral_of_the_bars(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    bars, end = [], {"a": 0.0, "b": 0.0}
    for i in range(40):
        host = "ab"[int(draw.integers(2))]
        start = end[host] + float(draw.uniform(0, 0.3))
        end[host] = start + float(draw.uniform(0.01, 1))
        bars.append((i + 1, host, start, end[host] - start, 1, "answered"))
    found = written(tmp_path, rows(*bars), [(i + 1, 1.0 + i, 0) for i in range(40)])
    edges = np.linspace(0, found.span[1], 18)
    expected = np.zeros((2, 17))
    for h, s, e in zip(found.host, found.start_s, found.end_s, strict=True):
        expected[h] += np.clip(np.minimum(edges[1:], e) - np.maximum(edges[:-1], s), 0, None) / np.diff(edges)
    np.testing.assert_allclose(found.busy(edges), expected, rtol=0, atol=1e-12)


def test_two_hosts_of_a_machine_are_two(tmp_path: Path) -> None:
    """The host is the actor, as `raygrad run` starts two of them on one machine: machine:process."""
    both = rows((1, "here:11", 0.0, 1.0, 1, "answered"), (1, "here:12", 0.0, 1.0, 1, "answered"))
    found = written(tmp_path, both, [(1, 2.0, 0)])
    assert found.hosts == ("here:11", "here:12") and found.host.tolist() == [0, 1]
    assert found.busy(np.array([0.0, 2.0])).tolist() == [[0.5], [0.5]]


def test_nothing_recorded(tmp_path: Path) -> None:
    found = timeline(tmp_path)
    assert len(found) == 0 and found.span == (0.0, 0.0)
    assert found.busy(np.array([0.0, 1.0])).shape == (0, 1)
