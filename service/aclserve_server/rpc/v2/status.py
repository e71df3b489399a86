"""The status codes that clients of this protocol know: Triton's, which are fewer than those of the native API.

The reason and the details of an error stay as they are; only the code differs.
"""

from __future__ import annotations

from collections.abc import Mapping

from aclserve.errors import (
    AclserveError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)

_BY_REASON: Mapping[str, int] = {
    "BUFFER_TOO_SMALL": Internal.code,
    "MODEL_CONFIG_INVALID": InvalidArgument.code,
    "REGION_TOO_SMALL": Internal.code,
    "SHARED_MEMORY_OFF": Unimplemented.code,
}
"""An output larger than its room is INTERNAL in Triton; what is switched off is UNIMPLEMENTED."""

_BY_CATEGORY: Mapping[type[AclserveError], int] = {
    DeadlineExceeded: Unavailable.code,
    FailedPrecondition: Unavailable.code,
    OutOfRange: InvalidArgument.code,
    ResourceExhausted: Unavailable.code,
}
"""A full queue and an item that waited too long are UNAVAILABLE; all others keep their own code."""


def code_of(error: AclserveError) -> int:
    """The gRPC status code of an error on this surface."""
    found = _BY_REASON.get(error.reason)
    return _BY_CATEGORY.get(type(error), error.code) if found is None else found
