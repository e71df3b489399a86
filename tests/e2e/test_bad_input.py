"""Bad input over the wire: the right status with ErrorInfo, told in got and expected, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.protobuf.duration_pb2 import Duration
from onnx import TensorProto, helper

from aclserve.errors import AclserveError, NotFound
from aclserve.v1 import device_pb2, memory_pb2, model_pb2
from aclserve.v1.tensor_pb2 import DATA_TYPE_FLOAT32, DATA_TYPE_INT64, BufferSlice, Fill, Tensor
from aclserve_server.config import Config
from aclserve_server.emulator import Emulator, EmulatorConfig, Latency
from aclserve_server.server import Server
from e2e.raw import (
    BIG,
    EDGES,
    HUGE,
    Raw,
    Refusal,
    footprint,
    item_refusal,
    lease_metadata,
    on_loop,
    refused,
    tensor,
    wait_until,
)
from serving import Serving, elementwise, put_model, rows, serving

Code = grpc.StatusCode
F32 = DATA_TYPE_FLOAT32
ZEROS = Fill(pattern=1)
LIMITS: dict[str, Any] = {
    "max_upload_bytes": 1 << 20,
    "max_lease_host_bytes": 2 << 20,
    "max_lease_device_bytes": 512 << 20,
    "max_leases": 8,
    "max_lease_ttl_s": 3600.0,
}


def two_inputs() -> onnx.ModelProto:
    """y = a + b, both of rows of 4."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in "aby"}
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])], "add", [values["a"], values["b"]], [values["y"]]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def free_shapes() -> onnx.ModelProto:
    """The places of the nonzero elements: an output whose size is known only after the run."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["y"])], "nonzero", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_external_data(location: str) -> bytes:
    """A model that reads its weights from another file."""
    weight = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "external", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def om_file(name: bytes = b"resnet_like") -> bytes:
    """The head of an offline model and a payload of no meaning."""
    payload = bytes(512)
    head = bytearray(256)
    head[:4] = b"IMOD"
    struct.pack_into("<II", head, 4, 256, 0x20000000)
    struct.pack_into("<I", head, 76, len(payload))
    head[84 : 84 + len(name)] = name
    struct.pack_into("<I", head, 156, 1)
    struct.pack_into("<Q", head, 184, len(payload))
    return bytes(head) + payload


def put_bytes(root: Path, name: str, content: bytes, file: str = "model.onnx") -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)


def fill_repository(root: Path, outside: Path) -> None:
    """Good models beside every kind of bad one."""
    good = elementwise("Relu").SerializeToString()
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "fixed", elementwise("Relu", (2, 3)))
    put_model(root, "add", two_inputs())
    put_model(root, "free", free_shapes())
    put_model(root, "spare", elementwise())
    put_bytes(root, "corrupt", bytes(range(256)) * 8)
    put_bytes(root, "truncated", good[: len(good) // 2])
    put_bytes(root, "nothing", b"")
    put_bytes(root, "compiled", om_file(), "model.om")
    put_bytes(root, "disguised", om_file())
    put_model(root, "bad-config", elementwise(), "max_batch_size: lots\n")
    put_model(root, "other-batch", elementwise("Relu", (2, 3)), "max_batch_size: 5\n")
    put_model(root, "strings", elementwise("Identity", ("rows",), TensorProto.STRING))
    put_bytes(root, "weights-elsewhere", with_external_data("../../../outside/1/model.onnx"))
    (root / "empty").mkdir()
    (root / "no-file" / "1").mkdir(parents=True)
    put_bytes(outside.parent, outside.name, good)
    (root / "link").symlink_to(outside, target_is_directory=True)
    (root / "version-link").mkdir()
    (root / "version-link" / "1").symlink_to(outside / "1", target_is_directory=True)
    (root / "file-link" / "1").mkdir(parents=True)
    (root / "file-link" / "1" / "model.onnx").symlink_to(outside / "1" / "model.onnx")


GOOD = ("add", "fixed", "free", "relu")
UNAVAILABLE = {
    "bad-config": "config.pbtxt",
    "compiled": "OM model",
    "corrupt": "model",
    "disguised": "OM model",
    "empty": "it has no version",
    "file-link": "leads out of the repository",
    "link": "leads out of the repository",
    "no-file": "neither model.om nor model.onnx",
    "nothing": "model",
    "other-batch": "max_batch_size is 5",
    "strings": "string",
    "truncated": "model",
    "version-link": "leads out of the repository",
    "weights-elsewhere": "model",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    base = tmp_path_factory.mktemp("bad")
    root = base / "models"
    root.mkdir()
    fill_repository(root, base / "outside")
    with serving(root, emulator=EmulatorConfig(memory_bytes=256 << 20), **LIMITS) as up:
        yield up


@pytest.fixture(scope="module")
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        connected.call("models", "UnloadModel", model_pb2.UnloadModelRequest(model="spare"))
        free = model_pb2.InferRequest(model="free", inputs=[tensor("x", np.eye(4, dtype=np.float32))])
        connected.infer(free)  # models of free shapes keep the memory of their largest item
        yield connected


@pytest.fixture(autouse=True)
def unchanged(service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test leaves the server as it was, without an unforeseen error in its log."""
    before = footprint(service, raw)
    with caplog.at_level(logging.WARNING):
        yield
    wait_until(lambda: footprint(service, raw) == before, f"{footprint(service, raw)} as before, {before}")
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not service.emulator.errors


@pytest.fixture
def lease(service: Serving, raw: Raw) -> Iterator[str]:
    lease_id = raw.lease()
    yield lease_id
    on_loop(service, lambda: service.server.memory.expire_due(time.monotonic() + 7200))
    wait_until(lambda: service.server.memory.use().buffers == 0, "all buffers are freed")


def x_rows(count: int = 1, **fields: Any) -> Tensor:
    """The input of `relu` with bytes that fit, changed as `fields` say."""
    value = tensor("x", rows(0, count))
    value.MergeFrom(Tensor(**{key: part for key, part in fields.items() if key != "shape"}))
    if "shape" in fields:
        value.shape[:] = fields["shape"]
    return value


def bare(name: str, shape: list[int], data_type: Any = F32, **source: Any) -> Tensor:
    return Tensor(name=name, data_type=data_type, shape=shape, **source)


@dataclass(frozen=True)
class Case:
    """An item that must be refused, and what its message must say."""

    name: str
    model: str
    inputs: list[Tensor]
    code: grpc.StatusCode
    reason: str
    says: tuple[str, ...] = ()
    outputs: list[str] = field(default_factory=list)
    version: int = 0
    id: str = "it"
    raw_enum: bool = False

    def __str__(self) -> str:
        return self.name


INVALID = Code.INVALID_ARGUMENT
A, B = tensor("a", rows(0, 1)), tensor("b", rows(0, 1))

CASES = [
    Case("model-unknown", "nope", [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND", ("'nope'", "relu")),
    Case("model-not-named", "", [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND", ("''",)),
    Case("model-path", "../models/relu", [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND"),
    Case("model-absolute-path", "/etc/models/relu", [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND"),
    Case("model-long-name", "m" * 4000, [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND"),
    Case("model-too-long-name", "m" * 5000, [x_rows()], INVALID, "TEXT_TOO_LONG", ("5000", "4096")),
    Case(
        "version-unknown", "relu", [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND", ("version 9", "versions 1"), version=9
    ),
    Case("version-huge", "relu", [x_rows()], Code.NOT_FOUND, "MODEL_NOT_FOUND", (str(HUGE),), version=HUGE),
    Case("model-unloaded", "spare", [x_rows()], Code.FAILED_PRECONDITION, "MODEL_NOT_READY", ("unloaded", "load it")),
    Case("model-unavailable", "link", [x_rows()], Code.FAILED_PRECONDITION, "MODEL_NOT_READY", ("leads out",)),
    Case("input-unknown", "relu", [x_rows(name="z")], INVALID, "INPUT_UNKNOWN", ("'z'", "'x'")),
    Case("input-missing", "add", [A], INVALID, "INPUT_MISSING", ("'b'", "'a', 'b'")),
    Case("inputs-none", "relu", [], INVALID, "INPUT_MISSING", ("'x'",)),
    Case("input-twice", "add", [A, B, A], INVALID, "INPUT_DUPLICATE", ("3 inputs", "'a', 'b'")),
    Case("input-too-many", "add", [A] * 300, INVALID, "TOO_MANY_INPUTS", ("256",)),
    Case("input-long-name", "relu", [x_rows(name="n" * 4000)], INVALID, "INPUT_UNKNOWN", ("nnn",)),
    Case(
        "dtype-wrong", "relu", [x_rows(data_type=DATA_TYPE_INT64)], INVALID, "DATA_TYPE_MISMATCH", ("int64", "float32")
    ),
    Case(
        "dtype-unset",
        "relu",
        [bare("x", [1, 4], 0, data=bytes(16))],
        INVALID,
        "DATA_TYPE_UNSUPPORTED",
        ("type 0", "13"),
    ),
    Case("rank-low", "relu", [x_rows(shape=[4])], INVALID, "SHAPE_MISMATCH", ("[4]", "[rows, 4]")),
    Case("rank-high", "relu", [x_rows(shape=[1, 1, 4])], INVALID, "SHAPE_MISMATCH", ("[1, 1, 4]", "[rows, 4]")),
    Case("scalar", "relu", [x_rows(shape=[])], INVALID, "SHAPE_MISMATCH", ("[]", "[rows, 4]")),
    Case("row-too-wide", "relu", [x_rows(shape=[1, 5])], INVALID, "SHAPE_MISMATCH", ("[1, 5]", "[rows, 4]")),
    Case("rows-negative", "relu", [x_rows(shape=[-1, 4])], INVALID, "SHAPE_MISMATCH", ("[-1, 4]", "[rows, 4]")),
    Case("dims-33", "relu", [x_rows(shape=[1] * 33)], INVALID, "TOO_MANY_DIMENSIONS", ("32",)),
    Case("static-shape", "fixed", [x_rows(shape=[3, 2])], INVALID, "SHAPE_MISMATCH", ("[3, 2]", "[2, 3]")),
    Case("bytes-short", "relu", [x_rows(shape=[2, 4])], INVALID, "TENSOR_SIZE_MISMATCH", ("16 bytes", "needs 32")),
    Case("bytes-long", "relu", [x_rows(2, shape=[1, 4])], INVALID, "TENSOR_SIZE_MISMATCH", ("32 bytes", "needs 16")),
    Case("bytes-of-no-rows", "relu", [x_rows(shape=[0, 4])], INVALID, "TENSOR_SIZE_MISMATCH", ("16 bytes", "needs 0")),
    Case("source-unset", "relu", [bare("x", [1, 4])], INVALID, "TENSOR_SIZE_MISMATCH", ("0 bytes", "needs 16")),
    Case("rows-too-many", "relu", [x_rows(33)], INVALID, "TOO_MANY_ROWS", ("33 rows", "at most 32")),
    Case(
        "rows-overflow", "relu", [bare("x", [1 << 62, 4], fill=ZEROS)], INVALID, "TOO_MANY_ROWS", (str(1 << 62), "32")
    ),
    Case("rows-int64-max", "relu", [bare("x", [BIG, 4], data=bytes(16))], INVALID, "TOO_MANY_ROWS", (str(BIG),)),
    Case("rows-differ", "add", [A, tensor("b", rows(0, 2))], INVALID, "SHAPE_MISMATCH", ("2 rows", "1")),
    Case("free-rank", "free", [bare("x", [4], data=bytes(16))], INVALID, "SHAPE_MISMATCH", ("[4]", "[any, any]")),
    Case("free-negative", "free", [bare("x", [-1, -4], data=bytes(16))], INVALID, "SHAPE_MISMATCH", ("[-1, -4]",)),
    # 2^32 * 2^32 * 4 is 0 in 64 bits; 2^31 * 2^31 * 4 is 0 as well
    Case("product-2^66", "free", [bare("x", [1 << 32, 1 << 32])], INVALID, "TENSOR_SIZE_MISMATCH", (str(1 << 66),)),
    Case("product-2^64", "free", [bare("x", [1 << 31, 1 << 31])], INVALID, "TENSOR_SIZE_MISMATCH", (str(1 << 64),)),
    Case(
        "product-of-maxima", "free", [bare("x", [BIG, BIG], data=b"x")], INVALID, "TENSOR_SIZE_MISMATCH", ("1 bytes",)
    ),
    Case("fill-2^66", "free", [bare("x", [1 << 32, 1 << 32], fill=ZEROS)], INVALID, "FILL_TOO_LARGE", (str(1 << 66),)),
    Case("fill-unset", "relu", [bare("x", [1, 4], fill=Fill())], INVALID, "FILL_PATTERN_UNSPECIFIED", ("'x'", "ZEROS")),
    Case("output-unknown", "relu", [x_rows()], INVALID, "OUTPUT_UNKNOWN", ("'z'", "'y'"), ["z"]),
    Case("output-not-named", "relu", [x_rows()], INVALID, "OUTPUT_UNKNOWN", ("''", "'y'"), [""]),
    Case("output-twice", "relu", [x_rows()], INVALID, "OUTPUT_DUPLICATE", ("twice",), ["y", "y"]),
    Case("outputs-too-many", "relu", [x_rows()], INVALID, "TOO_MANY_OUTPUTS", ("256",), ["y"] * 300),
    Case("id-too-long", "relu", [x_rows()], INVALID, "ITEM_ID_TOO_LONG", ("129", "128"), id="i" * 129),
]


def check(refusal: Refusal, code: grpc.StatusCode, reason: str, says: tuple[str, ...] = ()) -> None:
    assert (refusal.code, refusal.reason) == (code, reason), refusal
    for text in says:
        assert text in refusal.message, refusal.message


def both_ways(raw: Raw, request: model_pb2.InferRequest, lease: str = "") -> Refusal:
    """The refusal of an item, as a call and in a stream, where it must be the same and hurt no neighbour."""
    sent = (request.model,)
    alone = refused(lambda: raw.infer(request, lease), sent)
    listed = model_pb2.InferItem.FromString(request.SerializeToString())
    stream = raw.stream(model_pb2.StreamConfig(order=model_pb2.RESULT_ORDER_SUBMISSION), lease)
    good = model_pb2.InferItem(model="relu", inputs=[tensor("x", rows(3, 1))])
    stream.items(good, listed, good)
    first, bad, last = stream.finish()
    assert first.outputs.tensors[0].data == last.outputs.tensors[0].data == rows(3, 1).tobytes()
    assert bad.WhichOneof("outcome") == "error"
    told = item_refusal(bad.error).check_clean(sent)
    assert (told.code, told.reason, told.metadata, told.retry_s) == (
        alone.code,
        alone.reason,
        alone.metadata,
        alone.retry_s,
    )
    assert stream.totals() == (3, 2, 1)
    return alone


@pytest.mark.parametrize("case", CASES, ids=str)
def test_items(raw: Raw, case: Case) -> None:
    request = model_pb2.InferRequest(id=case.id, model=case.model, version=case.version, inputs=case.inputs)
    request.outputs.extend(model_pb2.OutputRequest(name=name) for name in case.outputs)
    refusal = both_ways(raw, request)
    check(refusal, case.code, case.reason, case.says)
    assert len(refusal.message.encode()) <= 1024


@pytest.mark.parametrize(
    ("replaced", "by", "reason"),
    [
        (b"\x10\x0c\x1a", b"\x10\x63\x1a", "DATA_TYPE_UNSUPPORTED"),  # data type 99
        (b"\x32\x02\x08\x01", b"\x32\x02\x08\x07", "FILL_PATTERN_UNSUPPORTED"),
    ],
)
def test_unknown_enum_values(raw: Raw, replaced: bytes, by: bytes, reason: str) -> None:
    message = model_pb2.InferRequest(model="relu", inputs=[bare("x", [1, 4], fill=ZEROS)]).SerializeToString()
    assert message.count(replaced) == 1
    changed = model_pb2.InferRequest.FromString(message.replace(replaced, by))
    check(both_ways(raw, changed), INVALID, reason, (str(by[1 if by[0] == 0x10 else 3]),))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff", "MALFORMED_MESSAGE"),
        (b"\x0a\x05ab", "MALFORMED_MESSAGE"),
        (b"\x12\x04relu\x1a\x7f\x0a\x01x", "MALFORMED_MESSAGE"),
        (b"\x00\x00", "MALFORMED_MESSAGE"),
        (b"\x0f\x01", "MALFORMED_MESSAGE"),
        (b"\x12" + b"\xff" * 9 + b"\x01", "MALFORMED_MESSAGE"),
        (b"\x1a\x0c\x1a\x0a" + b"\xff" * 10, "MALFORMED_MESSAGE"),
        (b"\x0b" * 200, "MALFORMED_MESSAGE"),
        (b"\x12\x02\xc3\x28", "INVALID_UTF8"),
        (b"\x78\x01" * 100_000, "MESSAGE_TOO_COMPLEX"),
    ],
)
def test_bytes_that_are_no_message(raw: Raw, message: bytes, reason: str) -> None:
    check(refused(lambda: raw.infer_bytes(message)), INVALID, reason)


@pytest.mark.parametrize(
    "method",
    [
        "DeviceService/GetServerInfo",
        "MemoryService/CreateLease",
        "MemoryService/KeepLeaseAlive",
        "MemoryService/ReadBuffer",
        "MemoryService/WriteBuffer",
        "ModelService/GetModel",
        "ModelService/LoadModel",
        "ModelService/UploadModel",
        "ModelService/WatchStreams",
    ],
)
def test_bytes_that_are_no_message_to_other_calls(raw: Raw, method: str) -> None:
    path = f"/aclserve.v1.{method}"
    calls: dict[str, Callable[[], object]] = {
        "ReadBuffer": lambda: list(raw.channel.unary_stream(path)(b"\xff", timeout=10)),
        "WatchStreams": lambda: list(raw.channel.unary_stream(path)(b"\xff", timeout=10)),
        "KeepLeaseAlive": lambda: list(raw.channel.stream_stream(path)(iter([b"\xff"]), timeout=10)),
        "WriteBuffer": lambda: raw.channel.stream_unary(path)(iter([b"\xff"]), timeout=10),
        "UploadModel": lambda: raw.channel.stream_unary(path)(iter([b"\xff"]), timeout=10),
    }
    call = calls.get(method.partition("/")[2], lambda: raw.channel.unary_unary(path)(b"\xff", timeout=10))
    check(refused(call), INVALID, "MALFORMED_MESSAGE", ("1 bytes",))


def test_an_empty_message_names_no_model(raw: Raw) -> None:
    check(refused(lambda: raw.infer_bytes(b"")), Code.NOT_FOUND, "MODEL_NOT_FOUND", ("''",))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff", "MALFORMED_MESSAGE"),
        (b"\x12\x05\x0a\x09abc", "MALFORMED_MESSAGE"),
        (b"\x1a\x02\x0a\x05", "MALFORMED_MESSAGE"),
        (b"", "REQUEST_EMPTY"),
        (b"\x7a\x00", "REQUEST_EMPTY"),
    ],
)
def test_a_malformed_message_ends_its_stream_only(raw: Raw, message: bytes, reason: str) -> None:
    neighbour = raw.stream(model_pb2.StreamConfig(model="relu"))
    stream = raw.stream(model_pb2.StreamConfig(model="relu"))
    stream.send(message)
    check(stream.end(), INVALID, reason)
    neighbour.items(model_pb2.InferItem(inputs=[x_rows()]))
    assert len(neighbour.finish()) == 1
    assert neighbour.totals() == (1, 1, 0)


def test_text_that_is_not_utf8_in_a_stream_hurts_its_item_only(raw: Raw) -> None:
    stream = raw.stream(model_pb2.StreamConfig(model="relu", order=model_pb2.RESULT_ORDER_SUBMISSION))
    good = model_pb2.InferItem(id="good", inputs=[x_rows()])
    message = model_pb2.StreamInferRequest(items=model_pb2.ItemList(items=[good, good])).SerializeToString()
    stream.send(message.replace(b"good", b"ba\xff\xfe", 1))
    bad, fine = stream.finish()
    assert item_refusal(bad.error).reason == "INVALID_UTF8"
    assert fine.id == "good"
    assert stream.totals() == (2, 1, 1)


def test_strange_time_limits(raw: Raw) -> None:
    request = model_pb2.InferRequest(model="relu", inputs=[x_rows()])
    for limit in (Duration(seconds=-1), Duration(seconds=-(1 << 63)), Duration(nanos=-1), Duration()):
        request.timeout.CopyFrom(limit)
        refusal = refused(lambda: raw.infer(request))
        assert refusal.code is Code.DEADLINE_EXCEEDED
        assert refusal.reason in ("ITEM_EXPIRED", "DEADLINE_UNREACHABLE")
    for limit in (Duration(seconds=BIG), Duration(seconds=315_576_000_000, nanos=999_999_999)):
        request.timeout.CopyFrom(limit)
        assert raw.infer(request).outputs.tensors[0].data == rows(0, 1).tobytes()


# Buffers in inference.


def by_buffer(buffer_id: str, offset: int = 0, length: int = 0, *, output: bool = False) -> model_pb2.InferRequest:
    """One row through a buffer, as input or as output."""
    part = BufferSlice(buffer_id=buffer_id, offset_bytes=offset, length_bytes=length)
    request = model_pb2.InferRequest(model="relu")
    if output:
        request.inputs.append(x_rows())
        request.outputs.append(model_pb2.OutputRequest(name="y", buffer=part))
    else:
        request.inputs.append(bare("x", [1, 4], buffer=part))
    return request


@pytest.mark.parametrize("output", [False, True], ids=["input", "output"])
class TestBuffers:
    def test_without_a_lease(self, raw: Raw, output: bool) -> None:
        check(
            both_ways(raw, by_buffer("b", output=output)), Code.UNAUTHENTICATED, "LEASE_REQUIRED", ("aclserve-lease",)
        )

    def test_unknown_lease(self, raw: Raw, output: bool) -> None:
        check(both_ways(raw, by_buffer("b", output=output), "no-such"), Code.NOT_FOUND, "LEASE_NOT_FOUND", ("no such",))

    def test_unknown_buffer(self, raw: Raw, lease: str, output: bool) -> None:
        for name in ("b", "", "../../etc/passwd"):
            refusal = both_ways(raw, by_buffer("b", output=output), lease)
            check(refusal, Code.NOT_FOUND, "BUFFER_NOT_FOUND", ("no such buffer",))
            assert name not in refusal.message or name in "b"

    def test_foreign_buffer_is_told_as_unknown(self, raw: Raw, lease: str, output: bool) -> None:
        mine = raw.buffer(lease, 64)
        stranger = raw.lease()
        foreign = both_ways(raw, by_buffer(mine, output=output), stranger)
        unknown = both_ways(raw, by_buffer("none", output=output), stranger)
        check(foreign, Code.NOT_FOUND, "BUFFER_NOT_FOUND")
        assert foreign.message == unknown.message

    def test_freed_buffer(self, raw: Raw, lease: str, output: bool) -> None:
        buffer_id = raw.buffer(lease, 64)
        raw.call("memory", "FreeBuffer", memory_pb2.FreeBufferRequest(buffer_id=buffer_id), lease)
        check(both_ways(raw, by_buffer(buffer_id, output=output), lease), Code.NOT_FOUND, "BUFFER_NOT_FOUND")

    def test_released_lease(self, raw: Raw, output: bool) -> None:
        lease_id = raw.lease(1)
        buffer_id = raw.buffer(lease_id, 64)
        raw.release(lease_id)
        check(both_ways(raw, by_buffer(buffer_id, output=output), lease_id), Code.NOT_FOUND, "LEASE_NOT_FOUND")

    def test_expired_lease(self, service: Serving, raw: Raw, monkeypatch: pytest.MonkeyPatch, output: bool) -> None:
        lease_id = raw.lease(60)
        buffer_id = raw.buffer(lease_id, 64)
        assert service.server.memory.use().buffers == 1
        monkeypatch.setattr(service.server.memory, "_clock", lambda: time.monotonic() + 61)
        check(
            both_ways(raw, by_buffer(buffer_id, output=output), lease_id),
            Code.NOT_FOUND,
            "LEASE_NOT_FOUND",
            ("expired",),
        )
        wait_until(lambda: service.server.memory.use().buffers == 0, "the buffer is freed")

    @pytest.mark.parametrize("edge", [65, *EDGES])
    def test_offset_out_of_range(self, raw: Raw, lease: str, output: bool, edge: int) -> None:
        buffer_id = raw.buffer(lease, 64)
        for length in (0, 16):
            refusal = both_ways(raw, by_buffer(buffer_id, edge, length, output=output), lease)
            check(refusal, Code.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER", (str(edge), "64 bytes"))

    def test_range_that_begins_inside_and_ends_outside(self, raw: Raw, lease: str, output: bool) -> None:
        buffer_id = raw.buffer(lease, 64)
        check(
            both_ways(raw, by_buffer(buffer_id, 52, 16, output=output), lease),
            Code.OUT_OF_RANGE,
            "RANGE_OUTSIDE_BUFFER",
        )


@pytest.mark.parametrize("edge", [15, 17, *EDGES])
def test_input_range_of_another_length_than_the_tensor(raw: Raw, lease: str, edge: int) -> None:
    buffer_id = raw.buffer(lease, 64)
    refusal = both_ways(raw, by_buffer(buffer_id, 0, edge), lease)
    check(refusal, INVALID, "TENSOR_SIZE_MISMATCH", (f"{edge} bytes", "needs 16"))


@pytest.mark.parametrize("edge", EDGES)
def test_output_range_longer_than_the_buffer(raw: Raw, lease: str, edge: int) -> None:
    buffer_id = raw.buffer(lease, 64)
    refusal = both_ways(raw, by_buffer(buffer_id, 0, edge, output=True), lease)
    check(refusal, Code.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER", (str(edge), "64 bytes"))


@pytest.mark.parametrize(("offset", "length"), [(0, 15), (52, 0), (64, 0), (52, 12)])
def test_output_that_does_not_fit(raw: Raw, lease: str, offset: int, length: int) -> None:
    refusal = both_ways(raw, by_buffer(raw.buffer(lease, 64), offset, length, output=True), lease)
    check(refusal, Code.FAILED_PRECONDITION, "BUFFER_TOO_SMALL", ("16 bytes", str(length or 64 - offset)))


def test_output_of_unknown_size_that_does_not_fit(raw: Raw, lease: str) -> None:
    buffer_id = raw.buffer(lease, 24)
    request = model_pb2.InferRequest(model="free", inputs=[tensor("x", np.eye(2, dtype=np.float32))])
    request.outputs.add(name="y", buffer=BufferSlice(buffer_id=buffer_id))
    refusal = both_ways(raw, request, lease)
    check(refusal, Code.FAILED_PRECONDITION, "BUFFER_TOO_SMALL", ("'y'", "32 bytes", "24"))


def test_a_refused_item_lets_go_of_its_buffers(raw: Raw, lease: str) -> None:
    buffer_id = raw.buffer(lease, 64)
    request = by_buffer(buffer_id)
    request.outputs.add(name="y", buffer=BufferSlice(buffer_id="none"))
    check(both_ways(raw, request, lease), Code.NOT_FOUND, "BUFFER_NOT_FOUND")
    (listed,) = raw.call("memory", "ListBuffers", memory_pb2.ListBuffersRequest(), lease).buffers
    assert listed.pins == 0


# MemoryService.

Make = Callable[[str], Any]


def allocate(space: int, size: int, policy: int = 0) -> memory_pb2.AllocateBufferRequest:
    return memory_pb2.AllocateBufferRequest(space=space, size_bytes=size, policy=policy)  # type: ignore[arg-type]


def write_header(buffer_id: str, offset: int, length: int, **more: Any) -> memory_pb2.WriteBufferRequest:
    header = memory_pb2.WriteBufferHeader(buffer_id=buffer_id, offset_bytes=offset, length_bytes=length, **more)
    return memory_pb2.WriteBufferRequest(header=header)


def write_data(data: bytes) -> memory_pb2.WriteBufferRequest:
    return memory_pb2.WriteBufferRequest(data=data)


def copy(source: str, target: str, at: int, to: int, length: int) -> memory_pb2.CopyMemoryRequest:
    return memory_pb2.CopyMemoryRequest(
        source_buffer_id=source,
        destination_buffer_id=target,
        source_offset_bytes=at,
        destination_offset_bytes=to,
        length_bytes=length,
    )


def set_memory(buffer_id: str, offset: int = 0, length: int = 0, value: int = 0) -> memory_pb2.SetMemoryRequest:
    return memory_pb2.SetMemoryRequest(buffer_id=buffer_id, offset_bytes=offset, length_bytes=length, value=value)


def read(buffer_id: str, offset: int = 0, length: int = 0) -> memory_pb2.ReadBufferRequest:
    return memory_pb2.ReadBufferRequest(buffer_id=buffer_id, offset_bytes=offset, length_bytes=length)


MEMORY_CASES: list[tuple[str, Make, grpc.StatusCode, str, tuple[str, ...]]] = [
    ("AllocateBuffer", lambda b: allocate(0, 16), INVALID, "MEMORY_SPACE_INVALID", ("UNSPECIFIED", "DEVICE")),
    ("AllocateBuffer", lambda b: allocate(77, 16), INVALID, "MEMORY_SPACE_INVALID", ("77", "DEVICE")),
    ("AllocateBuffer", lambda b: allocate(2, 0), INVALID, "SIZE_IS_ZERO", ("0 bytes", "1 or more")),
    ("AllocateBuffer", lambda b: allocate(1, 0), INVALID, "SIZE_IS_ZERO", ("0 bytes", "1 or more")),
    ("AllocateBuffer", lambda b: allocate(2, 16, 99), INVALID, "ALLOCATION_POLICY_INVALID", ("99", "HUGE_FIRST")),
    ("AllocateBuffer", lambda b: allocate(1, 16, 1), INVALID, "POLICY_NOT_APPLICABLE", ("host",)),
    ("AllocateBuffer", lambda b: allocate(2, 300 << 20), Code.RESOURCE_EXHAUSTED, "DEVICE_OUT_OF_MEMORY", ("memory",)),
    ("SetMemory", lambda b: set_memory(b, value=256), INVALID, "VALUE_NOT_A_BYTE", ("256", "255")),
    ("SetMemory", lambda b: set_memory(b, value=(1 << 32) - 1), INVALID, "VALUE_NOT_A_BYTE", ("4294967295",)),
    ("SetMemory", lambda b: set_memory("x"), Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("FreeBuffer", lambda b: memory_pb2.FreeBufferRequest(buffer_id="x"), Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("FreeBuffer", lambda b: memory_pb2.FreeBufferRequest(), Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("CopyMemory", lambda b: copy(b, "x", 0, 0, 1), Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("CopyMemory", lambda b: copy("x", b, 0, 0, 1), Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("CopyMemory", lambda b: copy(b, b, 0, 32, 0), INVALID, "SIZE_IS_ZERO", ("1 or more",)),
    ("CopyMemory", lambda b: copy(b, b, 0, 8, 16), INVALID, "RANGES_OVERLAP", ("16 bytes", "offset 8")),
    ("ReadBuffer", lambda b: read("x"), Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("ReadBuffer", lambda b: read(b, 64), Code.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER", ("64",)),
    ("ListBuffers", lambda b: memory_pb2.ListBuffersRequest(page_token="??"), INVALID, "PAGE_TOKEN_INVALID", ()),
    (
        "QueryMemory",
        lambda b: memory_pb2.QueryMemoryRequest(attributes=[99]),
        INVALID,
        "MEMORY_ATTRIBUTE_INVALID",
        ("99",),
    ),  # type: ignore[list-item]
    ("WriteBuffer", lambda b: [], INVALID, "HEADER_MISSING", ("nothing", "header")),
    ("WriteBuffer", lambda b: [memory_pb2.WriteBufferRequest()], INVALID, "HEADER_MISSING", ("nothing", "header")),
    ("WriteBuffer", lambda b: [write_data(b"1")], INVALID, "HEADER_MISSING", ("data", "header")),
    ("WriteBuffer", lambda b: [write_header(b, 0, 4)] * 2, INVALID, "HEADER_REPEATED", ("twice",)),
    ("WriteBuffer", lambda b: [write_header("x", 0, 4)], Code.NOT_FOUND, "BUFFER_NOT_FOUND", ()),
    ("WriteBuffer", lambda b: [write_header(b, 0, 0)], INVALID, "SIZE_IS_ZERO", ("0 bytes",)),
    (
        "WriteBuffer",
        lambda b: [write_header(b, 0, 4), write_data(b"123")],
        INVALID,
        "UPLOAD_TRUNCATED",
        ("3 bytes", "4 were"),
    ),
    ("WriteBuffer", lambda b: [write_header(b, 0, 4)], INVALID, "UPLOAD_TRUNCATED", ("0 bytes", "4 were")),
    (
        "WriteBuffer",
        lambda b: [write_header(b, 0, 4), write_data(b"12345")],
        INVALID,
        "UPLOAD_TOO_LONG",
        ("5 bytes", "4 were"),
    ),
    (
        "WriteBuffer",
        lambda b: [write_header(b, 0, 4, crc32c=1), write_data(b"1234")],
        Code.DATA_LOSS,
        "CHECKSUM_MISMATCH",
        ("0xf63af4ee", "0x00000001"),
    ),
]
for _edge in EDGES:
    _outside = (Code.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER", (str(_edge), "64 bytes"))
    MEMORY_CASES += [
        (
            "AllocateBuffer",
            lambda b, n=_edge: allocate(2, n),
            Code.RESOURCE_EXHAUSTED,
            "LEASE_QUOTA_EXCEEDED",
            (str(_edge),),
        ),
        (
            "AllocateBuffer",
            lambda b, n=_edge: allocate(1, n),
            Code.RESOURCE_EXHAUSTED,
            "LEASE_QUOTA_EXCEEDED",
            (str(_edge),),
        ),
        ("SetMemory", lambda b, n=_edge: set_memory(b, n), *_outside),
        ("SetMemory", lambda b, n=_edge: set_memory(b, 1, n), *_outside),
        ("ReadBuffer", lambda b, n=_edge: read(b, n), *_outside),
        ("ReadBuffer", lambda b, n=_edge: read(b, 1, n), *_outside),
        ("CopyMemory", lambda b, n=_edge: copy(b, b, n, 0, 1), *_outside),
        ("CopyMemory", lambda b, n=_edge: copy(b, b, 0, n, 1), *_outside),
        ("CopyMemory", lambda b, n=_edge: copy(b, b, 0, 0, n), *_outside),
        ("WriteBuffer", lambda b, n=_edge: [write_header(b, n, 1)], *_outside),
        ("WriteBuffer", lambda b, n=_edge: [write_header(b, 1, n)], *_outside),
    ]


@pytest.mark.parametrize(("method", "make", "code", "reason", "says"), MEMORY_CASES)
def test_memory(
    raw: Raw, lease: str, method: str, make: Make, code: grpc.StatusCode, reason: str, says: tuple[str, ...]
) -> None:
    buffer_id = raw.buffer(lease, 64)
    raw.call("memory", "SetMemory", set_memory(buffer_id, value=7), lease)
    check(refused(lambda: raw.call("memory", method, make(buffer_id), lease)), code, reason, says)
    (listed,) = raw.call("memory", "ListBuffers", memory_pb2.ListBuffersRequest(), lease).buffers
    assert (listed.id, listed.pins) == (buffer_id, 0)
    if method != "WriteBuffer":
        assert raw.read(lease, buffer_id) == b"\7" * 64


ON_A_LEASE: list[tuple[str, str, Make]] = [
    ("memory", "RenewLease", lambda b: memory_pb2.RenewLeaseRequest()),
    ("memory", "KeepLeaseAlive", lambda b: [memory_pb2.KeepLeaseAliveRequest()]),
    ("memory", "ReleaseLease", lambda b: memory_pb2.ReleaseLeaseRequest()),
    ("memory", "AllocateBuffer", lambda b: allocate(2, 16)),
    ("memory", "FreeBuffer", lambda b: memory_pb2.FreeBufferRequest(buffer_id=b)),
    ("memory", "ListBuffers", lambda b: memory_pb2.ListBuffersRequest()),
    ("memory", "SetMemory", set_memory),
    ("memory", "CopyMemory", lambda b: copy(b, b, 0, 8, 4)),
    ("memory", "WriteBuffer", lambda b: [write_header(b, 0, 4), write_data(b"1234")]),
    ("memory", "ReadBuffer", read),
    ("models", "UploadModel", lambda b: [upload_header(4), upload_data(b"1234")]),
    ("models", "LoadModel", lambda b: load(upload_id=b, name="n")),
    ("models", "QueryModelSize", lambda b: model_pb2.QueryModelSizeRequest(source=model_pb2.ModelSource(upload_id=b))),
]


@pytest.mark.parametrize(("service_name", "method", "make"), ON_A_LEASE)
def test_calls_that_need_a_lease(
    service: Serving, raw: Raw, service_name: str, method: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_id = raw.lease()
    buffer_id = raw.buffer(lease_id, 64)
    request = make(buffer_id)
    for shown, code, reason in (
        ("", Code.UNAUTHENTICATED, "LEASE_REQUIRED"),
        ("unknown", Code.NOT_FOUND, "LEASE_NOT_FOUND"),
    ):
        check(refused(lambda shown=shown: raw.call(service_name, method, request, shown)), code, reason)
    if method in ("FreeBuffer", "SetMemory", "CopyMemory", "WriteBuffer", "ReadBuffer"):
        stranger = raw.lease()
        foreign = refused(lambda: raw.call(service_name, method, request, stranger))
        check(foreign, Code.NOT_FOUND, "BUFFER_NOT_FOUND")
        raw.release(stranger)
    monkeypatch.setattr(service.server.memory, "_clock", lambda: time.monotonic() + 61)
    check(refused(lambda: raw.call(service_name, method, request, lease_id)), Code.NOT_FOUND, "LEASE_NOT_FOUND")


@pytest.mark.parametrize(
    "ttl",
    [
        Duration(),
        Duration(seconds=-5),
        Duration(nanos=999_999_999),
        Duration(seconds=3601),
        Duration(seconds=BIG),
        Duration(seconds=-(1 << 63)),
    ],
    ids=str,
)
def test_lease_time_to_live(raw: Raw, ttl: Duration) -> None:
    refusal = refused(lambda: raw.call("memory", "CreateLease", memory_pb2.CreateLeaseRequest(ttl=ttl)))
    check(refusal, INVALID, "LEASE_TTL_OUT_OF_RANGE", ("1 s to 3600 s",))


def test_leases_run_out(raw: Raw) -> None:
    leases = [raw.lease() for _ in range(8)]
    refusal = refused(raw.lease)
    check(refusal, Code.RESOURCE_EXHAUSTED, "TOO_MANY_LEASES", ("8 leases",))
    assert refusal.retry_s is not None
    assert refusal.retry_s > 0
    for lease_id in leases:
        raw.release(lease_id)


def test_a_lease_that_ends_takes_the_upload_under_way(service: Serving, raw: Raw) -> None:
    lease_id = raw.lease()

    def parts() -> Iterator[model_pb2.UploadModelRequest]:
        yield upload_header(8)
        yield upload_data(b"1234")
        wait_until(lambda: service.server.memory.use().uploads == 1, "the upload has begun")
        raw.release(lease_id)
        yield upload_data(b"5678")

    metadata = (("aclserve-lease", lease_id),)
    refusal = refused(lambda: raw.models.UploadModel(parts(), timeout=30, metadata=metadata))
    check(refusal, Code.NOT_FOUND, "LEASE_NOT_FOUND")


def test_an_upload_whose_client_dies_is_gone(service: Serving, raw: Raw, lease: str) -> None:
    def parts() -> Iterator[model_pb2.UploadModelRequest]:
        yield upload_header(8)
        yield upload_data(b"1234")
        wait_until(lambda: service.server.memory.use().uploads == 1, "the upload has begun")
        call.cancel()

    call = raw.models.UploadModel.future(parts(), timeout=30, metadata=(("aclserve-lease", lease),))
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    wait_until(lambda: service.server.memory.use().uploads == 0, "the upload is gone")


# Models.


def upload_header(size: int, **more: Any) -> model_pb2.UploadModelRequest:
    return model_pb2.UploadModelRequest(header=model_pb2.UploadModelHeader(size_bytes=size, **more))


def upload_data(data: bytes) -> model_pb2.UploadModelRequest:
    return model_pb2.UploadModelRequest(data=data)


def load(model: str = "", version: int = 0, upload_id: str = "", **fields: Any) -> model_pb2.LoadModelRequest:
    if upload_id:
        source = model_pb2.ModelSource(upload_id=upload_id)
    else:
        source = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model=model, version=version))
    return model_pb2.LoadModelRequest(source=source, **fields)


@pytest.mark.parametrize(
    ("parts", "code", "reason", "says"),
    [
        ([], INVALID, "HEADER_MISSING", ("header",)),
        ([model_pb2.UploadModelRequest()], INVALID, "HEADER_MISSING", ("header",)),
        ([upload_data(b"1")], INVALID, "HEADER_MISSING", ("header",)),
        ([upload_header(4)] * 2, INVALID, "HEADER_REPEATED", ("header",)),
        ([upload_header(0)], INVALID, "SIZE_IS_ZERO", ("0 bytes",)),
        ([upload_header(4)], INVALID, "UPLOAD_TRUNCATED", ("0 bytes", "4 were")),
        ([upload_header(4), upload_data(b"12"), upload_data(b"3")], INVALID, "UPLOAD_TRUNCATED", ("3 bytes", "4 were")),
        (
            [upload_header(4), upload_data(b"12"), upload_data(b"345")],
            INVALID,
            "UPLOAD_TOO_LONG",
            ("5 bytes", "4 were"),
        ),
        (
            [upload_header(4, crc32c=1), upload_data(b"1234")],
            Code.DATA_LOSS,
            "CHECKSUM_MISMATCH",
            ("0xf63af4ee", "0x00000001"),
        ),
        ([upload_header((1 << 20) + 1)], INVALID, "UPLOAD_TOO_LARGE", ("1048577", "1048576")),
        *[([upload_header(edge)], INVALID, "UPLOAD_TOO_LARGE", (str(edge), "1048576")) for edge in EDGES],
    ],
)
def test_uploads(
    service: Serving, raw: Raw, lease: str, parts: list[Any], code: grpc.StatusCode, reason: str, says: tuple[str, ...]
) -> None:
    check(refused(lambda: raw.call("models", "UploadModel", parts, lease)), code, reason, says)
    assert service.server.memory.use().uploads == 0
    assert service.server.memory.use().host_bytes == 0


def test_uploads_count_against_the_quota(raw: Raw, lease: str) -> None:
    raw.upload(lease, bytes(1 << 20))
    raw.upload(lease, bytes(1 << 19))
    refusal = refused(lambda: raw.upload(lease, bytes(1 << 20)))
    check(refusal, Code.RESOURCE_EXHAUSTED, "LEASE_QUOTA_EXCEEDED", (str(1 << 20), str(3 << 19), str(2 << 20)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bytes(range(256)) * 8, "model"),
        (elementwise().SerializeToString()[:40], "model"),
        (om_file(), "om model"),
        (elementwise("Identity", ("rows",), TensorProto.STRING).SerializeToString(), "string"),
    ],
    ids=["noise", "cut", "om", "strings"],
)
def test_an_upload_that_is_no_model(raw: Raw, lease: str, content: bytes, says: str) -> None:
    upload_id = raw.upload(lease, content)
    for name in ("new-model", "new-model"):  # the first attempt leaves nothing in the way of the second
        refusal = refused(
            lambda name=name: raw.call("models", "LoadModel", load(upload_id=upload_id, name=name), lease)
        )
        assert refusal.code in (INVALID, Code.UNIMPLEMENTED), refusal
        assert says in refusal.message.lower(), refusal.message
    assert ("new-model", 1) not in raw.states()
    absent = refused(lambda: raw.call("models", "GetModel", model_pb2.GetModelRequest(model="new-model")))
    check(absent, Code.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("place", ["absolute", "parent"])
def test_an_upload_reads_no_file_of_the_server(
    raw: Raw, lease: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "secret").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    location = str(tmp_path / "secret") if place == "absolute" else "../secret"
    upload_id = raw.upload(lease, with_external_data(location))
    refusal = refused(
        lambda: raw.call("models", "LoadModel", load(upload_id=upload_id, name="spy"), lease), (location,)
    )
    check(refusal, INVALID, "MODEL_INVALID")
    assert "secret" not in refusal.message.replace(location, "")


@pytest.mark.parametrize("name", ["", "../x", "/etc/x", "a/b", "a b", "ä", "n" * 129, "x\0y"])
def test_names_for_uploads(raw: Raw, lease: str, name: str) -> None:
    upload_id = raw.upload(lease, elementwise().SerializeToString())
    refusal = refused(
        lambda: raw.call("models", "LoadModel", load(upload_id=upload_id, name=name), lease), (name, "/etc/")
    )
    check(refusal, INVALID, "MODEL_NAME_INVALID", ("letters, digits",))


def test_a_name_of_the_repository_is_not_for_uploads(raw: Raw, lease: str) -> None:
    upload_id = raw.upload(lease, elementwise().SerializeToString())
    for name in ("relu", "spare", "corrupt"):
        request = load(upload_id=upload_id, name=name)
        refusal = refused(lambda request=request: raw.call("models", "LoadModel", request, lease))
        check(refusal, Code.ALREADY_EXISTS, "MODEL_ALREADY_LOADED", (repr(name),))


NAMES = ["nope", "", "..", ".", "../models/relu", "relu/1", "relu/../relu", "/", "/etc/passwd", "relu\0", "n" * 5000]


@pytest.mark.parametrize("name", NAMES)
def test_models_that_are_not_there(raw: Raw, name: str) -> None:
    calls = [
        ("GetModel", model_pb2.GetModelRequest(model=name)),
        ("UnloadModel", model_pb2.UnloadModelRequest(model=name)),
    ]
    if name:
        source = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model=name))
        calls += [
            ("LoadModel", model_pb2.LoadModelRequest(source=source)),
            ("QueryModelSize", model_pb2.QueryModelSizeRequest(source=source)),
        ]
    for method, request in calls:
        refusal = refused(lambda method=method, request=request: raw.call("models", method, request), (name, "/etc/"))
        check(refusal, Code.NOT_FOUND, "MODEL_NOT_FOUND", ("there is no model",))
        assert len(refusal.message) < 600


@pytest.mark.parametrize("version", [2, BIG, HUGE])
def test_versions_that_are_not_there(raw: Raw, version: int) -> None:
    source = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model="relu", version=version))
    for method, request in (
        ("GetModel", model_pb2.GetModelRequest(model="relu", version=version)),
        ("UnloadModel", model_pb2.UnloadModelRequest(model="relu", version=version)),
        ("LoadModel", model_pb2.LoadModelRequest(source=source)),
        ("QueryModelSize", model_pb2.QueryModelSizeRequest(source=source)),
    ):
        refusal = refused(lambda method=method, request=request: raw.call("models", method, request))
        check(refusal, Code.NOT_FOUND, "MODEL_NOT_FOUND", (f"version {version}", "versions 1"))


def test_models_that_are_not_loaded(raw: Raw) -> None:
    for method, request in (
        ("GetModel", model_pb2.GetModelRequest(model="spare")),
        ("UnloadModel", model_pb2.UnloadModelRequest(model="spare")),
    ):
        refusal = refused(lambda method=method, request=request: raw.call("models", method, request))
        check(refusal, Code.FAILED_PRECONDITION, "MODEL_NOT_READY", ("'spare'", "unloaded"))


LOADS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("no-source", model_pb2.LoadModelRequest(), INVALID, "MODEL_SOURCE_MISSING"),
    ("empty-source", model_pb2.LoadModelRequest(source=model_pb2.ModelSource()), INVALID, "MODEL_SOURCE_MISSING"),
    ("no-name", load(""), INVALID, "MODEL_SOURCE_MISSING"),
    ("unknown-upload", load(upload_id="nope", name="n"), Code.NOT_FOUND, "UPLOAD_NOT_FOUND"),
    ("loaded-already", load("relu"), Code.ALREADY_EXISTS, "MODEL_ALREADY_LOADED"),
    ("name-for-repository", load("spare", name="other"), INVALID, "MODEL_NAME_INVALID"),
    ("mode-unknown", load("spare", execution_mode=9), INVALID, "EXECUTION_MODE_UNKNOWN"),
    ("owner-unknown", load("spare", memory_owner=9), INVALID, "MEMORY_OWNER_UNKNOWN"),
    ("buffers-without-owner", load("spare", work_buffer_id="b"), INVALID, "MEMORY_OWNER_MISMATCH"),
    ("owner-without-buffers", load("spare", memory_owner=2), Code.NOT_FOUND, "BUFFER_NOT_FOUND"),
]


@pytest.mark.parametrize(("request_", "code", "reason"), [case[1:] for case in LOADS], ids=[case[0] for case in LOADS])
def test_loads(raw: Raw, lease: str, request_: Any, code: grpc.StatusCode, reason: str) -> None:
    check(refused(lambda: raw.call("models", "LoadModel", request_, lease)), code, reason)


def test_query_without_a_source(raw: Raw, lease: str) -> None:
    for request in (
        model_pb2.QueryModelSizeRequest(),
        model_pb2.QueryModelSizeRequest(source=model_pb2.ModelSource(repository=model_pb2.RepositoryModel())),
    ):
        refusal = refused(lambda request=request: raw.call("models", "QueryModelSize", request, lease))
        check(refusal, INVALID, "MODEL_SOURCE_MISSING")


def test_memory_of_the_callers_that_does_not_fit(raw: Raw, lease: str) -> None:
    small = raw.buffer(lease, 1)
    host = raw.buffer(lease, 1 << 16, memory_pb2.MEMORY_SPACE_HOST)
    for work, code, reason in (
        (small, Code.FAILED_PRECONDITION, "BUFFER_TOO_SMALL"),
        (host, INVALID, "BUFFER_NOT_ON_DEVICE"),
        ("none", Code.NOT_FOUND, "BUFFER_NOT_FOUND"),
    ):
        request = load("spare", memory_owner=2, work_buffer_id=work, weight_buffer_id=work)
        check(refused(lambda request=request: raw.call("models", "LoadModel", request, lease)), code, reason)
    listed = raw.call("memory", "ListBuffers", memory_pb2.ListBuffersRequest(), lease).buffers
    assert [buffer.pins for buffer in listed] == [0, 0]


def test_pages(raw: Raw) -> None:
    for token in ("?", "AAAA", "x" * 10_000):
        request = model_pb2.ListModelsRequest(page_token=token)
        check(refused(lambda request=request: raw.call("models", "ListModels", request)), INVALID, "PAGE_TOKEN_INVALID")
    assert len(raw.call("models", "ListModels", model_pb2.ListModelsRequest(page_size=(1 << 32) - 1)).models) > 10


def test_bad_models_are_listed_with_their_reason_and_the_others_are_served(raw: Raw) -> None:
    states = {name: state for (name, _), state in raw.states().items()}
    assert set(states) == {*GOOD, *UNAVAILABLE, "spare"}
    for name in GOOD:
        assert states[name] == (model_pb2.MODEL_STATE_READY, "")
    for name, says in UNAVAILABLE.items():
        state, reason = states[name]
        assert state == model_pb2.MODEL_STATE_UNAVAILABLE, name
        assert says in reason, (name, reason)
        Refusal(INVALID, "LISTED", reason).check_clean(("<model>/1/",))


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_a_bad_model_cannot_be_loaded_later_either(raw: Raw, name: str) -> None:
    refusal = refused(lambda: raw.call("models", "LoadModel", load(name)), ("<model>/1/",))
    assert refusal.code in (INVALID, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED), refusal
    assert UNAVAILABLE[name] in refusal.message


def test_a_file_that_vanishes(service: Serving, raw: Raw, tmp_path: Path) -> None:
    """Between the listing and the load."""
    root = service.server.config.model_repository
    put_model(root, "brief", elementwise())
    raw.call("models", "LoadModel", load("brief"))
    raw.call("models", "UnloadModel", model_pb2.UnloadModelRequest(model="brief"))
    try:
        (root / "brief" / "1" / "model.onnx").unlink()
        refusal = refused(lambda: raw.call("models", "LoadModel", load("brief")))
        check(refusal, Code.FAILED_PRECONDITION, "MODEL_NOT_READY", ("neither model.om nor model.onnx",))
        (root / "brief" / "1").rmdir()
        (root / "brief").rmdir()
        check(refused(lambda: raw.call("models", "LoadModel", load("brief"))), Code.NOT_FOUND, "MODEL_NOT_FOUND")
        check(
            refused(lambda: raw.call("models", "GetModel", model_pb2.GetModelRequest(model="brief"))),
            Code.NOT_FOUND,
            "MODEL_NOT_FOUND",
        )
    finally:
        assert "brief" not in {name for name, _ in raw.states()}


def test_a_call_that_does_not_exist(raw: Raw) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.channel.unary_unary("/aclserve.v1.ModelService/Nope")(b"", timeout=10)
    assert caught.value.code() is Code.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_devices_are_listed_to_anyone(raw: Raw) -> None:
    (device,) = raw.call("devices", "ListDevices", device_pb2.ListDevicesRequest()).devices
    assert device.emulated


# Servers that cannot start. (Without the fixtures above they would do as well.)


def start(tmp_path: Path, emulator: Emulator, **options: Any) -> None:
    async def attempt() -> None:
        server = Server(
            Config(acl_library="emulator", model_repository=tmp_path, port=0, metrics_port=0, **options), emulator
        )
        await server.start()

    asyncio.run(attempt())


@pytest.mark.parametrize(("count", "device"), [(1, 1), (1, 65535), (2, 2)])
def test_no_such_device(tmp_path: Path, count: int, device: int) -> None:
    emulator = Emulator(EmulatorConfig(device_count=count))
    try:
        with pytest.raises(NotFound, match=f"no device {device}; .* {count} devices") as caught:
            start(tmp_path, emulator, device=device)
        assert caught.value.reason == "DEVICE_NOT_FOUND"
        assert not any(emulator.ledger().values())
        assert emulator.counters.calls["aclFinalize"] == 1
        assert not emulator.errors
    finally:
        emulator.close()


@pytest.mark.parametrize(
    "function",
    [
        "aclInit",
        "aclrtSetDevice",
        "aclrtGetCurrentContext",
        "aclrtSetCurrentContext",
        "aclrtMallocHost",
        "aclrtGetRunMode",
    ],
)
def test_a_device_that_fails_while_it_is_opened(tmp_path: Path, function: str) -> None:
    put_model(tmp_path, "relu", elementwise("Relu"))
    emulator = Emulator(EmulatorConfig(run_mode="host"))
    emulator.faults.fail_call(function, 507899)
    try:
        with pytest.raises((AclserveError, Exception), match=function):
            start(tmp_path, emulator)
        assert not any(emulator.ledger().values()), emulator.ledger()
        assert not emulator.errors
    finally:
        emulator.close()


# Calls that are given up half-way.


class Gate:
    """Stops the emulated device inside one call, for as long as the test wants."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.open = threading.Event()

    def sleep(self, seconds: float) -> None:
        self.inside.set()
        assert self.open.wait(30)

    def emulator(self, function: str) -> EmulatorConfig:
        return EmulatorConfig(sleep=self.sleep, latency=Latency(call_us={function: 1.0}))


@pytest.mark.parametrize("owner", ["ascendcl", "caller"])
def test_a_load_whose_client_gives_up_leaves_nothing_half_done(tmp_path: Path, owner: str) -> None:
    gate = Gate()
    function = "aclmdlLoadFromFile" if owner == "ascendcl" else "aclmdlLoadFromFileWithMem"
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", emulator=gate.emulator(function)) as up, Raw(up.address) as raw:
        put_model(tmp_path / "models", "late", elementwise())
        lease_id = raw.lease()
        before = footprint(up, raw)
        request = load("late")
        if owner == "caller":
            buffers = [raw.buffer(lease_id, 1 << 20) for _ in range(2)]
            request = load("late", memory_owner=2, work_buffer_id=buffers[0], weight_buffer_id=buffers[1])
        call = raw.models.LoadModel.future(request, timeout=30, metadata=lease_metadata(lease_id))
        assert gate.inside.wait(30)
        call.cancel()
        if owner == "caller":
            raw.release(lease_id)
        raw.states()
        gate.open.set()
        wait_until(lambda: raw.states()["late", 1][0] not in (0, model_pb2.MODEL_STATE_LOADING), "the load has ended")
        if raw.states()["late", 1][0] == model_pb2.MODEL_STATE_READY:
            raw.call("models", "UnloadModel", model_pb2.UnloadModelRequest(model="late"))
        wait_until(lambda: up.server.memory.use().buffers == 0, "the caller's memory is free")
        wait_until(lambda: up.emulator.ledger() == before.ledger, "nothing is left")


def test_an_unload_whose_client_gives_up_is_done_all_the_same(tmp_path: Path) -> None:
    put_model(tmp_path, "relu", elementwise("Relu"))
    with serving(tmp_path) as up, Raw(up.address) as raw:
        up.emulator.hold()
        stream = raw.stream(model_pb2.StreamConfig(model="relu"))
        stream.items(model_pb2.InferItem(inputs=[x_rows()]))
        wait_until(lambda: up.emulator.counters.calls["aclmdlExecuteAsync"] == 1, "an item is on the device")
        call = raw.models.UnloadModel.future(model_pb2.UnloadModelRequest(model="relu"), timeout=30)
        wait_until(lambda: raw.states()["relu", 1][0] == model_pb2.MODEL_STATE_UNLOADING, "it is being unloaded")
        stream.items(model_pb2.InferItem(inputs=[x_rows()]))
        (refusal,) = stream.results(1)
        check(item_refusal(refusal.error), Code.FAILED_PRECONDITION, "MODEL_NOT_READY", ("unloading",))
        again = refused(lambda: raw.call("models", "LoadModel", load("relu")))
        check(again, Code.ALREADY_EXISTS, "MODEL_ALREADY_LOADED", ("unloading",))
        call.cancel()
        raw.states()
        up.emulator.release()
        assert len(stream.finish()) == 1
        wait_until(lambda: raw.states()["relu", 1][0] == model_pb2.MODEL_STATE_UNLOADED, "it is unloaded")
        assert up.emulator.ledger()["models"] == 0
        raw.call("models", "LoadModel", load("relu"))
        assert raw.infer(model_pb2.InferRequest(model="relu", inputs=[x_rows()])).outputs.tensors
