"""One table of AscendCL's C functions: result, arguments, how a call is judged, and the first CANN that has it.

The only place that knows argument types. The driver binds the table to a shared library (`library.py`); the emulator makes
a C function from every row (`emulator/library.py`). ``const char*`` results are addresses of memory the library owns.
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import (
    POINTER,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from enum import Enum
from typing import Any

from aclserve_server.acl.types import (
    AippParams,
    ConfigHandle,
    Context,
    DataBuffer,
    Dataset,
    DevicePtr,
    Event,
    ExceptionInfo,
    ExecConfigHandle,
    ModelDesc,
    Stream,
    TensorDesc,
    aclAippInfo,
    aclCANNPackageVersion,
    aclError,
    aclFinalizeCallbackFunc,
    aclFloat16,
    aclInitCallbackFunc,
    aclmdlAttrValue_t,
    aclmdlBatch,
    aclmdlHW,
    aclmdlIODims,
    aclmdlIODimsRange,
    aclrtCallback,
    aclrtErrorInfo,
    aclrtExceptionInfoCallback,
    aclrtHostFunc,
    aclrtMallocConfig,
    aclrtMemUceInfo,
    aclrtMemUsageInfo,
    aclrtPtrAttributes,
    aclrtUtilizationInfo,
)


class Check(Enum):
    """How the result of a call tells failure."""

    STATUS = "status"  # aclError, 0 is success
    HANDLE = "handle"  # a new object, NULL is failure
    VALUE = "value"  # a plain value; this call cannot report failure
    UNCHECKED = "unchecked"  # deliberately not judged: a status that tells of an earlier call
    TEXT = "text"  # const char*, library-owned, may be NULL
    VOID = "void"  # nothing to judge


@dataclass(frozen=True, slots=True)
class Prototype:
    """One C function: result type, argument types, judgement, first CANN release seen with it ("5.0" = 5.0 or older)."""

    result: Any
    arguments: tuple[Any, ...]
    check: Check
    since: str
    variadic: bool = False


PROTOTYPES: Mapping[str, Prototype] = {
    # ---- acl/acl_base_rt.h
    # float aclFloat16ToFloat(aclFloat16 value)
    "aclFloat16ToFloat": Prototype(c_float, (aclFloat16,), Check.VALUE, "5.0"),
    # aclFloat16 aclFloatToFloat16(float value)
    "aclFloatToFloat16": Prototype(aclFloat16, (c_float,), Check.VALUE, "5.0"),
    # aclDataBuffer *aclCreateDataBuffer(void *data, size_t size)
    "aclCreateDataBuffer": Prototype(DataBuffer, (c_void_p, c_size_t), Check.HANDLE, "5.0"),
    # aclError aclDestroyDataBuffer(const aclDataBuffer *dataBuffer)
    "aclDestroyDataBuffer": Prototype(aclError, (DataBuffer,), Check.STATUS, "5.0"),
    # aclError aclUpdateDataBuffer(aclDataBuffer *dataBuffer, void *data, size_t size)
    "aclUpdateDataBuffer": Prototype(aclError, (DataBuffer, c_void_p, c_size_t), Check.STATUS, "5.0"),
    # void *aclGetDataBufferAddr(const aclDataBuffer *dataBuffer)
    "aclGetDataBufferAddr": Prototype(c_void_p, (DataBuffer,), Check.VALUE, "5.0"),
    # uint32_t aclGetDataBufferSize(const aclDataBuffer *dataBuffer)
    "aclGetDataBufferSize": Prototype(c_uint32, (DataBuffer,), Check.VALUE, "5.0"),
    # size_t aclGetDataBufferSizeV2(const aclDataBuffer *dataBuffer)
    "aclGetDataBufferSizeV2": Prototype(c_size_t, (DataBuffer,), Check.VALUE, "5.0"),
    # size_t aclDataTypeSize(aclDataType dataType)
    "aclDataTypeSize": Prototype(c_size_t, (c_int32,), Check.VALUE, "5.0"),
    # void aclAppLog(aclLogLevel logLevel, const char *func, const char *file, uint32_t line, const char *fmt,
    #     ...)
    "aclAppLog": Prototype(None, (c_uint32, c_char_p, c_char_p, c_uint32, c_char_p), Check.VOID, "5.0", variadic=True),
    # const char *aclrtGetSocName(void)
    "aclrtGetSocName": Prototype(c_void_p, (), Check.TEXT, "5.0.2"),
    # ---- acl/acl_base_mdl.h
    # aclTensorDesc *aclCreateTensorDesc(aclDataType dataType, int numDims, const int64_t *dims, aclFormat format)
    "aclCreateTensorDesc": Prototype(TensorDesc, (c_int32, c_int, POINTER(c_int64), c_int32), Check.HANDLE, "5.0"),
    # void aclDestroyTensorDesc(const aclTensorDesc *desc)
    "aclDestroyTensorDesc": Prototype(None, (TensorDesc,), Check.VOID, "5.0"),
    # aclError aclSetTensorShapeRange(aclTensorDesc *desc, size_t dimsCount, int64_t dimsRange[][2])
    "aclSetTensorShapeRange": Prototype(aclError, (TensorDesc, c_size_t, POINTER(c_int64 * 2)), Check.STATUS, "5.0"),
    # aclDataType aclGetTensorDescType(const aclTensorDesc *desc)
    "aclGetTensorDescType": Prototype(c_int32, (TensorDesc,), Check.VALUE, "5.0"),
    # aclFormat aclGetTensorDescFormat(const aclTensorDesc *desc)
    "aclGetTensorDescFormat": Prototype(c_int32, (TensorDesc,), Check.VALUE, "5.0"),
    # size_t aclGetTensorDescSize(const aclTensorDesc *desc)
    "aclGetTensorDescSize": Prototype(c_size_t, (TensorDesc,), Check.VALUE, "5.0"),
    # size_t aclGetTensorDescElementCount(const aclTensorDesc *desc)
    "aclGetTensorDescElementCount": Prototype(c_size_t, (TensorDesc,), Check.VALUE, "5.0"),
    # size_t aclGetTensorDescNumDims(const aclTensorDesc *desc)
    "aclGetTensorDescNumDims": Prototype(c_size_t, (TensorDesc,), Check.VALUE, "5.0"),
    # int64_t aclGetTensorDescDim(const aclTensorDesc *desc, size_t index)
    "aclGetTensorDescDim": Prototype(c_int64, (TensorDesc, c_size_t), Check.VALUE, "5.0"),
    # aclError aclGetTensorDescDimV2(const aclTensorDesc *desc, size_t index, int64_t *dimSize)
    "aclGetTensorDescDimV2": Prototype(aclError, (TensorDesc, c_size_t, POINTER(c_int64)), Check.STATUS, "5.0"),
    # aclError aclGetTensorDescDimRange(const aclTensorDesc *desc, size_t index, size_t dimRangeNum, int64_t
    #     *dimRange)
    "aclGetTensorDescDimRange": Prototype(aclError, (TensorDesc, c_size_t, c_size_t, POINTER(c_int64)), Check.STATUS, "5.0"),
    # void aclSetTensorDescName(aclTensorDesc *desc, const char *name)
    "aclSetTensorDescName": Prototype(None, (TensorDesc, c_char_p), Check.VOID, "5.0"),
    # const char *aclGetTensorDescName(aclTensorDesc *desc)
    "aclGetTensorDescName": Prototype(c_void_p, (TensorDesc,), Check.TEXT, "5.0"),
    # aclError aclSetTensorFormat(aclTensorDesc *desc, aclFormat format)
    "aclSetTensorFormat": Prototype(aclError, (TensorDesc, c_int32), Check.STATUS, "5.0"),
    # aclError aclSetTensorShape(aclTensorDesc *desc, int numDims, const int64_t *dims)
    "aclSetTensorShape": Prototype(aclError, (TensorDesc, c_int, POINTER(c_int64)), Check.STATUS, "5.0"),
    # aclTensorDesc *aclGetTensorDescByIndex(aclTensorDesc *desc, size_t index)
    "aclGetTensorDescByIndex": Prototype(TensorDesc, (TensorDesc, c_size_t), Check.VALUE, "5.0"),
    # void *aclGetTensorDescAddress(const aclTensorDesc *desc)
    "aclGetTensorDescAddress": Prototype(c_void_p, (TensorDesc,), Check.VALUE, "5.0"),
    # ---- acl/acl_rt.h
    # aclError aclrtSetExceptionInfoCallback(aclrtExceptionInfoCallback callback)
    "aclrtSetExceptionInfoCallback": Prototype(aclError, (aclrtExceptionInfoCallback,), Check.STATUS, "5.0"),
    # uint32_t aclrtGetTaskIdFromExceptionInfo(const aclrtExceptionInfo *info)
    "aclrtGetTaskIdFromExceptionInfo": Prototype(c_uint32, (ExceptionInfo,), Check.VALUE, "5.0"),
    # uint32_t aclrtGetStreamIdFromExceptionInfo(const aclrtExceptionInfo *info)
    "aclrtGetStreamIdFromExceptionInfo": Prototype(c_uint32, (ExceptionInfo,), Check.VALUE, "5.0"),
    # uint32_t aclrtGetThreadIdFromExceptionInfo(const aclrtExceptionInfo *info)
    "aclrtGetThreadIdFromExceptionInfo": Prototype(c_uint32, (ExceptionInfo,), Check.VALUE, "5.0"),
    # uint32_t aclrtGetDeviceIdFromExceptionInfo(const aclrtExceptionInfo *info)
    "aclrtGetDeviceIdFromExceptionInfo": Prototype(c_uint32, (ExceptionInfo,), Check.VALUE, "5.0"),
    # aclError aclrtSubscribeReport(uint64_t threadId, aclrtStream stream)
    "aclrtSubscribeReport": Prototype(aclError, (c_uint64, Stream), Check.STATUS, "5.0"),
    # aclError aclrtLaunchCallback(aclrtCallback fn, void *userData, aclrtCallbackBlockType blockType, aclrtStream
    #     stream)
    "aclrtLaunchCallback": Prototype(aclError, (aclrtCallback, c_void_p, c_uint32, Stream), Check.STATUS, "5.0"),
    # aclError aclrtProcessReport(int32_t timeout)
    "aclrtProcessReport": Prototype(aclError, (c_int32,), Check.STATUS, "5.0"),
    # aclError aclrtUnSubscribeReport(uint64_t threadId, aclrtStream stream)
    "aclrtUnSubscribeReport": Prototype(aclError, (c_uint64, Stream), Check.STATUS, "5.0"),
    # aclError aclrtCreateContext(aclrtContext *context, int32_t deviceId)
    "aclrtCreateContext": Prototype(aclError, (POINTER(Context), c_int32), Check.STATUS, "5.0"),
    # aclError aclrtDestroyContext(aclrtContext context)
    "aclrtDestroyContext": Prototype(aclError, (Context,), Check.STATUS, "5.0"),
    # aclError aclrtSetCurrentContext(aclrtContext context)
    "aclrtSetCurrentContext": Prototype(aclError, (Context,), Check.STATUS, "5.0"),
    # aclError aclrtGetCurrentContext(aclrtContext *context)
    "aclrtGetCurrentContext": Prototype(aclError, (POINTER(Context),), Check.STATUS, "5.0"),
    # aclError aclrtSetDevice(int32_t deviceId)
    "aclrtSetDevice": Prototype(aclError, (c_int32,), Check.STATUS, "5.0"),
    # aclError aclrtResetDevice(int32_t deviceId)
    "aclrtResetDevice": Prototype(aclError, (c_int32,), Check.STATUS, "5.0"),
    # aclError aclrtGetDevice(int32_t *deviceId)
    "aclrtGetDevice": Prototype(aclError, (POINTER(c_int32),), Check.STATUS, "5.0"),
    # aclError aclrtGetRunMode(aclrtRunMode *runMode)
    "aclrtGetRunMode": Prototype(aclError, (POINTER(c_uint32),), Check.STATUS, "5.0"),
    # aclError aclrtSynchronizeDevice(void)
    "aclrtSynchronizeDevice": Prototype(aclError, (), Check.STATUS, "5.0"),
    # aclError aclrtSetTsDevice(aclrtTsId tsId)
    "aclrtSetTsDevice": Prototype(aclError, (c_uint32,), Check.STATUS, "5.0"),
    # aclError aclrtGetDeviceCount(uint32_t *count)
    "aclrtGetDeviceCount": Prototype(aclError, (POINTER(c_uint32),), Check.STATUS, "5.0"),
    # aclError aclrtCreateEvent(aclrtEvent *event)
    "aclrtCreateEvent": Prototype(aclError, (POINTER(Event),), Check.STATUS, "5.0"),
    # aclError aclrtDestroyEvent(aclrtEvent event)
    "aclrtDestroyEvent": Prototype(aclError, (Event,), Check.STATUS, "5.0"),
    # aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream)
    "aclrtRecordEvent": Prototype(aclError, (Event, Stream), Check.STATUS, "5.0"),
    # aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream)
    "aclrtResetEvent": Prototype(aclError, (Event, Stream), Check.STATUS, "5.0"),
    # aclError aclrtQueryEvent(aclrtEvent event, aclrtEventStatus *status)
    "aclrtQueryEvent": Prototype(aclError, (Event, POINTER(c_uint32)), Check.STATUS, "5.0"),
    # aclError aclrtSynchronizeEvent(aclrtEvent event)
    "aclrtSynchronizeEvent": Prototype(aclError, (Event,), Check.STATUS, "5.0"),
    # aclError aclrtEventElapsedTime(float *ms, aclrtEvent startEvent, aclrtEvent endEvent)
    "aclrtEventElapsedTime": Prototype(aclError, (POINTER(c_float), Event, Event), Check.STATUS, "5.0"),
    # aclError aclrtMalloc(void **devPtr, size_t size, aclrtMemMallocPolicy policy)
    "aclrtMalloc": Prototype(aclError, (POINTER(DevicePtr), c_size_t, c_uint32), Check.STATUS, "5.0"),
    # aclError aclrtMallocCached(void **devPtr, size_t size, aclrtMemMallocPolicy policy)
    "aclrtMallocCached": Prototype(aclError, (POINTER(DevicePtr), c_size_t, c_uint32), Check.STATUS, "5.0"),
    # aclError aclrtMemFlush(void *devPtr, size_t size)
    "aclrtMemFlush": Prototype(aclError, (DevicePtr, c_size_t), Check.STATUS, "5.0"),
    # aclError aclrtMemInvalidate(void *devPtr, size_t size)
    "aclrtMemInvalidate": Prototype(aclError, (DevicePtr, c_size_t), Check.STATUS, "5.0"),
    # aclError aclrtFree(void *devPtr)
    "aclrtFree": Prototype(aclError, (DevicePtr,), Check.STATUS, "5.0"),
    # aclError aclrtMallocHost(void **hostPtr, size_t size)
    "aclrtMallocHost": Prototype(aclError, (POINTER(c_void_p), c_size_t), Check.STATUS, "5.0"),
    # aclError aclrtFreeHost(void *hostPtr)
    "aclrtFreeHost": Prototype(aclError, (c_void_p,), Check.STATUS, "5.0"),
    # aclError aclrtMemcpy(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind)
    "aclrtMemcpy": Prototype(aclError, (c_void_p, c_size_t, c_void_p, c_size_t, c_uint32), Check.STATUS, "5.0"),
    # aclError aclrtMemset(void *devPtr, size_t maxCount, int32_t value, size_t count)
    "aclrtMemset": Prototype(aclError, (DevicePtr, c_size_t, c_int32, c_size_t), Check.STATUS, "5.0"),
    # aclError aclrtMemcpyAsync(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind,
    #     aclrtStream stream)
    "aclrtMemcpyAsync": Prototype(aclError, (c_void_p, c_size_t, c_void_p, c_size_t, c_uint32, Stream), Check.STATUS, "5.0"),
    # aclError aclrtMemsetAsync(void *devPtr, size_t maxCount, int32_t value, size_t count, aclrtStream stream)
    "aclrtMemsetAsync": Prototype(aclError, (DevicePtr, c_size_t, c_int32, c_size_t, Stream), Check.STATUS, "5.0"),
    # aclError aclrtCreateStream(aclrtStream *stream)
    "aclrtCreateStream": Prototype(aclError, (POINTER(Stream),), Check.STATUS, "5.0"),
    # aclError aclrtDestroyStream(aclrtStream stream)
    "aclrtDestroyStream": Prototype(aclError, (Stream,), Check.STATUS, "5.0"),
    # aclError aclrtSynchronizeStream(aclrtStream stream)
    "aclrtSynchronizeStream": Prototype(aclError, (Stream,), Check.STATUS, "5.0"),
    # aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event)
    "aclrtStreamWaitEvent": Prototype(aclError, (Stream, Event), Check.STATUS, "5.0"),
    # aclError aclrtDeviceCanAccessPeer(int32_t *canAccessPeer, int32_t deviceId, int32_t peerDeviceId)
    "aclrtDeviceCanAccessPeer": Prototype(aclError, (POINTER(c_int32), c_int32, c_int32), Check.STATUS, "5.0"),
    # aclError aclrtDeviceEnablePeerAccess(int32_t peerDeviceId, uint32_t flags)
    "aclrtDeviceEnablePeerAccess": Prototype(aclError, (c_int32, c_uint32), Check.STATUS, "5.0"),
    # aclError aclrtDeviceDisablePeerAccess(int32_t peerDeviceId)
    "aclrtDeviceDisablePeerAccess": Prototype(aclError, (c_int32,), Check.STATUS, "5.0"),
    # aclError aclrtGetMemInfo(aclrtMemAttr attr, size_t *free, size_t *total)
    "aclrtGetMemInfo": Prototype(aclError, (c_uint32, POINTER(c_size_t), POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclInit(const char *configPath)
    "aclInit": Prototype(aclError, (c_char_p,), Check.STATUS, "5.0"),
    # aclError aclFinalize(void)
    "aclFinalize": Prototype(aclError, (), Check.STATUS, "5.0"),
    # aclError aclrtGetVersion(int32_t *majorVersion, int32_t *minorVersion, int32_t *patchVersion)
    "aclrtGetVersion": Prototype(aclError, (POINTER(c_int32), POINTER(c_int32), POINTER(c_int32)), Check.STATUS, "5.0"),
    # aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag)
    "aclrtCreateEventWithFlag": Prototype(aclError, (POINTER(Event), c_uint32), Check.STATUS, "5.0"),
    # aclError aclrtSetOpWaitTimeout(uint32_t timeout)
    "aclrtSetOpWaitTimeout": Prototype(aclError, (c_uint32,), Check.STATUS, "5.0.2"),
    # const char *aclGetRecentErrMsg(void)
    "aclGetRecentErrMsg": Prototype(c_void_p, (), Check.TEXT, "5.0.2"),
    # aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status)
    "aclrtQueryEventWaitStatus": Prototype(aclError, (Event, POINTER(c_uint32)), Check.STATUS, "5.0.3"),
    # aclError aclrtMemcpy2d(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t
    #     height, aclrtMemcpyKind kind)
    "aclrtMemcpy2d": Prototype(aclError, (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_uint32), Check.STATUS, "5.0.3"),
    # aclError aclrtMemcpy2dAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t
    #     height, aclrtMemcpyKind kind, aclrtStream stream)
    "aclrtMemcpy2dAsync": Prototype(aclError, (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_uint32, Stream), Check.STATUS, "5.0.3"),
    # aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status)
    "aclrtQueryEventStatus": Prototype(aclError, (Event, POINTER(c_uint32)), Check.STATUS, "5.1"),
    # uint32_t aclrtGetErrorCodeFromExceptionInfo(const aclrtExceptionInfo *info)
    "aclrtGetErrorCodeFromExceptionInfo": Prototype(c_uint32, (ExceptionInfo,), Check.VALUE, "6.2/6.3"),
    # aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode)
    "aclrtSetStreamFailureMode": Prototype(aclError, (Stream, c_uint64), Check.STATUS, "6.2/6.3"),
    # aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag)
    "aclrtCreateStreamWithConfig": Prototype(aclError, (POINTER(Stream), c_uint32, c_uint32), Check.STATUS, "6.2/6.3"),
    # aclError aclrtDestroyStreamForce(aclrtStream stream)
    "aclrtDestroyStreamForce": Prototype(aclError, (Stream,), Check.STATUS, "6.2/6.3"),
    # aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout)
    "aclrtSynchronizeStreamWithTimeout": Prototype(aclError, (Stream, c_int32), Check.STATUS, "6.2/6.3"),
    # aclError aclrtGetDeviceUtilizationRate(int32_t deviceId, aclrtUtilizationInfo *utilizationInfo)
    "aclrtGetDeviceUtilizationRate": Prototype(aclError, (c_int32, POINTER(aclrtUtilizationInfo)), Check.STATUS, "6.3.RC2"),
    # aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t timeout)
    "aclrtSynchronizeEventWithTimeout": Prototype(aclError, (Event, c_int32), Check.STATUS, "6.3.RC2"),
    # aclError aclrtSetOpExecuteTimeOut(uint32_t timeout)
    "aclrtSetOpExecuteTimeOut": Prototype(aclError, (c_uint32,), Check.STATUS, "6.3.RC2"),
    # aclError aclrtMallocAlign32(void **devPtr, size_t size, aclrtMemMallocPolicy policy)
    "aclrtMallocAlign32": Prototype(aclError, (POINTER(DevicePtr), c_size_t, c_uint32), Check.STATUS, "7.0"),
    # aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status)
    "aclrtStreamQuery": Prototype(aclError, (Stream, POINTER(c_uint32)), Check.STATUS, "7.0"),
    # aclError aclrtSubscribeHostFunc(uint64_t hostFuncThreadId, aclrtStream exeStream)
    "aclrtSubscribeHostFunc": Prototype(aclError, (c_uint64, Stream), Check.STATUS, "7.0"),
    # aclError aclrtProcessHostFunc(int32_t timeout)
    "aclrtProcessHostFunc": Prototype(aclError, (c_int32,), Check.STATUS, "7.0"),
    # aclError aclrtUnSubscribeHostFunc(uint64_t hostFuncThreadId, aclrtStream exeStream)
    "aclrtUnSubscribeHostFunc": Prototype(aclError, (c_uint64, Stream), Check.STATUS, "7.0"),
    # aclError aclrtQueryDeviceStatus(int32_t deviceId, aclrtDeviceStatus *deviceStatus)
    "aclrtQueryDeviceStatus": Prototype(aclError, (c_int32, POINTER(c_uint32)), Check.STATUS, "7.0"),
    # aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag)
    "aclrtCreateEventExWithFlag": Prototype(aclError, (POINTER(Event), c_uint32), Check.STATUS, "8.0.RC2"),
    # aclError aclrtResetDeviceForce(int32_t deviceId)
    "aclrtResetDeviceForce": Prototype(aclError, (c_int32,), Check.STATUS, "8.0.RC3"),
    # aclError aclrtGetMemUceInfo(int32_t deviceId, aclrtMemUceInfo *memUceInfoArray, size_t arraySize, size_t
    #     *retSize)
    "aclrtGetMemUceInfo": Prototype(aclError, (c_int32, POINTER(aclrtMemUceInfo), c_size_t, POINTER(c_size_t)), Check.STATUS, "8.0.RC3"),
    # aclError aclrtDeviceTaskAbort(int32_t deviceId, uint32_t timeout)
    "aclrtDeviceTaskAbort": Prototype(aclError, (c_int32, c_uint32), Check.STATUS, "8.0.RC3"),
    # aclError aclrtMemUceRepair(int32_t deviceId, aclrtMemUceInfo *memUceInfoArray, size_t arraySize)
    "aclrtMemUceRepair": Prototype(aclError, (c_int32, POINTER(aclrtMemUceInfo), c_size_t), Check.STATUS, "8.0.RC3"),
    # aclError aclrtPeekAtLastError(aclrtLastErrLevel level)
    "aclrtPeekAtLastError": Prototype(aclError, (c_uint32,), Check.UNCHECKED, "8.1.RC1"),
    # aclError aclrtGetLastError(aclrtLastErrLevel level)
    "aclrtGetLastError": Prototype(aclError, (c_uint32,), Check.UNCHECKED, "8.1.RC1"),
    # aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout)
    "aclrtSynchronizeDeviceWithTimeout": Prototype(aclError, (c_int32,), Check.STATUS, "8.1.RC1"),
    # aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t *timestamp)
    "aclrtEventGetTimestamp": Prototype(aclError, (Event, POINTER(c_uint64)), Check.STATUS, "8.1.RC1"),
    # aclError aclrtMallocWithCfg(void **devPtr, size_t size, aclrtMemMallocPolicy policy, aclrtMallocConfig *cfg)
    "aclrtMallocWithCfg": Prototype(aclError, (POINTER(DevicePtr), c_size_t, c_uint32, POINTER(aclrtMallocConfig)), Check.STATUS, "8.1.RC1"),
    # aclError aclrtMallocHostWithCfg(void **ptr, uint64_t size, aclrtMallocConfig *cfg)
    "aclrtMallocHostWithCfg": Prototype(aclError, (POINTER(c_void_p), c_uint64, POINTER(aclrtMallocConfig)), Check.STATUS, "8.1.RC1"),
    # aclError aclrtPointerGetAttributes(const void *ptr, aclrtPtrAttributes *attributes)
    "aclrtPointerGetAttributes": Prototype(aclError, (c_void_p, POINTER(aclrtPtrAttributes)), Check.STATUS, "8.1.RC1"),
    # aclError aclrtHostRegister(void *ptr, uint64_t size, aclrtHostRegisterType type, void **devPtr)
    "aclrtHostRegister": Prototype(aclError, (c_void_p, c_uint64, c_uint32, POINTER(DevicePtr)), Check.STATUS, "8.1.RC1"),
    # aclError aclrtHostUnregister(void *ptr)
    "aclrtHostUnregister": Prototype(aclError, (c_void_p,), Check.STATUS, "8.1.RC1"),
    # aclError aclrtStreamGetId(aclrtStream stream, int32_t *streamId)
    "aclrtStreamGetId": Prototype(aclError, (Stream, POINTER(c_int32)), Check.STATUS, "8.1.RC1"),
    # aclError aclrtMemcpyAsyncWithCondition(void *dst, size_t destMax, const void *src, size_t count,
    #     aclrtMemcpyKind kind, aclrtStream stream)
    "aclrtMemcpyAsyncWithCondition": Prototype(aclError, (c_void_p, c_size_t, c_void_p, c_size_t, c_uint32, Stream), Check.STATUS, "8.1.RC1"),
    # aclError aclrtStreamAbort(aclrtStream stream)
    "aclrtStreamAbort": Prototype(aclError, (Stream,), Check.STATUS, "8.1.RC1"),
    # aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion *version)
    "aclsysGetCANNVersion": Prototype(aclError, (c_uint32, POINTER(aclCANNPackageVersion)), Check.STATUS, "8.1.RC1"),
    # aclError aclFinalizeReference(uint64_t *refCount)
    "aclFinalizeReference": Prototype(aclError, (POINTER(c_uint64),), Check.STATUS, "8.5.0"),
    # aclError aclsysGetVersionStr(char *pkgName, char *versionStr)
    "aclsysGetVersionStr": Prototype(aclError, (c_void_p, c_void_p), Check.STATUS, "8.5.0"),
    # aclError aclsysGetVersionNum(char *pkgName, int32_t *versionNum)
    "aclsysGetVersionNum": Prototype(aclError, (c_void_p, POINTER(c_int32)), Check.STATUS, "8.5.0"),
    # aclError aclrtHostRegisterV2(void *ptr, uint64_t size, uint32_t flag)
    "aclrtHostRegisterV2": Prototype(aclError, (c_void_p, c_uint64, c_uint32), Check.STATUS, "8.5.0"),
    # aclError aclrtHostGetDevicePointer(void *pHost, void **pDevice, uint32_t flag)
    "aclrtHostGetDevicePointer": Prototype(aclError, (c_void_p, POINTER(c_void_p), c_uint32), Check.STATUS, "8.5.0"),
    # aclError aclrtFreeWithDevSync(void *devPtr)
    "aclrtFreeWithDevSync": Prototype(aclError, (DevicePtr,), Check.STATUS, "8.5.0"),
    # aclError aclrtFreeHostWithDevSync(void *hostPtr)
    "aclrtFreeHostWithDevSync": Prototype(aclError, (c_void_p,), Check.STATUS, "8.5.0"),
    # aclError aclrtStreamGetPriority(aclrtStream stream, uint32_t *priority)
    "aclrtStreamGetPriority": Prototype(aclError, (Stream, POINTER(c_uint32)), Check.STATUS, "8.5.0"),
    # aclError aclrtStreamGetFlags(aclrtStream stream, uint32_t *flags)
    "aclrtStreamGetFlags": Prototype(aclError, (Stream, POINTER(c_uint32)), Check.STATUS, "8.5.0"),
    # aclError aclrtStreamWaitEventWithTimeout(aclrtStream stream, aclrtEvent event, int32_t timeout)
    "aclrtStreamWaitEventWithTimeout": Prototype(aclError, (Stream, Event, c_int32), Check.STATUS, "8.5.0"),
    # aclError aclrtGetMemUsageInfo(int32_t deviceId, aclrtMemUsageInfo *memUsageInfo, size_t inputNum, size_t
    #     *outputNum)
    "aclrtGetMemUsageInfo": Prototype(aclError, (c_int32, POINTER(aclrtMemUsageInfo), c_size_t, POINTER(c_size_t)), Check.STATUS, "8.5.0"),
    # aclError aclrtGetStreamAvailableNum(uint32_t *streamCount)
    "aclrtGetStreamAvailableNum": Prototype(aclError, (POINTER(c_uint32),), Check.STATUS, "8.5.0"),
    # aclError aclrtGetEventId(aclrtEvent event, uint32_t *eventId)
    "aclrtGetEventId": Prototype(aclError, (Event, POINTER(c_uint32)), Check.STATUS, "8.5.0"),
    # aclError aclrtGetEventAvailNum(uint32_t *eventCount)
    "aclrtGetEventAvailNum": Prototype(aclError, (POINTER(c_uint32),), Check.STATUS, "8.5.0"),
    # aclError aclrtGetDeviceInfo(uint32_t deviceId, aclrtDevAttr attr, int64_t *value)
    "aclrtGetDeviceInfo": Prototype(aclError, (c_uint32, c_uint32, POINTER(c_int64)), Check.STATUS, "8.5.0"),
    # aclError aclrtDeviceGetStreamPriorityRange(int32_t *leastPriority, int32_t *greatestPriority)
    "aclrtDeviceGetStreamPriorityRange": Prototype(aclError, (POINTER(c_int32), POINTER(c_int32)), Check.STATUS, "8.5.0"),
    # aclError aclrtGetDeviceCapability(int32_t deviceId, aclrtDevFeatureType devFeatureType, int32_t *value)
    "aclrtGetDeviceCapability": Prototype(aclError, (c_int32, c_uint32, POINTER(c_int32)), Check.STATUS, "8.5.0"),
    # aclError aclrtCtxGetCurrentDefaultStream(aclrtStream *stream)
    "aclrtCtxGetCurrentDefaultStream": Prototype(aclError, (POINTER(Stream),), Check.STATUS, "8.5.0"),
    # aclError aclrtGetPrimaryCtxState(int32_t deviceId, uint32_t *flags, int32_t *active)
    "aclrtGetPrimaryCtxState": Prototype(aclError, (c_int32, POINTER(c_uint32), POINTER(c_int32)), Check.STATUS, "8.5.0"),
    # aclError aclInitCallbackRegister(aclRegisterCallbackType type, aclInitCallbackFunc cbFunc, void *userData)
    "aclInitCallbackRegister": Prototype(aclError, (c_uint32, aclInitCallbackFunc, c_void_p), Check.STATUS, "8.5.0"),
    # aclError aclInitCallbackUnRegister(aclRegisterCallbackType type, aclInitCallbackFunc cbFunc)
    "aclInitCallbackUnRegister": Prototype(aclError, (c_uint32, aclInitCallbackFunc), Check.STATUS, "8.5.0"),
    # aclError aclFinalizeCallbackRegister(aclRegisterCallbackType type, aclFinalizeCallbackFunc cbFunc, void
    #     *userData)
    "aclFinalizeCallbackRegister": Prototype(aclError, (c_uint32, aclFinalizeCallbackFunc, c_void_p), Check.STATUS, "8.5.0"),
    # aclError aclFinalizeCallbackUnRegister(aclRegisterCallbackType type, aclFinalizeCallbackFunc cbFunc)
    "aclFinalizeCallbackUnRegister": Prototype(aclError, (c_uint32, aclFinalizeCallbackFunc), Check.STATUS, "8.5.0"),
    # aclError aclrtCheckMemType(void **addrList, uint32_t size, uint32_t memType, uint32_t *checkResult, uint32_t
    #     reserve)
    "aclrtCheckMemType": Prototype(aclError, (POINTER(c_void_p), c_uint32, c_uint32, POINTER(c_uint32), c_uint32), Check.STATUS, "8.5.0"),
    # aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc fn, void *args)
    "aclrtLaunchHostFunc": Prototype(aclError, (Stream, aclrtHostFunc, c_void_p), Check.STATUS, "8.5.0"),
    # aclError aclrtDevicePeerAccessStatus(int32_t deviceId, int32_t peerDeviceId, int32_t *status)
    "aclrtDevicePeerAccessStatus": Prototype(aclError, (c_int32, c_int32, POINTER(c_int32)), Check.STATUS, "8.5.0"),
    # aclError aclrtGetErrorVerbose(int32_t deviceId, aclrtErrorInfo *errorInfo)
    "aclrtGetErrorVerbose": Prototype(aclError, (c_int32, POINTER(aclrtErrorInfo)), Check.STATUS, "8.5.0"),
    # aclError aclrtRepairError(int32_t deviceId, const aclrtErrorInfo *errorInfo)
    "aclrtRepairError": Prototype(aclError, (c_int32, POINTER(aclrtErrorInfo)), Check.STATUS, "8.5.0"),
    # aclError aclrtExceptionInfoCallbackRegister(aclrtExceptionInfoCallback callback)
    "aclrtExceptionInfoCallbackRegister": Prototype(aclError, (aclrtExceptionInfoCallback,), Check.STATUS, "master-2026-08"),
    # aclError aclrtExceptionInfoCallbackUnregister(aclrtExceptionInfoCallback callback)
    "aclrtExceptionInfoCallbackUnregister": Prototype(aclError, (aclrtExceptionInfoCallback,), Check.STATUS, "master-2026-08"),
    # ---- acl/acl_mdl.h
    # aclmdlDesc *aclmdlCreateDesc(void)
    "aclmdlCreateDesc": Prototype(ModelDesc, (), Check.HANDLE, "5.0"),
    # aclError aclmdlDestroyDesc(aclmdlDesc *modelDesc)
    "aclmdlDestroyDesc": Prototype(aclError, (ModelDesc,), Check.STATUS, "5.0"),
    # aclError aclmdlGetDesc(aclmdlDesc *modelDesc, uint32_t modelId)
    "aclmdlGetDesc": Prototype(aclError, (ModelDesc, c_uint32), Check.STATUS, "5.0"),
    # size_t aclmdlGetNumInputs(aclmdlDesc *modelDesc)
    "aclmdlGetNumInputs": Prototype(c_size_t, (ModelDesc,), Check.VALUE, "5.0"),
    # size_t aclmdlGetNumOutputs(aclmdlDesc *modelDesc)
    "aclmdlGetNumOutputs": Prototype(c_size_t, (ModelDesc,), Check.VALUE, "5.0"),
    # size_t aclmdlGetInputSizeByIndex(aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetInputSizeByIndex": Prototype(c_size_t, (ModelDesc, c_size_t), Check.VALUE, "5.0"),
    # size_t aclmdlGetOutputSizeByIndex(aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetOutputSizeByIndex": Prototype(c_size_t, (ModelDesc, c_size_t), Check.VALUE, "5.0"),
    # aclmdlDataset *aclmdlCreateDataset(void)
    "aclmdlCreateDataset": Prototype(Dataset, (), Check.HANDLE, "5.0"),
    # aclError aclmdlDestroyDataset(const aclmdlDataset *dataset)
    "aclmdlDestroyDataset": Prototype(aclError, (Dataset,), Check.STATUS, "5.0"),
    # aclError aclmdlAddDatasetBuffer(aclmdlDataset *dataset, aclDataBuffer *dataBuffer)
    "aclmdlAddDatasetBuffer": Prototype(aclError, (Dataset, DataBuffer), Check.STATUS, "5.0"),
    # size_t aclmdlGetDatasetNumBuffers(const aclmdlDataset *dataset)
    "aclmdlGetDatasetNumBuffers": Prototype(c_size_t, (Dataset,), Check.VALUE, "5.0"),
    # aclDataBuffer *aclmdlGetDatasetBuffer(const aclmdlDataset *dataset, size_t index)
    "aclmdlGetDatasetBuffer": Prototype(DataBuffer, (Dataset, c_size_t), Check.VALUE, "5.0"),
    # aclError aclmdlLoadFromFile(const char *modelPath, uint32_t *modelId)
    "aclmdlLoadFromFile": Prototype(aclError, (c_char_p, POINTER(c_uint32)), Check.STATUS, "5.0"),
    # aclError aclmdlLoadFromMem(const void *model, size_t modelSize, uint32_t *modelId)
    "aclmdlLoadFromMem": Prototype(aclError, (c_void_p, c_size_t, POINTER(c_uint32)), Check.STATUS, "5.0"),
    # aclError aclmdlLoadFromFileWithMem(const char *modelPath, uint32_t *modelId, void *workPtr, size_t workSize,
    #     void *weightPtr, size_t weightSize)
    "aclmdlLoadFromFileWithMem": Prototype(aclError, (c_char_p, POINTER(c_uint32), c_void_p, c_size_t, c_void_p, c_size_t), Check.STATUS, "5.0"),
    # aclError aclmdlLoadFromMemWithMem(const void *model, size_t modelSize, uint32_t *modelId, void *workPtr,
    #     size_t workSize, void *weightPtr, size_t weightSize)
    "aclmdlLoadFromMemWithMem": Prototype(aclError, (c_void_p, c_size_t, POINTER(c_uint32), c_void_p, c_size_t, c_void_p, c_size_t), Check.STATUS, "5.0"),
    # aclError aclmdlLoadFromFileWithQ(const char *modelPath, uint32_t *modelId, const uint32_t *inputQ, size_t
    #     inputQNum, const uint32_t *outputQ, size_t outputQNum)
    "aclmdlLoadFromFileWithQ": Prototype(aclError, (c_char_p, POINTER(c_uint32), POINTER(c_uint32), c_size_t, POINTER(c_uint32), c_size_t), Check.STATUS, "5.0"),
    # aclError aclmdlLoadFromMemWithQ(const void *model, size_t modelSize, uint32_t *modelId, const uint32_t
    #     *inputQ, size_t inputQNum, const uint32_t *outputQ, size_t outputQNum)
    "aclmdlLoadFromMemWithQ": Prototype(aclError, (c_void_p, c_size_t, POINTER(c_uint32), POINTER(c_uint32), c_size_t, POINTER(c_uint32), c_size_t), Check.STATUS, "5.0"),
    # aclError aclmdlExecute(uint32_t modelId, const aclmdlDataset *input, aclmdlDataset *output)
    "aclmdlExecute": Prototype(aclError, (c_uint32, Dataset, Dataset), Check.STATUS, "5.0"),
    # aclError aclmdlExecuteAsync(uint32_t modelId, const aclmdlDataset *input, aclmdlDataset *output, aclrtStream
    #     stream)
    "aclmdlExecuteAsync": Prototype(aclError, (c_uint32, Dataset, Dataset, Stream), Check.STATUS, "5.0"),
    # aclError aclmdlUnload(uint32_t modelId)
    "aclmdlUnload": Prototype(aclError, (c_uint32,), Check.STATUS, "5.0"),
    # aclError aclmdlQuerySize(const char *fileName, size_t *workSize, size_t *weightSize)
    "aclmdlQuerySize": Prototype(aclError, (c_char_p, POINTER(c_size_t), POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlQuerySizeFromMem(const void *model, size_t modelSize, size_t *workSize, size_t *weightSize)
    "aclmdlQuerySizeFromMem": Prototype(aclError, (c_void_p, c_size_t, POINTER(c_size_t), POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlSetDynamicBatchSize(uint32_t modelId, aclmdlDataset *dataset, size_t index, uint64_t
    #     batchSize)
    "aclmdlSetDynamicBatchSize": Prototype(aclError, (c_uint32, Dataset, c_size_t, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetDynamicHWSize(uint32_t modelId, aclmdlDataset *dataset, size_t index, uint64_t height,
    #     uint64_t width)
    "aclmdlSetDynamicHWSize": Prototype(aclError, (c_uint32, Dataset, c_size_t, c_uint64, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetInputDynamicDims(uint32_t modelId, aclmdlDataset *dataset, size_t index, const
    #     aclmdlIODims *dims)
    "aclmdlSetInputDynamicDims": Prototype(aclError, (c_uint32, Dataset, c_size_t, POINTER(aclmdlIODims)), Check.STATUS, "5.0"),
    # aclError aclmdlGetInputDims(const aclmdlDesc *modelDesc, size_t index, aclmdlIODims *dims)
    "aclmdlGetInputDims": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlIODims)), Check.STATUS, "5.0"),
    # aclError aclmdlGetInputDimsV2(const aclmdlDesc *modelDesc, size_t index, aclmdlIODims *dims)
    "aclmdlGetInputDimsV2": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlIODims)), Check.STATUS, "5.0"),
    # aclError aclmdlGetOutputDims(const aclmdlDesc *modelDesc, size_t index, aclmdlIODims *dims)
    "aclmdlGetOutputDims": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlIODims)), Check.STATUS, "5.0"),
    # aclError aclmdlGetCurOutputDims(const aclmdlDesc *modelDesc, size_t index, aclmdlIODims *dims)
    "aclmdlGetCurOutputDims": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlIODims)), Check.STATUS, "5.0"),
    # const char *aclmdlGetInputNameByIndex(const aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetInputNameByIndex": Prototype(c_void_p, (ModelDesc, c_size_t), Check.TEXT, "5.0"),
    # const char *aclmdlGetOutputNameByIndex(const aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetOutputNameByIndex": Prototype(c_void_p, (ModelDesc, c_size_t), Check.TEXT, "5.0"),
    # aclFormat aclmdlGetInputFormat(const aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetInputFormat": Prototype(c_int32, (ModelDesc, c_size_t), Check.VALUE, "5.0"),
    # aclFormat aclmdlGetOutputFormat(const aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetOutputFormat": Prototype(c_int32, (ModelDesc, c_size_t), Check.VALUE, "5.0"),
    # aclDataType aclmdlGetInputDataType(const aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetInputDataType": Prototype(c_int32, (ModelDesc, c_size_t), Check.VALUE, "5.0"),
    # aclDataType aclmdlGetOutputDataType(const aclmdlDesc *modelDesc, size_t index)
    "aclmdlGetOutputDataType": Prototype(c_int32, (ModelDesc, c_size_t), Check.VALUE, "5.0"),
    # aclError aclmdlGetInputIndexByName(const aclmdlDesc *modelDesc, const char *name, size_t *index)
    "aclmdlGetInputIndexByName": Prototype(aclError, (ModelDesc, c_char_p, POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlGetOutputIndexByName(const aclmdlDesc *modelDesc, const char *name, size_t *index)
    "aclmdlGetOutputIndexByName": Prototype(aclError, (ModelDesc, c_char_p, POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlGetDynamicBatch(const aclmdlDesc *modelDesc, aclmdlBatch *batch)
    "aclmdlGetDynamicBatch": Prototype(aclError, (ModelDesc, POINTER(aclmdlBatch)), Check.STATUS, "5.0"),
    # aclError aclmdlGetDynamicHW(const aclmdlDesc *modelDesc, size_t index, aclmdlHW *hw)
    "aclmdlGetDynamicHW": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlHW)), Check.STATUS, "5.0"),
    # aclError aclmdlGetInputDynamicGearCount(const aclmdlDesc *modelDesc, size_t index, size_t *gearCount)
    "aclmdlGetInputDynamicGearCount": Prototype(aclError, (ModelDesc, c_size_t, POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlGetInputDynamicDims(const aclmdlDesc *modelDesc, size_t index, aclmdlIODims *dims, size_t
    #     gearCount)
    "aclmdlGetInputDynamicDims": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlIODims), c_size_t), Check.STATUS, "5.0"),
    # aclmdlAIPP *aclmdlCreateAIPP(uint64_t batchSize)
    "aclmdlCreateAIPP": Prototype(AippParams, (c_uint64,), Check.HANDLE, "5.0"),
    # aclError aclmdlDestroyAIPP(const aclmdlAIPP *aippParmsSet)
    "aclmdlDestroyAIPP": Prototype(aclError, (AippParams,), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPInputFormat(aclmdlAIPP *aippParmsSet, aclAippInputFormat inputFormat)
    "aclmdlSetAIPPInputFormat": Prototype(aclError, (AippParams, c_uint32), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPCscParams(aclmdlAIPP *aippParmsSet, int8_t cscSwitch, int16_t cscMatrixR0C0, int16_t
    #     cscMatrixR0C1, int16_t cscMatrixR0C2, int16_t cscMatrixR1C0, int16_t cscMatrixR1C1, int16_t
    #     cscMatrixR1C2, int16_t cscMatrixR2C0, int16_t cscMatrixR2C1, int16_t cscMatrixR2C2, uint8_t
    #     cscOutputBiasR0, uint8_t cscOutputBiasR1, uint8_t cscOutputBiasR2, uint8_t cscInputBiasR0, uint8_t
    #     cscInputBiasR1, uint8_t cscInputBiasR2)
    "aclmdlSetAIPPCscParams": Prototype(aclError, (AippParams, c_int8, c_int16, c_int16, c_int16, c_int16, c_int16, c_int16, c_int16, c_int16, c_int16, c_uint8, c_uint8, c_uint8, c_uint8, c_uint8, c_uint8), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPRbuvSwapSwitch(aclmdlAIPP *aippParmsSet, int8_t rbuvSwapSwitch)
    "aclmdlSetAIPPRbuvSwapSwitch": Prototype(aclError, (AippParams, c_int8), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPAxSwapSwitch(aclmdlAIPP *aippParmsSet, int8_t axSwapSwitch)
    "aclmdlSetAIPPAxSwapSwitch": Prototype(aclError, (AippParams, c_int8), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPSrcImageSize(aclmdlAIPP *aippParmsSet, int32_t srcImageSizeW, int32_t srcImageSizeH)
    "aclmdlSetAIPPSrcImageSize": Prototype(aclError, (AippParams, c_int32, c_int32), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPScfParams(aclmdlAIPP *aippParmsSet, int8_t scfSwitch, int32_t scfInputSizeW, int32_t
    #     scfInputSizeH, int32_t scfOutputSizeW, int32_t scfOutputSizeH, uint64_t batchIndex)
    "aclmdlSetAIPPScfParams": Prototype(aclError, (AippParams, c_int8, c_int32, c_int32, c_int32, c_int32, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPCropParams(aclmdlAIPP *aippParmsSet, int8_t cropSwitch, int32_t cropStartPosW, int32_t
    #     cropStartPosH, int32_t cropSizeW, int32_t cropSizeH, uint64_t batchIndex)
    "aclmdlSetAIPPCropParams": Prototype(aclError, (AippParams, c_int8, c_int32, c_int32, c_int32, c_int32, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPPaddingParams(aclmdlAIPP *aippParmsSet, int8_t paddingSwitch, int32_t paddingSizeTop,
    #     int32_t paddingSizeBottom, int32_t paddingSizeLeft, int32_t paddingSizeRight, uint64_t batchIndex)
    "aclmdlSetAIPPPaddingParams": Prototype(aclError, (AippParams, c_int8, c_int32, c_int32, c_int32, c_int32, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPDtcPixelMean(aclmdlAIPP *aippParmsSet, int16_t dtcPixelMeanChn0, int16_t
    #     dtcPixelMeanChn1, int16_t dtcPixelMeanChn2, int16_t dtcPixelMeanChn3, uint64_t batchIndex)
    "aclmdlSetAIPPDtcPixelMean": Prototype(aclError, (AippParams, c_int16, c_int16, c_int16, c_int16, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPDtcPixelMin(aclmdlAIPP *aippParmsSet, float dtcPixelMinChn0, float dtcPixelMinChn1,
    #     float dtcPixelMinChn2, float dtcPixelMinChn3, uint64_t batchIndex)
    "aclmdlSetAIPPDtcPixelMin": Prototype(aclError, (AippParams, c_float, c_float, c_float, c_float, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPPixelVarReci(aclmdlAIPP *aippParmsSet, float dtcPixelVarReciChn0, float
    #     dtcPixelVarReciChn1, float dtcPixelVarReciChn2, float dtcPixelVarReciChn3, uint64_t batchIndex)
    "aclmdlSetAIPPPixelVarReci": Prototype(aclError, (AippParams, c_float, c_float, c_float, c_float, c_uint64), Check.STATUS, "5.0"),
    # aclError aclmdlSetInputAIPP(uint32_t modelId, aclmdlDataset *dataset, size_t index, const aclmdlAIPP
    #     *aippParmsSet)
    "aclmdlSetInputAIPP": Prototype(aclError, (c_uint32, Dataset, c_size_t, AippParams), Check.STATUS, "5.0"),
    # aclError aclmdlSetAIPPByInputIndex(uint32_t modelId, aclmdlDataset *dataset, size_t index, const aclmdlAIPP
    #     *aippParmsSet)
    "aclmdlSetAIPPByInputIndex": Prototype(aclError, (c_uint32, Dataset, c_size_t, AippParams), Check.STATUS, "5.0"),
    # aclError aclmdlGetAippType(uint32_t modelId, size_t index, aclmdlInputAippType *type, size_t
    #     *dynamicAttachedDataIndex)
    "aclmdlGetAippType": Prototype(aclError, (c_uint32, c_size_t, POINTER(c_uint32), POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlGetFirstAippInfo(uint32_t modelId, size_t index, aclAippInfo *aippInfo)
    "aclmdlGetFirstAippInfo": Prototype(aclError, (c_uint32, c_size_t, POINTER(aclAippInfo)), Check.STATUS, "5.0"),
    # aclError aclmdlCreateAndGetOpDesc(uint32_t deviceId, uint32_t streamId, uint32_t taskId, char *opName,
    #     size_t opNameLen, aclTensorDesc **inputDesc, size_t *numInputs, aclTensorDesc **outputDesc, size_t
    #     *numOutputs)
    "aclmdlCreateAndGetOpDesc": Prototype(aclError, (c_uint32, c_uint32, c_uint32, c_void_p, c_size_t, POINTER(TensorDesc), POINTER(c_size_t), POINTER(TensorDesc), POINTER(c_size_t)), Check.STATUS, "5.0"),
    # aclError aclmdlLoadWithConfig(const aclmdlConfigHandle *handle, uint32_t *modelId)
    "aclmdlLoadWithConfig": Prototype(aclError, (ConfigHandle, POINTER(c_uint32)), Check.STATUS, "5.0"),
    # aclmdlConfigHandle *aclmdlCreateConfigHandle(void)
    "aclmdlCreateConfigHandle": Prototype(ConfigHandle, (), Check.HANDLE, "5.0"),
    # aclError aclmdlDestroyConfigHandle(aclmdlConfigHandle *handle)
    "aclmdlDestroyConfigHandle": Prototype(aclError, (ConfigHandle,), Check.STATUS, "5.0"),
    # aclError aclmdlSetConfigOpt(aclmdlConfigHandle *handle, aclmdlConfigAttr attr, const void *attrValue, size_t
    #     valueSize)
    "aclmdlSetConfigOpt": Prototype(aclError, (ConfigHandle, c_uint32, c_void_p, c_size_t), Check.STATUS, "5.0"),
    # const char *aclmdlGetTensorRealName(const aclmdlDesc *modelDesc, const char *name)
    "aclmdlGetTensorRealName": Prototype(c_void_p, (ModelDesc, c_char_p), Check.TEXT, "5.0"),
    # aclError aclmdlSetDatasetTensorDesc(aclmdlDataset *dataset, aclTensorDesc *tensorDesc, size_t index)
    "aclmdlSetDatasetTensorDesc": Prototype(aclError, (Dataset, TensorDesc, c_size_t), Check.STATUS, "5.0.2"),
    # const char *aclmdlGetOpAttr(aclmdlDesc *modelDesc, const char *opName, const char *attr)
    "aclmdlGetOpAttr": Prototype(c_void_p, (ModelDesc, c_char_p, c_char_p), Check.TEXT, "5.0.2"),
    # aclTensorDesc *aclmdlGetDatasetTensorDesc(const aclmdlDataset *dataset, size_t index)
    "aclmdlGetDatasetTensorDesc": Prototype(TensorDesc, (Dataset, c_size_t), Check.VALUE, "5.0.3"),
    # aclError aclmdlGetDescFromFile(aclmdlDesc *modelDesc, const char *modelPath)
    "aclmdlGetDescFromFile": Prototype(aclError, (ModelDesc, c_char_p), Check.STATUS, "6.3.RC2"),
    # aclError aclmdlGetDescFromMem(aclmdlDesc *modelDesc, const void *model, size_t modelSize)
    "aclmdlGetDescFromMem": Prototype(aclError, (ModelDesc, c_void_p, c_size_t), Check.STATUS, "6.3.RC2"),
    # aclmdlExecConfigHandle *aclmdlCreateExecConfigHandle(void)
    "aclmdlCreateExecConfigHandle": Prototype(ExecConfigHandle, (), Check.HANDLE, "6.3.RC2"),
    # aclError aclmdlDestroyExecConfigHandle(const aclmdlExecConfigHandle *handle)
    "aclmdlDestroyExecConfigHandle": Prototype(aclError, (ExecConfigHandle,), Check.STATUS, "6.3.RC2"),
    # aclError aclmdlExecuteV2(uint32_t modelId, const aclmdlDataset *input, aclmdlDataset *output, aclrtStream
    #     stream, const aclmdlExecConfigHandle *handle)
    "aclmdlExecuteV2": Prototype(aclError, (c_uint32, Dataset, Dataset, Stream, ExecConfigHandle), Check.STATUS, "6.3.RC2"),
    # aclError aclmdlExecuteAsyncV2(uint32_t modelId, const aclmdlDataset *input, aclmdlDataset *output,
    #     aclrtStream stream, const aclmdlExecConfigHandle *handle)
    "aclmdlExecuteAsyncV2": Prototype(aclError, (c_uint32, Dataset, Dataset, Stream, ExecConfigHandle), Check.STATUS, "6.3.RC2"),
    # aclError aclmdlSetExecConfigOpt(aclmdlExecConfigHandle *handle, aclmdlExecConfigAttr attr, const void
    #     *attrValue, size_t valueSize)
    "aclmdlSetExecConfigOpt": Prototype(aclError, (ExecConfigHandle, c_uint32, c_void_p, c_size_t), Check.STATUS, "6.3.RC2"),
    # aclError aclmdlGetAippDataSize(uint64_t batchSize, size_t *size)
    "aclmdlGetAippDataSize": Prototype(aclError, (c_uint64, POINTER(c_size_t)), Check.STATUS, "8.0.RC2"),
    # aclError aclmdlGetInputDimsRange(const aclmdlDesc *modelDesc, size_t index, aclmdlIODimsRange *dimsRange)
    "aclmdlGetInputDimsRange": Prototype(aclError, (ModelDesc, c_size_t, POINTER(aclmdlIODimsRange)), Check.STATUS, "8.0.RC3"),
    # aclError aclmdlSetExternalWeightAddress(aclmdlConfigHandle *handle, const char *weightFileName, void
    #     *devPtr, size_t size)
    "aclmdlSetExternalWeightAddress": Prototype(aclError, (ConfigHandle, c_char_p, DevicePtr, c_size_t), Check.STATUS, "8.5.0"),
    # aclError aclmdlSetAttribute(uint32_t modelId, aclmdlAttr attr, aclmdlAttrValue_t *attrValue)
    "aclmdlSetAttribute": Prototype(aclError, (c_uint32, c_uint32, POINTER(aclmdlAttrValue_t)), Check.STATUS, "9.1.0"),
    # aclError aclmdlGetAttribute(uint32_t modelId, aclmdlAttr attr, aclmdlAttrValue_t *attrValue)
    "aclmdlGetAttribute": Prototype(aclError, (c_uint32, c_uint32, POINTER(aclmdlAttrValue_t)), Check.STATUS, "9.1.0"),
}

REQUIRED: frozenset[str] = frozenset({
    "aclInit", "aclFinalize", "aclGetRecentErrMsg",
    "aclrtGetDeviceCount", "aclrtGetSocName", "aclrtGetRunMode", "aclrtSetDevice", "aclrtResetDevice", "aclrtSynchronizeDevice",
    "aclrtGetCurrentContext", "aclrtSetCurrentContext",
    "aclrtCreateStream", "aclrtDestroyStream", "aclrtSynchronizeStream", "aclrtStreamWaitEvent",
    "aclrtCreateEvent", "aclrtDestroyEvent", "aclrtRecordEvent", "aclrtSynchronizeEvent",
    "aclrtMalloc", "aclrtFree", "aclrtMallocHost", "aclrtFreeHost", "aclrtGetMemInfo",
    "aclrtMemcpy", "aclrtMemcpyAsync", "aclrtMemset",
    "aclrtSubscribeReport", "aclrtUnSubscribeReport", "aclrtProcessReport", "aclrtLaunchCallback",
    "aclrtSetExceptionInfoCallback", "aclrtGetStreamIdFromExceptionInfo", "aclrtGetTaskIdFromExceptionInfo",
    "aclmdlQuerySize", "aclmdlQuerySizeFromMem",
    "aclmdlLoadFromFile", "aclmdlLoadFromMem", "aclmdlLoadFromFileWithMem", "aclmdlLoadFromMemWithMem", "aclmdlUnload",
    "aclmdlCreateDesc", "aclmdlDestroyDesc", "aclmdlGetDesc", "aclmdlGetNumInputs", "aclmdlGetNumOutputs",
    "aclmdlGetInputNameByIndex", "aclmdlGetOutputNameByIndex", "aclmdlGetInputIndexByName",
    "aclmdlGetInputSizeByIndex", "aclmdlGetOutputSizeByIndex", "aclmdlGetInputDataType", "aclmdlGetOutputDataType",
    "aclmdlGetInputFormat", "aclmdlGetOutputFormat",
    "aclmdlGetInputDims", "aclmdlGetInputDimsV2", "aclmdlGetOutputDims", "aclmdlGetCurOutputDims",
    "aclmdlGetDynamicBatch", "aclmdlGetDynamicHW", "aclmdlGetInputDynamicGearCount", "aclmdlGetInputDynamicDims",
    "aclmdlSetDynamicBatchSize", "aclmdlSetDynamicHWSize", "aclmdlSetInputDynamicDims",
    "aclCreateDataBuffer", "aclDestroyDataBuffer", "aclUpdateDataBuffer", "aclGetDataBufferAddr", "aclGetDataBufferSizeV2",
    "aclmdlCreateDataset", "aclmdlDestroyDataset", "aclmdlAddDatasetBuffer", "aclmdlGetDatasetBuffer",
    "aclmdlSetDatasetTensorDesc", "aclmdlGetDatasetTensorDesc",
    "aclCreateTensorDesc", "aclDestroyTensorDesc", "aclGetTensorDescNumDims", "aclGetTensorDescDimV2",
    "aclmdlExecute", "aclmdlExecuteAsync",
})
"""What the driver cannot do without: all of it is in CANN 5.0.3. Any other function may be absent and is refused when called."""
