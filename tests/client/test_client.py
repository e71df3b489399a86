"""The verbs of both clients over a real socket: one suite, driven through `Client` and through `AsyncClient`."""

from __future__ import annotations

import asyncio
import inspect
import threading

import numpy as np
import pytest

import aclserve_client as ac
from aclserve import errors

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Blocking:
    """`AsyncClient` or `AsyncLease` as if it were synchronous: runs each awaitable on a loop of its own."""

    def __init__(self, loop, target):
        self._loop, self._target = loop, target

    def __getattr__(self, name):
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute

        def call(*arguments, **options):
            options = {key: value._target if isinstance(value, Blocking) else value for key, value in options.items()}
            answer = attribute(*arguments, **options)
            if inspect.isawaitable(answer):
                return self._loop.run_until_complete(answer)
            return Blocking(self._loop, answer) if isinstance(answer, ac.AsyncLease) else answer

        return call

    def __enter__(self):
        self._loop.run_until_complete(self._target.__aenter__())
        return self

    def __exit__(self, *error):
        self._loop.run_until_complete(self._target.__aexit__(*error))


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """connect(address, options) -> a client with the synchronous surface."""
    clients = []
    with asyncio.Runner() as runner:

        def make(address, options=None):
            if request.param == "sync":
                clients.append(ac.Client(address, options))
            else:
                loop = runner.get_loop()

                async def build():
                    return ac.AsyncClient(address, options)

                clients.append(Blocking(loop, loop.run_until_complete(build())))
            return clients[-1]

        yield make
        for client in clients:
            client.close()


@pytest.fixture
def client(connect, server):
    return connect(server.address)


def test_devices_come_from_all_pages(client, server):
    devices = client.devices()
    assert [device.soc_name for device in devices] == ["Ascend310P3", "Ascend310", "Ascend910"]
    assert devices[0].memory == (ac.MemoryUsage("ddr", 3 << 30, 8 << 30),)
    assert devices[0].run_mode == "host"
    assert devices[0].emulated
    assert devices[0].utilization_percent is None
    assert devices[1].utilization_percent == 7
    assert devices[2].run_mode is ac.RunMode.UNSPECIFIED  # a value of a newer server
    assert server.faults.calls.count("ListDevices") == 2


def test_server_info(client):
    info = client.server_info()
    assert (info.version, info.acl_version, info.features, info.uptime_s) == ("0.1.0", "1.2.3", ("reflection",), 5.5)
    assert info.limits.max_lease_ttl_s == 3600


def test_diagnosis(client, server):
    healthy = client.diagnosis()
    assert healthy.healthy
    assert healthy.findings[0] == ac.Finding(ac.FindingLevel.OK, "area.1", "text 1", "")
    assert healthy.settings[1:3] == (ac.Setting("host", None, "environment"), ac.Setting("port", "8001", "default"))
    assert healthy.settings[3].source == "unspecified"
    server.sick = True
    sick = client.diagnosis()
    assert not sick.healthy
    assert [finding.level for finding in sick.findings] == ["ok", "note", "warning", "error", "unspecified"]


def test_models_and_description(client):
    assert [(m.name, m.state, m.reason) for m in client.models()] == [
        ("echo", "ready", ""),
        ("solo", "ready", ""),
        ("broken", "unavailable", "no such op"),
    ]
    description = client.describe("echo")
    assert description.inputs == (ac.TensorSpec("x", "float32", (-1, 3), "ND", 96),)
    assert description.gears == (ac.Gear("batch", (1,)), ac.Gear("batch", (8,)))
    assert description.batching is ac.Batching.ROWS
    assert description.max_queue_delay_s == 0.002


def test_memory_by_attribute(client):
    assert [usage.kind for usage in client.memory()] == ["ddr", "hbm"]
    assert client.memory(["hbm_huge"]) == [ac.MemoryUsage("hbm_huge", 50, 500)]
    with pytest.raises(ac.InvalidArgument, match="none of"):
        client.memory(["core"])


def test_infer(client):
    result = client.infer("echo", {"x": X}, id="a", capture_time_ns=12_345_678_901, max_wait=0.5)
    np.testing.assert_array_equal(result.outputs["y"], X * 2)
    assert (result.id, result.capture_time_ns, result.error) == ("a", 12_345_678_901, None)
    assert result.timing == ac.Timing(1000, 1, 500, 1, 2000, 4, 8)
    assert result.raise_for_error() is result


def test_infer_with_inputs_made_by_the_server(client):
    assert client.infer("echo", {"x": ac.Zeros((2, 3))}).outputs["y"].tolist() == [[0.0] * 3] * 2
    assert client.infer("echo", {"x": ac.Random((1, 3), "float32", seed=4)}).outputs["y"].tolist() == [[1.0] * 3]


def test_infer_through_buffers(client):
    with client.lease() as lease:
        source, target = lease.allocate(24), lease.allocate(24, "host")
        lease.write(source, X)
        ref = target.ref()
        result = client.infer("echo", {"x": source.ref((2, 3), "float32")}, outputs={"y": ref}, lease=lease)
        assert result.outputs == {}
        assert result.buffers == {"y": ac.BufferRef(target.id, (2, 3), "float32")}
        np.testing.assert_array_equal(lease.read_array(result.buffers["y"], (2, 3), "float32"), X * 2)


def test_load_from_repository_and_unload(client, server):
    with client.lease() as lease:
        work, weight = lease.allocate(8), lease.allocate(8)
        description = client.load(
            "echo2", 4, execution_mode="synchronous", work_buffer=work, weight_buffer=weight, lease=lease
        )
        assert description.name == "echo2"
        request = server.loaded["echo2"]
        assert (request.source.repository.version, request.execution_mode, request.memory_owner) == (4, 2, 2)
        assert (request.work_buffer_id, request.weight_buffer_id) == (work.id, weight.id)
        with pytest.raises(ac.InvalidArgument, match="go together"):
            client.load("echo3", work_buffer=work, lease=lease)
    client.unload("echo2")
    assert "echo2" not in server.loaded


@pytest.mark.parametrize("kind", ["bytes", "path", "str", "empty"])
def test_upload_and_load(client, server, tmp_path, kind):
    content = b"" if kind == "empty" else bytes(range(256)) * 5000  # more than one chunk
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    source = {"bytes": content, "path": file, "str": str(file), "empty": file}[kind]
    assert client.upload_and_load("mine", source).name == "mine"
    request = server.loaded["mine"]
    assert request.name == "mine"
    assert server.uploads[request.source.upload_id] == content
    assert server.leases == {}  # its lease is released


def test_query_model_size(client):
    assert client.query_model_size("echo") == ac.ModelSize(11, 22)
    with client.lease() as lease:
        upload = lease.upload(b"abc")
        assert client.query_model_size(upload=upload, lease=lease).work_bytes == 3


def test_memory_operations(client, server):
    with client.lease(ttl=30) as lease:
        device, host = lease.allocate(5000, policy="huge_only"), lease.allocate(5000, ac.MemorySpace.HOST)
        assert (device.space, device.policy, device.size_bytes) == ("device", "huge_only", 5000)
        third = lease.allocate(1)
        assert {b.id for b in lease.buffers()} == {device.id, host.id, third.id}  # two pages
        lease.free(third)
        lease.set(device, 7)
        lease.set(device, 9, offset_bytes=10, length_bytes=2)
        lease.copy(device, host, 4, source_offset_bytes=9, destination_offset_bytes=1)
        assert lease.read(host, length_bytes=6) == bytes([0, 7, 9, 9, 7, 0])
        assert len(lease.read(device)) == 5000  # several chunks
        values = np.arange(6, dtype=np.int16).reshape(2, 3)
        lease.write(host, values.T, offset_bytes=100)  # row-major, whatever the array's layout
        np.testing.assert_array_equal(lease.read_array(host, (3, 2), "int16", offset_bytes=100), values.T)
        assert lease.read_array(host, (0, 2), "int16").shape == (0, 2)
        info = lease.renew()
        assert (info.ttl_s, info.device_bytes) == (30, 5000)
        assert info.id not in repr(info)
    assert server.leases == {}


def test_a_wrong_checksum_is_data_loss(client, server):
    server.corrupt_reads = 1
    with client.lease() as lease:
        buffer = lease.allocate(10)
        with pytest.raises(ac.DataLoss) as caught:
            lease.read(buffer)
        assert caught.value.reason == "CHECKSUM_MISMATCH"


def test_errors_of_memory_verbs(client):
    with client.lease() as lease:
        buffer = lease.allocate(10)
        for call, kind, reason in [
            (lambda: lease.allocate(2 << 20), ac.ResourceExhausted, "LEASE_QUOTA_EXCEEDED"),
            (lambda: lease.free("nonsense"), ac.NotFound, "BUFFER_NOT_FOUND"),
            (lambda: lease.write(buffer, b"x" * 11), ac.OutOfRange, "RANGE_OUTSIDE_BUFFER"),
            (lambda: lease.read(buffer, offset_bytes=8, length_bytes=5), ac.OutOfRange, "RANGE_OUTSIDE_BUFFER"),
        ]:
            with pytest.raises(kind) as caught:
                call()
            assert caught.value.reason == reason
    with pytest.raises(ac.NotFound) as caught:
        lease.renew()
    assert caught.value.reason == "LEASE_NOT_FOUND"


def test_a_lease_is_used_in_with(client):
    with pytest.raises(ac.FailedPrecondition, match="not open"):
        _ = client.lease().id


def test_a_lease_is_kept_alive_in_the_background(make_server):
    server = make_server(lease_ttl=0.03)
    with ac.Client(server.address) as client, client.lease() as lease:
        assert "aclserve-lease-keepalive" in {thread.name for thread in threading.enumerate()}
        for _ in range(3):
            assert server.renewed.acquire(timeout=20)
        assert lease.id in server.leases
    assert "aclserve-lease-keepalive" not in {thread.name for thread in threading.enumerate()}

    async def run():
        async with ac.AsyncClient(server.address) as client, client.lease():
            for _ in range(3):
                assert await asyncio.to_thread(server.renewed.acquire, timeout=20)
        assert len(asyncio.all_tasks()) == 1

    while server.renewed.acquire(blocking=False):
        pass
    asyncio.run(run())
    assert server.leases == {}


def test_a_lease_outlives_a_failed_renewal_and_stops_when_it_is_gone(make_server):
    server = make_server(lease_ttl=0.03)
    server.faults.plan["RenewLease"] = [errors.Unavailable("later", reason="BUSY")]
    with ac.Client(server.address) as client, client.lease() as lease:
        assert server.renewed.acquire(timeout=20)
        server.faults.plan["RenewLease"] = [errors.NotFound("gone", reason="LEASE_NOT_FOUND")]
        lease._keeper.join(20)
        assert not lease._keeper.is_alive()


def test_an_exception_in_the_block_of_a_lease_leaves_as_it_is(client, server):
    class MineError(Exception):
        pass

    with pytest.raises(MineError), client.lease():
        raise MineError
    assert server.leases == {}


def test_a_closed_client_says_so(connect, server):
    client = connect(server.address)
    client.close()
    with pytest.raises(ac.FailedPrecondition) as caught:
        client.models()
    assert caught.value.reason == "CLIENT_CLOSED"


def test_metadata_of_the_options_goes_with_every_call(connect, server):
    client = connect(server.address, ac.Options(metadata=(("tenant", "blue"),)))
    client.models()
    with client.lease() as lease:
        lease.allocate(1)
        assert server.faults.metadata[-1]["aclserve-lease"] == lease.id
    assert {metadata["tenant"] for metadata in server.faults.metadata} == {"blue"}


def test_reads_are_tried_again_when_the_server_is_unavailable(connect, server):
    client = connect(server.address, ac.Options(retry_attempts=3, retry_backoff=0.001))
    busy = errors.Unavailable("soon", reason="WORKER_RESTARTING", retry_delay=0.002)
    server.faults.plan["GetServerInfo"] = [busy, errors.Unavailable("soon", reason="WORKER_RESTARTING")]
    assert client.server_info().version == "0.1.0"
    assert server.faults.calls.count("GetServerInfo") == 3
    server.faults.plan["GetServerInfo"] = [busy] * 3
    with pytest.raises(ac.Unavailable):
        client.server_info()
    assert server.faults.calls.count("GetServerInfo") == 6


@pytest.mark.parametrize("error", [errors.Unavailable("x", reason="BUSY"), errors.Internal("x", reason="BUG")])
def test_what_changes_something_or_fails_otherwise_is_not_tried_again(connect, server, error):
    client = connect(server.address, ac.Options(retry_backoff=0.001))
    unavailable = isinstance(error, errors.Unavailable)
    method, call = ("Infer", lambda: client.infer("echo", {"x": X})) if unavailable else ("ListModels", client.models)
    server.faults.plan[method] = [error]
    with pytest.raises(type(error)):
        call()
    assert server.faults.calls.count(method) == 1


def test_a_call_has_a_deadline(connect, server):
    server.gate.clear()
    client = connect(server.address, ac.Options(timeout=0.05))
    with pytest.raises(ac.DeadlineExceeded, match=r"no answer from 127.0.0.1:\d+ within 0.05 s"):
        client.infer("echo", {"x": X})
    with pytest.raises(ac.DeadlineExceeded, match=r"within 0.01 s"):
        client.infer("echo", {"x": X}, timeout=0.01)
    server.gate.set()
    client.infer("echo", {"x": X}, timeout=None)


def test_nobody_at_the_address(connect):
    client = connect("127.0.0.1:1", ac.Options(retry_attempts=1))
    with pytest.raises(ac.Unavailable) as caught:
        client.models()
    assert caught.value.reason == "CONNECTION_FAILED"
    assert "cannot reach an aclserve server at 127.0.0.1:1" in caught.value.message
    assert "aclserve serve" in caught.value.message


def test_a_message_that_is_too_large(connect, server):
    client = connect(server.address, ac.Options(max_message_bytes=1000))
    with pytest.raises(ac.ResourceExhausted) as caught:
        client.infer("echo", {"x": np.zeros((1000, 3), np.float32)})
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert "max_message_bytes" in caught.value.message


def test_item_errors_and_rpc_errors_are_the_same(client):
    with pytest.raises(ac.InvalidArgument) as caught:
        client.infer("echo", {"x": np.zeros((2, 4), np.float32)})
    assert (caught.value.reason, caught.value.metadata) == ("SHAPE_MISMATCH", {"input": "x"})
    assert caught.value.message == "got shape [2, 4]"
