"""How many hosts a run has: a number, "auto", or "2..16" (fewest and most)."""

import re
from dataclasses import dataclass

from raygrad.errors import BadInput

FIRST = 4
"""So many hosts an elastic run starts with, if there is room, before it has seen how many gangs a round has."""
_FORM = re.compile(r"(\d+)(?:\.\.(\d+))?", re.ASCII)


@dataclass(frozen=True)
class HostRange:
    """The fewest and the most hosts. `most` is None where there may be as many as the cluster has room for.

    With `elastic`, hosts come and go with the nodes of the cluster; else there are always `fewest`.
    """

    fewest: int
    most: int | None
    elastic: bool

    @staticmethod
    def of(hosts: int | str) -> "HostRange":
        """From what the user wrote. Raises BadInput."""
        if hosts == "auto":
            return HostRange(1, None, True)
        found = _FORM.fullmatch(str(hosts).strip().removeprefix("-"))
        if found is None:
            raise BadInput(f"hosts is {hosts!r}; it must be a number, auto, or FEWEST..MOST such as 2..16")
        fewest, most = int(found[1]), int(found[2] or found[1])
        if fewest < 1 or str(hosts).strip().startswith("-"):
            raise BadInput(f"hosts is {hosts}; it must be >= 1")
        if most < fewest:
            raise BadInput(f"hosts is {hosts}; the most ({most}) must be at least the fewest ({fewest})")
        return HostRange(fewest, most, found[2] is not None)

    def cpus(self, cores: int) -> int:
        """The CPUs of a Ray that is started for this, on a machine with so many cores."""
        return self.at_most(max(self.fewest, cores))

    def at_most(self, number: int) -> int:
        """`number`, or the most hosts if that is less."""
        return number if self.most is None else min(self.most, number)

    def first(self, room: int) -> int:
        """How many to start with where there is room for so many."""
        return max(self.fewest, self.at_most(min(room, FIRST))) if self.elastic else self.fewest
