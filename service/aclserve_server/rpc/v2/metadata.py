"""ServerMetadata and ModelMetadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio

from aclserve_server.device.description import TensorInfo
from aclserve_server.engine.contract import RowContract
from aclserve_server.engine.engine import Engine
from aclserve_server.engine.records import Record, State
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.datatypes import datatype_of
from aclserve_server.rpc.v2.versions import version_from_text, version_to_text

Context = grpc.aio.ServicerContext[Any, Any]

SERVER_NAME = "aclserve"

EXTENSIONS = ("classification", "model_repository", "schedule_policy", "model_configuration", "statistics", "logging")
"""What of Triton's extensions is always there. Not: sequences, custom parameters, memory of CUDA devices."""


class MetadataCalls:
    """`extensions` are those of the server's options, besides EXTENSIONS."""

    def __init__(self, engine: Engine, version: str, extensions: Sequence[str] = ()) -> None:
        self._engine = engine
        self._version = version
        self._extensions = (*EXTENSIONS, *extensions)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=self._extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        version = version_from_text(request.version)
        record = self._engine.find(request.name, version)
        versions = [version] if version else ready_versions(self._engine, request.name)
        return metadata_to_proto(record, versions)


def ready_versions(engine: Engine, name: str) -> list[int]:
    """The versions of a model that serve, ascending."""
    return [record.version for record in engine.records() if record.name == name and record.state is State.READY]


def metadata_to_proto(record: Record, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """A model that is ready. Properties are the parameters of its configuration."""
    prepared = record.prepared
    assert prepared is not None
    contract = prepared.contract
    rows = isinstance(contract, RowContract)
    return pb.ModelMetadataResponse(
        name=record.name,
        versions=[version_to_text(version) for version in versions],
        platform=record.platform,
        inputs=[_tensor(info, rows) for info in contract.inputs],
        outputs=[_tensor(info, rows) for info in contract.outputs],
        properties=dict(record.config.parameters),
    )


def _tensor(info: TensorInfo, rows: bool) -> pb.ModelMetadataResponse.TensorMetadata:
    shape = (-1, *info.shape[1:]) if rows else info.shape
    return pb.ModelMetadataResponse.TensorMetadata(name=info.name, datatype=datatype_of(info.dtype), shape=shape)
