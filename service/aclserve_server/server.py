"""The composition root: makes every room, joins them, and takes them down in order.

up:    library, runtime, device, ACL threads, memory, engine, models, gRPC, HTTP
down:  health not serving, streams told to go away, gRPC stops when accepted items are answered, models, memory,
       ACL threads, device, runtime
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from aclserve.v1 import device_pb2, device_pb2_grpc, memory_pb2, memory_pb2_grpc, model_pb2
from aclserve_server.acl.library import Library, open_library
from aclserve_server.config import Config
from aclserve_server.device.device import Device
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.runtime import Runtime
from aclserve_server.device.thread import DeviceThread
from aclserve_server.emulator import Emulator, EmulatorConfig, bake
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.engine import Engine
from aclserve_server.engine.leases import MemoryLimits
from aclserve_server.engine.loading import RunOptions, Threads
from aclserve_server.engine.memory import MemoryManager
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.outcomes import BatchReport
from aclserve_server.metrics import MetricsServer, ServerMetrics
from aclserve_server.rpc.device import DeviceService, ServerInfo
from aclserve_server.rpc.health import SERVICE_NAME, Health, model_service
from aclserve_server.rpc.memory import MemoryService
from aclserve_server.rpc.model import ModelService
from aclserve_server.rpc.model_config import read_model_config
from aclserve_server.rpc.reflection import add_reflection
from aclserve_server.rpc.status import ErrorInterceptor
from aclserve_server.rpc.stream import StreamLimits
from aclserve_server.rpc.wire_fields import check_descriptors

log = logging.getLogger(__name__)

SERVICES = tuple(
    service.full_name
    for file in (device_pb2, memory_pb2, model_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)

_LINGER_S = 1.0
"""How long other calls may go on at a stop when all items are answered."""

FEATURES = ("health", "reflection", "metrics")
"""Optional abilities, as GetServerInfo tells them."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens."""

    host: str
    port: int
    metrics_port: int


class Server:
    """One server process: one device, its models and its memory. `start`, then `stop`, on one event loop."""

    def __init__(self, config: Config, emulator: Emulator | None = None) -> None:
        """`emulator`: an emulated device to use instead of one made from the configuration (it stays the caller's)."""
        self.config = config
        self._emulator = emulator
        self._resources = AsyncExitStack()
        self._ready = False
        self._ready_at = 0.0
        self.library_path = ""
        self.addresses: Addresses | None = None
        self.health = Health()
        self.registry = CollectorRegistry()
        self.metrics = ServerMetrics(self.registry)

    async def start(self) -> Addresses:
        """Brings everything up and returns where it listens. On failure everything made so far is taken down again."""
        check_descriptors()
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

    async def _start(self) -> Addresses:
        config = self.config
        stack = self._resources
        metrics_port = self._serve_http()
        library = self._open_library()
        self.library_path = library.path
        runtime = stack.enter_context(Runtime.open(library))
        device = stack.enter_context(Device.open(runtime, config.device))
        threads = self._threads(device)
        limits = _memory_limits(config)
        self.memory = MemoryManager(device, threads.blocking, limits)
        await self.memory.start()
        stack.push_async_callback(self.memory.close)
        self.engine = self._engine(threads)
        stack.push_async_callback(self.engine.close)
        await self.engine.load_repository()
        devices = DeviceDirectory(device, config.device, self._emulator is not None, threads.blocking)
        info = ServerInfo(
            version("aclserve"),
            runtime.acl_version(),
            FEATURES,
            config.max_message_bytes,
            config.max_queue_rows,
            config.max_stream_items,
            limits,
        )
        port = await self._serve(devices, info)
        self._in_background(self.memory.run_expiry())
        self._watch()
        self._ready_at = time.monotonic()
        self._ready = True
        for name in ("", *SERVICES):
            self.health.set(name, True)
        return Addresses(config.host, port, metrics_port)

    def _open_library(self) -> Library:
        config = self.config
        if self._emulator is None and config.emulated:
            self._emulator = Emulator(_emulated(config))
            self._resources.callback(self._emulator.close)
        if self._emulator is not None:
            return Library.from_addresses("emulator", self._emulator.addresses())
        return open_library(config.acl_library or None, os.environ)

    def _threads(self, device: Device) -> Threads:
        stack = self._resources
        reports = stack.enter_context(ReportThread(device))
        reports.start()
        calls = stack.enter_context(DeviceThread("device", device))
        blocking = stack.enter_context(DeviceThread("blocking", device))
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
            options,
            root=config.model_repository,
            read_config=read_model_config,
            bake=None if self._emulator is None else _bake,
            observe=self._observe,
            changed=self._model_changed,
        )

    async def _serve(self, devices: DeviceDirectory, info: ServerInfo) -> int:
        config = self.config
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ],
        )
        limits = StreamLimits(config.max_stream_items, config.max_stream_bytes, config.max_message_bytes)
        self.models = ModelService(self.engine, self.memory, limits, config.max_queue_rows)
        self.models.add_to_server(server)
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(self.memory, devices), server)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceService(devices, info, self._uptime_s), server)
        self.health.add_to_server(server)
        add_reflection(server, [*SERVICES, SERVICE_NAME])
        host = f"[{config.host}]" if ":" in config.host else config.host
        try:
            port = server.add_insecure_port(f"{host}:{config.port}")
        except RuntimeError as error:
            raise OSError(f"--port: cannot listen on {host}:{config.port}; is it in use? 0 picks a free one") from error
        await server.start()
        self._resources.push_async_callback(self._stop_serving, server)
        return port

    def _serve_http(self) -> int:
        """Starts the HTTP server, the first to come up and the last to go: it answers while the server drains."""
        config = self.config
        http = MetricsServer(config.host, config.metrics_port, self.registry, lambda: self._ready)
        try:
            port = http.start()
        except OSError as error:
            raise OSError(
                f"--metrics-port: cannot listen on {config.host}:{config.metrics_port} ({error.strerror or error}); "
                "0 picks a free one"
            ) from error
        self._resources.callback(http.close)
        return port

    async def _stop_serving(self, server: grpc.aio.Server) -> None:
        """Accepted items are answered, within the drain's bound; new calls are refused meanwhile.

        Calls that nothing is owed to, such as a lease's keep-alive, do not hold up the stop.
        """
        self.models.go_away()
        self.engine.hurry()
        self.health.shutdown()
        stopped = asyncio.create_task(server.stop(self.config.drain_timeout_s))
        answered = asyncio.create_task(self.models.answered())
        await asyncio.wait({stopped, answered}, return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        await server.stop(_LINGER_S)
        await stopped

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine until the server stops."""
        task = asyncio.create_task(coroutine)

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._resources.push_async_callback(end)

    def _watch(self) -> None:
        """What the metrics read when they are asked for."""
        self.metrics.watch_streams(lambda: len(self.models.sessions))
        self.metrics.watch_leases(self._leases)

    def _leases(self) -> tuple[int, int, int]:
        use = self.memory.use()
        return use.leases, use.buffers, use.device_bytes + use.host_bytes

    def _uptime_s(self) -> float:
        return time.monotonic() - self._ready_at if self._ready else 0.0

    def _observe(self, batch: BatchReport) -> None:
        self.metrics.observe_batch(
            batch.model,
            batch.rows,
            wait_s=batch.wait_s,
            execute_s=batch.execute_s,
            total_s=batch.total_s,
            items=batch.items,
            padding_rows=batch.padding_rows,
            code=batch.code,
        )

    def _model_changed(self, name: str) -> None:
        ready = self.engine.is_ready(name)
        self.health.set(model_service(name), ready)
        if ready:
            self.metrics.watch_queue(name, lambda: self.engine.queue_rows(name))
        else:
            self.metrics.forget_model(name)


def _memory_limits(config: Config) -> MemoryLimits:
    return MemoryLimits(
        config.max_leases,
        config.max_lease_device_bytes,
        config.max_lease_host_bytes,
        config.max_lease_ttl_s,
        config.max_upload_bytes,
    )


def _emulated(config: Config) -> EmulatorConfig:
    return EmulatorConfig(
        run_mode=config.emulator_run_mode,
        memory_bytes=config.emulator_memory_bytes,
        intra_op_threads=config.emulator_threads,
        profile=config.emulator_profile,
        slot_budget_bytes=config.slot_budget_bytes,
        device_count=config.device + 1,
    )


def _bake(model: bytes, config: ModelConfig) -> bytes:
    """Compiles a configuration's gears into a model for the emulated device, as `atc` does for an NPU."""
    return bake(
        model,
        dynamic_batch_size=config.dynamic_batch_size,
        dynamic_image_size=config.dynamic_image_size,
        dynamic_dims=config.dynamic_dims,
    )
