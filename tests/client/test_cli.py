"""`aclctl` against a real socket: JSON, tables, exit codes, errors, and its help as a golden text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aclserve import errors
from aclserve_client import cli

GOLDEN = Path(__file__).parent / "golden" / "aclctl_help.txt"
COMMANDS = [
    [],
    ["devices"],
    ["doctor"],
    ["models"],
    ["models", "list"],
    ["models", "describe"],
    ["models", "load"],
    ["models", "unload"],
    ["infer"],
    ["stream"],
    ["top"],
    ["video"],
    ["memory"],
    ["memory", "info"],
    ["memory", "test"],
]


@pytest.fixture
def aclctl(server, capsys, monkeypatch):
    """aclctl(*arguments) -> (exit code, standard output, standard error); the environment names the server."""
    monkeypatch.setenv("ACLSERVE_ADDRESS", server.address)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def as_json(aclctl):
    """as_json(*arguments) -> the document; the exit code must be 0 and standard error empty."""

    def run(*arguments):
        code, out, err = aclctl(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def stack(tmp_path):
    path = tmp_path / "stack.npy"
    np.save(path, np.arange(30, dtype=np.float32).reshape(10, 3))
    return path


def test_help_is_as_agreed(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    texts = []
    for command in COMMANDS:
        assert cli.main([*command, "--help"]) == 0
        texts.append(f"$ aclctl {' '.join([*command, '--help'])}\n{capsys.readouterr().out}")
    assert "\n".join(texts) == GOLDEN.read_text()


def test_devices(aclctl, as_json):
    document = as_json("devices")
    assert document["server"]["version"] == "0.1.0"
    assert document["devices"][0]["soc_name"] == "Ascend310P3"
    assert document["devices"][0]["memory"] == [{"kind": "ddr", "free_bytes": 3 << 30, "total_bytes": 8 << 30}]
    code, out, _ = aclctl("devices")
    assert code == 0
    assert "Ascend310P3" in out
    assert "ddr 3.0 GiB of 8.0 GiB" in out
    assert "7 %" in out


def test_doctor(aclctl, as_json, server):
    document = as_json("doctor")
    assert document["healthy"]
    assert [finding["check"] for finding in document["findings"]] == ["area.1", "area.2"]
    code, out, _ = aclctl("doctor")
    assert code == 0
    assert "text 1" not in out
    assert "0 error, 0 warning, 1 note, 1 ok" in out
    assert "--slots" in out
    assert "8001" not in out
    assert "told on the server's host only" in out
    assert all(word in aclctl("doctor", "--all")[1] for word in ("text 1", "8001"))
    server.sick = True
    code, out, _ = aclctl("doctor")
    assert code == 1
    assert out.index("text 4") < out.index("text 3") < out.index("text 2")


def test_models(aclctl, as_json, server, tmp_path):
    assert as_json("models") == as_json("models", "list")
    assert as_json("models")["models"][2] == {
        "name": "broken",
        "version": 3,
        "state": "unavailable",
        "reason": "no such op",
    }
    assert as_json("models", "describe", "echo")["inputs"][0]["shape"] == [-1, 3]
    _, out, _ = aclctl("models", "describe", "echo")
    assert "[?, 3]" in out
    assert "batch 1, batch 8" in out
    file = tmp_path / "model.onnx"
    file.write_bytes(b"abc")
    assert as_json("models", "load", "mine", "--file", file, "--execution-mode", "synchronous")["name"] == "mine"
    assert server.loaded["mine"].execution_mode == 2
    assert as_json("models", "load", "stored", "--model-version", 7)["name"] == "stored"
    assert server.loaded["stored"].source.repository.version == 7
    assert as_json("models", "unload", "mine") == {"unloaded": {"name": "mine", "version": 0}}
    assert "mine" not in server.loaded
    assert "no such op" in aclctl("models")[1]


def test_infer_from_files(aclctl, as_json, stack, tmp_path):
    document = as_json("infer", "echo", "--input", f"x={stack}")
    values = np.arange(30).reshape(10, 3) * 2
    assert document["outputs"] == [{"name": "y", "dtype": "float32", "shape": [10, 3], "values": values.tolist()}]
    assert document["timing"]["total_ns"] == 2000
    folder = tmp_path / "out"
    document = as_json("infer", "echo", "--input", stack, "--output-dir", folder)  # the only input needs no name
    assert document["outputs"][0]["file"] == str(folder / "y.npy")
    np.testing.assert_array_equal(np.load(folder / "y.npy"), values)
    code, out, _ = aclctl("infer", "echo", "--input", stack)
    assert code == 0
    assert "total 0.002" in out


def test_infer_with_inputs_of_the_server(as_json):
    assert as_json("infer", "echo", "--zeros", "--rows", 2)["outputs"][0]["values"] == [[0] * 3] * 2
    assert as_json("infer", "solo", "--random")["outputs"][0]["values"] == [1] * 3
    assert as_json("infer", "echo", "--random", "--shape", "x=1,1,3")["outputs"][0]["shape"] == [1, 1, 3]


def test_large_outputs_are_only_described(as_json, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((400, 3), np.float32))
    assert as_json("infer", "echo", "--input", path)["outputs"][0]["values"] is None


def test_names_of_outputs_stay_inside_the_folder(tmp_path):
    from aclserve_client import Result
    from aclserve_client.cli_commands import _save

    outputs = {name: np.zeros(1) for name in ("../../etc/x", "/abs", "a/b", "a_b", "..")}
    files = _save(Result("", outputs), tmp_path / "out")
    assert len(set(files.values())) == len(outputs)
    assert {file.parent for file in files.values()} == {tmp_path / "out"}
    assert all(file.is_file() for file in files.values())


def test_stream_of_a_stack(as_json, aclctl, server, stack):
    document = as_json("stream", "echo", "--input", f"x={stack}", "--repeat", 3, "--pack", 2, "--window", 4)
    assert (document["items"], document["succeeded"], document["failed"]) == (30, 30, 0)
    assert (document["window"], document["pack"]) == (4, 2)
    assert document["items_by_batch_rows"] == {"4": 30}
    assert document["latency_ms"].keys() == {"p50", "p90", "p99", "max"}
    assert document["server_mean_ms"]["total"] == 0.002
    assert document["items_per_second"] > 0
    assert server.most_pending <= 4
    assert max(map(len, server.messages)) == 2
    assert as_json("stream", "echo", "--input", stack, "--rows", 4)["items"] == 3  # 4, 4 and 2 rows
    assert as_json("stream", "solo", "--input", stack)["items"] == 10
    assert as_json("stream", "echo", "--zeros", "--items", 17)["items"] == 17
    code, out, err = aclctl("stream", "echo", "--random", "--items", 5)
    assert code == 0
    assert "items/s" in out
    assert "5/5" in err  # the progress bar


def test_a_stream_with_failed_items_ends_with_1(aclctl, tmp_path):
    path = tmp_path / "wrong.npy"
    np.save(path, np.zeros((3, 4), np.float32))
    code, out, _ = aclctl("stream", "echo", "--input", path, "--json")
    document = json.loads(out)
    assert (code, document["failed"], document["errors"], document["latency_ms"]) == (1, 3, {"SHAPE_MISMATCH": 3}, {})
    assert "SHAPE_MISMATCH" in aclctl("stream", "echo", "--input", path)[1]


def test_memory(as_json, aclctl, server):
    assert len(as_json("memory", "info")["memory"]) == 2
    assert as_json("memory", "info", "--attribute", "hbm_huge")["memory"] == [
        {"kind": "hbm_huge", "free_bytes": 50, "total_bytes": 500}
    ]
    document = as_json("memory", "test", "--size-bytes", 3001)
    assert document["ok"]
    assert [step["step"] for step in document["steps"]] == [
        "allocate",
        "set",
        "write",
        "host_to_device",
        "device_to_device",
        "device_to_host",
        "host_to_host",
        "free",
    ]
    assert server.faults.calls.count("CopyMemory") == 4
    assert server.leases == {}
    code, out, err = aclctl("memory", "test")
    assert code == 0
    assert "1.0 MiB" in out
    assert "8/8" in err


def test_a_memory_test_that_finds_something_wrong_ends_with_1(aclctl, server):
    server.lose_copies = True
    code, out, _ = aclctl("memory", "test", "--size-bytes", 10)
    assert code == 1
    assert out.count("WRONG") == 4


def test_errors_of_the_service(aclctl, server):
    code, out, err = aclctl("models", "describe", "nonsense", "--json")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "aclctl: there is no model 'nonsense'",
        "  NOT_FOUND, reason MODEL_NOT_FOUND, model=nonsense",
    ]
    server.faults.plan["Infer"] = [errors.ResourceExhausted("too\nmuch", reason="QUEUE_FULL", retry_delay=0.5)]
    code, _, err = aclctl("infer", "echo", "--zeros")
    assert code == 1
    assert err.splitlines() == [
        "aclctl: too much",
        "  RESOURCE_EXHAUSTED, reason QUEUE_FULL, try again after 0.5 s",
    ]


def test_nobody_at_the_address(aclctl):
    code, _, err = aclctl("--address", "127.0.0.1:1", "devices")
    assert code == 1
    assert "cannot reach an aclserve server at 127.0.0.1:1" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("before", [True, False])
def test_general_options_stand_before_or_after_the_command(server, capsys, monkeypatch, before):
    monkeypatch.delenv("ACLSERVE_ADDRESS", raising=False)
    general = ["--address", server.address, "--json", "--timeout", "none"]
    assert cli.main([*general, "models", "list"] if before else ["models", "list", *general]) == 0
    assert json.loads(capsys.readouterr().out)["models"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["memory"],
        ["infer", "echo"],
        ["infer", "echo", "--zeros", "--random"],
        ["infer", "echo", "--zeros", "--rows", "0"],
        ["infer", "echo", "--zeros", "--shape", "1,2"],
        ["infer", "echo", "--zeros", "--shape", "z=1,2"],
        ["infer", "echo", "--input", "missing.npy"],
        ["infer", "echo", "--input", "x=a.npy", "--input", "x=a.npy"],
        ["stream", "echo", "--input", "x=a.npy", "--input", "z=scalar.npy"],
        ["stream", "echo", "--input", "x=a.npy", "--input", "z=two.npy"],
        ["infer", "echo", "--input", "x=text.npy"],
        ["models", "load", "m", "--file", "missing.onnx"],
        ["models", "load", "m", "--file", "a.npy", "--model-version", "1"],
        ["devices", "--timeout", "-1"],
        ["devices", "--address", "somewhere"],
        ["devices", "--token-file", "missing.txt"],
        ["devices", "--token-file", "a.npy"],
        ["devices", "--tls-ca", "missing.pem"],
        ["devices", "--tls-cert", "a.npy"],
        ["stream", "echo", "--zeros", "--policy", "nonsense"],
        ["stream", "echo", "--zeros", "--max-age", "0"],
        ["top", "--count", "0"],
        ["memory", "info", "--attribute", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(aclctl, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((1, 3), np.float32))
    np.save("two.npy", np.zeros((2, 3), np.float32))
    np.save("scalar.npy", np.float32(1))
    Path("text.npy").write_text("not an array")
    code, out, err = aclctl(*arguments)
    assert (code, out) == (2, "")
    assert "aclctl" in err
    assert "Traceback" not in err


def test_without_rich_tables_are_refused_and_json_works(server):
    script = (
        "import sys; sys.modules['rich'] = None; from aclserve_client.cli import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*arguments):
        command = [sys.executable, "-c", script, "--address", server.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = run("models")
    assert done.returncode == 2
    assert "pip install 'aclserve[cli]'" in done.stderr
    assert json.loads(run("stream", "echo", "--zeros", "--items", "3", "--json").stdout)["succeeded"] == 3


def test_shared_memory_of_calls_and_streams(make_server, tmp_path, capsys):
    server = make_server(shared_memory=True)
    server.max_rows = 30_000
    np.save(tmp_path / "x.npy", np.ones((30_000, 3), np.float32))
    for command in (["infer", "echo"], ["stream", "echo", "--rows", "10000"]):
        arguments = [*command, "--input", f"x={tmp_path}/x.npy", "--shared-memory", "on"]
        assert cli.main(["--address", server.address, "--json", *arguments]) == 0
    assert server.regions.registered == 2
    assert len(server.message_bytes) in (2, 3, 4)
    assert max(server.message_bytes) < 500
    server.regions.enabled = False
    assert cli.main(["--address", server.address, *arguments]) == 1
    assert "SHARED_MEMORY_OFF" in capsys.readouterr().err
    assert cli.main(["--address", server.address, *arguments[:-1], "auto"]) == 0
