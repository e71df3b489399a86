"""The composition root: makes every room, joins them, and takes them down in order.

up:    library, runtime, device, ACL threads, memory, engine, models, gRPC, HTTP
down:  health not serving, streams told to go away, gRPC stops when accepted items are answered, models, memory,
       ACL threads, device, runtime
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import grpc
from prometheus_client import CollectorRegistry

from aclserve.errors import Unavailable
from aclserve.v1 import device_pb2, device_pb2_grpc, memory_pb2, memory_pb2_grpc, model_pb2
from aclserve_server.access.directory import Directory, open_directory
from aclserve_server.acl.library import Library, open_library
from aclserve_server.config import Config, is_loopback
from aclserve_server.device.device import Device
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.runtime import Runtime
from aclserve_server.device.thread import DeviceThread
from aclserve_server.doctor.checkup import Checkup
from aclserve_server.doctor.host import this_host
from aclserve_server.doctor.probe import Outcome
from aclserve_server.doctor.serving import ServerDoctor
from aclserve_server.doctor.settings import options_of_config
from aclserve_server.emulated import bake_gears, emulator_config
from aclserve_server.emulator import Emulator
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.engine import ControlMode, Engine
from aclserve_server.engine.following import Follower
from aclserve_server.engine.leases import MemoryLimits, ids_of
from aclserve_server.engine.loading import RunOptions, Threads
from aclserve_server.engine.mapping import make_mapper
from aclserve_server.engine.memory import MemoryManager
from aclserve_server.engine.regions import Regions
from aclserve_server.engine.watchdog import Watchdog
from aclserve_server.kserve import inference_pb2
from aclserve_server.metrics import MetricsServer, ServerMetrics, sources
from aclserve_server.metrics.triton import TritonNames
from aclserve_server.rpc.calls import OpenCalls
from aclserve_server.rpc.device import DeviceService, ServerInfo
from aclserve_server.rpc.guard import Guard, check_complete
from aclserve_server.rpc.health import SERVICE_NAME, Health, model_service
from aclserve_server.rpc.memory import MemoryService
from aclserve_server.rpc.model import ModelService
from aclserve_server.rpc.model_config import read_model_config
from aclserve_server.rpc.ports import Certificates, make_server, open_port, open_socket, serve_probes
from aclserve_server.rpc.reflection import add_reflection
from aclserve_server.rpc.stream_settings import StreamLimits
from aclserve_server.rpc.tracing import Tracing
from aclserve_server.rpc.v2 import status as kserve_status
from aclserve_server.rpc.v2.infer import Inference
from aclserve_server.rpc.v2.service import SERVICE as KSERVE_SERVICE
from aclserve_server.rpc.v2.service import KserveService, ServerFacts
from aclserve_server.rpc.v2.wire_fields import check_v2_descriptors
from aclserve_server.rpc.wire_fields import check_descriptors
from aclserve_server.rpc.wire_times import unix_ns
from aclserve_server.surrender import Surrender
from aclserve_server.unix_socket import SocketFile, claim, owner_only

log = logging.getLogger(__name__)

DESCRIPTORS = tuple(
    service
    for file in (device_pb2, memory_pb2, model_pb2, inference_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
SERVICES = tuple(service.full_name for service in DESCRIPTORS)

_LOST_DRAIN_S = 3.0
"""How long the answers to items may take to go out when the device is lost."""

_LINGER_S = 1.0
"""How long other calls may go on at a stop when all items are answered."""

FEATURES = ("health", "reflection", "metrics")
"""Optional abilities, as GetServerInfo tells them."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens; `unix_socket` is the path of its socket, or ""."""

    host: str
    port: int
    metrics_port: int
    unix_socket: str = ""


class Server:
    """One server process: one device, its models and its memory. `start`, then `stop`, on one event loop."""

    def __init__(
        self, config: Config, emulator: Emulator | None = None, sources: Mapping[str, str] | None = None
    ) -> None:
        """`emulator`: an emulated device to use instead of one made from the configuration (it stays the caller's);
        `sources`: where each option's value comes from, by name.
        """
        self.config = config
        self._sources = sources or {}
        self._emulator = emulator
        self._resources = AsyncExitStack()
        self._ready = False
        self._ready_at = 0.0
        self.surrender = Surrender()
        self.shared_ports: tuple[int, ...] = ()  # for gRPC besides --port; other workers listen there as well
        self.library_path = ""
        self.principals: Directory | None = None
        self.addresses: Addresses | None = None
        self._grpc: grpc.aio.Server | None = None
        self.health = Health()
        self.registry = CollectorRegistry()
        self.metrics = ServerMetrics(self.registry, unix_ns)
        if config.triton_metrics:
            TritonNames(self.registry, self.metrics)

    async def start(self) -> Addresses:
        """Brings everything up and returns where it listens. On failure everything made so far is taken down again."""
        check_descriptors()
        check_v2_descriptors()
        try:
            self.addresses = await self._start()
        except BaseException:
            await self._resources.aclose()
            raise
        return self.addresses

    async def stop(self) -> None:
        """Answers what was accepted, then takes everything down. Idempotent."""
        self._ready = False
        self.health.drain()
        await self._resources.aclose()

    async def abandon(self) -> None:
        """Ends what clients see of a server whose device hangs; what is held of the device goes with the process."""
        self._ready = False
        self.health.drain()
        if self._grpc is not None:
            await self._stop_serving(self._grpc)

    async def _start(self) -> Addresses:
        config = self.config
        stack = self._resources
        metrics_port = self._serve_http()
        library = self._open_library()
        self.library_path = library.path
        runtime = stack.enter_context(Runtime.open(library))
        device = stack.enter_context(Device.open(runtime, config.device))
        self.surrender.follow(library, device)
        threads = self._threads(device)
        self.surrender.tell(self._lose)
        limits = _memory_limits(config)
        mapper = make_mapper(config.map_shared_memory, device, threads.calls, emulated=self._emulator is not None)
        self.regions = Regions(config.system_shared_memory, config.max_regions, mapper=mapper)
        stack.callback(self.regions.close)
        ids, ended = ids_of(config.replica), self.regions.end_owner
        self.memory = MemoryManager(device, threads.blocking, limits, ids=ids, ended=ended)
        await self.memory.start()
        stack.push_async_callback(self.memory.close)
        self.engine = self._engine(threads)
        stack.push_async_callback(self.engine.close)
        self.surrender.tell(self.engine.lose)
        found = await self.engine.load_repository()
        self.surrender.check()
        devices = DeviceDirectory(device, config.device, self._emulator is not None, threads.blocking)
        info = ServerInfo(
            version("aclserve"),
            runtime.acl_version(),
            (*FEATURES, "shared_memory") if config.system_shared_memory else FEATURES,
            config.max_message_bytes,
            config.max_queue_rows,
            config.max_stream_items,
            limits,
            config.max_stream_bytes,
            config.max_regions if config.system_shared_memory else 0,
        )
        known = Outcome(library=library.path, missing=tuple(sorted(library.missing)), acl_version=info.acl_version)
        port, unix_socket = await self._serve(devices, info, ServerDoctor(devices, known, self._checkup))
        self._in_background(self.memory.run_expiry())
        if self.engine.control_mode == "poll":
            self._in_background(Follower(self.engine, found).run(config.repository_poll_s))
        self._watch(device)
        self._in_background(sources.sample_device(self.metrics, devices))
        self._ready_at = time.monotonic()
        self._ready = not self.surrender.lost.is_set()
        for name in ("", *SERVICES):
            self.health.set(name, True)
        return Addresses(config.host, port, metrics_port, unix_socket)

    def _open_library(self) -> Library:
        config = self.config
        if self._emulator is None and config.emulated:
            self._emulator = Emulator(emulator_config(config))
            self._resources.callback(self._emulator.close)
        if self._emulator is not None:
            return Library.from_addresses("emulator", self._emulator.addresses(), in_interpreter=True)
        return open_library(config.acl_library or None, os.environ)

    def _threads(self, device: Device) -> Threads:
        stack = self._resources
        reports = stack.enter_context(ReportThread(device))
        reports.start()
        calls = stack.enter_context(DeviceThread("device", device))
        blocking = stack.enter_context(DeviceThread("blocking", device))
        for thread in (calls, blocking):
            self.surrender.tell(thread.refuse)
        if self.config.device_timeout_s:
            watchdog = Watchdog(self.config.device_timeout_s)
            self._in_background(watchdog.run(device.loss, reports, (calls, blocking)))
        return Threads(device, calls, blocking, reports)

    def _engine(self, threads: Threads) -> Engine:
        config = self.config
        options = RunOptions(
            config.slots,
            config.max_queue_rows,
            config.max_queue_delay_us / 1e6,
            config.pack_inline_bytes,
            config.max_stream_rows,
        )
        return Engine(
            threads,
            self.memory,
            self.regions,
            options,
            root=config.model_repository,
            read_config=read_model_config,
            bake=None if self._emulator is None else bake_gears,
            observe=self.metrics.model,
            changed=self._model_changed,
            leaked=self.metrics.count_leaked,
            control_mode=cast(ControlMode, config.model_control_mode),
            load_models=config.load_model,
            strict_config=config.strict_config,
        )

    def _checkup(self, ask_device: Callable[[int], Outcome]) -> Checkup:
        """What GetDiagnosis looks at."""
        given = options_of_config(self.config, self._sources)
        host = this_host(os.environ)
        return Checkup(version("aclserve"), host, given, ask_device, read_model_config, Certificates, serving=True)

    async def _serve(self, devices: DeviceDirectory, info: ServerInfo, doctor: ServerDoctor) -> tuple[int, str]:
        """Starts gRPC; the port, and the path of the unix domain socket."""
        config = self.config
        tls = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca) if config.tls_cert else None
        server = make_server(config.max_message_bytes, shares=bool(self.shared_ports))
        guard = self._guard(server)
        limits = StreamLimits(config.max_stream_items, config.max_stream_bytes, config.max_message_bytes)
        self.calls = OpenCalls()
        self.surrender.tell(self.calls.lose)
        self.models = ModelService(self.engine, self.memory, limits, config.max_queue_rows, self.calls)
        if config.tracing:
            self.models.tracing = Tracing.open(version("aclserve"))
            self._resources.push_async_callback(self.models.tracing.close)
        self.models.add_to_server(guard)
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(self.memory, devices, self.regions), guard)
        device_service = DeviceService(devices, info, self._uptime_s, doctor.diagnose)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(device_service, guard)
        self._kserve(limits).add_to_server(guard)
        self.health.add_to_server(guard)
        add_reflection(guard, [*SERVICES, SERVICE_NAME])
        check_complete(DESCRIPTORS, guard.paths)
        port, *_ = [open_port(server, "--port", config.host, one, tls) for one in (config.port, *self.shared_ports)]
        unix_socket = self._add_unix_socket(server)
        if config.health_port:
            probes, _ = await serve_probes(self.health, config.host, config.health_port)
            self._resources.push_async_callback(probes.stop, _LINGER_S)
        await server.start()
        self._grpc = server
        self._resources.push_async_callback(self._stop_serving, server)
        return port, unix_socket

    def _guard(self, server: grpc.aio.Server) -> Any:
        """What services register with instead of the server; the file of principals is followed from here on."""
        config = self.config
        if config.principals:
            self.principals = open_directory(config.principals)
            self._in_background(self.principals.follow())
        elif not is_loopback(config.host) and not config.tls_client_ca:
            log.warning("everybody who reaches %s may run models; --principals says who may", config.host)
        codes = {KSERVE_SERVICE: kserve_status.code_of}
        return Guard(server, codes, directory=self.principals, remote_admin=config.remote_admin)

    def _kserve(self, limits: StreamLimits) -> KserveService:
        """The KServe v2 skin over the same engine."""
        config = self.config
        inference = self.inference = Inference(self.engine, self.memory, self.regions, limits, self.calls)
        inference.tracing = self.models.tracing
        return KserveService(
            self.engine,
            self.memory,
            self.regions,
            self.calls,
            ServerFacts(version("aclserve"), config.device, config.max_upload_bytes, self.models.tracing),
            infer=inference.infer,
            stream_infer=inference.stream_infer,
            is_up=lambda: self._ready,
        )

    def _add_unix_socket(self, server: grpc.aio.Server) -> str:
        """Makes gRPC listen on the unix domain socket too, where one is wanted; its path, or ""."""
        if not self.config.unix_socket:
            return ""
        path = claim(self.config.unix_socket)
        with owner_only():
            open_socket(server, path)
        self._resources.callback(SocketFile(path).remove)
        return str(path)

    def _serve_http(self) -> int:
        """Starts the HTTP server, the first to come up and the last to go: it answers while the server drains."""
        config = self.config
        http = MetricsServer(config.host, config.metrics_port, self.registry, lambda: self._ready)
        port = http.start()
        self._resources.callback(http.close)
        return port

    async def _stop_serving(self, server: grpc.aio.Server) -> None:
        """Accepted items are answered, within the drain's bound; new calls are refused meanwhile.

        Calls that nothing is owed to, such as a lease's keep-alive, do not hold up the stop.
        """
        self.calls.go_away()
        self.engine.hurry()
        self.health.shutdown()
        lost = self.surrender.lost.is_set()
        drain_s = min(self.config.drain_timeout_s, _LOST_DRAIN_S if lost else math.inf)
        stopped = asyncio.create_task(server.stop(drain_s))
        answered = asyncio.create_task(self.calls.answered())
        await asyncio.wait({stopped, answered}, return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        await server.stop(_LINGER_S)
        await stopped

    def _lose(self, error: Unavailable) -> None:
        """The device is lost: nobody is told any more that this server serves."""
        self._ready = False
        self.health.drain()

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine until the server stops."""
        task = asyncio.create_task(coroutine)

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._resources.push_async_callback(end)

    def _watch(self, device: Device) -> None:
        """What the metrics read when they are asked for."""
        self.metrics.watch_streams(lambda: self.calls.streams)
        self.metrics.watch_memory(self.memory.use)
        self.metrics.watch_regions(self.regions.use)
        self.metrics.watch_handles(lambda: sources.handles(device))

    def _uptime_s(self) -> float:
        return time.monotonic() - self._ready_at if self._ready else 0.0

    def _model_changed(self, name: str) -> None:
        self.health.set(model_service(name), self.engine.is_ready(name))
        self.metrics.serve(sources.served(self.engine))


def _memory_limits(config: Config) -> MemoryLimits:
    return MemoryLimits(
        config.max_leases,
        config.max_lease_device_bytes,
        config.max_lease_host_bytes,
        config.max_lease_ttl_s,
        config.max_upload_bytes,
    )
