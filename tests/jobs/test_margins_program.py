"""The program that draws where Local-GD goes."""

from pathlib import Path

import numpy as np
import pytest

from jobs.results import margins


def test_the_part_is_filled_and_the_anchor_is_seen_to_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margins, "SEEDS", range(2))
    monkeypatch.setattr(margins, "ROUNDS", 60)
    monkeypatch.setattr(margins, "MARKS", (10, 60))
    monkeypatch.setattr(margins, "AT", np.array([1, 10, 60]))
    page = tmp_path / "page.md"
    opening, closing = "<!-- local-gd: made by jobs/results/margins.py -->", "<!-- /local-gd -->"
    page.write_text(f"before\n{opening}\nold\n{closing}\nafter")
    monkeypatch.setattr("sys.argv", ["margins.py", "--write", str(page)])
    assert margins.main() == 0
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| unlike clients")]
    assert text.startswith(f"before\n{opening}") and text.endswith(f"{closing}\nafter") and "old" not in text
    averaged, anchored = (float(row.split(" | ")[3]) for row in rows[2:])
    assert len(rows) == 4 and "times less" in rows[3] and anchored < averaged / 2
    assert (tmp_path / "results" / "methods" / "local-gd.svg").is_file()
    page.write_text("no marks")
    assert margins.main() == 2
