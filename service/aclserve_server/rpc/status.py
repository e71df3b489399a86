"""Errors on the wire: any exception -> google.rpc.Status in the trailing metadata, and the fields of an item's error.

Everything a client sees of an error is bounded, so that it fits gRPC's limit on metadata (8 KiB) whatever it says.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from aclserve.errors import DOMAIN, AclserveError, Internal, Unavailable
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify

log = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""When to try again, for clients whose gRPC retries by a service config; `RetryInfo` says the same. Never 0,
at which gRPC waits for the deadline."""
RETRY = ("aclserve-retry", "elsewhere")
"""Beside the status of an error of the category UNAVAILABLE, whatever code it leaves with: this server cannot, another
one may. A proxy cannot read the details, but may send the call elsewhere where it sees this.
"""

MAX_MESSAGE_BYTES = 1024
MAX_METADATA_BYTES = 2048
MAX_KEY_BYTES = 64
MAX_VALUE_BYTES = 256

ItemErrorFields = tuple[int, str, str, dict[str, str], float | None]
"""Code, reason, message, metadata, retry delay in seconds or None."""

CodeOf = Callable[[AclserveError], int]
"""The status code that a service answers an error with."""

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


def code_of_category(error: AclserveError) -> int:
    """The code of the error's category, which all services answer with that name no other."""
    return error.code


def to_status(error: BaseException, code_of: CodeOf = code_of_category) -> status_pb2.Status:
    """The google.rpc.Status of an exception: ErrorInfo, and RetryInfo where trying again may help."""
    shown = service_error(error)
    code, (_, reason, message, metadata, retry_delay) = code_of(shown), to_item_error_fields(shown)
    details = [_any(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))]
    if retry_delay is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_delay * 1e9))
        details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code, message=message, details=details)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, code_of: CodeOf = code_of_category
) -> NoReturn:
    """Ends an RPC with an exception's status. What gRPC itself raised goes on as it is.

    Raises CancelledError where the client is gone in the middle of a message: gRPC would log a traceback for each, and
    whoever closes connections could fill the log.
    """
    if _first(error, grpc.aio.InternalError) is not None:
        raise asyncio.CancelledError from None
    own = _first(error, grpc.aio.BaseError)
    if own is not None:
        raise own
    shown = service_error(error)
    status = to_status(shown, code_of)
    trailers: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
    if isinstance(shown, Unavailable):
        trailers += (RETRY,)
    if shown.retry_delay is not None:
        trailers += ((PUSHBACK_KEY, str(max(math.ceil(shown.retry_delay * 1e3), 1))),)
    await context.abort(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, trailers)


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
