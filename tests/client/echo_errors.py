"""Errors on the wire, as the server sends them."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from aclserve import errors

CODES = {code.value[0]: code for code in grpc.StatusCode}


def details_of(error, domain=errors.DOMAIN):
    """The bytes of grpc-status-details-bin for an error."""
    info = ErrorInfo(reason=error.reason, domain=domain, metadata=error.metadata)
    details = [Any(), Any()][: 1 if error.retry_delay is None else 2]
    details[0].Pack(info)
    if error.retry_delay is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_delay * 1e9))
        details[1].Pack(RetryInfo(retry_delay=delay))
    return Status(code=error.code, message=error.message, details=details).SerializeToString()


def abort(context, error):
    context.set_trailing_metadata((("grpc-status-details-bin", details_of(error)),))
    context.abort(CODES[error.code], error.message)
