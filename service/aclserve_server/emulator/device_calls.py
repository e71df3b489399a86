"""Devices and contexts."""

from __future__ import annotations

from typing import Any

from aclserve_server.acl.types import aclrtDevAttr, aclrtDevFeatureType
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, check_timeout, need, refuse, unsupported
from aclserve_server.emulator.entities import Context, Device
from aclserve_server.emulator.faults import Failure


class DeviceCalls(Calls):
    """acl/acl_rt.h: aclrtSetDevice to aclrtSynchronizeDevice, contexts, peers, device facts."""

    def aclrtSetDevice(self, number: int) -> None:
        device = self.runtime.device(number)
        with self.runtime.lock:
            self.runtime.set_device(number)
            device.references += 1
            device.forced = False

    def aclrtResetDevice(self, number: int) -> None:
        device = self.runtime.device(number)
        with self.runtime.lock:
            if device.references == 0 or device.forced:
                raise Failure(status.RT_CONTEXT_RELEASED, f"device {number} is not set in this process")
            device.references -= 1
            last = device.references == 0
        if last:
            self.runtime.end_device(device, wait=True)

    def aclrtResetDeviceForce(self, number: int) -> None:
        device = self.runtime.device(number)
        with self.runtime.lock:
            if device.references == 0:
                raise Failure(status.RT_CONTEXT_RELEASED, f"device {number} is not set in this process")
        self.runtime.end_device(device, wait=True)
        device.forced = True

    def aclrtGetDevice(self, number: Any) -> None:
        need(number, "deviceId")
        number[0] = self.runtime.current().device.number

    def aclrtGetDeviceCount(self, count: Any) -> None:
        need(count, "count")
        if not self.config.device_count:
            raise Failure(status.RT_NO_DEVICE, "no usable device")
        count[0] = self.config.device_count

    def aclrtGetRunMode(self, mode: Any) -> None:
        need(mode, "runMode")
        mode[0] = 0 if self.config.unified else 1

    def aclrtSynchronizeDevice(self) -> None:
        self.runtime.synchronize_device(self.runtime.current().device)

    def aclrtSynchronizeDeviceWithTimeout(self, timeout_ms: int) -> None:
        check_timeout(timeout_ms, zero_allowed=True)
        self.runtime.synchronize_device(self.runtime.current().device, timeout_ms)

    def aclrtSetTsDevice(self, scheduler: int) -> None:
        if scheduler not in (0, 1):
            raise refuse(f"task scheduler {scheduler} does not exist")

    def aclrtGetDeviceUtilizationRate(self, number: int, info: Any) -> None:
        self.runtime.device(number)
        need(info, "utilizationInfo")
        if info.contents.utilizationExtend:
            raise refuse("utilizationExtend must be NULL")
        busy = any(s.tasks for s in list(self.runtime.streams) if s.context.device.number == number)
        rate = 100 if busy else 0
        info.contents.cubeUtilization = info.contents.vectorUtilization = rate
        info.contents.aicpuUtilization, info.contents.memoryUtilization = 0, -1

    def aclrtQueryDeviceStatus(self, number: int, state: Any) -> None:
        self.runtime.device(number)
        need(state, "deviceStatus")
        state[0] = 0

    def aclrtGetDeviceInfo(self, number: int, attribute: int, value: Any) -> None:
        need(value, "value")
        self.runtime.device(number)
        known = {
            aclrtDevAttr.ACL_DEV_ATTR_AICPU_CORE_NUM: 1,
            aclrtDevAttr.ACL_DEV_ATTR_AICORE_CORE_NUM: 8,
            aclrtDevAttr.ACL_DEV_ATTR_CUBE_CORE_NUM: 8,
            aclrtDevAttr.ACL_DEV_ATTR_VECTOR_CORE_NUM: 8,
            aclrtDevAttr.ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE: self.config.memory_bytes,
            aclrtDevAttr.ACL_DEV_ATTR_PHY_CHIP_ID: number,
            aclrtDevAttr.ACL_DEV_ATTR_IS_VIRTUAL: 1,
        }
        if attribute not in list(aclrtDevAttr):
            raise refuse(f"device attribute {attribute} is not known")
        if attribute not in known:
            raise unsupported(f"device attribute {aclrtDevAttr(attribute).name}")
        value[0] = known[aclrtDevAttr(attribute)]

    def aclrtGetDeviceCapability(self, number: int, feature: int, value: Any) -> None:
        need(value, "value")
        self.runtime.device(number)
        if feature not in list(aclrtDevFeatureType):
            raise refuse(f"device feature {feature} is not known")
        value[0] = 0

    def aclrtDeviceGetStreamPriorityRange(self, least: Any, greatest: Any) -> None:
        self.runtime.current()
        need(least, "leastPriority")
        need(greatest, "greatestPriority")
        least[0], greatest[0] = 7, 0

    # ---- contexts

    def aclrtCreateContext(self, context: Any, number: int) -> None:
        need(context, "context")
        device = self.runtime.device(number)
        with self.runtime.lock:
            made = self.runtime.new_context(device, explicit=True)
            self.machine.threads.state().context = made
        context[0] = made.handle

    def aclrtDestroyContext(self, handle: int | None) -> None:
        need(handle, "context")
        context = self.machine.handles.get(handle, Context)
        if context is None or not context.explicit:
            raise Failure(status.RT_CONTEXT_NULL, "not a live context made by aclrtCreateContext")
        self.runtime.end_context(context)
        state = self.machine.threads.state()
        if state.context is context:
            state.context = None

    def aclrtSetCurrentContext(self, handle: int | None) -> None:
        need(handle, "context")
        context = self.machine.handles.get(handle, Context)
        if context is None:
            if self.config.release >= (9, 1):
                raise Failure(status.RT_CONTEXT_NULL, f"{handle or 0:#x} is not a live context")
            context = Context(Device(-1), explicit=True, live=False)
        self.machine.threads.state().context = context

    def aclrtGetCurrentContext(self, context: Any) -> None:
        need(context, "context")
        context[0] = self.runtime.current().handle

    def aclrtCtxGetCurrentDefaultStream(self, stream: Any) -> None:
        need(stream, "stream")
        stream[0] = self.runtime.default_stream(self.runtime.current()).handle

    def aclrtGetPrimaryCtxState(self, number: int, flags: Any, active: Any) -> None:
        device = self.runtime.device(number)
        if flags:
            flags[0] = 0
        if active:
            active[0] = int(device.primary is not None)

    # ---- peers

    def aclrtDeviceCanAccessPeer(self, can: Any, number: int, peer: int) -> None:
        need(can, "canAccessPeer")
        self._pair(number, peer)
        can[0] = 1

    def aclrtDeviceEnablePeerAccess(self, peer: int, flags: int) -> None:
        device = self.runtime.current().device
        self._pair(device.number, peer)
        if flags:
            raise refuse(f"flags are {flags}, expected 0")
        device.peers.add(peer)

    def aclrtDeviceDisablePeerAccess(self, peer: int) -> None:
        device = self.runtime.current().device
        self._pair(device.number, peer)
        device.peers.discard(peer)

    def aclrtDevicePeerAccessStatus(self, number: int, peer: int, state: Any) -> None:
        need(state, "status")
        device = self._pair(number, peer)
        state[0] = int(peer in device.peers)

    def _pair(self, number: int, peer: int) -> Device:
        device = self.runtime.device(number)
        self.runtime.device(peer)
        if number == peer:
            raise refuse("a device is no peer of itself")
        return device

    # ---- time limits of operators, faults of the chip

    def aclrtSetOpWaitTimeout(self, seconds: int) -> None:
        self.runtime.current()

    def aclrtSetOpExecuteTimeOut(self, seconds: int) -> None:
        self.runtime.current()

    def aclrtDeviceTaskAbort(self, number: int, timeout_ms: int) -> None:
        device = self.runtime.device(number)
        check_timeout(timeout_ms, zero_allowed=True)
        for stream in [s for s in list(self.runtime.streams) if s.context.device is device]:
            self.runtime.abort(stream)

    def aclrtGetMemUceInfo(self, number: int, entries: Any, size: int, count: Any) -> None:
        self.runtime.device(number)
        need(entries, "memUceInfoArray")
        need(count, "retSize")
        count[0] = 0

    def aclrtMemUceRepair(self, number: int, entries: Any, size: int) -> None:
        raise unsupported("aclrtMemUceRepair")

    def aclrtGetErrorVerbose(self, number: int, info: Any) -> None:
        self.runtime.device(number)
        need(info, "errorInfo")
        info.contents.tryRepair = info.contents.hasDetail = 0
        info.contents.errorType = 0

    def aclrtRepairError(self, number: int, info: Any) -> None:
        raise unsupported("aclrtRepairError")
