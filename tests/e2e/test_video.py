"""Video end to end: the published clips through the face detector, by the library and by `aclctl video`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from aclserve_client import AsyncClient, Client, NotFound
from aclserve_client.video import Frame, SourceTotals, VideoResult, VideoSession
from aclserve_client.video_config import parameters_text
from demo.video import FACE_FACTS
from e2e.cases import copy_model
from serving import Serving, serving

pytestmark = pytest.mark.needs_shared

MODEL = "ultraface_rfb_320"
ACLCTL = str(Path(sys.executable).with_name("aclctl"))


@pytest.fixture(scope="module")
def served(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    copy_model(root, MODEL, config=parameters_text(FACE_FACTS))
    with serving(root) as server:
        yield server


@pytest.fixture(scope="module")
def signer(shared: Path) -> Path:
    """A person who makes signs: 109 frames with a face."""
    return shared / "data" / "media" / "asl_book.mkv"


@pytest.fixture(scope="module")
def traffic(shared: Path) -> Path:
    """Cars seen from a bridge: 377 frames without a face."""
    return shared / "data" / "media" / "car-detection.mp4"


def run(served: Serving, sources: Any, **options: Any) -> tuple[list[VideoResult], list[SourceTotals]]:
    """All results of a session, and its totals, which must add up."""

    async def gather() -> tuple[list[VideoResult], list[SourceTotals]]:
        async with AsyncClient(served.address) as client, VideoSession(client, MODEL, sources, **options) as session:
            return [result async for result in session], session.totals

    results, totals = asyncio.run(gather())
    for number, total in enumerate(totals):
        assert total.sent == total.answered == sum(result.source == number for result in results)
        assert total.summary is not None
        assert (total.summary.received_items, total.summary.succeeded_items) == (total.sent, total.succeeded)
        assert (total.summary.failed_items, total.summary.dropped_items) == (total.failed, total.dropped)
        assert total.summary.drops == dict(total.drops)
    return results, totals


async def collect(session: VideoSession, results: list[VideoResult]) -> None:
    async for result in session:
        results.append(result)


def test_the_parameters_reach_the_client(served: Serving) -> None:
    with Client(served.address) as client:
        parameters = client.describe(MODEL).parameters
    assert parameters == {f"video.{key}": str(value) for key, value in FACE_FACTS.items()}


def test_a_face_is_found_in_the_signs_and_none_in_the_traffic(served: Serving, signer: Path, traffic: Path) -> None:
    """Both clips at once on one client, as files: no frame is lost, and each source's results come in its order."""
    results, totals = run(served, [signer, traffic], limit=120)
    signs, cars = ([result for result in results if result.source == number] for number in (0, 1))
    assert [result.number for result in signs] == list(range(109))
    assert [result.number for result in cars] == list(range(120))
    assert [(total.sent, total.succeeded, total.skipped) for total in totals] == [(109, 109, 0), (120, 120, 0)]
    with_a_face = [result for result in signs if len(result.detections) == 1]
    assert len(with_a_face) >= 0.9 * len(signs)
    for result in with_a_face:
        (face,) = result.detections
        assert face.box is not None
        x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
        assert 0.4 < x < 0.55, f"frame {result.number}: {face}"
        assert 0.15 < y < 0.45, f"frame {result.number}: {face}"
    assert not any(result.detections for result in cars)
    assert totals[0].found["face"] >= len(with_a_face)
    assert not totals[1].found


def test_what_a_result_holds(served: Serving, signer: Path) -> None:
    (first, second), _ = run(served, signer, limit=2, keep_images=True)
    assert list(first.outputs) == ["scores", "boxes"]
    assert first.outputs["scores"].shape == (1, 4420, 2)
    assert first.image is not None
    assert first.image.shape == (480, 640, 3)
    assert (first.width, first.height) == (640, 480)
    assert first.position_s is not None
    assert second.position_s == pytest.approx(first.position_s + 1 / 30, abs=2e-3)
    assert second.capture_time_ns >= first.capture_time_ns
    assert first.latency_s > 0
    assert first.timing is not None
    assert run(served, signer, limit=1)[0][0].image is None


def test_live_what_is_late_is_left_out_and_counted(served: Serving, signer: Path, traffic: Path) -> None:
    """The device is held until the clips have been played: frames are superseded, and nothing is unaccounted for."""

    async def gather() -> tuple[list[VideoResult], list[SourceTotals]]:
        results = []
        served.emulator.hold()
        try:
            async with (
                asyncio.timeout(60),
                AsyncClient(served.address) as client,
                VideoSession(
                    client, MODEL, [signer, traffic], preset="live", max_age=60, speed=4, limit=100
                ) as session,
            ):
                async for result in session:
                    results.append(result)
                    if all(total.dropped >= 2 for total in session.totals):
                        served.emulator.release()
        finally:
            served.emulator.release()
        return results, session.totals

    results, totals = asyncio.run(gather())
    for number, total in enumerate(totals):
        assert total.sent + total.skipped == 100
        assert total.sent == total.succeeded + total.failed + total.dropped
        assert total.dropped == total.drops["superseded"] >= 2
        assert total.failed == 0
        assert total.succeeded >= 1
        found = [result.number for result in results if result.source == number]
        assert len(found) == len(set(found)) == total.sent
        assert total.summary is not None
        assert total.summary.received_items == total.sent
        assert total.summary.dropped_items == total.dropped
    assert all(result.dropped is None or not result.outputs for result in results)


def test_frames_may_come_from_elsewhere(served: Serving, shared: Path) -> None:
    picture = np.asarray(Image.open(shared / "data" / "media" / "astronaut.png").convert("RGB"))

    async def frames() -> AsyncIterator[Frame]:
        for number, image in enumerate((picture, picture[:, ::-1], np.zeros((64, 64, 3), np.uint8))):
            yield Frame(number, np.ascontiguousarray(image), 1_000_000 + number)

    results, _ = run(served, frames())
    faces = [result.detections for result in results]
    assert [len(found) for found in faces] == [1, 1, 0]
    assert faces[0][0].box == pytest.approx((0.35, 0.12, 0.53, 0.34), abs=0.01)
    assert faces[1][0].box == pytest.approx((0.47, 0.12, 0.65, 0.34), abs=0.02)
    assert [result.capture_time_ns for result in results] == [1_000_000, 1_000_001, 1_000_002]


def test_a_source_that_fails_leaves_the_others_alone(served: Serving, signer: Path, tmp_path: Path) -> None:
    async def gather() -> list[VideoResult]:
        results: list[VideoResult] = []
        async with (
            AsyncClient(served.address) as client,
            VideoSession(client, MODEL, [tmp_path / "none.mp4", signer], limit=5) as session,
        ):
            with pytest.raises(NotFound, match=r"none\.mp4"):
                await collect(session, results)
            assert isinstance(session.totals[0].error, NotFound)
        return results

    assert [(result.source, result.number) for result in asyncio.run(gather())] == [(1, n) for n in range(5)]


def test_leaving_early_and_stopping(served: Serving, signer: Path) -> None:
    async def leave() -> int:
        async with AsyncClient(served.address) as client, VideoSession(client, MODEL, signer) as session:
            async for result in session:
                return result.number
        raise AssertionError("no result")

    async def stop() -> SourceTotals:
        async with AsyncClient(served.address) as client, VideoSession(client, MODEL, signer) as session:
            async for _ in session:
                session.stop()
        return session.totals[0]

    assert asyncio.run(leave()) == 0
    totals = asyncio.run(stop())
    assert 1 <= totals.sent == totals.succeeded < 109


# The command.


def aclctl(served: Serving, *words: object) -> subprocess.CompletedProcess[str]:
    command = [ACLCTL, "video", *map(str, words), "--model", MODEL, "--address", served.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_writes_lines_videos_and_pictures(
    served: Serving, signer: Path, traffic: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = aclctl(
        served, signer, traffic, "--limit", 20, "--lines", out / "lines.jsonl", "--out-video", out / "video.mp4",
        "--preview", out / "preview.png", "--summary", out / "summary.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preset file" in done.stdout
    assert "face 20" in done.stdout
    lines = [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]
    by_source = {str(path): [line for line in lines if line["source"] == str(path)] for path in (signer, traffic)}
    assert [[line["frame"] for line in found] for found in by_source.values()] == [list(range(20))] * 2
    assert all(line["detections"][0]["label"] == "face" for line in by_source[str(signer)])
    assert all(line["outputs"]["scores"]["shape"] == [1, 4420, 2] for line in lines)
    for name, size in (("video-1.mp4", (640, 480)), ("video-2.mp4", (768, 432))):
        with av.open(str(out / name)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == 20
        assert (frames[0].width, frames[0].height) == size
    for name in ("preview.png", "summary.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 400
    assert sorted(path.name for path in out.iterdir()) == [
        "lines.jsonl",
        "preview.png",
        "summary.png",
        "video-1.mp4",
        "video-2.mp4",
    ]


def test_the_box_in_the_video_is_around_the_face(served: Serving, signer: Path, tmp_path: Path) -> None:
    """The frame of the output video differs from the source's where the box's edge is, and not within it."""
    done = aclctl(served, signer, "--limit", 1, "--json", "--out-video", tmp_path / "one.mp4")
    line, totals = map(json.loads, done.stdout.splitlines())
    assert totals["sources"][0]["succeeded"] == totals["sources"][0]["sent"] == 1
    x1, y1, x2, y2 = (
        round(part * side) for part, side in zip(line["detections"][0]["box"], (640, 480) * 2, strict=True)
    )
    with av.open(str(tmp_path / "one.mp4")) as drawn, av.open(str(signer)) as source:
        after, before = (
            next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int) for container in (drawn, source)
        )
    change = np.abs(after - before).sum(axis=2)
    middle = (y1 + y2) // 2
    assert change[middle, x1 + 1] > 100
    assert change[middle, x2 - 1] > 100
    assert change[y2 - 1, (x1 + x2) // 2] > 100
    assert change[y1 + 12 : y2 - 12, x1 + 12 : x2 - 12].mean() < 40


def test_ctrl_c_ends_the_sources_and_the_totals_are_told(served: Serving, signer: Path) -> None:
    command = [ACLCTL, "video", str(signer), "--model", MODEL, "--address", served.address, "--json"]
    command += ["--preset", "live", "--speed", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    lines += rest.splitlines()
    (facts,) = json.loads(lines[-1])["sources"]
    assert facts["sent"] == len(lines) - 1 < 109
    assert facts["sent"] == facts["succeeded"] + facts["failed"] + facts["dropped"]
    assert facts["server"]["received_items"] == facts["sent"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.mp4"], "cannot read none.mp4: No such file or directory"),
        (["{clip}", "--out-video", "video.what"], "cannot write a video to video.what"),
        (["rtsp://me:secret@127.0.0.1:1/live"], "cannot read rtsp://127.0.0.1:1/live: Connection refused"),
    ],
)
def test_what_goes_wrong_is_told(served: Serving, signer: Path, words: list[str], said: str) -> None:
    done = aclctl(served, *(word.format(clip=signer) for word in words), "--limit", 1)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_without_the_extra_the_command_says_what_to_install(served: Serving, signer: Path, tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('not here')\n")
    command = [ACLCTL, "video", str(signer), "--model", MODEL, "--address", served.address]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 1
    assert "pip install 'aclserve[video]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demonstration(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.video", "--limit", "5", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for fact in ("acl=emulator", "face 5", "nothing", "stopped, status 0"):
        assert fact in done.stdout, fact
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"video-1.mp4", "video-2.mp4", "video-preview.png", "video-summary.png", "video.jsonl"}


def test_the_demonstration_of_a_model_of_ones_own(root: Path, shared: Path, signer: Path, tmp_path: Path) -> None:
    copy_model(tmp_path, MODEL, config=parameters_text(FACE_FACTS))
    command = [sys.executable, "-m", "demo.video", "--video", str(signer), "--model", str(tmp_path / MODEL)]
    command += ["--limit", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "face 2" in done.stdout
