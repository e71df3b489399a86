"""A process with JSON log lines and a profile; and what is told where their options cannot be followed."""

from __future__ import annotations

import builtins
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from aclserve.v1 import model_pb2
from e2e.raw import Raw, item, tensor
from e2e.test_process import call, on_emulator, serve
from serving import elementwise, put_model, rows


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put_model(tmp_path / "models", "relu", elementwise("Relu"))
    return tmp_path / "models"


def test_a_profile_of_all_threads_and_json_lines(models: Path, tmp_path: Path) -> None:
    log, profile = tmp_path / "log", tmp_path / "profile.json"
    options = ("--log-format", "json", "--profile", str(profile))
    with serve(log, *on_emulator(models, *options)) as server:
        with Raw(server.address) as raw:
            stream = raw.stream(model_pb2.StreamConfig(model="relu"))
            stream.items(*(item(str(number), tensor("x", rows(0, 1))) for number in range(50)))
            stream.finish()
        assert server.end()[0] == 0
    names = {frame["name"] for frame in json.loads(profile.read_text())["shared"]["frames"]}
    assert {"MainThread", "aclserve-device", "aclserve-blocking", "aclserve-report", "metrics-http"} <= names
    assert any("DeviceThread" in name for name in names), names
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "logger", "message"]
        datetime.fromisoformat(line["time"])
    (end,) = (line for line in lines if line.get("event") == "stream_end")
    assert (end["model"], end["received_items"], end["succeeded_items"], end["code"]) == ("relu", 50, 50, "OK")
    assert any("samples" in line["message"] for line in lines)


def test_a_profile_needs_a_name_that_says_its_form_and_a_folder(models: Path, tmp_path: Path) -> None:
    wrong = call("serve", *on_emulator(models, "--profile", "profile.txt"))
    assert wrong.returncode == 2
    assert "--profile: got 'profile.txt', expected a name that ends in .html or .json" in wrong.stderr
    nowhere = call("serve", *on_emulator(models, "--profile", str(tmp_path / "nowhere" / "profile.html")))
    assert nowhere.returncode == 1
    assert "nowhere" in nowhere.stderr


@pytest.mark.parametrize(
    ("library", "options", "extra", "code"),
    [
        ("pyinstrument", ("--profile", "profile.html"), "profile", 2),
        ("opentelemetry", ("--tracing",), "otel", 1),
    ],
)
def test_a_missing_extra_is_told_with_the_command_that_installs_it(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    options: tuple[str, ...],
    extra: str,
    code: int,
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    ended = call("serve", *on_emulator(models, *options))
    assert ended.returncode == code
    assert f"pip install 'aclserve[{extra}]'" in ended.stderr
    assert "Traceback" not in ended.stderr
