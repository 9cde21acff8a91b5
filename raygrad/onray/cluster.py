"""Starting a local Ray, or joining one that is there."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from raygrad.errors import BadInput
from raygrad.experiment import Where


@contextmanager
def connected(where: Where) -> Iterator[None]:
    """A Ray with room for the hosts that `where` asks for. One that was started here is shut down at the end.

    Raises BadInput if a Ray that was not started here has less room than the hosts need, or cannot be reached.
    """
    if ray.is_initialized():
        check_room(where)
        yield
        return
    address = where.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=where.hosts,
                num_gpus=None if where.device_type == "cuda" else 0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as e:
        raise BadInput(
            f"no Ray answers at {address} ({e}); check the address, and RAY_AUTH_MODE and the token if it asks for one"
        ) from e
    try:
        check_room(where)
        yield
    finally:
        ray.shutdown()


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
