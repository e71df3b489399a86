"""What the video demonstration runs, as far as it needs no clip."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from demo import video


def test_without_a_video_it_explains_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video, "DATA", tmp_path / "absent")
    monkeypatch.setattr(sys, "argv", ["video"])
    assert video.main() == 2
    assert "make demo-video VIDEO=clip.mp4 MODEL=models/NAME" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["video", "--video", "x.mp4", "--model", str(tmp_path / "none.onnx")])
    assert video.main() == 1
    assert "there is no model" in capsys.readouterr().out


def test_names_of_videos(tmp_path: Path) -> None:
    clip = tmp_path / "my clip.mp4"
    clip.touch()
    assert video.sources(str(clip)) == [str(clip)]
    assert video.sources("a.mp4 '/dev/video 0'") == ["a.mp4", "/dev/video 0"]


def test_a_model_file_comes_with_the_configuration_beside_it(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "faces.onnx").write_bytes(b"model")
    (tmp_path / "here" / "config.pbtxt").write_text("max_batch_size: 0")
    root = tmp_path / "repository"
    assert video.make_repository(root, str(tmp_path / "here" / "faces.onnx")) == "faces"
    assert (root / "faces" / "1" / "model.onnx").read_bytes() == b"model"
    assert (root / "faces" / "config.pbtxt").read_text() == "max_batch_size: 0"
