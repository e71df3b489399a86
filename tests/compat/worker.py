"""Clients of other projects, each in a process of its own environment, driven by lines of JSON."""

from __future__ import annotations

import base64
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from aclserve_server.rpc.v2.datatypes import DATATYPES, datatype_of
from serving import rows

FOLDER = Path(__file__).resolve().parent
ANSWER_S = 25.0
WAYS = ("sync", "async", "aio", "stream", "aio_stream")
"""Of tritonclient, to infer."""

EXIT_S = 30.0

Array = NDArray[Any]


class Worker:
    """A process that runs one of the scripts beside this file. Ends with the block."""

    def __init__(self, python: Path, script: str) -> None:
        self._process = subprocess.Popen(
            [str(python), str(FOLDER / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE", "PYTHONPATH": ""},
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"reader of {script}")
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        process = self._process
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        assert process.stdout is not None
        process.stdout.close()

    def do(self, name: str, /, **arguments: Any) -> Any:
        """Calls a function of the script; what it raises fails the test."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=ANSWER_S)
        except queue.Empty:
            self._process.send_signal(signal.SIGABRT)  # it tells where its threads are
            raise AssertionError(f"the client did not answer {name} in {ANSWER_S:g} s") from None
        assert line, "the client's process has ended"
        told = json.loads(line)
        assert "broken" not in told, told["broken"]
        return told["value"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")


def tensor(array: Array) -> dict[str, Any]:
    """An array as the scripts read it."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"datatype": datatype_of(array.dtype), "shape": list(array.shape), "data": data}


def array_of(told: Mapping[str, Any]) -> Array:
    """An array as the scripts write it."""
    raw = base64.b64decode(told["data"])
    return np.frombuffer(raw, DATATYPES[told["datatype"]].dtype).reshape(told["shape"])


def request(model: str, inputs: Mapping[str, Array], **fields: Any) -> dict[str, Any]:
    """A request as the scripts read it: with `request_id` and what else the client's calls take."""
    return {
        "model_name": model,
        "inputs": [{"name": name, **tensor(array)} for name, array in inputs.items()],
        **fields,
    }


def outputs_of(answer: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of an answer, which must be none of an error."""
    assert "status" not in answer, answer
    return {name: array_of(told) for name, told in answer["outputs"].items()}


def one_row(index: int = 0, model: str = "plain", **fields: Any) -> dict[str, Any]:
    """A request with row `index` for version 1 of a model."""
    return request(model, {"x": rows(index, 1)}, **{"model_version": "1", "request_id": str(index), **fields})


def pair(**fields: Any) -> dict[str, Any]:
    """A request for the model "two", whose outputs are `TOTAL` and `DIFFERENCE`."""
    return request("two", {"a": rows(5, 2), "b": rows(0, 2)}, **fields)


TOTAL, DIFFERENCE = rows(5, 2) + rows(0, 2), rows(5, 2) - rows(0, 2)


def infer(client: Worker, *requests: dict[str, Any], way: str = "sync") -> Any:
    """Answers of requests by one of tritonclient's ways."""
    return client.do("infer", way=way, requests=list(requests))


def call(client: Worker, method: str, **arguments: Any) -> Any:
    """A method of tritonclient that is no inference; None, JSON, or a refusal."""
    return client.do("call", method=method, **arguments)
