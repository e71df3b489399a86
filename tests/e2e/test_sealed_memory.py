"""Sealed shared memory: the device works in it where it lies; what may not be mapped, or does not fit, is copied."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from aclserve.v1 import memory_pb2, model_pb2
from aclserve.v1.model_pb2 import OutputRequest, StreamConfig
from aclserve.v1.tensor_pb2 import RegionSlice, Tensor
from aclserve_client import Client, Options
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.engine.slots import Slot
from e2e.raw import Raw, array_of, item, refused, tensor, wait_until
from serving import Serving, elementwise, put_model, rows, serving

FLOAT32 = 12
FRAME = (1, 512, 1024)
FRAME_BYTES = 2 << 20
PLACES = 4


class Memory:
    """A memfd of this process. `key` is what a server opens it by."""

    def __init__(self, size: int, seals: int = fcntl.F_SEAL_SHRINK) -> None:
        self.name = f"test-{secrets.token_hex(16)}"
        self.descriptor = os.memfd_create(self.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, size)
        self.bytes = mmap.mmap(self.descriptor, size)
        if seals:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self.key = f"memfd:{os.getpid()}:{self.descriptor}:{self.name}"
        self.size = size

    def floats(self, offset: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.frombuffer(self.bytes[offset : offset + 4 * int(np.prod(shape))], np.float32).reshape(shape)

    def close(self) -> None:
        self.bytes.close()
        os.close(self.descriptor)


@contextmanager
def memory(size: int = 2 * PLACES * FRAME_BYTES, seals: int = fcntl.F_SEAL_SHRINK) -> Iterator[Memory]:
    made = Memory(size, seals)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("repository")
    put_model(root, "frame", elementwise("Relu", ("rows", *FRAME[1:])), "max_batch_size: 4\n")
    gears = 'parameters { key: "dynamic_batch_size" value { string_value: "1,4" } }\n'
    put_model(root, "coarse", elementwise("Relu", ("rows", *FRAME[1:])), gears)
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "fixed", elementwise("Relu", FRAME))
    sync = 'parameters { key: "execution_mode" value { string_value: "sync" } }\n'
    put_model(root, "sync", elementwise("Relu", ("rows", *FRAME[1:])), sync + "max_batch_size: 4\n")
    with serving(root, system_shared_memory=True) as up:
        yield up


@pytest.fixture
def raw(service: Serving) -> Iterator[Raw]:
    """A client; when it is gone nothing of its memory is mapped, or known to the device, any more."""
    with Raw(service.address) as connected:
        yield connected
        service.emulator.release()
    wait_until(lambda: not service.server.regions.use().descriptors, "all objects are closed")
    wait_until(lambda: not service.emulator.ledger()["host_registrations"], "the device has forgotten them")
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert "memfd:test-" not in maps
    assert not service.emulator.errors


@contextmanager
def lease(raw: Raw) -> Iterator[str]:
    made = raw.lease()
    try:
        yield made
    finally:
        raw.release(made)


def register(service: Serving, raw: Raw, owner: str, shared: Memory, *, mapped: bool = True) -> str:
    request = memory_pb2.RegisterRegionRequest(key=shared.key, size_bytes=shared.size)
    region = str(raw.call("memory", "RegisterRegion", request, owner).region.id)
    found = service.server.regions.find(owner, region)
    assert found is not None
    if mapped:
        wait_until(lambda: found.mapping is not None and bool(found.mapping.device_address), "the device knows it")
    else:
        assert found.mapping is None
    return region


def source(region: str, offset: int, shape: tuple[int, ...] = FRAME) -> Tensor:
    return Tensor(name="x", data_type=FLOAT32, shape=shape, region=RegionSlice(region_id=region, offset_bytes=offset))


def target(region: str, offset: int) -> OutputRequest:
    return OutputRequest(name="y", region=RegionSlice(region_id=region, offset_bytes=offset))


def slots(service: Serving, model: str) -> list[Slot]:
    return list(service.server.engine.find(model, 0).prepared.slots)  # type: ignore[union-attr]


def copies(service: Serving, model: str) -> int:
    return sum(slot.copies for slot in slots(service, model))


def frame(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(FRAME, np.float32)


@pytest.mark.parametrize("model", ["frame", "fixed", "sync"])
def test_the_device_works_in_the_client_s_memory(service: Serving, raw: Raw, model: str) -> None:
    before, kept = copies(service, model), [bytes(slot.outputs[0].view) for slot in slots(service, model)]
    with memory() as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared)
        for place in range(PLACES):
            shared.bytes[2 * place * FRAME_BYTES : (2 * place + 1) * FRAME_BYTES] = frame(place).tobytes()
        stream = raw.stream(StreamConfig(model=model), owner)
        stream.items(
            *(
                item(
                    str(place),
                    source(region, 2 * place * FRAME_BYTES),
                    outputs=[target(region, (2 * place + 1) * FRAME_BYTES)],
                )
                for place in range(PLACES)
            )
        )
        found = {result.id: result for result in stream.finish()}
        for place in range(PLACES):
            assert found[str(place)].timing.batch_rows == 1
            np.testing.assert_array_equal(
                shared.floats((2 * place + 1) * FRAME_BYTES, *FRAME), np.maximum(frame(place), 0)
            )
            np.testing.assert_array_equal(shared.floats(2 * place * FRAME_BYTES, *FRAME), frame(place))
    assert copies(service, model) == before
    assert [bytes(slot.outputs[0].view) for slot in slots(service, model)] == kept
    # and the slots are their own again
    inline = model_pb2.InferRequest(model=model, inputs=[tensor("x", frame(9))])
    (output,) = raw.infer(inline).outputs.tensors
    np.testing.assert_array_equal(array_of(output), np.maximum(frame(9), 0))
    assert copies(service, model) == before + 1


@pytest.mark.parametrize(("model", "shape", "alone"), [("frame", FRAME, True), ("relu", (1, 4), False)])
def test_large_frames_run_alone_and_small_items_together(
    service: Serving, raw: Raw, model: str, shape: tuple[int, ...], alone: bool
) -> None:
    def send(first: int, count: int) -> None:
        stream.items(*(item(str(number), source(region, 0, shape)) for number in range(first, first + count)))

    with memory() as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared)
        shared.bytes[:FRAME_BYTES] = frame(1).tobytes()
        service.emulator.hold()
        stream = raw.stream(StreamConfig(model=model), owner)
        send(0, 1)
        wait_until(lambda: service.server.regions.use().pins == 1, "the first is on its way")
        send(1, 5)
        wait_until(lambda: service.server.regions.use().pins == 6, "the others are there")
        assert service.server.engine.queue_rows(model) >= 3
        service.emulator.release()
        sizes = [result.timing.batch_rows for result in stream.finish()]
        assert (max(sizes) == 1) is alone, sizes


def test_what_does_not_fit_the_device_is_copied(service: Serving, raw: Raw) -> None:
    with memory() as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared)
        shared.bytes[16 : 16 + FRAME_BYTES] = frame(3).tobytes()
        before = copies(service, "frame")
        odd = model_pb2.InferRequest(
            model="frame", inputs=[source(region, 16)], outputs=[target(region, 3 * FRAME_BYTES)]
        )
        raw.infer(odd, owner)
        assert copies(service, "frame") == before + 1
        np.testing.assert_array_equal(shared.floats(3 * FRAME_BYTES, *FRAME), np.maximum(frame(3), 0))
        # an output over its own input: the input is used in place, the output is copied behind it
        shared.bytes[:FRAME_BYTES] = frame(4).tobytes()
        over = model_pb2.InferRequest(model="frame", inputs=[source(region, 0)], outputs=[target(region, 64)])
        raw.infer(over, owner)
        assert copies(service, "frame") == before + 1
        np.testing.assert_array_equal(shared.floats(64, *FRAME), np.maximum(frame(4), 0))


def test_a_padded_batch_is_copied(service: Serving, raw: Raw) -> None:
    """Of three rows in a gear of four, the device would read a fourth."""
    before = copies(service, "coarse")
    with memory() as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared)
        three = np.concatenate([frame(seed) for seed in (5, 6, 7)])
        shared.bytes[: three.nbytes] = three.tobytes()
        request = model_pb2.InferRequest(
            model="coarse",
            inputs=[source(region, 0, three.shape)],
            outputs=[target(region, 4 * FRAME_BYTES)],
        )
        answer = raw.infer(request, owner)
        np.testing.assert_array_equal(shared.floats(4 * FRAME_BYTES, *three.shape), np.maximum(three, 0))
        after = bytes(shared.bytes[4 * FRAME_BYTES + three.nbytes :])
        assert after == bytes(len(after))
        assert (answer.timing.batch_rows, answer.timing.gear_rows) == (3, 4)
        assert copies(service, "coarse") == before + 1


def test_what_can_be_shortened_is_never_mapped(service: Serving, raw: Raw) -> None:
    with memory(seals=0) as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared, mapped=False)
        shared.bytes[:FRAME_BYTES] = frame(1).tobytes()
        request = model_pb2.InferRequest(
            model="frame", inputs=[source(region, 0)], outputs=[target(region, FRAME_BYTES)]
        )
        raw.infer(request, owner)
        np.testing.assert_array_equal(shared.floats(FRAME_BYTES, *FRAME), np.maximum(frame(1), 0))
        os.ftruncate(shared.descriptor, 4096)
        error = refused(lambda: raw.infer(request, owner))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_SHRANK")


def test_a_failed_execution_leaves_the_region_usable(service: Serving, raw: Raw) -> None:
    with memory() as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared)
        shared.bytes[:FRAME_BYTES] = frame(2).tobytes()
        request = model_pb2.InferRequest(
            model="frame", inputs=[source(region, 0)], outputs=[target(region, FRAME_BYTES)]
        )
        service.emulator.faults.fail_task("aclmdlExecuteAsync", 507899)
        assert refused(lambda: raw.infer(request, owner)).code is not grpc.StatusCode.OK
        raw.infer(request, owner)
        np.testing.assert_array_equal(shared.floats(FRAME_BYTES, *FRAME), np.maximum(frame(2), 0))


def test_a_region_that_ends_stays_mapped_while_the_device_works_in_it(service: Serving, raw: Raw) -> None:
    with memory() as shared:
        owner = raw.lease()
        region = register(service, raw, owner, shared)
        shared.bytes[:FRAME_BYTES] = frame(8).tobytes()
        service.emulator.hold()
        stream = raw.stream(StreamConfig(model="frame"), owner)
        stream.items(item("a", source(region, 0), outputs=[target(region, FRAME_BYTES)]))
        wait_until(lambda: service.server.regions.use().pins == 2, "the item has its region")
        raw.release(owner)
        assert service.emulator.ledger()["host_registrations"] == 1
        service.emulator.release()
        (result,) = stream.finish()
        assert not result.HasField("error")
        np.testing.assert_array_equal(shared.floats(FRAME_BYTES, *FRAME), np.maximum(frame(8), 0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda key: key[:-1], "REGION_KEY_INVALID"),
        (lambda key: key.replace("memfd:", "memfd:-", 1), "REGION_KEY_INVALID"),
        (lambda key: key + "/../../etc", "REGION_KEY_INVALID"),
        (lambda key: key[:-32] + secrets.token_hex(16), "REGION_NOT_VISIBLE"),
        (lambda key: ":".join(["memfd", "1", *key.split(":")[2:]]), "REGION_NOT_VISIBLE"),
        (lambda key: ":".join([*key.split(":")[:2], "999999", key.split(":")[3]]), "REGION_NOT_VISIBLE"),
    ],
    ids=["short name", "pid", "path", "another name", "another process", "another number"],
)
def test_only_who_knows_the_name_gets_the_memory(raw: Raw, change: object, reason: str) -> None:
    with memory(4096) as shared, lease(raw) as owner:
        key = change(shared.key)  # type: ignore[operator]
        request = memory_pb2.RegisterRegionRequest(key=key, size_bytes=4096)
        error = refused(lambda: raw.call("memory", "RegisterRegion", request, owner)).check_clean()
        assert error.reason == reason


def test_a_descriptor_of_another_kind_is_not_opened(raw: Raw, tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(16)}"
    file = tmp_path / f"memfd:{name} (deleted)"
    file.write_bytes(bytes(4096))
    with file.open("r+b") as opened, lease(raw) as owner:
        key = f"memfd:{os.getpid()}:{opened.fileno()}:{name}"
        request = memory_pb2.RegisterRegionRequest(key=key, size_bytes=4096)
        assert refused(lambda: raw.call("memory", "RegisterRegion", request, owner)).reason == "REGION_NOT_VISIBLE"


def test_the_python_client_s_memory_is_used_where_it_lies(service: Serving) -> None:
    before = copies(service, "frame")
    with Client(service.address, Options(shared_memory=True)) as client:
        with client.stream("frame") as stream:
            for number in range(8):
                stream.send({"x": frame(number)})
            stream.finish()
            results = list(stream.results())
        for number, result in enumerate(sorted(results, key=lambda result: int(result.id))):
            np.testing.assert_array_equal(result.outputs["y"], np.maximum(frame(number), 0))
    assert copies(service, "frame") == before
    wait_until(lambda: not service.server.regions.use().descriptors, "all objects are closed")


@pytest.mark.parametrize("how", ["off", "run mode host", "refused by the device"])
def test_where_nothing_is_mapped_bytes_are_copied(tmp_path: Path, how: str) -> None:
    put_model(tmp_path, "frame", elementwise("Relu", ("rows", *FRAME[1:])), "max_batch_size: 4\n")
    emulator = EmulatorConfig(run_mode="host" if how == "run mode host" else "device")
    mode = "off" if how == "off" else "on"
    with serving(tmp_path, emulator=emulator, system_shared_memory=True, map_shared_memory=mode) as up:
        if how == "refused by the device":
            up.emulator.faults.fail_call("aclrtHostRegister", 207000, times=100)
        with Client(up.address, Options(shared_memory=True)) as client:
            result = client.infer("frame", {"x": frame(1)})
            np.testing.assert_array_equal(result.outputs["y"], np.maximum(frame(1), 0))
        assert copies(up, "frame") == 1


def test_rows_of_a_stream_keep_their_order_beside_frames_in_memory(service: Serving, raw: Raw) -> None:
    """Inline and shared items of one model mix; every answer is its own."""
    with memory() as shared, lease(raw) as owner:
        region = register(service, raw, owner, shared)
        shared.bytes[: 4 * 4] = rows(-1, 1).tobytes()
        stream = raw.stream(StreamConfig(model="relu"), owner)
        stream.items(
            *(
                item(str(number), source(region, 0, (1, 4)) if number % 3 else tensor("x", rows(number, 2)))
                for number in range(30)
            )
        )
        for result in stream.finish():
            number = int(result.id)
            expected = np.maximum(rows(-1, 1) if number % 3 else rows(number, 2), 0)
            np.testing.assert_array_equal(array_of(result.outputs.tensors[0]), expected)
