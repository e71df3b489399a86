"""Who may do what, over the wire. The first part is made from the descriptors: a new RPC is in it by itself."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from aclserve.errors import AclserveError, NotFound, ResourceExhausted
from aclserve.v1 import memory_pb2, model_pb2
from aclserve_client import Client, Options
from aclserve_server.access.directory import entry, make_token
from aclserve_server.access.groups import METHODS
from aclserve_server.access.principal import ANYONE, GROUPS, OPEN, Principal
from aclserve_server.kserve import inference_pb2 as v2
from aclserve_server.kserve import inference_pb2_grpc as v2_grpc
from aclserve_server.rpc import health
from aclserve_server.rpc.ports import Certificates, make_server, open_port
from aclserve_server.server import DESCRIPTORS
from certificates import Files, peer_name
from serving import Serving, elementwise, put_model, rows, serving

TIMEOUT_S = 30
TOKENS = {name: make_token() for name in ("all", "other", "none", "slow", "unary", "small", "gone", *GROUPS)}
EXTRA = {
    "slow": "max_requests_per_s = 1e-6\n",
    "unary": "max_streams = 0\n",
    "small": "max_leases = 1\nmax_device_bytes = 4096\nmax_host_bytes = 4096\nmax_items = 1\n",
}


GRANTED: dict[str, tuple[str, ...]] = {"none": (), **{group: (group,) for group in GROUPS}}
"""Groups of those who have not all."""

CONTENT = {
    "AllocateBuffer": memory_pb2.AllocateBufferRequest(space="MEMORY_SPACE_HOST", size_bytes=1).SerializeToString(),
    "WriteBuffer": memory_pb2.WriteBufferRequest(header={"length_bytes": 1}).SerializeToString(),
    "UploadModel": model_pb2.UploadModelRequest(header={"size_bytes": 1}).SerializeToString(),
}
"""Of calls that look at their message before their lease; others get an empty one."""


@dataclass(frozen=True)
class Method:
    """One RPC of a descriptor."""

    service: str
    name: str
    kind: str

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    @property
    def group(self) -> str:
        return METHODS[self.service][self.name]


def methods() -> Iterator[Method]:
    reflection = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    for service in (*DESCRIPTORS, health.DESCRIPTOR.services_by_name["Health"], reflection):
        for method in service.methods:
            kinds = ("stream" if flag else "unary" for flag in (method.client_streaming, method.server_streaming))
            found = Method(service.full_name, method.name, "_".join(kinds))
            yield found
            if service is reflection:
                yield dataclasses.replace(found, service="grpc.reflection.v1.ServerReflection")


ALL = list(methods())
every = pytest.mark.parametrize("method", ALL, ids=lambda method: method.path)


def principals() -> str:
    return "\n".join(
        entry(name, token, GRANTED.get(name, GROUPS)) + EXTRA.get(name, "") for name, token in TOKENS.items()
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "same", elementwise())
    return root


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "principals.toml"
    path.write_text(principals())
    return path


@pytest.fixture(scope="module")
def up(repository: Path, file: Path) -> Iterator[Serving]:
    with serving(repository, principals=str(file)) as served:
        yield served


@pytest.fixture(scope="module")
def channel(up: Serving) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(up.address) as opened:
        yield opened


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {TOKENS[name]}"),)


def call(channel: grpc.Channel, method: Method, metadata: Any = ()) -> tuple[grpc.StatusCode, str, float | None]:
    """Calls with one message: the status, its reason, and when to try again. OK after the first answer."""
    made: Any = getattr(channel, method.kind)(method.path)
    content = CONTENT.get(method.name, b"")
    request: Any = iter([content]) if method.kind.startswith("stream") else content
    try:
        if method.kind.endswith("unary"):
            made(request, metadata=metadata, timeout=TIMEOUT_S)
        else:
            answers = made(request, metadata=metadata, timeout=TIMEOUT_S)
            next(answers, None)
            answers.cancel()
    except grpc.RpcError as error:
        return told(error)
    return grpc.StatusCode.OK, "", None


def told(error: Any) -> tuple[grpc.StatusCode, str, float | None]:
    trailers = dict(error.trailing_metadata() or ())
    raw = trailers.get("grpc-status-details-bin", b"")
    info, retry, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in status_pb2.Status.FromString(raw).details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            delay = retry.retry_delay.ToNanoseconds() / 1e9
    pushback = trailers.get("grpc-retry-pushback-ms")
    assert (pushback is None) == (delay is None)
    assert delay is None or 0 <= int(pushback) / 1e3 - delay <= 0.001
    assert not any(token in error.details() for token in TOKENS.values())
    return error.code(), info.reason, delay


@every
@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization", "Bearer unknown"),), "TOKEN_UNKNOWN"),
        ((("authorization", f"Basic {TOKENS['all']}"),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer "),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer " + "x" * 5000),), "TOKEN_UNKNOWN"),
    ],
)
def test_an_unknown_caller(channel: grpc.Channel, method: Method, metadata: Any, reason: str) -> None:
    code, got, _ = call(channel, method, metadata)
    if method.group == OPEN:
        assert code is grpc.StatusCode.OK
    else:
        assert (code, got) == (grpc.StatusCode.UNAUTHENTICATED, reason)


@every
def test_a_caller_without_the_group(channel: grpc.Channel, method: Method) -> None:
    code, reason, _ = call(channel, method, bearer("none"))
    if method.group in (OPEN, ANYONE):
        assert code is grpc.StatusCode.OK
    else:
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "GROUP_MISSING")


@every
@pytest.mark.parametrize("granted", GROUPS)
def test_a_caller_with_one_group(channel: grpc.Channel, method: Method, granted: str) -> None:
    code, reason, _ = call(channel, method, bearer(granted))
    denied = method.group not in (OPEN, ANYONE, granted)
    assert (reason == "GROUP_MISSING") == denied
    assert (code is grpc.StatusCode.PERMISSION_DENIED) == denied


@every
def test_a_caller_over_its_rate(channel: grpc.Channel, method: Method) -> None:
    call(channel, Method("aclserve.v1.DeviceService", "ListDevices", "unary_unary"), bearer("slow"))
    code, reason, delay = call(channel, method, bearer("slow"))
    if method.group == OPEN:
        assert code is grpc.StatusCode.OK
    else:
        assert (code, reason) == (exhausted(method), "QUOTA_EXCEEDED")
        assert delay is not None
        assert delay > 0


@every
def test_a_caller_over_its_streams(channel: grpc.Channel, method: Method) -> None:
    code, reason, _ = call(channel, method, bearer("unary"))
    if method.group != OPEN and "stream" in method.kind:
        assert (code, reason) == (exhausted(method), "QUOTA_EXCEEDED")
    else:
        assert reason != "QUOTA_EXCEEDED"


@every
def test_another_principal_s_lease(up: Serving, channel: grpc.Channel, method: Method) -> None:
    """Whatever needs a lease does not know the one of somebody else."""
    with Client(up.address, Options(metadata=bearer("all"))) as client, client.lease() as lease:
        shown = (("aclserve-lease", lease.id),)
        _, without, _ = call(channel, method, bearer("other"))
        code, foreign, _ = call(channel, method, bearer("other") + shown)
        if without == "LEASE_REQUIRED" or foreign == "LEASE_NOT_FOUND":
            assert (code, foreign) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")
        else:
            assert foreign == without
        if method.service.endswith("MemoryService") and method.name not in ("CreateLease", "QueryMemory"):
            assert foreign == "LEASE_NOT_FOUND"


def exhausted(method: Method) -> grpc.StatusCode:
    """What is used up is unavailable to clients of the v2 protocol."""
    unavailable = method.service.startswith("inference.")
    return grpc.StatusCode.UNAVAILABLE if unavailable else grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_method_is_in_the_table_and_the_other_way_round() -> None:
    assert {(method.service, method.name) for method in ALL} == {
        (service, name) for service, names in METHODS.items() for name in names
    }


def connect(up: Serving, name: str, **options: Any) -> Client:
    return Client(up.address, Options(metadata=bearer(name), retry_attempts=1, **options))


def reason_of(error: pytest.ExceptionInfo[Any]) -> str:
    return str(error.value.reason)


def test_quotas_of_leases_and_bytes_hold_over_all_leases_of_a_principal(up: Serving) -> None:
    with connect(up, "small") as client:
        with client.lease() as lease:
            with pytest.raises(ResourceExhausted) as caught, client.lease():
                pass
            assert reason_of(caught) == "QUOTA_EXCEEDED"
            for space in ("device", "host"):
                held = lease.allocate(4096, space)
                with pytest.raises(ResourceExhausted) as caught:
                    lease.allocate(1, space)
                assert reason_of(caught) == "QUOTA_EXCEEDED"
                lease.free(held)
            assert up.server.memory.use().device_bytes == 0
        with client.lease():
            pass
    with connect(up, "all") as client, client.lease() as lease:
        lease.allocate(1 << 16)


def test_the_quota_of_items(up: Serving) -> None:
    with connect(up, "small") as client:
        for _ in range(3):
            assert np.array_equal(client.infer("same", {"x": rows(0, 1)}).outputs["y"], rows(0, 1))
        up.emulator.hold()
        try:
            with client.stream("same") as stream:
                stream.send({"x": rows(0, 1)})
                wait_for(lambda: principal_of(up, "small").items == 1)
                with pytest.raises(ResourceExhausted) as caught:
                    client.infer("same", {"x": rows(1, 1)})
                assert reason_of(caught) == "QUOTA_EXCEEDED"
                assert caught.value.retry_delay
                up.emulator.release()
                stream.send_many([{"x": rows(number, 1)} for number in range(1, 9)])
                stream.finish()
                results = list(stream.results())
                assert all(result.error is None for result in results)
                assert len(results) == 9
        finally:
            up.emulator.release()
    assert principal_of(up, "small").items == 0


def test_the_quota_of_items_over_the_v2_protocol(up: Serving, channel: grpc.Channel) -> None:
    request = v2.ModelInferRequest(model_name="same", raw_input_contents=[rows(0, 1).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    stub: Any = v2_grpc.GRPCInferenceServiceStub(channel)
    stub.ModelInfer(request, metadata=bearer("small"), timeout=TIMEOUT_S)
    up.emulator.hold()
    try:
        first = stub.ModelInfer.future(request, metadata=bearer("small"), timeout=TIMEOUT_S)
        wait_for(lambda: principal_of(up, "small").items == 1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, metadata=bearer("small"), timeout=TIMEOUT_S)
        code, reason, delay = told(caught.value)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "QUOTA_EXCEEDED")
        assert delay
        (answer,) = stub.ModelStreamInfer(iter([request]), metadata=bearer("small"), timeout=TIMEOUT_S)
        assert "1 items in flight" in answer.error_message
    finally:
        up.emulator.release()
    assert first.result(TIMEOUT_S).raw_output_contents == [rows(0, 1).tobytes()]


def test_uploads_count_as_host_memory(up: Serving) -> None:
    with connect(up, "small") as client, client.lease() as lease:
        with pytest.raises(ResourceExhausted) as caught:
            lease.upload(bytes(4097))
        assert reason_of(caught) == "QUOTA_EXCEEDED"
        assert up.server.memory.use().host_bytes == 0


def test_streams_of_one_principal_share_its_part_of_the_device(up: Serving) -> None:
    """Six streams of one principal and one of another, whose items wait together: each principal's go in turn."""
    order: list[str] = []
    runner = up.server.engine.find("same", 0).runner
    assert runner is not None
    take = runner._queue.take

    def taken() -> list[Any]:
        tickets = take()
        order.extend(ticket.payer.name for ticket in tickets for _ in range(ticket.rows))
        return tickets

    runner._queue.take = taken  # type: ignore[method-assign]
    with connect(up, "all") as many, connect(up, "other") as one, ExitStack() as stack:
        streams = [stack.enter_context(client.stream("same")) for client in [*[many] * 6, one]]
        up.emulator.hold()
        try:
            for stream in streams:
                stream.send_many([{"x": rows(number, 1)} for number in range(60)])
                stream.finish()
            wait_for(lambda: sum(principal_of(up, name).items for name in ("all", "other")) == 7 * 60)
            begun = len(order)
        finally:
            up.emulator.release()
        for stream in streams:
            assert all(result.error is None for result in stream.results())
    runner._queue.take = take  # type: ignore[method-assign]
    waited = order[begun:]
    last = len(waited) - waited[::-1].index("other")
    shares = Counter(waited[:last])
    assert shares["all"] <= shares["other"] + 3 * runner._queue.max_rows, shares


def test_streams_that_stay_within_their_windows_are_never_refused(tmp_path: Path, file: Path) -> None:
    """Though all are one principal's, which may not fill the whole queue: what is too much is dropped by its policy."""
    put_model(tmp_path, "narrow", elementwise(), "max_batch_size: 2\n")
    with (
        serving(tmp_path, principals=str(file), max_stream_items=16, max_queue_rows=32) as up,
        connect(up, "all") as client,
        client.stream("narrow", policy="drop_newest") as first,
        client.stream("narrow", policy="drop_newest") as second,
    ):
        up.emulator.hold()
        try:
            for stream in (first, second):
                stream.send_many([{"x": rows(0, 1)} for _ in range(24)])
                stream.finish()
            sessions = up.server.models.sessions
            wait_for(lambda: all(session.received == 24 for session in sessions))
        finally:
            up.emulator.release()
        results = [result for stream in (first, second) for result in stream.results()]
    assert len(results) == 48
    assert not [result.error for result in results if result.error is not None]
    dropped = sum(result.dropped is not None for result in results)
    assert 48 - 2 * 16 <= dropped < 48


def test_unary_calls_of_one_principal_share_one_turn(up: Serving) -> None:
    """The queue is fair between its streams: for it, all unary calls of a principal are one, and each stream is one."""
    flows: list[Any] = []
    runner = up.server.engine.find("same", 0).runner
    assert runner is not None
    admit = runner.contract.admit
    runner.contract.admit = lambda *given: flows.append(admit(*given)) or flows[-1]  # type: ignore[method-assign]
    try:
        with connect(up, "all") as many, connect(up, "other") as one:
            for client in (many, many, one):
                client.infer("same", {"x": rows(0, 1)})
            with many.stream("same") as first, many.stream("same") as second:
                for stream in (first, second):
                    stream.send({"x": rows(0, 1)})
                    stream.finish()
                    list(stream.results())
    finally:
        runner.contract.admit = admit  # type: ignore[method-assign]
    streams = [ticket.stream for ticket in flows]
    assert streams[:2] == [principal_of(up, "all")] * 2
    assert streams[2] is principal_of(up, "other")
    assert len(set(map(id, streams[2:]))) == 3


def principal_of(up: Serving, name: str) -> Principal:
    assert up.server.principals is not None
    return up.server.principals.by_authorization(f"Bearer {TOKENS[name]}")


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, for a bounded while."""
    for _ in range(TIMEOUT_S * 100):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to hold")


def test_a_withdrawn_principal_has_nothing_any_more(up: Serving, file: Path) -> None:
    assert up.server.principals is not None
    directory = up.server.principals

    async def check() -> bool:
        return directory.check()

    before = file.read_text()
    with connect(up, "gone") as client:
        lease = client.lease().__enter__()
        lease_call = lease.allocate(16)
        assert lease_call.size_bytes == 16
        file.write_text(before + "\n[broken")
        up.run(check())
        lease.allocate(16)
        file.write_text("\n".join(part for part in before.split("\n\n") if '"gone"' not in part))
        up.run(check())
        with pytest.raises(AclserveError) as caught:
            lease.allocate(16)
        assert reason_of(caught) == "TOKEN_UNKNOWN"
        file.write_text(before)
        up.run(check())
        with pytest.raises(NotFound) as gone:
            lease.allocate(16)
        assert reason_of(gone) == "LEASE_NOT_FOUND"


def test_regions_without_a_lease_are_each_principal_s_own(repository: Path, file: Path) -> None:
    key = f"/aclserve-security-{os.getpid()}"
    Path(f"/dev/shm{key}").write_bytes(bytes(64))
    try:
        with (
            serving(repository, principals=str(file), system_shared_memory=True) as up,
            grpc.insecure_channel(up.address) as channel,
        ):
            stub: Any = v2_grpc.GRPCInferenceServiceStub(channel)
            request = v2.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=64)
            for name in ("all", "other"):
                stub.SystemSharedMemoryRegister(request, metadata=bearer(name), timeout=TIMEOUT_S)
            stub.SystemSharedMemoryUnregister(
                v2.SystemSharedMemoryUnregisterRequest(), metadata=bearer("all"), timeout=TIMEOUT_S
            )
            for name, regions in (("all", 0), ("other", 1)):
                status = stub.SystemSharedMemoryStatus(
                    v2.SystemSharedMemoryStatusRequest(), metadata=bearer(name), timeout=TIMEOUT_S
                )
                assert len(status.regions) == regions
    finally:
        Path(f"/dev/shm{key}").unlink()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("certificates"))
    made.make("ca")
    for name in ("server", "next"):
        made.make(name)
    made.make("camera", "subjectAltName=URI:spiffe://plant/camera")
    made.make("stranger", "subjectAltName=DNS:stranger.plant")
    return made


def test_tls_and_its_reload(repository: Path, files: Files) -> None:
    for kind in ("key", "pem"):
        (files.folder / f"live.{kind}").write_bytes(files.read(f"server.{kind}"))
    with serving(repository, tls_cert=files.path("live.pem"), tls_key=files.path("live.key")) as up:
        assert peer_name(up.address, files) == "server"
        with Client(up.address, Options(credentials=files.credentials())) as client:
            assert client.models()[0].name == "same"
        (files.folder / "live.pem").write_bytes(b"broken")
        assert peer_name(up.address, files) == "server"
        for kind in ("key", "pem"):
            (files.folder / f"live.{kind}").write_bytes(files.read(f"next.{kind}"))
        assert peer_name(up.address, files) == "next"


def test_every_port_sees_new_certificates(files: Files) -> None:
    """A worker of several devices has two."""
    live = {kind: files.folder / f"both.{kind}" for kind in ("pem", "key")}
    for kind, file in live.items():
        file.write_bytes(files.read(f"server.{kind}"))

    async def main() -> list[str]:
        server = make_server(1 << 20, shares=True)
        tls = Certificates(str(live["pem"]), str(live["key"]))
        ports = [open_port(server, "--port", "127.0.0.1", 0, tls) for _ in range(2)]
        await server.start()
        found = []
        for name in ("server", "next"):
            for kind, file in live.items():
                file.write_bytes(files.read(f"{name}.{kind}"))
            found += [await asyncio.to_thread(peer_name, f"127.0.0.1:{port}", files) for port in ports]
        await server.stop(None)
        return found

    assert asyncio.run(main()) == ["server", "server", "next", "next"]


def test_principals_of_client_certificates(repository: Path, files: Files, tmp_path: Path) -> None:
    file = tmp_path / "principals.toml"
    name = "URI=spiffe://plant/camera"
    file.write_text(f'[principals.camera]\ncertificates = ["{name}"]\ngroups = ["infer"]\n' + principals())
    tls = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    options = {option: files.path(name) for option, name in tls.items()}
    health_port = free_port()
    with serving(repository, principals=str(file), health_port=health_port, **options) as up:
        for client_name, method, expected in (
            ("camera", "ListModels", (grpc.StatusCode.OK, "")),
            ("camera", "UnloadModel", (grpc.StatusCode.PERMISSION_DENIED, "GROUP_MISSING")),
            ("stranger", "ListModels", (grpc.StatusCode.UNAUTHENTICATED, "CERTIFICATE_UNKNOWN")),
        ):
            with grpc.secure_channel(up.address, files.credentials(client_name)) as channel:
                found = call(channel, Method("aclserve.v1.ModelService", method, "unary_unary"))
                assert found[:2] == expected
        with grpc.secure_channel(up.address, files.credentials("stranger")) as channel:
            listing = Method("aclserve.v1.ModelService", "ListModels", "unary_unary")
            assert call(channel, listing, bearer("all"))[0] is grpc.StatusCode.OK
        with grpc.secure_channel(up.address, files.credentials()) as channel:
            assert call(channel, listing)[0] is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(f"127.0.0.1:{health_port}") as channel:
            for method in ALL:
                served = call(channel, method)[0] is not grpc.StatusCode.UNIMPLEMENTED
                assert served == (method.path in ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"))


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tls_cert": "camera.pem", "tls_key": "server.key"}, "--tls-cert"),
        ({"tls_cert": "none.pem", "tls_key": "server.key"}, "--tls-cert"),
        ({"principals": "server.pem"}, "--principals"),
        ({"principals": "none"}, "--principals"),
    ],
)
def test_files_that_cannot_be_used_keep_the_server_from_starting(
    wrong: dict[str, str], words: str, repository: Path, files: Files
) -> None:
    options: Any = {option: files.path(name) for option, name in wrong.items()}
    with pytest.raises(OSError, match=words), serving(repository, **options):
        pass


def test_without_authentication_this_host_administrates(repository: Path) -> None:
    with serving(repository) as up, Client(up.address) as client, pytest.raises(NotFound):
        client.unload("nothing")
