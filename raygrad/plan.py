"""From an experiment to what hosts need: data prepared, model checked, gangs cut by rule.

All bad input is found here, before Ray starts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from math import ceil, inf, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raygrad import asynchronous, config
from raygrad.algorithms.dp import Private
from raygrad.contract import Algorithm, Learns, Population, asks_first
from raygrad.data.placed import prepare_at
from raygrad.data.shards import Shards
from raygrad.driver import Driver, Executor, States
from raygrad.errors import BadInput
from raygrad.experiment import Experiment, Gangs, Where
from raygrad.files.remote import Url
from raygrad.files.states import refuse_if_too_large
from raygrad.flat import FlatModel, initial_module
from raygrad.gang import BUFFERS, Arrays, Gang, Phase
from raygrad.objectives import load_loss, load_metrics
from raygrad.regularizers import VALUE
from raygrad.rng import Purpose, rng
from raygrad.runner import HostSpec
from raygrad.samplers import Uniform
from raygrad.stacked import vmap_obstacle
from raygrad.stragglers import POLICIES, Buffered, Deadline, PartialWork, WaitForAll
from raygrad.talk import Done, ServerState

VMAP_STEP_FLOPS = 25e6
"""Up to this many floating-point operations per local step a CPU is bound by overhead, which vmap shares among
clients.
"""
VMAP_GANG_BYTES = 256 * 2**20
"""What the mini-batches of one vmapped gang may take."""
MOST_CLIENTS = {("loop", "cpu"): 8, ("loop", "cuda"): 4, ("vmap", "cpu"): 32, ("vmap", "cuda"): 64}
"""The largest gang by mode and device type."""
GANGS = 4
"""A cohort is cut into a multiple of this many gangs where it can be, so that 1, 2 or 4 hosts have equal shares."""
FEWEST_CLIENTS = {"loop": 1, "vmap": 4}
"""Where gangs would be smaller than this, half as many are cut: their fixed cost would exceed what more hosts save."""


@dataclass(frozen=True)
class Plan:
    """An experiment with nothing left to decide. `notes` are lines the user should see."""

    experiment: Experiment
    shards: Shards
    population: Population
    spec: HostSpec
    x: torch.Tensor  # [d], the initial model
    buffers: torch.Tensor | None  # [b]
    client_state: dict[str, torch.Tensor]
    state_bytes: int  # of all clients together
    notes: tuple[str, ...] = ()

    def driver(self, executor: Executor, states: States) -> Driver:
        """What plays the experiment's rounds."""
        e = self.experiment
        assert e.gangs.size != "auto"
        term = (VALUE,) if e.regularizer.weight else ()
        measures = ("loss", *(m.rsplit(":", 1)[-1] for m in e.metrics), *term)
        return Driver(
            e.algorithm, e.sampler, self.population, executor, states, e.seed, e.gangs.size, self.x.dtype,
            e.schedule.factor, e.local, measures, e.stragglers, e.devices, e.failures, self.spec.faults,
        )  # fmt: skip

    def start(self) -> ServerState:
        """The server's state before the first round."""
        e = self.experiment
        known = e.sampler.start(self.population) if isinstance(e.sampler, Learns) else {}
        return ServerState(e.algorithm.init(self.x, self.population), self.buffers, sampler=known)


def make_plan(experiment: Experiment, where: Where, shard_root: Path | Url, shards_name: str | None = None) -> Plan:
    """Prepare everything that can be prepared without hosts. Raises BadInput.

    `shards_name` is what a run recorded of its shards: in an object store they are then taken as they are.
    """
    experiment = experiment.pinned()
    shards = prepare_data(experiment, where, shard_root, shards_name)
    return plan_on(experiment, where, shards)


def prepare_data(
    experiment: Experiment, where: Where, shard_root: Path | Url, shards_name: str | None = None
) -> Shards:
    """The experiment's shards under `shard_root`, made if they are not there."""
    expected = experiment.partition.clients
    if expected:
        check_cohort(experiment, expected)
    return prepare_at(
        shard_root,
        experiment.data,
        experiment.partition,
        data_root=Path(where.data_root) if where.data_root else None,
        seed=experiment.seed,
        validation=experiment.evaluation.fraction,
        recorded=shards_name,
    )


def plan_on(experiment: Experiment, where: Where, shards: Shards) -> Plan:
    """The plan on prepared shards."""
    check_cohort(experiment, shards.clients)
    for name in ("algorithm", "local", "regularizer"):
        check_range(getattr(experiment, name), name, experiment.dtype)
    if experiment.evaluation.mode == "paper" and not shards.test_examples:
        raise BadInput("evaluation.mode is paper, but the data has no test set; use evaluation.mode=validation")
    experiment.tasks.check(shards.classes)
    examples = np.asarray(shards.examples, np.int64)
    weights = np.ones(len(examples)) if experiment.weights == "equal" else examples.astype(np.float64)
    population = Population(examples, weights, seed=experiment.seed)
    spec = HostSpec(
        experiment.model, experiment.loss, experiment.metrics, shards.address, shards.transform, tuple(shards.shape),
        shards.classes, experiment.local, experiment.seed, experiment.dtype, "loop", where.device_type,
        fetch_bytes=shards.bytes if shards.address != str(shards.path) else 0, regularizer=experiment.regularizer,
        tasks=experiment.tasks,
    )  # fmt: skip
    module = initial_module(spec.model, spec.shape, spec.classes, spec.seed)
    check_model(spec, module)
    model = FlatModel(module, getattr(torch, experiment.dtype))
    if experiment.init is not None:
        _load_weights(model, Path(experiment.init))
    buffers = model.buffers() if model.buffer_size else None
    if buffers is not None and experiment.buffers == "refuse":
        raise BadInput(
            "the model has buffers (running statistics, frozen parameters) and buffers is refuse; use average or local"
        )
    gangs, notes = choose_gangs(experiment, spec, model, examples)
    experiment = replace(experiment, gangs=gangs)
    experiment.devices.check(shards.clients)
    x = model.vector()
    experiment.algorithm.init(x, population)
    check_privacy(experiment)
    client_state = dict(experiment.algorithm.client_state(x))
    if buffers is not None and experiment.buffers == "local":
        client_state[BUFFERS] = buffers
    row = sum(t.nbytes for t in client_state.values())
    refuse_if_too_large(len(examples), row, where.state_limit_bytes)
    assert gangs.mode != "auto"
    spec = replace(spec, mode=gangs.mode)
    plan = Plan(experiment, shards, population, spec, x, buffers, client_state, row * len(examples), notes)
    if isinstance(experiment.stragglers, Buffered):
        asynchronous.check(
            plan.driver(_Nowhere(), _Templates({n: t.numpy() for n, t in client_state.items()})), plan.start()
        )
    return plan


class _Nowhere:
    """An executor for a driver that runs nothing."""

    def run(self, phase: Phase, gangs: Iterable[Gang]) -> Iterator[Done]:
        raise NotImplementedError


@dataclass(frozen=True)
class _Templates:
    """The states that clients have before their first round."""

    template: Arrays

    def get(self, clients: np.ndarray) -> Arrays:
        return {n: np.stack([a] * len(clients)) for n, a in self.template.items()}


def check_range(part: object, path: str, dtype: str) -> None:
    """Refuse numbers that the model's kind of numbers cannot hold."""
    most = torch.finfo(getattr(torch, dtype)).max
    for f in fields(part) if is_dataclass(part) else ():
        value = getattr(part, f.name)
        if isinstance(value, float) and most < abs(value) < inf:
            raise BadInput(f"{path}.{f.name} is {value:g}; numbers of {dtype} are at most {most:.2g}")
        check_range(value, f"{path}.{f.name}", dtype)


def check_privacy(experiment: Experiment) -> None:
    """Refuse differential privacy of clients that are drawn or dropped in ways that its accountant does not know."""
    algorithm: Algorithm | None = experiment.algorithm
    while algorithm is not None and not isinstance(algorithm, Private):
        algorithm = getattr(algorithm, config.INNER, None)
    drawn = isinstance(experiment.sampler, Uniform) and not experiment.sampler.unbiased
    if algorithm is not None and not (drawn and isinstance(experiment.stragglers, WaitForAll)):
        raise BadInput(
            "algorithm dp accounts for clients that are drawn uniformly without replacement and all waited for: it "
            "needs sampler=uniform and stragglers=wait"
        )


def check_cohort(experiment: Experiment, clients: int) -> None:
    """Refuse samplers and policies that ask for what cannot be with so many clients."""
    policy, cohort = experiment.stragglers, experiment.sampler.cohort
    experiment.membership.check(clients)
    fewest, most = experiment.membership.sizes(clients)
    there = "" if most == clients else " in the population at once"
    kind = f"stragglers={config.kind_of(policy, POLICIES)}"
    asked, answers = policy.asks(cohort), policy.answers(cohort)
    if isinstance(policy, Buffered) and (needed := asked + answers - 1) > fewest:
        raise BadInput(
            f"{kind} with concurrency {asked} and report_goal {answers} needs {needed} clients, so that whoever is "
            f"done can be replaced by another; there are only {fewest}; lower concurrency or report_goal"
        )
    if asked > most:
        who = "sampler.cohort is" if asked == cohort else f"{kind} asks"
        raise BadInput(f"{who} {asked}, but there are only {most} clients{there}; ask for at most {most} per round")
    if (candidates := getattr(experiment.sampler, "candidates", 0)) > most:
        raise BadInput(f"sampler.candidates is {candidates}, but there are only {most} clients{there}")
    policy.check(cohort)
    if isinstance(policy, Deadline) and policy.report_goal is not None and asks_first(experiment.sampler):
        raise BadInput(
            f"stragglers.report_goal is {policy.report_goal}, but the sampler {type(experiment.sampler).__name__} asks "
            "clients before it draws: those that answer first would be taken, whatever they answer; leave out "
            "report_goal, or use stragglers=over-select"
        )
    steps = experiment.local.steps
    if isinstance(policy, PartialWork) and steps is not None and policy.least > steps:
        raise BadInput(
            f"stragglers.least is {policy.least}, but clients make {steps} steps (local.steps); at most {steps}"
        )
    possible = min(answers, fewest)
    if experiment.failures.quorum > possible:
        raise BadInput(
            f"failures.quorum is {experiment.failures.quorum}, but a round can have no more than {possible} answers; "
            f"it must be <= {possible}"
        )
    if policy.needs_devices and not experiment.devices.modelled:
        raise BadInput(
            f"{kind} goes by the modelled clock, but devices is none; choose "
            "one, such as devices=lognormal, or stragglers=wait"
        )


def _made_up(spec: HostSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Two examples of the data's shape, as the model takes them."""
    dtype = getattr(torch, spec.dtype)
    x = rng(spec.seed, Purpose.CANARY).integers(1, 256, (2, *spec.shape), np.uint8)
    return spec.transform(x, dtype, None), torch.zeros(2, dtype=torch.int64 if spec.classes is not None else dtype)


def check_model(spec: HostSpec, module: nn.Module) -> None:
    """Refuse a model that cannot take the data, or whose output does not fit the labels."""
    module = module.to(getattr(torch, spec.dtype))
    x, y = _made_up(spec)
    name = type(spec.model).__name__
    module.eval()
    try:
        with torch.no_grad():
            out = module(x)
    except Exception as e:
        raise BadInput(
            f"model {name} cannot take examples of shape {tuple(spec.shape)}: {str(e).splitlines()[0]}"
        ) from e
    finally:
        module.train()
    if spec.loss == "cross_entropy":
        if spec.classes is None:
            raise BadInput(
                "loss cross_entropy needs class labels; this data has numbers as targets: use loss=squared_error"
            )
        if out.ndim != 2 or out.shape[1] < spec.classes:
            raise BadInput(
                f"model {name} gives outputs of shape {tuple(out.shape[1:])} per example; {spec.classes} classes need "
                f"({spec.classes},)"
            )
    if "accuracy" in spec.metrics and spec.classes is None:
        raise BadInput("metric accuracy needs class labels; this data has numbers as targets: set metrics=()")
    measures = {f"loss {spec.loss}": load_loss(spec.loss)}
    measures |= {f"metric {name}": f for name, f in load_metrics(spec.metrics).items()}
    for name, measure in measures.items():
        try:
            values = measure(out, y)
        except Exception as e:
            raise BadInput(
                f"{name} cannot take outputs of shape {tuple(out.shape[1:])}: {str(e).splitlines()[0]}"
            ) from e
        if values.shape != (2,):
            raise BadInput(
                f"{name} gave shape {tuple(values.shape)} for 2 examples; it must give one value per example"
            )


def _load_weights(model: FlatModel, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError) as e:
        raise BadInput(f"init: {path} is not a safetensors file ({e})") from e
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in found:
            raise BadInput(f"init: {path} has no tensor {name}; it holds {', '.join(sorted(found)[:6])}")
        if found[name].shape != tensor.shape:
            raise BadInput(
                f"init: {name} in {path} has shape {tuple(found[name].shape)}, the model needs {tuple(tensor.shape)}"
            )
        tensor.copy_(found[name])


def step_flops(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """About how many floating-point operations one example's forward and backward pass take.

    Three times the forward pass of the linear and convolutional layers; at least two per parameter.
    """
    total = 0

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        total += 2 * output.numel() * (weight.numel() // weight.shape[0])

    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    hooks = [m.register_forward_hook(count) for m in layers]
    module.eval()
    with torch.no_grad():
        module(torch.zeros((1, *shape), dtype=dtype))
    module.train()
    for hook in hooks:
        hook.remove()
    return 3.0 * max(total, 2 * sum(p.numel() for p in module.parameters()))


def choose_gangs(
    experiment: Experiment, spec: HostSpec, model: FlatModel, examples: np.ndarray
) -> tuple[Gangs, tuple[str, ...]]:
    """The gangs' mode and size: a fixed rule of model, K, B, cohort and device type, never a measurement."""
    local, asked = experiment.local, experiment.gangs
    policy = experiment.stragglers
    cohort = (policy.answers if isinstance(policy, Buffered) else policy.asks)(experiment.sampler.cohort)
    mode, notes = asked.mode, ()
    largest = int(examples.max())
    batch = largest if local.batch_size == "full" else local.batch_size
    seen = largest if local.batch_size == "full" else batch * local.steps_for(largest)
    bytes_each = seen * max(1, prod(spec.shape)) * model.dtype.itemsize
    if mode == "auto":
        small = spec.device == "cuda" or step_flops(model.module, spec.shape, model.dtype) * batch <= VMAP_STEP_FLOPS
        mode = "vmap" if small and cohort > 1 and 4 * bytes_each <= VMAP_GANG_BYTES else "loop"
    if mode == "vmap":
        if local.varies:
            obstacle = "local.epochs_to and local.batch_size_to give clients different numbers of steps"
        elif local.epochs is not None and len(set(examples.tolist())) > 1:
            obstacle = "local.epochs gives clients of different sizes different numbers of steps"
        else:
            obstacle = vmap_obstacle(model, *_made_up(spec), load_loss(spec.loss))
        if obstacle is not None:
            mode, notes = "loop", (f"clients run one after another: {obstacle}",)
    if asked.size != "auto":
        return Gangs(asked.size, mode), notes
    most = MOST_CLIENTS[mode, spec.device]
    if mode == "vmap":
        most = max(1, min(most, VMAP_GANG_BYTES // bytes_each))
    if cohort < GANGS:
        return Gangs(1, mode), notes
    count = GANGS if cohort >= GANGS * FEWEST_CLIENTS[mode] else GANGS // 2
    gangs = count * ceil(cohort / (count * most))
    return Gangs(ceil(cohort / gangs), mode), notes


def describe(plan: Plan) -> dict[str, Any]:
    """data.json: what the tables need to know of the data."""
    s = plan.shards
    return {
        "schema_version": 1, "id": s.id, "shards": s.path.name, "clients": s.clients, "classes": s.classes,
        "class_names": list(s.class_names), "shape": list(s.shape), "test_examples": s.test_examples,
        "parameters": plan.x.numel(), "client_state_bytes": plan.state_bytes,
    }  # fmt: skip
