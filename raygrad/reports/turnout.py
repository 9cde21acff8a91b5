"""What became of the clients that a run asked and of the gangs that it ran, and how an asynchronous run leans to fast
clients; from the tables alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from raygrad.errors import BadInput
from raygrad.files import tables

_DETAILS = {
    "left": {"unavailable": "not there when asked"},
    "failed": {"damaged": "with a damaged shard", "killer": "that kill their hosts"},
}
"""Outcomes of the table `clients` that tell more of a column of the table `rounds`, in words."""


@dataclass(frozen=True)
class Turnout:
    """How many clients were asked in a run's rounds, and what became of them; `outcomes` has the details, by name."""

    asked: int
    answered: int
    late: int
    left: int
    failed: int
    rejected: int
    asynchronous: bool
    outcomes: Mapping[str, int]

    @property
    def at_work(self) -> int:
        """Clients of an asynchronous run that were asked and are not done."""
        known = self.answered + self.late + self.left + self.failed + self.rejected
        return max(0, self.asked - known) if self.asynchronous else 0

    @property
    def complete(self) -> bool:
        """Whether everybody who was asked has answered."""
        return self.answered == self.asked

    def __str__(self) -> str:
        """In one line: "600 asked, 571 answered, 20 late, 9 left"."""
        counts = {
            "late": (self.late, "too stale" if self.asynchronous else "late"), "left": (self.left, "left"),
            "failed": (self.failed, "failed"), "rejected": (self.rejected, "rejected (not finite)"),
            "at work": (self.at_work, "still at work"),
        }  # fmt: skip
        said = [f"{self.asked:,} asked", f"{self.answered:,} answered"]
        for column, (count, word) in counts.items():
            if count:
                details = [f"{self.outcomes[o]:,} {t}" for o, t in _DETAILS.get(column, {}).items() if self.outcomes[o]]
                said.append(f"{count:,} {word}" + (f" ({', '.join(details)})" if details else ""))
        return ", ".join(said)


def turnout(run: Path, asynchronous: bool) -> Turnout:
    """The turnout of the run in a folder. Columns that runs of old lack count as zero."""
    names = ("asked", "answered", "late", "left", "failed", "rejected")
    table = tables.read(run, "rounds", ["round", *(f"clients_{n}" for n in names)])
    counts = {n: int(pc.call_function("sum", [table[f"clients_{n}"]]).as_py() or 0) for n in names}
    details = [o for column, some in _DETAILS.items() if counts[column] for o in some]
    found = _counted(run, details)
    return Turnout(
        **counts, asynchronous=asynchronous, outcomes={o: found.get(o, 0) for d in _DETAILS.values() for o in d}
    )


def _counted(run: Path, outcomes: Sequence[str]) -> dict[str, int]:
    if not outcomes:
        return {}
    column = tables.read(run, "clients", ["round", "outcome"])["outcome"]
    return {o: int(pc.call_function("sum", [pc.call_function("equal", [column, o])]).as_py() or 0) for o in outcomes}


def gangs(run: Path) -> str | None:
    """What became of the attempts at gangs, in one line; None where none is recorded."""
    table = tables.read(run, "operations", ["attempt", "outcome"])
    if not table.num_rows:
        return None
    counts = {"repeated": int((table["attempt"].to_numpy() > 1).sum())}
    for found in table["outcome"].value_counts().to_pylist():
        kind = str(found["values"]).partition(":")[0].partition(" ")[0]  # "lost for good: ActorDiedError"
        if kind != "answered":
            counts[kind] = counts.get(kind, 0) + found["counts"]
    said = [f"{counts.get(kind, 0):,} {kind}" for kind in dict.fromkeys(("repeated", *sorted(counts))) if counts[kind]]
    return ", ".join([f"{table.num_rows:,} attempts", *said])


@dataclass(frozen=True)
class Leaning:
    """How far an asynchronous run leans to fast clients."""

    busiest: float  # the part of all answers that came from the tenth of all clients that answered most often
    ratio: float  # answers of the fastest tenth over those of the slowest; infinite if the slowest gave none
    mean_staleness: float  # of the answers that count
    max_staleness: int

    def __str__(self) -> str:
        """In one sentence without its full stop."""
        faster = f"the fastest tenth answered {self.ratio:.3g} times as often as the slowest"
        if np.isinf(self.ratio):
            faster = "the slowest tenth gave none that counts"
        return (
            f"the tenth of the clients that answered most often gave {self.busiest:.0%} of the answers; {faster}; "
            f"staleness {self.mean_staleness:.3g} on average, {self.max_staleness:,} at most"
        )


def leaning(run: Path, population: int) -> Leaning | None:
    """The leaning of a run with `population` clients; None without answers, or where the columns are missing.

    A tenth is rounded up. Fast and slow go by a client's mean seconds from being asked to its answer, also if it was
    too stale; clients that never were done by the end are left out there, so a short run looks more even than it is.
    """
    table = tables.read(run, "clients", ["round", "client", "outcome", "virtual_s", "staleness"])
    done = table.filter(pc.field("outcome").isin(["answered", "stale"]))
    if not done.num_rows or done["virtual_s"].null_count or done["staleness"].null_count:
        return None
    client, seconds, staleness = (done[c].to_numpy() for c in ("client", "virtual_s", "staleness"))
    answered = pc.call_function("equal", [done["outcome"], "answered"]).to_numpy()
    if not answered.any():
        return None
    check(run, done["round"].to_numpy(), client, population)
    size = max(population, int(client.max()) + 1)
    answers = np.bincount(client[answered], minlength=size)
    busiest = np.sort(answers)[-tenth(size) :].sum() / answers.sum()
    known = np.flatnonzero(np.bincount(client, minlength=size))
    pace = (np.bincount(client, seconds, size)[known] / np.bincount(client, minlength=size)[known]).argsort(
        kind="stable"
    )
    some = tenth(len(known))
    fast, slow = (int(answers[known[pace[part]]].sum()) for part in (slice(some), slice(-some, None)))
    ages = staleness[answered]
    return Leaning(float(busiest), fast / slow if slow else float("inf"), float(ages.mean()), int(ages.max()))


def check(run: Path, rounds: np.ndarray, clients: np.ndarray, population: int) -> None:
    """Refuse a table `clients` with rows before the first round, or of others than `population` clients (0: unknown).

    Raises BadInput.
    """
    if rounds.min() < 1 or 0 < population <= clients.max():
        table, has = tables.folder(run, "clients"), f"client {clients.max():,} and round {rounds.min():,}"
        raise BadInput(f"{table} does not fit a run of {population:,} clients: it has {has}")


def tenth(count: int) -> int:
    """A tenth of so many, rounded up."""
    return -(-count // 10)
