"""grpc.health.v1: Check, Watch and List, on the stubs of grpcio-health-checking.

That package's servicer is not used: its Watch never ends and holds a lock while it writes, so one slow watcher delays
every change of state. List came to the package after 1.73; where the installed one lacks it, its two messages and the
method are added here to a copy of its descriptor, in a pool of their own.

Names: "" for the whole server, a service's full name, `model:<name>`. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from aclserve.errors import NotFound, ResourceExhausted
from aclserve_server.rpc.calls import going_away

OVERALL = ""
"""The name that stands for the whole server; always known."""

MAX_WATCHERS = 1024
"""Watch streams open at once; one more is refused with RESOURCE_EXHAUSTED."""

WATCH_RETRY_S = 5.0
"""When to try again for whom there are too many watchers."""

MAX_LISTED = 10_000
"""Names one List answers; with more it is refused with RESOURCE_EXHAUSTED, as the protocol allows."""


def model_service(model: str) -> str:
    """The health name of a model."""
    return f"model:{model}"


def _with_list(installed: FileDescriptor) -> FileDescriptor:
    """The health file with List: the installed one, or a copy of it with List added."""
    if "HealthListRequest" in installed.message_types_by_name:
        return installed
    file = descriptor_pb2.FileDescriptorProto()
    installed.CopyToProto(file)
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    kinds = descriptor_pb2.FieldDescriptorProto
    entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
    value_type = ".grpc.health.v1.HealthCheckResponse"
    entry.field.add(name="value", number=2, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE, type_name=value_type)
    entry_type = ".grpc.health.v1.HealthListResponse.StatusesEntry"
    response.field.add(
        name="statuses", number=1, label=kinds.LABEL_REPEATED, type=kinds.TYPE_MESSAGE, type_name=entry_type
    )
    file.service[0].method.add(
        name="List",
        input_type=".grpc.health.v1.HealthListRequest",
        output_type=".grpc.health.v1.HealthListResponse",
    )
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


DESCRIPTOR = _with_list(health_pb2.DESCRIPTOR)
"""The health file as it is served."""

SERVICE_NAME = str(DESCRIPTOR.services_by_name["Health"].full_name)

CheckRequest: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["HealthCheckRequest"])
CheckResponse: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["HealthCheckResponse"])
ListRequest: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["HealthListRequest"])
ListResponse: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["HealthListResponse"])


class Health:
    """The state of every name, and the three methods that show it.

    "" starts as not serving. `drain` is the first step of a shutdown, `shutdown` the one before the gRPC server stops.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {OVERALL: False}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._watcher_count = 0
        self._draining = False
        self._closed = False
        self.changed: Callable[[], None] | None = None
        """Called after every change of `states`."""

    @property
    def states(self) -> dict[str, bool]:
        """All names, and whether they serve."""
        return dict(self._serving)

    def set(self, service: str, serving: bool) -> None:
        """States that `service` serves or does not; a new name becomes known. While draining nothing serves."""
        self._serving[service] = serving and not self._draining
        self._wake(service)

    def remove(self, service: str) -> None:
        """Forgets a name (unknown names too); its watchers see SERVICE_UNKNOWN. "" stays and becomes not serving."""
        if service == OVERALL:
            self.set(OVERALL, False)
        elif self._serving.pop(service, None) is not None:
            self._wake(service)

    def drain(self) -> None:
        """Everything is not serving from now on, whatever `set` says; watchers are told and stay connected."""
        self._draining = True
        for service in list(self._serving):
            self.set(service, False)

    def shutdown(self) -> None:
        """Drains and ends all Watch streams with OK after their last state; new ones get UNAVAILABLE.

        Check and List still answer.
        Call it just before the gRPC server stops: a client whose Watch ends early comes back at once.
        """
        self._closed = True
        self.drain()
        for service in list(self._watchers):
            self._wake(service)

    @property
    def watchers(self) -> int:
        """Watch streams open now."""
        return self._watcher_count

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers the service; before the server starts."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self.Check, CheckRequest.FromString, CheckResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch, CheckRequest.FromString, CheckResponse.SerializeToString
            ),
            "List": grpc.unary_unary_rpc_method_handler(
                self.List, ListRequest.FromString, ListResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The state of one name; NOT_FOUND for an unknown one."""
        if request.service not in self._serving:
            raise NotFound(f"unknown service {_shown(request.service)}; List tells the names", reason="SERVICE_UNKNOWN")
        return CheckResponse(status=self._status(request.service))

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The states of all names."""
        if len(self._serving) > MAX_LISTED:
            raise ResourceExhausted(
                f"{len(self._serving)} names, at most {MAX_LISTED} are listed; ask for single ones with Check",
                reason="TOO_MANY_NAMES",
            )
        return ListResponse(statuses={name: CheckResponse(status=self._status(name)) for name in self._serving})

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """The state of one name now and after every change; a slow reader misses intermediate ones, never the last."""
        if self._closed:
            raise going_away()
        if self._watcher_count >= MAX_WATCHERS:
            raise ResourceExhausted(
                f"{MAX_WATCHERS} calls watch already, the most there may be; ask with Check, or watch later",
                reason="TOO_MANY_WATCHERS",
                retry_delay=WATCH_RETRY_S,
            )
        service = request.service
        changed = asyncio.Event()
        self._watchers.setdefault(service, set()).add(changed)
        self._watcher_count += 1
        try:
            await self._report_changes(service, changed, context)
        finally:
            self._watcher_count -= 1
            self._watchers[service].discard(changed)
            if not self._watchers[service]:
                del self._watchers[service]

    async def _report_changes(self, service: str, changed: asyncio.Event, context: Any) -> None:
        sent: int | None = None
        while True:
            changed.clear()
            closing, status = self._closed, self._status(service)
            if status != sent:
                sent = status
                await context.write(CheckResponse(status=status))
            if closing:
                return
            await changed.wait()

    def _status(self, service: str) -> int:
        serving = self._serving.get(service)
        if serving is None:
            return int(CheckResponse.SERVICE_UNKNOWN)
        return int(CheckResponse.SERVING if serving else CheckResponse.NOT_SERVING)

    def _wake(self, service: str) -> None:
        for changed in self._watchers.get(service, ()):
            changed.set()
        if self.changed is not None:
            self.changed()


def _shown(name: str) -> str:
    """A client's name, quoted and cut for a message."""
    return repr(name if len(name) <= 200 else name[:200] + "...")
