"""The server's state as tensors by name, for checkpoints, and back.

The algorithm's fields keep their names (`x`), parts of them are dotted. What the run adds has names with a prefix.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygrad.talk import Flight, ServerState

BUFFERS_KEY = "model.buffers"
"""The name of the model's buffers among a checkpoint's tensors."""
_CLOCK, _PRESENT, _SAMPLER, _FLIGHT = "run.clock_s", "run.present", "run.sampler.", "run.flight."
_FLIGHT_ARRAYS = ("clients", "begun", "weights", "start_s", "end_s", "answers")


def pack(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """A state dataclass as tensors by dotted name."""
    packed: dict[str, Tensor] = {}
    for f in fields(state):
        value = getattr(state, f.name)
        packed |= pack(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name: value}
    return packed


def unpack(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """The inverse of `pack`, shaped like `template`."""
    values = {}
    for f in fields(template):
        value = getattr(template, f.name)
        if is_dataclass(value):
            values[f.name] = unpack(value, tensors, f"{prefix}{f.name}.")
        else:
            values[f.name] = tensors[prefix + f.name]
    return replace(template, **values)


def model_among(tensors: dict[str, Tensor]) -> Tensor:
    """The model [d] among a checkpoint's tensors: `x`, also where the algorithm is around others (`inner.x`)."""
    names = [n for n in tensors if n.rpartition(".")[2] == "x" and not n.startswith("run.")]
    return tensors[min(names, key=len)]


def pack_server(state: ServerState) -> dict[str, Tensor]:
    """Everything that the server keeps between rounds."""
    packed = pack(state.algorithm)
    if state.buffers is not None:
        packed[BUFFERS_KEY] = state.buffers
    if state.clock_s:
        packed[_CLOCK] = torch.tensor(state.clock_s, dtype=torch.float64)
    if state.present is not None:
        packed[_PRESENT] = torch.from_numpy(state.present)
    packed |= {_SAMPLER + name: t for name, t in state.sampler.items()}
    if state.flight is not None:
        packed |= {_FLIGHT + name: torch.from_numpy(getattr(state.flight, name)) for name in _FLIGHT_ARRAYS}
        for round, model in state.flight.models.items():
            packed |= {f"{_FLIGHT}models.{round}.{name}": t for name, t in model.items()}
    return packed


def unpack_server(initial: ServerState, tensors: dict[str, Tensor]) -> ServerState:
    """The inverse of `pack_server`; `initial` is the state before the first round."""
    models: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith(_FLIGHT + "models."):
            round, _, what = name.removeprefix(_FLIGHT + "models.").partition(".")
            models.setdefault(int(round), {})[what] = t
    flight = None
    if _FLIGHT + "clients" in tensors:
        arrays = {name: np.array(tensors[_FLIGHT + name].numpy()) for name in _FLIGHT_ARRAYS}
        flight = Flight(**arrays, models=models)
    return ServerState(
        unpack(initial.algorithm, tensors),
        tensors.get(BUFFERS_KEY),
        float(tensors.get(_CLOCK, 0.0)),
        {n.removeprefix(_SAMPLER): t for n, t in tensors.items() if n.startswith(_SAMPLER)},
        flight,
        np.array(tensors[_PRESENT].numpy()) if _PRESENT in tensors else None,
    )
