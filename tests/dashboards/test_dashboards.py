"""The files of dashboards/ name metrics that there are; a real Prometheus reads real runs with them."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from queries import ALERTS, DASHBOARDS, FILES, PROMETHEUS, ROOT, bound, metrics_in, panels

from raygrad.metrics import METRICS, PREFIX, STATES, TRIAL_STATES, Metric

HERE = Path(__file__).parent
Require = Callable[[str], dict[str, str]]
RAYS_OWN = {"SessionName", "WorkerId", "le"}
YAML = sorted([*DASHBOARDS.rglob("*.yml"), *DASHBOARDS.rglob("*.yaml")])


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]


def expressions() -> dict[str, str]:
    """Every expression of dashboards and alerts, by where it is."""
    return panels() | {r["alert"]: r["expr"] for r in rules()}


def metric_of(series: str) -> Metric | None:
    """The metric of a series' name, None if there is none."""
    name = series.removeprefix(PREFIX)
    if name in METRICS:
        return METRICS[name] if METRICS[name].kind != "histogram" else None
    found = METRICS.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return found if found is not None and found.kind == "histogram" else None


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", sorted(expressions()))
def test_expressions_name_metrics_and_labels_that_there_are(where: str) -> None:
    expression = bound(expressions()[where])
    named = metrics_in(expression)
    assert named and all(metric_of(n) for n in named), f"{where} names {[n for n in named if not metric_of(n)]}"
    labels = {label for n in named for label in metric_of(n).all_labels}  # type: ignore[union-attr]
    used = {
        label for group in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expression) for label in group.split(", ")
    }
    used |= set(re.findall(r"(\w+)\s*[=!]~?\s*\"", expression))
    assert used <= labels | RAYS_OWN


def test_values_of_labels_are_those_that_there_are() -> None:
    for where, expression in expressions().items():
        for state in re.findall(r'state[=!]~?"([^"]*)"', expression):
            known = TRIAL_STATES if "raygrad_trials" in expression else STATES
            assert set(state.split("|")) <= set(known), where


def test_every_metric_is_shown() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", n) for e in expressions().values() for n in metrics_in(e)}
    assert {PREFIX + n for n in METRICS} <= shown


def test_dashboards_are_what_make_writes(tmp_path: Path) -> None:
    made = runpy.run_path(str(DASHBOARDS / "make.py"))
    made["main"].__globals__["FOLDER"] = tmp_path
    made["main"]()
    written = {f.name: f.read_text() for f in tmp_path.glob("*.json")}
    assert written == {f.name: f.read_text() for f in FILES}, "run: python dashboards/make.py"


def test_dashboards_are_sound() -> None:
    found = [json.loads(f.read_text()) for f in FILES]
    assert {d["uid"] for d in found} == {"raygrad-run", "raygrad-hosts", "raygrad-sweep"}
    for d in found:
        cells = [
            (x, y)
            for p in d["panels"]
            for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
            for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, f"panels of {d['title']} overlap"
        assert len({p["id"] for p in d["panels"]}) == len(d["panels"])
        variables = {v["name"] for v in d["templating"]["list"]}
        asked = json.dumps([p["targets"] for p in d["panels"]])
        assert set(re.findall(r"\$\{?(\w+)", asked)) <= variables | {"__rate_interval"}
        for variable in d["templating"]["list"][1:]:
            assert metric_of(re.findall(r"label_values\((\w+),", variable["query"]["query"])[0])


def test_legends_name_labels_that_are_left() -> None:
    """What a legend names is among the labels by which its query groups."""
    for file in FILES:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                left = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
                assert named <= left, panel["title"]


@pytest.mark.parametrize("path", YAML, ids=lambda p: p.relative_to(DASHBOARDS).as_posix())
def test_yaml_is_valid(path: Path) -> None:
    assert all(isinstance(d, dict) for d in yaml.safe_load_all(path.read_text()))


def test_what_is_started_listens_on_loopback() -> None:
    services = yaml.safe_load((DASHBOARDS / "compose.yml").read_text())["services"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    for service in services.values():
        assert not service.get("ports") and not service["image"].endswith("latest") and ":" in service["image"]
        mounted = [v.partition(":")[0] for v in service["volumes"] if v.startswith("./")]
        assert mounted and all((DASHBOARDS / m).is_dir() for m in mounted)
    provisioning = DASHBOARDS / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/raygrad.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    (discovery,) = job["file_sd_configs"][0]["files"]
    assert any(v.endswith(f":{Path(discovery).parent}:ro") for v in services["prometheus"]["volumes"])


def test_kubernetes_reads_the_pods_that_there_are() -> None:
    monitor, policy = yaml.safe_load_all((DASHBOARDS / "kuberay/podmonitor.yaml").read_text())
    cluster = yaml.safe_load((ROOT / "cluster/kuberay/cluster.yaml").read_text())
    selected = {"ray.io/cluster": cluster["metadata"]["name"]}
    assert monitor["spec"]["selector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"] == selected
    head, *workers = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in (head, *workers):
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert ports[endpoint["port"]] == policy["spec"]["ingress"][0]["ports"][0]["port"]


def test_it_starts_with_few_commands() -> None:
    for block in re.findall(r"^```\n(.*?)^```", (DASHBOARDS / "README.md").read_text(), re.M | re.S):
        assert len(block.splitlines()) <= 10
    for target in re.findall(r"\]\(([^)#]+)\)", (DASHBOARDS / "README.md").read_text()):
        assert (DASHBOARDS / target).exists()


# --- Prometheus ------------------------------------------------------------------------------------------------------


def promtool(require: Require, *words: str) -> None:
    done = subprocess.run([require("prometheus")["promtool"], *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_valid(require: Require) -> None:
    promtool(require, "check", "rules", str(ALERTS))
    promtool(require, "check", "config", "--syntax-only", str(PROMETHEUS))


def test_alerts_fire_when_they_should(require: Require) -> None:
    promtool(require, "test", "rules", str(HERE / "alerts_test.yml"))


def test_every_alert_has_a_time_at_which_it_fires() -> None:
    tests = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    cases = [(c["alertname"], bool(c["exp_alerts"])) for t in tests for c in t["alert_rule_test"]]
    for rule in rules():
        assert {(rule["alert"], True), (rule["alert"], False)} <= set(cases)


@pytest.fixture(scope="module")
def scraped(require: Require, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real Prometheus has read of real runs, hosts that die, and a sweep."""
    program = require("prometheus")["prometheus"]
    folder = tmp_path_factory.mktemp("scraped")
    short = Path("/tmp") / f"rgd{os.getpid()}"  # the paths of sockets have at most 107 bytes
    environment = {**os.environ, "RAY_TMPDIR": str(short), "PYTHONPATH": str(ROOT)}
    try:
        short.mkdir()
        done = subprocess.run(
            [sys.executable, HERE / "scraped.py", folder, program], env=environment, capture_output=True, text=True,
            timeout=400,
        )  # fmt: skip
    finally:
        subprocess.run(["rm", "-rf", short], check=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_query_parses(scraped: dict[str, Any]) -> None:
    assert scraped["refused"] == []


def test_every_query_has_data(scraped: dict[str, Any]) -> None:
    assert scraped["without_data"] == []


def test_every_metric_arrives_with_its_labels(scraped: dict[str, Any]) -> None:
    """And has no others but those that Ray and Prometheus add; the names of hosts stay few."""
    added = {
        "__name__", "Component", "NodeAddress", "SessionName", "Version", "WorkerId", "instance", "job",
        "otel_scope_name", "le",
    }  # fmt: skip
    arrived: dict[str, set[str]] = {}
    for series in scraped["series"]:
        name = re.sub(r"_(bucket|sum|count)$", "", series["__name__"])
        arrived.setdefault(name, set()).update(set(series) - added)
    assert arrived == {PREFIX + n: set(m.all_labels) for n, m in METRICS.items()}
    hosts = {s["host"] for s in scraped["series"] if "host" in s}
    assert len(hosts) <= 3, hosts


def test_alerts_fire_in_real_faults(scraped: dict[str, Any]) -> None:
    """Hosts die again and again, clients leave until the quorum is missed, and a step size is absurd; a process is
    killed, a loop does not go on, and a loss rises while only as many answer as must. Each is said of its run.
    """
    assert scraped["raised"] == ["BelowQuorum", "Diverged"]
    fired: dict[str, set[str]] = {}
    for name, run in scraped["fired"]:
        fired.setdefault(name, set()).add(run)
    culprits = {
        "HostFlaps": "seen", "RunLost": "lost", "BelowQuorum": "short", "RunDiverged": "wild", "RunStalls": "stalls",
        "NearQuorum": "worse", "LossRises": "worse",
    }  # fmt: skip
    assert set(culprits) == {rule["alert"].removeprefix("Raygrad") for rule in rules()}
    for alert, run in culprits.items():
        assert run in fired[f"Hurried{alert}"], fired
    for alert in ("HostFlaps", "BelowQuorum", "RunDiverged"):  # those that do not wait
        assert fired.pop(f"Raygrad{alert}") == {culprits[alert]}
    assert not any(alert.startswith("Raygrad") for alert in fired)
