"""Times the wire codec per message against the generated classes: `python tests/rpc/bench_wire.py`. Not a test.

CPU time, the best of several rounds that alternate between the two. Messages vary in id and data as a client's do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from aclserve.tensors import DTYPES
from aclserve.v1 import model_pb2 as pb
from aclserve.v1 import tensor_pb2
from aclserve_server.engine.items import Input, Item, OutputRequest, OutputTensor, Result, Timing
from aclserve_server.rpc.wire import scan_infer_request, scan_stream_request
from aclserve_server.rpc.wire_out import assemble_infer_response, assemble_results
from aclserve_server.rpc.wire_templates import ITEMS

ROUNDS = 7
FLOAT32 = np.dtype(np.float32)
CASES = (
    ("64 B", 64, 1),
    ("49 KB", 49_152, 1),
    ("150 KB", 150_528, 1),
    ("6 MB", 6_220_800, 1),
    ("8 x 49 KB", 49_152, 8),
)
RESULTS = (("40 B", 40, 1), ("64 B", 64, 1), ("150 KB", 150_528, 1), ("6 MB", 6_220_800, 1), ("16 x 40 B", 40, 16))


def item(number: int, nbytes: int) -> pb.InferItem:
    data = np.random.default_rng(number).bytes(nbytes)
    made = pb.InferItem(id=f"frame-{number:06d}")
    made.inputs.add(name="input", data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=(1, nbytes // 4), data=data)
    made.capture_time.FromNanoseconds(1_790_000_000_300_000_000 + number * 1000)
    return made


def result(number: int, nbytes: int) -> Result:
    data = memoryview(bytes(nbytes))
    output = OutputTensor("output", FLOAT32, (1, nbytes // 4), data)
    timing = Timing(120_000 + number, 40_000, 2_500_000, 12_000, 2_900_000 + number, 8, 8, number % 8, 3)
    return Result(f"frame-{number:06d}", b"\x08\x80\x93\xea\xd5\x06\x10\x80\xa8\x96\x90\x01", [output], None, timing)


def response(results: Sequence[Result]) -> pb.StreamInferResponse:
    """The same with generated classes."""
    message = pb.StreamInferResponse()
    for one in results:
        made = message.results.results.add(id=one.item_id)
        for output in one.outputs or ():
            assert output.data is not None
            made.outputs.tensors.add(
                name=output.name, data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=output.shape, data=bytes(output.data)
            )
        timing = one.timing
        assert timing is not None
        made.timing.wait_ns = timing.wait_ns
        made.timing.copy_in_ns = timing.copy_in_ns
        made.timing.execute_ns = timing.execute_ns
        made.timing.copy_out_ns = timing.copy_out_ns
        made.timing.total_ns = timing.total_ns
        made.timing.batch_rows = timing.batch_rows
        made.timing.gear_rows = timing.gear_rows
        made.timing.position = timing.position
        made.timing.queue_rows = timing.queue_rows
        made.capture_time.MergeFromString(one.capture_time)
    return message


def to_item(parsed: pb.InferItem | pb.InferRequest) -> Item:
    """What a servicer over generated classes would have to do with a parsed item."""
    inputs = []
    for tensor in parsed.inputs:
        dtype = DTYPES.get(tensor.data_type)
        if dtype is None:
            raise ValueError("an unknown data type")
        one = Input(tensor.name, dtype, tuple(tensor.shape))
        source = tensor.WhichOneof("source")
        if source == "data":
            one.data = memoryview(tensor.data)
        elif source is not None:
            raise ValueError("the benchmark has inline data only")
        inputs.append(one)
    made = Item(parsed.id, parsed.model, parsed.version, inputs)
    for output in parsed.outputs:
        made.outputs.append(OutputRequest(output.name))
    if parsed.HasField("timeout"):
        made.timeout_s = parsed.timeout.seconds + parsed.timeout.nanos * 1e-9
    if parsed.HasField("capture_time"):
        made.capture_time = parsed.capture_time.SerializeToString()
    return made


def parse(message: bytes) -> list[Item]:
    """A stream's message with generated classes."""
    parsed = pb.StreamInferRequest.FromString(message)
    if parsed.WhichOneof("request") != "items":
        raise ValueError("the benchmark has items only")
    return [to_item(one) for one in parsed.items.items]


def scan_unknown(message: bytes) -> Item:
    """Scans a message as if it were the first of its kind."""
    ITEMS.clear()
    return scan_infer_request(message)


def per_call(function: Callable[[int], object], calls: int) -> float:
    """Microseconds of CPU per call."""
    start = time.process_time_ns()
    for number in range(calls):
        function(number)
    return (time.process_time_ns() - start) / calls / 1000


def compare(name: str, ours: Callable[[int], object], theirs: Callable[[int], object], calls: int) -> None:
    per_call(ours, 20)
    per_call(theirs, 5)
    pairs = [(per_call(ours, calls), per_call(theirs, max(calls // 5, 5))) for _ in range(ROUNDS)]
    mine, other = (min(column) for column in zip(*pairs, strict=True))
    print(f"{name:32} {mine:9.2f} us {other:9.2f} us   {other / mine:6.1f} x")


def main() -> None:
    print(f"{'':32} {'codec':>12} {'generated':>12}")
    for name, nbytes, count in CASES:
        unary = [item(number, nbytes) for number in range(8)]
        lists = [pb.ItemList(items=[item(first * count + n, nbytes) for n in range(count)]) for first in range(8)]
        streamed = [pb.StreamInferRequest(items=one).SerializeToString() for one in lists]
        calls = 20_000 // count
        if nbytes > 1_000_000:
            calls = 1000
        compare(
            f"scan stream {name}",
            lambda number, m=streamed: scan_stream_request(m[number & 7]),
            lambda number, m=streamed: parse(m[number & 7]),
            calls,
        )
        if count == 1:
            messages = [one.SerializeToString() for one in unary]
            compare(
                f"scan unary {name}",
                lambda number, m=messages: scan_infer_request(m[number & 7]),
                lambda number, m=messages: to_item(pb.InferRequest.FromString(m[number & 7])),
                calls,
            )
    for name, nbytes in (("64 B", 64), ("49 KB", 49_152)):
        messages = [item(number, nbytes).SerializeToString() for number in range(8)]
        compare(
            f"scan unary {name}, no template",
            lambda number, m=messages: scan_unknown(m[number & 7]),
            lambda number, m=messages: to_item(pb.InferRequest.FromString(m[number & 7])),
            20_000,
        )
    for name, nbytes, count in RESULTS:
        results = [result(number, nbytes) for number in range(count)]
        calls = 20_000 // count if nbytes < 1_000_000 else 200
        compare(
            f"assemble stream {name}",
            lambda number, r=results: assemble_results(r, 64 << 20),
            lambda number, r=results: response(r).SerializeToString(),
            calls,
        )
    single = result(0, 40)
    compare(
        "assemble unary 40 B",
        lambda number: assemble_infer_response(single),
        lambda number: response([single]).SerializeToString(),
        20_000,
    )


if __name__ == "__main__":
    main()
