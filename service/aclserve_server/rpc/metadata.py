"""What calls carry beside their messages."""

from __future__ import annotations

from typing import Any

import grpc.aio

LEASE_KEY = "aclserve-lease"
"""The metadata key of the lease's id."""


def lease_id_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The lease that a call shows; "" when it shows none."""
    for key, value in context.invocation_metadata() or ():
        if key == LEASE_KEY:
            return value if isinstance(value, str) else ""
    return ""
