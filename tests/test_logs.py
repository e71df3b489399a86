"""Log lines: text or JSON, and their change at run time."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import pytest

from aclserve_server import logs

log = logging.getLogger("aclserve_server.tested")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    log.info("model %s is ready", "digits", extra={"fields": {"model": "digits"}})
    log.debug("unseen")
    (line,) = lines(capsys)
    assert line.endswith("INFO aclserve_server.tested: model digits is ready")


def test_json_lines_have_stable_keys_and_the_caller_s_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    log.warning("two\nlines of %s", "ü", extra={"fields": {"items": 3, "level": "mine", "path": logs}})
    told = json.loads(lines(capsys)[0])
    assert list(told) == ["time", "level", "logger", "message", "items", "path"]
    assert (told["level"], told["logger"], told["message"]) == ("warning", log.name, "two\nlines of ü")
    assert told["items"] == 3
    assert datetime.fromisoformat(told["time"]).tzinfo == UTC


def test_json_lines_hold_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("what happened")
    except ValueError:
        log.exception("it failed")
    (line,) = lines(capsys)
    assert "ValueError: what happened" in json.loads(line)["error"]


def test_level_format_and_single_levels_change_at_run_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning")
    logs.configure("warning")
    assert (logs.level(), logs.format_kind(), logs.muted()) == ("warning", "text", frozenset())
    log.info("unseen")
    logs.set_level("debug")
    logs.set_format("json")
    log.debug("seen once")
    logs.mute(["info", "error"])
    log.info("unseen")
    log.error("unseen")
    log.critical("unseen")
    log.warning("seen too")
    assert [json.loads(line)["message"] for line in lines(capsys)] == ["seen once", "seen too"]
    assert (logs.level(), logs.format_kind(), logs.muted()) == ("debug", "json", {"info", "error"})
    logs.mute([])
    log.info("back")
    assert len(lines(capsys)) == 1


def test_what_is_no_level_or_format_is_told() -> None:
    logs.configure("info")
    loud = "got level 'loud', expected one of debug, info, warning, error"
    with pytest.raises(ValueError, match=loud):
        logs.set_level("loud")
    with pytest.raises(ValueError, match=loud):
        logs.mute(["info", "loud"])
    with pytest.raises(ValueError, match="got format 'xml', expected one of text, json"):
        logs.set_format("xml")
    assert (logs.level(), logs.muted()) == ("info", frozenset())


def test_lines_of_a_worker_tell_its_device(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.set_device(3)
    log.info("ready")
    logs.set_format("json")
    log.info("ready", extra={"fields": {"device": 9, "model": "digits"}})
    text, line = lines(capsys)
    assert text.endswith("INFO device 3 aclserve_server.tested: ready")
    told = json.loads(line)
    assert list(told) == ["time", "level", "device", "logger", "message", "model"]
    assert told["device"] == 3
