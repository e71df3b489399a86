"""deploy/kubernetes and deploy/kserve: they build, fit the schemas, and say what they are meant to say."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from aclserve_server.cli import LOST_EXIT_S
from aclserve_server.config import Config
from aclserve_server.metrics import ServerMetrics
from deploy.conftest import tool
from tools import deploy, manifests
from tools.compat import CompatError, install

CARDS = {"ascend": "Ascend910", "ascend-310": "Ascend310", "ascend-310p": "Ascend310P", "ascend-npu": "npu"}
"""Overlay and the name of the device plugin's resource."""

overlays = pytest.mark.parametrize("overlay", manifests.OVERLAYS)


@pytest.fixture(scope="module", autouse=True)
def _kustomize() -> None:
    tool(deploy.kustomize)


@functools.cache
def built(overlay: str) -> str:
    return manifests.build(manifests.KUBERNETES / "overlays" / overlay)


def thing(overlay: str, kind: str, name: str = "aclserve") -> dict[str, Any]:
    (found,) = (
        one for one in manifests.objects(built(overlay)) if (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return found


def pod(overlay: str) -> dict[str, Any]:
    spec: dict[str, Any] = thing(overlay, "Deployment")["spec"]["template"]["spec"]
    return spec


def server(overlay: str) -> dict[str, Any]:
    (found,) = pod(overlay)["containers"]
    container: dict[str, Any] = found
    return container


def test_every_overlay_is_known() -> None:
    folders = {path.name for path in (manifests.KUBERNETES / "overlays").iterdir()}
    assert folders == set(manifests.OVERLAYS) == {"emulated", *CARDS}


def test_objects_fit_the_schemas_of_kubernetes() -> None:
    tool(deploy.validator)
    everything = manifests.together(map(built, manifests.OVERLAYS))
    assert manifests.kubernetes_faults(everything, manifests.RELEASES[-1:]) == []


def test_what_does_not_fit_is_found() -> None:
    tool(deploy.validator)
    found = manifests.objects(built("emulated"))
    (one,) = (thing for thing in found if thing["kind"] == "Deployment")
    one["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}
    (fault,) = manifests.kubernetes_faults(yaml.safe_dump(one), manifests.RELEASES[:1])
    assert "livenessProbes" in fault


@overlays
def test_the_grace_covers_the_drain(overlay: str) -> None:
    container, options = server(overlay), config(overlay)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod(overlay)["terminationGracePeriodSeconds"]
    assert pause >= 2 * container["readinessProbe"]["periodSeconds"]
    assert grace >= pause + options.drain_timeout_s + 10
    assert grace >= pause + LOST_EXIT_S


def config(overlay: str) -> Config:
    """The options as the server reads them."""
    container = server(overlay)
    command, *arguments = container["args"]
    assert command == "serve"
    environ = {one["name"]: one.get("value", "pod-0") for one in container["env"]}
    arguments = [
        argument.replace("=/models", "=.") if argument.startswith("--model-repository") else argument
        for argument in arguments
    ]
    return Config.from_args(arguments, environ)


@overlays
def test_ports_and_probes_are_those_of_the_server(overlay: str) -> None:
    container, options = server(overlay), config(overlay)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": options.port, "metrics": options.metrics_port, "health": options.health_port}
    assert container["readinessProbe"]["grpc"]["port"] == options.health_port
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    (name,) = (one for one in container["env"] if one["name"] == "ACLSERVE_REPLICA")
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert options.emulated == (overlay == "emulated")


@overlays
def test_the_pod_has_no_more_rights_than_it_needs(overlay: str) -> None:
    spec, container = pod(overlay), server(overlay)
    assert spec["automountServiceAccountToken"] is False
    assert thing(overlay, "ServiceAccount")["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False  # or a Service's ACLSERVE_PORT is read as an option
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPath" in volume for volume in spec["volumes"])


@overlays
def test_selectors_meet_the_pods_and_only_clients_are_let_in(overlay: str) -> None:
    labels = thing(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        thing(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
        thing(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        thing(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(thing(overlay, "Service", name)["spec"]["selector"] for name in ("aclserve", "aclserve-headless")),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    policy = thing(overlay, "NetworkPolicy")["spec"]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])
    clients, monitoring = policy["ingress"]
    assert clients["from"] == [{"podSelector": {"matchLabels": {"aclserve.client": "true"}}}]
    assert [port["port"] for port in (*clients["ports"], *monitoring["ports"])] == ["grpc", "metrics"]
    assert thing(overlay, "Service", "aclserve-headless")["spec"]["clusterIP"] == "None"


def test_the_autoscaler_reads_a_metric_that_exists() -> None:
    scaler = thing("emulated", "HorizontalPodAutoscaler")["spec"]
    (metric,) = scaler["metrics"]
    families = {family.name for family in ServerMetrics(CollectorRegistry(), lambda now: 0).describe()}
    assert metric["pods"]["metric"]["name"] in families
    assert scaler["scaleTargetRef"]["name"] == thing("emulated", "Deployment")["metadata"]["name"]
    assert "replicas" not in thing("emulated", "Deployment")["spec"]


@pytest.mark.parametrize(("overlay", "name"), CARDS.items())
def test_each_card_has_the_name_of_its_device_plugin(overlay: str, name: str) -> None:
    resources = server(overlay)["resources"]
    for kind in ("requests", "limits"):
        cards = {key: count for key, count in resources[kind].items() if "/" in key}
        assert cards == {f"huawei.com/{name}": 1}
    assert pod(overlay)["nodeSelector"] == {"accelerator": f"huawei-{name}"}
    assert thing(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.fixture(scope="module")
def _kserve() -> None:
    tool(lambda: install("kserve"))


@pytest.mark.usefixtures("_kserve")
def test_objects_fit_the_models_of_kserve() -> None:
    runtimes = [manifests.build(manifests.KSERVE / name) for name in manifests.RUNTIMES]
    service = (manifests.KSERVE / "inferenceservice.yaml").read_text()
    assert manifests.kserve_faults(manifests.together([*runtimes, service])) == []
    made = {one["metadata"]["name"]: one["spec"] for text in runtimes for one in manifests.objects(text)}
    assert made.keys() == {"aclserve", "aclserve-ascend"}
    wanted = yaml.safe_load(service)["spec"]["predictor"]["model"]
    offered = made[wanted["runtime"]]
    assert wanted["modelFormat"]["name"] in {one["name"] for one in offered["supportedModelFormats"]}
    assert wanted["protocolVersion"] in offered["protocolVersions"]
    for spec in made.values():
        (container,) = spec["containers"]
        assert container["name"] == "kserve-container"
        assert f"--port={container['ports'][0]['containerPort']}" in container["args"]
        assert "--model-repository=/mnt/models" in container["args"]


@pytest.mark.usefixtures("_kserve")
def test_what_kserve_does_not_know_is_found() -> None:
    service = yaml.safe_load((manifests.KSERVE / "inferenceservice.yaml").read_text())
    service["spec"]["predictor"]["model"]["modelformat"] = {}
    service["spec"]["predictor"]["minReplicas"] = "two"
    wrong, unknown = sorted(manifests.kserve_faults(yaml.safe_dump(service)))
    assert "has no field modelformat" in unknown
    assert "minReplicas: expected int, got 'two'" in wrong


def test_a_folder_that_cannot_be_built_is_told() -> None:
    with pytest.raises(CompatError, match="kubernetes"):
        manifests.build(manifests.KUBERNETES)
