"""Where a run comes from and what it was made with: lineage, environment, papers; and in what several runs differ.

Everything is read from the JSON files and tables of the run folders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raygrad import citations
from raygrad.files import storage, tables
from raygrad.reports.report import Group, Leaf, RunView, Settings, change, leaf

_NAMES = {
    "torch": "PyTorch",
    "numpy": "NumPy",
    "cpu_capability": "CPU kernels",
    "device": "device",
    "dtype": "numbers",
    "threads": "threads of a host",
    "mode": "clients of a gang",
    "canary": "digest of the canary gang",
}


@dataclass(frozen=True)
class Origin:
    """From which run and after which round a run was forked; `changes` are its settings that change on the way."""

    run: str
    round: int
    hash: str
    changes: tuple[str, ...]


def origin(run: Path) -> Origin | None:
    """Where the run in a folder was forked from; None for a run from the start. Raises BadInput."""
    record = storage.read_json(run / "experiment.json")
    found, experiment = record.get("forked_from"), record.get("experiment")
    if not isinstance(found, Mapping):
        return None
    changes = experiment.get("changes") if isinstance(experiment, Mapping) else None
    after = found.get("round")
    return Origin(
        str(found.get("run")), after if isinstance(after, int) else 0, str(found.get("hash")),
        tuple(str(c) for c in changes) if isinstance(changes, list) else (),
    )  # fmt: skip


def lineage(v: RunView) -> list[tuple[str, str]]:
    """Where a run comes from, as (label, value): forks, the model it started from, restarts."""
    rows = []
    found = origin(v.path)
    if found is not None:
        rows.append(("forked from", f"{found.run} after round {found.round:,}, experiment {found.hash[:12]}"))
        rows += [("changed", change(c)) for c in found.changes]
    elif v.settings.get("changes"):
        rows.append(("changed", "; ".join(change(c) for c in str(v.settings["changes"]).split(", "))))
    if v.settings.get("init"):
        rows.append(("started from the model", leaf(v.settings["init"])))
    process = tables.read(v.path, "seconds", ["round", "process"])["process"]
    restarts = int(process.to_numpy().max()) if len(process) else 0
    if restarts:
        rows.append(("restarts", f"{restarts:,}"))
    return rows


def environment(v: RunView) -> list[tuple[str, str]]:
    """What a run was computed with, as (label, value)."""
    rows = _machine(v.path)
    for key, value in v.numerics.items():
        name = key.removeprefix("numerics.")
        rows.append((_NAMES.get(name, name), _short(name, value)))
    where, hosts = v.where, v.where.get("hosts")
    if where.get("on") == "local":
        rows.append(("ran", "in one process"))
    elif where:
        rows.append(("ran", f"on {leaf(where.get('on'))}" + (f", {leaf(hosts)} hosts" if hosts is not None else "")))
        shares = [
            f"{leaf(where[key])} {what}"
            for key, what in (("cpus_per_host", "CPUs"), ("gpus_per_host", "GPUs"))
            if where.get(key)
        ]
        if shares:
            rows.append(("each host", ", ".join(shares)))
    if isinstance(v.data.get("parameters"), int):
        rows.append(("parameters of the model", f"{v.data['parameters']:,}"))
    if "id" in v.data:
        rows.append(("prepared data", f"{str(v.data['id'])[:16]}…"))
    return rows


def _machine(run: Path) -> list[tuple[str, str]]:
    """The versions and the machine that the run was started with; nothing for runs of old."""
    if not (run / "environment.json").exists():
        return []
    found = {
        k: x for k, x in storage.read_json(run / "environment.json").items() if k not in ("schema_version", "torch")
    }
    machine = {k: found.pop(k, None) for k in ("system", "processor", "cores", "memory_gb")}
    packages = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
    parts = [str(machine[k]) for k in ("processor", "system") if machine[k]]
    parts += [f"{machine[k]} {what}" for k, what in (("cores", "cores"), ("memory_gb", "GB of memory")) if machine[k]]
    return [(name, text) for name, text in (("software", packages), ("machine", ", ".join(parts))) if text]


def _short(name: str, value: Leaf) -> str:
    return f"{str(value)[:16]}…" if name == "canary" else leaf(value)


def bibliography(views: Sequence[RunView]) -> tuple[list[str], list[str], list[str]]:
    """What runs stand on: the papers in one line each, their BibTeX entries with raygrad's, parts of the user's own."""
    numbers: dict[str, None] = {}
    others: dict[str, None] = {}
    seen = set()
    for v in views:
        if (v.name, v.hash) in seen:
            continue
        seen.add((v.name, v.hash))
        record = storage.read_json(v.path / "experiment.json").get("experiment")
        found, unknown = citations.of_record(v.name, record if isinstance(record, Mapping) else {})
        numbers |= dict.fromkeys(found)
        others |= dict.fromkeys(unknown)
    return papers(list(numbers)), [*map(citations.bibtex, numbers), citations.software()], list(others)


def papers(numbers: Sequence[str]) -> list[str]:
    """Papers in one line each."""
    known = citations.REFERENCES
    return [known[n].short if n in known else f"arXiv {n}" for n in numbers]


def differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The settings, machines and numerics in which groups of runs differ: (name, the value in each group).

    Runs of one group that differ among themselves, as in their machines, have all their values there.
    """
    rows = []
    for kind in ("settings", "where", "numerics"):
        each: list[list[Settings]] = [[getattr(v, kind) for v in g.runs] for g in groups]
        keys = dict.fromkeys(k for group in each for settings in group for k in settings)
        for key in keys:
            if kind == "settings" and key == "seed":
                continue
            values = [" or ".join(dict.fromkeys(_said(s, key) for s in group)) for group in each]
            if len(set(values)) > 1 or any(" or " in value for value in values):
                rows.append((key if kind == "settings" else f"{kind}: {key.removeprefix('numerics.')}", values))
    return rows


def _said(settings: Settings, key: str) -> str:
    if key not in settings:
        return ""
    return _short(key.rpartition(".")[2], settings[key])
