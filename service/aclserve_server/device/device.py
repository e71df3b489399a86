"""One device, opened: the parent of everything that lives on it."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from ctypes import byref, c_size_t, c_void_p
from mmap import mmap
from typing import cast

from aclserve.errors import NotFound, Unimplemented
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.acl.types import (
    Context,
    DevicePtr,
    aclrtMemAttr,
    aclrtMemMallocPolicy,
    aclrtUtilizationInfo,
)
from aclserve_server.device.buffers import Buffer, check_byte, copy_kind
from aclserve_server.device.loading import Judge, ModelMemory, ModelSource, no_objection, placed, query_size
from aclserve_server.device.loss import Loss
from aclserve_server.device.model import Model
from aclserve_server.device.owned import Children, Owned
from aclserve_server.device.registration import Registration
from aclserve_server.device.runtime import RunMode, Runtime
from aclserve_server.device.streams import Event, Stream

_log = logging.getLogger(__name__)

_UNKNOWN_ATTRIBUTE = 107016
_NOT_SUPPORTED = frozenset({200001, 200006, 207000})


class Device(Owned):
    """A device in use by this process, through its default context.

    Every thread that makes further calls binds itself first with `bind_thread`. `close` may come from any thread; it
    closes what is left in the order report threads, models, memory, registrations, events, streams.
    """

    def __init__(self, runtime: Runtime, device_id: int, context: Context, soc_name: str) -> None:
        super().__init__(f"device {device_id}")
        self.runtime = runtime
        self.id = device_id
        self.soc_name = soc_name
        self.children = Children("report", "model", "buffer", "registration", "event", "stream")
        self.loss = Loss()
        self._context = context
        runtime.children.add("device", self)

    @classmethod
    def open(cls, runtime: Runtime, device_id: int) -> Device:
        """Open device `device_id` and bind the calling thread. The first time in a process takes seconds on an NPU.

        Raises `NotFound`, reason DEVICE_NOT_FOUND, for an id that does not exist, and `AclError`.
        """
        count = runtime.device_count()
        if not 0 <= device_id < count:
            raise NotFound(
                f"there is no device {device_id}; this process may use {count} devices, counted from 0",
                reason="DEVICE_NOT_FOUND",
            )
        library = runtime.library
        with ExitStack() as stack:
            library.aclrtSetDevice(device_id)
            stack.callback(library.aclrtResetDevice, device_id)
            context = Context()
            library.aclrtGetCurrentContext(byref(context))
            device = cls(runtime, device_id, context, runtime.soc_name())
            stack.pop_all()
            return device

    @property
    def library(self) -> Library:
        """The library behind it."""
        return self.runtime.library

    @property
    def run_mode(self) -> RunMode:
        """ "device" where host and device share one memory, "host" where they do not."""
        return self.runtime.run_mode

    def bind_thread(self) -> None:
        """Make this device's context current in the calling thread."""
        self._require_open()
        self.library.aclrtSetCurrentContext(self._context)

    def memory_info(self, attribute: aclrtMemAttr) -> tuple[int, int]:
        """(free, total) bytes of one kind of memory; (0, 0) for a kind that this chip does not have.

        Raises `Unimplemented`, reason MEMORY_ATTRIBUTE_UNSUPPORTED, for a kind that this CANN does not know.
        """
        self._require_open()
        free, total = c_size_t(), c_size_t()
        try:
            self.library.aclrtGetMemInfo(attribute, byref(free), byref(total))
        except AclError as error:
            if error.code != _UNKNOWN_ATTRIBUTE:
                raise
            raise Unimplemented(
                f"this CANN does not know the memory attribute {attribute.name}", reason="MEMORY_ATTRIBUTE_UNSUPPORTED"
            ) from error
        return free.value, total.value

    def utilization(self) -> int | None:
        """How busy the AI cores are, in percent; None where the device cannot tell."""
        self._require_open()
        if not self.library.has("aclrtGetDeviceUtilizationRate"):
            return None
        info = aclrtUtilizationInfo()
        try:
            self.library.aclrtGetDeviceUtilizationRate(self.id, byref(info))
        except AclError as error:
            if error.code in _NOT_SUPPORTED:
                return None
            raise
        percent = cast(int, info.cubeUtilization)
        return None if percent < 0 else percent

    def create_stream(self) -> Stream:
        """A new stream."""
        self._require_open()
        return Stream.create(self)

    def create_event(self) -> Event:
        """A new event."""
        self._require_open()
        return Event.create(self)

    def allocate(
        self, size_bytes: int, policy: aclrtMemMallocPolicy = aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST
    ) -> Buffer:
        """Device memory of at least one byte."""
        self._require_open()
        return Buffer.on_device(self, size_bytes, policy)

    def allocate_host(self, size_bytes: int) -> Buffer:
        """Pinned host memory of at least one byte."""
        self._require_open()
        return Buffer.on_host(self, size_bytes)

    def register(self, memory: mmap) -> Registration:
        """Makes mapped host memory of this process known to the device, until the result is closed."""
        self._require_open()
        return Registration.create(self, memory)

    def adopt(self, address: int, size_bytes: int) -> Buffer:
        """Own device memory that AscendCL allocated, as `Dataset.take` hands it over."""
        self._require_open()
        return Buffer(self, "device", address, size_bytes, None)

    def set_memory(self, buffer: Buffer, offset: int, length: int, value: int) -> None:
        """Set `length` bytes from `offset` to the byte `value` and wait; 0 bytes are nothing."""
        self._require_open()
        check_byte(value)
        buffer.check_range(offset, length)
        address = buffer.address
        if length:
            self.library.aclrtMemset(DevicePtr(address + offset), buffer.size_bytes - offset, value, length)

    def copy(self, dst: Buffer, dst_offset: int, src: Buffer, src_offset: int, length: int) -> None:
        """Copy `length` bytes between any two buffers and wait; 0 bytes are nothing. Ranges must not overlap."""
        self._require_open()
        src.check_range(src_offset, length)
        dst.check_range(dst_offset, length)
        to, frm = dst.address, src.address
        if length:
            self.library.aclrtMemcpy(
                c_void_p(to + dst_offset),
                dst.size_bytes - dst_offset,
                c_void_p(frm + src_offset),
                length,
                copy_kind(dst, src),
            )

    def load_model(self, source: ModelSource, memory: ModelMemory | None = None, judge: Judge = no_objection) -> Model:
        """Load a model from a file or from bytes, in AscendCL's memory or the caller's, and read its description.

        `judge(work, weight)` is called before the load with the bytes it needs, 0 where unknown; what it raises, comes.
        Raises `InvalidArgument` for memory that does not fit (MODEL_MEMORY_INVALID), `Unimplemented` for tensors that
        cannot be served, and `AclError`; nothing is left behind then.
        """
        self._require_open()
        return Model.load(self, source, memory or ModelMemory(), judge)

    def query_model_size(self, source: ModelSource) -> tuple[int, int]:
        """(work, weight) bytes that a model needs; `AclError` where AscendCL cannot tell (models of unknown shape)."""
        self._require_open()
        with placed(self, source) as image:
            return query_size(self, image)

    def _release(self) -> None:
        self.runtime.children.discard("device", self)
        self.library.aclrtSetCurrentContext(self._context)
        with ExitStack() as stack:
            stack.callback(self.library.aclrtResetDevice, self.id)
            stack.callback(self.children.close)
            for stream in self.children.of("stream"):
                assert isinstance(stream, Stream)
                self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        """Wait for a stream's last tasks; what failed there concerns nobody any more, but is told."""
        try:
            stream.synchronize()
        except AclError as error:
            _log.warning("a task of a stream that is being closed had failed: %s", error)
