"""A client of generated stubs and raw bytes: says what no well-behaved client would, and reads what comes back."""

from __future__ import annotations

import logging
import queue
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from aclserve.errors import DOMAIN
from aclserve.tensors import data_type_of
from aclserve.v1 import device_pb2_grpc, memory_pb2, memory_pb2_grpc, model_pb2, model_pb2_grpc, tensor_pb2
from serving import Serving

T = TypeVar("T")

TIMEOUT_S = 30.0
"""The deadline of every call: a test that waits for what never comes fails instead of hanging."""

BIG = (1 << 63) - 1
HUGE = (1 << 64) - 1
EDGES = (1 << 31, 1 << 32, 1 << 63, HUGE - 15, HUGE)
"""Where 32- and 64-bit arithmetic, signed and unsigned, goes wrong."""

STREAM_INFER = "/aclserve.v1.ModelService/StreamInfer"
INFER = "/aclserve.v1.ModelService/Infer"

PRIVATE = re.compile(
    r"(?<![\w.])/[\w.-]+/|0x[0-9a-fA-F]{9,}|aclserve_server|\w\.(?:py|cc|h|so)\b|Traceback|site-packages| object at "
)
"""What no error may hold: paths, addresses, names of modules and files, tracebacks."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition to become true; fails after a long while."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.002)


def on_loop(serving: Serving, function: Callable[[], T]) -> T:
    """Calls a function on the server's event loop, where its state lives."""

    async def call() -> T:
        return function()

    return serving.run(call())


@dataclass(frozen=True)
class Refusal:
    """An error as a client sees it, of a call or of an item. `retry_s` is None where there is no RetryInfo."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    retry_s: float | None = None

    def check_clean(self, sent: Sequence[str] = ()) -> Self:
        """It tells no path, address or module of the server; what the client itself `sent` may be in it."""
        assert self.reason == self.reason.upper()
        assert self.reason
        assert self.message
        for text in (self.message, *self.metadata.values()):
            for own in sent:
                text = text.replace(own, "")
            assert not PRIVATE.search(text), text
        return self


def refusal_of(error: Any) -> Refusal:
    """The refusal that a failed call carries in its details."""
    details = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert details, f"no details: {error.code()}, {error.details()!r}"
    status = Status.FromString(details[0])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, retry, retry_s = ErrorInfo(), RetryInfo(), None
    assert status.details[0].Unpack(info)
    assert info.domain == DOMAIN
    if len(status.details) > 1:
        assert status.details[1].Unpack(retry)
        retry_s = seconds(retry.retry_delay)
    return Refusal(error.code(), info.reason, status.message, dict(info.metadata), retry_s)


def item_refusal(error: model_pb2.ItemError) -> Refusal:
    """The refusal in an item's result."""
    (code,) = [code for code in grpc.StatusCode if code.value[0] == error.code]
    retry_s = seconds(error.retry_delay) if error.HasField("retry_delay") else None
    return Refusal(code, error.reason, error.message, dict(error.metadata), retry_s)


def refused(call: Callable[[], object], sent: Sequence[str] = ()) -> Refusal:
    """The refusal of a call, which must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal_of(caught.value).check_clean(sent)


def seconds(duration: Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def tensor(name: str, array: Any) -> tensor_pb2.Tensor:
    """A tensor with its bytes inline."""
    value = np.asarray(array)
    return tensor_pb2.Tensor(name=name, data_type=data_type_of(value.dtype), shape=value.shape, data=value.tobytes())


def array_of(value: tensor_pb2.Tensor, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """The array of a tensor with its bytes inline."""
    return np.frombuffer(value.data, dtype).reshape(tuple(value.shape))


def answer(result: model_pb2.InferResult) -> bytes:
    """The bytes of the only output."""
    assert result.WhichOneof("outcome") == "outputs", result.error
    (output,) = result.outputs.tensors
    assert output.name == "y"
    return output.data


def reason(result: model_pb2.InferResult) -> str:
    """The reason of an item's error, which must be clean."""
    assert result.WhichOneof("outcome") == "error", result
    return item_refusal(result.error).check_clean().reason


def item(item_id: str, *inputs: tensor_pb2.Tensor, **fields: Any) -> model_pb2.InferItem:
    return model_pb2.InferItem(id=item_id, inputs=inputs, **fields)


class Raw:
    """The services of a server over one channel. `lease` arguments are lease ids, "" for none."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.memory = memory_pb2_grpc.MemoryServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.devices = device_pb2_grpc.DeviceServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.channel.close()

    def call(self, service: str, method: str, request: Any, lease: str = "") -> Any:
        """One call by name; `request` is a message, or a list of messages for a stream of requests."""
        sent = iter(request) if isinstance(request, list) else request
        answer = getattr(getattr(self, service), method)(sent, timeout=TIMEOUT_S, metadata=lease_metadata(lease))
        return list(answer) if method in ("ReadBuffer", "KeepLeaseAlive") else answer

    def infer(self, request: model_pb2.InferRequest, lease: str = "") -> model_pb2.InferResponse:
        return self.call("models", "Infer", request, lease)

    def infer_bytes(self, message: bytes) -> bytes:
        return bytes(self.channel.unary_unary(INFER)(message, timeout=TIMEOUT_S))

    def lease(self, ttl_s: int = 60) -> str:
        """A new lease's id."""
        request = memory_pb2.CreateLeaseRequest(ttl=Duration(seconds=ttl_s))
        return str(self.call("memory", "CreateLease", request).lease.id)

    def release(self, lease: str) -> None:
        self.call("memory", "ReleaseLease", memory_pb2.ReleaseLeaseRequest(), lease)

    def buffer(self, lease: str, size_bytes: int, space: Any = memory_pb2.MEMORY_SPACE_DEVICE) -> str:
        """A new buffer's id."""
        request = memory_pb2.AllocateBufferRequest(space=space, size_bytes=size_bytes)
        return str(self.call("memory", "AllocateBuffer", request, lease).buffer.id)

    def write(self, lease: str, buffer_id: str, content: bytes) -> None:
        header = memory_pb2.WriteBufferHeader(buffer_id=buffer_id, length_bytes=len(content))
        parts = [memory_pb2.WriteBufferRequest(header=header), memory_pb2.WriteBufferRequest(data=content)]
        self.call("memory", "WriteBuffer", parts, lease)

    def read(self, lease: str, buffer_id: str) -> bytes:
        parts = self.call("memory", "ReadBuffer", memory_pb2.ReadBufferRequest(buffer_id=buffer_id), lease)
        return b"".join(part.data for part in parts)

    def upload(self, lease: str, content: bytes) -> str:
        """A new upload's id."""
        header = model_pb2.UploadModelHeader(size_bytes=len(content))
        parts = [model_pb2.UploadModelRequest(header=header), model_pb2.UploadModelRequest(data=content)]
        return str(self.call("models", "UploadModel", parts, lease).upload_id)

    def states(self) -> dict[tuple[str, int], tuple[int, str]]:
        """State and reason of every model."""
        listed = self.models.ListModels(model_pb2.ListModelsRequest(page_size=1000), timeout=TIMEOUT_S).models
        return {(model.name, model.version): (model.state, model.reason) for model in listed}

    def stream(self, config: model_pb2.StreamConfig | None = None, lease: str = "") -> RawStream:
        """A stream, configured where a configuration is given."""
        stream = RawStream(self.channel, lease)
        if config is not None:
            stream.send(model_pb2.StreamInferRequest(config=config))
            assert stream.read().WhichOneof("response") == "ready"
        return stream


def lease_metadata(lease: str) -> tuple[tuple[str, str], ...]:
    return (("aclserve-lease", lease),) if lease else ()


class RawStream:
    """One StreamInfer call, message by message."""

    def __init__(self, channel: grpc.Channel, lease: str = "") -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = channel.stream_stream(STREAM_INFER, response_deserializer=model_pb2.StreamInferResponse.FromString)
        sent: Iterator[bytes] = iter(self._requests.get, None)  # type: ignore[arg-type]
        self.call: Any = method(sent, timeout=TIMEOUT_S, metadata=lease_metadata(lease))
        self.going_away: model_pb2.GoingAway | None = None
        self.summary: model_pb2.StreamSummary | None = None

    def send(self, message: model_pb2.StreamInferRequest | bytes) -> None:
        self._requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def items(self, *items: model_pb2.InferItem) -> None:
        """Sends items in one message."""
        self.send(model_pb2.StreamInferRequest(items=model_pb2.ItemList(items=items)))

    def cancel_items(self, *ids: str) -> None:
        self.send(model_pb2.StreamInferRequest(cancel=model_pb2.CancelItems(ids=ids)))

    def close(self) -> None:
        """Half-closes."""
        self._requests.put(None)

    def read(self) -> model_pb2.StreamInferResponse:
        """The next message."""
        response: model_pb2.StreamInferResponse = next(self.call)
        return response

    def results(self, count: int) -> list[model_pb2.InferResult]:
        """The next results, at least so many."""
        found: list[model_pb2.InferResult] = []
        while len(found) < count:
            found += self._take(self.read())
        return found

    def rest(self) -> list[model_pb2.InferResult]:
        """The results up to the stream's end, which must be a summary and OK."""
        found: list[model_pb2.InferResult] = []
        for response in self.call:
            assert self.summary is None, "a message after the summary"
            found += self._take(response)
        assert self.summary is not None
        assert self.call.code() is grpc.StatusCode.OK
        self._requests.put(None)
        return found

    def finish(self) -> list[model_pb2.InferResult]:
        """Half-closes, and reads to the end."""
        self.close()
        return self.rest()

    def totals(self) -> tuple[int, int, int]:
        """Received, succeeded, failed."""
        summary = self.summary
        assert summary is not None
        answered = summary.succeeded_items + summary.failed_items + summary.dropped_items
        assert summary.received_items == answered
        return summary.received_items, summary.succeeded_items, summary.failed_items

    def end(self) -> Refusal:
        """Reads to the stream's end, which must be an error."""

        def drain() -> None:
            for response in self.call:
                self._take(response)

        refusal = refused(drain)
        self._requests.put(None)
        return refusal

    def kill(self) -> None:
        """Cancels the call, as a client that dies does."""
        self.call.cancel()
        self._requests.put(None)

    def _take(self, response: model_pb2.StreamInferResponse) -> list[model_pb2.InferResult]:
        match response.WhichOneof("response"):
            case "results":
                return list(response.results.results)
            case "going_away":
                self.going_away = response.going_away
            case "window":
                pass
            case "summary":
                self.summary = response.summary
            case other:
                raise AssertionError(other)
        return []


@dataclass
class Footprint:
    """What a server holds: live handles of the device, clients' memory, models."""

    ledger: dict[str, int]
    memory: Any
    models: dict[tuple[str, int], tuple[int, str]]


def footprint(serving: Serving, raw: Raw) -> Footprint:
    return Footprint(serving.emulator.ledger(), serving.server.memory.use(), raw.states())


def queued(service: Serving, model: str) -> int:
    """Rows that wait for a model."""
    return service.server.engine.queue_rows(model)


@contextmanager
def leaves_nothing(service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What runs inside leaves no stream, no waiting row, no handle, and no unforeseen error in the log."""
    before = footprint(service, raw)
    with caplog.at_level(logging.WARNING):
        yield
    service.emulator.release()
    wait_until(lambda: not service.server.models.sessions, "all streams have ended")
    wait_until(lambda: not any(queued(service, name) for name, _ in before.models), "no row waits")
    wait_until(lambda: footprint(service, raw) == before, "the server is as before")
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not service.emulator.errors
