"""What holds for every file in cluster/, as rules: a rule takes the files and returns its complaints.

`Files` holds texts, so that a test can break one of them and see the rule complain.
"""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ("aws.yaml", "gcp.yaml", "own.yaml")
CLOUDS = ("aws.yaml", "gcp.yaml")
MANIFESTS = ("kuberay/cluster.yaml", "kuberay/network.yaml", "kuberay/job.yaml", "kuberay/redis.yaml")
INTERNET = re.compile(r"0\.0\.0\.0/0|::/0|0\.0\.0\.0/[1-7]\b")
UNITS = {"": 1, "Mi": 2**20, "Gi": 2**30, "mb": 2**20, "gb": 2**30}


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's !Ref and its like as what stands behind them."""


def _behind_the_tag(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else loader.construct_mapping(node)


_Loader.add_multi_constructor("!", _behind_the_tag)


@dataclass(frozen=True)
class Files:
    """The texts of cluster/ by their paths in it, and pyproject.toml."""

    texts: dict[str, str]

    @staticmethod
    def read() -> "Files":
        """As they stand in the repository."""
        names = [p for p in CLUSTER.rglob("*") if p.is_file()]
        texts = {p.relative_to(CLUSTER).as_posix(): p.read_text() for p in names}
        return Files(texts | {"pyproject.toml": (ROOT / "pyproject.toml").read_text()})

    def edit(self, name: str, old: str, new: str) -> "Files":
        """With every `old` in one file replaced."""
        assert old in self.texts[name], f"{name} has no {old!r}"
        return replace(self, texts=self.texts | {name: self.texts[name].replace(old, new)})

    def docs(self, name: str) -> list[dict[str, Any]]:
        """The YAML documents of a file."""
        return [d for d in yaml.load_all(self.texts[name], _Loader) if d]

    def doc(self, name: str) -> dict[str, Any]:
        """The one YAML document of a file."""
        (doc,) = self.docs(name)
        return doc

    def objects(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The Kubernetes objects, of one kind or all; the cluster also as it is with Redis."""
        found = [d for name in MANIFESTS for d in self.docs(name)]
        found.append(merged(self.doc("kuberay/cluster.yaml"), self.doc("kuberay/with-redis.yaml")))
        return [d for d in found if kind in (None, d["kind"])]

    def groups(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(name, group, pod spec) of the head and of every worker group."""
        for cluster in self.objects("RayCluster"):
            head = cluster["spec"]["headGroupSpec"]
            yield "head", head, head["template"]["spec"]
            for group in cluster["spec"]["workerGroupSpecs"]:
                yield group["groupName"], group, group["template"]["spec"]

    def pods(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, pod spec) of everything that runs on Kubernetes."""
        for name, _, pod in self.groups():
            yield name, pod
        for object_ in self.objects("StatefulSet"):
            yield object_["metadata"]["name"], object_["spec"]["template"]["spec"]

    def services(self) -> dict[str, dict[str, Any]]:
        """The services of compose.yaml."""
        return self.doc("compose.yaml")["services"]


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386), as `kubectl patch --type merge` applies it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        result[key] = merged(result.get(key), value)
    return {k: v for k, v in result.items() if v is not None}


def size(text: str | int) -> int:
    """Bytes of a size such as 8Gi (Kubernetes) or 500mb (compose)."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    assert match, text
    return int(match[1]) * UNITS[match[2]]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
        for v in value.values():
            yield from walk(v)
    elif isinstance(value, list):
        for v in value:
            yield from walk(v)


def starts(config: dict[str, Any], side: str) -> list[str]:
    """The `ray start` commands of a ray up file's head or worker side."""
    return [c for c in config[f"{side}_start_ray_commands"] if "ray start" in c]


def tokens_are_on(files: Files) -> list[str]:
    """Every node asks for the token, and has it from a file or a secret."""
    bad = []
    for name in RAY_UP:
        config = files.doc(name)
        for command in starts(config, "head") + starts(config, "worker"):
            if "export RAY_AUTH_MODE=token;" not in command.split("ray start")[0]:
                bad.append(f"{name}: no token asked for by {command!r}")
        if "~/.ray/auth_token" not in config["file_mounts"]:
            bad.append(f"{name}: the token's file is not mounted")
    if "export RAY_AUTH_MODE=token" not in files.texts["setup.sh"]:
        bad.append("setup.sh: shells on the nodes do not use the token")
    for cluster in files.objects("RayCluster"):
        if cluster["spec"].get("authOptions", {}).get("mode") != "token":
            bad.append("kuberay: authOptions.mode is not token")
    compose = files.doc("compose.yaml")
    for name, service in compose["services"].items():
        environment = service.get("environment", {})
        if environment.get("RAY_AUTH_MODE") != "token":
            bad.append(f"compose: {name} asks for no token")
        path = Path(environment.get("RAY_AUTH_TOKEN_PATH", ""))
        if path.parent != Path("/run/secrets") or path.name not in service.get("secrets", []):
            bad.append(f"compose: {name} has no token from a secret")
    if not all(set(s) == {"file"} for s in compose.get("secrets", {}).values()):
        bad.append("compose: a secret is not a file")
    if not re.search(r"^ENV .*RAY_AUTH_MODE=token", files.texts["Dockerfile"], re.M):
        bad.append("Dockerfile: RAY_AUTH_MODE is not token")
    return bad


def nothing_is_published(files: Files) -> list[str]:
    """No port of a node is offered outside: no public service, no host port, loopback only, no open firewall."""
    bad = [f"{name}: lets the whole internet in" for name, text in files.texts.items() if INTERNET.search(text)]
    for object_ in files.objects():
        if object_["kind"] in ("Ingress", "Gateway", "HTTPRoute"):
            bad.append(f"kuberay: {object_['kind']}")
        for part in walk(object_):
            if part.get("type") in ("NodePort", "LoadBalancer") or part.get("enableIngress"):
                bad.append(f"kuberay: {object_['kind']} is published")
            if part.get("hostPort") or part.get("hostNetwork") or part.get("externalIPs"):
                bad.append(f"kuberay: {object_['kind']} uses the host's network")
    for cluster in files.objects("RayCluster"):
        if cluster["spec"]["headGroupSpec"].get("serviceType") != "ClusterIP":
            bad.append("kuberay: the head's service is not ClusterIP")
    for name, service in files.services().items():
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                bad.append(f"compose: {name} publishes {port} beyond loopback")
        if service.get("network_mode") == "host":
            bad.append(f"compose: {name} uses the host's network")
    for name in RAY_UP:
        for command in starts(files.doc(name), "head"):
            if "--dashboard-host=127.0.0.1" not in shlex.split(command):
                bad.append(f"{name}: the dashboard is not on loopback")
        if any("dashboard-host" in c for c in starts(files.doc(name), "worker")):
            bad.append(f"{name}: a worker has a dashboard")
    return bad


def pods_admit_only_who_is_named(files: Files) -> list[str]:
    """Each kind of pod has a NetworkPolicy whose every rule names pods; none is by address, none is empty."""
    bad = []
    policies = files.objects("NetworkPolicy")
    chosen = [policy["spec"]["podSelector"].get("matchLabels", {}) for policy in policies]
    needed = [{"ray.io/cluster": c["metadata"]["name"]} for c in files.objects("RayCluster")]
    needed += [s["spec"]["template"]["metadata"]["labels"] for s in files.objects("StatefulSet")]
    bad += [f"kuberay: no NetworkPolicy for {labels}" for labels in needed if labels not in chosen]
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        if spec.get("policyTypes") != ["Ingress"]:
            bad.append(f"kuberay: NetworkPolicy {name} does not close ingress")
        for rule in spec.get("ingress", []):
            if not rule.get("from"):
                bad.append(f"kuberay: NetworkPolicy {name} admits everybody")
            for peer in rule.get("from", []):
                if "ipBlock" in peer or not peer.get("podSelector", {}).get("matchLabels"):
                    bad.append(f"kuberay: NetworkPolicy {name} admits {peer}")
                if "namespaceSelector" in peer and "ports" not in rule:
                    bad.append(f"kuberay: NetworkPolicy {name} opens every port to other namespaces")
    return bad


def shared_memory_is_sized(files: Files) -> list[str]:
    """/dev/shm holds Ray's object store (30 % of memory, or what is asked for) and leaves room for the rest."""
    bad = []
    for name, _, pod in files.groups():
        (container,) = pod["containers"]
        limit = size(container["resources"]["limits"]["memory"])
        volumes = [m["name"] for m in container.get("volumeMounts", []) if m["mountPath"] == "/dev/shm"]
        found = [v["emptyDir"] for v in pod.get("volumes", []) if v["name"] in volumes and "emptyDir" in v]
        if not found or found[0].get("medium") != "Memory" or "sizeLimit" not in found[0]:
            bad.append(f"kuberay: {name} has no sized /dev/shm")
        elif not 0.3 * limit <= size(found[0]["sizeLimit"]) <= 0.5 * limit:
            bad.append(f"kuberay: {name}'s /dev/shm is not 30 to 50 % of its memory")
    for name, service in files.services().items():
        store = re.search(r"--object-store-memory=(\d+)", service["command"])
        if not store or not int(store[1]) < size(service.get("shm_size", 0)) < size(service.get("mem_limit", 0)):
            bad.append(f"compose: {name}: object store < shm_size < mem_limit does not hold")
    return bad


def limits_equal_requests(files: Files) -> list[str]:
    """Every container asks for the CPU and memory that it may take."""
    found = [(name, c.get("resources", {})) for name, pod in files.pods() for c in pod["containers"]]
    for cluster in files.objects("RayCluster"):
        found.append(("autoscaler", cluster["spec"]["autoscalerOptions"].get("resources", {})))
    return [
        f"kuberay: {name}'s limits are not its requests"
        for name, resources in found
        if resources.get("limits") != resources.get("requests") or not {"cpu", "memory"} <= {*resources["limits"]}
    ]


def the_head_takes_no_work(files: Files) -> list[str]:
    """The head offers no CPU and no GPU: drivers live there."""
    bad = []
    for name in RAY_UP:
        config = files.doc(name)
        if any("--num-cpus=0" not in shlex.split(c) for c in starts(config, "head")):
            bad.append(f"{name}: the head offers CPUs")
        if name in CLOUDS and config["available_node_types"][config["head_node_type"]]["resources"] != {
            "CPU": 0,
            "GPU": 0,
        }:
            bad.append(f"{name}: the autoscaler counts on the head")
    for name, group, _ in files.groups():
        if name == "head" and (group["rayStartParams"].get("num-cpus"), group["rayStartParams"].get("num-gpus")) != (
            "0",
            "0",
        ):
            bad.append("kuberay: the head offers CPUs or GPUs")
    if not {"--num-cpus=0", "--num-gpus=0"} <= set(shlex.split(files.services()["head"]["command"])):
        bad.append("compose: the head offers CPUs or GPUs")
    return bad


def the_operator_takes_them(files: Files) -> list[str]:
    """What KubeRay asks for beyond its schema: strings, ordered replicas, restart policy, names, v2 asked for once."""
    bad = []
    for object_ in files.objects():
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", object_["metadata"]["name"]):
            bad.append(f"kuberay: {object_['metadata']['name']!r} is no name")
        if object_["kind"].startswith("Ray") and object_["apiVersion"] != "ray.io/v1":
            bad.append(f"kuberay: {object_['kind']} is not ray.io/v1")
    for name, group, pod in files.groups():
        params = group.get("rayStartParams")
        if params is None or not all(isinstance(v, str) for v in params.values()) or "labels" in params:
            bad.append(f"kuberay: {name}'s rayStartParams are not strings")
        if pod.get("restartPolicy") != "Never" or pod.get("terminationGracePeriodSeconds", 30) <= 30:
            bad.append(f"kuberay: {name}: restartPolicy is not Never, or Ray has no time to drain")
        if name != "head" and not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            bad.append(f"kuberay: {name}: minReplicas <= replicas <= maxReplicas does not hold")
    for cluster in files.objects("RayCluster"):
        spec = cluster["spec"]
        if not spec.get("enableInTreeAutoscaling") or spec["autoscalerOptions"].get("version") != "v2":
            bad.append("kuberay: autoscaler v2 is not on")
        if "RAY_enable_autoscaler_v2" in str(spec):
            bad.append("kuberay: v2 is asked for twice")
    for job in files.objects("RayJob"):
        spec = job["spec"]
        if spec["clusterSelector"].get("ray.io/cluster") not in {
            c["metadata"]["name"] for c in files.objects("RayCluster")
        }:
            bad.append("kuberay: the job's cluster is not there")
        if {"backoffLimit", "suspend", "rayClusterSpec"} & set(spec):
            bad.append("kuberay: the job has a field that clusterSelector excludes")
        if "RAY_JOB_STOP_WAIT_TIME_S" not in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]:
            bad.append("kuberay: a stopped job has no time for a checkpoint")
    return bad


def the_bill_is_bounded(files: Files) -> list[str]:
    """Every group has a most, idle machines go, workers in clouds are spot machines and the head is not."""
    bad = []
    for name in RAY_UP:
        config = files.doc(name)
        if not 1 <= config.get("max_workers", 0) <= 50 or not 1 <= config.get("idle_timeout_minutes", 0) <= 30:
            bad.append(f"{name}: max_workers or idle_timeout_minutes")
    for name in CLOUDS:
        config = files.doc(name)
        if config["provider"].get("cache_stopped_nodes") is not False:
            bad.append(f"{name}: idle machines are stopped, not removed")
        for kind, node in config["available_node_types"].items():
            spot = (
                node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
                or node["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"
            )
            if spot == (kind == config["head_node_type"]):
                bad.append(f"{name}: {kind} is {'spot' if spot else 'not spot'}")
            if kind != config["head_node_type"] and not node["min_workers"] <= node["max_workers"] <= 16:
                bad.append(f"{name}: {kind} has no bound")
    for name, group, _ in files.groups():
        if name != "head" and not group["maxReplicas"] <= 16:
            bad.append(f"kuberay: {name} has no bound")
    for cluster in files.objects("RayCluster"):
        if not 120 <= cluster["spec"]["autoscalerOptions"].get("idleTimeoutSeconds", 60) <= 1800:
            bad.append("kuberay: idleTimeoutSeconds is shorter than a pod's start, or long")
    if any("activeDeadlineSeconds" not in job["spec"] for job in files.objects("RayJob")):
        bad.append("kuberay: a job may run for ever")
    return bad


def nobody_is_root(files: Files) -> list[str]:
    """Containers run as a user, without capabilities."""
    bad = []
    for name, pod in files.pods():
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            bad.append(f"kuberay: {name} may be root")
        for container in pod["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                bad.append(f"kuberay: {name} may gain rights")
    for name, service in files.services().items():
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            bad.append(f"compose: {name} may gain rights")
        if service.get("privileged") or str(service.get("user", "0")) in ("0", "root"):
            bad.append(f"compose: {name} may be root")
    users = re.findall(r"^USER (.+)$", files.texts["Dockerfile"], re.M)
    if not users or users[-1] in ("0", "root"):
        bad.append("Dockerfile: the image runs as root")
    return bad


def versions_are_equal(files: Files) -> list[str]:
    """constraints.txt pins what pyproject asks for; every other file says the same Ray, Python and raygrad."""
    bad = []
    project = tomllib.loads(files.texts["pyproject.toml"])["project"]
    lines = [line for line in files.texts["constraints.txt"].splitlines() if line and not line.startswith("#")]
    pins = {r.name: r for r in map(Requirement, lines)}
    versions = {name: str(pin.specifier).removeprefix("==") for name, pin in pins.items()}
    bad += [
        f"constraints.txt: {pin} is no pin"
        for pin in pins.values()
        if not re.fullmatch(r"==[\d.]+", str(pin.specifier))
    ]
    for needed in map(Requirement, project["dependencies"]):
        if needed.name not in versions or not needed.specifier.contains(versions[needed.name]):
            bad.append(f"constraints.txt: no pin that satisfies pyproject's {needed}")
    ray = versions.get("ray")
    for name, text in files.texts.items():
        said = re.findall(r"\bray(?:Version: \"|==|-)?(\d+\.\d+\.\d+)", text)
        bad += [f"{name}: Ray {other}, not {ray}" for other in said if other != ray]
    bad += [
        "kuberay: rayVersion is not the pin" for c in files.objects("RayCluster") if c["spec"].get("rayVersion") != ray
    ]
    image = f"raygrad:{project['version']}-ray{ray}"
    images = [(name, c["image"]) for name, _, pod in files.groups() for c in pod["containers"]]
    images += [(name, service["image"]) for name, service in files.services().items()]
    bad += [f"{name}: image {other}, not {image}" for name, other in images if other != image]
    for name in ("Dockerfile", "README.md"):
        if image not in files.texts[name]:
            bad.append(f"{name}: does not name the image {image}")
    pythons = set(
        re.findall(r"(?:python_version|PYTHON_VERSION)=(\S+)", files.texts["setup.sh"] + files.texts["Dockerfile"])
    )
    (python,) = pythons if len(pythons) == 1 else ("",)
    if not re.fullmatch(r"\d+\.\d+\.\d+", python):
        bad.append(f"setup.sh and Dockerfile: Python {sorted(pythons)}, not one patch level")
    elif Version(python) not in Requirement(f"x{project['requires-python']}").specifier:
        bad.append(f"Python {python} does not satisfy pyproject's {project['requires-python']}")
    for name in ("setup.sh", "Dockerfile"):
        if not re.search(r"--constraint \S*constraints\.txt", files.texts[name]):
            bad.append(f"{name}: installs without constraints.txt")
    for name in RAY_UP:
        config = files.doc(name)
        commands = config["setup_commands"] + config["head_setup_commands"] + config["worker_setup_commands"]
        if not commands or not all(c.startswith("bash ~/raygrad/cluster/setup.sh") for c in commands):
            bad.append(f"{name}: installs otherwise than by setup.sh")
        bad += [
            f"{name}: {package} has no pin" for c in commands for package in c.split()[2:] if package not in versions
        ]
    return bad


def nothing_is_latest(files: Files) -> list[str]:
    """Every image and download has a version."""
    images = [(name, c["image"]) for name, pod in files.pods() for c in pod["containers"]]
    images += [(name, service["image"]) for name, service in files.services().items()]
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", files.texts["Dockerfile"], re.M))
    for source in re.findall(r"^FROM (\S+)", files.texts["Dockerfile"], re.M):
        images.append(("Dockerfile", re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], ""), source)))
    bad = [f"{name}: image {image}" for name, image in images if not re.search(r":[\w.-]*\d[\w.-]*$", image)]
    for name, text in files.texts.items():
        if re.search(r":latest\b|/master\b|/main\b|/images/family/", text):
            bad.append(f"{name}: something is not pinned")
    return bad


def no_secret_is_written_down(files: Files) -> list[str]:
    """No key, token or password in any file; no Kubernetes secret; no environment variable with a secret's value."""
    patterns = [
        r"-----BEGIN",
        r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\b[0-9a-f]{32,}\b",
        r"\bgh[pousr]_\w{20,}|\bhf_\w{20,}",
        r"(?i)(password|token|secret|access_key)\w*[\"']?\s*[:=]\s*[\"']?(?![{$(/~])[A-Za-z0-9+/_-]{12,}",
    ]
    bad = [
        f"{name}: looks like a secret: {found[0]!r}"
        for name, text in files.texts.items()
        for pattern in patterns
        for found in re.finditer(pattern, text)
    ]
    secretive = re.compile(r"TOKEN$|PASSWORD|SECRET|ACCESS_KEY")
    for object_ in files.objects():
        if object_["kind"] == "Secret":
            bad.append("kuberay: a Secret with its value")
        for part in walk(object_):
            if secretive.search(str(part.get("name", ""))) and "value" in part:
                bad.append(f"kuberay: the value of {part['name']}")
    for name, service in files.services().items():
        bad += [f"compose: {name} has the value of {key}" for key in service["environment"] if secretive.search(key)]
    return bad


def only_the_package_travels(files: Files) -> list[str]:
    """What nodes and images get is there, is enough to install, and is not the whole folder with its data."""
    bad = []
    project = tomllib.loads(files.texts["pyproject.toml"])["project"]
    enough = {"raygrad", "pyproject.toml", project["readme"], *project["license-files"]}
    mounts = {name: files.doc(name)["file_mounts"] for name in RAY_UP}
    if len({str(m) for m in mounts.values()}) != 1:
        bad.append("the ray up files mount different things")
    sources = {name: {s for s in m.values() if not s.startswith("~")} for name, m in mounts.items()}
    copied = re.findall(r"^COPY (.+) \S+$", files.texts["Dockerfile"], re.M)
    sources["Dockerfile"] = {s for line in copied for s in line.split()}
    for name, given in sources.items():
        if "." in given or any(not (ROOT / s).exists() for s in given):
            bad.append(f"{name}: takes {sorted(given)}")
        if not enough <= given:
            bad.append(f"{name}: lacks {sorted(enough - given)}")
    return bad


RULES: tuple[Callable[[Files], list[str]], ...] = (
    tokens_are_on,
    nothing_is_published,
    pods_admit_only_who_is_named,
    shared_memory_is_sized,
    limits_equal_requests,
    the_head_takes_no_work,
    the_operator_takes_them,
    the_bill_is_bounded,
    nobody_is_root,
    versions_are_equal,
    nothing_is_latest,
    no_secret_is_written_down,
    only_the_package_travels,
)
