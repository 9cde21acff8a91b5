"""The metrics of a run and of a sweep, for Prometheus: the one table of them, and what each event adds to them.

`METRICS` is data; docs/metrics.md is made of it. `raygrad.onray.metrics` exports readings through Ray, whose exporter
puts `ray_` before the names. Labels have few values: never a round, a client or a run's id. Metrics change no bit of a
run, and a run without Ray has none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from raygrad.alignment import Alignment
from raygrad.errors import BelowQuorum, Diverged, Stopped
from raygrad.talk import ABSENT, ANSWERED, DAMAGED, KILLER, LATE, LEFT, REJECTED, STALE, UNAVAILABLE, Operation, Played

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "ray_"
"""What Ray's exporter puts before every name."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""The upper ends of the buckets of histograms."""
STATES = ("running", "finished", "stopped", "diverged", "below_quorum", "failed")
"""Of a run."""
TRIAL_STATES = ("waiting", "running", "earlier", "finished", "time", "stopped", "diverged", "failed", "waits")
"""Of a sweep's trials; `earlier`: over before this process, `waits`: a member of a population that will go on."""


@dataclass(frozen=True)
class Metric:
    """One row of the table. `labels` come after `run`, or after `sweep` if it is a sweep's."""

    kind: Kind
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    owner: Literal["run", "sweep"] = "run"

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Its owner's name and the others."""
        return (self.owner, *self.labels)


@dataclass(frozen=True)
class Reading:
    """A value of a metric: what a gauge is, what a counter grows by, or what a histogram has seen."""

    metric: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


METRICS: dict[str, Metric] = {
    # how far
    "raygrad_round": Metric("gauge", "rounds", "index of the newest round"),
    "raygrad_rounds_planned": Metric("gauge", "rounds", "rounds that the run shall have"),
    "raygrad_rounds_total": Metric("counter", "rounds", "rounds played by this process"),
    "raygrad_round_time_seconds": Metric(
        "gauge", "seconds", "when the newest round ended, since 1970; before the first one, when the run began"
    ),
    "raygrad_run_state_time_seconds": Metric(
        "gauge", "seconds",
        "when the run came into this state, since 1970; the newest is its state: " + ", ".join(STATES), ("state",),
    ),
    "raygrad_virtual_time_seconds": Metric("gauge", "seconds", "the modelled clock; 0 where no devices are modelled"),
    # clients
    "raygrad_clients_present": Metric("gauge", "clients", "clients of the population in the newest round"),
    "raygrad_clients_asked_total": Metric("counter", "clients", "clients that were given work"),
    "raygrad_clients_total": Metric(
        "counter", "clients", "what became of them: answered, late, left, failed or rejected", ("outcome",)
    ),
    "raygrad_clients_repeated_total": Metric(
        "counter", "clients", "clients whose work was started again, since a host was lost or late"
    ),
    "raygrad_clients_answered": Metric("gauge", "clients", "answers that count in the newest round"),
    "raygrad_quorum": Metric("gauge", "clients", "answers without which a round ends the run"),
    # time
    "raygrad_round_seconds": Metric("histogram", "seconds", "wall time of a round"),
    "raygrad_phase_seconds": Metric(
        "histogram", "seconds",
        "wall time of a phase of a round, by the client method that ran; `measure` is evaluation and probe, `save` is "
        "tables and checkpoints", ("phase",),
    ),
    # communication
    "raygrad_communications_total": Metric("counter", "communications", "communications charged"),
    "raygrad_charged_bytes_total": Metric("counter", "bytes", "bytes charged, down or up", ("direction",)),
    # how good
    "raygrad_accuracy": Metric("gauge", "fraction", "accuracy, validation or test", ("part",)),
    "raygrad_loss": Metric("gauge", "nats", "loss, of training, validation or test", ("part",)),
    "raygrad_alignment_r": Metric("gauge", "squared norm", "r(x) of the newest probe"),
    "raygrad_gradient_diversity": Metric("gauge", "ratio", "gradient diversity times the clients that were probed"),
    "raygrad_gradient_norm": Metric("gauge", "norm", "norm of the mean gradient at the newest probe"),
    # hosts
    "raygrad_hosts_ready": Metric("gauge", "hosts", "hosts that said hello"),
    "raygrad_hosts_lost_total": Metric(
        "counter", "hosts", "hosts that died or hung, or could not start (`unknown`)", ("machine",)
    ),
    "raygrad_host_busy_share": Metric(
        "gauge", "fraction", "of the newest round, how much of it a host was at work", ("host",)
    ),
    "raygrad_host_seconds_per_client": Metric(
        "gauge", "seconds", "wall time per client, phases together, in a host's newest round", ("host",)
    ),
    "raygrad_gangs_total": Metric(
        "counter", "gangs",
        "attempts at gangs: answered, superseded (another was faster), lost or hung", ("host", "outcome"),
    ),
    "raygrad_gangs_in_flight": Metric("gauge", "gangs", "gangs that are at hosts now"),
    "raygrad_gangs_waiting": Metric("gauge", "gangs", "gangs that were read and wait for a host"),
    # sweeps
    "raygrad_trials": Metric(
        "gauge", "trials", "trials by state: " + ", ".join(TRIAL_STATES), ("state",), owner="sweep"
    ),
    "raygrad_trials_planned": Metric("gauge", "trials", "trials of this stretch of the sweep", owner="sweep"),
    "raygrad_trial_best": Metric("gauge", "the sweep's", "the best trial's mean over its seeds", owner="sweep"),
}  # fmt: skip
"""Every metric by its name, without `ray_`."""

_OUTCOMES = {
    "answered": (ANSWERED,), "late": (LATE, STALE), "left": (LEFT, UNAVAILABLE), "failed": (DAMAGED, KILLER, ABSENT),
    "rejected": (REJECTED,),
}  # fmt: skip


class Slots:
    """Names for hosts that stay few: "machine/0", "machine/1" and so on, over all the processes that come and go.

    A new process takes the first place on its machine whose holder did no work in this round.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}  # of "machine:process"

    def update(self, hosts: Sequence[str]) -> None:
        """These `hosts` were at work in a round."""
        for host in hosts:
            if host in self.names:
                continue
            machine = host.partition(":")[0]
            held = {n for h, n in self.names.items() if h in hosts}
            place = next(n for i in range(len(hosts) + 1) if (n := f"{machine}/{i}") not in held)
            self.names = {h: n for h, n in self.names.items() if n != place} | {host: place}


def at_start(done: int, planned: int, quorum: int, now_s: float) -> Iterator[Reading]:
    """A process goes on with a run of which `done` rounds are played. `now_s` is the time since 1970."""
    yield Reading("raygrad_round", done)
    yield Reading("raygrad_rounds_planned", planned)
    yield Reading("raygrad_quorum", quorum)
    yield Reading("raygrad_round_time_seconds", now_s)
    yield in_state("running", now_s)


def in_state(state: str, now_s: float) -> Reading:
    """The run comes into a state."""
    return Reading("raygrad_run_state_time_seconds", now_s, {"state": state})


def state_after(error: BaseException) -> str:
    """The state of a run that ended with an error, or because its caller left the loop."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, BelowQuorum):
        return "below_quorum"
    left = isinstance(error, Stopped | GeneratorExit | KeyboardInterrupt | SystemExit)
    return "stopped" if left else "failed"


def of_round(
    played: Played,
    present: int,
    validation: Mapping[str, float] | None,
    test: Mapping[str, float] | None,
    alignment: Alignment | None,
    measure_s: float,
    save_s: float,
    slots: Slots,
    now_s: float,
) -> Iterator[Reading]:
    """A round was played. `present` clients were there; `slots` names the hosts."""
    talk = played.talk
    yield Reading("raygrad_round", played.index)
    yield Reading("raygrad_rounds_total", 1)
    yield Reading("raygrad_round_time_seconds", now_s)
    yield Reading("raygrad_virtual_time_seconds", played.state.clock_s)
    yield Reading("raygrad_clients_present", present)
    yield Reading("raygrad_clients_asked_total", talk.asked)
    outcomes = Counter(talk.fates.outcome.tolist())
    for name, which in _OUTCOMES.items():
        yield Reading("raygrad_clients_total", sum(outcomes[o] for o in which), {"outcome": name})
    yield Reading("raygrad_clients_answered", int(talk.inside.sum()))
    yield Reading("raygrad_round_seconds", played.wall_s)
    yield Reading("raygrad_phase_seconds", measure_s, {"phase": "measure"})
    yield Reading("raygrad_phase_seconds", save_s, {"phase": "save"})
    yield Reading("raygrad_communications_total", talk.communications)
    yield Reading("raygrad_charged_bytes_total", talk.bytes_down, {"direction": "down"})
    yield Reading("raygrad_charged_bytes_total", talk.bytes_up, {"direction": "up"})
    yield from judged("train", {} if played.train_loss is None else {"loss": played.train_loss})
    yield from judged("validation", validation or {})
    yield from judged("test", test or {})
    if alignment is not None:
        yield Reading("raygrad_alignment_r", alignment.r)
        yield Reading("raygrad_gradient_diversity", alignment.diversity)
        yield Reading("raygrad_gradient_norm", alignment.gradient_norm)
    yield from _of_operations(talk.operations, played.wall_s, slots)


def judged(part: str, values: Mapping[str, float]) -> Iterator[Reading]:
    """Loss and accuracy on a part."""
    for name in ("loss", "accuracy"):
        if name in values:
            yield Reading(f"raygrad_{name}", values[name], {"part": part})


def _of_operations(operations: Sequence[Operation], wall_s: float, slots: Slots) -> Iterator[Reading]:
    """What a round's attempts at gangs say of its phases and hosts."""
    phases: dict[int, list[Operation]] = {}
    hosts: dict[str, list[Operation]] = {}
    gangs: dict[tuple[str, str], int] = {}
    slots.update(list(dict.fromkeys(o.host for o in operations)))
    for o in operations:
        phases.setdefault(o.phase, []).append(o)
        hosts.setdefault(slots.names[o.host], []).append(o)
        key = (slots.names[o.host], o.outcome.partition(" ")[0].rstrip(":"))
        gangs[key] = gangs.get(key, 0) + 1
    for some in phases.values():
        seconds = max(o.start_s + o.wall_s for o in some) - min(o.start_s for o in some)
        yield Reading("raygrad_phase_seconds", seconds, {"phase": some[0].work})
    for host in slots.names.values():
        busy_s = sum(o.wall_s for o in hosts.get(host, ()) if o.outcome == "answered")
        clients = sum(o.clients for o in hosts.get(host, ()) if o.outcome == "answered")
        yield Reading("raygrad_host_busy_share", min(1.0, busy_s / wall_s) if wall_s > 0 else 0.0, {"host": host})
        if clients:
            yield Reading("raygrad_host_seconds_per_client", busy_s / clients, {"host": host})
    for (host, outcome), count in gangs.items():
        yield Reading("raygrad_gangs_total", count, {"host": host, "outcome": outcome})
    yield Reading("raygrad_clients_repeated_total", sum(o.clients for o in operations if o.attempt > 1))


def of_sweep(planned: int, states: Mapping[str, int], best: float | None) -> Iterator[Reading]:
    """How far a sweep is: trials by state, and the best value."""
    yield Reading("raygrad_trials_planned", planned)
    for state in TRIAL_STATES:
        yield Reading("raygrad_trials", states.get(state, 0), {"state": state})
    if best is not None:
        yield Reading("raygrad_trial_best", best)


def exported(reading: Reading) -> bool:
    """Whether there is something to export: a gauge's or histogram's finite value, or by what a counter grows."""
    return isfinite(reading.value) and (METRICS[reading.metric].kind != "counter" or reading.value > 0)


def table() -> str:
    """The table of docs/metrics.md."""
    rows = [
        f"| `{PREFIX}{name}` | {m.kind} | {m.unit} | {', '.join(f'`{label}`' for label in m.all_labels)} "
        f"| {m.description} |"
        for name, m in METRICS.items()
    ]
    return "\n".join(["| metric | kind | unit | labels | what |", "|---|---|---|---|---|", *rows])
