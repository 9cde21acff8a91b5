"""The launch files against what vendors publish of their interfaces; each check runs where that package is installed.

pip install 'moto[server]'                 AWS: the stack, and Ray's own provider starting machines
pip install google-api-python-client       Google: the Compute API's discovery document
pip install kubernetes                     Kubernetes: the models of pods, services and policies
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from launch_rules import Files


@pytest.fixture(scope="module")
def files() -> Files:
    return Files.read()


def test_aws_starts_a_machine_of_each_type(files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    pytest.importorskip("moto.cloudformation.models", reason="moto without its CloudFormation parts")
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    region = files.doc("aws.yaml")["provider"]["region"]
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    stack = files.texts["aws-stack.yaml"]
    (image,) = re.findall(r"Default: (/aws/\S+)", stack)
    with moto.mock_aws():
        ec2, formation = boto3.client("ec2"), boto3.client("cloudformation")
        # moto has no such public parameter; one of our own stands for it
        ami = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        boto3.client("ssm").put_parameter(Name="/image", Value=ami, Type="String")
        formation.create_stack(
            StackName="raygrad",
            TemplateBody=stack.replace(image, "/image"),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": "SshFrom", "ParameterValue": "203.0.113.7/32"}],
        )
        outputs = formation.describe_stacks(StackName="raygrad")["Stacks"][0]["Outputs"]
        made = {o["OutputKey"]: o["OutputValue"] for o in outputs}
        (group,) = ec2.describe_security_groups(GroupIds=[made["SecurityGroup"]])["SecurityGroups"]
        assert {r["CidrIp"] for rule in group["IpPermissions"] for r in rule["IpRanges"]} == {"203.0.113.7/32"}
        assert [p["GroupId"] for r in group["IpPermissions"] for p in r["UserIdGroupPairs"]] == [made["SecurityGroup"]]

        filled = files.edit("aws.yaml", "ami-FILL-IN", made["Ami"]).edit(
            "aws.yaml", "sg-FILL-IN", made["SecurityGroup"]
        )
        types = _start_all(filled.doc("aws.yaml"))
        machines = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    assert len(machines) == len(types) == 3
    for machine in machines:
        head = machine["InstanceType"] == types["head"]["node_config"]["InstanceType"]
        assert machine.get("InstanceLifecycle") == (None if head else "spot")
        assert machine["IamInstanceProfile"]["Arn"].endswith("raygrad-head" if head else "raygrad-worker")
        assert [g["GroupId"] for g in machine["SecurityGroups"]] == [made["SecurityGroup"]]
        assert machine["ImageId"] == made["Ami"]


def _start_all(config: dict[str, Any]) -> dict[str, Any]:
    """A machine of every type, by the code that `ray up` and the autoscaler run."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(copy.deepcopy(config)))
    validate_config(config)
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        tags = {"ray-user-node-type": name, "ray-node-kind": "head" if name == "head" else "worker"}
        provider.create_node(node["node_config"], tags, 1)
    return config["available_node_types"]


def test_google_knows_every_field(files: Files) -> None:
    client = pytest.importorskip("googleapiclient")
    folder = Path(client.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]

    def problems(value: Any, schema: dict[str, Any], at: str) -> list[str]:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = schema["type"]
        if kind == "object":
            if not isinstance(value, dict):
                return [f"{at} is no object"]
            known, other = schema.get("properties", {}), schema.get("additionalProperties")
            parts = [(f"{at}.{k}", v, known.get(k, other)) for k, v in value.items()]
        elif kind == "array":
            if not isinstance(value, list):
                return [f"{at} is no list"]
            parts = [(f"{at}[{i}]", v, schema["items"]) for i, v in enumerate(value)]
        else:
            number = kind == "integer" or schema.get("format") == "int64"
            right = isinstance(value, bool if kind == "boolean" else (int, str) if number else str)
            return [] if right and value in schema.get("enum", [value]) else [f"{at} is {value!r}"]
        return [p for name, v, s in parts for p in (problems(v, s, name) if s else [f"{name} is unknown"])]

    config = files.doc("gcp.yaml")
    for name, node in config["available_node_types"].items():
        assert problems(node["node_config"], {"$ref": "Instance"}, name) == []
    wrong = {"machinetype": "a", "disks": {}, "scheduling": {"provisioningModel": "CHEAP"}}
    assert len(problems(wrong, {"$ref": "Instance"}, "wrong")) == 3


def test_kubernetes_knows_every_field(files: Files) -> None:
    models = pytest.importorskip("kubernetes.client.models", exc_type=ImportError)
    if not hasattr(models.V1Pod, "model_validate"):
        pytest.skip("this kubernetes client has no validating models")
    templates = [group["template"] for _, group, _ in files.groups()]
    for template in templates:
        models.V1PodTemplateSpec.model_validate(template)
    for cluster in files.objects("RayCluster"):
        options = cluster["spec"]["autoscalerOptions"]
        models.V1ResourceRequirements.model_validate(options["resources"])
        models.V1SecurityContext.model_validate(options["securityContext"])
    for kind in ("NetworkPolicy", "Service", "StatefulSet"):
        for object_ in files.objects(kind):
            getattr(models, f"V1{kind}").model_validate(object_)
    wrong = json.loads(json.dumps(templates[0]).replace("sizeLimit", "sizelimit"))
    with pytest.raises(ValueError, match="sizelimit"):
        models.V1PodTemplateSpec.model_validate(wrong)
