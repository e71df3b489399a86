"""One ModelStreamInfer call, message by message."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from aclserve_server.kserve import inference_pb2 as pb
from e2e.raw import wait_until
from rpc.memory_server import details_of, info_of
from rpc.v2.v2_server import TIMEOUT_S, V2, outputs_of, request_of
from serving import rows

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


class V2Stream:
    """A stream of requests. `send` takes a request, or bytes for one that is broken."""

    def __init__(self, served: V2, *, lease: str = "", grpc_errors: bool = False, timeout: float = TIMEOUT_S) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        sent: Iterator[bytes] = iter(self._requests.get, None)  # type: ignore[arg-type]
        method = served.channel.stream_stream(METHOD, response_deserializer=pb.ModelStreamInferResponse.FromString)
        metadata = (("aclserve-lease", lease),) if lease else ()
        metadata += (("triton_grpc_error", "true"),) if grpc_errors else ()
        self.call: Any = method(sent, timeout=timeout, metadata=metadata)

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request if isinstance(request, bytes) else request.SerializeToString())

    def close(self) -> None:
        """Half-closes."""
        self._requests.put(None)

    def read(self) -> Any:
        return next(self.call)

    def finish(self) -> list[Any]:
        """Half-closes, and reads to the end, which must be OK."""
        self.close()
        answers = list(self.call)
        assert self.call.code() is grpc.StatusCode.OK
        return answers

    def end(self) -> tuple[list[Any], grpc.StatusCode, str]:
        """Reads to the end, which must be an error: the answers before it, its code and its reason."""
        answers: list[Any] = []
        with pytest.raises(grpc.RpcError) as caught:
            answers.extend(self.call)
        self._requests.put(None)
        error: Any = caught.value
        return answers, error.code(), info_of(details_of(error)).reason

    def kill(self) -> None:
        """Cancels the call, as a client that dies does."""
        self.call.cancel()
        self._requests.put(None)


def numbered(index: int, model: str = "plain", **fields: Any) -> Any:
    """A request with row `index`, whose id tells it."""
    values = rows(index, 1)
    request = request_of(model, **fields)
    request.id = str(index)
    request.raw_input_contents[0] = values.tobytes()
    return request


def wrong(index: int) -> Any:
    """A request with too few bytes."""
    request = numbered(index)
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    return request


def told(answer: Any) -> tuple[str, Any]:
    """Id and outputs of an answer that is none of an error."""
    assert not answer.error_message, answer.error_message
    response = answer.infer_response
    assert response.parameters["triton_final_response"].bool_param
    return response.id, outputs_of(response)


def check_numbered(answers: list[Any], expected: list[int], change: Callable[[Any], Any] = lambda row: row) -> None:
    """The answers are those to the `numbered` requests, in order."""
    found = [told(answer) for answer in answers]
    assert [name for name, _ in found] == [str(index) for index in expected]
    for (_, values), index in zip(found, expected, strict=True):
        assert np.array_equal(values, change(rows(index, 1)))


def sessions(served: V2) -> int:
    """Calls and streams that the server has open."""
    return len(served.up.server.calls)


def received(served: V2) -> int:
    """Requests accepted on the streams that are open."""
    return sum(session.received for session in list(served.up.server.calls._streams))


def waiting(served: V2, model: str = "plain") -> int:
    """Rows that wait for a model."""
    return served.up.server.engine.queue_rows(model)


@contextmanager
def held(served: V2) -> Iterator[None]:
    """The device begins nothing meanwhile."""
    served.up.emulator.hold()
    try:
        yield
    finally:
        served.up.emulator.release()


@contextmanager
def leaves_nothing(served: V2) -> Iterator[None]:
    """What runs inside leaves no call, no waiting row and no handle of the device."""
    before = served.up.emulator.ledger()
    yield
    served.up.emulator.release()
    engine = served.up.server.engine
    wait_until(lambda: not sessions(served), "all calls have ended")
    wait_until(lambda: not any(engine.queue_rows(record.name) for record in engine.records()), "no row waits")
    wait_until(lambda: not served.up.server.regions.use().pins, "no region is in use")
    wait_until(lambda: served.up.emulator.ledger() == before, "the device is as before")
    assert not served.up.emulator.errors
