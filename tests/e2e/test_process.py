"""The command `aclserve` as a process: its ready line, its options, its end, and `model inspect`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from grpc_health.v1 import health_pb2

from aclserve.v1 import device_pb2, model_pb2
from aclserve_server.cli import main
from e2e.raw import Raw, array_of, item, tensor, wait_until
from serving import elementwise, put_model, rows

COMMAND = str(Path(sys.executable).parent / "aclserve")
READY = re.compile(r"ready grpc=(\S+):(\d+) metrics=(\S+):(\d+) device=(\d+) acl=(\S+)\n")
DELAY_US = 3_000_000
"""How long rows of the model `patient` wait for company: long enough to find them waiting."""


def environment(**variables: str) -> dict[str, str]:
    """The test's own, without what would configure a server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACLSERVE_", "ASCEND_"))}
    return {**kept, **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [COMMAND, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=60, check=False
    )


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same within this process, which is quicker: for commands that start no server."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment(**variables), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@dataclass
class Process:
    """A server that said it is ready."""

    process: subprocess.Popen[str]
    host: str
    port: int
    metrics_host: str
    metrics_port: int
    device: int
    library: str

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the metrics port."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics_host}:{self.metrics_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal; the exit code, and what was still written to standard output."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        code = self.process.wait(60)
        assert self.process.stdout is not None
        return code, self.process.stdout.read()


@contextmanager
def serve(log: Path, *arguments: str, **variables: str) -> Iterator[Process]:
    """`aclserve serve` with its log in a file; killed at the end where the test has not ended it."""
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [COMMAND, "serve", *arguments],
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            watchdog = threading.Timer(60, process.kill)
            watchdog.start()
            line = process.stdout.readline()
            watchdog.cancel()
            found = READY.fullmatch(line)
            assert found, (line, log.read_text())
            host, port, metrics_host, metrics_port, device, library = found.groups()
            yield Process(process, host, int(port), metrics_host, int(metrics_port), int(device), library)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "patient", elementwise(), f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}\n")
    return root


def on_emulator(models: Path, *more: str) -> list[str]:
    arguments = ["--acl-library", "emulator", "--model-repository", str(models), "--port", "0", "--metrics-port", "0"]
    return [*arguments, *more]


def check_log(log: Path) -> None:
    """Nothing went wrong in the server."""
    text = log.read_text()
    assert "Traceback" not in text, text
    assert " ERROR " not in text, text
    assert "Warning" not in text, text


# Serving.


def test_a_server_from_start_to_end(models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(log, *on_emulator(models)) as server, Raw(server.address) as raw:
        assert (server.host, server.metrics_host) == ("127.0.0.1", "127.0.0.1")
        assert server.port != server.metrics_port
        assert (server.device, server.library) == (0, "emulator")
        assert server.get("/healthz")[0] == 200
        assert server.get("/readyz")[0] == 200
        assert server.get("/nothing")[0] == 404
        answer = raw.infer(model_pb2.InferRequest(model="relu", inputs=[tensor("x", rows(1, 2))]))
        assert (array_of(answer.outputs.tensors[0]) == rows(1, 2)).all()
        assert server.metric('aclserve_rows_total{model="relu",version="1"}') == 2
        check = raw.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", "aclserve.v1.ModelService", "aclserve.v1.MemoryService", "model:relu"):
            assert check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1, name
        info = raw.call("devices", "GetServerInfo", device_pb2.GetServerInfoRequest())
        assert version("aclserve") in str(info)
        code, rest = server.end()
        assert (code, rest) == (0, "")
    check_log(log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_items_are_in_flight(models: Path, tmp_path: Path, number: int) -> None:
    """Every accepted item is answered; health and readiness tell of the stop while it lasts."""
    log = tmp_path / "log"
    with serve(log, *on_emulator(models)) as server, Raw(server.address) as raw:
        stream = raw.stream(model_pb2.StreamConfig(model="patient"))
        stream.items(*(item(str(index), tensor("x", rows(index, 1))) for index in range(5)))
        request = model_pb2.InferRequest(model="patient", inputs=[tensor("x", rows(9, 2))])
        call = raw.models.Infer.future(request, timeout=30)
        wait_until(lambda: server.metric('aclserve_queue_rows{model="patient",version="1"}') == 7, "seven rows wait")
        server.process.send_signal(number)
        assert stream.read().going_away.last_accepted_id == "4"
        assert server.get("/healthz")[0] == 200
        assert server.get("/readyz")[0] == 503
        with Raw(server.address) as newcomer, pytest.raises(grpc.RpcError):
            newcomer.states()
        server.process.send_signal(number)  # an impatient one changes nothing
        results = {result.id: array_of(result.outputs.tensors[0]).tolist() for result in stream.rest()}
        assert results == {str(index): rows(index, 1).tolist() for index in range(5)}
        assert stream.totals() == (5, 5, 0)
        assert (array_of(call.result().outputs.tensors[0]) == rows(9, 2)).all()
        assert server.wait() == (0, "")
        with pytest.raises(OSError, match="refused"):
            server.get("/healthz")
    check_log(log)


def test_a_signal_before_anything_happened(models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(log, *on_emulator(models)) as server:
        assert server.end(signal.SIGINT) == (0, "")
    check_log(log)


def test_every_option_has_an_environment_twin(models: Path, tmp_path: Path) -> None:
    twins = {
        "ACLSERVE_ACL_LIBRARY": "emulator",
        "ACLSERVE_MODEL_REPOSITORY": str(models),
        "ACLSERVE_HOST": "127.0.0.2",
        "ACLSERVE_PORT": "0",
        "ACLSERVE_METRICS_PORT": "0",
        "ACLSERVE_DEVICE": "3",
        "ACLSERVE_LOG_LEVEL": "error",
        "ACLSERVE_MAX_STREAM_ITEMS": "3",
        "ACLSERVE_EMULATOR_RUN_MODE": "device",
    }
    log = tmp_path / "log"
    arguments = ("--emulator-run-mode", "host", "--max-message-bytes", "1MiB")
    with serve(log, *arguments, **twins) as server, Raw(server.address) as raw:
        assert (server.host, server.metrics_host, server.device) == ("127.0.0.2", "127.0.0.2", 3)
        stream = raw.stream()
        stream.send(model_pb2.StreamInferRequest(config=model_pb2.StreamConfig()))
        ready = stream.read().ready
        assert (ready.max_pending_items, ready.max_message_bytes) == (3, 1 << 20)
        assert stream.finish() == []
        (device,) = raw.call("devices", "ListDevices", device_pb2.ListDevicesRequest()).devices
        assert (device.id, device.run_mode) == (3, device_pb2.RUN_MODE_HOST)  # the flag wins over its twin
        assert server.end() == (0, "")
    assert log.read_text() == ""


def test_a_given_port(models: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [str(holder.getsockname()[1]) for holder in (first, second)]
    arguments = on_emulator(models, "--port", ports[0], "--metrics-port", ports[1])
    with serve(tmp_path / "log", *arguments) as server:
        assert [str(server.port), str(server.metrics_port)] == ports
        assert server.end() == (0, "")


def test_a_message_above_the_limit_is_refused(models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(log, *on_emulator(models, "--max-message-bytes", "64KiB")) as server, Raw(server.address) as raw:
        large = tensor("x", rows(0, 8192))
        with pytest.raises(grpc.RpcError) as caught:
            raw.infer(model_pb2.InferRequest(model="relu", inputs=[large]))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert raw.infer(model_pb2.InferRequest(model="relu", inputs=[tensor("x", rows(0, 32))])).outputs.tensors
        assert server.end() == (0, "")
    check_log(log)


def test_bad_models_keep_no_server_from_starting(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put_model(root, "good", elementwise())
    (root / "bad" / "1").mkdir(parents=True)
    (root / "bad" / "1" / "model.onnx").write_bytes(b"noise")
    log = tmp_path / "log"
    with serve(log, *on_emulator(root)) as server, Raw(server.address) as raw:
        states = raw.states()
        assert states["good", 1][0] == model_pb2.MODEL_STATE_READY
        assert states["bad", 1][0] == model_pb2.MODEL_STATE_UNAVAILABLE
        assert server.get("/readyz")[0] == 200
        assert server.end() == (0, "")
    check_log(log)
    assert "model bad is not served" in log.read_text()


# Servers that cannot start.


def check_refused(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr, done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use(models: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        done = run("serve", *on_emulator(models, option, port))
    check_refused(done, 1, f"aclserve: {option}", f"127.0.0.1:{port}")


def test_a_host_that_is_not_this_one(models: Path) -> None:
    refused = run("serve", *on_emulator(models, "--host", "192.0.2.1", "--insecure"))
    check_refused(refused, 1, "aclserve: --", "192.0.2.1")


def test_bad_options_are_told_all_at_once(models: Path, tmp_path: Path) -> None:
    arguments = ["--port", "70000", "--log-level", "loud", "--slots", "none"]
    done = call(
        "serve",
        *arguments,
        "--model-repository",
        str(tmp_path / "no"),
        ACLSERVE_MAX_QUEUE_ROWS="0",
        ACLSERVE_DEVICE="-1",
    )
    check_refused(done, 2, "--port", "70000", "--log-level", "'loud'", "debug", "--slots", "'none'")
    check_refused(done, 2, "--model-repository", "ACLSERVE_MAX_QUEUE_ROWS: got '0'", "ACLSERVE_DEVICE: got '-1'")
    assert len(done.stderr.splitlines()) == 6


@pytest.mark.parametrize(
    "arguments", [["serve", "--nope"], ["serve", "--por", "1"], ["serve", "x"], ["nope"], [], ["model"]]
)
def test_unknown_arguments(arguments: list[str]) -> None:
    check_refused(call(*arguments), 2, "usage: aclserve")


def test_no_library(models: Path, tmp_path: Path) -> None:
    empty = {"ASCEND_HOME_PATH": str(tmp_path), "HOME": str(tmp_path), "LD_LIBRARY_PATH": ""}
    arguments = ["serve", "--model-repository", str(models), "--port", "0", "--metrics-port", "0"]
    done = run(*arguments, **empty)
    check_refused(done, 1, "no AscendCL library", "set_env.sh", "--acl-library emulator")
    done = run(*arguments, "--acl-library", str(tmp_path / "libascendcl.so"), **empty)
    check_refused(done, 1, str(tmp_path / "libascendcl.so"), "--acl-library emulator")
    (tmp_path / "libascendcl.so").write_text("not a library")
    done = run(*arguments, "--acl-library", str(tmp_path / "libascendcl.so"), **empty)
    check_refused(done, 1, str(tmp_path / "libascendcl.so"), "cannot be opened")


def test_a_library_without_acl(models: Path) -> None:
    """The C library, which is one, but not AscendCL."""
    libc = next(Path("/").glob("lib*/*/libc.so.6"), None)
    if libc is None:
        pytest.skip("no C library at a known place")
    done = run("serve", *on_emulator(models), "--acl-library", str(libc))
    check_refused(done, 1, "aclInit", "functions that aclserve needs")


def test_version_and_help() -> None:
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"aclserve {version('aclserve')}\n")
    done = call("serve", "--help")
    assert done.returncode == 0
    for text in ("--acl-library", "ACLSERVE_ACL_LIBRARY", "--drain-timeout-s", "default: 8001"):
        assert text in done.stdout


# Inspecting model files.


def test_inspect_an_onnx(models: Path) -> None:
    file = models / "relu" / "1" / "model.onnx"
    done = run("model", "inspect", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("model.onnx", "ONNX", "x: float32", "y: float32", "rows", "Relu"):
        assert text in done.stdout, done.stdout
    document = json.loads(call("model", "inspect", "--json", str(file)).stdout)
    assert (document["file"], document["format"], document["size_bytes"]) == ("model.onnx", "onnx", file.stat().st_size)
    assert [value["name"] for value in document["onnx"]["inputs"]] == ["x"]
    assert document["onnx"]["inputs"][0]["shape"] == ["rows", 4]


def om_cases(shared: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((shared / "data" / "om" / "expected.json").read_text())["files"]
    return files


def test_inspect_om_files(shared: Path) -> None:
    for name, expected in om_cases(shared).items():
        file = shared / "data" / "om" / name
        done = call("model", "inspect", "--json", str(file))
        if not expected["ok"]:
            check_refused(done, 1, "aclserve: ")
            assert str(file.parent) not in done.stderr.replace(str(file), "")
            continue
        assert (done.returncode, done.stderr) == (0, ""), name
        document = json.loads(done.stdout)
        om = document["om"]
        assert (document["format"], document["size_bytes"]) == ("om", expected["bytes"])
        assert (om["name"], om["model_count"], om["model_type"]) == (
            expected["name"],
            expected["model_num"],
            expected["model_type"],
        )
        assert (om["dynamic"], om["table_form"]) == (bool(expected["dynamic"]), expected["table"])
        tables = [[{"type": part["type"], "size": part["size_bytes"]} for part in table] for table in om["tables"]]
        assert tables == expected["tables"]
        text = call("model", "inspect", str(file)).stdout
        assert expected["name"] in text
        assert "Ascend OM" in text


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "noise"])
def test_inspect_what_is_no_model(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.onnx"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(b"" if kind == "empty" else bytes(range(256)))
    check_refused(call("model", "inspect", str(file)), 1, "aclserve: ")
    check_refused(call("model", "inspect", "--json", str(file)), 1, "aclserve: ")
