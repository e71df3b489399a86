"""gRPC statuses and item errors -> the classes of `aclserve.errors`, the same that the server raised.

A status with google.rpc.ErrorInfo of this service's domain keeps its reason and metadata. Anything else comes from the
channel, a proxy or another server, and gets a reason of the client's own: CONNECTION_FAILED, CONNECTION_LOST,
DEADLINE_EXCEEDED, MESSAGE_TOO_LARGE, or the name of the status code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from aclserve.errors import (
    DOMAIN,
    AclserveError,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    error_class,
)
from aclserve.v1 import model_pb2 as pb

__all__ = [
    "AclserveError",
    "AlreadyExists",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]

_DETAILS_KEY = "grpc-status-details-bin"
_CONNECT_SIGNS = (
    "failed to connect",
    "connection refused",
    "name resolution",
    "dns resolution",
    "no such file",
    "empty address",
)


@dataclass(frozen=True)
class CallContext:
    """What the caller knew of a call, for messages: where it went and how long it might take."""

    address: str
    timeout: float | None = None


def error_from_rpc(error: grpc.RpcError, context: CallContext) -> AclserveError:
    """The error that a failed call stands for. `error` is what grpc or grpc.aio raised."""
    call: Any = error  # what is raised is a Call (grpc) or an AioRpcError (grpc.aio): both can tell these
    code: int = call.code().value[0]
    text: str = call.details() or ""
    status = _status_of(call.trailing_metadata())
    if status is not None and status.code == code:
        return _error_from_status(status, code, text)
    return _error_without_details(code, text, context)


def error_from_item(item: pb.ItemError) -> AclserveError:
    """The error of one item of a stream."""
    return error_class(item.code)(
        item.message,
        reason=item.reason,
        metadata=dict(item.metadata),
        retry_delay=seconds_of(item.retry_delay) if item.HasField("retry_delay") else None,
    )


def seconds_of(duration: Duration) -> float:
    """A Duration in seconds."""
    return float(duration.seconds + duration.nanos / 1e9)


def _status_of(metadata: Any) -> Status | None:
    for key, value in metadata or ():
        if key == _DETAILS_KEY:
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _error_from_status(status: Status, code: int, text: str) -> AclserveError:
    cls = error_class(code)
    reason, metadata, retry_delay = cls.code_name, {}, None
    for detail in status.details:
        info, retry = ErrorInfo(), RetryInfo()
        if detail.Is(ErrorInfo.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(RetryInfo.DESCRIPTOR) and detail.Unpack(retry):
            retry_delay = seconds_of(retry.retry_delay)
    return cls(status.message or text, reason=reason, metadata=metadata, retry_delay=retry_delay)


def _error_without_details(code: int, text: str, context: CallContext) -> AclserveError:
    cls = error_class(code)
    lower = text.lower()
    if cls is Unavailable and any(sign in lower for sign in _CONNECT_SIGNS):
        return Unavailable(
            f"cannot reach an aclserve server at {context.address} ({_shorten(text)}); "
            "start one with `aclserve serve`, or name another address",
            reason="CONNECTION_FAILED",
        )
    if cls is Unavailable:
        return Unavailable(f"the connection to {context.address} was lost: {_shorten(text)}", reason="CONNECTION_LOST")
    if cls is DeadlineExceeded:
        within = "in time" if context.timeout is None else f"within {context.timeout:g} s"
        return DeadlineExceeded(f"no answer from {context.address} {within}", reason="DEADLINE_EXCEEDED")
    if cls is ResourceExhausted and "larger than max" in lower:
        return ResourceExhausted(
            f"{_shorten(text)}; both Options.max_message_bytes and the server's limit apply", reason="MESSAGE_TOO_LARGE"
        )
    if cls is Internal and "error from core" in lower:  # grpc.aio, when a stream ends while it is sending a message
        return Unavailable(
            f"{context.address} ended the call while a message was being sent, and its reason is lost; try again",
            reason="CONNECTION_LOST",
        )
    name = cls.code_name if cls is not AclserveError else "UNKNOWN"
    return cls(_shorten(text) or f"{context.address} answered {name}", reason=name)


def _shorten(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "..."
