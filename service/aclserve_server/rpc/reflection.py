"""Server reflection v1 and v1alpha, on grpcio-reflection.

What that package lacks is added here: the v1 service (the same messages under another name), and symbols below a
service or an enum (`package.Service.Method`, `package.Enum.VALUE`), which protobuf's descriptor pool does not find and
ghz asks for. Answers to symbols and file names hold the file and all files it imports, so one request is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from aclserve_server.rpc import health

V1ALPHA_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
V1_SERVICE = "grpc.reflection.v1.ServerReflection"


def _v1_file() -> FileDescriptor:
    """The v1 file: the v1alpha one under its final name."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    alpha, final = ".grpc.reflection.v1alpha.", ".grpc.reflection.v1."
    file.name, file.package = "grpc/reflection/v1/reflection.proto", "grpc.reflection.v1"
    for message in file.message_type:
        for message_field in message.field:
            if message_field.type_name:
                message_field.type_name = message_field.type_name.replace(alpha, final)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(alpha, final)
        method.output_type = method.output_type.replace(alpha, final)
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


class SymbolPool:
    """The lookups that grpcio-reflection makes in a descriptor pool: `overlay` files first, then the process's pool.

    Raises KeyError for what is not there, as a descriptor pool does.
    """

    def __init__(self, overlay: Sequence[FileDescriptor] = (), pool: DescriptorPool | None = None) -> None:
        self._overlay = {file.name: file for file in overlay}
        self._pool = pool if pool is not None else descriptor_pool.Default()

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802
        """The file of that name."""
        return self._overlay.get(name) or self._pool.FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """The file of a message, enum, service, extension, or of a field, oneof, enum value or method."""
        symbol = symbol.removeprefix(".")
        for pool in (*(file.pool for file in self._overlay.values()), self._pool):
            file = _file_of(pool, symbol)
            if file is not None:
                return file
        raise KeyError(f"no symbol {symbol!r}")

    def FindMessageTypeByName(self, name: str) -> Descriptor:  # noqa: N802
        """The message type of that full name."""
        return self._pool.FindMessageTypeByName(name)

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:  # noqa: N802
        """The extension of a message with that field number."""
        return self._pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:  # noqa: N802
        """All extensions of a message that are known here."""
        return self._pool.FindAllExtensions(message)


def _file_of(pool: DescriptorPool, symbol: str) -> FileDescriptor | None:
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        pass
    parent, _, member = symbol.rpartition(".")
    try:
        service = pool.FindServiceByName(parent)
    except KeyError:
        pass
    else:
        return service.file if member in service.methods_by_name else None
    try:
        enum = pool.FindEnumTypeByName(parent)
    except KeyError:
        return None
    return enum.file if member in enum.values_by_name else None


def add_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Serves reflection of `service_names` (full names) and of itself under both names; before the server starts.

    The services' stubs must have been imported by then.
    """
    names = {*service_names, V1ALPHA_SERVICE, V1_SERVICE}
    servicer: Any = reflection.aio.ReflectionServicer(names, pool=SymbolPool((_v1_file(), health.DESCRIPTOR)))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, handlers) for name in (V1ALPHA_SERVICE, V1_SERVICE))
    )
