"""Modelled devices: how long a client takes, whether it is there and whether it leaves, on a virtual clock.

Nothing here measures time. Every number is a function of the seed, the round, the phase, the client and the virtual
time, so it is the same on any host and after any restart.
"""

from raygrad.devices.base import Address, Devices, Finish, Load
from raygrad.devices.drawn import Classes, Constant, Exponential, LogNormal, Pareto
from raygrad.devices.none import NotModelled
from raygrad.devices.trace import Trace

DEVICES: dict[str, type] = {
    "none": NotModelled,
    "constant": Constant,
    "exponential": Exponential,
    "lognormal": LogNormal,
    "pareto": Pareto,
    "classes": Classes,
    "trace": Trace,
}
"""Every kind of modelled devices by the name that commands and experiments use."""

__all__ = [
    "DEVICES", "Address", "Classes", "Constant", "Devices", "Exponential", "Finish", "Load", "LogNormal",
    "NotModelled", "Pareto", "Trace",
]  # fmt: skip
