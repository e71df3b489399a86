"""The types of the AscendCL C ABI: handles, enums, structs, callbacks and constants, with the headers' names.

Every opaque handle is a ``c_void_p`` subclass of its own, so that ctypes rejects a stream where a dataset is due.
Enums travel as their underlying 32-bit integer. LP64 little-endian, as on the x86-64 and aarch64 hosts of Ascend NPUs.
"""

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum

# ruff: noqa: N816 (the names are the headers')

aclError = c_int
aclFloat16 = c_uint16

ACL_CONTINUE_ON_FAILURE = 0
ACL_DYNAMIC_AIPP_NAME = "ascend_dynamic_aipp_data"
ACL_DYNAMIC_TENSOR_NAME = "ascend_mbatch_shape_data"
ACL_EVENT_CAPTURE_STREAM_PROGRESS = 2
ACL_EVENT_DEVICE_USE_ONLY = 16
ACL_EVENT_EXTERNAL = 32
ACL_EVENT_IPC = 64
ACL_EVENT_SYNC = 1
ACL_EVENT_TIME_LINE = 8
ACL_HOST_REG_IOMEMORY = 4
ACL_HOST_REG_MAPPED = 2
ACL_HOST_REG_PINNED = 268435456
ACL_HOST_REG_READONLY = 8
ACL_INVALID_NODE_INDEX = 4294967295
ACL_MAX_BATCH_NUM = 128
ACL_MAX_DIM_CNT = 128
ACL_MAX_HW_NUM = 128
ACL_MAX_SHAPE_COUNT = 128
ACL_MAX_TENSOR_NAME_LEN = 128
ACL_MDL_LOAD_FROM_FILE = 1
ACL_MDL_LOAD_FROM_FILE_WITH_MEM = 2
ACL_MDL_LOAD_FROM_FILE_WITH_Q = 5
ACL_MDL_LOAD_FROM_MEM = 3
ACL_MDL_LOAD_FROM_MEM_WITH_MEM = 4
ACL_MDL_LOAD_FROM_MEM_WITH_Q = 6
ACL_PKG_VERSION_MAX_SIZE = 128
ACL_PKG_VERSION_PARTS_MAX_SIZE = 64
ACL_RT_MEM_UCE_INFO_MAX_NUM = 20
ACL_STOP_ON_FAILURE = 1
ACL_STREAM_CPU_SCHEDULE = 16
ACL_STREAM_DEVICE_USE_ONLY = 32
ACL_STREAM_FAST_LAUNCH = 1
ACL_STREAM_FAST_SYNC = 2
ACL_STREAM_HUGE = 8
ACL_STREAM_PERSISTENT = 4
ACL_TENSOR_SHAPE_RANGE_NUM = 2
ACL_UNKNOWN_RANK = -2


class Context(c_void_p):
    """``aclrtContext``: a context: the owner of streams and events, current per thread."""


class Stream(c_void_p):
    """``aclrtStream``: an ordered queue of device tasks."""


class Event(c_void_p):
    """``aclrtEvent``: a marker that is recorded in a stream."""


class ModelDesc(c_void_p):
    """``aclmdlDesc``: the description of a model."""


class Dataset(c_void_p):
    """``aclmdlDataset``: an ordered list of data buffers."""


class DataBuffer(c_void_p):
    """``aclDataBuffer``: an address and a size; it never owns the memory."""


class TensorDesc(c_void_p):
    """``aclTensorDesc``: data type, format and dims of one tensor."""


class AippParams(c_void_p):
    """``aclmdlAIPP``: the parameters of dynamic image pre-processing."""


class ConfigHandle(c_void_p):
    """``aclmdlConfigHandle``: the options of one model load."""


class ExecConfigHandle(c_void_p):
    """``aclmdlExecConfigHandle``: the options of one execution."""


class ExceptionInfo(c_void_p):
    """``aclrtExceptionInfo``: a failed task, valid only inside the exception callback."""


class DevicePtr(c_void_p):
    """An address in device memory, as aclrtMalloc returns it."""


class aclDataType(IntEnum):
    """``acl/acl_base_rt.h``"""

    ACL_DT_UNDEFINED = -1
    ACL_FLOAT = 0
    ACL_FLOAT16 = 1
    ACL_INT8 = 2
    ACL_INT32 = 3
    ACL_UINT8 = 4
    ACL_INT16 = 6
    ACL_UINT16 = 7
    ACL_UINT32 = 8
    ACL_INT64 = 9
    ACL_UINT64 = 10
    ACL_DOUBLE = 11
    ACL_BOOL = 12
    ACL_STRING = 13
    ACL_COMPLEX64 = 16
    ACL_COMPLEX128 = 17
    ACL_BF16 = 27
    ACL_INT4 = 29
    ACL_UINT1 = 30
    ACL_COMPLEX32 = 33
    ACL_HIFLOAT8 = 34
    ACL_FLOAT8_E5M2 = 35
    ACL_FLOAT8_E4M3FN = 36
    ACL_FLOAT8_E8M0 = 37
    ACL_FLOAT6_E3M2 = 38
    ACL_FLOAT6_E2M3 = 39
    ACL_FLOAT4_E2M1 = 40
    ACL_FLOAT4_E1M2 = 41


class aclFormat(IntEnum):
    """``acl/acl_base_rt.h``"""

    ACL_FORMAT_UNDEFINED = -1
    ACL_FORMAT_NCHW = 0
    ACL_FORMAT_NHWC = 1
    ACL_FORMAT_ND = 2
    ACL_FORMAT_NC1HWC0 = 3
    ACL_FORMAT_FRACTAL_Z = 4
    ACL_FORMAT_NC1HWC0_C04 = 12
    ACL_FORMAT_HWCN = 16
    ACL_FORMAT_NDHWC = 27
    ACL_FORMAT_FRACTAL_NZ = 29
    ACL_FORMAT_NCDHW = 30
    ACL_FORMAT_NDC1HWC0 = 32
    ACL_FRACTAL_Z_3D = 33
    ACL_FORMAT_NC = 35
    ACL_FORMAT_NCL = 47
    ACL_FORMAT_FRACTAL_NZ_C0_16 = 50
    ACL_FORMAT_FRACTAL_NZ_C0_32 = 51
    ACL_FORMAT_FRACTAL_NZ_C0_2 = 52
    ACL_FORMAT_FRACTAL_NZ_C0_4 = 53
    ACL_FORMAT_FRACTAL_NZ_C0_8 = 54


class aclLogLevel(IntEnum):
    """``acl/acl_base_rt.h``"""

    ACL_DEBUG = 0
    ACL_INFO = 1
    ACL_WARNING = 2
    ACL_ERROR = 3


class aclrtRunMode(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_DEVICE = 0
    ACL_HOST = 1


class aclrtTsId(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_TS_ID_AICORE = 0
    ACL_TS_ID_AIVECTOR = 1
    ACL_TS_ID_RESERVED = 2


class aclrtEventStatus(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_EVENT_STATUS_COMPLETE = 0
    ACL_EVENT_STATUS_NOT_READY = 1
    ACL_EVENT_STATUS_RESERVED = 2


class aclrtCallbackBlockType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_CALLBACK_NO_BLOCK = 0
    ACL_CALLBACK_BLOCK = 1


class aclrtMemcpyKind(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_MEMCPY_HOST_TO_HOST = 0
    ACL_MEMCPY_HOST_TO_DEVICE = 1
    ACL_MEMCPY_DEVICE_TO_HOST = 2
    ACL_MEMCPY_DEVICE_TO_DEVICE = 3
    ACL_MEMCPY_DEFAULT = 4
    ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE = 5
    ACL_MEMCPY_INNER_DEVICE_TO_DEVICE = 6
    ACL_MEMCPY_INTER_DEVICE_TO_DEVICE = 7


class aclrtMemMallocPolicy(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_MEM_MALLOC_HUGE_FIRST = 0
    ACL_MEM_MALLOC_HUGE_ONLY = 1
    ACL_MEM_MALLOC_NORMAL_ONLY = 2
    ACL_MEM_MALLOC_HUGE_FIRST_P2P = 3
    ACL_MEM_MALLOC_HUGE_ONLY_P2P = 4
    ACL_MEM_MALLOC_NORMAL_ONLY_P2P = 5
    ACL_MEM_MALLOC_HUGE1G_ONLY = 6
    ACL_MEM_MALLOC_HUGE1G_ONLY_P2P = 7
    ACL_MEM_TYPE_LOW_BAND_WIDTH = 256
    ACL_MEM_TYPE_HIGH_BAND_WIDTH = 4096
    ACL_MEM_ACCESS_USER_SPACE_READONLY = 1048576


class aclrtMemAttr(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_DDR_MEM = 0
    ACL_HBM_MEM = 1
    ACL_DDR_MEM_HUGE = 2
    ACL_DDR_MEM_NORMAL = 3
    ACL_HBM_MEM_HUGE = 4
    ACL_HBM_MEM_NORMAL = 5
    ACL_DDR_MEM_P2P_HUGE = 6
    ACL_DDR_MEM_P2P_NORMAL = 7
    ACL_HBM_MEM_P2P_HUGE = 8
    ACL_HBM_MEM_P2P_NORMAL = 9
    ACL_HBM_MEM_HUGE1G = 10
    ACL_HBM_MEM_P2P_HUGE1G = 11
    ACL_MEM_NORMAL = 12
    ACL_MEM_HUGE = 13
    ACL_MEM_HUGE1G = 14
    ACL_MEM_P2P_NORMAL = 15
    ACL_MEM_P2P_HUGE = 16
    ACL_MEM_P2P_HUGE1G = 17


class aclAippInputFormat(IntEnum):
    """``acl/acl_mdl.h``"""

    ACL_YUV420SP_U8 = 1
    ACL_XRGB8888_U8 = 2
    ACL_RGB888_U8 = 3
    ACL_YUV400_U8 = 4
    ACL_NC1HWC0DI_FP16 = 5
    ACL_NC1HWC0DI_S8 = 6
    ACL_ARGB8888_U8 = 7
    ACL_YUYV_U8 = 8
    ACL_YUV422SP_U8 = 9
    ACL_AYUV444_U8 = 10
    ACL_RAW10 = 11
    ACL_RAW12 = 12
    ACL_RAW16 = 13
    ACL_RAW24 = 14
    ACL_AIPP_RESERVED = 65535


class aclmdlInputAippType(IntEnum):
    """``acl/acl_mdl.h``"""

    ACL_DATA_WITHOUT_AIPP = 0
    ACL_DATA_WITH_STATIC_AIPP = 1
    ACL_DATA_WITH_DYNAMIC_AIPP = 2
    ACL_DYNAMIC_AIPP_NODE = 3


class aclmdlConfigAttr(IntEnum):
    """``acl/acl_mdl.h``"""

    ACL_MDL_PRIORITY_INT32 = 0
    ACL_MDL_LOAD_TYPE_SIZET = 1
    ACL_MDL_PATH_PTR = 2
    ACL_MDL_MEM_ADDR_PTR = 3
    ACL_MDL_MEM_SIZET = 4
    ACL_MDL_WEIGHT_ADDR_PTR = 5
    ACL_MDL_WEIGHT_SIZET = 6
    ACL_MDL_WORKSPACE_ADDR_PTR = 7
    ACL_MDL_WORKSPACE_SIZET = 8
    ACL_MDL_INPUTQ_NUM_SIZET = 9
    ACL_MDL_INPUTQ_ADDR_PTR = 10
    ACL_MDL_OUTPUTQ_NUM_SIZET = 11
    ACL_MDL_OUTPUTQ_ADDR_PTR = 12
    ACL_MDL_WORKSPACE_MEM_OPTIMIZE = 13
    ACL_MDL_WEIGHT_PATH_PTR = 14
    ACL_MDL_MODEL_DESC_PTR = 15
    ACL_MDL_MODEL_DESC_SIZET = 16
    ACL_MDL_KERNEL_PTR = 17
    ACL_MDL_KERNEL_SIZET = 18
    ACL_MDL_KERNEL_ARGS_PTR = 19
    ACL_MDL_KERNEL_ARGS_SIZET = 20
    ACL_MDL_STATIC_TASK_PTR = 21
    ACL_MDL_STATIC_TASK_SIZET = 22
    ACL_MDL_DYNAMIC_TASK_PTR = 23
    ACL_MDL_DYNAMIC_TASK_SIZET = 24
    ACL_MDL_MEM_MALLOC_POLICY_SIZET = 25
    ACL_MDL_FIFO_PTR = 26
    ACL_MDL_FIFO_SIZET = 27
    ACL_MDL_WITHOUT_GRAPH_INT32 = 28
    ACL_NPU_PERF_MODE = 29
    ACL_MDL_RESERVED = 65535


class aclrtEventWaitStatus(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_EVENT_WAIT_STATUS_COMPLETE = 0
    ACL_EVENT_WAIT_STATUS_NOT_READY = 1
    ACL_EVENT_WAIT_STATUS_RESERVED = 65535


class aclrtEventRecordedStatus(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_EVENT_RECORDED_STATUS_NOT_READY = 0
    ACL_EVENT_RECORDED_STATUS_COMPLETE = 1


class aclmdlExecConfigAttr(IntEnum):
    """``acl/acl_mdl.h``"""

    ACL_MDL_STREAM_SYNC_TIMEOUT = 0
    ACL_MDL_EVENT_SYNC_TIMEOUT = 1
    ACL_MDL_WORK_ADDR_PTR = 2
    ACL_MDL_WORK_SIZET = 3
    ACL_MDL_MPAIMID_SIZET = 4
    ACL_MDL_AICQOS_SIZET = 5
    ACL_MDL_AICOST_SIZET = 6
    ACL_MDL_MEC_TIMETHR_SIZET = 7
    ACL_MDL_EXEC_PRIORITY_INT32 = 8
    ACL_MDL_NPU_PERF_MODE = 9


class aclrtStreamStatus(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_STREAM_STATUS_COMPLETE = 0
    ACL_STREAM_STATUS_NOT_READY = 1
    ACL_STREAM_STATUS_RESERVED = 65535


class aclrtMemLocationType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_MEM_LOCATION_TYPE_HOST = 0
    ACL_MEM_LOCATION_TYPE_DEVICE = 1
    ACL_MEM_LOCATION_TYPE_UNREGISTERED = 2
    ACL_MEM_LOCATION_TYPE_MANAGED = 3
    ACL_MEM_LOCATION_TYPE_HOST_NUMA = 4


class aclrtDeviceStatus(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_RT_DEVICE_STATUS_NORMAL = 0
    ACL_RT_DEVICE_STATUS_ABNORMAL = 1
    ACL_RT_DEVICE_STATUS_END = 65535


class aclrtHostRegisterType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_HOST_REGISTER_MAPPED = 0
    ACL_HOST_REGISTER_IOMEMORY = 4
    ACL_HOST_REGISTER_READONLY = 8


class aclrtMallocAttrType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_RT_MEM_ATTR_RSV = 0
    ACL_RT_MEM_ATTR_MODULE_ID = 1
    ACL_RT_MEM_ATTR_DEVICE_ID = 2
    ACL_RT_MEM_ATTR_VA_FLAG = 3


class aclrtLastErrLevel(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_RT_THREAD_LEVEL = 0


class aclCANNPackageName(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_PKG_NAME_CANN = 0
    ACL_PKG_NAME_RUNTIME = 1
    ACL_PKG_NAME_COMPILER = 2
    ACL_PKG_NAME_HCCL = 3
    ACL_PKG_NAME_TOOLKIT = 4
    ACL_PKG_NAME_OPP = 5
    ACL_PKG_NAME_OPP_KERNEL = 6
    ACL_PKG_NAME_DRIVER = 7


class aclrtErrorType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_RT_NO_ERROR = 0
    ACL_RT_ERROR_MEMORY = 1
    ACL_RT_ERROR_L2 = 2
    ACL_RT_ERROR_AICORE = 3
    ACL_RT_ERROR_LINK = 4
    ACL_RT_ERROR_L3_PORT = 5
    ACL_RT_ERROR_OTHERS = 65535


class aclrtAicoreErrorType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_RT_AICORE_ERROR_UNKNOWN = 0
    ACL_RT_AICORE_ERROR_SW = 1
    ACL_RT_AICORE_ERROR_HW_LOCAL = 2


class aclrtDevAttr(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_DEV_ATTR_AICPU_CORE_NUM = 1
    ACL_DEV_ATTR_AICORE_CORE_NUM = 101
    ACL_DEV_ATTR_CUBE_CORE_NUM = 102
    ACL_DEV_ATTR_VECTOR_CORE_NUM = 201
    ACL_DEV_ATTR_WARP_SIZE = 202
    ACL_DEV_ATTR_MAX_THREAD_PER_VECTOR_CORE = 203
    ACL_DEV_ATTR_LOCAL_MEM_PER_VECTOR_CORE = 204
    ACL_DEV_ATTR_UBUF_PER_VECTOR_CORE = 204
    ACL_DEV_ATTR_MAX_GRID_DIM_X = 205
    ACL_DEV_ATTR_MAX_GRID_DIM_Y = 206
    ACL_DEV_ATTR_MAX_GRID_DIM_Z = 207
    ACL_DEV_ATTR_MAX_BLOCK_PER_GRID = 208
    ACL_DEV_ATTR_MAX_THREADS_PER_BLOCK = 209
    ACL_DEV_ATTR_MAX_BLOCK_DIM_X = 210
    ACL_DEV_ATTR_MAX_BLOCK_DIM_Y = 211
    ACL_DEV_ATTR_MAX_BLOCK_DIM_Z = 212
    ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE = 301
    ACL_DEV_ATTR_L2_CACHE_SIZE = 302
    ACL_DEV_ATTR_SMP_ID = 401
    ACL_DEV_ATTR_PHY_CHIP_ID = 402
    ACL_DEV_ATTR_SUPER_POD_DEVIDE_ID = 403
    ACL_DEV_ATTR_SUPER_POD_DEVICE_ID = 403
    ACL_DEV_ATTR_SUPER_POD_SERVER_ID = 404
    ACL_DEV_ATTR_SUPER_POD_ID = 405
    ACL_DEV_ATTR_CUST_OP_PRIVILEGE = 406
    ACL_DEV_ATTR_MAINBOARD_ID = 407
    ACL_DEV_ATTR_HD_CONNECT_TYPE = 408
    ACL_DEV_ATTR_DEVICE_FORM_FACTOR = 409
    ACL_DEV_ATTR_IS_VIRTUAL = 501
    ACL_DEV_ATTR_NPU_ARCH = 601


class aclrtDevFeatureType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_FEATURE_TSCPU_TASK_UPDATE_SUPPORT_AIC_AIV = 1
    ACL_FEATURE_SYSTEM_MEMQ_EVENT_CROSS_DEV = 21


class aclRegisterCallbackType(IntEnum):
    """``acl/acl_rt.h``"""

    ACL_REG_TYPE_ACL_MODEL = 0
    ACL_REG_TYPE_ACL_OP_EXECUTOR = 1
    ACL_REG_TYPE_ACL_OP_CBLAS = 2
    ACL_REG_TYPE_ACL_OP_COMPILER = 3
    ACL_REG_TYPE_ACL_TDT_CHANNEL = 4
    ACL_REG_TYPE_ACL_TDT_QUEUE = 5
    ACL_REG_TYPE_ACL_DVPP = 6
    ACL_REG_TYPE_ACL_RETR = 7
    ACL_REG_TYPE_OTHER = 65535


class aclmdlAttr(IntEnum):
    """``acl/acl_mdl.h``"""

    ACL_MDL_ATTR_PRIORITY_INT32 = 0


class aclmdlIODims(Structure):
    """``acl/acl_mdl.h``, 1160 bytes"""

    _fields_ = (
        ("name", c_char * 128),
        ("dimCount", c_size_t),
        ("dims", c_int64 * 128),
    )


class aclmdlBatch(Structure):
    """``acl/acl_mdl.h``, 1032 bytes"""

    _fields_ = (
        ("batchCount", c_size_t),
        ("batch", c_uint64 * 128),
    )


class aclmdlHW(Structure):
    """``acl/acl_mdl.h``, 2056 bytes"""

    _fields_ = (
        ("hwCount", c_size_t),
        ("hw", c_uint64 * 2 * 128),
    )


class aclAippDims(Structure):
    """``acl/acl_mdl.h``, 2336 bytes"""

    _fields_ = (
        ("srcDims", aclmdlIODims),
        ("srcSize", c_size_t),
        ("aippOutdims", aclmdlIODims),
        ("aippOutSize", c_size_t),
    )


class aclAippInfo(Structure):
    """``acl/acl_mdl.h``, 299216 bytes"""

    _fields_ = (
        ("inputFormat", c_uint32),
        ("srcImageSizeW", c_int32),
        ("srcImageSizeH", c_int32),
        ("cropSwitch", c_int8),
        ("loadStartPosW", c_int32),
        ("loadStartPosH", c_int32),
        ("cropSizeW", c_int32),
        ("cropSizeH", c_int32),
        ("resizeSwitch", c_int8),
        ("resizeOutputW", c_int32),
        ("resizeOutputH", c_int32),
        ("paddingSwitch", c_int8),
        ("leftPaddingSize", c_int32),
        ("rightPaddingSize", c_int32),
        ("topPaddingSize", c_int32),
        ("bottomPaddingSize", c_int32),
        ("cscSwitch", c_int8),
        ("rbuvSwapSwitch", c_int8),
        ("axSwapSwitch", c_int8),
        ("singleLineMode", c_int8),
        ("matrixR0C0", c_int32),
        ("matrixR0C1", c_int32),
        ("matrixR0C2", c_int32),
        ("matrixR1C0", c_int32),
        ("matrixR1C1", c_int32),
        ("matrixR1C2", c_int32),
        ("matrixR2C0", c_int32),
        ("matrixR2C1", c_int32),
        ("matrixR2C2", c_int32),
        ("outputBias0", c_int32),
        ("outputBias1", c_int32),
        ("outputBias2", c_int32),
        ("inputBias0", c_int32),
        ("inputBias1", c_int32),
        ("inputBias2", c_int32),
        ("meanChn0", c_int32),
        ("meanChn1", c_int32),
        ("meanChn2", c_int32),
        ("meanChn3", c_int32),
        ("minChn0", c_float),
        ("minChn1", c_float),
        ("minChn2", c_float),
        ("minChn3", c_float),
        ("varReciChn0", c_float),
        ("varReciChn1", c_float),
        ("varReciChn2", c_float),
        ("varReciChn3", c_float),
        ("srcFormat", c_int32),
        ("srcDatatype", c_int32),
        ("srcDimNum", c_size_t),
        ("shapeCount", c_size_t),
        ("outDims", aclAippDims * 128),
        ("aippExtend", c_void_p),
    )


class aclrtUtilizationInfo(Structure):
    """``acl/acl_rt.h``, 24 bytes"""

    _fields_ = (
        ("cubeUtilization", c_int32),
        ("vectorUtilization", c_int32),
        ("aicpuUtilization", c_int32),
        ("memoryUtilization", c_int32),
        ("utilizationExtend", c_void_p),
    )


class aclrtMemUceInfo(Structure):
    """``acl/acl_rt.h``, 128 bytes"""

    _fields_ = (
        ("addr", c_void_p),
        ("len", c_size_t),
        ("reserved", c_size_t * 14),
    )


class aclmdlIODimsRange(Structure):
    """``acl/acl_mdl.h``, 2056 bytes"""

    _fields_ = (
        ("rangeCount", c_size_t),
        ("range", c_int64 * 2 * 128),
    )


class aclrtMallocAttrValue(Union):
    """``acl/acl_rt.h``, 8 bytes"""

    _fields_ = (
        ("moduleId", c_uint16),
        ("deviceId", c_uint32),
        ("vaFlag", c_uint32),
        ("rsv", c_uint8 * 8),
    )


class aclrtMallocAttribute(Structure):
    """``acl/acl_rt.h``, 12 bytes"""

    _fields_ = (
        ("attr", c_uint32),
        ("value", aclrtMallocAttrValue),
    )


class aclrtMallocConfig(Structure):
    """``acl/acl_rt.h``, 16 bytes"""

    _fields_ = (
        ("attrs", POINTER(aclrtMallocAttribute)),
        ("numAttrs", c_size_t),
    )


class aclrtMemLocation(Structure):
    """``acl/acl_rt.h``, 8 bytes"""

    _fields_ = (
        ("id", c_uint32),
        ("type", c_uint32),
    )


class aclrtPtrAttributes(Structure):
    """``acl/acl_rt.h``, 28 bytes"""

    _fields_ = (
        ("location", aclrtMemLocation),
        ("pageSize", c_uint32),
        ("rsv", c_uint32 * 4),
    )


class aclCANNPackageVersion(Structure):
    """``acl/acl_rt.h``, 512 bytes"""

    _fields_ = (
        ("version", c_char * 128),
        ("majorVersion", c_char * 64),
        ("minorVersion", c_char * 64),
        ("releaseVersion", c_char * 64),
        ("patchVersion", c_char * 64),
        ("reserved", c_char * 128),
    )


class aclrtMemUsageInfo(Structure):
    """``acl/acl_rt.h``, 112 bytes"""

    _fields_ = (
        ("name", c_char * 32),
        ("curMemSize", c_uint64),
        ("memPeakSize", c_uint64),
        ("reserved", c_size_t * 8),
    )


class aclrtMemUceInfoArray(Structure):
    """``acl/acl_rt.h``, 2568 bytes"""

    _fields_ = (
        ("arraySize", c_size_t),
        ("memUceInfoArray", aclrtMemUceInfo * 20),
    )


class aclrtErrorInfoDetail(Union):
    """``acl/acl_rt.h``, 2568 bytes"""

    _fields_ = (
        ("uceInfo", aclrtMemUceInfoArray),
        ("aicoreErrType", c_uint32),
    )


class aclrtErrorInfo(Structure):
    """``acl/acl_rt.h``, 2576 bytes"""

    _fields_ = (
        ("tryRepair", c_uint8),
        ("hasDetail", c_uint8),
        ("reserved", c_uint8 * 2),
        ("errorType", c_uint32),
        ("detail", aclrtErrorInfoDetail),
    )


class aclmdlAttrValue_t(Union):
    """``acl/acl_mdl.h``, 32 bytes"""

    _fields_ = (
        ("mdlPriority", c_uint32),
        ("reserved", c_uint32 * 8),
    )


# void (*aclrtExceptionInfoCallback)(aclrtExceptionInfo *exceptionInfo)
aclrtExceptionInfoCallback = CFUNCTYPE(None, ExceptionInfo)

# void (*aclrtCallback)(void *userData)
aclrtCallback = CFUNCTYPE(None, c_void_p)

# aclError (*aclInitCallbackFunc)(const char *configStr, size_t len, void *userData)
aclInitCallbackFunc = CFUNCTYPE(aclError, c_char_p, c_size_t, c_void_p)

# aclError (*aclFinalizeCallbackFunc)(void *userData)
aclFinalizeCallbackFunc = CFUNCTYPE(aclError, c_void_p)

# void (*aclrtHostFunc)(void *args)
aclrtHostFunc = CFUNCTYPE(None, c_void_p)
