"""What is fuzzed: functions that take any bytes, and raise where the code does what it must not.

Each reads the bytes as one of our readers does, and as protobuf's own classes do where there are such. Readers that
learn from what they read begin anew with every input, read it as often as they need to learn, and then a variant of it,
so that an input shows by itself what it found.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import google_crc32c
from google.protobuf import text_format

from aclserve.errors import DataLoss, InvalidArgument
from aclserve.v1 import model_pb2
from aclserve_server.engine.model_config import ConfigProblem
from aclserve_server.engine.uploads import Transfer
from aclserve_server.inspect import InspectError, describe_file, format_text
from aclserve_server.inspect.om import MAGIC
from aclserve_server.kserve import model_config_pb2
from aclserve_server.rpc.model_config import parse_model_config
from aclserve_server.rpc.pbtxt import TextError, TextFields
from aclserve_server.rpc.v2.wire_templates import REQUESTS
from aclserve_server.rpc.wire_templates import ITEMS, MESSAGES
from device import onnx_models
from rpc.test_wire_equality import check_stream, check_unary
from rpc.v2 import v2_messages

GOLDEN = Path(__file__).parents[1] / "rpc" / "v2" / "golden"


def unary(data: bytes) -> None:
    """InferRequest."""
    ITEMS.clear()
    _check_repeats(check_unary, data)


def stream(data: bytes) -> None:
    """StreamInferRequest."""
    ITEMS.clear()
    MESSAGES.clear()
    _check_repeats(check_stream, data)


def v2(data: bytes) -> None:
    """ModelInferRequest of the KServe v2 protocol."""
    REQUESTS.clear()
    _check_repeats(v2_messages.check, data)


def config(data: bytes) -> None:
    """The text of a config.pbtxt: nothing but ConfigProblem is raised, and what protobuf reads is read alike."""
    text = data.decode("utf-8", "replace")
    try:
        parse_model_config(text, "m")
    except ConfigProblem as problem:
        lines = text.count("\n") + 1
        if not problem.problem or (problem.line is not None and not 1 <= problem.line <= lines):
            raise RuntimeError(f"a problem without a text, or past the {lines} lines: {problem!r}") from problem
    _check_fields(text)


def _check_fields(text: str) -> None:
    """The walk over the text: blanks take the place of unknown fields, and nothing else changes."""
    expected = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, expected)
        known = True
    except (text_format.ParseError, RecursionError, ValueError):
        known = False
    try:
        fields = TextFields(text, model_config_pb2.ModelConfig.DESCRIPTOR)
    except TextError:
        assert not known
        return
    assert len(fields.known) == len(text)
    assert all(mine in (its, " ") for mine, its in zip(fields.known, text, strict=True))
    assert fields.known.count("\n") == text.count("\n")
    if known:
        assert (fields.unknown, fields.known) == ((), text)


def _check_repeats(check: Callable[[bytes], object], data: bytes) -> None:
    for _ in range(3):
        check(data)
    if data:
        mark = crc32(data)
        place = mark % len(data)
        check(data[:place] + bytes([mark >> 24]) + data[place + 1 :])
        check(data)


def model(data: bytes) -> None:
    """A model file: it is described or refused by InspectError, and nothing of it reaches a terminal unprinted."""
    if not data:
        return
    with tempfile.NamedTemporaryFile(suffix=".om" if data[0] % 2 else ".onnx") as file:
        file.write(data)
        file.flush()
        try:
            description = describe_file(Path(file.name))
        except InspectError as error:
            if not str(error):
                raise RuntimeError("a refusal without a word") from error
            return
    text = format_text(description)
    if any(not (mark.isprintable() or mark == "\n") for mark in text):
        raise RuntimeError(f"unprintable: {text!r}")
    json.loads(description.to_json())


def upload(data: bytes) -> None:
    """An upload as its header announces it (size, checksum) and as it comes, in chunks of any size."""
    if len(data) < 8:
        return
    size, announced = data[0], int.from_bytes(data[1:5], "big") if data[5] % 2 else None
    content = data[8:]
    right = google_crc32c.value(content)
    if data[6] % 2 and announced is not None:
        announced = right
    taken = 0
    try:
        transfer = Transfer(size, announced)
        while taken < len(content):
            chunk = content[taken : taken + 1 + data[7] + taken % 7]
            transfer.check(chunk)
            transfer.add(chunk)
            taken += len(chunk)
        crc32c = transfer.finish()
    except InvalidArgument as error:
        good = size == len(content) and size > 0
        if good or error.reason not in ("SIZE_IS_ZERO", "UPLOAD_TOO_LONG", "UPLOAD_TRUNCATED"):
            raise
        return
    except DataLoss:
        if announced == right:
            raise
        return
    if (size, crc32c) != (len(content), right) or announced not in (None, right):
        raise RuntimeError("an upload was taken that is not what was announced")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "unary": unary,
    "stream": stream,
    "v2": v2,
    "config": config,
    "model": model,
    "upload": upload,
}


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with: what clients send."""
    if target == "v2":
        return [path.read_bytes() for path in sorted(GOLDEN.glob("*.bin"))]
    if target == "model":
        return [MAGIC + bytes(252), MAGIC + bytes(range(256)) * 2, *(onnx_models.__dict__[name]() for name in _MODELS)]
    if target == "upload":
        whole = bytes(range(40))
        marks = (b"\0\0\0\0\0\0\x03", b"\0\0\0\0\1\1\x03", b"\1\2\3\4\1\0\xff")
        return [bytes([len(whole)]) + mark + whole for mark in marks]
    if target == "config":
        return [text.encode() for text in _CONFIGS]
    items = _items()
    if target == "unary":
        return [item.SerializeToString() for item in items]
    messages = [
        model_pb2.StreamInferRequest(items=model_pb2.ItemList(items=some)) for some in ([item] for item in items)
    ]
    messages.append(model_pb2.StreamInferRequest(items=model_pb2.ItemList(items=items)))
    messages.append(model_pb2.StreamInferRequest(config=model_pb2.StreamConfig(model="m", max_pending_items=4)))
    messages.append(model_pb2.StreamInferRequest(cancel=model_pb2.CancelItems(ids=["a", "b"])))
    return [message.SerializeToString() for message in messages]


def _items() -> list[model_pb2.InferItem]:
    plain, buffered, filled = (model_pb2.InferItem(id=f"frame-{number}", model="m") for number in range(3))
    plain.inputs.add(name="x", data_type=12, shape=[1, 4], data=bytes(16))
    plain.timeout.FromMilliseconds(250)
    plain.capture_time.FromNanoseconds(1_790_000_000_300_000_000)
    buffered.inputs.add(name="x", data_type=12, shape=[1, 4]).buffer.buffer_id = "b1"
    buffered.inputs.add(name="y", data_type=2, shape=[2], data=b"ab")
    buffered.outputs.add(name="z").buffer.length_bytes = 64
    filled.inputs.add(name="x", data_type=12, shape=[1, 4]).fill.pattern = 2
    filled.priority = 3
    filled.version = 7
    return [plain, buffered, filled]


_MODELS = ("linear", "pooled", "nonzero")

_CONFIGS = (
    'name: "m"\nplatform: "onnxruntime_onnx" backend: \'onnxruntime\'\nmax_batch_size: 32\n',
    'input [ { name: "x", data_type: TYPE_FP32, dims: [ 1, 28, -1 ] }, { name: "y" data_type: TYPE_BF16 } ]\n',
    "dynamic_batching {\n  preferred_batch_size: [ 16, 8 ]\n  max_queue_delay_microseconds: 1500\n}\n",
    'instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0 ] }, { } ]\nmodel_warmup [ { name: "w" }, < name: "v" > ]\n',
    'parameters: < key: "dynamic_batch_size" value < string_value: "1, 2,"\n "32" > > # note\n',
    "version_policy: { latest { num_versions: 1 } }\noptimization { cuda { graphs: true } }\n[house.extra]: inf\n",
)
