"""The profile sees every thread, and its file is one that a browser or speedscope opens."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from aclserve_server import profiling
from aclserve_server.profiling import Profiler


def held_by_a_device_thread(release: threading.Event, begun: threading.Event) -> None:
    begun.set()
    release.wait(60)


def profile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles until another thread was seen twice."""
    looks = threading.Semaphore(0)
    look = Profiler._look

    def counted(self: Profiler, passed_ns: int) -> None:
        look(self, passed_ns)
        looks.release()

    monkeypatch.setattr(Profiler, "_look", counted)
    release, begun = threading.Event(), threading.Event()
    other = threading.Thread(target=held_by_a_device_thread, args=(release, begun), name="device")
    other.start()
    try:
        assert begun.wait(60)
        profiler = Profiler(file)
        profiler.start()
        assert looks.acquire(timeout=60)
        assert looks.acquire(timeout=60)
        profiler.stop()
    finally:
        release.set()
        other.join()


def test_speedscope_s_file_has_the_stacks_of_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "profile.json"
    profile(file, monkeypatch)
    told: dict[str, Any] = json.loads(file.read_text())
    assert told["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [frame["name"] for frame in told["shared"]["frames"]]
    assert {"MainThread", "device", "held_by_a_device_thread"} <= set(names)
    assert not {"profiler", "Profiler._sample"} & set(names)
    (events,) = (profile["events"] for profile in told["profiles"])
    opened: list[str] = []
    stacks = []
    for event in events:
        name = names[event["frame"]]
        if event["type"] == "O":
            opened.append(name)
            stacks.append(tuple(opened))
        else:
            assert opened.pop() == name
    assert any("device" in stack and "held_by_a_device_thread" in stack for stack in stacks)
    assert not any({"MainThread", "device"} <= set(stack) for stack in stacks), "threads lie beside each other"


def test_a_page_for_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "profile.html"
    profile(file, monkeypatch)
    page = file.read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "held_by_a_device_thread" in page
    assert 'src="http' not in page, "it opens without a network"


def test_different_stacks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MAX_STACKS", 1)
    profiler = Profiler(tmp_path / "profile.json")
    profiler._look(1)
    release, begun = threading.Event(), threading.Event()
    other = threading.Thread(target=held_by_a_device_thread, args=(release, begun))
    other.start()
    assert begun.wait(60)
    profiler._look(1)
    release.set()
    other.join()
    assert len(profiler._stacks) <= 1


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Profiler(tmp_path / "nowhere" / "profile.json")
