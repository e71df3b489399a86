"""Failed device tasks as AscendCL tells of them: a second way, besides `Stream.synchronize`, to learn of a failure."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from aclserve_server.acl.library import Library
from aclserve_server.acl.types import ExceptionInfo, aclrtExceptionInfoCallback
from aclserve_server.device.owned import Owned

_log = logging.getLogger(__name__)

_KEPT = 1024


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """One failed task. `code` is 0 where this CANN does not tell it (before 6.2)."""

    device_id: int
    stream_id: int
    task_id: int
    thread_id: int
    code: int


class ExceptionWatch(Owned):
    """Collects failed tasks of the whole process; AscendCL knows one watch at a time, the last one opened.

    AscendCL calls from a thread of its own. The newest 1024 failures are kept until `take`.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._failures: deque[TaskFailure] = deque(maxlen=_KEPT)
        self._function = aclrtExceptionInfoCallback(self._note)
        library.aclrtSetExceptionInfoCallback(self._function)
        super().__init__("exception watch")

    def take(self) -> list[TaskFailure]:
        """The failures since the last call, oldest first. Any thread."""
        taken = []
        while self._failures:
            taken.append(self._failures.popleft())
        return taken

    def _note(self, info: ExceptionInfo) -> None:
        """Runs inside AscendCL; the information is valid only here."""
        try:
            library = self._library
            code = 0
            if library.has("aclrtGetErrorCodeFromExceptionInfo"):
                code = library.aclrtGetErrorCodeFromExceptionInfo(info)
            self._failures.append(
                TaskFailure(
                    device_id=library.aclrtGetDeviceIdFromExceptionInfo(info),
                    stream_id=library.aclrtGetStreamIdFromExceptionInfo(info),
                    task_id=library.aclrtGetTaskIdFromExceptionInfo(info),
                    thread_id=library.aclrtGetThreadIdFromExceptionInfo(info),
                    code=code,
                )
            )
        except Exception:  # must not pass through AscendCL
            _log.exception("a failed task could not be noted")

    def _release(self) -> None:
        self._library.aclrtSetExceptionInfoCallback(aclrtExceptionInfoCallback())
