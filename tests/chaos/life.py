"""A scripted life of the service on an emulated device, in which any call of AscendCL and any task may be made to fail.

`start`, then `serve` (every kind of model, memory of leases, loads and unloads), then `stop`. Each step of `serve` is
a call of its own; what fails is told by a `Refusal`, and the next round must go as if nothing had been.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from aclserve.v1 import device_pb2, memory_pb2, model_pb2
from aclserve_server.acl.codes import CODES, Category, lookup
from aclserve_server.config import Config
from aclserve_server.emulator import Emulator, EmulatorConfig, PlannedFault
from aclserve_server.server import Server
from device import onnx_models
from e2e.raw import Raw, Refusal, array_of, refusal_of, tensor
from serving import elementwise, put_model, rows

DESTROYERS = ("Destroy", "Free", "Unload", "Reset", "Finalize", "UnSubscribe")
"""What a call so named leaves behind when it fails is lost until the process ends: nobody can give it back."""

DEFERRED = ("aclmdlExecuteAsync", "aclmdlExecute", "aclrtMemcpyAsync", "aclrtRecordEvent", "aclrtLaunchCallback")
"""What submits tasks that may fail later."""

REPRESENTATIVES = {
    Category.USAGE: 107000,
    Category.RESOURCE: 207001,
    Category.TRANSIENT: 507002,
    Category.INTERNAL: 507899,
    Category.DEVICE_FATAL: 507901,
}
"""One code of each class."""

ALL_CODES = sorted({row.value for row in CODES.values() if row.category is not Category.OK})

RELU = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model="relu"))

FIRST = np.array([1.0, 0.0, 2.0, 0.0, 3.0, 0.0], np.float32)


def put_models(root: Path) -> Path:
    """The repository: a batched model, one executed synchronously, and one of unknown shapes."""
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "sync", elementwise("Relu"), 'parameters { key: "execution_mode" value { string_value: "sync" } }')
    folder = root / "free" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(onnx_models.nonzero())
    return root


@dataclass
class Outcome:
    """What became of one life. `lost` tells that the server gave its device up, `refusals` what its clients were
    told, `live` what was left on the device.
    """

    injected: bool = False
    started: bool = False
    lost: bool = False
    refusals: list[Refusal] = field(default_factory=list)
    again: list[Refusal] = field(default_factory=list)
    health: str = ""
    stop_error: str = ""
    live: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    calls: dict[str, Counter[str]] = field(default_factory=dict)


class Loop:
    """An event loop on a thread of its own, for all lives of a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="life")
        self._thread.start()

    def run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)  # type: ignore[arg-type]

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def steps(raw: Raw) -> Iterable[Callable[[], object]]:
    """What a client does: each answer is checked. Later steps do without what an earlier one did not get."""
    held: dict[str, str] = {}
    spaces = {"device": memory_pb2.MEMORY_SPACE_DEVICE, "host": memory_pb2.MEMORY_SPACE_HOST}

    def infer(model: str) -> None:
        answer = raw.infer(model_pb2.InferRequest(model=model, inputs=[tensor("x", rows(1, 3))]))
        assert array_of(answer.outputs.tensors[0]).tolist() == rows(1, 3).tolist()

    def free_shape() -> None:
        answer = raw.infer(model_pb2.InferRequest(model="free", inputs=[tensor("x", FIRST)]))
        found = array_of(answer.outputs.tensors[0], np.int64)
        assert found.tolist() == np.array(np.nonzero(FIRST)).tolist()

    def lease() -> None:
        held["lease"] = raw.lease()

    def allocate(space: str) -> None:
        held[space] = raw.buffer(held.get("lease", "none"), 256, spaces[space])

    def set_memory(space: str) -> None:
        request = memory_pb2.SetMemoryRequest(buffer_id=held.get(space, ""), value=0)
        raw.call("memory", "SetMemory", request, held.get("lease", "none"))

    def write() -> None:
        raw.write(held.get("lease", "none"), held.get("device", ""), rows(5, 2).tobytes())

    def chained() -> None:
        part = {"buffer_id": held.get("device", ""), "length_bytes": 32}
        given = tensor("x", rows(5, 2))
        given.ClearField("data")
        given.buffer.MergeFrom(type(given.buffer)(**part))
        wanted = model_pb2.OutputRequest(name="y", buffer=type(given.buffer)(buffer_id=held.get("host", "")))
        request = model_pb2.InferRequest(model="relu", inputs=[given], outputs=[wanted])
        raw.infer(request, held.get("lease", "none"))

    def read() -> None:
        content = raw.read(held.get("lease", "none"), held.get("host", ""))
        assert content[:32] in (rows(5, 2).tobytes(), bytes(32))

    def free() -> None:
        request = memory_pb2.FreeBufferRequest(buffer_id=held.get("device", ""))
        raw.call("memory", "FreeBuffer", request, held.get("lease", "none"))

    yield lambda: infer("relu")
    yield lambda: infer("sync")
    yield free_shape
    yield lease
    for space in spaces:
        yield lambda space=space: allocate(space)
        yield lambda space=space: set_memory(space)
    yield write
    yield chained
    yield read
    yield free
    yield lambda: raw.release(held.get("lease", "none"))
    yield lambda: raw.devices.ListDevices(device_pb2.ListDevicesRequest(), timeout=30)
    yield lambda: raw.call("models", "UnloadModel", model_pb2.UnloadModelRequest(model="relu"))
    yield lambda: raw.call(
        "models",
        "LoadModel",
        model_pb2.LoadModelRequest(source=RELU),
    )
    yield lambda: infer("relu")


def serve(raw: Raw) -> list[Refusal]:
    """One round; what was refused."""
    refusals = []
    for step in steps(raw):
        try:
            step()
        except grpc.RpcError as error:
            refusals.append(refusal_of(error).check_clean())
    return refusals


def live(
    loop: Loop, root: Path, phase: str, function: str, code: int, *, nth: int = 1, task: bool = False, mode: str
) -> Outcome:
    """One life in which a call (or a task) fails in a phase: "start", "serve", "stop", or "" for none."""
    outcome = Outcome()
    faults = (PlannedFault(function, code, nth, task=task),) if phase == "start" else ()
    emulator = Emulator(EmulatorConfig(run_mode=mode, faults=faults, memory_bytes=256 << 20))
    counters = emulator.counters
    plan = emulator.faults.fail_task if task else emulator.faults.fail_call

    def phase_over(name: str) -> None:
        outcome.calls[name] = Counter(counters.calls)
        counters.reset()
        if name == phase:
            outcome.injected = emulator.faults.is_clear()
            emulator.faults.clear()

    patience_s = 0.5 if is_silent(function, task) else 30.0
    config = Config(acl_library="emulator", model_repository=root, port=0, metrics_port=0, device_timeout_s=patience_s)
    server = Server(config, emulator)
    try:
        try:
            addresses = loop.run(server.start())
            outcome.started = True
        except Exception as error:
            outcome.stop_error = f"{type(error).__name__}: {error}"
        phase_over("start")
        if outcome.started:
            with Raw(f"127.0.0.1:{addresses.port}") as raw:  # type: ignore[attr-defined]
                if phase == "serve":
                    plan(function, code, nth)
                outcome.refusals = serve(raw)
                phase_over("serve")
                outcome.lost = server.surrender.lost.is_set()
                outcome.again = serve(raw)
                outcome.health = health(raw)
            counters.reset()
            if phase == "stop":
                plan(function, code, nth)
            try:
                loop.run(server.stop())
            except Exception as error:
                outcome.stop_error = f"{type(error).__name__}: {error}"
            phase_over("stop")
        outcome.live = {kind: count for kind, count in emulator.ledger().items() if count}
        outcome.errors = [repr(error) for error in emulator.errors]
    finally:
        emulator.close()
    return outcome


def health(raw: Raw) -> str:
    """What the whole server says of itself."""
    check = raw.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return str(
        health_pb2.HealthCheckResponse.ServingStatus.Name(check(health_pb2.HealthCheckRequest(), timeout=30).status)
    )


def is_silent(function: str, task: bool) -> bool:
    """Whether the failure is that a callback never comes: the watchdog finds it."""
    return task and function == "aclrtLaunchCallback"


def check(outcome: Outcome, phase: str, function: str, code: int, *, task: bool) -> None:
    """Holds a life against what its class demands."""
    category = lookup(code).category
    told = (phase, function, code, lookup(code).name)
    assert not outcome.errors, (told, outcome.errors)
    if not any(part in function for part in DESTROYERS):
        assert not outcome.live, (told, outcome.live)
    if not outcome.injected:
        return
    fatal = category is Category.DEVICE_FATAL or is_silent(function, task)
    if phase == "start":
        assert outcome.lost or not (fatal and outcome.started), (told, "it serves with a lost device")
        return
    if phase == "stop":
        return
    assert outcome.lost == fatal, told
    for refusal in outcome.refusals:
        if refusal.metadata.get("acl_code") == str(code):
            check_refusal(refusal, code)
    if fatal:
        assert outcome.health == "NOT_SERVING", told
        assert {one.reason for one in outcome.again if one.code is grpc.StatusCode.UNAVAILABLE} == {"DEVICE_LOST"}, told
        assert all(one.retry_s for one in outcome.again if one.reason == "DEVICE_LOST"), told
        assert len([one for one in outcome.again if one.reason == "DEVICE_LOST"]) >= 5, (told, outcome.again)
    else:
        assert outcome.health == "SERVING", told


def check_refusal(refusal: Refusal, code: int) -> None:
    """The status that a failed call's class demands, and what it tells."""
    row = lookup(code)
    assert refusal.metadata["acl_name"] == row.name
    assert refusal.metadata["acl_call"]
    assert refusal.metadata.get("acl_hint", "") == row.action
    status = grpc.StatusCode
    may = {
        Category.USAGE: {status.INTERNAL, status.INVALID_ARGUMENT},
        Category.RESOURCE: {status.RESOURCE_EXHAUSTED, status.UNIMPLEMENTED, status.INTERNAL},
        Category.TRANSIENT: {status.UNAVAILABLE},
        Category.INTERNAL: {status.INTERNAL, status.INVALID_ARGUMENT},
        Category.DEVICE_FATAL: {status.UNAVAILABLE},
    }[row.category]
    assert refusal.code in may, (refusal, row)
    retries = refusal.code in (status.UNAVAILABLE, status.RESOURCE_EXHAUSTED)
    assert (refusal.retry_s is not None) == retries, refusal
