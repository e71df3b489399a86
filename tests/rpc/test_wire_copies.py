"""No copy of a tensor's data in, one out: counted by what is allocated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.items import Item, OutputTensor, Result
from aclserve_server.rpc.wire import scan_infer_request, scan_stream_request
from aclserve_server.rpc.wire_out import assemble_infer_response, assemble_results
from aclserve_server.rpc.wire_templates import ITEMS, MESSAGES

NBYTES = 6_220_800
LARGE = 1 << 20


@pytest.fixture
def allocated() -> Callable[[Callable[[], Any]], tuple[Any, int]]:
    """Calls a function; gives its result and the most bytes that were allocated at once during the call."""

    def measure(function: Callable[[], Any]) -> tuple[Any, int]:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            value = function()
            return value, tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    ITEMS.clear()
    MESSAGES.clear()
    return measure


def frame(number: int) -> pb.InferItem:
    made = pb.InferItem(id=f"{number:04}")
    made.inputs.add(name="x", data_type=2, shape=(1, NBYTES), data=bytes([number]) * NBYTES)
    return made


def check(item: Item, message: bytes, number: int) -> None:
    data = item.inputs[0].data
    assert data is not None
    assert data.obj is message
    assert data.nbytes == NBYTES
    assert data[0] == data[-1] == number


def test_scanning_copies_no_data(allocated: Callable[[Callable[[], Any]], tuple[Any, int]]) -> None:
    for number in range(4):  # walked, learned, matched, matched
        message = frame(number).SerializeToString()
        item, peak = allocated(lambda message=message: scan_infer_request(message))
        check(item, message, number)
        assert peak < LARGE
        message = pb.StreamInferRequest(items=pb.ItemList(items=[frame(number)])).SerializeToString()
        (item,), peak = allocated(lambda message=message: scan_stream_request(message))
        check(item, message, number)
        assert peak < LARGE


def test_scanning_a_message_that_is_cut_off_copies_no_data(
    allocated: Callable[[Callable[[], Any]], tuple[Any, int]],
) -> None:
    message = frame(1).SerializeToString()[:-1]

    def refuse() -> None:
        with pytest.raises(Exception, match="MALFORMED_MESSAGE"):
            scan_infer_request(message)

    _, peak = allocated(refuse)
    assert peak < LARGE


@pytest.mark.parametrize("assemble", [assemble_infer_response, lambda result: assemble_results([result], 8 << 20)[0]])
def test_assembling_copies_data_once(
    assemble: Callable[[Result], bytes], allocated: Callable[[Callable[[], Any]], tuple[Any, int]]
) -> None:
    view = memoryview(bytes(NBYTES))
    result = Result("a", outputs=[OutputTensor("y", np.dtype(np.uint8), (NBYTES,), view)])
    message, peak = allocated(lambda: assemble(result))
    assert NBYTES < len(message) < NBYTES + 100
    assert peak < NBYTES + LARGE


def test_several_large_results_are_copied_once_each(
    allocated: Callable[[Callable[[], Any]], tuple[Any, int]],
) -> None:
    view = memoryview(bytes(NBYTES))
    results = [Result("a", outputs=[OutputTensor("y", np.dtype(np.uint8), (NBYTES,), view)]) for _ in range(3)]
    messages, peak = allocated(lambda: assemble_results(results, 8 << 20))
    assert len(messages) == 3
    assert peak < 3 * NBYTES + LARGE
