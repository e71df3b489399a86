"""Scaffolding for client tests: a server on a real socket that behaves as the protos say, with one in-memory model.

The model `echo` takes `x`, float32 [-1, 3], and gives `y` = 2 x. `solo` is the same without batching. Everything a
test wants to know is counted or recorded; a test holds answers back with `gate`.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import grpc
from google.protobuf.duration_pb2 import Duration

from aclserve import errors
from aclserve.v1 import device_pb2, device_pb2_grpc, memory_pb2, memory_pb2_grpc, model_pb2, model_pb2_grpc
from client.echo_errors import abort
from client.echo_models import ModelServicer
from client.echo_regions import Regions


class Faults(grpc.ServerInterceptor):
    """Counts calls by method and fails those that a test planned: `plan[method] = [error, ...]`, one for each call."""

    def __init__(self):
        self.calls = []
        self.metadata = []
        self.plan = {}

    def intercept_service(self, continuation, details):
        method = details.method.rsplit("/", 1)[1]
        self.calls.append(method)
        self.metadata.append(dict(details.invocation_metadata))
        handler = continuation(details)
        if not self.plan.get(method):
            return handler
        error = self.plan[method].pop(0)

        def fail(request, context):
            abort(context, error)

        def fail_stream(request, context):
            abort(context, error)
            yield

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour = fail_stream if handler.response_streaming else fail
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


class EchoServer:
    def __init__(self, *, window=8, window_bytes=0, page_size=2, lease_ttl=60.0, max_message_bytes=1 << 20, port=0,
                 address=None, shared_memory=False):  # fmt: skip
        self.window = window
        self.window_bytes = window_bytes
        self.page_size = page_size
        self.lease_ttl = lease_ttl
        self.max_message_bytes = max_message_bytes
        self.gate = threading.Event()
        self.gate.set()
        self.taken = threading.Semaphore(0)  # a message of items came
        self.infer_began = threading.Semaphore(0)
        self.closing = threading.Event()
        self.faults = Faults()
        self.regions = Regions(self, shared_memory)
        self.max_rows = 8
        self.sick = False  # GetDiagnosis tells of every level
        self.message_bytes = []  # of each item of Infer and each message of items
        self.answer_bytes = []
        self.messages = []  # ids of the items of each message of all streams, in order
        self.cancels = []
        self.most_pending = 0
        self.accept_items = None  # go away after that many items of a stream
        self.break_after = None  # end a stream with `breaks_with` when that many of its items are answered
        self.breaks_with = errors.Unavailable("the worker restarts", reason="WORKER_RESTARTING", retry_delay=0.001)
        self.drop_ids = set()
        self.answered = []  # ids of items, in order
        self.configs = []  # of all streams
        self.priorities = []  # of all items
        self.sessions = []
        self.watchers = 0
        self.silent = False  # never answers a stream's configuration
        self.leases = {}
        self.uploads = {}
        self.loaded = {}
        self.renewed = threading.Semaphore(0)
        self.stream_ended = threading.Semaphore(0)
        self.watch_ended = threading.Semaphore(0)
        self.corrupt_reads = 0
        self.lose_copies = False
        self._ids = (f"id-{number}" for number in itertools.count())
        options = [("grpc.max_receive_message_length", 70 << 20), ("grpc.max_send_message_length", 70 << 20)]
        self._server = grpc.server(ThreadPoolExecutor(16), interceptors=[self.faults], options=options)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceServicer(self), self._server)
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryServicer(self), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self), self._server)
        self.port = self._server.add_insecure_port(address or f"127.0.0.1:{port}")
        self.address = address or f"127.0.0.1:{self.port}"
        self._server.start()

    def close(self):
        self.gate.set()
        self.closing.set()
        self._server.stop(0).wait()
        self.regions.close()

    def say(self, **response):
        """Sends a message of the server's own on every open stream."""
        for session in self.sessions:
            session.say(model_pb2.StreamInferResponse(**response))

    def new_id(self):
        return next(self._ids)

    def lease_id_of(self, context):
        return dict(context.invocation_metadata()).get("aclserve-lease")

    def lease(self, context):
        lease_id = self.lease_id_of(context)
        if lease_id is None:
            abort(context, errors.Unauthenticated("show a lease", reason="LEASE_REQUIRED"))
        if lease_id not in self.leases:
            abort(context, errors.NotFound("no such lease", reason="LEASE_NOT_FOUND"))
        return self.leases[lease_id]

    def page(self, items, request):
        start = int(request.page_token or 0)
        size = min(self.page_size, request.page_size or 100)
        return items[start : start + size], str(start + size) if start + size < len(items) else ""


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    def __init__(self, server):
        self._server = server

    def ListDevices(self, request, context):
        memory = [device_pb2.DeviceMemory(kind="DDR", free_bytes=3 << 30, total_bytes=8 << 30)]
        devices = [
            device_pb2.Device(
                id=0, soc_name="Ascend310P3", run_mode=device_pb2.RUN_MODE_HOST, emulated=True, memory=memory
            ),
            device_pb2.Device(id=1, soc_name="Ascend310", run_mode=device_pb2.RUN_MODE_DEVICE, utilization_percent=7),
            device_pb2.Device(id=2, soc_name="Ascend910", run_mode=99),
        ]
        devices, token = self._server.page(devices, request)
        return device_pb2.ListDevicesResponse(devices=devices, next_page_token=token)

    def GetServerInfo(self, request, context):
        limits = device_pb2.Limits(max_message_bytes=64 << 20, max_stream_items=8, max_lease_ttl=Duration(seconds=3600))
        return device_pb2.GetServerInfoResponse(
            version="0.1.0",
            acl_version="1.2.3",
            features=["reflection"],
            limits=limits,
            uptime=Duration(seconds=5, nanos=500_000_000),
        )

    def GetDiagnosis(self, request, context):
        levels = range(1, 6 if self._server.sick else 3)  # 5 is of a later server
        findings = [
            device_pb2.Finding(level=level, check=f"area.{level}", text=f"text {level}", fix="fix" if level > 2 else "")
            for level in levels
        ]
        settings = [
            device_pb2.Setting(name="slots", value="3", source=device_pb2.SETTING_SOURCE_FLAG),
            device_pb2.Setting(name="host", source=device_pb2.SETTING_SOURCE_ENVIRONMENT),
            device_pb2.Setting(name="port", value="8001", source=device_pb2.SETTING_SOURCE_DEFAULT),
            device_pb2.Setting(name="later", value="1", source=9),
        ]
        return device_pb2.GetDiagnosisResponse(version="0.1.0", findings=findings, settings=settings)


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    def __init__(self, server):
        self._server = server

    def _message(self, lease_id):
        held = self._server.leases[lease_id]
        ttl = Duration()
        ttl.FromNanoseconds(int(held["ttl"] * 1e9))
        used = sum(len(b[1]) for b in held["buffers"].values() if b[0].space == memory_pb2.MEMORY_SPACE_DEVICE)
        return memory_pb2.Lease(id=lease_id, ttl=ttl, remaining=ttl, device_bytes=used, device_quota_bytes=1 << 20)

    def CreateLease(self, request, context):
        lease_id = self._server.new_id()
        ttl = request.ttl.ToNanoseconds() / 1e9 if request.HasField("ttl") else self._server.lease_ttl
        self._server.leases[lease_id] = {"id": lease_id, "ttl": ttl, "buffers": {}}
        return memory_pb2.CreateLeaseResponse(lease=self._message(lease_id))

    def RenewLease(self, request, context):
        lease = self._server.lease(context)
        self._server.renewed.release()
        return memory_pb2.RenewLeaseResponse(lease=self._message(lease["id"]))

    def ReleaseLease(self, request, context):
        lease = self._server.lease(context)
        del self._server.leases[lease["id"]]
        return memory_pb2.ReleaseLeaseResponse(buffers_freed=len(lease["buffers"]))

    def AllocateBuffer(self, request, context):
        lease = self._server.lease(context)
        if request.size_bytes > 1 << 20:
            abort(context, errors.ResourceExhausted("over the quota", reason="LEASE_QUOTA_EXCEEDED"))
        buffer = memory_pb2.Buffer(
            id=self._server.new_id(), space=request.space, size_bytes=request.size_bytes, policy=request.policy
        )
        lease["buffers"][buffer.id] = (buffer, bytearray(request.size_bytes))
        return memory_pb2.AllocateBufferResponse(buffer=buffer)

    def _range(self, context, buffer_id, offset, length):
        buffers = self._server.lease(context)["buffers"]
        if buffer_id not in buffers:
            abort(context, errors.NotFound("no such buffer", reason="BUFFER_NOT_FOUND"))
        content = memoryview(buffers[buffer_id][1])
        length = length or len(content) - offset
        if offset + length > len(content):
            abort(context, errors.OutOfRange("past the end", reason="RANGE_OUTSIDE_BUFFER"))
        return content[offset : offset + length]

    def FreeBuffer(self, request, context):
        self._range(context, request.buffer_id, 0, 0).release()
        del self._server.lease(context)["buffers"][request.buffer_id]
        return memory_pb2.FreeBufferResponse()

    def ListBuffers(self, request, context):
        buffers = [buffer for buffer, _ in self._server.lease(context)["buffers"].values()]
        buffers, token = self._server.page(buffers, request)
        return memory_pb2.ListBuffersResponse(buffers=buffers, next_page_token=token)

    def SetMemory(self, request, context):
        view = self._range(context, request.buffer_id, request.offset_bytes, request.length_bytes)
        view[:] = bytes([request.value]) * len(view)
        return memory_pb2.SetMemoryResponse()

    def CopyMemory(self, request, context):
        length = request.length_bytes
        source = self._range(context, request.source_buffer_id, request.source_offset_bytes, length)
        target = self._range(context, request.destination_buffer_id, request.destination_offset_bytes, length)
        if not self._server.lose_copies:
            target[:] = bytes(source)
        return memory_pb2.CopyMemoryResponse()

    def WriteBuffer(self, request_iterator, context):
        header = next(request_iterator).header
        content = b"".join(part.data for part in request_iterator)
        if len(content) != header.length_bytes or google_crc32c.value(content) != header.crc32c:
            abort(context, errors.DataLoss("wrong", reason="CHECKSUM_MISMATCH"))
        self._range(context, header.buffer_id, header.offset_bytes, header.length_bytes)[:] = content
        return memory_pb2.WriteBufferResponse(crc32c=header.crc32c)

    def ReadBuffer(self, request, context):
        content = bytes(self._range(context, request.buffer_id, request.offset_bytes, request.length_bytes))
        for at in range(0, len(content), 1000):
            last = at + 1000 >= len(content)
            crc = google_crc32c.value(content) ^ self._server.corrupt_reads if last else None
            yield memory_pb2.ReadBufferResponse(data=content[at : at + 1000], crc32c=crc)

    def RegisterRegion(self, request, context):
        return self._server.regions.register(request, context)

    def QueryMemory(self, request, context):
        attributes = request.attributes or [memory_pb2.MEMORY_ATTRIBUTE_DDR, memory_pb2.MEMORY_ATTRIBUTE_HBM]
        return memory_pb2.QueryMemoryResponse(
            usage=[memory_pb2.MemoryUsage(attribute=a, free_bytes=10 * a, total_bytes=100 * a) for a in attributes]
        )
