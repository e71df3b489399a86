"""A real server inside the test's process, on an emulated device that the test can hold, fail and count.

The server runs on an event loop of its own thread, so tests may use blocking clients.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from aclserve_server.config import Config
from aclserve_server.emulator import Emulator, EmulatorConfig
from aclserve_server.server import Server

T = TypeVar("T")


@dataclass
class Serving:
    """A server that is up. `run` executes a coroutine on its loop."""

    server: Server
    emulator: Emulator
    address: str
    metrics_port: int
    loop: asyncio.AbstractEventLoop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)


@contextmanager
def serving(repository: Path, *, emulator: EmulatorConfig | None = None, **options: Any) -> Iterator[Serving]:
    """Serves a repository; at the end stops, and checks that nothing is live on the device and nothing went wrong in
    it.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-server")
    thread.start()
    device = Emulator(emulator or EmulatorConfig())
    options = {"port": 0, "metrics_port": 0, **options}
    config = Config(acl_library="emulator", model_repository=repository, **options)
    try:
        server = asyncio.run_coroutine_threadsafe(_make(config, device), loop).result(60)
        try:
            assert server.addresses is not None
            port = server.addresses.port
            yield Serving(server, device, f"127.0.0.1:{port}", server.addresses.metrics_port, loop)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        live = {kind: count for kind, count in device.ledger().items() if count}
        assert not live, f"live after the server stopped: {live}"
        assert not device.errors, device.errors
    finally:
        device.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _make(config: Config, device: Emulator) -> Server:
    server = Server(config, device)
    await server.start()
    return server


def put_model(root: Path, name: str, model: onnx.ModelProto, config: str = "", version: int = 1) -> None:
    """Adds a model to a repository."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    onnx.save(model, str(folder / "model.onnx"))
    if config:
        (root / name / "config.pbtxt").write_text(config)


def elementwise(
    op: str = "Identity",
    shape: tuple[int | str, ...] = ("rows", 4),
    dtype: int = TensorProto.FLOAT,
    *,
    metadata: dict[str, str] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one operator, `x` to `y`, of equal shapes."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "elementwise",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, list(shape))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model


def rows(first: int, count: int, width: int = 4) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows that tell themselves apart."""
    return np.arange(first * width, (first + count) * width, dtype=np.float32).reshape(count, width)
