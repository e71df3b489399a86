"""Frames of videos and cameras in, results out. Needs the extra `aclserve[video]`.

    async with AsyncClient() as client, VideoSession(client, "ultraface", ["door.mp4", "/dev/video0"]) as session:
        async for result in session:
            print(result.source, result.number, [detection.box for detection in result.detections])

Each source has a stream of its own. With the preset "file" every frame is answered, in order; with "live" what is late
is left out: frames that the model has no time for are dropped by the server, and where results are not read fast enough
the source skips frames. How pictures become inputs stands in the model's configuration: see `video_config`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import AclserveError, InvalidArgument
from aclserve_client.aio import AsyncClient
from aclserve_client.aio_stream import AsyncStream
from aclserve_client.calls import Background
from aclserve_client.data import Result, Timing
from aclserve_client.stream_data import Dropped, FramePolicy, StreamPreset, StreamSummary
from aclserve_client.video_config import VideoConfig, video_config
from aclserve_client.video_detect import Box, Detection, detect, prepare
from aclserve_client.video_frames import Frame, Frames

__all__ = [
    "Box",
    "Detection",
    "Frame",
    "Frames",
    "SourceTotals",
    "VideoConfig",
    "VideoResult",
    "VideoSession",
    "VideoSource",
    "video_config",
]

VideoSource = str | os.PathLike[str] | Frames | AsyncIterable[Frame]
"""A path, device or address; or frames from elsewhere, whose numbers must differ."""

_AHEAD_RESULTS = 4
"""Frames of a recording whose results may wait for the caller, beyond those that are pending."""

_LIVE_IN_HAND = 4
"""Frames of a camera that are sent and not handed out, at the most: two that run, one that waits, and a newer one."""


@dataclass(frozen=True, eq=False)
class VideoResult:
    """What became of one frame: `outputs` and `detections`, or `error`, or `dropped`.

    `source` is the source's position in the session. `latency_s` is the time from capture until the result was handed
    out. `image` (uint8 RGB) is there where the session keeps images.
    """

    source: int
    number: int
    capture_time_ns: int
    position_s: float | None
    width: int
    height: int
    latency_s: float
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    detections: tuple[Detection, ...] = ()
    timing: Timing | None = None
    error: AclserveError | None = None
    dropped: Dropped | None = None
    image: NDArray[np.uint8] | None = None


@dataclass
class SourceTotals:
    """The totals of one source; at its end sent = succeeded + failed + dropped.

    `skipped` frames were decoded and never sent, because the source is live and nobody took them in time. `damaged`
    counts what could not be decoded, `found` the detections by label. `rate` is the source's own, in frames per second,
    where it tells. `error` is what ended the source before its end; `summary` is the server's word.
    """

    name: str
    sent: int = 0
    succeeded: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    damaged: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    rate: float | None = None
    error: AclserveError | None = None
    summary: StreamSummary | None = None

    @property
    def answered(self) -> int:
        """Frames that have their result: succeeded, failed or dropped."""
        return self.succeeded + self.failed + self.dropped


class VideoSession:
    """Runs a model over one source or several, each on a stream of its own; iterate over it for the results.

    preset: "file" or "live", as in `Client.stream`; `policy` and `max_age` (seconds) override it.
    max_pending: frames of one source that are sent and not answered, at the most; fewer with "live".
    outputs: which outputs to return; None for those that the model's decoder reads, or all where it has none.
    keep_images: hand each frame's image out with its result.
    limit: the most frames of each source. speed, source_options: see `Frames`.
    resume: move to another server when this one goes away, as in `Client.stream`.
    config: how pictures become inputs; None reads it from the model's description.

    Results of one source come in its order with the preset "file", as they complete with "live". When a source fails
    the others go on; its error is in `totals`, and is raised at the end.
    """

    def __init__(
        self,
        client: AsyncClient,
        model: str,
        sources: VideoSource | Sequence[VideoSource],
        *,
        version: int = 0,
        preset: StreamPreset | str = StreamPreset.FILE,
        policy: FramePolicy | str = FramePolicy.UNSPECIFIED,
        max_age: float | None = None,
        max_pending: int = 8,
        outputs: Sequence[str] | None = None,
        keep_images: bool = False,
        limit: int | None = None,
        speed: float = 1.0,
        source_options: Mapping[str, str] | None = None,
        resume: bool = False,
        config: VideoConfig | None = None,
    ) -> None:
        if max_pending < 1:
            raise InvalidArgument(f"max_pending must be 1 or more, got {max_pending}", reason="OPTIONS_INVALID")
        live = self._live = preset == StreamPreset.LIVE
        listed = list(sources) if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
        self._frames = [
            Frames(source, live=live, speed=speed, limit=limit, options=source_options)
            if isinstance(source, str | os.PathLike)
            else source
            for source in listed
        ]
        self._client, self._model, self._version = client, model, version
        self._behaviour: dict[str, Any] = {
            "preset": preset, "policy": policy, "max_age": max_age, "max_pending": max_pending, "resume": resume,
        }  # fmt: skip
        self._max_pending = max_pending
        self._outputs = outputs
        self._keep_images = keep_images
        self._config = config
        self._queue: asyncio.Queue[VideoResult | None] = asyncio.Queue(len(listed))
        self._scope = AsyncExitStack()
        self.totals = [
            SourceTotals(frames.name if isinstance(frames, Frames) else f"source {number}")
            for number, frames in enumerate(self._frames)
        ]

    def stop(self) -> None:
        """Takes no more frames from files, devices and addresses; what is sent is still answered."""
        for frames in self._frames:
            if isinstance(frames, Frames):
                frames.stop()

    @property
    def config(self) -> VideoConfig:
        """How pictures become inputs; known once the session is open."""
        assert self._config is not None
        return self._config

    async def __aenter__(self) -> Self:
        if self._config is None:
            self._config = video_config(await self._client.describe(self._model, self._version))
        await self._scope.enter_async_context(Background(self._run()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.aclose()

    async def __aiter__(self) -> AsyncIterator[VideoResult]:
        while (result := await self._queue.get()) is not None:
            yield result
        for totals in self.totals:
            if totals.error is not None:
                raise totals.error

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(len(self._frames)):
                group.create_task(self._follow(number))
        await self._queue.put(None)

    async def _follow(self, number: int) -> None:
        """Runs one source to its end."""
        totals = self.totals[number]
        stream = self._client.stream(self._model, self._version, **self._behaviour)
        in_hand = _LIVE_IN_HAND if self._live else self._max_pending + _AHEAD_RESULTS
        feed = _Feed(number, self._frames[number], stream, self.config, totals, in_hand)
        feed.outputs, feed.keep_images = self._wanted(), self._keep_images
        try:
            await feed.run(self._queue.put)
        except AclserveError as error:
            totals.error = error

    def _wanted(self) -> Sequence[str] | None:
        if self._outputs is not None:
            return self._outputs
        return self.config.outputs or None


class _Feed:
    """One source and its stream. At most `in_hand` frames are between the source and the caller."""

    def __init__(
        self,
        number: int,
        frames: Frames | AsyncIterable[Frame],
        stream: AsyncStream,
        config: VideoConfig,
        totals: SourceTotals,
        in_hand: int,
    ) -> None:
        self.outputs: Sequence[str] | None = None
        self.keep_images = False
        self._number, self._frames, self._stream = number, frames, stream
        self._config, self._totals = config, totals
        self._room = asyncio.Semaphore(in_hand)
        self._sent: dict[str, _Sent] = {}
        self._failure: AclserveError | None = None

    async def run(self, hand_out: Callable[[VideoResult], Awaitable[None]]) -> None:
        """Hands out all results; then raises what ended the source early, if anything did."""
        async with AsyncExitStack() as scope:
            await scope.enter_async_context(self._stream)
            if isinstance(self._frames, Frames):
                await scope.enter_async_context(self._frames)
            await scope.enter_async_context(Background(self._send()))
            async for result in self._stream.results():
                await hand_out(self._finish(result))
                self._room.release()
            self._totals.summary = self._stream.summary
            self._note_source()
        if self._failure is not None:
            raise self._failure

    async def _send(self) -> None:
        """Sends the frames. A failure is kept, so that what was sent before is answered first."""
        frames = aiter(self._frames)
        try:
            while True:
                await self._room.acquire()  # first: a live source then gives the frame that is newest by that time
                frame = await anext(frames, None)
                if frame is None:
                    break
                await self._send_frame(frame)
        except AclserveError as error:
            self._failure = error
        await self._stream.finish()

    async def _send_frame(self, frame: Frame) -> None:
        key = str(frame.number)
        if key in self._sent:
            raise InvalidArgument(f"two frames have the number {key}", reason="FRAME_NUMBER_REPEATED")
        tensor = await asyncio.to_thread(prepare, frame.image, self._config)
        height, width = frame.image.shape[:2]
        image = frame.image if self.keep_images else None
        self._sent[key] = _Sent(frame.number, frame.capture_time_ns, frame.position_s, width, height, image)
        await self._stream.send(
            {self._config.input: tensor}, id=key, outputs=self.outputs, capture_time_ns=frame.capture_time_ns
        )
        self._totals.sent += 1

    def _finish(self, result: Result) -> VideoResult:
        """The result of a frame, counted."""
        sent = self._sent.pop(result.id)
        error = result.error
        detections: tuple[Detection, ...] = ()
        if error is None and result.dropped is None:
            try:
                detections = detect(result.outputs, self._config, sent.width, sent.height)
            except AclserveError as problem:
                error = problem
        self._count(result, error)
        self._totals.found.update(detection.label for detection in detections)
        return VideoResult(
            source=self._number,
            number=sent.number,
            capture_time_ns=sent.capture_time_ns,
            position_s=sent.position_s,
            width=sent.width,
            height=sent.height,
            latency_s=max(0, time.time_ns() - sent.capture_time_ns) / 1e9,
            outputs=result.outputs,
            detections=detections,
            timing=result.timing,
            error=error,
            dropped=result.dropped,
            image=sent.image,
        )

    def _count(self, result: Result, error: AclserveError | None) -> None:
        totals = self._totals
        if result.dropped is not None:
            totals.dropped += 1
            totals.drops[result.dropped.reason.value] += 1
        elif error is not None:
            totals.failed += 1
        else:
            totals.succeeded += 1
        self._note_source()

    def _note_source(self) -> None:
        if isinstance(self._frames, Frames):
            totals = self._totals
            totals.skipped, totals.damaged = self._frames.skipped, self._frames.damaged
            totals.rate = self._frames.rate


@dataclass(slots=True, eq=False)
class _Sent:
    """What is kept of a frame that is sent and not handed out."""

    number: int
    capture_time_ns: int
    position_s: float | None
    width: int
    height: int
    image: NDArray[np.uint8] | None
