"""What Envoy tries again, by servers that answer as the test says and count what reaches them; and the file itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from aclserve_server.access.groups import METHODS
from aclserve_server.access.principal import ADMIN
from aclserve_server.rpc.status import RETRY
from deploy.site import NAMES, ROOT, Envoy, committed
from e2e.raw import INFER, STREAM_INFER, wait_until
from e2e.test_security import peer_name

LEASE = "aclserve-lease"
V2_INFER = "/inference.GRPCInferenceService/ModelInfer"
MIB = 1 << 20


class Double:
    """A server that refuses every call with a code, and counts. `after`: answers it gives first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.code = grpc.StatusCode.UNAVAILABLE
        self.after = 0
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.port = 0

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        """A handler of every path but health's."""
        if details.method.startswith("/grpc.health."):
            return None
        return grpc.stream_stream_rpc_method_handler(self._handle)

    def _handle(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.calls += 1
        first = next(requests)
        for _ in range(self.after):
            yield first[:16]
        context.set_trailing_metadata(self.trailers)
        context.abort(self.code, "as the test says")

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(4) as pool:
            server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
            server.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
            health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
            self.port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            try:
                yield
            finally:
                server.stop(None).wait()


@pytest.fixture(scope="module")
def doubles() -> Iterator[list[Double]]:
    found = [Double(name) for name in NAMES]
    with ExitStack() as running:
        for double in found:
            running.enter_context(double.running())
        yield found


@pytest.fixture(scope="module")
def front(
    envoy_binary: Path, doubles: list[Double], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Envoy, grpc.Channel]]:
    replicas: Any = doubles
    with Envoy(envoy_binary, tmp_path_factory.mktemp("rules"), replicas) as proxy:
        arguments = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
        with grpc.secure_channel(proxy.address, proxy.credentials, arguments) as channel:
            yield proxy, channel


def ask(
    doubles: list[Double],
    channel: grpc.Channel,
    path: str,
    *,
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
    elsewhere: bool = True,
    after: int = 0,
    lease: str = "",
    size: int = 16,
) -> tuple[int, int]:
    """Makes one call that every server refuses: answers that came before the refusal, and servers' calls together."""
    for double in doubles:
        double.calls, double.code, double.after = 0, code, after
        double.trailers = (RETRY,) if elsewhere else ()
    call = channel.stream_stream(path)(iter([bytes(size)]), timeout=30, metadata=((LEASE, lease),) if lease else ())
    answers = [next(call) for _ in range(after)]
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    error: Any = refused.value
    assert (error.code(), error.details()) == (code, "as the test says")
    return len(answers), sum(double.calls for double in doubles)


Front = tuple[Envoy, grpc.Channel]


@pytest.mark.parametrize("path", [INFER, STREAM_INFER, V2_INFER])
def test_what_a_server_sends_elsewhere_is_tried_at_all(front: Front, doubles: list[Double], path: str) -> None:
    assert ask(doubles, front[1], path) == (0, 3)
    assert [double.calls for double in doubles] == [1, 1, 1]


def test_no_status_alone_is_tried_again(front: Front, doubles: list[Double]) -> None:
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        for path in (INFER, STREAM_INFER, V2_INFER):
            assert ask(doubles, front[1], path, code=code, elsewhere=False) == (0, 1), (code, path)


@pytest.mark.parametrize("path", [INFER, STREAM_INFER, V2_INFER])
def test_nothing_is_tried_again_once_an_answer_has_begun(front: Front, doubles: list[Double], path: str) -> None:
    assert ask(doubles, front[1], path, after=2) == (2, 1)


def test_what_holds_memory_is_tried_once(front: Front, doubles: list[Double]) -> None:
    for method in METHODS["aclserve.v1.MemoryService"]:
        assert ask(doubles, front[1], f"/aclserve.v1.MemoryService/{method}") == (0, 1)
    for number, double in enumerate(doubles):
        assert ask(doubles, front[1], INFER, lease=f"{double.name}.secret") == (0, 1)
        assert [double.calls for double in doubles] == [int(at == number) for at in range(3)]


def test_a_request_too_large_to_hold_is_sent_once(front: Front, doubles: list[Double]) -> None:
    assert ask(doubles, front[1], INFER, size=4 * MIB) == (0, 3)
    assert ask(doubles, front[1], INFER, size=12 * MIB) == (0, 1)


def test_a_new_certificate_is_shown_without_a_restart(front: Front) -> None:
    proxy, files = front[0], front[0].certificates
    assert peer_name(proxy.address, files) == "server"
    files.make("next")
    proxy.show("next")
    wait_until(lambda: peer_name(proxy.address, files) == "next", "the new one is shown")


def test_numbers_are_shown_and_the_rest_of_the_administration_is_not(front: Front) -> None:
    proxy = front[0]
    assert "envoy_cluster_upstream_rq_retry" in proxy.read("/metrics")
    assert proxy.read("/ready") == "LIVE\n"
    for path in ("/", "/config_dump", "/clusters", "/stats", "/quitquitquit", "/certs", "/metrics/../config_dump"):
        assert proxy.read(path) == "404"


def routes() -> list[dict[str, Any]]:
    """The routes of the committed file, in order."""
    listener = committed("envoy.yaml")["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    found: list[dict[str, Any]] = host["routes"]
    return found


def test_every_method_of_administration_is_refused(front: Front, doubles: list[Double]) -> None:
    """By the servers' own table: a new one cannot be forgotten."""
    for double in doubles:
        double.calls = 0
    for service, methods in METHODS.items():
        for method, group in methods.items():
            if group == ADMIN:
                call = front[1].stream_stream(f"/{service}/{method}")(iter([b""]), timeout=30)
                with pytest.raises(grpc.RpcError) as refused:
                    next(call)
                error: Any = refused.value
                assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method
    assert not any(double.calls for double in doubles)


def test_the_administration_listens_on_the_loopback_and_no_stream_has_a_time_limit() -> None:
    config = committed("envoy.yaml")
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    assert {one["route"]["timeout"] for one in routes() if "route" in one} == {"0s"}
    listener = config["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["stream_idle_timeout"] == manager["request_timeout"] == "0s"
    assert [chain["transport_socket"]["name"] for chain in listener["filter_chains"]] == ["envoy.transport_sockets.tls"]


def test_the_certificate_of_the_documentation(envoy_binary: Path, tmp_path: Path) -> None:
    """Its commands as they stand there, and Envoy takes what they make, with the committed files."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: deploy -->\n```sh\n(.*?)```", page, re.DOTALL)
    subprocess.run(["/bin/sh", "-ec", block], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    for name in ("envoy.yaml", "tls.yaml"):
        text = (ROOT / "deploy" / "envoy" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(
            text.replace("/etc/envoy/tls.yaml", str(tmp_path / "tls.yaml")).replace(
                "/etc/envoy/tls", str(tmp_path / "deploy" / "envoy" / "tls")
            )
        )
    command = [str(envoy_binary), "--mode", "validate", "--config-path", str(tmp_path / "envoy.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout
    assert "[warning]" not in done.stderr
