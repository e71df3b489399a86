"""Tensors in shared memory, through a server: in and out without their bytes in a message, and what can go wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aclserve.v1 import device_pb2, memory_pb2, model_pb2
from aclserve.v1.model_pb2 import OutputRequest, StreamConfig
from aclserve.v1.tensor_pb2 import BufferSlice, RegionSlice, Tensor
from aclserve_server.emulator import EmulatorConfig
from e2e.raw import BIG, EDGES, INFER, Raw, array_of, item, item_refusal, on_loop, refused, tensor, wait_until
from serving import Serving, elementwise, put_model, rows, serving
from shared_object import FOLDER, SharedObject, open_descriptors, shared_object

FLOAT32 = 12
FRAME = (1, 1080, 1440)
FRAME_BYTES = 4 * 1080 * 1440
ROW_BYTES = 16


def two_tensors() -> onnx.ModelProto:
    """y = a + b and z = a - b, all of rows of 4."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in "abyz"}
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Sub", ["a", "b"], ["z"])]
    graph = helper.make_graph(nodes, "two", [values["a"], values["b"]], [values["y"], values["z"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def free_shapes() -> onnx.ModelProto:
    """The places of the nonzero elements: an output whose size is known only after the run."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["y"])], "nonzero", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module", params=["device", "host"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("repository")
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "frame", elementwise("Relu", ("rows", *FRAME[1:])), "dynamic_batching {}\nmax_batch_size: 2\n")
    put_model(root, "two", two_tensors())
    put_model(root, "fixed", elementwise("Relu", (2, 3)))
    put_model(root, "free", free_shapes())
    sync = 'parameters { key: "execution_mode" value { string_value: "sync" } }\n'
    put_model(root, "sync", elementwise("Relu"), sync)
    emulator = EmulatorConfig(run_mode=request.param)
    with serving(root, emulator=emulator, slots=1, system_shared_memory=True, max_regions=5) as up:
        yield up
    assert up.server.regions.use().descriptors == 0


class Leasing(Raw):
    """A client that releases its leases at the end."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.leases: list[str] = []

    def lease(self, ttl_s: int = 60) -> str:
        self.leases.append(super().lease(ttl_s))
        return self.leases[-1]

    def release_all(self) -> None:
        for lease in self.leases:
            with suppress(grpc.RpcError):
                self.release(lease)


@pytest.fixture
def raw(service: Serving) -> Iterator[Raw]:
    """A client; when it is gone the server has no region open, and nothing is left in use."""
    before = open_descriptors()
    with Leasing(service.address) as connected:
        yield connected
        service.emulator.release()
        connected.release_all()
    wait_until(lambda: not service.server.regions.use().descriptors, "all objects are closed")
    use = service.server.regions.use()
    assert (use.regions, use.pins) == (0, 0)
    assert open_descriptors() == before
    assert not service.emulator.errors


@pytest.fixture
def shared() -> Iterator[SharedObject]:
    with shared_object(rows(-8, 32).tobytes() + bytes(512)) as made:
        yield made


def register(raw: Raw, lease: str, shared: SharedObject, offset: int = 0, size: int = 0, probe: bytes = b"") -> str:
    """A new region's id; of the whole object, for 0."""
    request = memory_pb2.RegisterRegionRequest(
        key=shared.key, offset_bytes=offset, size_bytes=size or shared.size - offset, probe=probe
    )
    return str(raw.call("memory", "RegisterRegion", request, lease).region.id)


def unregister(raw: Raw, lease: str, region: str) -> None:
    raw.call("memory", "UnregisterRegion", memory_pb2.UnregisterRegionRequest(region_id=region), lease)


def regions_of(raw: Raw, lease: str) -> list[Any]:
    return list(raw.call("memory", "ListRegions", memory_pb2.ListRegionsRequest(), lease).regions)


def source(name: str, region: str, offset: int = 0, length: int = 0, shape: tuple[int, ...] = (1, 4)) -> Tensor:
    """A tensor of floats in a region."""
    part = RegionSlice(region_id=region, offset_bytes=offset, length_bytes=length)
    return Tensor(name=name, data_type=FLOAT32, shape=shape, region=part)


def target(name: str, region: str, offset: int = 0, length: int = 0) -> OutputRequest:
    return OutputRequest(name=name, region=RegionSlice(region_id=region, offset_bytes=offset, length_bytes=length))


def floats(shared: SharedObject, offset: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(shared.read(offset, 4 * int(np.prod(shape))), np.float32).reshape(shape)


def submitted(service: Serving) -> int:
    return service.emulator.counters.calls["aclmdlExecuteAsync"]


def test_a_frame_goes_in_and_out_without_its_bytes(service: Serving, raw: Raw) -> None:
    frame = np.random.default_rng(7).standard_normal(FRAME, np.float32)
    lease = raw.lease()
    with shared_object(frame.tobytes() + bytes(FRAME_BYTES)) as shared:
        region = register(raw, lease, shared, probe=frame.tobytes()[:64])
        (slot,) = service.server.engine.find("frame", 0).prepared.slots  # type: ignore[union-attr]
        copies, counters = slot.copies, service.emulator.counters
        copied, used = dict(counters.copied_bytes), service.server.regions.use()
        request = model_pb2.InferRequest(
            id="a",
            model="frame",
            inputs=[source("x", region, shape=FRAME)],
            outputs=[target("y", region, FRAME_BYTES)],
        )
        message = request.SerializeToString()
        answered = raw.channel.unary_unary(INFER)(message, timeout=30, metadata=(("aclserve-lease", lease),))
        assert max(len(message), len(answered)) < 200
        response = model_pb2.InferResponse.FromString(answered)
        (output,) = response.outputs.tensors
        assert output.WhichOneof("source") == "region"
        assert output.region == request.outputs[0].region
        np.testing.assert_array_equal(floats(shared, FRAME_BYTES, *FRAME), np.maximum(frame, 0))
        np.testing.assert_array_equal(floats(shared, 0, *FRAME), frame)
        use = service.server.regions.use()
        assert use.read_bytes - used.read_bytes == use.written_bytes - used.written_bytes == FRAME_BYTES
        assert slot.copies == copies + 1
        moved = {kind: count - copied[kind] for kind, count in counters.copied_bytes.items() if count != copied[kind]}
        assert list(moved.values()) == ([FRAME_BYTES, FRAME_BYTES] if slot.marks is not None else [])
        inline = model_pb2.InferRequest(model="frame", inputs=[tensor("x", frame)]).SerializeToString()
        with grpc.insecure_channel(service.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
            answered = channel.unary_unary(INFER)(inline, timeout=30)
        (output,) = model_pb2.InferResponse.FromString(answered).outputs.tensors
        assert output.data == shared.read(FRAME_BYTES, FRAME_BYTES)


@pytest.mark.parametrize("model", ["relu", "sync"])
def test_items_of_all_kinds_share_a_batch(service: Serving, raw: Raw, shared: SharedObject, model: str) -> None:
    lease = raw.lease()
    region = register(raw, lease, shared)
    buffer = raw.buffer(lease, 64)
    raw.write(lease, buffer, rows(-3, 4).tobytes())
    stream = raw.stream(StreamConfig(model=model), lease)
    part = BufferSlice(buffer_id=buffer)
    stream.items(
        item("inline", tensor("x", rows(-1, 2))),
        item("in", source("x", region, 64, shape=(2, 4))),
        item("out", tensor("x", rows(1, 2)), outputs=[target("y", region, 512)]),
        item("both", source("x", region, 96, 16), outputs=[target("y", region, 544, 16)]),
        item(
            "buffer", Tensor(name="x", data_type=FLOAT32, shape=(4, 4), buffer=part), outputs=[target("y", region, 560)]
        ),
    )
    found = {result.id: result.outputs.tensors[0] for result in stream.finish() if not result.HasField("error")}
    np.testing.assert_array_equal(array_of(found["inline"]), np.maximum(rows(-1, 2), 0))
    np.testing.assert_array_equal(array_of(found["in"]), np.maximum(rows(-4, 2), 0))
    assert [found[name].region.offset_bytes for name in ("out", "both", "buffer")] == [512, 544, 560]
    np.testing.assert_array_equal(floats(shared, 512, 2, 4), np.maximum(rows(1, 2), 0))
    np.testing.assert_array_equal(floats(shared, 544, 1, 4), np.maximum(rows(-2, 1), 0))
    np.testing.assert_array_equal(floats(shared, 560, 4, 4), np.maximum(rows(-3, 4), 0))


def test_an_input_that_is_cut_off_fails_its_item_alone(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region, kept = register(raw, lease, shared), raw.buffer(lease, ROW_BYTES)
    raw.write(lease, kept, b"\x11" * ROW_BYTES)
    into_buffer = OutputRequest(name="y", buffer=BufferSlice(buffer_id=kept))
    stream = raw.stream(StreamConfig(model="relu"), lease)
    raw.infer(model_pb2.InferRequest(model="relu", inputs=[tensor("x", rows(500, 8))]))  # leaves its bytes in the slot
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("running", tensor("x", rows(3, 1))))
    wait_until(lambda: submitted(service) == before + 1, "the first item is on the device")
    with shared_object(rows(7, 4).tobytes()) as other:
        second = register(raw, lease, other)
        stream.items(
            item("good", tensor("x", rows(4, 1))),
            item("bad", source("x", second, 16, shape=(3, 4)), outputs=[target("y", region, 512)]),
            item("bad-2", source("x", second, 32, shape=(1, 4)), outputs=[into_buffer]),
            item("last", tensor("x", rows(5, 1))),
        )
        wait_until(lambda: service.server.engine.queue_rows("relu") == 6, "the others wait")
        other.truncate(32)
        service.emulator.release()
        found = {result.id: result for result in stream.finish()}
    for name in ("bad", "bad-2"):
        refusal = item_refusal(found[name].error).check_clean()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_SHRANK")
    for name, first in (("running", 3), ("good", 4), ("last", 5)):
        np.testing.assert_array_equal(array_of(found[name].outputs.tensors[0]), rows(first, 1))
    assert [found[name].timing.batch_rows for name in ("good", "last")] == [6, 6]
    assert stream.totals() == (5, 3, 2)
    assert shared.read(512, 48) == bytes(48)
    assert raw.read(lease, kept) == b"\x11" * ROW_BYTES
    (slot,) = service.server.engine.find("relu", 0).prepared.slots  # type: ignore[union-attr]
    assert bytes(slot.inputs[0].view[16:80]) == bytes(64)


def test_an_output_that_is_cut_off_fails_its_item_alone(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    stream = raw.stream(StreamConfig(model="relu"), lease)
    with shared_object(bytes(64)) as other:
        region, second = register(raw, lease, shared), register(raw, lease, other)
        service.emulator.hold()
        before = submitted(service)
        stream.items(
            item("bad", tensor("x", rows(1, 3)), outputs=[target("y", second, 16)]),
            item("good", tensor("x", rows(4, 1)), outputs=[target("y", region, 512)]),
            item("inline", tensor("x", rows(5, 1))),
        )
        wait_until(lambda: submitted(service) == before + 1, "the batch is on the device")
        other.truncate(40)
        assert shared.read(512, 16) == bytes(16)
        service.emulator.release()
        found = {result.id: result for result in stream.finish()}
        assert other.size == 40
        assert other.read(0, 40) == bytes(40)
    refusal = item_refusal(found["bad"].error).check_clean()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_SHRANK")
    assert found["good"].outputs.tensors[0].region.offset_bytes == 512
    np.testing.assert_array_equal(floats(shared, 512, 1, 4), rows(4, 1))
    np.testing.assert_array_equal(array_of(found["inline"].outputs.tensors[0]), rows(5, 1))
    assert stream.totals() == (3, 2, 1)


def test_a_task_that_fails_writes_nothing(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region = register(raw, lease, shared)
    service.emulator.faults.fail_task("aclmdlExecuteAsync", 507899)
    request = model_pb2.InferRequest(model="relu", inputs=[source("x", region)], outputs=[target("y", region, 512)])
    assert refused(lambda: raw.infer(request, lease)).code is grpc.StatusCode.INTERNAL
    assert shared.read(512, 16) == bytes(16)
    raw.infer(request, lease)
    np.testing.assert_array_equal(floats(shared, 512, 1, 4), np.maximum(rows(-8, 1), 0))


def test_a_region_in_use_stays_and_goes_with_its_lease(service: Serving, raw: Raw, shared: SharedObject) -> None:
    before = open_descriptors()
    lease, other = raw.lease(), raw.lease()
    region, idle = register(raw, lease, shared), register(raw, lease, shared, 16, 32)
    foreign = register(raw, other, shared)
    stream = raw.stream(StreamConfig(model="relu"), lease)
    service.emulator.hold()
    stream.items(item("a", source("x", region), outputs=[target("y", region, 512)]))
    wait_until(lambda: service.server.regions.use().pins == 2, "the item uses the region")
    refusal = refused(lambda: unregister(raw, lease, region))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_IN_USE")
    assert {one.id: (one.pins, one.offset_bytes, one.size_bytes) for one in regions_of(raw, lease)} == {
        region: (2, 0, 1024),
        idle: (0, 16, 32),
    }
    raw.release(lease)
    use = service.server.regions.use()
    assert (use.regions, use.descriptors) == (1, 2)
    assert refused(lambda: regions_of(raw, lease)).reason == "LEASE_NOT_FOUND"
    stream.items(item("late", source("x", region)))
    (late,) = stream.results(1)
    assert item_refusal(late.error).reason == "REGION_NOT_FOUND"
    service.emulator.release()
    (result,) = stream.finish()
    assert result.outputs.tensors[0].region.region_id == region
    np.testing.assert_array_equal(floats(shared, 512, 1, 4), np.maximum(rows(-8, 1), 0))
    wait_until(lambda: service.server.regions.use().descriptors == 1, "the object is closed")
    unregister(raw, other, foreign)
    assert open_descriptors() == before


def test_a_lease_that_expires_takes_its_regions_along(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease(1)
    register(raw, lease, shared)
    wait_until(lambda: not service.server.regions.use().descriptors, "the lease has expired")


def test_leases_do_not_see_each_other_s_regions(service: Serving, raw: Raw, shared: SharedObject) -> None:
    mine, other = raw.lease(), raw.lease()
    region = register(raw, other, shared)
    assert regions_of(raw, mine) == []
    for lease in (mine, ""):
        request = model_pb2.InferRequest(model="relu", inputs=[source("x", region)])
        refusal = refused(lambda lease=lease, request=request: raw.infer(request, lease), [region])
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "REGION_NOT_FOUND")
    refusal = refused(lambda: unregister(raw, mine, region), [region])
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "REGION_NOT_FOUND")
    assert [one.id for one in regions_of(raw, other)] == [region]


def test_registration_refuses_what_it_should(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    before = open_descriptors()

    def refusal(key: str, offset: int = 0, size: int = 1, probe: bytes = b"") -> tuple[grpc.StatusCode, str]:
        request = memory_pb2.RegisterRegionRequest(key=key, offset_bytes=offset, size_bytes=size, probe=probe)
        told = refused(lambda: raw.call("memory", "RegisterRegion", request, lease), [key])
        return told.code, told.reason

    link = FOLDER / f"{shared.key[1:]}-link"
    link.symlink_to(shared.path)
    try:
        not_visible = (grpc.StatusCode.NOT_FOUND, "REGION_NOT_VISIBLE")
        assert refusal(f"/{link.name}") == refusal("/aclserve-test-absent") == not_visible
    finally:
        link.unlink()
    for key in ("", "/..", "/../../etc/passwd", "a/b"):
        assert refusal(key) == (grpc.StatusCode.INVALID_ARGUMENT, "REGION_KEY_INVALID")
    for edge in (*EDGES, BIG, shared.size):
        outside = (grpc.StatusCode.OUT_OF_RANGE, "RANGE_OUTSIDE_REGION")
        assert refusal(shared.key, edge) == refusal(shared.key, 1, edge) == refusal(shared.key, edge, edge) == outside
    assert refusal(shared.key, 0, 0) == (grpc.StatusCode.INVALID_ARGUMENT, "SIZE_IS_ZERO")
    assert refusal(shared.key, 0, 9, b"\xff" * 9) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_DIFFERS")
    assert open_descriptors() == before
    for _ in range(5):
        register(raw, lease, shared)
    assert refusal(shared.key) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REGIONS")
    register(raw, raw.lease(), shared)


def test_wrong_slices_are_errors_of_their_items(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region, buffer = register(raw, lease, shared, 0, 512), raw.buffer(lease, 64)
    x = tensor("x", rows(1, 1))
    cases: dict[str, tuple[model_pb2.InferItem, str]] = {}

    def case(reason: str, *inputs: Tensor, outputs: list[OutputRequest] | None = None) -> None:
        name = str(len(cases))
        cases[name] = item(name, *inputs, outputs=outputs or []), reason

    for edge in (*EDGES, BIG, 500, 512):
        outside = "RANGE_OUTSIDE_REGION"
        case(outside, source("x", region, edge))
        case(outside if edge > 512 else "REGION_TOO_SMALL", x, outputs=[target("y", region, edge)])
        case(outside, x, outputs=[target("y", region, edge, edge)])
        case("RANGE_OUTSIDE_REGION" if edge > 512 else "REGION_TOO_SMALL", x, outputs=[target("y", region, edge)])
    case("TENSOR_SIZE_MISMATCH", source("x", region, 0, 15))
    case("TENSOR_SIZE_MISMATCH", source("x", region, 0, BIG))
    case("REGION_TOO_SMALL", x, outputs=[target("y", region, 0, 15)])
    case("REGION_NOT_FOUND", source("x", "unknown"))
    case("REGION_NOT_FOUND", x, outputs=[target("y", "")])
    twice = OutputRequest(name="y", region=RegionSlice(region_id=region), buffer=BufferSlice(buffer_id=buffer))
    case("OUTPUT_DIRECTED_TWICE", x, outputs=[twice])
    case("OUTPUT_DUPLICATE", x, outputs=[target("y", region), target("y", region, 64)])
    stream = raw.stream(StreamConfig(model="relu"), lease)
    stream.items(*(made for made, _ in cases.values()), item("good", source("x", region)))
    found = {result.id: result for result in stream.finish()}
    np.testing.assert_array_equal(array_of(found.pop("good").outputs.tensors[0]), np.maximum(rows(-8, 1), 0))
    got = {name: item_refusal(result.error).check_clean([region]).reason for name, result in found.items()}
    assert got == {name: reason for name, (_, reason) in cases.items()}
    assert [one.pins for one in regions_of(raw, lease)] == [0]
    assert on_loop(service, service.server.regions.use).pins == 0


def test_several_tensors_of_one_item(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region = register(raw, lease, shared)
    request = model_pb2.InferRequest(
        model="two",
        inputs=[source("b", region, 32, shape=(2, 4)), tensor("a", rows(10, 2))],
        outputs=[target("z", region, 600), OutputRequest(name="y")],
    )
    first, second = raw.infer(request, lease).outputs.tensors
    assert (first.name, first.WhichOneof("source"), second.name) == ("z", "region", "y")
    np.testing.assert_array_equal(floats(shared, 600, 2, 4), rows(10, 2) - rows(-6, 2))
    np.testing.assert_array_equal(array_of(second), rows(10, 2) + rows(-6, 2))


def test_models_without_a_batch(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region = register(raw, lease, shared)
    request = model_pb2.InferRequest(
        model="fixed", inputs=[source("x", region, 4, shape=(2, 3))], outputs=[target("y", region, 640)]
    )
    raw.infer(request, lease)
    np.testing.assert_array_equal(floats(shared, 640, 2, 3), np.maximum(floats(shared, 4, 2, 3), 0))


def test_outputs_whose_size_is_known_afterwards(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    shared.bytes[:16] = np.array([1, 0, 2, 0], np.float32).tobytes()
    region = register(raw, lease, shared)

    def request(**place: int) -> model_pb2.InferRequest:
        outputs = [target("y", region, **place)]
        return model_pb2.InferRequest(model="free", inputs=[source("x", region, shape=(2, 2))], outputs=outputs)

    (output,) = raw.infer(request(offset=512), lease).outputs.tensors
    assert (list(output.shape), output.WhichOneof("source")) == ([2, 2], "region")
    np.testing.assert_array_equal(np.frombuffer(shared.read(512, 32), np.int64).reshape(2, 2), [[0, 1], [0, 0]])
    refusal = refused(lambda: raw.infer(request(offset=600, length=31), lease), [region])
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_TOO_SMALL")
    assert shared.read(600, 31) == bytes(31)
    inline = model_pb2.InferRequest(model="free", inputs=[source("x", region, shape=(2, 2))])
    assert raw.infer(inline, lease).outputs.tensors[0].data == shared.read(512, 32)
    shared.truncate(8)
    assert refused(lambda: raw.infer(inline, lease), [region]).reason == "REGION_SHRANK"


def test_no_rows_touch_no_region(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region = register(raw, lease, shared)
    request = model_pb2.InferRequest(
        model="relu", inputs=[source("x", region, shape=(0, 4))], outputs=[target("y", region, 512)]
    )
    used = service.server.regions.use()
    (output,) = raw.infer(request, lease).outputs.tensors
    assert (list(output.shape), output.region.offset_bytes) == ([0, 4], 512)
    assert on_loop(service, service.server.regions.use) == used


def test_a_killed_stream_lets_go_of_its_regions(service: Serving, raw: Raw, shared: SharedObject) -> None:
    lease = raw.lease()
    region = register(raw, lease, shared)
    stream = raw.stream(StreamConfig(model="relu"), lease)
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("running", source("x", region), outputs=[target("y", region, 512)]))
    wait_until(lambda: submitted(service) == before + 1, "the first item is on the device")
    stream.items(item("waiting", source("x", region)))
    wait_until(lambda: service.server.regions.use().pins == 3, "the second item waits")
    stream.kill()
    wait_until(lambda: service.server.regions.use().pins == 2, "the second item is gone")
    service.emulator.release()
    wait_until(lambda: service.server.regions.use().pins == 0, "nothing is in use")
    unregister(raw, lease, region)


@pytest.mark.parametrize("on", [False, True])
def test_it_is_off_unless_asked_for(tmp_path: Any, shared: SharedObject, on: bool, caplog: Any) -> None:
    put_model(tmp_path, "relu", elementwise("Relu"))
    options = {"system_shared_memory": True} if on else {}
    with caplog.at_level(logging.WARNING), serving(tmp_path, **options) as service, Raw(service.address) as raw:
        info = raw.call("devices", "GetServerInfo", device_pb2.GetServerInfoRequest())
        assert ("shared_memory" in info.features) == on
        lease = raw.lease()
        if on:
            register(raw, lease, shared)
        else:
            refusal = refused(lambda: register(raw, lease, shared))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SHARED_MEMORY_OFF")
            request = model_pb2.InferRequest(model="relu", inputs=[source("x", "region")])
            assert refused(lambda: raw.infer(request, lease)).reason == "SHARED_MEMORY_OFF"
            assert regions_of(raw, lease) == []
