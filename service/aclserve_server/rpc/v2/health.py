"""ServerLive, ServerReady and ModelReady."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio

from aclserve.errors import AclserveError
from aclserve_server.engine.engine import Engine
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.calls import OpenCalls
from aclserve_server.rpc.v2.versions import version_from_text

Context = grpc.aio.ServicerContext[Any, Any]


class HealthCalls:
    """`is_up` tells whether the server has started and is not stopping."""

    def __init__(self, engine: Engine, calls: OpenCalls, is_up: Callable[[], bool]) -> None:
        self._engine = engine
        self._calls = calls
        self._is_up = is_up

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        self._calls.check_staying()
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        self._calls.check_staying()
        return pb.ServerReadyResponse(ready=self._is_up() and self._engine.all_ready)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        self._calls.check_staying()
        try:
            self._engine.find(request.name, version_from_text(request.version))
        except AclserveError as error:
            if error.reason != "MODEL_NOT_READY":
                raise
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)
