"""A server in this process, called through the stubs of the KServe v2 protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.kserve import inference_pb2_grpc
from rpc.memory_server import details_of, info_of
from serving import Serving, rows, serving

TIMEOUT_S = 60


@dataclass
class V2:
    """A server that is up, and its stub."""

    up: Serving
    channel: grpc.Channel
    stub: Any

    def call(self, method: str, request: Any, lease: str = "") -> Any:
        metadata = (("aclserve-lease", lease),) if lease else ()
        return getattr(self.stub, method)(request, timeout=TIMEOUT_S, metadata=metadata)

    def refused(self, method: str, request: Any, code: grpc.StatusCode, reason: str, lease: str = "") -> str:
        """Sees that a call fails with a code and, in its details, a reason; returns the text."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, request, lease)
        error: Any = caught.value
        assert error.code() is code, error
        assert info_of(details_of(error)).reason == reason
        return str(error.details())

    def infer(self, model: str = "plain", count: int = 1, version: str = "") -> Any:
        """Rows of four numbers through a model."""
        return self.call("ModelInfer", request_of(model, count, version))

    def index(self, *, ready: bool = False) -> dict[tuple[str, str], tuple[str, str]]:
        """Name and version to state and reason."""
        listed = self.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready)).models
        return {(one.name, one.version): (one.state, one.reason) for one in listed}

    def statistics(self, name: str = "", version: str = "") -> Sequence[Any]:
        request = pb.ModelStatisticsRequest(name=name, version=version)
        return list(self.call("ModelStatistics", request).model_stats)

    def load(self, name: str, config: str | None = None, **files: bytes) -> None:
        parameters: dict[str, Any] = {}
        if config is not None:
            parameters["config"] = pb.ModelRepositoryParameter(string_param=config)
        for key, content in files.items():
            parameters[key] = pb.ModelRepositoryParameter(bytes_param=content)
        self.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name, parameters=parameters))

    def unload(self, name: str) -> None:
        self.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=name))


def request_of(model: str, count: int = 1, version: str = "", *, timeout_us: int = 0) -> Any:
    """Rows of four numbers for a model; 0 microseconds is no limit."""
    values = rows(0, count)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=values.shape)
    request = pb.ModelInferRequest(model_name=model, model_version=version, inputs=[tensor])
    request.raw_input_contents.append(values.tobytes())
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return request


@contextmanager
def v2(repository: Path, **options: Any) -> Iterator[V2]:
    """Serves a repository."""
    with (
        serving(repository, **options) as up,
        grpc.insecure_channel(up.address, [("grpc.max_receive_message_length", -1)]) as channel,
    ):
        yield V2(up, channel, inference_pb2_grpc.GRPCInferenceServiceStub(channel))


def outputs_of(response: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The one output of a response of `V2.infer`."""
    (output,) = response.outputs
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(output.shape)
