"""`aclserve doctor` and GetDiagnosis for real, on the emulated device: exit codes, JSON, and what is told to whom."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from aclserve_client import Client, Options
from aclserve_server import cli
from aclserve_server.access.directory import entry, make_token
from aclserve_server.config import options
from aclserve_server.doctor import serving as doctor_of_a_server
from aclserve_server.doctor.checkup import Checkup
from aclserve_server.doctor.host import this_host
from aclserve_server.doctor.ports import PORTS
from aclserve_server.doctor.probe import Outcome
from aclserve_server.doctor.serving import ServerDoctor
from aclserve_server.engine.devices import DeviceDirectory, DeviceSnapshot
from aclserve_server.rpc.model_config import read_model_config
from aclserve_server.rpc.ports import Certificates
from doctor.machine import given
from serving import Serving, elementwise, put_model, serving

EMULATED = ("--acl-library", "emulator", "--metrics-port", "0", "--port", "0")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "good", elementwise())
    return root


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("broken")
    put_model(root, "typo", elementwise(), "max_batch_size: many")
    return root


Run = Any


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """doctor(*arguments) -> exit code and document."""
    for option in options():
        monkeypatch.delenv(option.environment, raising=False)

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        code = cli.main(["doctor", *map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def levels(document: dict[str, Any], check: str) -> list[str]:
    return [finding["level"] for finding in document["findings"] if finding["check"] == check]


def test_a_machine_on_which_all_is_well(doctor: Run, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACLSERVE_SLOTS", "3")
    code, document = doctor(*EMULATED, "--model-repository", repository)
    assert code == 0
    assert document["healthy"]
    assert levels(document, "device.open") == levels(document, "models.repository") == ["ok"]
    settings = {setting["name"]: (setting["value"], setting["source"]) for setting in document["settings"]}
    assert settings.keys() == {option.name for option in options()}
    assert settings["slots"] == ("3", "environment")
    assert settings["model_repository"] == (str(repository), "flag")
    assert settings["max_leases"] == ("1024", "default")


def test_errors_make_the_exit_code_and_come_all_at_once(doctor: Run, broken: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, document = doctor(
            "--acl-library",
            "emulator",
            "--port",
            port,
            "--metrics-port",
            0,
            "--model-repository",
            broken,
            "--slots",
            99,
        )
    assert code == 1
    assert levels(document, "ports.port") == levels(document, "models.config") == ["error"]
    assert levels(document, "options.value") == ["error"]
    (port_finding,) = [finding for finding in document["findings"] if finding["check"] == "ports.port"]
    assert "process" in port_finding["text"]
    assert port_finding["fix"]


def test_a_folder_that_is_not_there(doctor: Run, tmp_path: Path) -> None:
    code, document = doctor(*EMULATED, "--model-repository", tmp_path / "none", "--no-device")
    assert code == 1
    assert levels(document, "options.value") == ["error"]
    assert not levels(document, "device.open")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_that_are_none(value: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--timeout-s", value])
    assert stop.value.code == 2


def test_text_has_each_finding_with_its_fix(capsys: pytest.CaptureFixture[str], broken: Path) -> None:
    assert cli.main(["doctor", *EMULATED, "--model-repository", str(broken)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^error +models.config +model typo version 1: .*\n +fix: correct", out, re.MULTILINE)
    assert re.search(r"^flag +--model-repository ", out, re.MULTILINE)
    assert out.rstrip().endswith("there are errors to fix")


@pytest.fixture(scope="module")
def up(broken: Path) -> Iterator[Serving]:
    with serving(broken, unix_socket=str(broken / "a.sock")) as served:
        yield served


def test_a_reader_that_leaves_is_no_fault(repository: Path) -> None:
    """As `aclserve doctor | head` has it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "aclserve_server", "doctor", "--acl-library", "emulator", "--no-device"]
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [*command, "--model-repository", str(repository)],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_an_admin_is_told_nothing_that_names_the_machine(up: Serving, broken: Path) -> None:
    with Client(up.address) as client:
        diagnosis = client.diagnosis()
    assert not diagnosis.healthy
    found = {finding.check: finding for finding in diagnosis.findings}
    assert "model typo version 1" in found["models.config"].text
    assert found["device.open"].level == found["ports.port"].level == "ok"
    assert found["device.count"].text == "1 emulated device (Ascend310P3), run mode device"
    settings = {setting.name: setting.value for setting in diagnosis.settings}
    assert settings["acl-library"] == "emulator"
    assert settings["model-repository"] is settings["unix-socket"] is settings["host"] is None
    assert settings["metrics-port"] == "0"
    assert settings["tls-cert"] == ""
    texts = [text for finding in diagnosis.findings for text in (finding.text, finding.fix)]
    texts += [value for value in settings.values() if value]
    for text in texts:
        assert str(broken) not in text
        assert str(Path.home()) not in text
        assert not re.search(r"0x[0-9a-f]{4}|\d+\.\d+\.\d+\.\d+", text)
        assert all(place.startswith("/dev/") for place in re.findall(r"(?<!\w)/\w[\w./-]+", text))


class Devices:
    """Counts who asks, and lets them wait for the gate."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()
        self.fails = False

    async def list_devices(self) -> list[DeviceSnapshot]:
        self.asked += 1
        await self.gate.wait()
        if self.fails:
            raise RuntimeError("a defect")
        return [DeviceSnapshot(0, "Ascend310P3", "host", True, [], None)]


def test_callers_at_the_same_time_share_one_look(repository: Path) -> None:
    """Who leaves ends no other's look; a look that fails fails those who share it, and the next caller gets another."""

    def prepare(ask: Callable[[int], Outcome]) -> Checkup:
        values = given({"acl_library": "emulator", "model_repository": repository})
        return Checkup("1", this_host({}), values, ask, read_model_config, Certificates, serving=True)

    async def test() -> None:
        devices = Devices()
        doctor = ServerDoctor(cast(DeviceDirectory, devices), Outcome(library="emulator"), prepare)
        callers = [asyncio.create_task(doctor.diagnose()) for _ in range(8)]
        await asyncio.sleep(0)
        callers.pop().cancel()
        devices.gate.set()
        answers = await asyncio.gather(*callers)
        assert devices.asked == 1
        assert all(answer is answers[0] for answer in answers)
        assert answers[0].findings
        devices.fails = True
        with pytest.raises(RuntimeError):
            await doctor.diagnose()
        devices.fails = False
        assert await doctor.diagnose() is not answers[0]
        assert devices.asked == 3

    asyncio.run(test())


def test_a_device_that_hangs_is_a_finding(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_of_a_server, "PATIENCE_S", 0.2)
    with serving(broken) as up, Client(up.address) as client:
        blocking = up.server.engine._threads.blocking
        go_on, began = threading.Event(), threading.Event()

        def wait() -> None:
            began.set()
            go_on.wait(60)

        waiting = up.loop.call_soon_threadsafe(lambda: up.loop.create_task(blocking.run(wait)))
        assert waiting
        assert began.wait(60)
        found = {finding.check: finding for finding in client.diagnosis().findings}
        go_on.set()
    assert found["device.open"].level == "error"
    assert "did not come in time" in found["device.open"].text


def test_only_admins_ask(repository: Path, tmp_path: Path) -> None:
    """Every caller and group is tried on every RPC in tests/e2e/test_security.py; here that an admin gets an answer."""
    file, token = tmp_path / "principals.toml", make_token()
    file.write_text(entry("operator", token, ["admin"]))
    with serving(repository, principals=str(file)) as up, Client(up.address, Options(token=token)) as client:
        found = {finding.check: finding.level for finding in client.diagnosis().findings}
    assert found["options.principals"] == "ok"


def test_the_commands_of_the_page(doctor: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (root / "docs/doctor.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: doctor -->\n```sh\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(root)
    for line in block.splitlines():
        program, command, *arguments = shlex.split(line)
        assert (Path(program).name, command) == ("aclserve", "doctor")
        code, document = doctor(*(word for word in arguments if word != "--json"), "--port", 0, "--metrics-port", 0)
        assert (code, document["healthy"]) == (0, True)


def test_every_check_is_on_the_page(root: Path) -> None:
    page = (root / "docs/doctor.md").read_text(encoding="utf-8")
    sources = (root / "service/aclserve_server/doctor").glob("*.py")
    areas = "options|driver|cann|library|nodes|device|memory|shared_memory|limits|ports|models"
    made = set(re.findall(rf'"((?:{areas})\.[a-z_]+)"', "".join(file.read_text(encoding="utf-8") for file in sources)))
    assert len(made) > 30
    assert made <= set(re.findall(r"`([a-z_]+\.[a-z_]+)`", page))
    assert {f"ports.{name}" for name in PORTS} <= set(re.findall(r"`([a-z_]+\.[a-z_]+)`", page))
