"""Shared memory by the calls of the KServe v2 protocol: regions by owner, and the calls for memory of CUDA devices."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from aclserve.v1 import memory_pb2, memory_pb2_grpc
from aclserve_server.kserve import inference_pb2 as pb
from rpc.v2.v2_server import V2, v2
from serving import elementwise, put_model, rows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ABSENT = grpc.StatusCode.NOT_FOUND
SIZE = 4096

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise("Neg"))
    with v2(root, system_shared_memory=True, max_regions=3) as up:
        yield up


@pytest.fixture
def key() -> Iterator[str]:
    """An object of shared memory."""
    with shared_object() as name:
        yield name


@contextmanager
def shared_object(content: bytes = b"\0" * SIZE) -> Iterator[str]:
    path = Path(f"/dev/shm/aclserve_test_{secrets.token_hex(8)}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, content)
    os.close(descriptor)
    try:
        yield f"/{path.name}"
    finally:
        path.unlink()


@pytest.fixture
def lease(served: V2) -> Iterator[str]:
    stub = memory_pb2_grpc.MemoryServiceStub(served.channel)
    lease_id = stub.CreateLease(memory_pb2.CreateLeaseRequest(), timeout=60).lease.id
    yield lease_id
    stub.ReleaseLease(memory_pb2.ReleaseLeaseRequest(), timeout=60, metadata=(("aclserve-lease", lease_id),))


@pytest.fixture(autouse=True)
def nothing_left(served: V2) -> Iterator[None]:
    yield
    unregister(served)
    assert status(served) == {}


def register(served: V2, name: str, key: str, offset: int = 0, size: int = SIZE, lease: str = "") -> None:
    served.call("SystemSharedMemoryRegister", region(name, key, offset, size), lease)


def region(name: str, key: str, offset: int = 0, size: int = SIZE) -> Any:
    return pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)


def unregister(served: V2, name: str = "", lease: str = "") -> None:
    served.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name), lease)


def status(served: V2, name: str = "", lease: str = "") -> dict[str, tuple[str, str, int, int]]:
    answer = served.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name), lease)
    return {name: (one.name, one.key, one.offset, one.byte_size) for name, one in answer.regions.items()}


def test_a_region_is_registered_shown_and_forgotten(served: V2, key: str) -> None:
    register(served, "in", key)
    register(served, "out", key, 1024, 2048)
    assert status(served) == {"in": ("in", key, 0, SIZE), "out": ("out", key, 1024, 2048)}
    assert status(served, "out") == {"out": ("out", key, 1024, 2048)}
    served.refused("SystemSharedMemoryRegister", region("in", key), grpc.StatusCode.ALREADY_EXISTS, "REGION_EXISTS")
    unregister(served, "in")
    request = pb.SystemSharedMemoryStatusRequest(name="in")
    assert "'in'" in served.refused("SystemSharedMemoryStatus", request, ABSENT, "REGION_NOT_FOUND")
    unregister(served, "in")
    unregister(served)
    unregister(served)
    assert status(served) == {}


@pytest.mark.parametrize(
    ("name", "named", "offset", "size", "code", "reason"),
    [
        ("", None, 0, SIZE, INVALID, "REGION_NAME_INVALID"),
        ("a", None, 0, 0, INVALID, "SIZE_IS_ZERO"),
        ("a", None, 0, SIZE + 1, INVALID, "RANGE_OUTSIDE_REGION"),
        ("a", None, SIZE, 1, INVALID, "RANGE_OUTSIDE_REGION"),
        ("a", None, 2**64 - 1, SIZE, INVALID, "RANGE_OUTSIDE_REGION"),
        ("a", None, 1, 2**64 - 1, INVALID, "RANGE_OUTSIDE_REGION"),
        ("a", "/no_such_object_here", 0, SIZE, ABSENT, "REGION_NOT_VISIBLE"),
        ("a", "/../etc/passwd", 0, 16, INVALID, "REGION_KEY_INVALID"),
        ("a", "", 0, 16, INVALID, "REGION_KEY_INVALID"),
        ("a", "/triton_python_backend_shm_region_1", 0, 16, INVALID, "REGION_KEY_INVALID"),
    ],
)
def test_regions_that_cannot_be_registered(
    served: V2, key: str, name: str, named: str | None, offset: int, size: int, code: grpc.StatusCode, reason: str
) -> None:
    request = region(name, key if named is None else named, offset, size)
    text = served.refused("SystemSharedMemoryRegister", request, code, reason)
    assert "/dev/shm/" not in text


def test_owners_have_a_bound_and_do_not_see_each_other(served: V2, key: str, lease: str) -> None:
    for name in "abc":
        register(served, name, key)
    full = grpc.StatusCode.UNAVAILABLE
    served.refused("SystemSharedMemoryRegister", region("d", key), full, "TOO_MANY_REGIONS")
    register(served, "a", key, 8, 16, lease)
    assert status(served, lease=lease) == {"a": ("a", key, 8, 16)}
    unregister(served)
    assert status(served) == {}
    assert status(served, lease=lease) == {"a": ("a", key, 8, 16)}
    request = pb.SystemSharedMemoryStatusRequest(name="a")
    served.refused("SystemSharedMemoryStatus", request, ABSENT, "REGION_NOT_FOUND")
    unregister(served, lease=lease)
    assert status(served, lease=lease) == {}


def test_a_lease_that_is_not_there(served: V2, key: str) -> None:
    for method, request in (
        ("SystemSharedMemoryRegister", region("a", key)),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
        ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
    ):
        served.refused(method, request, ABSENT, "LEASE_NOT_FOUND", lease="never-was")


def infer_request(count: int, *, input_region: str, output_region: str, output_bytes: int, offset: int = 0) -> Any:
    def where(name: str, size: int) -> dict[str, Any]:
        return {
            "shared_memory_region": pb.InferParameter(string_param=name),
            "shared_memory_byte_size": pb.InferParameter(int64_param=size),
            "shared_memory_offset": pb.InferParameter(int64_param=offset),
        }

    request = pb.ModelInferRequest(model_name="plain")
    request.inputs.add(name="x", datatype="FP32", shape=(count, 4), parameters=where(input_region, count * 16))
    request.outputs.add(name="y", parameters=where(output_region, output_bytes))
    return request


def test_an_inference_through_regions(served: V2) -> None:
    values = rows(3, 5)
    with shared_object(values.tobytes()) as key, shared_object() as out:
        register(served, "in", key, 0, values.nbytes)
        register(served, "out", out)
        request = infer_request(5, input_region="in", output_region="out", output_bytes=values.nbytes)
        answer = served.call("ModelInfer", request)
        assert list(answer.raw_output_contents) == [b""]
        assert answer.outputs[0].parameters["shared_memory_region"].string_param == "out"
        written = Path(f"/dev/shm{out}").read_bytes()[: values.nbytes]
        assert (np.frombuffer(written, np.float32).reshape(5, 4) == -values).all()

        small = infer_request(5, input_region="in", output_region="out", output_bytes=values.nbytes - 4)
        text = served.refused("ModelInfer", small, grpc.StatusCode.INTERNAL, "REGION_TOO_SMALL")
        assert str(values.nbytes) in text
        assert str(values.nbytes - 4) in text
        past = infer_request(5, input_region="in", output_region="out", output_bytes=values.nbytes, offset=2**62)
        served.refused("ModelInfer", past, INVALID, "RANGE_OUTSIDE_REGION")
        absent = infer_request(5, input_region="no", output_region="out", output_bytes=values.nbytes)
        served.refused("ModelInfer", absent, ABSENT, "REGION_NOT_FOUND")
        unregister(served)


def test_a_region_in_use_is_not_forgotten(served: V2) -> None:
    values = rows(0, 2)
    with shared_object(values.tobytes()) as key, shared_object() as out:
        register(served, "in", key, 0, values.nbytes)
        register(served, "out", out)
        request = infer_request(2, input_region="in", output_region="out", output_bytes=values.nbytes)
        busy = grpc.StatusCode.UNAVAILABLE
        served.up.emulator.hold()
        try:
            answer = served.stub.ModelInfer.future(request, timeout=60)
            wait_for_pins(served)
            named = pb.SystemSharedMemoryUnregisterRequest(name="out")
            served.refused("SystemSharedMemoryUnregister", named, busy, "REGION_IN_USE")
            every = pb.SystemSharedMemoryUnregisterRequest()
            served.refused("SystemSharedMemoryUnregister", every, busy, "REGION_IN_USE")
            assert "out" in status(served)
        finally:
            served.up.emulator.release()
        answer.result()
        unregister(served)


def test_cuda_calls_answer_what_clients_need(served: V2, key: str) -> None:
    register(served, "in", key)
    for name in ("", "", "in", "absent"):
        served.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(name=name))
    assert set(status(served)) == {"in"}
    assert not served.call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()).regions
    request = pb.CudaSharedMemoryStatusRequest(name="in")
    served.refused("CudaSharedMemoryStatus", request, ABSENT, "REGION_NOT_FOUND")
    wanted = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=b"\0" * 64, device_id=0, byte_size=16)
    text = served.refused("CudaSharedMemoryRegister", wanted, grpc.StatusCode.UNIMPLEMENTED, "CUDA_UNSUPPORTED")
    assert "Ascend" in text


def test_a_buffer_is_named_like_a_region(served: V2, lease: str) -> None:
    metadata = (("aclserve-lease", lease),)
    memory = memory_pb2_grpc.MemoryServiceStub(served.channel)
    values = rows(1, 4)

    def buffer() -> str:
        request = memory_pb2.AllocateBufferRequest(space=memory_pb2.MEMORY_SPACE_DEVICE, size_bytes=values.nbytes)
        return str(memory.AllocateBuffer(request, metadata=metadata, timeout=60).buffer.id)

    source, target = buffer(), buffer()
    header = memory_pb2.WriteBufferHeader(buffer_id=source, length_bytes=values.nbytes)
    parts = [memory_pb2.WriteBufferRequest(header=header), memory_pb2.WriteBufferRequest(data=values.tobytes())]
    memory.WriteBuffer(iter(parts), metadata=metadata, timeout=60)
    request = infer_request(4, input_region=source, output_region=target, output_bytes=values.nbytes)
    answer = served.call("ModelInfer", request, lease)
    assert list(answer.raw_output_contents) == [b""]
    read = memory_pb2.ReadBufferRequest(buffer_id=target, length_bytes=values.nbytes)
    got = b"".join(part.data for part in memory.ReadBuffer(read, metadata=metadata, timeout=60))
    assert (np.frombuffer(got, np.float32).reshape(4, 4) == -values).all()
    served.refused("ModelInfer", request, ABSENT, "REGION_NOT_FOUND")


def test_everything_is_refused_where_it_is_off(tmp_path: Path, key: str) -> None:
    with v2(tmp_path) as served:
        off = grpc.StatusCode.UNIMPLEMENTED
        text = served.refused("SystemSharedMemoryRegister", region("a", key), off, "SHARED_MEMORY_OFF")
        assert "--system-shared-memory" in text
        assert status(served) == {}
        for _ in range(2):
            unregister(served)
            served.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())


def wait_for_pins(served: V2) -> None:
    """Returns when an inference uses a region."""
    deadline = threading.Event()
    for _ in range(6000):
        if served.up.server.regions.use().pins:
            return
        deadline.wait(0.01)
    pytest.fail("no inference took its regions")
