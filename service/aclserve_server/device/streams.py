"""Streams, the ordered queues of device tasks, and events, the markers between them."""

from __future__ import annotations

from ctypes import byref, c_float, c_int32, c_uint32, c_void_p
from typing import TYPE_CHECKING

from aclserve.errors import InvalidArgument, Unimplemented
from aclserve_server.acl import types
from aclserve_server.device.buffers import Buffer, check_byte, copy_kind
from aclserve_server.device.owned import Owned

if TYPE_CHECKING:
    from aclserve_server.device.device import Device


ALIGNMENT = 64
"""Both ends of an asynchronous copy start at multiples of this many bytes."""


class Stream(Owned):
    """An ordered queue of device tasks. Submission returns at once; a task's failure shows at the next `synchronize`.

    Close it only when nothing else uses it; closing waits for the tasks that are left.
    """

    def __init__(self, device: Device, handle: types.Stream) -> None:
        super().__init__("stream")
        self.device = device
        self._handle = handle
        device.children.add("stream", self)

    @classmethod
    def create(cls, device: Device) -> Stream:
        """A new stream in the device's context."""
        handle = types.Stream()
        device.library.aclrtCreateStream(byref(handle))
        return cls(device, handle)

    @property
    def handle(self) -> types.Stream:
        """AscendCL's handle, borrowed."""
        self._require_open()
        return self._handle

    def query_id(self) -> int:
        """The id that failed tasks name (`ExceptionWatch`; CANN 8.1 and later)."""
        stream_id = c_int32()
        self.device.library.aclrtStreamGetId(self.handle, byref(stream_id))
        return stream_id.value

    def synchronize(self, timeout_ms: int = -1) -> None:
        """Block until all tasks are past. Raises `AclError` with the device's code when one failed.

        A timeout (milliseconds, -1 waits for ever) ends the wait with code 507046; the work goes on.
        """
        if timeout_ms == -1:
            self.device.library.aclrtSynchronizeStream(self.handle)
        elif timeout_ms > 0:
            self.device.library.aclrtSynchronizeStreamWithTimeout(self.handle, timeout_ms)
        else:
            raise _bad_timeout(timeout_ms)

    def query(self) -> bool:
        """Whether all submitted tasks are past (CANN 7.0 and later)."""
        status = c_uint32()
        self.device.library.aclrtStreamQuery(self.handle, byref(status))
        return status.value == types.aclrtStreamStatus.ACL_STREAM_STATUS_COMPLETE

    def copy(self, dst: Buffer, dst_offset: int, src: Buffer, src_offset: int, length: int) -> None:
        """Submit a copy of `length` bytes; both buffers stay as they are until it is past. 0 bytes submit nothing.

        Raises `OutOfRange` for ranges outside the buffers; `InvalidArgument`, reason COPY_UNALIGNED, for offsets that
        are not multiples of 64 (CANN up to 8.1 demands it); `Unimplemented` for host to host in run mode "host".
        """
        src.check_range(src_offset, length)
        dst.check_range(dst_offset, length)
        if length == 0:
            self._require_open()
            return
        if (dst_offset | src_offset) % ALIGNMENT:
            raise InvalidArgument(
                f"an asynchronous copy from offset {src_offset} to {dst_offset} is not aligned to {ALIGNMENT} bytes",
                reason="COPY_UNALIGNED",
            )
        kind = copy_kind(dst, src)
        if kind == types.aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_HOST and self.device.run_mode == "host":
            raise Unimplemented(
                "AscendCL has no asynchronous host-to-host copy; copy synchronously", reason="ASYNC_HOST_TO_HOST"
            )
        self.device.library.aclrtMemcpyAsync(
            c_void_p(dst.address + dst_offset),
            dst.size_bytes - dst_offset,
            c_void_p(src.address + src_offset),
            length,
            kind,
            self.handle,
        )

    def set_memory(self, buffer: Buffer, offset: int, length: int, value: int) -> None:
        """Submit setting `length` bytes from `offset` to the byte `value`. 0 bytes submit nothing."""
        check_byte(value)
        buffer.check_range(offset, length)
        handle, address = self.handle, buffer.address
        if length:
            room = buffer.size_bytes - offset
            self.device.library.aclrtMemsetAsync(types.DevicePtr(address + offset), room, value, length, handle)

    def wait(self, event: Event) -> None:
        """Make later tasks of this stream wait until the event's latest record is reached."""
        self.device.library.aclrtStreamWaitEvent(self.handle, event.handle)

    def _release(self) -> None:
        self.device.children.discard("stream", self)
        self.device.library.aclrtDestroyStream(self._handle)


class Event(Owned):
    """A marker recorded in a stream, for waits between streams and for time."""

    def __init__(self, device: Device, handle: types.Event) -> None:
        super().__init__("event")
        self.device = device
        self._handle = handle
        device.children.add("event", self)

    @classmethod
    def create(cls, device: Device) -> Event:
        """A new event that can be recorded, waited for and timed."""
        handle = types.Event()
        device.library.aclrtCreateEvent(byref(handle))
        return cls(device, handle)

    @property
    def handle(self) -> types.Event:
        """AscendCL's handle, borrowed."""
        self._require_open()
        return self._handle

    def record(self, stream: Stream) -> None:
        """Submit the marker; recording again moves it."""
        self.device.library.aclrtRecordEvent(self.handle, stream.handle)

    def synchronize(self, timeout_ms: int = -1) -> None:
        """Block until the latest record is reached; a timeout (milliseconds, -1 waits for ever) is code 507047."""
        if timeout_ms == -1:
            self.device.library.aclrtSynchronizeEvent(self.handle)
        elif timeout_ms > 0:
            self.device.library.aclrtSynchronizeEventWithTimeout(self.handle, timeout_ms)
        else:
            raise _bad_timeout(timeout_ms)

    def query(self) -> bool:
        """Whether the latest record is reached."""
        status = c_uint32()
        self.device.library.aclrtQueryEventStatus(self.handle, byref(status))
        return status.value == types.aclrtEventRecordedStatus.ACL_EVENT_RECORDED_STATUS_COMPLETE

    def elapsed_ms(self, start: Event) -> float:
        """Milliseconds from `start` to this event, both recorded and reached."""
        milliseconds = c_float()
        self.device.library.aclrtEventElapsedTime(byref(milliseconds), start.handle, self.handle)
        return milliseconds.value

    def _release(self) -> None:
        self.device.children.discard("event", self)
        self.device.library.aclrtDestroyEvent(self._handle)


def _bad_timeout(timeout_ms: int) -> InvalidArgument:
    return InvalidArgument(
        f"a timeout of {timeout_ms} ms cannot be waited for; give -1 (for ever) or more than 0",
        reason="TIMEOUT_INVALID",
    )
