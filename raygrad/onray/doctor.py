"""Looks at every node of a cluster and says what to mend before a run is sent there.

`examine` asks the nodes, `findings` judges what they say and knows no Ray.
"""

import logging
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from raygrad.errors import BadInput
from raygrad.files.remote import Url, location
from raygrad.onray import node

_PROBE = re.compile(r"/\.raygrad-doctor-\w+")
ANSWER_S = 120.0
"""How long a node may take to look at itself; the first worker on it has to import torch."""


@dataclass(frozen=True)
class Node:
    """A node: what its cluster says of it, and what it says itself (None if it did not answer)."""

    name: str
    address: str
    cpus: float
    gpus: float
    memory_bytes: float
    store_bytes: float
    facts: node.Facts | None
    error: str = ""


@dataclass(frozen=True)
class Examined:
    """A cluster, or this machine alone (`address` is None and there is one node)."""

    address: str | None
    driver: node.Facts
    nodes: Sequence[Node]
    free: Mapping[str, float]
    roots: Sequence[str] = ()
    errors: Sequence[str] = ()  # of the driver's own writing


@dataclass(frozen=True)
class Findings:
    """What to mend, and what only is to be known."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# --- asking ---------------------------------------------------------------------------------------------------------


def examine(address: str | None, run_root: str | None, shard_root: str | None) -> Examined:
    """Ask every node of the cluster at `address` (auto or HOST:PORT), or this machine. Raises BadInput."""
    roots = [_absolute(r) for r in (run_root, shard_root) if r]
    with _files(roots) as (files, errors):
        writable = [_absolute(run_root)] if run_root else []
        if not address:
            facts = node.look(files, writable)
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            here = Node(facts["host"], "", os.cpu_count() or 1, facts["gpus"], memory, 0.0, facts)
            return Examined(None, facts, [here], {}, roots, errors)
        with _joined(address):
            driver = node.look({}, [])
            nodes, free = _ask(files, writable)
        return Examined(address, driver, nodes, free, roots, errors)


def _absolute(root: str) -> str:
    """Raises BadInput for an address that holds a secret or is none."""
    place = location(root)
    return str(place) if isinstance(place, Url) else str(place.absolute())


@contextmanager
def _files(roots: Iterable[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A small file in each root, removed afterwards, and what was wrong with those that could not be written."""
    files: dict[str, str] = {}
    errors: list[str] = []
    for root in dict.fromkeys(roots):
        file, content = node.inside(root), uuid.uuid4().hex
        try:
            node.write(file, content)
            files[file] = content
        except Exception as e:  # Arrow raises what the storage's library says
            errors.append(f"{root} cannot be written from here ({_first_line(e)}): make it, or give this user rights")
    try:
        yield files, errors
    finally:
        for file in files:
            with suppress(Exception):
                node.remove(file)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    from raygrad.experiment import Where
    from raygrad.onray import cluster, contact

    if "://" in address:
        raise BadInput(
            f"address {address!r} is a dashboard's; doctor joins the cluster as a run does: `raygrad doctor --address "
            "auto` on one of its nodes"
        )
    if ray.is_initialized():
        yield
        return
    if cluster.check(Where(address=address)) == "auto":
        contact.check_cluster(contact.cluster_here())
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise BadInput(f"no Ray answers at {address} ({_first_line(e)})") from e
    try:
        yield
    finally:
        ray.shutdown()


def _ask(files: dict[str, str], writable: list[str]) -> tuple[list[Node], dict[str, float]]:
    """All nodes that are alive, the head first, and what is free on them."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(sys.modules[node.__name__])
    look = ray.remote(num_cpus=0, max_retries=0)(node.look)
    alive = [n for n in ray.nodes() if n["Alive"]]
    free = {kind: float(number) for kind, number in ray.available_resources().items()}
    asked = {
        n["NodeID"]: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote(
            files, writable
        )
        for n in alive
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    found = []
    for n in alive:
        facts, error = None, ""
        try:
            facts = ray.get(asked[n["NodeID"]], timeout=0)
        except Exception as e:  # whatever a node dies of is what we are asked for
            error = f"{type(e).__name__}: {_first_line(e)}"
        has: dict[str, Any] = n["Resources"]
        found.append(
            Node(
                n["NodeManagerHostname"], n["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0),
                has.get("memory", 0.0), has.get("object_store_memory", 0.0), facts, error,
            )
        )  # fmt: skip
        if "node:__internal_head__" in has:
            found.insert(0, found.pop())
    return found, free


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


# --- judging --------------------------------------------------------------------------------------------------------


def findings(found: Examined) -> Findings:
    """What is wrong with a cluster and how to mend it."""
    result = Findings([*found.errors])
    for n in found.nodes:
        result.problems.extend(_wrong_with(n, found))
    _numerics(found, result)
    if found.address is None:
        return result
    if not any(n.cpus for n in found.nodes):
        result.notes.append("no node has CPUs now: runs wait until one joins (add a worker, or let the autoscaler)")
    elif not found.free.get("CPU"):
        result.notes.append("no CPU is free now: new runs wait for those that run")
    if any(n.facts and n.facts["auth"].lower() != "token" for n in found.nodes):
        result.notes.append(
            "nodes do not ask for a token: whoever reaches their ports runs code; set RAY_AUTH_MODE=token on every node"
        )
    if len(found.nodes) > 1 and not found.roots:
        result.notes.append("storage was not tried: name what runs will use with --run-root (and --shard-root)")
    return result


def _wrong_with(n: Node, found: Examined) -> Iterator[str]:
    """What is wrong with one node."""
    who = shown(n)
    facts = n.facts
    if facts is None:
        yield f"{who} did not answer ({n.error or f'within {ANSWER_S:.0f} s'}); look at its logs, or take it out"
        return
    for package in ("raygrad", "ray", "torch", "python"):
        ours, theirs = found.driver[package], facts[package]
        if not theirs:
            yield f"{who} has no {package}: install {package}=={ours} in the environment of its `ray start`"
        elif theirs != ours:
            yield f"{who} has {package} {theirs}, this machine {ours}: install the same on all"
    if facts["error"] and facts["raygrad"] and facts["torch"]:
        yield f"{who} cannot compute: {facts['error']}"
    if n.gpus and not facts["gpus"] and not facts["error"]:
        yield (
            f"{who} offers {n.gpus:g} GPUs, and torch finds none: mend the driver or install torch with CUDA, or start "
            "it with --num-gpus=0"
        )
    if n.store_bytes and facts["shm_bytes"] < n.store_bytes:
        yield (
            f"{who} has an object store of {gigabytes(n.store_bytes)} and a /dev/shm of "
            f"{gigabytes(facts['shm_bytes'])}, so it lies on disk: give the container more (--shm-size, or an emptyDir "
            "with medium Memory)"
        )
    for path, wrong in facts["storage"].items():
        if wrong:
            root = _PROBE.sub("", path)
            yield f"{who}: {root} {wrong}; mount one folder under this path on all nodes, or use s3:// or gs://"


def _numerics(found: Examined, result: Findings) -> None:
    """Hosts of one run must compute the same bits; a node without CPUs or GPUs holds none."""
    for kind, count in (("cpu", "cpus"), ("gpu", "gpus")):
        groups: dict[str, list[Node]] = {}
        for n in found.nodes:
            if n.facts and n.facts[f"{kind}_digest"] and getattr(n, count):
                groups.setdefault(n.facts[f"{kind}_digest"], []).append(n)
        if len(groups) > 1:
            told = "; ".join(
                f"{', '.join(shown(n) for n in group)}: {d[:8]} ({(group[0].facts or {}).get(kind)})"
                for d, group in groups.items()
            )
            result.problems.append(
                f"nodes compute different bits on their {kind.upper()}s ({told}): keep the hosts of one run on one "
                "kind of machine, or admit and mark them with --numerics mark"
            )
        elif groups and found.address and found.driver[f"{kind}_digest"] not in ("", *groups):
            result.notes.append(
                f"this machine computes other bits on its {kind.upper()} than the nodes: do not mix them"
            )


def shown(n: Node) -> str:
    """A node's name; nodes of one machine are told apart by their address."""
    return f"{n.name} ({n.address})" if n.address and n.address != n.name else n.name


def gigabytes(number: float) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.1f} GB"
