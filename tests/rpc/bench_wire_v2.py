"""How long the v2 wire codec takes, against the generated classes: python tests/rpc/bench_wire_v2.py. Not a test.

CPU time, the best of several rounds that alternate between the two. Messages vary in id and data as a client's do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from aclserve_server.engine.items import Input, OutputRequest, OutputTensor, Result
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.datatypes import DATATYPES
from aclserve_server.rpc.v2.wire_in import V2Item, scan_model_infer_request
from aclserve_server.rpc.v2.wire_out import assemble_infer_response, assemble_stream_response
from aclserve_server.rpc.v2.wire_templates import REQUESTS

ROUNDS = 7
FLOAT32 = np.dtype(np.float32)
CASES = (("64 B", 64), ("49 KB", 49_152), ("150 KB", 150_528), ("6 MB", 6_220_800))
RESULTS = (("40 B", 40), ("150 KB", 150_528), ("6 MB", 6_220_800))


def request(number: int, nbytes: int, *, kind: str = "raw") -> pb.ModelInferRequest:
    """As tritonclient writes it; `kind`: raw, typed (fp32_contents), integers (int_contents) or region."""
    made = pb.ModelInferRequest(model_name="model", id=f"{number:06d}")
    datatype = "INT32" if kind == "integers" else "FP32"
    tensor = made.inputs.add(name="input", datatype=datatype, shape=[1, nbytes // 4])
    made.outputs.add(name="output")
    random = np.random.default_rng(number)
    if kind == "raw":
        made.raw_input_contents.append(random.bytes(nbytes))
    elif kind == "typed":
        tensor.contents.fp32_contents.extend(random.standard_normal(nbytes // 4, np.float32))
    elif kind == "integers":
        tensor.contents.int_contents.extend(random.integers(-(2**31), 2**31, nbytes // 4))
    else:
        tensor.parameters["shared_memory_region"].string_param = "frames"
        tensor.parameters["shared_memory_byte_size"].int64_param = nbytes
        tensor.parameters["shared_memory_offset"].int64_param = (number + 1) * nbytes
    return made


def to_item(message: bytes) -> V2Item:
    """What a servicer over generated classes would have to do, but for parameters."""
    parsed = pb.ModelInferRequest.FromString(message)
    made = V2Item(model=parsed.model_name, client_id=parsed.id)
    raw = iter(parsed.raw_input_contents)
    for tensor in parsed.inputs:
        row = DATATYPES[tensor.datatype]
        if tensor.HasField("contents"):
            data = np.array(getattr(tensor.contents, row.contents), row.dtype).tobytes()
        elif tensor.parameters:
            data = tensor.parameters["shared_memory_region"].string_param.encode()
        else:
            data = next(raw)
        made.inputs.append(Input(tensor.name, row.dtype, tuple(tensor.shape), memoryview(data)))
    for output in parsed.outputs:
        made.outputs.append(OutputRequest(output.name))
    return made


def response(client_id: str, result: Result) -> bytes:
    """The same with generated classes."""
    made = pb.ModelInferResponse(model_name="model", model_version="1", id=client_id)
    for output in result.outputs or ():
        assert output.data is not None
        made.outputs.add(name=output.name, datatype="FP32", shape=output.shape)
        made.raw_output_contents.append(bytes(output.data))
    return made.SerializeToString()


def scan_unknown(message: bytes) -> V2Item:
    """Scans a message as if it were the first of its kind."""
    REQUESTS.clear()
    return scan_model_infer_request(message)


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


def scans(name: str, nbytes: int, kind: str, scan: Callable[[bytes], V2Item], calls: int) -> None:
    messages = [request(number, nbytes, kind=kind).SerializeToString() for number in range(8)]
    compare(name, lambda number: scan(messages[number & 7]), lambda number: to_item(messages[number & 7]), calls)


def main() -> None:
    print(f"{'':32} {'codec':>12} {'generated':>12}")
    for name, nbytes in CASES:
        scans(f"scan raw {name}", nbytes, "raw", scan_model_infer_request, 20_000 if nbytes < 1_000_000 else 1000)
    scans("scan raw 64 B, no template", 64, "raw", scan_unknown, 20_000)
    scans("scan region 6 MB", 6_220_800, "region", scan_model_infer_request, 20_000)
    scans("scan fp32_contents 49 KB", 49_152, "typed", scan_model_infer_request, 2000)
    scans("scan int_contents 49 KB", 49_152, "integers", scan_model_infer_request, 500)
    for name, nbytes in RESULTS:
        output = OutputTensor("output", FLOAT32, (1, nbytes // 4), memoryview(bytes(nbytes)))
        result = Result("", outputs=[output])
        compare(
            f"assemble unary {name}",
            lambda number, r=result: assemble_infer_response("model", 1, f"{number:06d}", r),
            lambda number, r=result: response(f"{number:06d}", r),
            20_000 if nbytes < 1_000_000 else 200,
        )
    result = Result("", outputs=[OutputTensor("output", FLOAT32, (1, 10), memoryview(bytes(40)))])
    compare(
        "assemble stream 40 B",
        lambda number: assemble_stream_response("model", 1, f"{number:06d}", result),
        lambda number: response(f"{number:06d}", result),
        20_000,
    )


if __name__ == "__main__":
    main()
