"""Exports metrics through Ray: each node's agent has an endpoint that Prometheus reads (docs/metrics.md).

A value costs some microseconds here; Ray's own thread sends them on, every ten seconds if not told otherwise. It
forgets a gauge that it has sent, so those of a run under way are set again and again here.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from raygrad.metrics import METRICS, SECONDS, Reading, exported

HOLD_S = 1.0
"""The gauges of runs are set again so often; the shortest interval at which Ray sends."""


@cache
def _made(name: str) -> Any:
    """Ray's metric of this name, made once per process: made twice it would be two that overwrite each other."""
    m = METRICS[name]
    if m.kind == "histogram":
        return Histogram(name, m.description, list(SECONDS), m.all_labels)
    return (Counter if m.kind == "counter" else Gauge)(name, m.description, m.all_labels)


def record(owner: str, readings: Iterable[Reading]) -> None:
    """Export what there is to say of the run or sweep called `owner`. What goes wrong never stops a run."""
    with suppress(Exception):
        for reading in readings:
            with suppress(Exception):  # the others are exported
                if exported(reading):
                    _export(owner, reading)


def _export(owner: str, reading: Reading) -> None:
    kind, metric = METRICS[reading.metric], _made(reading.metric)
    labels, value = {kind.owner: owner, **reading.labels}, float(reading.value)
    if kind.kind == "counter":
        metric.inc(value, labels)
    elif kind.kind == "gauge":
        metric.set(value, labels)
        if kind.owner == "run":
            _HELD.note(owner, reading)
    else:
        metric.observe(value, labels)


class _Held:
    """The newest gauges of the runs that this process plays, from the state "running" to the next one.

    Without them what is set once would vanish, and a run that stalls would vanish with all it last said. A thread sets
    them; it ends with the last run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Reading]] = {}
        self._setting = False

    def note(self, run: str, reading: Reading) -> None:
        """A gauge was set."""
        key, state = (reading.metric, frozenset(reading.labels.items())), reading.labels.get("state")
        with self._lock:
            if state == "running":
                self._runs[run] = {}
            if run in self._runs:
                self._runs[run][key] = reading
            if state not in (None, "running"):
                self._set(run, self._runs.pop(run, {}).values())
            if self._runs and not self._setting:
                self._setting = True
                threading.Thread(target=self._keep, name="raygrad-metrics", daemon=True).start()

    def _keep(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(HOLD_S)
            with self._lock:
                for run, readings in self._runs.items():
                    self._set(run, readings.values())
                if not self._runs:
                    self._setting = False
                    return

    @staticmethod
    def _set(run: str, readings: Iterable[Reading]) -> None:
        for r in readings:
            with suppress(Exception):
                _made(r.metric).set(float(r.value), {"run": run, **r.labels})


_HELD = _Held()
