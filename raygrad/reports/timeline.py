"""When each host worked at which gang, and what became of it: from the tables `operations` and `seconds` alone."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raygrad.files import tables

ANSWERED = "answered"


@dataclass(frozen=True, eq=False)
class Timeline:
    """The attempts at gangs [n], by their start, in wall seconds since the run began (all its processes together)."""

    hosts: tuple[str, ...]
    host: np.ndarray  # [n] index into hosts
    start_s: np.ndarray
    end_s: np.ndarray
    round: np.ndarray
    phase: np.ndarray
    gang: np.ndarray
    attempt: np.ndarray
    clients: np.ndarray
    outcomes: tuple[str, ...]  # the first is "answered"
    outcome: np.ndarray  # [n] index into outcomes

    def __len__(self) -> int:
        return len(self.host)

    @property
    def span(self) -> tuple[float, float]:
        """The first start and the last end; (0, 0) without attempts."""
        return (float(self.start_s.min()), float(self.end_s.max())) if len(self) else (0.0, 0.0)

    def within(self, start_s: float, end_s: float) -> "Timeline":
        """The attempts that overlap a stretch of time."""
        return self._only(np.flatnonzero((self.start_s < end_s) & (self.end_s > start_s)))

    def troubled(self) -> "Timeline":
        """The attempts that were not answered, and those that were made again."""
        return self._only(np.flatnonzero((self.outcome > 0) | (self.attempt > 1)))

    def first(self, most: int) -> "Timeline":
        """The first so many attempts."""
        return self._only(np.arange(min(most, len(self))))

    def busy(self, edges: np.ndarray) -> np.ndarray:
        """The share of each stretch between `edges` [b + 1] in which each host worked: [hosts, b]."""
        width = np.diff(edges)
        result = np.zeros((len(self.hosts), len(width)))
        for h in range(len(self.hosts)):
            mine = self.host == h
            # The seconds worked before each edge: of attempts that began by then, what lies before it.
            start, end = np.sort(self.start_s[mine]), np.sort(self.end_s[mine])
            worked = _before(edges, start) - _before(edges, end)
            result[h] = np.diff(worked) / width
        return np.clip(result, 0, 1)

    def _only(self, at: np.ndarray) -> "Timeline":
        return replace(self, **{f.name: getattr(self, f.name)[at] for f in fields(self) if f.type is np.ndarray})


def timeline(run: Path) -> Timeline:
    """The timeline of the run in a folder; empty where nothing is recorded. Raises BadInput for a damaged table."""
    table = tables.read(run, "operations")
    column = {n: table[n].to_numpy() for n in ("round", "phase", "gang", "attempt", "clients", "start_s", "wall_s")}
    start = column["start_s"] + _process_starts(run, column["round"])
    end = start + column.pop("wall_s")
    del column["start_s"]
    hosts, host = _indexed(table["host"])
    outcomes, outcome = _indexed(table["outcome"], first=ANSWERED)
    order = np.argsort(start, kind="stable")
    whole = Timeline(hosts, host, start, end, outcomes=outcomes, outcome=outcome, **column)
    return whole._only(order)


def _process_starts(run: Path, rounds: np.ndarray) -> np.ndarray:
    """For each round [n], the seconds that the run had lasted when the process that played it began."""
    seconds = tables.read(run, "seconds", ["round", "elapsed_s", "process"])
    if not seconds.num_rows or not len(rounds):
        return np.zeros(len(rounds))
    index, elapsed, process = (seconds[c].to_numpy() for c in seconds.column_names)
    ends = np.zeros(int(process.max()) + 2)
    np.maximum.at(ends, process + 1, elapsed)
    began = np.maximum.accumulate(ends)
    order = np.argsort(index, kind="stable")
    at = np.searchsorted(index[order], rounds).clip(max=len(index) - 1)  # a round that goes on belongs to the last
    return began[process[order][at]]


def _before(edges: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Sum over `moments` (sorted) of the seconds from each to the edge, for those before it: [edges]."""
    count = np.searchsorted(moments, edges)
    return edges * count - np.concatenate(([0.0], np.cumsum(moments)))[count]


def _indexed(column: pa.ChunkedArray, first: str | None = None) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct values, sorted, and each row's index among them: [n]. With `first`, it comes first, and values end
    at a colon: what follows is the reason.
    """
    encoded = column.combine_chunks().dictionary_encode()
    words = [str(value) for value in encoded.dictionary.to_pylist()]
    words = words if first is None else [word.partition(":")[0] for word in words]
    names = sorted({*words} - {first})
    names = names if first is None else [first, *names]
    return tuple(names), np.array([names.index(word) for word in words], np.int64)[encoded.indices.to_numpy()]


def slowest(found: Timeline) -> tuple[np.ndarray, np.ndarray]:
    """How far stragglers held up each round [p]: its number, and its slowest gang's seconds over the median gang's.

    Gangs are compared within a phase, answered ones only; of a round's phases the worst counts. Rounds whose phases
    have one gang each are left out.
    """
    took = found.end_s - found.start_s
    at = np.flatnonzero((found.outcome == 0) & (took > 0))
    at = at[np.lexsort((took[at], found.phase[at], found.round[at]))]
    if not len(at):
        return np.zeros(0, np.int64), np.zeros(0)
    change = (np.diff(found.round[at]) != 0) | (np.diff(found.phase[at]) != 0)
    first = np.concatenate(([0], np.flatnonzero(change) + 1))
    count = np.diff(np.concatenate((first, [len(at)])))
    t, last = took[at], first + count - 1
    median = (t[first + (count - 1) // 2] + t[first + count // 2]) / 2
    several = count > 1
    rounds, ratio = found.round[at][first][several], (t[last] / median)[several]
    names, begin = np.unique(rounds, return_index=True)
    return names, np.maximum.reduceat(ratio, begin) if len(names) else ratio
