"""The errors of aclserve: one taxonomy for both sides of the wire. Standard library only.

    AclserveError
    |- Cancelled            the caller took it back
    |- InvalidArgument      wrong whatever the server's state: names, types, shapes, sizes
    |- DeadlineExceeded     too late
    |- NotFound             no such model, buffer, lease (or not yours)
    |- AlreadyExists
    |- PermissionDenied
    |- ResourceExhausted    a queue, quota or memory is full; `retry_delay` says when to try again
    |- FailedPrecondition   right in itself, but not in this state
    |- OutOfRange           past the end of a buffer
    |- Unimplemented        this device or this CANN cannot
    |- Internal             a bug, or the runtime's own fault
    |- Unavailable          the server or the device is going away; `retry_delay` says when to try again
    |- DataLoss             a checksum does not fit
    `- Unauthenticated      no lease or no credentials

An error is a category (the class), a stable `reason` in UPPER_SNAKE_CASE, a message for people that says what was
got, what was expected and what to do, and metadata with units in the keys. The server's `rpc` room turns it into a
gRPC status with google.rpc.ErrorInfo; the client turns that back into the same class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

DOMAIN = "aclserve"
"""The `domain` of every google.rpc.ErrorInfo this service sends."""


class AclserveError(Exception):
    """The base of all errors of aclserve.

    `code` and `code_name` are the canonical gRPC status of the category. `retry_delay` is in seconds, or None where
    trying again does not help.
    """

    code: ClassVar[int] = 2
    code_name: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, object] | None = None,
        retry_delay: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_delay = retry_delay

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"


class Cancelled(AclserveError):
    """The caller took it back."""

    code = 1
    code_name = "CANCELLED"


class InvalidArgument(AclserveError):
    """Wrong whatever the server's state."""

    code = 3
    code_name = "INVALID_ARGUMENT"


class DeadlineExceeded(AclserveError):
    """The deadline passed first."""

    code = 4
    code_name = "DEADLINE_EXCEEDED"


class NotFound(AclserveError):
    """No such thing, or not the caller's."""

    code = 5
    code_name = "NOT_FOUND"


class AlreadyExists(AclserveError):
    """There is one of that name already."""

    code = 6
    code_name = "ALREADY_EXISTS"


class PermissionDenied(AclserveError):
    """The caller is known and may not."""

    code = 7
    code_name = "PERMISSION_DENIED"


class ResourceExhausted(AclserveError):
    """A queue, a quota or a memory is full."""

    code = 8
    code_name = "RESOURCE_EXHAUSTED"


class FailedPrecondition(AclserveError):
    """Right in itself, but not in this state."""

    code = 9
    code_name = "FAILED_PRECONDITION"


class OutOfRange(AclserveError):
    """Past the end."""

    code = 11
    code_name = "OUT_OF_RANGE"


class Unimplemented(AclserveError):
    """This device, CANN or server cannot do it."""

    code = 12
    code_name = "UNIMPLEMENTED"


class Internal(AclserveError):
    """A bug of the server, or the runtime's own fault."""

    code = 13
    code_name = "INTERNAL"


class Unavailable(AclserveError):
    """The server or its device is going away; another attempt may succeed."""

    code = 14
    code_name = "UNAVAILABLE"


class DataLoss(AclserveError):
    """The bytes that arrived are not those that were sent."""

    code = 15
    code_name = "DATA_LOSS"


class Unauthenticated(AclserveError):
    """No lease, or no credentials."""

    code = 16
    code_name = "UNAUTHENTICATED"


_CLASSES: Mapping[int, type[AclserveError]] = {cls.code: cls for cls in AclserveError.__subclasses__()}


def error_class(code: int) -> type[AclserveError]:
    """The class of a canonical status code; a code outside the taxonomy is an `AclserveError` itself."""
    return _CLASSES.get(code, AclserveError)
