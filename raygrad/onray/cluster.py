"""Starting a local Ray, or joining one that is there."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.onray import contact
from raygrad.onray.start import start_ray

HOSTS_PER_CORE = 16
"""How many hosts a Ray that is started here may have per core of this machine."""
TINY = 1e-9
"""Ray counts in steps of 0.0001."""


@contextmanager
def connected(where: Where) -> Iterator[bool]:
    """A Ray with room for the hosts that `where` asks for, and whether it was started here (and is then shut down).

    Raises BadInput if a Ray that was not started here has less room than a fixed number of hosts needs, or cannot be
    reached; Stopped if a Ray does not start here.
    """
    if ray.is_initialized():
        check_room(where, may_grow=True)
        yield False
        return
    address = check(where)
    if address == "auto":
        contact.check_cluster(contact.cluster_here())
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            start_ray(where.host_range.cpus(os.cpu_count() or 1), None if where.device_type == "cuda" else 0)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise BadInput(
            f"no Ray answers at {address or 'this machine'} ({e}); check the address, and RAY_AUTH_MODE and the token "
            "if it asks for one"
        ) from e
    try:
        check_room(where, may_grow=bool(address))
        yield not address
    finally:
        ray.shutdown()


def is_up() -> bool:
    """Whether this process is in a Ray."""
    return ray.is_initialized()


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
    if "://" in address or not (host and colon and port.isdigit()):
        raise BadInput(f'address {address!r} is neither auto nor HOST:PORT; "" starts a Ray here')
    contact.check_cluster(address)
    return address


def _check_this_machine(where: Where) -> None:
    most = HOSTS_PER_CORE * (os.cpu_count() or 1)
    if where.host_range.fewest > most:
        raise BadInput(f"hosts is {where.hosts}, but this machine has {os.cpu_count()} cores; ask for at most {most}")
    if where.gpus_per_host and where.device_type == "cpu":
        raise BadInput("gpus_per_host is set, but the device is cpu; on a Ray that is started here set --device cuda")


def check_room(where: Where, may_grow: bool = False) -> None:
    """Refuse more hosts than the cluster, or the placement group that we are in, has CPUs and GPUs for.

    Elastic hosts wait for a cluster that may grow.
    """
    wanted = where.host_range
    needs = _needs(where.gpus_per_host, where.cpus_per_host)
    room = group_room(where.gpus_per_host, where.cpus_per_host)
    if room is not None:
        if wanted.fewest > room:
            each = " and ".join(f"{number:g} {kind}" for kind, number in needs.items())
            raise BadInput(
                f"hosts is {where.hosts}, but the placement group has room for {room} beside this task; "
                f"each needs {each}"
            )
        return
    if wanted.elastic and may_grow:
        return
    have = ray.cluster_resources()
    for kind, each in needs.items():
        if each * wanted.fewest > have.get(kind, 0.0) + TINY:
            fits = int((have.get(kind, 0.0) + TINY) / each)
            raise BadInput(
                f"hosts is {where.hosts}, each needs {each:g} {kind}; this Ray has {have.get(kind, 0.0):g}, "
                f"so at most {fits} fit"
            )


def free_room(gpus_per_host: float) -> int:
    """How many more hosts there is room for now, beside whatever else runs on the cluster."""
    return _fits(ray.available_resources(), _needs(gpus_per_host))


def group_room(gpus_per_host: float, cpus_per_host: float = 1.0) -> int | None:
    """How many hosts fit into the placement group that we are in, beside our own task; None outside of one."""
    group = ray.util.get_current_placement_group()
    if group is None:
        return None
    own: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    room = 0
    for bundle in group.bundle_specs:
        if own and all(bundle.get(kind, 0.0) + TINY >= number for kind, number in own.items()):
            bundle, own = {kind: number - own.get(kind, 0.0) for kind, number in bundle.items()}, {}
        room += _fits(bundle, _needs(gpus_per_host, cpus_per_host))
    return room


def ask_for(hosts: int, gpus_per_host: float) -> None:
    """Ask the cluster's autoscaler for nodes that hold so many hosts; 0 takes it back. Without one nothing happens.

    The ask is the cluster's: it outlives us if it is not taken back, and replaces what anybody asked before.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[_needs(gpus_per_host)] * hosts)


def _needs(gpus_per_host: float, cpus_per_host: float = 1.0) -> dict[str, float]:
    return {"CPU": cpus_per_host} | ({"GPU": gpus_per_host} if gpus_per_host else {})


def _fits(have: Mapping[str, float], needs: Mapping[str, float]) -> int:
    return min(int((have.get(kind, 0.0) + TINY) / each) for kind, each in needs.items())
