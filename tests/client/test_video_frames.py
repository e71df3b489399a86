"""Frames: the hand-over between threads, recordings, and what cannot be read."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress

import av
import numpy as np
import pytest
from PIL import Image

from aclserve.errors import FailedPrecondition, InvalidArgument, NotFound
from aclserve_client.video_detect import Detection
from aclserve_client.video_draw import Preview, VideoWriter, draw
from aclserve_client.video_frames import Frames, HandOver
from client.rtsp_camera import Camera

SHADES = [0, 40, 80, 120, 160, 200, 240]


def shade(value, width=64, height=48):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Seven frames of even grey, ten a second."""
    path = tmp_path_factory.mktemp("clips") / "shades.mkv"
    writer = VideoWriter(path)
    for position, value in enumerate(SHADES):
        writer.write(shade(value), position / 10, 10.0)
    writer.close()
    assert writer.frames == len(SHADES)
    return path


def test_nothing_is_lost_where_the_producer_waits():
    queue: HandOver[int] = HandOver(2, keep_newest=False)

    def produce():
        for number in range(100):
            assert queue.put(number)
        queue.end()

    thread = threading.Thread(target=produce)
    thread.start()
    taken = []
    while (number := queue.take()) is not None:
        taken.append(number)
    thread.join()
    assert (taken, queue.skipped) == (list(range(100)), 0)


def test_the_newest_are_kept():
    queue: HandOver[int] = HandOver(2, keep_newest=True)
    assert all(queue.put(number) for number in range(10))
    queue.end()
    assert [queue.take() for _ in range(3)] == [8, 9, None]
    assert queue.skipped == 8


def test_a_producer_that_waits_is_let_go():
    queue: HandOver[int] = HandOver(1, keep_newest=False)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.extend([queue.put(1), queue.put(2)]))
    thread.start()
    queue.stop()
    thread.join()
    assert outcome[-1] is False
    assert queue.take() is None


def test_an_error_comes_after_the_items():
    queue: HandOver[int] = HandOver(2, keep_newest=False)
    queue.put(1)
    queue.end(NotFound("gone", reason="GONE"))
    assert queue.take() == 1
    with pytest.raises(NotFound):
        queue.take()


def test_the_loop_is_woken():
    async def run():
        queue: HandOver[int] = HandOver(1, keep_newest=False)
        thread = threading.Thread(target=lambda: ([queue.put(number) for number in range(50)], queue.end()))
        waiting = asyncio.ensure_future(queue.take_async())
        await asyncio.sleep(0)
        thread.start()
        taken = [await waiting]
        while (number := await queue.take_async()) is not None:
            taken.append(number)
        thread.join()
        return taken

    assert asyncio.run(run()) == list(range(50))


def test_all_frames_of_a_recording(clip):
    with Frames(clip) as frames:
        found = list(frames)
    assert [frame.number for frame in found] == list(range(len(SHADES)))
    assert [frame.position_s for frame in found] == pytest.approx([n / 10 for n in range(len(SHADES))], abs=2e-3)
    for frame, value in zip(found, SHADES, strict=True):
        assert (frame.image.shape, frame.image.dtype) == ((48, 64, 3), np.uint8)
        assert abs(int(frame.image.mean()) - value) <= 3
    times = [frame.capture_time_ns for frame in found]
    assert times == sorted(times)
    assert (frames.decoded, frames.skipped, frames.damaged) == (len(SHADES), 0, 0)
    assert frames.rate == pytest.approx(10, rel=0.1)


def test_limit_and_early_end(clip):
    with Frames(clip, limit=3) as frames:
        assert len(list(frames)) == 3
    with Frames(clip, ahead=1) as frames:
        assert next(iter(frames)).number == 0
    with Frames(clip) as frames:
        frames.stop()
        list(frames)
    assert frames.decoded <= len(SHADES)


def test_a_live_recording_keeps_its_pace_and_gives_the_newest(clip):
    """Played fast and taken late: of what is skipped nothing is sent, and the last frame is always there."""

    async def run():
        async with Frames(clip, live=True, speed=1000) as frames:
            frames._thread.join()
            return [frame.number async for frame in frames], frames.skipped

    assert asyncio.run(run()) == ([len(SHADES) - 1], len(SHADES) - 1)


def test_a_camera_in_the_network():
    camera = Camera([shade(value) for value in SHADES])
    address = camera.address.replace("://", "://me:secret@")
    with camera, Frames(address, ahead=len(SHADES), live=True) as frames:
        shades = [int(frame.image.mean()) for frame in frames]
    assert shades == pytest.approx(SHADES, abs=3)
    assert camera.requests == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]


def test_what_cannot_be_read_is_told(tmp_path):
    def read(name, content=None):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with Frames(path) as frames:
            return list(frames)

    with pytest.raises(NotFound) as missing:
        read("missing.mp4")
    assert missing.value.reason == "SOURCE_UNREADABLE"
    for content in (b"", b"no video" * 100):
        with pytest.raises(FailedPrecondition, match="cannot read"):
            read("broken.mp4", content)
    with pytest.raises(FailedPrecondition) as device, Frames("/dev/null") as frames:
        list(frames)
    assert "cannot read /dev/null" in device.value.message


def test_a_cut_recording_gives_what_is_there(clip, tmp_path):
    cut = tmp_path / "cut.mkv"
    content = clip.read_bytes()
    cut.write_bytes(content[: len(content) * 9 // 10])
    numbers = []
    with Frames(cut) as frames, suppress(FailedPrecondition):
        numbers.extend(frame.number for frame in frames)
    assert numbers == list(range(frames.decoded))
    assert 0 < len(numbers) <= len(SHADES)


def test_passwords_are_not_shown():
    assert Frames("rtsp://me:secret@camera:554/a@b").name == "rtsp://camera:554/a@b"


@pytest.mark.parametrize("wrong", [{"speed": 0}, {"ahead": 0}, {"limit": 0}])
def test_wrong_options(wrong):
    with pytest.raises(InvalidArgument):
        Frames("x", **wrong)


def test_a_missing_package_is_told(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'aclserve\[video\]'"), Frames(clip) as frames:
        list(frames)


# Pictures.


def test_boxes_are_drawn_where_they_are():
    picture = draw(shade(0, 200, 100), [Detection("face", 0.9, (0.25, 0.5, 0.75, 0.9)), Detection("night", 0.5)], "x")
    assert picture.shape == (100, 200, 3)
    red = (picture == (0xE6, 0x19, 0x4B)).all(axis=2)
    rows, columns = np.nonzero(red[55:])
    assert (columns.min(), columns.max()) == (50, 150)
    assert rows.max() + 55 == 90
    assert not red[60:85, 60:140].any()
    assert (picture == (0x3C, 0xB4, 0x4B)).all(axis=2)[:50, :100].any()


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_an_output_video_has_its_frames_and_times(tmp_path, name):
    writer = VideoWriter(tmp_path / "new" / name)
    for position_s, value in ((5.0, 10), (5.1, 100), (5.05, 255), (5.3, 200)):
        writer.write(shade(value, 65, 49), position_s, 10.0)
    writer.write(shade(250, 130, 98), 5.5, 10.0)
    writer.close()
    writer.close()
    with av.open(str(tmp_path / "new" / name)) as container:
        frames = list(container.decode(video=0))
    shades = [int(frame.to_ndarray(format="rgb24").mean()) for frame in frames]
    assert shades == pytest.approx([10, 100, 200, 250], abs=6)
    assert {(frame.width, frame.height) for frame in frames} == {(64, 48)}
    assert writer.frames == len(frames) == 4
    times = [frame.time - frames[0].time for frame in frames]
    assert times == pytest.approx([0, 0.1, 0.3, 0.5], abs=0.02)


def test_without_times_frames_are_spaced_by_the_rate(tmp_path):
    writer = VideoWriter(tmp_path / "camera.mp4")
    for value in SHADES:
        writer.write(shade(value), None, 5.0)
    writer.close()
    with av.open(str(tmp_path / "camera.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert np.diff(times) == pytest.approx([0.2] * 6, abs=0.01)


def test_a_video_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="cannot write a video"):
        VideoWriter(tmp_path / "video.what").write(shade(1), 0.0)
    VideoWriter(tmp_path / "never.mp4").close()
    assert not (tmp_path / "never.mp4").exists()


def test_the_preview_shows_all_sources_and_is_renewed(tmp_path):
    now = [0.0]
    preview = Preview(tmp_path / "now.png", clock=lambda: now[0])
    preview.save()
    assert not preview.path.exists()
    preview.show(1, shade(200, 64, 48))
    preview.show(0, shade(100, 128, 96))
    with Image.open(preview.path) as sheet:
        assert sheet.size == (64, 48)
    now[0] = 1.0
    preview.show(0, shade(50, 128, 96))
    with Image.open(preview.path) as sheet:
        assert sheet.size == (128, 48)
        assert (sheet.getpixel((10, 10)), sheet.getpixel((100, 10))) == ((50,) * 3, (200,) * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["now.png"]
    with pytest.raises(InvalidArgument, match="cannot write a picture"):
        Preview(tmp_path / "now.what").show(0, shade(1))
