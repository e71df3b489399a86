"""Triton's own perf_analyzer against the service: every request answered, and the server's side of it in the report.

Runs are of a number of requests, not of a time; nothing looks at a clock.
"""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from compat.go_tools import unavailable
from compat.models import put_models
from serving import Serving, serving
from tools.perf_analyzer import NotHereError, PerfAnalyzer, PerfAnalyzerError, install

REQUESTS = 120
_RUN_S = 60

_CLIENT = re.compile(r"Client:\s+Request count: (\d+)\s+Throughput: ([\d.]+) infer/sec")
_SERVER = re.compile(
    r"Server:\s+Inference count: (\d+)\s+Execution count: (\d+)\s+Successful request count: (\d+)\s+"
    r"Avg request latency: \d+ usec \(overhead \d+ usec \+ queue (\d+) usec \+ compute input (\d+) usec \+ "
    r"compute infer (\d+) usec \+ compute output (\d+) usec\)"
)

_DEVICE = re.compile(
    r"Avg GPU Utilization:\s+npu-0 : [\d.]+%\s+Avg GPU Power Usage:\s+Max GPU Memory Usage:\s+npu-0 : (\d+) bytes\s+"
    r"Total GPU Memory:\s+npu-0 : (\d+) bytes"
)


@pytest.fixture(scope="module")
def tool() -> PerfAnalyzer:
    """perf_analyzer, installed if need be; skips where there is none, and without a network outside CI."""
    try:
        return install()
    except NotHereError as error:
        pytest.skip(str(error))
    except PerfAnalyzerError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def service(tool: PerfAnalyzer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    put_models(root)
    with serving(root, system_shared_memory=True, triton_metrics=True) as up:
        yield up


@dataclass(frozen=True)
class Report:
    """What perf_analyzer counted, and what it was told by the server; times are microseconds."""

    requests: int
    throughput: float
    inferences: int
    executions: int
    successes: int
    queue_us: int
    input_us: int
    infer_us: int
    output_us: int


def run(tool: PerfAnalyzer, address: str, options: str) -> subprocess.CompletedProcess[str]:
    command = [str(tool.binary), "-i", "grpc", "-u", address, f"--request-count={REQUESTS}", *options.split()]
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tool.libraries)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=_RUN_S)


def report(tool: PerfAnalyzer, service: Serving, options: str) -> Report:
    done = run(tool, service.address, options)
    assert done.returncode == 0, done.stdout + done.stderr
    client, server = _CLIENT.search(done.stdout), _SERVER.search(done.stdout)
    assert client is not None, done.stdout
    assert server is not None, done.stdout
    return Report(int(client[1]), float(client[2]), *map(int, server.groups()))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ("", 1),
        ("-a", 1),
        ("-a --streaming", 1),
        ("-b 4", 4),
        ("--shared-memory=system --output-shared-memory-size=4096", 1),
        ("--shared-memory=system -a --streaming -b 2", 2),
        ("--sequence-length 4", 1),
        ("--input-data zero --string-length 4", 1),
    ],
    ids=["sync", "async", "streaming", "batched", "shared-memory", "shared-memory-streaming", "sequences", "zeros"],
)
def test_every_way_of_sending(options: str, rows: int, tool: PerfAnalyzer, service: Serving) -> None:
    statistics = service.server.engine.find("rows", 0).statistics
    before = statistics.success.count, statistics.inference_count, statistics.execution_count
    found = report(tool, service, f"-m rows --concurrency-range 4 {options}")
    assert found.requests == REQUESTS
    assert found.throughput > 0
    assert (statistics.success.count - before[0], statistics.inference_count - before[1]) == (REQUESTS, REQUESTS * rows)
    assert statistics.fail.count == 0
    # perf_analyzer asks for the statistics when its first requests are on their way already
    assert 0 < found.successes <= REQUESTS
    assert found.inferences == found.successes * rows
    assert 0 < found.executions <= statistics.execution_count - before[2]
    assert found.infer_us > 0


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("static", ""),
        ("two-inputs", ""),
        ("halves", ""),
        ("brains", ""),
        ("flags", ""),
        ("image", "--shape x:1,3,8,8"),
    ],
)
def test_every_kind_of_model(model: str, options: str, tool: PerfAnalyzer, service: Serving) -> None:
    statistics = service.server.engine.find(model, 0).statistics
    before = statistics.success.count
    found = report(tool, service, f"-m {model} --concurrency-range 2 {options}")
    assert found.requests == REQUESTS
    assert statistics.success.count - before == REQUESTS


def test_its_report_shows_the_device_from_the_metrics_page(tool: PerfAnalyzer, service: Serving) -> None:
    """Numbers as that page has them; AscendCL tells no power, and perf_analyzer says that it is missing."""
    page = f"http://127.0.0.1:{service.metrics_port}/metrics"
    done = run(
        tool, service.address, f"-m rows --verbose-csv --collect-metrics --metrics-url {page} --metrics-interval 50"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'nv_gpu_power_usage'" in done.stderr
    found = _DEVICE.search(done.stdout)
    assert found is not None, done.stdout
    with urllib.request.urlopen(page, timeout=_RUN_S) as answer:
        text = answer.read().decode()
    (total,) = re.findall(r'^nv_gpu_memory_total_bytes\{gpu_uuid="npu-0"\} (\d+)\.0$', text, re.MULTILINE)
    assert int(found[2]) == int(total) >= 1 << 30
    assert 0 < int(found[1]) < int(total)


def test_it_sets_what_is_traced(tool: PerfAnalyzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    put_models(tmp_path / "models")
    with serving(tmp_path / "models", tracing=True) as up:
        options = "--trace-level TIMESTAMPS --trace-rate 10 --trace-count 5 --log-frequency 0"
        assert report(tool, up, f"-m rows {options}").requests == REQUESTS
        tracing = up.server.models.tracing
        assert tracing is not None
        assert (tracing.sampling.on, tracing.sampling.rate, tracing.sampling.count) == (True, 10, 0)


def test_what_the_server_refuses_is_told(tool: PerfAnalyzer, service: Serving, tmp_path: Path) -> None:
    done = run(tool, service.address, "-m nothing")
    assert done.returncode == 99
    assert "nothing" in done.stderr + done.stdout
    for way in ("", "-a", "-a --streaming"):
        done = run(tool, service.address, f"-m image --shape x:1,3,9,9 {way}")
        assert done.returncode == 99
        assert "the model was compiled for [1, 3, 8, 8], [1, 3, 16, 12]; axes 2 and 3 are" in done.stderr + done.stdout
    put_models(tmp_path / "models")
    with serving(tmp_path / "models") as without:
        done = run(tool, without.address, "-m rows --shared-memory=system")
    assert done.returncode == 99
    assert "--system-shared-memory" in done.stderr + done.stdout
