"""What the emulated device has done, for assertions on counts instead of on time."""

from __future__ import annotations

import threading
from collections import Counter

COPY_KINDS = ("host_to_host", "host_to_device", "device_to_host", "device_to_device")


class Counters:
    """Counts since the start or the last `reset`. Any thread may read; a read is no snapshot of all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards every count
        self.calls: Counter[str] = Counter()
        self.copied_bytes: dict[str, int] = dict.fromkeys(COPY_KINDS, 0)
        self.copies: dict[str, int] = dict.fromkeys(COPY_KINDS, 0)
        self.executions = 0
        self.executed_rows = 0
        self.rows_per_execution: Counter[int] = Counter()
        self.failed_tasks = 0
        self.bindings_made = 0

    def count_call(self, function: str) -> None:
        """One call of a function, whatever it returns."""
        with self._lock:
            self.calls[function] += 1

    def count_copy(self, kind: str, length: int) -> None:
        """One copy of `length` bytes that was carried out."""
        with self._lock:
            self.copied_bytes[kind] += length
            self.copies[kind] += 1

    def count_execution(self, rows: int) -> None:
        """One execution that ran to its end."""
        with self._lock:
            self.executions += 1
            self.executed_rows += rows
            self.rows_per_execution[rows] += 1

    def count_failed_task(self) -> None:
        """One task that failed on the device."""
        with self._lock:
            self.failed_tasks += 1

    def count_binding(self) -> None:
        """One new binding of a model to a set of buffers."""
        with self._lock:
            self.bindings_made += 1

    def reset(self) -> None:
        """All counts to zero."""
        with self._lock:
            self.calls.clear()
            self.copied_bytes.update(dict.fromkeys(COPY_KINDS, 0))
            self.copies.update(dict.fromkeys(COPY_KINDS, 0))
            self.executions = self.executed_rows = self.failed_tasks = self.bindings_made = 0
            self.rows_per_execution.clear()
