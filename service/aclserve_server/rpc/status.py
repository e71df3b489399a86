"""Errors on the wire: any exception -> google.rpc.Status in the trailing metadata, and the fields of an item's error.

Everything a client sees of an error is bounded, so that it fits gRPC's limit on metadata (8 KiB) whatever it says.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from aclserve.errors import DOMAIN, AclserveError, Internal, InvalidArgument
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify

log = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_BYTES = 1024
MAX_METADATA_BYTES = 2048
MAX_KEY_BYTES = 64
MAX_VALUE_BYTES = 256

ItemErrorFields = tuple[int, str, str, dict[str, str], float | None]
"""Code, reason, message, metadata, retry delay in seconds or None."""

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def service_error(error: BaseException) -> AclserveError:
    """The error a client sees for any exception; an unforeseen one is logged with its traceback and stays inside."""
    found = _first(error, AclserveError) or _first(error, AclError)
    if isinstance(found, AclserveError):
        return found
    if isinstance(found, AclError):
        log.warning("a call to the device failed: %s", found)
        return classify(found)
    log.error("unforeseen error", exc_info=error)
    return Internal("the server failed; its log tells more", reason="INTERNAL_ERROR")


def to_item_error_fields(error: BaseException) -> ItemErrorFields:
    """What ItemError carries for an exception: code, reason, message, metadata and retry delay in seconds."""
    shown = service_error(error)
    return shown.code, shown.reason, _cut(shown.message, MAX_MESSAGE_BYTES), _metadata(shown), shown.retry_delay


def to_status(error: BaseException) -> status_pb2.Status:
    """The google.rpc.Status of an exception: ErrorInfo, and RetryInfo where trying again may help."""
    code, reason, message, metadata, retry_delay = to_item_error_fields(error)
    details = [_any(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))]
    if retry_delay is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_delay * 1e9))
        details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code, message=message, details=details)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """Ends an RPC with an exception's status. What gRPC itself raised goes on as it is."""
    own = _first(error, grpc.aio.BaseError)
    if own is not None:
        raise own
    status = to_status(error)
    await context.abort(
        _CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        status.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what handlers raise into statuses. Cancellation passes; handlers that are not async are left alone."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler with its errors translated; None where the method does not exist."""
        handler: Any = await continuation(handler_call_details)
        return handler if handler is None else _guarded(handler)


def _guarded(handler: Any) -> Any:
    """The same handler, of any of the four kinds; requests are parsed inside, so that broken ones are told as such."""
    if handler.request_streaming:
        behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    parse = _parser(handler)
    if inspect.iscoroutinefunction(behaviour):
        wrapped: Callable[..., Any] = _guarded_coroutine(behaviour, parse)
    elif inspect.isasyncgenfunction(behaviour):
        wrapped = _guarded_generator(behaviour, parse)
    else:
        return handler
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(wrapped, None, handler.response_serializer)


def _parser(handler: Any) -> Callable[[Any], Any]:
    """From what gRPC hands over without a deserializer (bytes, or an iterator of them) to what the handler expects."""
    deserialize = handler.request_deserializer
    if deserialize is None:
        return lambda request: request

    def parse(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError:
            raise InvalidArgument(
                f"the request's {len(message)} bytes are not a protobuf message of this call",
                reason="MALFORMED_MESSAGE",
            ) from None

    return (lambda requests: _Parsed(requests, parse)) if handler.request_streaming else parse


class _Parsed(AsyncIterator[Any]):
    """The messages of an iterator of bytes."""

    def __init__(self, requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> None:
        self._requests = aiter(requests)
        self._parse = parse

    async def __anext__(self) -> Any:
        return self._parse(await anext(self._requests))


def _guarded_coroutine(
    behaviour: Callable[..., Awaitable[Any]], parse: Callable[[Any], Any]
) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(parse(request), context)
        except Exception as error:
            await abort(context, error)

    return guarded


def _guarded_generator(behaviour: Callable[..., Any], parse: Callable[[Any], Any]) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async with aclosing(behaviour(parse(request), context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await abort(context, error)

    return guarded


def _first(error: BaseException, kind: type[BaseException]) -> Any:
    """The first exception of a kind in an exception or, depth first, in a group."""
    return next((leaf for leaf in _leaves(error) if isinstance(leaf, kind)), None)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _metadata(error: AclserveError) -> dict[str, str]:
    """As many entries as fit into the bound, in their order."""
    kept: dict[str, str] = {}
    left = MAX_METADATA_BYTES
    for key, value in error.metadata.items():
        key, value = _cut(key, MAX_KEY_BYTES), _cut(value, MAX_VALUE_BYTES)
        left -= len(key.encode()) + len(value.encode())
        if left < 0:
            break
        kept[key] = value
    return kept


def _cut(text: str, limit_bytes: int) -> str:
    """The text as valid UTF-8 within a limit, with an ellipsis where something is missing."""
    raw = text.encode("utf-8", "replace")
    if len(raw) > limit_bytes:
        return raw[: limit_bytes - 3].decode("utf-8", "ignore") + "..."
    return raw.decode("utf-8")


def _any(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
