"""Starting a local Ray, or joining one that is there."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.onray.start import start_ray

HOSTS_PER_CORE = 16
"""How many hosts a Ray that is started here may have per core of this machine."""
CONNECT_S = 5.0
"""How long an address may take to answer."""


@contextmanager
def connected(where: Where) -> Iterator[bool]:
    """A Ray with room for the hosts that `where` asks for, and whether it was started here (and is then shut down).

    Raises BadInput if a Ray that was not started here has less room than the hosts need, or cannot be reached.
    """
    if ray.is_initialized():
        check_room(where)
        yield False
        return
    address = check(where)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            start_ray(where.hosts, None if where.device_type == "cuda" else 0)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise BadInput(
            f"no Ray answers at {address or 'this machine'} ({e}); check the address, and RAY_AUTH_MODE and the token "
            "if it asks for one"
        ) from e
    try:
        check_room(where)
        yield not address
    finally:
        ray.shutdown()


def check(where: Where) -> str | None:
    """The address of the Ray to join, None to start one. Raises BadInput for what can be known to fail before that."""
    address = where.address or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        if not ray.is_initialized():
            _check_this_machine(where)
        return None
    if address == "auto":
        return address
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and port.isdigit()):
        raise BadInput(f'address {address!r} is neither auto nor HOST:PORT; "" starts a Ray here')
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as e:
        raise BadInput(f'no Ray answers at {address} ({e}); check --address ("" starts a Ray here)') from e
    return address


def _check_this_machine(where: Where) -> None:
    most = HOSTS_PER_CORE * (os.cpu_count() or 1)
    if where.hosts > most:
        raise BadInput(f"hosts is {where.hosts}, but this machine has {os.cpu_count()} cores; ask for at most {most}")
    if where.gpus_per_host and where.device_type == "cpu":
        raise BadInput("gpus_per_host is set, but the device is cpu; on a Ray that is started here set --device cuda")


def check_room(where: Where) -> None:
    """Refuse more hosts than the cluster has CPUs and GPUs for."""
    have = ray.cluster_resources()
    for kind, each in (("CPU", 1.0), ("GPU", where.gpus_per_host)):
        if each * where.hosts > have.get(kind, 0.0) + 1e-9:
            fits = int((have.get(kind, 0.0) + 1e-9) / each)
            raise BadInput(
                f"hosts is {where.hosts}, each needs {each:g} {kind}; this Ray has {have.get(kind, 0.0):g}, "
                f"so at most {fits} fit"
            )
