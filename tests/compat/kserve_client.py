"""Runs in the kserve package's own environment: does what each line of its input says, answers with a line of JSON.

A line is a list of a function's name and its named arguments. A tensor is {"datatype", "shape", "data"} with base64.
What the client is to be refused is an answer like any other: {"status", "message"}.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import faulthandler
import json
import logging
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype, to_np_dtype

logging.disable(logging.CRITICAL)

address = ""


async def connect(at: str) -> None:
    global address
    address = at


async def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("kserve", "grpcio", "protobuf")}


def request_of(request: dict[str, Any], *, binary: bool) -> InferRequest:
    """With `binary` the tensors are sent raw, else in typed contents."""
    inputs = []
    for tensor in request["inputs"]:
        values = np.frombuffer(base64.b64decode(tensor["data"]), to_np_dtype(tensor["datatype"]))
        one = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        one.set_data_from_numpy(values.reshape(tensor["shape"]), binary_data=binary)
        inputs.append(one)
    outputs = [RequestedOutput(wanted["name"]) for wanted in request.get("outputs", ())]
    return InferRequest(
        request["model_name"],
        inputs,
        request_id=request.get("request_id"),
        parameters=request.get("parameters"),
        request_outputs=outputs or None,
        model_version=request.get("model_version"),
    )


async def refusable(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.RpcError as error:
        return {"status": f"StatusCode.{error.code().name}", "message": error.details()}


async def infer(
    requests: list[dict[str, Any]], *, binary: bool, timeout: float | None = 60, retries: int = 3
) -> list[Any]:
    """Answers of requests, all at once."""
    async with InferenceGRPCClient(address, timeout=timeout, retries=retries) as client:
        calls = [refusable(client.infer(request_of(request, binary=binary))) for request in requests]
        return [one if isinstance(one, dict) else answer_of(one) for one in await asyncio.gather(*calls)]


def answer_of(response: Any) -> dict[str, Any]:
    outputs = {}
    for output in response.outputs:
        array = output.as_numpy()
        data = base64.b64encode(array.tobytes()).decode()
        outputs[output.name] = {"datatype": from_np_dtype(array.dtype), "shape": list(array.shape), "data": data}
    return {
        "id": response.id,
        "model": response.model_name,
        "version": response.model_version,
        "outputs": outputs,
    }


async def ask(method: str, **arguments: Any) -> Any:
    """is_server_ready, is_server_live or is_model_ready."""
    async with InferenceGRPCClient(address, retries=0) as client:
        return await refusable(getattr(client, method)(**arguments))


async def cancel(request: dict[str, Any], seconds: float) -> bool:
    """Gives up an inference after a while; whether it was still open."""
    async with InferenceGRPCClient(address) as client:
        task = asyncio.create_task(client.infer(request_of(request, binary=True)))
        await asyncio.sleep(seconds)
        was_open = task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return was_open


FUNCTIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    function.__name__: function for function in (connect, versions, infer, ask, cancel)
}


def main() -> None:
    faulthandler.enable()
    for line in iter(sys.stdin.readline, ""):
        name, arguments = json.loads(line)
        try:
            told = {"value": asyncio.run(FUNCTIONS[name](**arguments))}
        except Exception:
            told = {"broken": traceback.format_exc()}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
