"""What the runtime keeps per thread: the current context, the last error, the pending error text."""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_int, c_uint, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from aclserve_server.emulator.entities import Context


@dataclass(slots=True)
class ThreadState:
    """One calling thread. Only that thread reads and writes it."""

    mark: int
    context: Context | None = None
    last_error: int = 0
    error_text: str = ""
    error_buffer: ctypes.Array[ctypes.c_char] | None = None  # what the last aclGetRecentErrMsg pointed to


class Threads:
    """The states of all threads that have called, by the operating system's thread.

    A thread made by C has a new Python thread object in every call, so Python's thread-locals forget it; a mark in
    the C library's own thread storage tells such a thread from a new one with the same id.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self._get = libc.pthread_getspecific
        self._get.restype = c_void_p
        self._get.argtypes = (c_uint,)
        self._set = libc.pthread_setspecific
        self._set.argtypes = (c_uint, c_void_p)
        self._delete = libc.pthread_key_delete
        self._delete.argtypes = (c_uint,)
        key = c_uint()
        libc.pthread_key_create.argtypes = (c_void_p, c_void_p)
        libc.pthread_key_create.restype = c_int
        if libc.pthread_key_create(ctypes.addressof(key), None):
            raise OSError("no thread storage key left")
        self._key = key.value
        self._fast = threading.local()
        self._lock = threading.Lock()  # guards the two fields below
        self._states: dict[int, ThreadState] = {}
        self._next_mark = 1

    def state(self) -> ThreadState:
        """The calling thread's state, made at its first call."""
        state = getattr(self._fast, "state", None)
        if state is None:
            state = self._find_or_make()
            self._fast.state = state
        return cast(ThreadState, state)

    def close(self) -> None:
        """Give the thread storage key back. No state may be asked for afterwards."""
        self._delete(self._key)

    def _find_or_make(self) -> ThreadState:
        ident = threading.get_ident()
        mark = self._get(self._key)
        with self._lock:
            known = self._states.get(ident)
            if known is not None and known.mark == mark:
                return known
            state = ThreadState(self._next_mark)
            self._next_mark += 1
            self._states[ident] = state
        self._set(self._key, state.mark)
        return state
