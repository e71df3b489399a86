"""LogSettings and TraceSetting: what is read, what changes, what is refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from aclserve_server import logs
from aclserve_server.kserve import inference_pb2 as pb
from rpc.v2.v2_server import V2, v2
from serving import elementwise, put_model

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
DEFAULTS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise())
    with v2(root) as up:
        yield up


@pytest.fixture(params=["text"])
def written(request: pytest.FixtureRequest) -> Iterator[None]:
    """The process's own logging, as the command line sets it up, for one test."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure("info", request.param)
    yield
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
    root.setLevel(level)


def settings_of(answer: Any) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in answer.settings.items()}


def set_logs(served: V2, **settings: Any) -> dict[str, Any]:
    return settings_of(served.call("LogSettings", log_request(**settings)))


def log_request(**settings: Any) -> Any:
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    values = {key: pb.LogSettingsRequest.SettingValue(**{kinds[type(value)]: value}) for key, value in settings.items()}
    return pb.LogSettingsRequest(settings=values)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is written when there is something to say at every level."""
    capsys.readouterr()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("aclserve_server.tests").log(level, "said at %d", level)
    return [line for line in capsys.readouterr().err.splitlines() if "said at" in line]


def said(capsys: pytest.CaptureFixture[str]) -> list[int]:
    return [int(line.rpartition(" ")[2]) for line in lines(capsys)]


@pytest.mark.usefixtures("written")
def test_what_is_in_force_is_read(served: V2) -> None:
    assert set_logs(served) == DEFAULTS


@pytest.mark.usefixtures("written")
def test_levels_are_shown_and_hidden_one_by_one(served: V2, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == [20, 30, 40]
    assert set_logs(served, log_info=False) == {**DEFAULTS, "log_info": False}
    assert said(capsys) == [30, 40]
    assert set_logs(served, log_verbose_level=1) == {**DEFAULTS, "log_info": False, "log_verbose_level": 1}
    assert said(capsys) == [10, 30, 40]
    told = set_logs(served, log_warning=False, log_error=False, log_verbose_level=0)
    assert not any((told["log_info"], told["log_warning"], told["log_error"], told["log_verbose_level"]))
    assert said(capsys) == []
    assert set_logs(served) == told
    assert set_logs(served, log_error=True)["log_error"]
    assert said(capsys) == [40]
    assert set_logs(served, log_info=True, log_warning=True) == DEFAULTS
    assert said(capsys) == [20, 30, 40]


@pytest.mark.usefixtures("written")
def test_lines_of_other_libraries_at_debug_stay_away(served: V2, capsys: pytest.CaptureFixture[str]) -> None:
    set_logs(served, log_verbose_level=1)
    capsys.readouterr()
    logging.getLogger("grpc._cython").debug("loop %d", 1)
    logging.getLogger("aclserve_server.tests").debug("our own")
    logging.getLogger("grpc._cython").warning("trouble")
    written = capsys.readouterr().err
    assert "our own" in written
    assert "trouble" in written
    assert "loop" not in written


@pytest.mark.usefixtures("written")
def test_the_form_of_times(served: V2, capsys: pytest.CaptureFixture[str]) -> None:
    iso = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 ")
    assert not any(iso.match(line) for line in lines(capsys))
    assert set_logs(served, log_format="ISO8601")["log_format"] == "ISO8601"
    assert len(lines(capsys)) == 3
    assert all(iso.match(line) for line in lines(capsys))
    assert set_logs(served, log_format="default") == DEFAULTS
    assert not any(iso.match(line) for line in lines(capsys))


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_json_lines_stay_json(served: V2, written: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert set_logs(served)["log_format"] == "ISO8601"
    served.refused("LogSettings", log_request(log_format="default"), UNSUPPORTED, "SETTING_UNSUPPORTED")
    assert set_logs(served, log_format="ISO8601", log_info=False)["log_info"] is False
    assert [json.loads(line)["level"] for line in lines(capsys)] == ["warning", "error"]


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    ("settings", "code", "reason"),
    [
        ({"log_file": "/tmp/x.log"}, UNSUPPORTED, "SETTING_READ_ONLY"),
        ({"log_format": "xml"}, INVALID, "SETTING_INVALID"),
        ({"log_format": True}, INVALID, "SETTING_INVALID"),
        ({"log_info": 1}, INVALID, "SETTING_INVALID"),
        ({"log_verbose_level": "1"}, INVALID, "SETTING_INVALID"),
        ({"log_verbose_level": True}, INVALID, "SETTING_INVALID"),
        ({"log_colour": True}, INVALID, "SETTING_UNKNOWN"),
    ],
)
def test_settings_that_are_refused_change_nothing(
    served: V2, settings: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    (key,) = settings
    request = log_request(log_error=False, **settings)
    assert key in served.refused("LogSettings", request, code, reason)
    assert set_logs(served) == DEFAULTS
    empty = pb.LogSettingsRequest(settings={"log_info": pb.LogSettingsRequest.SettingValue()})
    served.refused("LogSettings", empty, INVALID, "SETTING_INVALID")


@pytest.mark.usefixtures("written")
def test_the_file_s_name_may_be_repeated(served: V2) -> None:
    assert set_logs(served, log_file="") == DEFAULTS


def trace_request(model: str = "", **settings: list[str]) -> Any:
    values = {key: pb.TraceSettingRequest.SettingValue(value=value) for key, value in settings.items()}
    return pb.TraceSettingRequest(settings=values, model_name=model)


def trace(served: V2, model: str = "", **settings: list[str]) -> dict[str, list[str]]:
    answer = served.call("TraceSetting", trace_request(model, **settings))
    return {key: list(value.value) for key, value in answer.settings.items()}


def test_trace_settings_are_read_reset_and_repeated(served: V2) -> None:
    now = trace(served)
    assert now == {
        "trace_level": ["OFF"],
        "trace_rate": ["1"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
        "trace_mode": ["opentelemetry"],
    }
    assert trace(served, "plain") == now
    assert trace(served, **{key: [] for key in now}) == now
    assert trace(served, **now) == now


@pytest.mark.parametrize(
    ("key", "values", "code", "reason"),
    [
        ("trace_level", ["TIMESTAMPS"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("trace_level", ["TIMESTAMPS", "TENSORS"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("trace_rate", ["1000"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("trace_count", ["5"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("log_frequency", ["5"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("trace_file", ["/tmp/trace.json"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("trace_mode", ["triton"], UNSUPPORTED, "SETTING_UNSUPPORTED"),
        ("trace_level", ["ALL"], INVALID, "SETTING_INVALID"),
        ("trace_level", ["OFF", "TIMESTAMPS"], INVALID, "SETTING_INVALID"),
        ("trace_rate", ["-1"], INVALID, "SETTING_INVALID"),
        ("trace_rate", ["0"], INVALID, "SETTING_INVALID"),
        ("trace_rate", ["often"], INVALID, "SETTING_INVALID"),
        ("trace_rate", ["1", "1"], INVALID, "SETTING_INVALID"),
        ("trace_count", ["-2"], INVALID, "SETTING_INVALID"),
        ("trace_mode", ["jaeger"], INVALID, "SETTING_INVALID"),
        ("trace_colour", ["red"], INVALID, "SETTING_UNKNOWN"),
        ("trace_colour", [], INVALID, "SETTING_UNKNOWN"),
    ],
)
def test_trace_settings_that_are_refused(
    served: V2, key: str, values: list[str], code: grpc.StatusCode, reason: str
) -> None:
    assert key in served.refused("TraceSetting", trace_request(**{key: values}), code, reason)


def test_trace_settings_of_a_model_that_is_not_there(served: V2) -> None:
    served.refused("TraceSetting", trace_request("absent"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[V2]:
    """A server that makes spans, and sends them nowhere."""
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otel`")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    put_model(tmp_path, "plain", elementwise())
    with v2(tmp_path, tracing=True) as up:
        yield up


def test_what_is_traced_is_set_at_run_time(traced: V2) -> None:
    usual = trace(traced)
    assert (usual["trace_level"], usual["trace_rate"], usual["trace_count"]) == (["TIMESTAMPS"], ["1"], ["-1"])
    told = trace(traced, trace_level=["TIMESTAMPS"], trace_rate=["3"], trace_count=["2"], log_frequency=["0"])
    assert told == {**usual, "trace_rate": ["3"], "trace_count": ["2"]} == trace(traced)
    left = []
    for _ in range(7):
        traced.infer()
        left.append(trace(traced)["trace_count"])
    assert left == [["2"], ["2"], ["1"], ["1"], ["1"], ["0"], ["0"]]
    assert trace(traced, trace_count=[])["trace_count"] == ["-1"]
    assert trace(traced, trace_level=["OFF"])["trace_level"] == ["OFF"]
    assert trace(traced, trace_level=[], trace_rate=[]) == usual


def test_a_request_to_trace_is_taken_as_a_whole_or_not_at_all(traced: V2) -> None:
    usual = trace(traced)
    for wrong, model in (
        ({"trace_level": ["TENSORS"]}, ""),
        ({"trace_level": ["TIMESTAMPS", "TENSORS"]}, ""),
        ({"log_frequency": ["9"]}, ""),
        ({"trace_file": ["/tmp/x"]}, ""),
        ({}, "plain"),
    ):
        request = trace_request(model, trace_rate=["7"], **wrong)
        traced.refused("TraceSetting", request, UNSUPPORTED, "SETTING_UNSUPPORTED")
        assert trace(traced) == usual
