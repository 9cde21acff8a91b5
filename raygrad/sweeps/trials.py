"""The table of a sweep's trials, trials.parquet: one row per trial and seed that is over."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.files import checkpoint, storage, tables
from raygrad.files.remote import Url
from raygrad.files.runs import LoadedRun
from raygrad.sweeps.trial import Job, evaluations

if TYPE_CHECKING:
    from raygrad.sweeps.sweep import LoadedSweep, Point, Sweep

_ROW: dict[str, tuple[pa.DataType, str]] = {
    "role": (pa.string(), "search, or winner: a best setting run again with a seed that the search has not seen"),
    "trial": (pa.int32(), "number of the trial, from 0; a winner has that of the trial whose settings it repeats"),
    "sample": (pa.int32(), "number of the sample, or of the grid's setting, from 0"),
    "parent": (pa.int32(), "the trial from which this one was forked; null for others"),
    "seed": (pa.int64(), "the run's seed"),
    "outcome": (pa.string(), "finished, stopped (by the scheduler), diverged, time (its budget was spent) or failed"),
    "message": (pa.string(), "why it diverged or failed"),
    "rounds": (pa.int32(), "rounds that were played"),
    "communications": (pa.int64(), "communications charged"),
    "virtual_s": (pa.float64(), "seconds of modelled time"),
    "wall_s": (pa.float64(), "wall seconds, restarts included"),
    "validation": (pa.float64(), "the metric at the last evaluation; null if there was none"),
    "validation_round": (pa.int32(), "the round of the last evaluation"),
    "validation_communications": (pa.int64(), "communications until the last evaluation"),
    "best_validation": (pa.float64(), "the best value of the metric over the run"),
    "best_round": (pa.int32(), "the round of the best value"),
    "best_communications": (pa.int64(), "communications until the best value"),
    "test": (pa.float64(), "the metric on the test set; winners only"),
    "run": (pa.string(), "the run's folder, relative to the sweep's; null if it was never made"),
    "hash": (pa.string(), "the experiment's hash"),
    "digest": (pa.string(), "the run's digest"),
}
COLUMNS = tuple(_ROW)
"""The columns of trials.parquet besides one for each dimension, which goes by its field."""
Row = dict[str, Any]


def rows_of(
    sweep: "Sweep", root: Path | Url, point: "Point", outcome: str, message: str = "", culprit: int = -1
) -> list[Row]:
    """The rows of a trial that is over. `culprit` is the position of the seed that ended it, -1 for none."""
    rows = []
    for i, (seed, job) in enumerate(zip(point.seeds, point.jobs(root), strict=True)):
        mine = outcome if culprit in (-1, i) else "stopped"
        found: Row = dict.fromkeys(COLUMNS)
        found |= {
            "role": point.role, "trial": point.trial, "sample": point.sample, "parent": point.parent,
            "seed": seed, "outcome": mine,
            "message": message or None, "rounds": 0, "communications": 0, "virtual_s": 0.0, "wall_s": 0.0,
        }  # fmt: skip
        found |= point.settings
        if job.fetch():
            found |= _measured(sweep, job, point.role == "winner") | {"run": f"trials/{job.id}"}
        rows.append(found)
    return rows


def _measured(sweep: "Sweep", job: Job, tested: bool) -> Row:
    run, metric = job.folder, sweep.measure
    found: Row = {"hash": storage.read_json(run / "experiment.json")["hash"]}
    saved = checkpoint.latest(run)
    if saved is None:
        return found
    rounds = tables.read(run, "rounds", ["round", "virtual_s"]).slice(0, saved.round)
    found |= {
        "rounds": saved.round, "communications": saved.extra["communications"], "wall_s": saved.extra["elapsed_s"],
        "virtual_s": rounds["virtual_s"][-1].as_py() if rounds.num_rows else 0.0,
        "digest": LoadedRun(run, job.name, job.experiment, Where()).digest(),
    }  # fmt: skip
    curve = evaluations(run)
    if curve:
        sign = 1 if sweep.better == "max" else -1
        best = max(curve, key=lambda e: (sign * e.values[metric], -e.round))
        for name, at in (("validation", curve[-1]), ("best", best)):
            value = "validation" if name == "validation" else "best_validation"
            found |= {value: at.values[metric], f"{name}_round": at.round, f"{name}_communications": at.communications}
    if tested and (run / "final.json").is_file():
        final = storage.read_json(run / "final.json")
        found["test"] = final.get("loss") if metric == "loss" else final.get("metrics", {}).get(metric)
    return found


class Book:
    """The sweep's trials.parquet, written by the one process that runs the sweep."""

    def __init__(self, loaded: "LoadedSweep") -> None:
        self._loaded, self._sweep, folder = loaded, loaded.sweep, loaded.folder
        self._rows: dict[tuple[str, int, int], Row] = {}
        if (folder / "trials.parquet").is_file():
            for row in read_trials(folder).to_pylist():
                self._rows[row["role"], row["trial"], row["seed"]] = row

    def outcome(self, point: "Point") -> str:
        """How the trial ended, empty if it has to be played (on)."""
        rows = [self._rows.get((point.role, point.trial, s)) for s in point.seeds]
        found = [r["outcome"] for r in rows if r is not None]
        if len(found) < len(rows) or "failed" in found:
            return ""
        return next((o for o in found if o in ("diverged", "time")), found[0])

    def value(self, point: "Point") -> float | None:
        """The mean over its seeds of the metric at the end; the worst value if it diverged, None without one."""
        if self.outcome(point) == "diverged":
            return self._sweep.worst
        rows = [self._rows.get((point.role, point.trial, s)) for s in point.seeds]
        values = [r["validation"] for r in rows if r is not None and r["validation"] is not None]
        return float(np.mean(values)) if values and len(values) == len(rows) else None

    def rows(self, point: "Point") -> list[Row]:
        """Its rows."""
        return [
            self._rows[point.role, point.trial, s] for s in point.seeds if (point.role, point.trial, s) in self._rows
        ]

    def close(self, point: "Point", outcome: str, message: str = "", culprit: int = -1) -> None:
        """A trial is over: its rows are added and the table is written."""
        for row in rows_of(self._sweep, self._loaded.at, point, outcome, message, culprit):
            self._rows[row["role"], row["trial"], row["seed"]] = row
        self.write()

    def write(self) -> None:
        """Write the table, whole or not at all."""
        rows = [self._rows[key] for key in sorted(self._rows)]
        at = list(_ROW).index("outcome")
        columns = [*list(_ROW)[:at], *self._sweep.dimensions, *list(_ROW)[at:]]
        schema, arrays = [], []
        for name in columns:
            values = [row.get(name) for row in rows]
            kind, description = _ROW.get(name, (_kind(values), f"setting of {name}; null where a kind lacks it"))
            schema.append(pa.field(name, kind, metadata={"description": description}))
            arrays.append(pa.array([str(v) if kind == pa.string() and v is not None else v for v in values], kind))
        made = {"metric": self._sweep.measure, "mode": self._sweep.better}
        out = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(schema, metadata=made)), out)
        folder = self._loaded.folder
        with storage.run_storage(folder):
            storage.write_atomic(folder / "trials.parquet", out.getvalue().to_pybytes())
        self._loaded.commit()


def _kind(values: Iterable[object]) -> pa.DataType:
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def read_trials(folder: Path) -> pa.Table:
    """A sweep's trials.parquet. Raises BadInput when it is missing or damaged."""
    path = folder / "trials.parquet"
    try:
        return pq.read_table(path)
    except FileNotFoundError as e:
        raise BadInput(f"{path} is missing: no trial of this sweep is over yet") from e
    except (pa.ArrowException, OSError) as e:
        raise BadInput(f"{path} is damaged: expected the table of a sweep's trials ({str(e).splitlines()[0]})") from e
