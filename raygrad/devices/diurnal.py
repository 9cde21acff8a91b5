"""A made trace of day and night: clients that charge, and so are available, mostly when it is night where they are.

At time t (in hours) client i is available with probability

    p_i(t) = low + (high - low) (1 + cos(2 pi (t - phase_i) / 24)) / 2,

with phase_i = 3 + a time zone uniform in [0, zones_h): every client's best hour is three in the morning. States last at
least half an hour. In half hour s client i is available iff V_i(s) < p_i(s / 2), where V_i(s) = V_i(s - 1) with
probability `persistence`, else a new uniform number: so p_i is exactly the probability of being available, and
`persistence` says how long states last. Speeds are log-normal with mean 1 and drawn once per client.

Four times as many by night as by day, the default, is what Bonawitz et al. report of phones in one country ("Towards
Federated Learning at Scale: System Design", arXiv:1902.01046); with `zones_h` = 0 all clients are in one zone.
"""

from math import pi
from typing import TYPE_CHECKING

import numpy as np

from raygrad.devices.base import Draw
from raygrad.devices.drawn import SIGMA_MAX, lognormal
from raygrad.errors import BadInput
from raygrad.rng import Purpose, uniforms

if TYPE_CHECKING:
    import pyarrow as pa

STEP_H = 0.5
BEST_HOUR = 3.0


def diurnal_trace(
    clients: int, hours: float, seed: int, *, low: float = 0.2, high: float = 0.8, zones_h: float = 24.0,
    persistence: float = 0.8, sigma: float = 0.5,
) -> "pa.Table":  # fmt: skip
    """A trace of `clients` clients over `hours` hours, a multiple of one half: see the module for the formula.

    Columns: client (int64), time (float64, seconds), available (bool), speed (float64, three decimals). A client has a
    row at time 0, one at every change, and one at the end, which says when the trace is over. Raises BadInput naming
    the argument.
    """
    import pyarrow as pa

    if clients < 1:
        raise BadInput(f"clients is {clients}; it must be >= 1")
    steps = round(hours / STEP_H) if 0 < hours < 1e6 else 0
    if steps < 1 or steps * STEP_H != hours:
        raise BadInput(f"hours is {hours:g}; it must be a multiple of {STEP_H:g}, at least {STEP_H:g}")
    if seed < 0:
        raise BadInput(f"seed is {seed}; it must be >= 0")
    if not 0 <= low <= high <= 1 or high == 0:
        raise BadInput(f"low is {low:g} and high {high:g}; they must be probabilities with low <= high, and high > 0")
    if not 0 <= zones_h <= 24:
        raise BadInput(f"zones_h is {zones_h:g}; it must be in [0, 24]")
    if not 0 <= persistence < 1:
        raise BadInput(f"persistence is {persistence:g}; it must be a probability >= 0 and < 1")
    if not 0 <= sigma <= SIGMA_MAX:
        raise BadInput(f"sigma is {sigma:g}; it must be >= 0 and <= {SIGMA_MAX:g}")

    everyone = np.arange(clients)

    def draw(what: Draw, *key: int) -> np.ndarray:
        return uniforms(seed, Purpose.DEVICES, what, *key, clients=everyone)

    phase = BEST_HOUR + zones_h * draw(Draw.DAY_PHASE)
    speed = np.maximum(lognormal(draw(Draw.DAY_SPEED), draw(Draw.DAY_SPEED_ANGLE), sigma).round(3), 0.001)
    v = draw(Draw.DAY_STATE, 0)
    found = []  # (client, half hour, available) of the rows
    before = np.zeros(clients, np.bool_)
    for step in range(steps):
        if step:
            v = np.where(draw(Draw.DAY_KEEPS, step) < persistence, v, draw(Draw.DAY_STATE, step))
        p = low + (high - low) * (1 + np.cos(2 * pi * (step * STEP_H - phase) / 24)) / 2
        now = v < p
        changed = everyone if step == 0 else np.flatnonzero(now != before)
        found.append((changed, np.full(len(changed), step), now[changed]))
        before = now
    found.append((everyone, np.full(clients, steps), before))
    client, at, available = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((at, client))
    client, at, available = client[order], at[order], available[order]
    return pa.table(
        {"client": client, "time": at * STEP_H * 3600.0, "available": available, "speed": speed[client]}
    )  # fmt: skip


def encode(table: "pa.Table", suffix: str) -> bytes:
    """A trace as the bytes of a `.csv` or a `.parquet` file; the same table gives the same bytes."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    sink = pa.BufferOutputStream()
    if suffix == ".csv":
        sink.write((",".join(table.column_names) + "\n").encode())
        flags = table["available"].cast(pa.int8())
        plain = table.set_column(table.column_names.index("available"), "available", flags)
        csv.write_csv(plain, sink, csv.WriteOptions(include_header=False))
    elif suffix == ".parquet":
        parquet.write_table(table, sink)
    else:
        raise BadInput(f"a trace is a .parquet or a .csv file; {suffix!r} is neither")
    return sink.getvalue().to_pybytes()
