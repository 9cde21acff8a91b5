"""What dashboards/ asks Prometheus."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
PROMETHEUS, ALERTS = DASHBOARDS / "prometheus" / "prometheus.yml", DASHBOARDS / "prometheus" / "alerts.yml"
FILES = sorted((DASHBOARDS / "grafana" / "dashboards").glob("*.json"))


def hurried() -> str:
    """The alerts under names of their own, with seconds in the place of minutes, so that a test can await them."""
    text = ALERTS.read_text()
    for minutes, seconds in (("for: 1m", "for: 1s"), ("for: 2m", "for: 2s"), ("> 120 + 10", "> 2 + 10")):
        assert minutes in text
        text = text.replace(minutes, seconds)
    return text.replace("- name: raygrad", "- name: hurried").replace("- alert: Raygrad", "- alert: Hurried")


def panels() -> dict[str, str]:
    """Every query of every panel: "dashboard: panel: its letter" -> expression."""
    return {
        f"{file.stem}: {panel['title']}: {target['refId']}": target["expr"]
        for file in FILES
        for panel in json.loads(file.read_text())["panels"]
        for target in panel["targets"]
    }


def bound(expression: str) -> str:
    """With Grafana's variables given values."""
    return re.sub(r"\$(run|sweep)\b", ".*", expression).replace("$__rate_interval", "1m")


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\bray_\w+", re.sub(r'"[^"]*"', "", expression)))
