"""Exports metrics through Ray: each node's agent has an endpoint that Prometheus reads (docs/metrics.md).

A value costs some microseconds here; Ray's own thread sends them on, every ten seconds if not told otherwise. It
forgets a gauge that it has sent, so those of a run under way are set again and again here.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any

from ray.util import metrics

from raygrad.metrics import METRICS, SECONDS, Reading, exported

HOLD_S = 1.0
"""The gauges of a run are set again so often; the shortest interval at which Ray sends."""

_LOCK = threading.Lock()
_Gauges = dict[tuple[str, frozenset[tuple[str, str]]], Callable[[], None]]  # what sets them
_HELD: dict[str, _Gauges] = {}  # by run
_HOLDERS: Counter[str] = Counter()  # the seeds of a trial are runs of one name


@cache
def _made(name: str) -> Any:
    """Ray's metric of this name, made once per process: made twice it would be two that overwrite each other."""
    m = METRICS[name]
    if m.kind == "histogram":
        return metrics.Histogram(name, m.description, list(SECONDS), m.all_labels)
    return (metrics.Counter if m.kind == "counter" else metrics.Gauge)(name, m.description, m.all_labels)


def record(owner: str, readings: Iterable[Reading]) -> None:
    """Export what there is to say of the run or sweep called `owner`. What goes wrong never stops a run."""
    with suppress(Exception):
        for reading in readings:
            with suppress(Exception):  # the others are exported
                if exported(reading):
                    _export(owner, reading)


@contextmanager
def exporting(run: str) -> Iterator[Callable[[Iterable[Reading]], None]]:
    """Inside, what is recorded of a run's gauges is there until it is recorded anew; gives `record` for the run."""
    with _LOCK:
        gauges = _HELD.setdefault(run, {})
        _HOLDERS[run] += 1
    over = threading.Event()
    thread = threading.Thread(target=_hold, args=(gauges, over), name="raygrad-metrics", daemon=True)
    thread.start()
    try:
        yield partial(record, run)
    finally:
        over.set()
        thread.join()
        with _LOCK:
            _HOLDERS[run] -= 1
            if not _HOLDERS[run]:
                del _HELD[run], _HOLDERS[run]


def _hold(gauges: _Gauges, over: threading.Event) -> None:
    while not over.wait(HOLD_S):
        with _LOCK:
            for again in gauges.values():
                with suppress(Exception):
                    again()


def _export(owner: str, reading: Reading) -> None:
    kind, metric = METRICS[reading.metric], _made(reading.metric)
    labels, value = {kind.owner: owner, **reading.labels}, float(reading.value)
    if kind.kind == "counter":
        metric.inc(value, labels)
    elif kind.kind == "histogram":
        metric.observe(value, labels)
    else:
        with _LOCK:
            metric.set(value, labels)
            if owner in _HELD:
                _HELD[owner][reading.metric, frozenset(labels.items())] = partial(metric.set, value, labels)
