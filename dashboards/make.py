"""Writes grafana/dashboards/*.json: python dashboards/make.py

The dashboards are described here, since a panel is two lines and its JSON is forty. A test holds the files to it.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
Panel = dict[str, Any]


def panel(
    title: str, unit: str, *queries: tuple[str, str], width: int = 8, kind: str = "timeseries", text: str = "",
    height: int = 7, **defaults: Any,
) -> Panel:  # fmt: skip
    """A panel. `queries` are an expression and its legend each; `unit` is Grafana's name of it."""
    lines: dict[str, Any] = {"drawStyle": "line", "showPoints": "never", "spanNulls": True, "lineWidth": 2}
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if kind == "stat":
        lines = {}
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name", "graphMode": "none"}
    if text == "name":
        options["textMode"] = "name"
    return {
        "title": title, "type": kind, "datasource": SOURCE, "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "custom": lines, **defaults}, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(queries)
        ],
    }  # fmt: skip


def stat(title: str, unit: str, *queries: tuple[str, str], **more: Any) -> Panel:
    """A number."""
    return panel(title, unit, *queries, **{"width": 4, "height": 4, "kind": "stat"} | more)


def dashboard(name: str, title: str, description: str, over: str, metric: str, panels: list[Panel]) -> None:
    """Write a dashboard whose variable `over` has the values of that label at `metric`."""
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        at = one["gridPos"]
        if x + at["w"] > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        one["id"], one["gridPos"] = number, {"x": x, "y": y, **at}
        x, tallest = x + at["w"], max(tallest, at["h"])
    found = {
        "uid": f"raygrad-{name}", "title": title, "description": description, "tags": ["raygrad"],
        "schemaVersion": 39, "version": 1, "editable": True, "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser", "graphTooltip": 1, "annotations": {"list": []},
        "links": [{
            "type": "dashboards", "tags": ["raygrad"], "title": "raygrad", "asDropdown": False, "keepTime": True,
            "includeVars": True,
        }],
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
            {
                "name": over, "type": "query", "label": over, "datasource": SOURCE, "refresh": 2, "sort": 1,
                "query": {"query": f"label_values({metric}, {over})", "refId": "A"}, "multi": True,
                "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
            },
        ]},
        "panels": panels,
    }  # fmt: skip
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


VALIDATION, FAILED = 'part="validation"', 'outcome!="answered"'
SWEEP = '{sweep=~"$sweep"}'


def of(metric: str, more: str = "") -> str:
    """The series of the chosen runs."""
    return f'ray_raygrad_{metric}{{run=~"$run"{", " if more else ""}{more}}}'


def rate(metric: str, by: str) -> str:
    """Growth per second."""
    return f"sum by ({by}) (rate({of(metric)}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str) -> str:
    """Of a histogram."""
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({of(metric + '_bucket')}[$__rate_interval])))"


STATE = f"max by (run, state) ({of('run_state_time_seconds')})"

RUN_PANELS = [
    stat("State", "short", (f"{STATE} == on (run) group_left () max by (run) ({STATE})", "{{run}} {{state}}"),
         text="name"),
    stat("Round", "short", (f"max by (run) ({of('round')})", "{{run}}")),
    stat("Rounds planned", "short", (f"max by (run) ({of('rounds_planned')})", "{{run}}")),
    stat("Since the last round", "s", (f"time() - max by (run) ({of('round_time_seconds')})", "{{run}}")),
    stat("Validation accuracy", "percentunit", (f"max by (run) ({of('accuracy', VALIDATION)})", "{{run}}")),
    stat(
        "Time left", "s",
        (
            f"(max by (run) ({of('rounds_planned')}) - max by (run) ({of('round')})) / {rate('rounds_total', 'run')}",
            "{{run}}",
        ),
    ),
    panel("Accuracy", "percentunit", (f"max by (run, part) ({of('accuracy')})", "{{run}} {{part}}")),
    panel("Loss", "short", (f"max by (run, part) ({of('loss')})", "{{run}} {{part}}")),
    panel("Rounds per minute", "short", (f"60 * {rate('rounds_total', 'run')}", "{{run}}")),
    panel("Alignment r(x)", "short", (f"max by (run) ({of('alignment_r')})", "{{run}}")),
    panel("Gradient diversity", "short", (f"max by (run) ({of('gradient_diversity')})", "{{run}}")),
    panel("Norm of the mean gradient", "short", (f"max by (run) ({of('gradient_norm')})", "{{run}}")),
    panel(
        "Clients per second, by what became of them", "short",
        (rate("clients_total", "run, outcome"), "{{run}} {{outcome}}"),
        (rate("clients_asked_total", "run"), "{{run}} asked"),
    ),
    panel(
        "Answers of a round, and the quorum", "short",
        (f"max by (run) ({of('clients_answered')})", "{{run}} answered"),
        (f"max by (run) ({of('quorum')})", "{{run}} quorum"),
        (f"max by (run) ({of('clients_present')})", "{{run}} present"),
    ),
    panel("Bytes charged per second", "Bps", (rate("charged_bytes_total", "run, direction"), "{{run}} {{direction}}")),
    panel(
        "Seconds of a round", "s",
        (quantile(0.5, "round_seconds", "run"), "{{run}} median"),
        (quantile(0.95, "round_seconds", "run"), "{{run}} 95 %"),
    ),
    panel(
        "Where a round's seconds go", "s",
        (
            f"{rate('phase_seconds_sum', 'run, phase')} / on (run) group_left () {rate('rounds_total', 'run')}",
            "{{run}} {{phase}}",
        ),
    ),
    panel("Communications per minute", "short", (f"60 * {rate('communications_total', 'run')}", "{{run}}")),
    panel("Modelled clock", "s", (f"max by (run) ({of('virtual_time_seconds')})", "{{run}}")),
]  # fmt: skip

EACH = f"max by (run, host) ({of('host_seconds_per_client')})"
HOST_PANELS = [
    stat("Hosts ready", "short", (f"sum by (run) ({of('hosts_ready')})", "{{run}}"), width=6),
    stat("Gangs in flight", "short", (f"sum by (run) ({of('gangs_in_flight')})", "{{run}}"), width=6),
    stat("Hosts lost", "short", (f"sum by (run) ({of('hosts_lost_total')})", "{{run}}"), width=6),
    stat("Busy", "percentunit", (f"avg by (run) ({of('host_busy_share')})", "{{run}}"), width=6),
    panel("How busy each host is", "percentunit", (f"max by (run, host) ({of('host_busy_share')})", "{{run}} {{host}}"),
          width=12, min=0, max=1),
    panel("Stragglers: seconds per client over the mean of all hosts", "short",
          (f"{EACH} / on (run) group_left () avg by (run) ({EACH})", "{{run}} {{host}}"), width=12, min=0),
    panel("Seconds per client", "s", (EACH, "{{run}} {{host}}"), width=12),
    panel("Gangs in flight and waiting", "short",
          (f"sum by (run) ({of('gangs_in_flight')})", "{{run}} in flight"),
          (f"sum by (run) ({of('gangs_waiting')})", "{{run}} waiting"),
          (f"sum by (run) ({of('hosts_ready')})", "{{run}} hosts"), width=12),
    panel("Gangs per second, by what became of the attempt", "short",
          (rate("gangs_total", "run, outcome"), "{{run}} {{outcome}}")),
    panel("Gangs per second, by host", "short", (rate("gangs_total", "run, host"), "{{run}} {{host}}")),
    panel("Attempts that came to nothing, by host", "short",
          (f"sum by (run, host, outcome) ({of('gangs_total', FAILED)})", "{{run}} {{host}} {{outcome}}")),
    panel("Hosts lost, by machine", "short",
          (f"sum by (run, machine) ({of('hosts_lost_total')})", "{{run}} {{machine}}"), width=12),
    panel("Clients whose work was repeated", "short",
          (f"sum by (run) ({of('clients_repeated_total')})", "{{run}}"), width=12),
]  # fmt: skip

TRIALS = f"ray_raygrad_trials{SWEEP}"
OVER = 'sum by (sweep) (ray_raygrad_trials{sweep=~"$sweep", state!~"waiting|running"})'
SWEEP_PANELS = [
    stat("Trials over", "percentunit",
         (f"{OVER} / max by (sweep) (ray_raygrad_trials_planned{SWEEP})", "{{sweep}}"), width=6),
    stat("Trials planned", "short", (f"max by (sweep) (ray_raygrad_trials_planned{SWEEP})", "{{sweep}}"), width=6),
    stat("Running", "short",
         ('max by (sweep) (ray_raygrad_trials{sweep=~"$sweep", state="running"})', "{{sweep}}"), width=6),
    stat("Best so far", "short", (f"max by (sweep) (ray_raygrad_trial_best{SWEEP})", "{{sweep}}"), width=6),
    panel("Trials by state", "short", (f"max by (sweep, state) ({TRIALS})", "{{sweep}} {{state}}"), width=12, height=9),
    panel("The best value", "short", (f"max by (sweep) (ray_raygrad_trial_best{SWEEP})", "{{sweep}}"),
          width=12, height=9),
    panel("Rounds per minute, all trials together", "short",
          ('60 * sum (rate(ray_raygrad_rounds_total{run="trials"}[$__rate_interval]))', "rounds"), width=12),
    panel("Hosts of trials", "short", ('sum (ray_raygrad_hosts_ready{run="trials"})', "hosts"), width=12),
]  # fmt: skip


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    dashboard("run", "raygrad: a run", "How far a run is, how good, and what became of its clients.", "run",
              "ray_raygrad_round", RUN_PANELS)  # fmt: skip
    dashboard("hosts", "raygrad: hosts and stragglers", "Who is at work, who is slow, and who was lost.", "run",
              "ray_raygrad_round", HOST_PANELS)  # fmt: skip
    dashboard("sweep", "raygrad: a sweep", "How far a sweep is, and the best value.", "sweep",
              "ray_raygrad_trials_planned", SWEEP_PANELS)  # fmt: skip


if __name__ == "__main__":
    main()
