"""Runs in tritonclient's own environment: does what each line of its input says, and answers each with a line of JSON.

A line is a list of a function's name and its named arguments. A tensor is {"datatype", "shape", "data"} with base64.
What a client is to be refused is an answer like any other: {"status", "message"}.
"""

from __future__ import annotations

import asyncio
import base64
import faulthandler
import inspect
import json
import queue
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory, triton_to_np_dtype

WAIT_S = 60

address = ""
clients: dict[str, Any] = {}
regions: dict[str, Any] = {}
pending: dict[str, Any] = {}


def connect(at: str) -> None:
    """Connects to a server, and leaves the one before."""
    global address
    close()
    address = at
    clients["sync"] = triton.InferenceServerClient(at)


def close() -> None:
    for client in clients.values():
        client.close()
    clients.clear()


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tritonclient", "grpcio", "protobuf")}


def call(method: str, **arguments: Any) -> Any:
    """A method of the client that is no inference."""
    function = getattr(clients["sync"], method)
    if "as_json" in inspect.signature(function).parameters:
        arguments["as_json"] = True
    return refusable(lambda: function(**arguments))


def load(name: str, config: str | None = None, files: dict[str, str] | None = None) -> Any:
    contents = None if files is None else {key: base64.b64decode(content) for key, content in files.items()}
    return refusable(lambda: clients["sync"].load_model(name, config=config, files=contents))


def register_cuda(raw_handle: str, **arguments: Any) -> Any:
    """A handle is base64 in base64: the client takes it off once."""
    return refusable(lambda: clients["sync"].register_cuda_shared_memory(raw_handle=raw_handle.encode(), **arguments))


def refusable(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except InferenceServerException as error:
        return refusal(error)


def refusal(error: Any) -> dict[str, Any]:
    return {"status": error.status(), "message": error.message()}


def array_of(tensor: dict[str, Any]) -> np.ndarray[Any, Any]:
    if tensor["datatype"] == "BYTES":
        elements = [base64.b64decode(element) for element in tensor["data"]]
        return np.array(elements, np.object_).reshape(tensor["shape"])
    raw = base64.b64decode(tensor["data"])
    return np.frombuffer(raw, triton_to_np_dtype(tensor["datatype"])).reshape(tensor["shape"])


def tensor_of(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    told = {"datatype": np_to_triton_dtype(array.dtype), "shape": list(array.shape)}
    if array.dtype == np.object_:
        return {**told, "data": [element.decode() for element in array.flatten()]}
    return {**told, "data": base64.b64encode(array.tobytes()).decode()}


def arguments_of(request: dict[str, Any]) -> dict[str, Any]:
    """What the client's calls want for a request."""
    made = {key: value for key, value in request.items() if key not in ("inputs", "outputs")}
    made["inputs"], made["outputs"] = [], None
    for tensor in request["inputs"]:
        one = triton.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        if "region" in tensor:
            one.set_shared_memory(*tensor["region"])
        else:
            one.set_data_from_numpy(array_of(tensor))
        made["inputs"].append(one)
    for wanted in request.get("outputs", ()):
        one = triton.InferRequestedOutput(wanted["name"], class_count=wanted.get("class_count", 0))
        if "region" in wanted:
            one.set_shared_memory(*wanted["region"])
        made["outputs"] = [*(made["outputs"] or ()), one]
    return made


def answer_of(result: Any, error: Any) -> dict[str, Any]:
    if error is not None:
        return refusal(error)
    response = result.get_response()
    outputs = {}
    for at, output in enumerate(response.outputs):
        if "shared_memory_region" in output.parameters:
            assert response.raw_output_contents[at] == b""
            outputs[output.name] = {"datatype": output.datatype, "shape": list(output.shape), "data": None}
        else:
            outputs[output.name] = tensor_of(result.as_numpy(output.name))
    return {
        "id": response.id,
        "model": response.model_name,
        "version": response.model_version,
        "final": "triton_final_response" in response.parameters,
        "outputs": outputs,
    }


def infer(way: str, requests: list[dict[str, Any]], headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Answers of requests, in their order (of a stream: in the answers' order), by one of the client's ways."""
    arguments = [arguments_of(request) for request in requests]
    if "stream" not in way:  # their calls have no timeout but this
        arguments = [{"client_timeout": WAIT_S, **one} for one in arguments]
    return WAYS[way](arguments, headers)


def by_sync(requests: list[dict[str, Any]], headers: dict[str, str] | None) -> list[dict[str, Any]]:
    answers = []
    for request in requests:
        try:
            answers.append(answer_of(clients["sync"].infer(**request, headers=headers), None))
        except InferenceServerException as error:
            answers.append(refusal(error))
    return answers


def by_async(requests: list[dict[str, Any]], headers: dict[str, str] | None) -> list[dict[str, Any]]:
    """All at once, with callbacks."""
    answers: dict[int, Any] = {}
    came: queue.Queue[int] = queue.Queue()

    def callback_of(at: int) -> Callable[..., None]:
        def callback(result: Any, error: Any) -> None:
            answers[at] = answer_of(result, error)
            came.put(at)

        return callback

    for at, request in enumerate(requests):
        clients["sync"].async_infer(**request, callback=callback_of(at), headers=headers)
    for _ in requests:
        came.get(timeout=WAIT_S)
    return [answers[at] for at in range(len(requests))]


def by_stream(requests: list[dict[str, Any]], headers: dict[str, str] | None) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    client = clients["sync"]
    client.start_stream(lambda result, error: answers.append(answer_of(result, error)), WAIT_S, headers)
    for request in requests:
        try:
            client.async_stream_infer(**request)
        except InferenceServerException:  # the stream has ended: its error is among the answers
            break
    client.stop_stream()
    return answers


def by_aio(requests: list[dict[str, Any]], headers: dict[str, str] | None) -> list[dict[str, Any]]:
    async def one(client: Any, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return answer_of(await client.infer(**request, headers=headers), None)
        except InferenceServerException as error:
            return refusal(error)

    async def every() -> list[dict[str, Any]]:
        async with triton_aio.InferenceServerClient(address) as client:
            return list(await asyncio.gather(*(one(client, request) for request in requests)))

    return asyncio.run(every())


def by_aio_stream(requests: list[dict[str, Any]], headers: dict[str, str] | None) -> list[dict[str, Any]]:
    async def sent() -> Any:
        for request in requests:
            yield request

    async def every() -> list[dict[str, Any]]:
        answers = []
        async with triton_aio.InferenceServerClient(address) as client:
            try:
                async for result, error in client.stream_infer(sent(), stream_timeout=WAIT_S, headers=headers):
                    answers.append(answer_of(result, error))
            except grpc.aio.AioRpcError as error:
                answers.append({"status": f"StatusCode.{error.code().name}", "message": error.details()})
        return answers

    return asyncio.run(every())


WAYS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "sync": by_sync,
    "async": by_async,
    "stream": by_stream,
    "aio": by_aio,
    "aio_stream": by_aio_stream,
}


def stream_rows(model: str, name: str, count: int, bad: int) -> list[list[Any]]:
    """`count` requests on a stream, each a row of four numbers, `bad` one of three. Id or text, and first value."""
    answers: list[list[Any]] = []

    def callback(result: Any, error: Any) -> None:
        if error is not None:
            answers.append([error.message(), None])
        else:
            response = result.get_response()
            answers.append([response.id, float(result.as_numpy(response.outputs[0].name)[0, 0])])

    client = clients["sync"]
    client.start_stream(callback, WAIT_S)
    for at in range(count):
        values = np.full((1, 3 if at == bad else 4), at, np.float32)
        tensor = triton.InferInput(name, values.shape, "FP32").set_data_from_numpy(values)
        client.async_stream_infer(model, [tensor], request_id=str(at))
    client.stop_stream()
    return answers


def begin(name: str, way: str, requests: list[dict[str, Any]]) -> None:
    """Sends requests without waiting for their answers, which `cancel` or `finish` returns."""
    answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def callback(result: Any, error: Any) -> None:
        answers.put(answer_of(result, error))

    client = triton.InferenceServerClient(address)
    if way == "stream":
        client.start_stream(callback, WAIT_S)
        for request in requests:
            client.async_stream_infer(**arguments_of(request))
        pending[name] = (client, [], answers, 1)
    else:
        calls = [client.async_infer(**arguments_of(request), callback=callback) for request in requests]
        pending[name] = (client, calls, answers, len(calls))


def cancel(name: str) -> list[dict[str, Any]]:
    client, calls, answers, count = pending.pop(name)
    for one in calls:
        one.cancel()
    client.stop_stream(cancel_requests=True)
    found = [answers.get(timeout=WAIT_S) for _ in range(count)]
    client.close()
    return found


def finish(name: str, count: int) -> list[dict[str, Any]]:
    client, _, answers, _ = pending.pop(name)
    client.stop_stream()
    found = [answers.get(timeout=WAIT_S) for _ in range(count)]
    client.close()
    return found


def raw_infer(request: dict[str, Any]) -> Any:
    """A request by the client's stubs, as JSON; what its classes do not let one say."""
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = json_format.ParseDict(request, service_pb2.ModelInferRequest())
        try:
            answer = stub.ModelInfer(message, timeout=WAIT_S)
        except grpc.RpcError as error:
            return {"status": f"StatusCode.{error.code().name}", "message": error.details()}
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)


def shm_create(name: str, key: str, size: int) -> None:
    regions[name] = shared_memory.create_shared_memory_region(name, key, size)


def shm_write(name: str, tensors: list[dict[str, Any]], offset: int = 0) -> None:
    shared_memory.set_shared_memory_region(regions[name], [array_of(tensor) for tensor in tensors], offset)


def shm_read(name: str, datatype: str, shape: list[int], offset: int = 0) -> dict[str, Any]:
    dtype = triton_to_np_dtype(datatype)
    return tensor_of(np.array(shared_memory.get_contents_as_numpy(regions[name], dtype, shape, offset)))


def shm_destroy(name: str) -> list[str]:
    """Also tells what is left."""
    shared_memory.destroy_shared_memory_region(regions.pop(name))
    return list(shared_memory.mapped_shared_memory_regions())


def lines() -> Iterator[str]:
    return iter(sys.stdin.readline, "")


def main() -> None:
    faulthandler.enable()
    for line in lines():
        name, arguments = json.loads(line)
        try:
            told = {"value": globals()[name](**arguments)}
        except Exception:
            told = {"broken": traceback.format_exc()}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    close()


if __name__ == "__main__":
    main()
