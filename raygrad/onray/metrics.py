"""Exports metrics through Ray: each node's agent has an endpoint that Prometheus reads (docs/metrics.md).

A value costs some microseconds here; Ray's own thread sends them on, every ten seconds if not told otherwise.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from raygrad.metrics import METRICS, SECONDS, Reading, exported


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
    else:
        metric.observe(value, labels)
