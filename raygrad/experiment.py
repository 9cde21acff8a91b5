"""What is run (`Experiment`, hashed) and on what (`Where`, not hashed)."""

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from raygrad import config
from raygrad.algorithms import ALGORITHMS
from raygrad.algorithms.fedga import FedGA
from raygrad.contract import Algorithm, Sampler
from raygrad.data.datasets import DATASETS, Dataset, Digits
from raygrad.data.partition import PARTITIONERS, Labels, Partitioner
from raygrad.devices import DEVICES, Devices, NotModelled
from raygrad.errors import BadInput
from raygrad.files.remote import Url, location
from raygrad.hosts import HostRange
from raygrad.local import Local
from raygrad.membership import MEMBERSHIPS, Everybody, Membership
from raygrad.models import MODELS, DigitsCNN, Model
from raygrad.objectives import load_loss, load_metrics
from raygrad.regularizers import REGULARIZERS, Regularizer, Unregularized
from raygrad.samplers import SAMPLERS, Uniform
from raygrad.schedules import SCHEDULES, Constant, Schedule
from raygrad.stragglers import POLICIES, Policy, WaitForAll
from raygrad.streams import TASKS, One, Tasks
from raygrad.talk import Failures

SCHEMA_VERSION = 1


def _at_least(owner: str, value: float, lowest: float) -> None:
    if not value >= lowest:
        raise BadInput(f"{owner} is {value}; it must be >= {lowest:g}")


@dataclass(frozen=True)
class Evaluation:
    """How the model is judged while it trains.

    "validation" cuts the fraction `validation` from every shard and measures on it, on at most `clients` fixed
    clients, every `every` rounds; the test set is touched once at the end. "paper" cuts nothing and measures on the
    test set every `every` rounds, as many papers do: the best value over the run is then chosen on the test set, and
    is labelled so.
    """

    mode: Literal["validation", "paper"] = "validation"
    every: int = 5
    validation: float = 0.1
    clients: int = 1000

    def __post_init__(self) -> None:
        _at_least("evaluation.every", self.every, 1)
        _at_least("evaluation.clients", self.clients, 1)
        if not 0 < self.validation < 1:
            raise BadInput(f"evaluation.validation is {self.validation}; it must be a fraction between 0 and 1")

    @property
    def fraction(self) -> float:
        """The fraction of every shard that is cut off for validation."""
        return self.validation if self.mode == "validation" else 0.0


@dataclass(frozen=True)
class Probe:
    """Alignment is measured every `every` rounds (0: never) on min(N, `clients`) fixed clients.

    With `examples` the gradient of every example is taken, too, for the bound on the batch that pays:
    n sum_j |grad l_j|^2 / |sum_j grad l_j|^2 over the n examples of these clients (`raygrad.alignment`).
    """

    every: int = 10
    clients: int = 64
    examples: bool = False

    def __post_init__(self) -> None:
        _at_least("probe.every", self.every, 0)
        _at_least("probe.clients", self.clients, 2)


@dataclass(frozen=True)
class Checkpoints:
    """A checkpoint is written after every `every` rounds and at the end; the newest `keep` stay."""

    every: int = 50
    keep: int = 2

    def __post_init__(self) -> None:
        _at_least("checkpoints.every", self.every, 1)
        _at_least("checkpoints.keep", self.keep, 1)


@dataclass(frozen=True)
class Gangs:
    """How clients are bundled: at most `size` at once, one after another ("loop") or as one vmapped computation
    ("vmap").

    "auto" becomes a fixed number and mode by a rule of model, K, B, cohort and device type; both change the last bits
    of a result, so they belong to the experiment.
    """

    size: int | Literal["auto"] = "auto"
    mode: Literal["auto", "loop", "vmap"] = "auto"

    def __post_init__(self) -> None:
        if self.size != "auto":
            _at_least("gangs.size", self.size, 1)


EXCLUDED = {
    "local.steps": ("local.epochs", "local.epochs_to"),
    "local.epochs": ("local.steps", "local.epochs_to"),
    "local.batch_size": ("local.batch_size_to",),
    "init": ("init_sha256",),
}
"""Whoever sets a field means none of these, unless they are set, too."""
CHANGEABLE = ("algorithm", "local", "sampler", "schedule", "stragglers")
"""The parts of an experiment whose fields may change on the way."""
_CHANGE = re.compile(r"(\d+):(\w+\.[\w.]+)=(.*)")


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's bits. Two experiments with the same `hash` give the same model on the same
    numerics.

    `changes` are settings that change on the way: "10:algorithm.beta=0.2" holds from round 11 on. Forked runs have
    them.
    """

    data: Dataset = config.one_of(DATASETS, Digits())
    partition: Partitioner = config.one_of(PARTITIONERS, Labels(clients=10, labels=1))
    tasks: Tasks = config.one_of(TASKS, One())
    model: Model = config.one_of(MODELS, DigitsCNN())
    algorithm: Algorithm = config.one_of(ALGORITHMS, FedGA())
    local: Local = Local()
    sampler: Sampler = config.one_of(SAMPLERS, Uniform())
    schedule: Schedule = config.one_of(SCHEDULES, Constant())
    regularizer: Regularizer = config.one_of(REGULARIZERS, Unregularized())
    devices: Devices = config.one_of(DEVICES, NotModelled())
    stragglers: Policy = config.one_of(POLICIES, WaitForAll())
    failures: Failures = Failures()
    membership: Membership = config.one_of(MEMBERSHIPS, Everybody())
    rounds: int = 100
    seed: int = 0
    loss: str = "cross_entropy"
    metrics: tuple[str, ...] = ("accuracy",)
    weights: Literal["equal", "examples"] = "equal"
    buffers: Literal["average", "local", "refuse"] = "average"
    dtype: Literal["float32", "float64"] = "float32"
    evaluation: Evaluation = Evaluation()
    probe: Probe = Probe()
    checkpoints: Checkpoints = Checkpoints()
    gangs: Gangs = Gangs()
    init: str | None = None
    init_sha256: str | None = field(default=None, repr=False)
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least("rounds", self.rounds, 1)
        _at_least("seed", self.seed, 0)
        load_loss(self.loss)
        load_metrics(self.metrics)
        if self.init is not None and self.regularizer.from_start and self.regularizer.weight:
            kind = config.kind_of(self.regularizer, REGULARIZERS)
            raise BadInput(
                f"regularizer={kind} holds weights near those that the seed gives, but init takes others from a file; "
                "use regularizer=spectral or l2, or leave out init"
            )
        if self.changes:
            self.stages()

    def stages(self) -> list[tuple[int, "Experiment"]]:
        """The experiment's stretches: the last round of each, and the settings that hold in it, without `changes`.

        Raises BadInput if a change cannot be.
        """
        found, now = [], replace(self, changes=())
        last = 0
        for change in self.changes:
            match = _CHANGE.fullmatch(change)
            if match is None or match[2].partition(".")[0] not in CHANGEABLE:
                raise BadInput(
                    f"changes has {change!r}; expected ROUND:FIELD=VALUE with a field of {', '.join(CHANGEABLE)}, such "
                    "as 10:algorithm.beta=0.2"
                )
            after = int(match[1])
            if after < max(1, last):
                raise BadInput(f"changes has {change!r} after a change in round {last}; they come in order, from 1 on")
            if after > last:
                found.append((after, replace(now, rounds=after)))
            now, last = now.set(match[2], match[3]), after
        reached = [(until, stage) for until, stage in found if until < self.rounds]
        if len(reached) < len(found):  # the run ends before
            return [*reached, (self.rounds, replace(found[len(reached)][1], rounds=self.rounds))]
        return [*reached, (self.rounds, replace(now, rounds=self.rounds))]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back."""
        return config.dump(self)

    @staticmethod
    def from_json(data: Any) -> "Experiment":
        """From a JSON object. Raises BadInput naming the field."""
        return config.load(Experiment, data)

    def set(self, path: str, text: str) -> "Experiment":
        """With the field at the dotted `path` set from text: `experiment.set("algorithm.beta", "0.1")`."""
        return config.assign(self, path, text)

    @property
    def hash(self) -> str:
        """The sha256 of everything but what may change on a resume (`rounds`; `failures`, which says what happens when
        a client fails) and where files lie whose contents count.
        """
        found = {**self.to_json(), "rounds": None, "failures": None, "init": None}
        if found["devices"].get("sha256"):
            found["devices"] = {**found["devices"], "path": None}
        return hashlib.sha256(config.canonical(found)).hexdigest()

    def pinned(self) -> "Experiment":
        """With the contents of `init` and of a device trace recorded, so that other contents under the same name are
        another experiment.
        """
        pinned = replace(self, devices=self.devices.pinned())
        if self.init is None:
            return pinned
        try:
            found = hashlib.sha256(Path(self.init).read_bytes()).hexdigest()
        except OSError as e:
            raise BadInput(f"init: cannot read {self.init} ({e.strerror})") from e
        if self.init_sha256 not in (None, found):
            raise BadInput(
                f"init: {self.init} is not the file this experiment started from (its sha256 is {found[:12]}…)"
            )
        return replace(pinned, init=str(Path(self.init).resolve()), init_sha256=found)


@dataclass(frozen=True)
class Where:
    """On what an experiment runs. Nothing here changes a bit of the result.

    `on` is "ray" (host actors) or "local" (this process, without Ray). `hosts` is their number, "auto" (as many as
    there is room and work for) or "2..16" (fewest and most). `address` is a Ray cluster's; without one a local Ray is
    started. `device` "auto" is a GPU where hosts have one. `numerics` "strict" refuses hosts that would compute other
    bits, "mark" admits and records them. `state_limit_bytes` bounds what clients' states may take on the driver's disk.
    `track` are trackers that are told of every round (`raygrad.tracking`).
    `cpus_per_host` is what a host reserves; hosts that take turns, as those of a trial's seeds, may share a CPU.
    """

    on: Literal["ray", "local"] = "ray"
    hosts: int | str = 2
    address: str | None = None
    gpus_per_host: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_root: str | None = None
    shard_root: str | None = None
    numerics: Literal["strict", "mark"] = "strict"
    state_limit_bytes: int = 50 * 10**9
    cpus_per_host: float = 1.0
    track: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        HostRange.of(self.hosts)
        if self.shard_root is not None:
            location(self.shard_root)
        if self.data_root is not None and isinstance(location(self.data_root), Url):
            raise BadInput("data_root is an address; data sets are read from a folder: copy them to one")
        _at_least("gpus_per_host", self.gpus_per_host, 0)
        _at_least("cpus_per_host", self.cpus_per_host, 0.01)
        if self.gpus_per_host > 1 and self.gpus_per_host % 1:
            raise BadInput(f"gpus_per_host is {self.gpus_per_host}; above 1 it must be a whole number")
        if self.on == "local" and (self.address or self.gpus_per_host):
            raise BadInput("address and gpus_per_host are settings of --on ray; this run is --on local")

    @property
    def host_range(self) -> HostRange:
        """The fewest and the most hosts."""
        return HostRange.of(self.hosts)

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """The device that hosts use."""
        if self.device != "auto":
            return self.device
        on_gpu = self.gpus_per_host > 0 if self.on == "ray" else torch.cuda.is_available()
        return "cuda" if on_gpu else "cpu"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"schema_version": SCHEMA_VERSION, **config.dump(self)}

    @staticmethod
    def from_json(data: Any) -> "Where":
        """From a JSON object. Raises BadInput naming the field."""
        return config.load(Where, {k: v for k, v in data.items() if k != "schema_version"}, "where")
