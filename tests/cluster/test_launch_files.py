"""The files of cluster/ keep the rules of launch_rules, each rule can fail, and Ray accepts what is meant for it."""

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from launch_rules import CLUSTER, MANIFESTS, RAY_UP, ROOT, RULES, Files, merged

CRDS = "RAYGRAD_KUBERAY_CRDS"


@pytest.fixture(scope="module")
def files() -> Files:
    return Files.read()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule_holds(rule: Any, files: Files) -> None:
    assert rule(files) == []


CLUSTER_YAML, REDIS, NETWORK = "kuberay/cluster.yaml", "kuberay/redis.yaml", "kuberay/network.yaml"
BROKEN = [
    ("tokens_are_on", "aws.yaml", "export RAY_AUTH_MODE=token; ray start", "ray start"),
    ("tokens_are_on", "own.yaml", "export RAY_AUTH_MODE=token;\n", "export RAY_AUTH_MODE=disabled;\n"),
    ("tokens_are_on", "gcp.yaml", "  ~/.ray/auth_token: ", "  ~/elsewhere: "),
    ("tokens_are_on", "setup.sh", "export RAY_AUTH_MODE=token", ""),
    ("tokens_are_on", CLUSTER_YAML, "authOptions: {mode: token}", "authOptions: {mode: disabled}"),
    ("tokens_are_on", CLUSTER_YAML, "authOptions: {mode: token}", ""),
    ("tokens_are_on", "compose.yaml", "RAY_AUTH_MODE: token", "RAY_AUTH_MODE: disabled"),
    ("tokens_are_on", "compose.yaml", "  secrets: [ray_token]\n", ""),
    ("tokens_are_on", "compose.yaml", "{file: ", "{environment: "),
    ("tokens_are_on", "Dockerfile", "RAY_AUTH_MODE=token ", ""),
    ("nothing_is_published", CLUSTER_YAML, "serviceType: ClusterIP", "serviceType: LoadBalancer"),
    ("nothing_is_published", CLUSTER_YAML, "serviceType: ClusterIP", "enableIngress: true"),
    ("nothing_is_published", CLUSTER_YAML, "containerPort: 8265}", "containerPort: 8265, hostPort: 8265}"),
    ("nothing_is_published", CLUSTER_YAML, "restartPolicy: Never", "hostNetwork: true"),
    ("nothing_is_published", REDIS, "type: ClusterIP", "type: NodePort"),
    ("nothing_is_published", "compose.yaml", "127.0.0.1:8265:8265", "8265:8265"),
    ("nothing_is_published", "compose.yaml", "init: true", "network_mode: host"),
    ("nothing_is_published", "aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
    ("nothing_is_published", "own.yaml", " --dashboard-host=127.0.0.1", ""),
    ("nothing_is_published", "aws-stack.yaml", "CidrIp: !Ref SshFrom", "CidrIp: 0.0.0.0/0"),
    ("nothing_is_published", "gcp-setup.sh", "10.128.0.0/9", "0.0.0.0/0"),
    ("pods_admit_only_who_is_named", NETWORK, "ray.io/cluster: raygrad}}\n  policyTypes", "a: b}}\n  policyTypes"),
    ("pods_admit_only_who_is_named", NETWORK, "policyTypes: [Ingress]", "policyTypes: [Egress]"),
    ("pods_admit_only_who_is_named", NETWORK, "podSelector: {matchLabels: {ray.io/originated-from-crd: RayJob}}",
     "ipBlock: {cidr: 10.0.0.0/8}"),
    ("pods_admit_only_who_is_named", NETWORK, "podSelector: {matchLabels: {ray.io/originated-from-crd: RayJob}}",
     "podSelector: {}"),
    ("pods_admit_only_who_is_named", NETWORK, "      ports:\n        - {protocol: TCP, port: 8265}\n", ""),
    ("pods_admit_only_who_is_named", REDIS,
     "    - from:\n        - podSelector: {matchLabels: {ray.io/cluster: raygrad}}\n      ports", "    - ports"),
    ("pods_admit_only_who_is_named", REDIS, "  podSelector: {matchLabels: {app: raygrad-redis}}", "  podSelector: {}"),
    ("shared_memory_is_sized", CLUSTER_YAML, ", sizeLimit: 5Gi", ""),
    ("shared_memory_is_sized", CLUSTER_YAML, "sizeLimit: 10Gi", "sizeLimit: 64Mi"),
    ("shared_memory_is_sized", CLUSTER_YAML, "sizeLimit: 3Gi", "sizeLimit: 8Gi"),
    ("shared_memory_is_sized", CLUSTER_YAML, "{medium: Memory, ", "{"),
    ("shared_memory_is_sized", CLUSTER_YAML, "mountPath: /dev/shm", "mountPath: /shm"),
    ("shared_memory_is_sized", "compose.yaml", "shm_size: 1200mb", "shm_size: 64mb"),
    ("shared_memory_is_sized", "compose.yaml", "    shm_size: 1gb\n", ""),
    ("limits_equal_requests", CLUSTER_YAML, 'limits: {cpu: "4", memory: 16Gi}', 'limits: {cpu: "8", memory: 16Gi}'),
    ("limits_equal_requests", CLUSTER_YAML, "limits: {cpu: 500m, memory: 1Gi}", "limits: {cpu: 500m, memory: 2Gi}"),
    ("limits_equal_requests", CLUSTER_YAML, "limits: {cpu: \"8\", memory: 32Gi, nvidia.com/gpu: \"1\"}", "limits: {}"),
    ("limits_equal_requests", REDIS, "limits: {cpu: 250m, memory: 512Mi}", "limits: {memory: 512Mi}"),
    ("the_head_takes_no_work", "aws.yaml", "resources: {CPU: 0, GPU: 0}", "resources: {CPU: 4, GPU: 0}"),
    ("the_head_takes_no_work", "own.yaml", "--num-cpus=0 ", ""),
    ("the_head_takes_no_work", CLUSTER_YAML, 'num-cpus: "0", ', ""),
    ("the_head_takes_no_work", "compose.yaml", "--num-cpus=0 ", ""),
    ("the_operator_takes_them", CLUSTER_YAML, 'num-cpus: "0"', "num-cpus: 0"),
    ("the_operator_takes_them", CLUSTER_YAML, "replicas: 1\n", "replicas: 9\n"),
    ("the_operator_takes_them", CLUSTER_YAML, "restartPolicy: Never", "restartPolicy: Always"),
    ("the_operator_takes_them", CLUSTER_YAML, "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 10"),
    ("the_operator_takes_them", CLUSTER_YAML, "ray.io/v1", "ray.io/v1alpha1"),
    ("the_operator_takes_them", CLUSTER_YAML, "version: v2", "version: v1"),
    ("the_operator_takes_them", CLUSTER_YAML, "name: RAY_USAGE_STATS_ENABLED", "name: RAY_enable_autoscaler_v2"),
    ("the_operator_takes_them", CLUSTER_YAML, "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false"),
    ("the_operator_takes_them", "kuberay/job.yaml", "ray.io/cluster: raygrad", "ray.io/cluster: other"),
    ("the_operator_takes_them", "kuberay/job.yaml", "submitterConfig:", "backoffLimit: 1\n  submitterConfig:"),
    ("the_operator_takes_them", "kuberay/job.yaml", "name: raygrad-sweep", "name: Raygrad_sweep"),
    ("the_operator_takes_them", "kuberay/job.yaml", "RAY_JOB_STOP_WAIT_TIME_S", "OTHER"),
    ("the_bill_is_bounded", "aws.yaml", "InstanceMarketOptions: {MarketType: spot}", ""),
    ("the_bill_is_bounded", "gcp.yaml", "scheduling: *spot", ""),
    ("the_bill_is_bounded", "aws.yaml", "InstanceType: m7i.xlarge", "InstanceMarketOptions: {MarketType: spot}"),
    ("the_bill_is_bounded", "aws.yaml", "idle_timeout_minutes: 5", ""),
    ("the_bill_is_bounded", "gcp.yaml", "max_workers: 12", "max_workers: 1000"),
    ("the_bill_is_bounded", "aws.yaml", "max_workers: 4", "max_workers: 400"),
    ("the_bill_is_bounded", "gcp.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true"),
    ("the_bill_is_bounded", CLUSTER_YAML, "maxReplicas: 4", "maxReplicas: 2147483647"),
    ("the_bill_is_bounded", CLUSTER_YAML, "idleTimeoutSeconds: 300", "idleTimeoutSeconds: 5"),
    ("the_bill_is_bounded", "kuberay/job.yaml", "activeDeadlineSeconds: 86400", ""),
    ("nobody_is_root", CLUSTER_YAML, "runAsNonRoot: true, ", ""),
    ("nobody_is_root", CLUSTER_YAML, "runAsUser: 1000", "runAsUser: 0"),
    ("nobody_is_root", REDIS, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
    ("nobody_is_root", "compose.yaml", "  cap_drop: [ALL]\n", ""),
    ("nobody_is_root", "compose.yaml", "user: ${RAYGRAD_UID:-1000}", "user: root"),
    ("nobody_is_root", "Dockerfile", "USER ${UID}", "USER root"),
    ("nobody_is_root", "Dockerfile", "USER ${UID}\n", ""),
    ("versions_are_equal", "constraints.txt", "ray==2.60.0", "ray==2.61.0"),
    ("versions_are_equal", "constraints.txt", "ray==2.60.0", "ray>=2.60.0"),
    ("versions_are_equal", "constraints.txt", "torch==", "# torch=="),
    ("versions_are_equal", "constraints.txt", "boto3==", "# boto3=="),
    ("versions_are_equal", CLUSTER_YAML, 'rayVersion: "2.60.0"', 'rayVersion: "2.59.0"'),
    ("versions_are_equal", CLUSTER_YAML, "image: raygrad:0.1.0-ray2.60.0", "image: rayproject/ray:2.60.0"),
    ("versions_are_equal", "compose.yaml", "raygrad:0.1.0", "raygrad:0.0.9"),
    ("versions_are_equal", "README.md", "-ray2.60.0", "-ray2.58.0"),
    ("versions_are_equal", "pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"'),
    ("versions_are_equal", "pyproject.toml", "ray[default,tune]>=", "ray[default,tune]>=3,!="),
    ("versions_are_equal", "Dockerfile", "PYTHON_VERSION=3.11.14", "PYTHON_VERSION=3.11.13"),
    ("versions_are_equal", "setup.sh", "python_version=3.11.14", "python_version=3.11"),
    ("versions_are_equal", "setup.sh", "--constraint cluster/constraints.txt", ""),
    ("versions_are_equal", "aws.yaml", "- bash ~/raygrad/cluster/setup.sh boto3", "- pip install ray"),
    ("nothing_is_latest", REDIS, "redis:7.2.5-alpine", "redis:latest"),
    ("nothing_is_latest", REDIS, "redis:7.2.5-alpine", "redis"),
    ("nothing_is_latest", "Dockerfile", "python:${PYTHON_VERSION}-slim-bookworm", "python:slim"),
    ("nothing_is_latest", "gcp.yaml", "/global/images/", "/global/images/family/"),
    ("no_secret_is_written_down", "aws.yaml", "cluster_name: raygrad", "aws_key: AKIAIOSFODNN7EXAMPLE"),
    ("no_secret_is_written_down", "compose.yaml", "RAY_AUTH_MODE: token", "RAY_AUTH_TOKEN: a"),
    ("no_secret_is_written_down", CLUSTER_YAML, 'RAY_USAGE_STATS_ENABLED, value: "0"', 'RAY_AUTH_TOKEN, value: "0"'),
    ("no_secret_is_written_down", REDIS, "valueFrom: {secretKeyRef: {name: raygrad-redis, key: password}}",
     'value: "1"'),
    ("no_secret_is_written_down", REDIS, "kind: Service\n", "kind: Secret\n"),
    ("no_secret_is_written_down", "own.yaml", "cluster_name:", f"# {'0a' * 16}\ncluster_name:"),
    ("no_secret_is_written_down", "README.md", "AWS_SECRET_ACCESS_KEY=…", "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENG"),
    ("only_the_package_travels", "own.yaml", "~/raygrad/raygrad: raygrad\n", "~/raygrad: .\n"),
    ("only_the_package_travels", "aws.yaml", "  ~/raygrad/LICENSE: LICENSE\n", ""),
    ("only_the_package_travels", "Dockerfile", "COPY raygrad /src/raygrad", "COPY . /src"),
    ("only_the_package_travels", "Dockerfile", "README.md LICENSE", "README.md LICENCE"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "name", "old", "new"), BROKEN, ids=[f"{rule}-{name}" for rule, name, *_ in BROKEN])
def test_rule_can_fail(rule: str, name: str, old: str, new: str, files: Files) -> None:
    (check,) = (r for r in RULES if r.__name__ == rule)
    assert check(files.edit(name, old, new))


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for rule, *_ in BROKEN} == {r.__name__ for r in RULES}


# --- Ray's own view of its files


def ray_accepts(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does to a file before it talks to a cloud. Private to Ray: only here."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_ray_up_files(name: str, files: Files) -> None:
    prepared = ray_accepts(files.doc(name))
    commands = [c for side in ("head", "worker") for c in prepared[f"{side}_setup_commands"]]
    assert commands and all("setup.sh" in c for c in commands)  # none of Ray's defaults, which install a nightly build
    assert "0.0.0.0" not in str(prepared["head_start_ray_commands"])
    assert "ray_bootstrap_config.yaml" in str(prepared["head_start_ray_commands"])  # without it nothing scales


@pytest.mark.parametrize(("old", "new"), [
    ("idle_timeout_minutes", "idle_timeout_minute"),
    ("head_node_type: head", "head_node_type: heads"),
    ("min_workers: 1", "min_workers: 13"),
    ("min_workers: 1", "min_worker: 1"),
    ("max_workers: 12", "max_workers: many"),
    ("ssh_user", "ssh_users"),
])  # fmt: skip
def test_ray_refuses_mistakes(old: str, new: str, files: Files) -> None:
    with pytest.raises((ValidationError, ValueError)):
        ray_accepts(files.edit("aws.yaml", old, new).doc("aws.yaml"))


# --- KubeRay's schema


def strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema that refuses fields it does not list, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: v if k in ("enum", "default", "required", "example") else strict(v) for k, v in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict) and all(isinstance(p, dict) for p in properties.values()):
        out["properties"] = {k: strict(p) for k, p in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            out["additionalProperties"] = False
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        out["type"] = [schema["type"], "null"]
    out.pop("format", None)
    return out


def validator(crd: Path) -> tuple[str, Draft202012Validator]:
    """(kind, validator) of a CustomResourceDefinition's v1."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a CRD is a megabyte
    spec = yaml.load(crd.read_text(), loader)["spec"]
    (version,) = (v for v in spec["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return spec["names"]["kind"], Draft202012Validator(schema)


def test_manifests_satisfy_the_crds(files: Files) -> None:
    if not os.environ.get(CRDS):
        pytest.skip(f"{CRDS} names no folder with KubeRay's CRDs")
    crds = sorted(Path(os.environ[CRDS]).glob("ray.io_ray[cj]*.yaml"))
    validators = dict(validator(crd) for crd in crds)
    assert {"RayCluster", "RayJob"} <= set(validators)
    for object_ in files.objects():
        if object_["kind"] in validators:
            assert [e.message for e in validators[object_["kind"]].iter_errors(object_)] == []
    wrong = merged(files.doc(CLUSTER_YAML), {"spec": {"headGroupSpec": {"servicetype": "ClusterIP"}}})
    assert list(validators["RayCluster"].iter_errors(wrong))


def test_the_schema_check_is_strict(tmp_path: Path) -> None:
    """On a small CRD: an unknown field, a missing one and a wrong type are seen, in lists, too."""
    text = """
    spec:
      names: {kind: Thing}
      versions:
        - name: v1
          schema:
            openAPIV3Schema:
              type: object
              properties:
                kind: {type: string}
                metadata: {type: object}
                spec:
                  type: object
                  required: [size]
                  properties:
                    size: {type: integer, format: int32}
                    note: {type: string, nullable: true}
                    labels: {type: object, additionalProperties: {type: string}}
                    parts: {type: array, items: {type: object, properties: {name: {type: string}}}}
    """
    (tmp_path / "crd.yaml").write_text(text)
    kind, check = validator(tmp_path / "crd.yaml")
    assert kind == "Thing"
    good = {"size": 1, "note": None, "labels": {"any": "thing"}, "parts": [{"name": "a"}]}
    assert not list(check.iter_errors({"kind": kind, "metadata": {"name": "a"}, "spec": good}))
    for bad in ({"sise": 1}, {"size": None}, {"size": "1"}, {"parts": [{"nam": "a"}]}, {"labels": {"a": 1}}):
        assert list(check.iter_errors({"kind": kind, "spec": merged(good, bad)})), bad


def test_every_manifest_is_looked_at() -> None:
    there = {p.relative_to(CLUSTER).as_posix() for p in (CLUSTER / "kuberay").iterdir()}
    assert there == {*MANIFESTS, "kuberay/with-redis.yaml"}


# --- the scripts, against stand-ins for what they call


def stand_in(folder: Path, name: str, body: str) -> None:
    """A command that notes its arguments in `folder`/calls and then does `body`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{body}\n')
    (folder / name).chmod(0o755)


def bash(script: Path, *arguments: str, home: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": f"{path}:/usr/bin:/bin"}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_setup_installs_under_the_constraints(tmp_path: Path, files: Files) -> None:
    home, tools = tmp_path / "home", tmp_path / "tools"
    source = home / "raygrad" / "cluster"
    source.mkdir(parents=True)
    shutil.copy(CLUSTER / "setup.sh", source)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("not one")
    (home / ".bashrc").write_text("# mine\n")
    (version,) = re.findall(r"uv_version=(\S+)", files.texts["setup.sh"])
    python = re.findall(r"python_version=(\S+)", files.texts["setup.sh"])[0]
    stand_in(tools, "uv", f'case $1 in --version) echo "uv {version} (x)";; venv) mkdir -p "${{@: -1}}";; esac')
    stand_in(tools, "curl", "exit 1")
    for _ in range(2):
        done = bash(source / "setup.sh", "boto3", home=home, path=tools)
        assert done.returncode == 0, done.stderr
    calls = (tools / "calls").read_text()
    assert "curl" not in calls  # the pinned uv is there
    assert f"--python {python} {home}/raygrad-env" in calls
    assert "--constraint cluster/constraints.txt .[tune] boto3" in calls
    assert (home / ".bashrc").read_text().count("raygrad-env/cluster.sh ]") == 1
    assert "RAY_AUTH_MODE=token" in (home / "raygrad-env" / "cluster.sh").read_text()
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600

    stand_in(tools, "uv", 'echo "uv 0.0.1 (x)"')
    assert bash(source / "setup.sh", home=home, path=tools).returncode != 0  # another uv: the pinned one is fetched
    assert f"/download/{version}/" in (tools / "calls").read_text()


def test_gcp_setup(tmp_path: Path) -> None:
    for name in ("gcp-setup.sh", "gcp.yaml"):
        shutil.copy(CLUSTER / name, tmp_path)
    tools, script = tmp_path / "tools", tmp_path / "gcp-setup.sh"
    nothing_there = "[[ $* != *' describe '* ]]"
    stand_in(tools, "gcloud", nothing_there)
    assert "usage:" in bash(script, "p-1", home=tmp_path, path=tools).stderr
    assert bash(script, "p-1", "0.0.0.0/0", home=tmp_path, path=tools).returncode == 2
    assert not (tools / "calls").exists()
    assert bash(script, "p-1", "203.0.113.7/32", home=tmp_path, path=tools).returncode == 0
    calls = [c for c in (tools / "calls").read_text().splitlines() if " describe " not in c]
    assert len(calls) == 7 and all("--project p-1 --quiet" in c for c in calls)
    assert any("tcp:22 --source-ranges=203.0.113.7/32" in c for c in calls)
    config = yaml.safe_load((tmp_path / "gcp.yaml").read_text())
    assert "FILL-IN" not in str(config) and config["provider"]["project_id"] == "p-1"
    account = config["available_node_types"]["cpu"]["node_config"]["serviceAccounts"][0]["email"]
    assert any(account in c and "storage.objectUser" in c for c in calls)
    (tools / "calls").unlink()
    stand_in(tools, "gcloud", "")  # all is there: nothing is made twice
    assert bash(script, "p-1", "203.0.113.8/32", home=tmp_path, path=tools).returncode == 0
    again = (tools / "calls").read_text()
    assert " create " not in again and "firewall-rules update raygrad-ssh --source-ranges=203.0.113.8/32" in again
    (tools / "calls").unlink()
    assert bash(script, "p-1", "down", home=tmp_path, path=tools).returncode == 0
    removed = (tools / "calls").read_text().splitlines()
    assert len(removed) == 3 and all(" delete " in c for c in removed) and "buckets" not in str(removed)


# --- the page


def ways(files: Files) -> dict[str, list[str]]:
    """The commands of each way in README.md, the common first ones included where they are needed."""
    text = files.texts["README.md"]
    first, *_ = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    found = {title: re.findall(r"^```\n(.*?)^```", body, re.M | re.S) for title, body in sections}
    common = first.splitlines()
    return {
        title: (common if title != "Kubernetes" else []) + blocks[0].splitlines()
        for title, blocks in found.items()
        if blocks
    }


def test_each_way_takes_at_most_ten_commands(files: Files) -> None:
    found = ways(files)
    assert set(found) == {"Own machines", "AWS", "Google Cloud", "Kubernetes", "Compose"}
    assert {title: len(c) for title, c in found.items() if len(c) > 10} == {}
    for title, commands in found.items():
        whole = "\n".join(commands) + (files.texts["kuberay/job.yaml"] if title == "Kubernetes" else "")
        assert "sweep" in whole and "--run-root" in whole, title
        assert "&&" not in whole, title  # two commands are not one
    down = re.findall(r"^## (.+?)\n.*?^.*?Down:", files.texts["README.md"], re.M | re.S)
    assert len(re.findall("Down:", files.texts["README.md"])) == len(found) == len(down)


def test_the_page_names_what_is_there(files: Files) -> None:
    text = files.texts["README.md"]
    for name in re.findall(r"\bcluster/[\w./-]+\w", text):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    for name in re.findall(r"`([\w/-]+\.(?:yaml|sh|txt))`", text):
        assert name in files.texts or name.startswith("ray.io_"), name
    assert set(re.findall(r"raygrad job (\w+)", text)) == {"submit", "list", "logs", "stop"}
