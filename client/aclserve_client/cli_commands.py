"""The commands of `aclctl`: each calls the client and makes a report."""

from __future__ import annotations

import itertools
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from aclserve_client.cli_inputs import Made, Stacks, as_inputs, load_inputs
from aclserve_client.cli_output import Output, Report, Table, UsageError, shape_text, size_text
from aclserve_client.client import Client
from aclserve_client.data import (
    Batching,
    Inputs,
    ModelDescription,
    Result,
    TensorSpec,
    Timing,
)

_VALUES_SHOWN = 1024
"""Elements of an output that `infer` prints; larger ones are only described."""

_TIMED = ("wait", "copy_in", "execute", "copy_out", "total")


def devices(client: Client, arguments: Namespace, output: Output) -> Report:
    """The server and its devices."""
    server, found = client.server_info(), client.devices()
    rows = [
        (
            device.id,
            device.soc_name,
            device.run_mode,
            "yes" if device.emulated else "no",
            "\n".join(f"{m.kind} {size_text(m.free_bytes)} of {size_text(m.total_bytes)}" for m in device.memory),
            "" if device.utilization_percent is None else f"{device.utilization_percent} %",
        )
        for device in found
    ]
    title = f"aclserve {server.version}, AscendCL {server.acl_version or 'of unknown version'}"
    table = Table(title, ("id", "chip", "run mode", "emulated", "free memory", "busy"), rows)
    return Report({"server": asdict(server), "devices": [asdict(device) for device in found]}, [table])


def list_models(client: Client, arguments: Namespace, output: Output) -> Report:
    """All models."""
    found = client.models()
    rows = [(model.name, model.version, model.state, model.reason) for model in found]
    return Report(
        {"models": [asdict(model) for model in found]}, [Table("", ("model", "version", "state", "reason"), rows)]
    )


def describe_model(client: Client, arguments: Namespace, output: Output) -> Report:
    """One model."""
    return _describe(client.describe(arguments.model, arguments.model_version), arguments.address)


def load_model(client: Client, arguments: Namespace, output: Output) -> Report:
    """Loads a model of the repository, or uploads a file and loads it."""
    mode = arguments.execution_mode
    if arguments.file is None:
        model = client.load(arguments.model, arguments.model_version, execution_mode=mode)
        return _describe(model, arguments.address)
    if arguments.model_version:
        raise UsageError("--model-version is for models of the repository, not for --file")
    if not arguments.file.is_file():
        raise UsageError(f"there is no file {arguments.file}")
    return _describe(client.upload_and_load(arguments.model, arguments.file, execution_mode=mode), arguments.address)


def unload_model(client: Client, arguments: Namespace, output: Output) -> Report:
    """Unloads a model."""
    client.unload(arguments.model, arguments.model_version)
    unloaded = {"name": arguments.model, "version": arguments.model_version}
    return Report({"unloaded": unloaded}, notes=[f"{arguments.model} is unloaded"])


def _describe(model: ModelDescription, address: str) -> Report:
    usage = model.usage.at(address.partition(",")[0])
    facts = [
        ("state", model.state),
        ("batching", f"{model.batching}: {model.batching_reason}"),
        ("gears", ", ".join(f"{gear.kind} {'x'.join(map(str, gear.values))}" for gear in model.gears) or "none"),
        ("rows of an item", f"up to {model.max_rows}"),
        ("execution", f"{model.execution_mode}, {model.slots} slots"),
        ("longest wait for company", f"{model.max_queue_delay_s * 1e3:g} ms"),
        ("work memory", f"{size_text(model.work_bytes)}, managed by {model.memory_owner}"),
        ("weight memory", size_text(model.weight_bytes)),
    ]
    columns = ("name", "dtype", "shape", "format", "largest")

    def rows(specs: tuple[TensorSpec, ...]) -> list[tuple[str, ...]]:
        return [(s.name, s.dtype, shape_text(s.shape), s.format, size_text(s.max_bytes)) for s in specs]

    tables = [
        Table(f"{model.name} version {model.version}", ("", ""), facts),
        Table("inputs", columns, rows(model.inputs)),
        Table("outputs", columns, rows(model.outputs)),
    ]
    ways = (
        ("sample request, for aclserve.v1.ModelService/Infer", model.sample_json),
        ("with grpcurl", usage.grpcurl),
        ("with ghz", usage.ghz),
        ("with the Python client", usage.python),
        ("with tritonclient", usage.python_v2),
    )
    notes = [f"\n{title}:\n\n{text.rstrip()}" for title, text in ways if text]
    return Report(asdict(replace(model, usage=usage)), tables, notes)


def infer(client: Client, arguments: Namespace, output: Output) -> Report:
    """Runs one item."""
    model = client.describe(arguments.model, arguments.model_version)
    made = _made(arguments)
    inputs = made.inputs(model) if made else as_inputs(load_inputs(arguments.input, model), model)
    result = client.infer(arguments.model, inputs, version=arguments.model_version)
    files = _save(result, arguments.output_dir) if arguments.output_dir else {}
    document = {
        "model": model.name,
        "version": model.version,
        "outputs": [_output(name, array, files.get(name)) for name, array in result.outputs.items()],
        "timing": asdict(result.timing) if result.timing else None,
    }
    rows = [
        (name, array.dtype, shape_text(array.shape), files.get(name) or _preview(array))
        for name, array in result.outputs.items()
    ]
    notes = [_timing_text(result.timing)] if result.timing else []
    return Report(document, [Table("", ("output", "dtype", "shape", "values"), rows)], notes)


def _made(arguments: Namespace) -> Made | None:
    """What --zeros and --random ask for."""
    if not (arguments.zeros or arguments.random):
        return None
    return Made(arguments.random, arguments.seed, arguments.rows, dict(arguments.shape))


def _output(name: str, array: np.ndarray[Any, Any], file: Path | None) -> dict[str, Any]:
    described = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if file is not None:
        return {**described, "file": str(file)}
    return {**described, "values": array.tolist() if array.size <= _VALUES_SHOWN else None}


def _preview(array: np.ndarray[Any, Any]) -> str:
    return np.array2string(array, threshold=20, edgeitems=3, precision=4, max_line_width=100)


def _save(result: Result, folder: Path) -> dict[str, Path]:
    """Writes each output as a .npy file. Names come from the server: only harmless characters become part of a path."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name, array in result.outputs.items():
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "output"
        while folder / f"{stem}.npy" in files.values():
            stem += "_"
        files[name] = folder / f"{stem}.npy"
        np.save(files[name], array, allow_pickle=False)
    return files


def _timing_text(timing: Timing) -> str:
    times = ", ".join(f"{part} {getattr(timing, part + '_ns') / 1e6:.3f}" for part in _TIMED)
    return f"on the server, ms: {times}; rows in the batch: {timing.batch_rows}"


def stream(client: Client, arguments: Namespace, output: Output) -> Report:
    """Streams items and measures."""
    model = client.describe(arguments.model, arguments.model_version)
    made = _made(arguments)
    source: Iterable[Inputs]
    if made:
        source, count = itertools.repeat(made.inputs(model), arguments.items), arguments.items
    else:
        stacks = Stacks(load_inputs(arguments.input, model), model, arguments.rows)
        source = itertools.chain.from_iterable(itertools.repeat(stacks, arguments.repeat))
        count = len(stacks) * arguments.repeat
    sent_at: dict[str, float] = {}

    def timed() -> Iterator[Inputs]:
        for position, inputs in enumerate(source):
            sent_at[str(position)] = time.perf_counter()
            yield inputs

    measured = _Measured()
    begin = time.perf_counter()
    with (
        output.progress(model.name, count) as advance,
        client.stream(
            arguments.model,
            arguments.model_version,
            preset=arguments.preset,
            policy=arguments.policy,
            order=arguments.order,
            priority=arguments.priority,
            max_pending=arguments.window,
            max_age=arguments.max_age,
            resume=arguments.resume,
        ) as items,
    ):
        for result in items.map(timed(), pack=arguments.pack):
            measured.add(result, time.perf_counter() - sent_at.pop(result.id))
            advance()
        settings = {
            "policy": items.policy,
            "order": items.order,
            "window": items.window,
            "pack": arguments.pack,
            "resumptions": items.resumptions,
        }
    return measured.report(model, time.perf_counter() - begin, settings)


class _Measured:
    """What a stream's results told."""

    def __init__(self) -> None:
        self._latencies_s: list[float] = []
        self._batch_rows: Counter[int] = Counter()
        self._server_ns = np.zeros(5)
        self._errors: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._rows = 0

    def add(self, result: Result, latency_s: float) -> None:
        if result.error is not None:
            self._errors[result.error.reason] += 1
            return
        if result.dropped is not None:
            self._drops[result.dropped.reason] += 1
            return
        self._latencies_s.append(latency_s)
        self._rows += max((len(array) if array.ndim else 1 for array in result.outputs.values()), default=1)
        if result.timing is not None:
            self._batch_rows[result.timing.batch_rows] += 1
            self._server_ns += tuple(getattr(result.timing, f"{part}_ns") for part in _TIMED)

    def report(self, model: ModelDescription, seconds: float, settings: dict[str, Any]) -> Report:
        succeeded, failed, dropped = len(self._latencies_s), self._errors.total(), self._drops.total()
        rows = self._rows if model.batching is Batching.ROWS else succeeded
        document = {
            "model": model.name,
            "version": model.version,
            "items": succeeded + failed + dropped,
            "succeeded": succeeded,
            "failed": failed,
            "dropped": dropped,
            "errors": dict(self._errors),
            "drops": dict(self._drops),
            "seconds": round(seconds, 4),
            "items_per_second": round(succeeded / seconds, 2),
            "rows_per_second": round(rows / seconds, 2),
            "latency_ms": self._latency_ms(),
            "server_mean_ms": self._server_mean_ms(),
            "items_by_batch_rows": {str(size): count for size, count in sorted(self._batch_rows.items())},
            **settings,
        }
        return Report(document, [_stream_table(document)], ok=not failed)

    def _latency_ms(self) -> dict[str, float]:
        if not self._latencies_s:
            return {}
        points = np.percentile(np.array(self._latencies_s) * 1e3, (50, 90, 99, 100))
        return dict(zip(("p50", "p90", "p99", "max"), (round(float(point), 3) for point in points), strict=True))

    def _server_mean_ms(self) -> dict[str, float]:
        means = self._server_ns / max(1, self._batch_rows.total()) / 1e6
        return {part: round(float(mean), 4) for part, mean in zip(_TIMED, means, strict=True)}


def _stream_table(document: dict[str, Any]) -> Table:
    def pairs(values: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in values.items())

    facts = [
        (
            "items",
            f"{document['succeeded']} answered, {document['failed']} failed, {document['dropped']} dropped, "
            f"in {document['seconds']} s",
        ),
        ("throughput", f"{document['items_per_second']} items/s, {document['rows_per_second']} rows/s"),
        ("latency, ms", pairs(document["latency_ms"])),
        ("on the server, mean ms", pairs(document["server_mean_ms"])),
        ("items by rows of their batch", ", ".join(f"{n}: {c}" for n, c in document["items_by_batch_rows"].items())),
        ("policy, order of results", f"{document['policy']}, {document['order']}"),
        ("window, items a message", f"{document['window']}, up to {document['pack']}"),
    ]
    if document["resumptions"]:
        facts.append(("opened again", f"{document['resumptions']} times"))
    facts += [(f"dropped as {reason}", str(count)) for reason, count in document["drops"].items()]
    facts += [(f"failed with {reason}", str(count)) for reason, count in document["errors"].items()]
    return Table(f"{document['model']} version {document['version']}", ("", ""), facts)


def memory_info(client: Client, arguments: Namespace, output: Output) -> Report:
    """The device's memory by attribute."""
    usage = client.memory(arguments.attribute)
    rows = [(kind.kind, size_text(kind.free_bytes), size_text(kind.total_bytes)) for kind in usage]
    return Report({"memory": [asdict(kind) for kind in usage]}, [Table("", ("attribute", "free", "total"), rows)])


def memory_test(client: Client, arguments: Namespace, output: Output) -> Report:
    """Takes bytes through all four copy directions, and verifies what comes back."""
    size: int = arguments.size_bytes
    pattern = np.random.default_rng(arguments.seed).integers(0, 256, size, np.uint8).tobytes()
    with client.lease() as lease, output.progress("memory test", 8) as advance:
        steps = _Steps(advance)
        with steps.timed("allocate"):
            host = [lease.allocate(size, "host") for _ in range(2)]
            device = [lease.allocate(size, "device") for _ in range(2)]
        with steps.timed("set"):
            lease.set(host[1], 0xA5)
        steps.verify(lease.read(host[1]) == b"\xa5" * size)
        with steps.timed("write"):
            lease.write(host[0], pattern)
        steps.verify(lease.read(host[0]) == pattern)
        for name, source, destination in (
            ("host_to_device", host[0], device[0]),
            ("device_to_device", device[0], device[1]),
            ("device_to_host", device[1], host[1]),
            ("host_to_host", host[1], host[0]),
        ):
            lease.set(destination, 0)
            with steps.timed(name):
                lease.copy(source, destination, size)
            steps.verify(lease.read(destination) == pattern)
        with steps.timed("free"):
            for buffer in (*host, *device):
                lease.free(buffer)
        steps.verify(lease.buffers() == [])
    return steps.report(size)


class _Steps:
    """The steps of a memory test: how long each took, and whether what it left behind was right."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance
        self._steps: list[dict[str, Any]] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._steps.append({"step": name, "ok": True, "seconds": round(time.perf_counter() - begin, 6)})
        self._advance()

    def verify(self, ok: bool) -> None:
        """Tells whether the last step was right."""
        self._steps[-1]["ok"] = ok

    def report(self, size: int) -> Report:
        ok = all(step["ok"] for step in self._steps)
        rows = [(step["step"], "ok" if step["ok"] else "WRONG", f"{step['seconds'] * 1e3:.3f}") for step in self._steps]
        table = Table(f"{size_text(size)} through host and device memory", ("step", "result", "ms"), rows)
        return Report({"size_bytes": size, "ok": ok, "steps": self._steps}, [table], ok=ok)
