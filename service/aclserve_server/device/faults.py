"""What a failed AscendCL call means to whoever asked: `AclError` -> the taxonomy of `aclserve.errors`.

The message holds the meaning of the code, never the runtime's own text, which may name paths and addresses.
"""

from __future__ import annotations

from collections.abc import Mapping

from aclserve.errors import (
    AclserveError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from aclserve_server.acl.codes import Category, lookup
from aclserve_server.acl.errors import AclError, Unsupported

RESOURCE_RETRY_S = 1.0
BUSY_RETRY_S = 0.1
LOST_RETRY_S = 5.0

_LOADING = ("aclmdlLoad", "aclmdlQuerySize", "aclmdlGetDescFrom")
_OUT_OF_MEMORY = frozenset({200000, 207001, 207018, 245000, 245002})
_NOT_SUPPORTED = frozenset({200001, 200006, 200007, 207000, 207019, 207021})
_MODEL_INVALID = frozenset({100003, 100005, *range(100012, 100017)})
_NOT_INITIALISED = 145001
_NOT_EXHAUSTED = frozenset(
    {200002, 200003, 200004, 200005, 207002, 207003, 207004, 207006, 207016, 207017, 245001, 300000}
)
"""Of the class resource, but nothing that others give back: waiting does not help."""
_NOT_ACCEPTED = frozenset({107019, 107022, 207014, 507002, 545602})
"""The submission was refused for the moment: a full queue, an abort or a redeployment under way. Nothing has begun."""


def is_device_fatal(error: AclError) -> bool:
    """Whether the device is lost for this process: only a restart helps."""
    return error.category is Category.DEVICE_FATAL


def is_not_accepted(error: BaseException | None) -> bool:
    """Whether a call was refused for the moment and had no effect, so that it may be made again."""
    return isinstance(error, AclError) and error.code in _NOT_ACCEPTED


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a call failed for want of memory."""
    return isinstance(error, AclError) and error.code in _OUT_OF_MEMORY


def classify(error: AclError) -> AclserveError:
    """The error to raise or answer with. `metadata` names the call, the code and its name, and may hint what to do."""
    metadata: dict[str, object] = {"acl_call": error.call, "acl_code": error.code, "acl_name": error.name}
    hint = lookup(error.code).action
    if hint:
        metadata["acl_hint"] = hint
    if isinstance(error, Unsupported):
        return Unimplemented(
            f"the installed CANN has no {error.call}", reason="ACL_FUNCTION_MISSING", metadata=metadata
        )
    if _blames_model(error):
        return InvalidArgument(
            f"the model cannot be loaded: {_sentence(error)}", reason="MODEL_INVALID", metadata=metadata
        )
    if error.code in _NOT_SUPPORTED:
        return Unimplemented(
            f"the device cannot do this: {_sentence(error)}", reason="DEVICE_UNSUPPORTED", metadata=metadata
        )
    return _by_category(error, metadata)


def _by_category(error: AclError, metadata: Mapping[str, object]) -> AclserveError:
    match error.category:
        case Category.RESOURCE if error.code in _OUT_OF_MEMORY:
            return ResourceExhausted(
                f"out of memory: {_sentence(error)}",
                reason="DEVICE_OUT_OF_MEMORY",
                metadata=metadata,
                retry_delay=RESOURCE_RETRY_S,
            )
        case Category.RESOURCE if error.code not in _NOT_EXHAUSTED:
            return ResourceExhausted(
                f"a resource of the device is used up: {_sentence(error)}",
                reason="DEVICE_RESOURCE_EXHAUSTED",
                metadata=metadata,
                retry_delay=RESOURCE_RETRY_S,
            )
        case Category.TRANSIENT:
            return Unavailable(
                f"the device is busy: {_sentence(error)}",
                reason="DEVICE_BUSY",
                metadata=metadata,
                retry_delay=BUSY_RETRY_S,
            )
        case Category.DEVICE_FATAL:
            return Unavailable(
                f"the device failed: {_sentence(error)}; the server is being replaced, try again",
                reason="DEVICE_LOST",
                metadata=metadata,
                retry_delay=LOST_RETRY_S,
            )
        case _:
            return Internal(
                f"a call to the device failed: {_sentence(error)}", reason="DEVICE_ERROR", metadata=metadata
            )


def _blames_model(error: AclError) -> bool:
    """Whether a load failed because of the model: its path, its format, its content."""
    if not error.call.startswith(_LOADING) or error.category not in (Category.USAGE, Category.INTERNAL):
        return False
    graph_engine = 145000 <= error.code < 146000 or 545000 <= error.code < 546000
    return error.code in _MODEL_INVALID or (graph_engine and error.code != _NOT_INITIALISED)


def _sentence(error: AclError) -> str:
    return error.meaning.rstrip(".")
