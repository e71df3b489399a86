"""ModelStreamInfer: one answer for every request, in their order, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto

from aclserve_server.emulator import EmulatorConfig
from aclserve_server.kserve import inference_pb2 as pb
from e2e.raw import wait_until
from rpc.v2.v2_server import V2, request_of, v2
from rpc.v2.v2_stream import (
    V2Stream,
    check_numbered,
    held,
    leaves_nothing,
    numbered,
    received,
    sessions,
    told,
    waiting,
    wrong,
)
from serving import elementwise, put_model

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
WINDOW = 16
EMULATED = EmulatorConfig(memory_bytes=256 << 20)
WIDE = 1 << 12
"""Numbers in a row of the model "wide": 32 KiB."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise())
    put_model(root, "negative", elementwise("Neg"), "version_policy { all {} }\n")
    put_model(root, "negative", elementwise("Abs"), version=3)
    put_model(root, "alone", elementwise("Neg"), "max_batch_size: 0\n")
    put_model(root, "wide", elementwise("Identity", ("rows", WIDE), TensorProto.DOUBLE))
    put_model(root, "fresh", elementwise())
    with v2(root, emulator=EMULATED, max_stream_items=WINDOW, max_stream_bytes=64 << 10, max_queue_rows=40) as up:
        yield up


@pytest.fixture(autouse=True)
def unchanged(served: V2) -> Iterator[None]:
    with leaves_nothing(served):
        yield


def wide(index: int) -> Any:
    request = pb.ModelInferRequest(model_name="wide", id=str(index))
    request.inputs.add(name="x", datatype="FP64", shape=[1, WIDE])
    request.raw_input_contents.append(np.full(WIDE, index, np.float64).tobytes())
    return request


# Order.


def test_answers_leave_in_the_order_of_the_requests(served: V2) -> None:
    stream = V2Stream(served)
    stream.send(*(numbered(index) for index in range(100)))
    answers = stream.finish()
    check_numbered(answers, list(range(100)))
    assert {(one.infer_response.model_name, one.infer_response.model_version) for one in answers} == {("plain", "1")}


def test_order_over_models_and_versions(served: V2) -> None:
    """A request for a model that has nothing to do does not overtake the one before it."""
    stream = V2Stream(served)
    with held(served):
        stream.send(numbered(0), request_of("negative", 0), numbered(2, "alone"), numbered(3, "negative", version="1"))
        stream.send(numbered(4, "negative"), numbered(5))
        wait_until(lambda: received(served) == 6, "all have come")
    first, empty, *rest = stream.finish()
    check_numbered([first, rest[2], rest[3]], [0, 4, 5])
    check_numbered(rest[:2], [2, 3], np.negative)
    assert told(empty)[1].shape == (0, 4)
    named = [(one.infer_response.model_name, one.infer_response.model_version) for one in (first, empty, *rest)]
    assert named == [
        ("plain", "1"),
        ("negative", "3"),
        ("alone", "1"),
        ("negative", "1"),
        ("negative", "3"),
        ("plain", "1"),
    ]


def test_ids_that_are_empty_or_equal(served: V2) -> None:
    stream = V2Stream(served)
    requests = [numbered(index) for index in range(4)]
    requests[0].id = requests[3].id = ""
    requests[1].id = requests[2].id = "same"
    stream.send(*requests)
    answers = stream.finish()
    assert [told(answer)[0] for answer in answers] == ["", "same", "same", ""]
    assert [told(answer)[1][0, 0] for answer in answers] == [0, 4, 8, 12]


def test_a_stream_without_requests(served: V2) -> None:
    assert V2Stream(served).finish() == []


def test_half_close_with_requests_in_flight(served: V2) -> None:
    stream = V2Stream(served)
    with held(served):
        stream.send(*(numbered(index) for index in range(10)))
        stream.close()
        wait_until(lambda: received(served) == 10, "all have come")
    check_numbered(list(stream.call), list(range(10)))
    assert stream.call.code() is grpc.StatusCode.OK


# Errors.


def test_one_bad_request_of_a_thousand(served: V2) -> None:
    stream = V2Stream(served)
    stream.send(*(wrong(index) if index == 500 else numbered(index) for index in range(1000)))
    answers = stream.finish()
    bad = answers.pop(500)
    check_numbered(answers, [index for index in range(1000) if index != 500])
    assert bad.error_message.startswith("[request id: 500] ")
    assert bad.infer_response == pb.ModelInferResponse(id="500")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda one: setattr(one, "model_name", "absent"), "'absent'"),
        (lambda one: setattr(one, "model_name", ""), "model"),
        (lambda one: setattr(one, "model_version", "2"), "version 2"),
        (lambda one: setattr(one, "model_version", "x"), "'x'"),
        (lambda one: setattr(one, "model_version", "-1"), "'-1'"),
        (lambda one: one.outputs.add(name="nothing"), "'nothing'"),
        (lambda one: one.raw_input_contents.pop(), "no data"),
        (lambda one: one.inputs.add().CopyFrom(one.inputs[0]), "'x'"),
        (lambda one: one.parameters["sequence_id"].__setattr__("int64_param", 7), "sequence"),
        (lambda one: setattr(one.inputs[0], "datatype", "BYTES"), "strings"),
    ],
)
def test_what_is_wrong_is_told_in_the_stream(served: V2, change: Any, text: str) -> None:
    stream = V2Stream(served)
    bad = numbered(1)
    change(bad)
    stream.send(numbered(0), bad, numbered(2))
    first, error, last = stream.finish()
    check_numbered([first, last], [0, 2])
    assert error.error_message.startswith("[request id: 1] ")
    assert text in error.error_message
    assert not re.search(r"aclserve_server|/\w+/", error.error_message)
    assert error.infer_response.id == "1"
    assert not error.infer_response.outputs


def test_an_error_without_an_id_has_no_prefix(served: V2) -> None:
    stream = V2Stream(served)
    bad = wrong(0)
    bad.id = ""
    stream.send(bad)
    (answer,) = stream.finish()
    assert not answer.error_message.startswith("[")
    assert "15" in answer.error_message
    assert "16" in answer.error_message
    assert answer.infer_response == pb.ModelInferResponse()


def test_a_failure_of_the_device_names_the_model(tmp_path: Path) -> None:
    put_model(tmp_path, "plain", elementwise())
    rates = EmulatorConfig(fault_rates={"aclmdlExecuteAsync": (1.0, 507899)})
    with v2(tmp_path, emulator=rates) as failing:
        stream = V2Stream(failing)
        stream.send(numbered(0))
        (answer,) = stream.finish()
        assert answer.error_message.startswith("[request id: 0] ")
        final = pb.InferParameter(bool_param=True)
        assert answer.infer_response == pb.ModelInferResponse(
            id="0", model_name="plain", model_version="1", parameters={"triton_final_response": final}
        )


def test_a_fault_of_the_server_is_one_request_s_error(served: V2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an answer for ever, whatever goes wrong in making it."""

    def fails(item: Any, record: Any, result: Any) -> Any:
        if item.client_id == "1":
            raise ValueError("of all things")
        return result

    monkeypatch.setattr("aclserve_server.rpc.v2.stream.shown", fails)
    monkeypatch.setattr("aclserve_server.rpc.v2.infer.shown", fails)
    stream = V2Stream(served)
    with held(served):
        stream.send(*(numbered(index) for index in range(3)))
        wait_until(lambda: received(served) == 3, "all have come")
    first, error, last = stream.finish()
    check_numbered([first, last], [0, 2])
    assert error.error_message == "[request id: 1] the server failed; its log tells more"
    served.refused("ModelInfer", numbered(1), grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")


def test_errors_end_a_stream_that_asked_for_it(served: V2) -> None:
    """What was asked before the bad request is answered first, what comes after it is not looked at."""
    stream = V2Stream(served, grpc_errors=True)
    with held(served):
        stream.send(numbered(0), numbered(1), wrong(2), numbered(3), wrong(4))
        wait_until(lambda: received(served) == 3, "the bad request has come")
    answers, code, reason = stream.end()
    check_numbered(answers, [0, 1])
    assert (code, reason) == (INVALID, "TENSOR_SIZE_MISMATCH")


def test_codes_of_streams_that_end_are_those_of_triton(served: V2) -> None:
    for request, code, reason in (
        (numbered(0, "absent"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        (numbered(0, "plain", version="7"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        (numbered(0, timeout_us=1), UNAVAILABLE, ""),
    ):
        stream = V2Stream(served, grpc_errors=True)
        stream.send(request)
        answers, got, why = stream.end()
        assert (answers, got) == ([], code)
        assert why.startswith(reason)


def test_a_message_that_is_none_ends_the_stream_after_the_answers(served: V2) -> None:
    stream = V2Stream(served)
    with held(served):
        stream.send(numbered(0), wrong(1), b"\x0a\xff", numbered(3))
        wait_until(lambda: received(served) == 2, "the requests have come")
    answers, code, reason = stream.end()
    assert (code, reason) == (INVALID, "MALFORMED_MESSAGE")
    check_numbered(answers[:1], [0])
    assert answers[1].error_message.startswith("[request id: 1] ")
    assert len(answers) == 2


# Limits.


def test_the_server_reads_no_further_than_its_limit_of_requests(served: V2) -> None:
    stream = V2Stream(served)
    with held(served):
        stream.send(*(numbered(index) for index in range(3 * WINDOW)))
        wait_until(lambda: received(served) == WINDOW, "the window is full")
        for _ in range(3):  # the loop has had its turns, and has read no further
            served.call("ServerLive", pb.ServerLiveRequest())
        assert received(served) == WINDOW
    check_numbered(stream.finish(), list(range(3 * WINDOW)))


def test_the_server_reads_no_further_than_its_limit_of_bytes(served: V2) -> None:
    """A request that begins below the limit is accepted, whatever its size."""
    stream = V2Stream(served)
    with held(served):
        stream.send(*(wide(index) for index in range(6)))
        wait_until(lambda: received(served) == 2, "the limit is reached")
        for _ in range(3):
            served.call("ServerLive", pb.ServerLiveRequest())
        assert received(served) == 2
    answers = stream.finish()
    assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(6)]
    for index, answer in enumerate(answers):
        (raw,) = answer.infer_response.raw_output_contents
        assert np.array_equal(np.frombuffer(raw), np.full(WIDE, index, np.float64))


def test_a_stream_waits_where_the_queue_is_full(served: V2) -> None:
    """Rows that have no room in the model's queue are not refused."""
    stream = V2Stream(served)
    with held(served):
        stream.send(*(request_of("fresh", 10) for _ in range(8)))
        wait_until(lambda: waiting(served, "fresh") >= 10, "rows wait")
        assert waiting(served, "fresh") <= 40
    assert [told(answer)[1].shape for answer in stream.finish()] == [(10, 4)] * 8


# Ends.


def test_a_killed_client_leaves_nothing(served: V2) -> None:
    before = served.up.emulator.counters.executions
    stream = V2Stream(served)
    with held(served):
        stream.send(*(numbered(index) for index in range(10)))
        wait_until(lambda: received(served) == 10, "all have come")
        stream.kill()
        wait_until(lambda: not sessions(served), "the stream has ended")
        assert waiting(served) == 0
    again = V2Stream(served)
    again.send(numbered(7))
    check_numbered(again.finish(), [7])
    assert served.up.emulator.counters.executions - before <= 4  # what was on the device, and the last


def test_the_deadline_of_a_call_ends_its_wait(served: V2) -> None:
    """The client's deadline is the requests' too: they leave the queue when it comes, though the device stands."""
    stream = V2Stream(served, timeout=0.5)
    with held(served):
        stream.send(*(numbered(index) for index in range(8)))
        with pytest.raises(grpc.RpcError) as caught:
            list(stream.call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        wait_until(lambda: not sessions(served), "the stream has ended")
        assert waiting(served) == 0
    stream.close()


def test_the_timeout_of_a_request_is_its_own(served: V2) -> None:
    stream = V2Stream(served)
    model = "wide"
    with held(served):
        stream.send(wide(0))
        wait_until(lambda: received(served) == 1, "the first has come")
        late = wide(1)
        late.parameters["timeout"].int64_param = 1000
        stream.send(late)
        wait_until(lambda: received(served) == 2 and not waiting(served, model), "the second has waited too long")
    first, error = stream.finish()
    assert not first.error_message
    assert error.error_message.startswith("[request id: 1] ")


def begin_stop(up: V2) -> Any:
    """Starts the server's stop; the future of its end."""
    return asyncio.run_coroutine_threadsafe(up.up.server.stop(), up.up.loop)


def test_a_server_that_stops_answers_and_refuses_in_the_stream(tmp_path: Path) -> None:
    put_model(tmp_path, "plain", elementwise())
    with v2(tmp_path, emulator=EMULATED, max_stream_items=4) as other:
        stream, idle = V2Stream(other), V2Stream(other)
        with held(other):
            stream.send(*(numbered(index) for index in range(3)))
            wait_until(lambda: received(other) == 3, "three are accepted")
            wait_until(lambda: sessions(other) == 2, "both streams are open")
            stopped = begin_stop(other)
            wait_until(lambda: other.up.server.calls.going_away, "the server stops")
            stream.send(*(numbered(index) for index in range(3, 30)))
            wait_until(lambda: received(other) == 4, "the window is full")
            assert not stopped.done()
        answers = stream.finish()
        check_numbered(answers[:3], [0, 1, 2])
        assert len(answers) == 30
        for index, answer in enumerate(answers[3:], 3):
            assert answer.error_message.startswith(f"[request id: {index}] ")
            assert "shutting down" in answer.error_message
            assert answer.infer_response == pb.ModelInferResponse(id=str(index))
        idle.close()
        assert list(idle.call) == []
        stopped.result(30)


def test_a_client_that_does_not_end_its_stream_holds_up_no_stop(tmp_path: Path) -> None:
    put_model(tmp_path, "plain", elementwise())
    with v2(tmp_path, emulator=EMULATED) as other:
        stream = V2Stream(other)
        stream.send(numbered(0))
        check_numbered([stream.read()], [0])
        stopped = begin_stop(other)
        assert stream.end() == ([], UNAVAILABLE, "SERVER_GOING_AWAY")
        stopped.result(30)


def test_no_stream_begins_at_a_server_that_stops(tmp_path: Path) -> None:
    put_model(tmp_path, "plain", elementwise())
    with v2(tmp_path, emulator=EMULATED) as other:
        stream = V2Stream(other)
        with held(other):
            stream.send(numbered(0))
            wait_until(lambda: received(other) == 1, "one is accepted")
            stopped = begin_stop(other)
            wait_until(lambda: other.up.server.calls.going_away, "the server stops")
            late = V2Stream(other)
            with pytest.raises(grpc.RpcError) as caught:
                list(late.call)
            # CANCELLED is gRPC's own answer to a call that comes in at just the moment at which it stops listening
            assert caught.value.code() in (UNAVAILABLE, grpc.StatusCode.CANCELLED)  # type: ignore[attr-defined]
            late.close()
        check_numbered(stream.finish(), [0])
        stopped.result(30)
