"""What a model's description says to do, done: its commands and programs run as they were copied."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from aclserve.v1 import model_pb2
from aclserve_client import Client
from aclserve_client.cli import main
from compat.go_tools import ghz_or_skip, grpcurl_or_skip, shell, unavailable
from compat.models import NAMES, put_models
from serving import Serving, serving
from tools.compat import CompatError, install


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    put_models(root)
    with serving(root, unix_socket=str(tmp_path_factory.mktemp("s") / "a b.sock")) as up:
        yield up


@pytest.fixture(scope="module")
def client(service: Serving) -> Iterator[Client]:
    with Client(service.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def tritonclient() -> Path:
    """The interpreter of an environment with tritonclient."""
    try:
        return install("tritonclient")
    except CompatError as error:
        unavailable(str(error))


def described(service: Serving, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `aclctl models describe` tells programs."""
    assert main(["models", "describe", name, "--address", service.address, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("name", NAMES)
def test_the_grpcurl_command_works(name: str, service: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    grpcurl_or_skip()
    model = described(service, name, capsys)
    answer = json_format.Parse(shell(model["usage"]["grpcurl"]), model_pb2.InferResponse())
    assert [tensor.name for tensor in answer.outputs.tensors] == [spec["name"] for spec in model["outputs"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_ghz_command_works(name: str, service: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    ghz_or_skip()
    report = json.loads(shell(described(service, name, capsys)["usage"]["ghz"] + " --format=json"))
    assert report["statusCodeDistribution"] == {"OK": 200}


@pytest.mark.parametrize("name", NAMES)
def test_the_python_lines_work(name: str, service: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    model = described(service, name, capsys)
    exec(compile(model["usage"]["python"], name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[spec["name"], spec["dtype"]] for spec in model["outputs"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_for_tritonclient_work(name: str, service: Serving, tritonclient: Path, client: Client) -> None:
    model = client.describe(name)
    lines = run(model.usage.at(service.address).python_v2, tritonclient)
    assert [line.split()[0] for line in lines] == [spec.name for spec in model.outputs]


def run(program: str, python: Path = Path(sys.executable)) -> list[str]:
    """The lines that a program prints in a process of its own."""
    command = [str(python), "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{program}\n{done.stderr}"
    return done.stdout.splitlines()


def test_over_a_unix_socket_too(service: Serving) -> None:
    grpcurl_or_skip()
    ghz_or_skip()
    addresses = service.server.addresses
    assert addresses is not None
    with Client(f"unix:{addresses.unix_socket}") as connected:
        usage = connected.describe("rows").usage.at(f"unix:{addresses.unix_socket}")
    json_format.Parse(shell(usage.grpcurl), model_pb2.InferResponse())
    assert json.loads(shell(usage.ghz + " --format=json"))["statusCodeDistribution"] == {"OK": 200}
    assert run(usage.python) == ["y float32 (1, 4)"]


def test_a_version_that_was_named_is_named_in_the_commands(service: Serving, client: Client) -> None:
    assert "version" not in client.describe("rows").sample_json
    named = client.describe("rows", 1)
    assert json.loads(named.sample_json)["version"] == "1"
    assert run(named.usage.at(service.address).python) == ["y float32 (1, 4)"]
    assert 'model_version="1"' in named.usage.python_v2


def test_the_address_is_the_only_thing_to_replace(service: Serving, client: Client) -> None:
    usage = client.describe("two-inputs").usage
    for text in (usage.grpcurl, usage.ghz, usage.python, usage.python_v2):
        assert text.count("localhost:8001") == 1
    assert usage.at("host:1").python == usage.python.replace("localhost:8001", "host:1")
    assert usage.at("host:1").at("other:2") == usage.at("host:1")


def test_people_can_copy_what_is_printed(service: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing wraps, and the first of several addresses stands in every command."""
    assert main(["models", "describe", "free", "--address", f"{service.address},127.0.0.1:1"]) == 0
    printed = capsys.readouterr().out
    with Client(service.address) as connected:
        usage = connected.describe("free").usage.at(service.address)
    for text in (usage.grpcurl, usage.ghz, usage.python, usage.python_v2):
        assert text.rstrip() in printed
    assert "localhost:8001" not in printed
