"""deploy/observability shows only what exists: every metric of its expressions is one that the service has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from aclserve_server.metrics import ServerMetrics
from aclserve_server.rpc.wire_times import unix_ns
from aclserve_server.supervisor.metrics import own

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy" / "observability"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "aclserve.json"

WORDS = {"sum", "by", "rate", "increase", "histogram_quantile", "label_values"}
"""What the expressions hold of PromQL and Grafana beside metrics."""

MADE_BY_PROMETHEUS = {"up"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The samples that the metrics port shows, with their labels."""
    registry = CollectorRegistry()
    found: dict[str, set[str]] = {name: {"job", "instance"} for name in MADE_BY_PROMETHEUS}
    described = [*ServerMetrics(registry, unix_ns).describe(), *own({})]
    for family in [*described, *ProcessCollector(registry=registry).collect()]:
        labels = set(getattr(family, "_labelnames", ()))
        for suffix in SUFFIXES[family.type]:
            le = {"le"} if suffix == "_bucket" else set()
            found[family.name + suffix] = labels | le | {"job", "instance"}
    return found


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        yield variable["query"]["query"]
    yield from (rule["expr"] for rule in alerts())


def unknown(expression: str, known: dict[str, set[str]]) -> set[str]:
    """The metrics and labels of an expression that the service does not have."""
    plain = re.sub(r'"[^"]*"', '""', re.sub(r"\[[^\]]*\]", "", expression))
    labels = {label for group in re.findall(r"by \(([^)]*)\)", plain) for label in re.findall(r"\w+", group)}
    labels |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", plain))
    if "label_values" in plain:
        labels |= set(re.findall(r",\s*(\w+)\)", plain))
    names = set(re.findall(r"\b[a-z_][a-z0-9_]*\b", plain)) - WORDS - labels
    has = set().union(*(known.get(name, set()) for name in names))
    return (names - known.keys()) | (labels - has)


def test_every_metric_and_label_exists(known: dict[str, set[str]]) -> None:
    found = list(expressions())
    assert len(found) > 25
    assert {expression: missing for expression in found if (missing := unknown(expression, known))} == {}


def test_what_does_not_exist_is_found(known: dict[str, set[str]]) -> None:
    assert unknown("rate(aclserve_nothing_total[5m])", known) == {"aclserve_nothing_total"}
    assert unknown("sum by (colour) (aclserve_streams)", known) == {"colour"}
    assert unknown('aclserve_queue_rows{modell="x"}', known) == {"modell"}


def test_every_family_of_the_service_is_on_the_dashboard() -> None:
    text = DASHBOARD.read_text()
    families = {family.name for family in ServerMetrics(CollectorRegistry(), unix_ns).describe()}
    assert {name for name in families if name not in text} == set()


def test_panels_do_not_overlap_and_use_the_provisioned_source() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    panels = dashboard()["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"] for source in sources}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def services() -> dict[str, Any]:
    """Of the compose file."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def pinned_and_local(service: dict[str, Any]) -> dict[str, str]:
    """What a service of others mounts, by where; its image has a version, its ports are for this host."""
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "pinned"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    mounted = {}
    for volume in service["volumes"]:
        source, target, mode = re.fullmatch(r"(\$\{.*\}|[^:]*):([^:]*):(\w+)", volume).groups()  # type: ignore[union-attr]
        assert mode == "ro"
        assert source.startswith("${") or (ROOT / source).exists()
        mounted[target] = source
    return mounted


@pytest.mark.parametrize("profile", ["observability", "replicas"])
def test_the_observers_of_a_profile_fit_its_files(profile: str) -> None:
    prefix = "" if profile == "observability" else "replicas-"
    prometheus, grafana = (services()[prefix + name] for name in ("prometheus", "grafana"))
    assert prometheus["profiles"] == grafana["profiles"] == [profile]
    assert grafana["depends_on"] == [f"{prefix}prometheus"]
    mounted = {**pinned_and_local(prometheus), **pinned_and_local(grafana)}
    config = yaml.safe_load((ROOT / mounted["/etc/prometheus/prometheus.yml"]).read_text())
    assert set(config["rule_files"]) <= mounted.keys()
    targets = {target for job in config["scrape_configs"] for target in job["static_configs"][0]["targets"]}
    servers = {name: one for name, one in services().items() if name == "aclserve" or name.startswith("replica-")}
    wanted = {
        f"{name}:{one['command'][one['command'].index('--metrics-port') + 1]}"
        for name, one in servers.items()
        if one.get("profiles", ["observability"]) == [profile]
    }
    assert targets - {"envoy:9902"} == wanted
    assert len(wanted) == (1 if profile == "observability" else 3)
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/aclserve.yml").read_text())["providers"]
    assert mounted[provider["options"]["path"]].endswith("grafana/dashboards")
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    names = prometheus.get("networks", {}).get("default", {}).get("aliases", ["prometheus"])
    assert source["url"] == f"http://{names[0]}:9090"


def test_the_replicas_of_the_compose_file_are_those_of_envoy() -> None:
    envoy = services()["envoy"]
    mounted = pinned_and_local(envoy)
    config = yaml.safe_load((ROOT / mounted["/etc/envoy/envoy.yaml"]).read_text())
    secrets = yaml.safe_load((ROOT / mounted["/etc/envoy/tls.yaml"]).read_text())["resources"]
    assert secrets[0]["tls_certificate"]["watched_directory"]["path"] in mounted
    (cluster,) = (one for one in config["static_resources"]["clusters"] if one["name"] == "replicas")
    found = {}
    for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]:
        place = endpoint["endpoint"]["address"]["socket_address"]
        found[place["address"]] = (place["port_value"], endpoint["metadata"]["filter_metadata"]["envoy.lb"]["replica"])
    replicas = {name: one for name, one in services().items() if name.startswith("replica-")}
    assert found == {
        name: (int(one["command"][one["command"].index("--port") + 1]), one["environment"]["ACLSERVE_REPLICA"])
        for name, one in replicas.items()
    }
    assert envoy["depends_on"] == sorted(replicas)
    assert all(one["profiles"] == ["replicas"] and "ports" not in one for one in (*replicas.values(),))
    listeners = [one["address"]["socket_address"]["port_value"] for one in config["static_resources"]["listeners"]]
    assert [f"127.0.0.1:{port}:{port}" for port in listeners] == envoy["ports"]
