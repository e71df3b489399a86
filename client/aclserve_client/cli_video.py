"""`aclctl video`: a model over videos and cameras; results as lines, as pictures and as a table."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from aclserve.errors import AclserveError
from aclserve_client.aio import AsyncClient
from aclserve_client.cli_inputs import add_shared_memory, shared_memory_mode
from aclserve_client.cli_output import Output, Report, Table, UsageError
from aclserve_client.client import Client
from aclserve_client.options import Options
from aclserve_client.stream_data import FramePolicy
from aclserve_client.video import SourceTotals, VideoResult, VideoSession
from aclserve_client.video_draw import Preview, VideoWriter, draw
from aclserve_client.video_frames import missing_extra
from aclserve_client.video_summary import Timeline, draw_summary, short_name

_VALUES_SHOWN = 64
"""Elements of an output that a line shows; larger ones are only described."""

_LABELS_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `aclctl video`."""
    parser.set_defaults(command=video)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="a file, a V4L2 device (/dev/video0) or an RTSP address")
    add("--model", required=True, metavar="NAME", help="its config.pbtxt says what it wants of a frame (video.*)")
    add("--model-version", type=_count, default=0, metavar="N", help="the version (the highest one that is ready)")
    add(
        "--preset",
        choices=("file", "live"),
        help="file: every frame, in order; live: the newest, and files are played like cameras (by source)",
    )
    policies = [policy.value for policy in FramePolicy if policy is not FramePolicy.UNSPECIFIED]
    add("--policy", choices=policies, default="unspecified", help="what to do with frames that come too fast")
    add("--max-age", type=_above_zero, metavar="SECONDS", help="drop frames that waited longer (live: 1)")
    add("--window", type=_positive, default=8, metavar="N", help="most frames of a source unanswered (8)")
    add("--limit", type=_positive, metavar="N", help="end each source after N frames")
    add("--speed", type=_above_zero, default=1.0, metavar="X", help="live: play files X times as fast (1)")
    add(
        "--source-option", action="append", type=_pair, default=[], metavar="KEY=VALUE", help="for FFmpeg, when opening"
    )
    add("--resume", action="store_true", help="go on when the server goes away, at the next address")
    add_shared_memory(parser)
    add("--lines", type=Path, metavar="FILE", help="a JSON line for each frame (with --json: to standard output)")
    add("--out-video", type=Path, metavar="FILE", help="the frames with boxes; FILE-1, FILE-2 for several sources")
    add("--preview", type=Path, metavar="FILE.png", help="the latest frames with boxes, renewed while running")
    add("--summary", type=Path, metavar="FILE.png", help="throughput, latency and drops over time, at the end")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def video(client: Client, arguments: Namespace, output: Output) -> Report:
    """Runs a model over all sources. Ctrl-C ends the sources; what is sent is still answered and reported."""
    _require_packages(arguments)
    with ExitStack() as stack:
        sinks = _Sinks(arguments, stack)
        return asyncio.run(_run(arguments, output, sinks))


def _require_packages(arguments: Namespace) -> None:
    """Missing packages are told before anything begins."""
    wanted = ["av", "PIL"] + (["matplotlib"] if arguments.summary else [])
    for package in wanted:
        try:
            __import__(package)
        except ImportError:
            raise missing_extra("pillow" if package == "PIL" else package) from None


def _preset(arguments: Namespace) -> str:
    """As asked for; otherwise live where every source is a camera."""
    if arguments.preset:
        return str(arguments.preset)
    return "live" if all("://" in name or name.startswith("/dev/") for name in arguments.sources) else "file"


async def _run(arguments: Namespace, output: Output, sinks: _Sinks) -> Report:
    preset = _preset(arguments)
    options = Options(timeout=arguments.timeout, shared_memory=shared_memory_mode(arguments))
    async with AsyncClient(arguments.address, options) as client:
        session = VideoSession(
            client,
            arguments.model,
            arguments.sources,
            version=arguments.model_version,
            preset=preset,
            policy=arguments.policy,
            max_age=arguments.max_age,
            max_pending=arguments.window,
            keep_images=sinks.wants_images,
            limit=arguments.limit,
            speed=arguments.speed,
            source_options=dict(arguments.source_option),
            resume=arguments.resume,
        )
        timelines = [Timeline() for _ in session.totals]
        total = arguments.limit and arguments.limit * len(session.totals)
        begin = time.monotonic()
        async with session:
            with _ctrl_c_ends(session), output.progress(arguments.model, total) as advance:
                async for result in _all_results(session):
                    timelines[result.source].add(result, time.monotonic() - begin)
                    await asyncio.to_thread(sinks.take, result, session.totals[result.source])
                    advance()
        seconds = time.monotonic() - begin
    await asyncio.to_thread(sinks.close)
    report = _report(arguments.model, preset, session.totals, timelines, seconds)
    if arguments.summary:
        title = f"{arguments.model}, preset {preset}"
        await asyncio.to_thread(draw_summary, arguments.summary, title, session.totals, timelines, seconds)
        report.notes.append(f"summary: {arguments.summary}")
    report.notes.extend(sinks.notes())
    return report


async def _all_results(session: VideoSession) -> AsyncIterator[VideoResult]:
    """The results. The error of a source is not raised: it is in its totals, and the others have been run."""
    try:
        async for result in session:
            yield result
    except AclserveError as error:
        if all(total.error is not error for total in session.totals):
            raise


@contextmanager
def _ctrl_c_ends(session: VideoSession) -> Iterator[None]:
    """The first Ctrl-C ends the sources, the next one the command. Not where there are no signals."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        restore()
        session.stop()

    def restore() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    with suppress(NotImplementedError, RuntimeError, ValueError):
        for number in signals:
            loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            restore()


class _Sinks:
    """Where results go: lines, output videos, the preview. From one thread at a time."""

    def __init__(self, arguments: Namespace, stack: ExitStack) -> None:
        self._files: list[IO[str]] = [sys.stdout] if arguments.json else []
        if arguments.lines:
            self._files.append(stack.enter_context(_opened(arguments.lines)))
        count = len(arguments.sources)
        videos = (
            [_numbered(arguments.out_video, number, count) for number in range(count)] if arguments.out_video else []
        )
        self._writers = [VideoWriter(path) for path in videos]
        self._preview = Preview(arguments.preview) if arguments.preview else None
        stack.callback(self.close)

    @property
    def wants_images(self) -> bool:
        """Whether results must bring their frame's image."""
        return bool(self._writers) or self._preview is not None

    def take(self, result: VideoResult, totals: SourceTotals) -> None:
        """Writes one result wherever it is wanted."""
        if self._files:
            line = json.dumps(as_line(result, totals.name))
            for file in self._files:
                print(line, file=file, flush=file is sys.stdout)
        if result.image is None or result.dropped is not None:
            return
        caption = f"{short_name(totals.name)}  frame {result.number}  {result.latency_s * 1e3:.0f} ms"
        picture = draw(result.image, result.detections, caption)
        if self._writers:
            self._writers[result.source].write(picture, result.position_s, totals.rate)
        if self._preview is not None:
            self._preview.show(result.source, picture)

    def close(self) -> None:
        """Completes the files."""
        for writer in self._writers:
            writer.close()
        if self._preview is not None:
            self._preview.save()

    def notes(self) -> list[str]:
        """What has been written."""
        found = [f"video: {writer.path}, {writer.frames} frames" for writer in self._writers if writer.frames]
        return found + ([f"preview: {self._preview.path}"] if self._preview is not None else [])


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _numbered(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")


def as_line(result: VideoResult, source: str) -> dict[str, Any]:
    """A result as a JSON object. Outputs of more than 64 values are described by type and shape."""
    line: dict[str, Any] = {
        "source": source,
        "frame": result.number,
        "capture_time_ns": result.capture_time_ns,
        "position_s": result.position_s,
        "latency_ms": round(result.latency_s * 1e3, 3),
    }
    if result.dropped is not None:
        line["dropped"] = {"reason": result.dropped.reason.value, "age_ms": round(result.dropped.age_ns / 1e6, 3)}
        return line
    if result.error is not None:
        line["error"] = {
            "code": result.error.code_name, "reason": result.error.reason, "message": result.error.message
        }  # fmt: skip
        return line
    line["detections"] = [asdict(detection) for detection in result.detections]
    line["outputs"] = {name: _described(array) for name, array in result.outputs.items()}
    if result.timing is not None:
        line["timing"] = asdict(result.timing)
    return line


def _described(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size <= _VALUES_SHOWN:
        facts["values"] = array.astype(object).tolist()
    return facts


def _report(model: str, preset: str, totals: list[SourceTotals], timelines: list[Timeline], seconds: float) -> Report:
    sources = [_source_facts(total, timeline) for total, timeline in zip(totals, timelines, strict=True)]
    document = {"model": model, "preset": preset, "seconds": round(seconds, 3), "sources": sources}
    columns = ("source", "sent", "succeeded", "failed", "dropped", "skipped", "frames/s", "latency, ms", "found")
    rows = [
        (
            facts["name"],
            *(facts[key] for key in ("sent", "succeeded", "failed")),
            ", ".join(f"{reason} {count}" for reason, count in facts["drops"].items()) or "0",
            facts["skipped"],
            facts["frames_per_second"],
            ", ".join(f"{name} {value:.1f}" for name, value in facts["latency_ms"].items()),
            ", ".join(f"{label} {count}" for label, count in list(facts["found"].items())[:_LABELS_SHOWN]) or "nothing",
        )
        for facts in sources
    ]
    notes = [f"failed: {total.error.message}" for total in totals if total.error is not None]
    ok = not notes and not any(total.failed for total in totals)
    return Report(document, [Table(f"{model}, preset {preset}, {seconds:.1f} s", columns, rows)], notes, ok=ok)


def _source_facts(total: SourceTotals, timeline: Timeline) -> dict[str, Any]:
    keys = ("name", "sent", "succeeded", "failed", "dropped", "skipped", "damaged", "rate")
    return {
        **{key: getattr(total, key) for key in keys},
        "drops": dict(total.drops),
        "found": dict(total.found.most_common()),
        "frames_per_second": round(timeline.frames_per_second, 2),
        "latency_ms": timeline.latency_ms(),
        "server": asdict(total.summary) if total.summary is not None else None,
        "error": {"reason": total.error.reason, "message": total.error.message} if total.error else None,
    }
