"""What deploy/envoy describes, on this host: replicas as processes of their own, and a real Envoy in front of them.

Envoy runs with the committed configuration; only addresses, ports and paths are others (`local`).
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import grpc
import yaml
from prometheus_client.parser import text_string_to_metric_families

import aclserve_client as ac
from e2e.raw import wait_until
from e2e.test_security import Files, free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "envoy"
STOP_S = 60.0

NAMES = ("replica-1", "replica-2", "replica-3")
"""Of the replicas, as the configuration has them."""


class Replica:
    """One server process with a name, on a port that stays the same when it is started again."""

    def __init__(self, name: str, repository: Path, *options: str) -> None:
        self.name = name
        self.port = 0
        self.metrics_port = 0
        self._command = [sys.executable, "-m", "aclserve_server", "serve", "--acl-library", "emulator"]
        self._command += ["--model-repository", str(repository), "--replica", name, "--log-level", "error", *options]
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process that runs, or ran last."""
        assert self._process is not None
        return self._process

    def launch(self) -> None:
        """Begins to start it."""
        paths = os.pathsep.join(str(ROOT / name) for name in ("protos", "service", "client"))
        command = [*self._command, "--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        environ = {**os.environ, "PYTHONPATH": paths}
        self._process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Waits until it serves."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), f"{self.name} does not start: {line!r}"
        places = dict(part.split("=", 1) for part in line.split()[1:])
        self.port, self.metrics_port = (int(places[kind].rpartition(":")[2]) for kind in ("grpc", "metrics"))

    def start(self) -> None:
        """Starts it."""
        self.launch()
        self.wait()

    def kill(self) -> None:
        """Ends it as a loss of power does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ends it in order; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        with self.process as process:
            process.send_signal(number)
            return process.wait(STOP_S)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=STOP_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def committed(name: str) -> dict[str, Any]:
    """A file of deploy/envoy."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return loaded


def local(config: dict[str, Any], replicas: Sequence[Replica], folder: Path) -> dict[str, Any]:
    """A configuration for this host: free ports, these replicas, the files in `folder`; all else as it is."""
    found = copy.deepcopy(config)
    admin = {"address": "127.0.0.1", "port_value": free_port()}
    assert found["admin"]["address"]["socket_address"]["address"] == admin["address"]
    found["admin"]["address"]["socket_address"] = admin
    listeners = {one["name"]: one for one in found["static_resources"]["listeners"]}
    for one in listeners.values():
        one["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    (secret,) = listeners["grpc"]["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"][
        "tls_certificate_sds_secret_configs"
    ]
    secret["sds_config"]["path_config_source"]["path"] = str(folder / "tls.yaml")
    endpoints, (own,) = (
        one["load_assignment"]["endpoints"][0]["lb_endpoints"] for one in found["static_resources"]["clusters"]
    )
    own["endpoint"]["address"]["socket_address"] = admin
    assert len(endpoints) == len(replicas)
    for endpoint, replica in zip(endpoints, replicas, strict=True):
        endpoint["endpoint"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": replica.port}
        assert endpoint["metadata"]["filter_metadata"]["envoy.lb"]["replica"] == replica.name
    return found


class Envoy:
    """Envoy over replicas, in `folder`. `address` is the TLS port, `watch` the one of numbers."""

    def __init__(self, binary: Path, folder: Path, replicas: Sequence[Replica]) -> None:
        self.folder = folder
        self.replicas = replicas
        self.certificates = Files(folder)
        for name in ("ca", "server"):
            self.certificates.make(name)
        (folder / "tls").mkdir()
        self.show("server")
        (folder / "tls.yaml").write_text(
            (DEPLOY / "tls.yaml").read_text(encoding="utf-8").replace("/etc/envoy/tls", str(folder / "tls"))
        )
        (folder / "envoy.yaml").write_text(yaml.safe_dump(local(committed("envoy.yaml"), replicas, folder)))
        self._command = [str(binary), "--config-path", str(folder / "envoy.yaml"), "--use-dynamic-base-id"]
        self._command += ["--admin-address-path", str(folder / "admin"), "--concurrency", "2", "--log-level", "error"]
        self._running = ExitStack()
        self.admin = self.address = self.watch = ""

    def show(self, name: str) -> None:
        """Puts a certificate where Envoy reads it, as an operator would: by moving it there, the key first."""
        for kind in ("key", "pem"):
            new = self.folder / f"new.{kind}"
            new.write_bytes((self.folder / f"{name}.{kind}").read_bytes())
            new.replace(self.folder / "tls" / f"server.{kind}")

    def __enter__(self) -> Self:
        log: IO[bytes] = self._running.enter_context((self.folder / "log").open("wb"))
        process = self._running.enter_context(subprocess.Popen(self._command, stdout=log, stderr=log))
        self._running.callback(process.terminate)
        try:
            wait_until(lambda: self._is_up(process), "Envoy is up")
            self.wait_for(*self.replicas)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def _is_up(self, process: subprocess.Popen[bytes]) -> bool:
        log = self.folder / "log"
        assert process.poll() is None, log.read_text(errors="replace")
        place = self.folder / "admin"
        if not place.is_file() or not (text := place.read_text()):
            return False
        self.admin = text
        ports = {
            one["name"]: one["local_address"]["socket_address"] for one in self._json("/listeners", "listener_statuses")
        }
        self.address, self.watch = (f"127.0.0.1:{ports[name]['port_value']}" for name in ("grpc", "watch"))
        return self._get("/ready") == "LIVE\n"

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=STOP_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            return ""

    def _json(self, path: str, key: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._get(f"{path}?format=json") or "{}").get(key, [])
        return found

    def serving(self) -> set[str]:
        """Names of the replicas that Envoy sends calls to."""
        clusters = self._json("/clusters", "cluster_statuses")
        ports = {replica.port: replica.name for replica in self.replicas}
        hosts = next(one["host_statuses"] for one in clusters if one["name"] == "replicas")
        down = ("failed_active_health_check", "failed_outlier_check", "pending_active_hc")
        return {
            ports[host["address"]["socket_address"]["port_value"]]
            for host in hosts
            if not any(host["health_status"].get(flag) for flag in down)
        }

    def wait_for(self, *replicas: Replica) -> None:
        """Waits until Envoy sends calls to these replicas, and to no other."""
        names = {replica.name for replica in replicas}
        wait_until(lambda: self.serving() == names, f"Envoy uses {sorted(names)}")

    def stat(self, name: str) -> int:
        """One of Envoy's counters or gauges of the replicas."""
        found = self._json(f"/stats?filter=^cluster.replicas.{name}$&", "stats")
        return sum(int(one["value"]) for one in found if "value" in one)

    def drain(self) -> None:
        """Has it take no more connections, and end those that it has when they are done."""
        request = urllib.request.Request(f"http://{self.admin}/drain_listeners?graceful", method="POST")
        with urllib.request.urlopen(request, timeout=STOP_S) as answer:
            assert answer.read() == b"OK\n"

    def read(self, path: str) -> str:
        """A page of the port of numbers, or the status of its refusal."""
        try:
            with urllib.request.urlopen(f"http://{self.watch}{path}", timeout=STOP_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.code)

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """For clients: they trust the authority."""
        return ac.tls(self.folder / "ca.pem")

    def client(self, **options: Any) -> ac.Client:
        """A client of what the proxy offers."""
        return ac.Client(self.address, ac.Options(credentials=self.credentials, **options))


def up(replicas: Sequence[Replica]) -> AbstractContextManager[None]:
    """Starts replicas, all at once, and kills at the end those that run."""
    stack = ExitStack()
    for replica in replicas:
        replica.launch()
        stack.callback(lambda replica=replica: replica.process.poll() is None and replica.kill())
    for replica in replicas:
        replica.wait()
    return stack
