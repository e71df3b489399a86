"""Frames of a file, a V4L2 device or an RTSP address, decoded by PyAV in a thread of their own.

The thread hands over through a queue of `ahead` frames. In a recording it waits while the queue is full, so nothing is
lost; live the oldest frame makes room, so what is taken is the newest there is. Needs the extra `aclserve[video]`.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import AclserveError, FailedPrecondition, InvalidArgument, NotFound

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

T = TypeVar("T")

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0
"""How long an address may be silent before it counts as gone."""

JOIN_S = 2.0


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: `image` is uint8 RGB [height, width, 3]. `number` counts the source's pictures from 0.

    `capture_time_ns` is when it was decoded, since the epoch by this machine's clock. `position_s` is its place in the
    recording; None where the source does not tell.
    """

    number: int
    image: NDArray[np.uint8]
    capture_time_ns: int
    position_s: float | None = None


def missing_extra(package: str) -> FailedPrecondition:
    """The error that says how to get the packages of this part."""
    return FailedPrecondition(
        f"video needs the package {package}, which is not installed: pip install 'aclserve[video]'",
        reason="EXTRA_NOT_INSTALLED",
    )


class HandOver(Generic[T]):
    """A bounded queue from one thread to one consumer, who waits (`take`) or awaits (`take_async`)."""

    def __init__(self, capacity: int, *, keep_newest: bool) -> None:
        self._capacity = capacity
        self._keep_newest = keep_newest
        self._changed = threading.Condition()  # guards all below
        self._items: deque[T] = deque()
        self._ended = self._stopped = False
        self._error: AclserveError | None = None
        self._wake: Callable[[], object] | None = None
        self.skipped = 0

    def put(self, item: T) -> bool:
        """Adds an item; waits for room, or lets the oldest go to keep the newest. False when nobody takes any."""
        with self._changed:
            if self._keep_newest and len(self._items) >= self._capacity:
                self._items.popleft()
                self.skipped += 1
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._capacity)
            if self._stopped:
                return False
            self._items.append(item)
            self._notify()
            return True

    def end(self, error: AclserveError | None = None) -> None:
        """Nothing more comes; `error` is raised after the last item."""
        with self._changed:
            self._ended, self._error = True, error
            self._notify()

    def stop(self) -> None:
        """The consumer takes nothing more."""
        with self._changed:
            self._stopped = self._ended = True
            self._items.clear()
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()

    def _next(self) -> T | None:
        if self._items:
            item = self._items.popleft()
            self._changed.notify_all()
            return item
        if self._error is not None:
            raise self._error
        return None

    def take(self) -> T | None:
        """The next item, None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._ended)
            return self._next()

    async def take_async(self) -> T | None:
        """As `take`, without holding up the event loop."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        try:
            while True:
                with self._changed:
                    if self._items or self._ended:
                        return self._next()
                    arrived.clear()
                    self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
                await arrived.wait()
        finally:
            with self._changed:
                self._wake = None


def _without_password(source: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", source)


class Frames:
    """The frames of one source, once, in order. Use it in `with` or `async with`, and iterate either way.

    source: a file's path, "/dev/videoN", or an address such as "rtsp://host/stream".
    live: keep the newest frames rather than all; a file is then played at `speed` times the rate it was taken at, as if
        it were a camera.
    limit: the most frames to decode.
    ahead: frames decoded in advance (4; live 1, so that the next one is the newest).
    options: FFmpeg's options for opening the source, such as {"rtsp_transport": "udp"} or {"video_size": "1280x720"}.

    Iterating raises `NotFound` or `FailedPrecondition`, reason SOURCE_UNREADABLE, where the source cannot be read (any
    further), after the frames that could.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        live: bool = False,
        speed: float = 1.0,
        limit: int | None = None,
        ahead: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        ahead = (1 if live else 4) if ahead is None else ahead
        if not speed > 0 or ahead < 1 or (limit is not None and limit < 1):
            raise InvalidArgument(
                f"speed must be above 0, ahead and limit 1 or more; got {speed}, {ahead}, {limit}",
                reason="OPTIONS_INVALID",
            )
        self._source = os.fspath(source)
        self.name = _without_password(self._source)
        self.rate: float | None = None
        self.decoded = 0
        self.damaged = 0
        self._live, self._speed, self._limit = live, speed, limit
        self._options = dict(options or {})
        self._queue: HandOver[Frame] = HandOver(ahead, keep_newest=live)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aclserve-video", daemon=True)
        self._first_s: float | None = None
        self._begin_s = 0.0

    @property
    def skipped(self) -> int:
        """Frames that nobody took before newer ones came."""
        return self._queue.skipped

    @property
    def is_device(self) -> bool:
        """Whether the source is a V4L2 device."""
        return self._source.startswith("/dev/")

    @property
    def is_address(self) -> bool:
        """Whether the source is somewhere in the network."""
        return "://" in self._source

    def start(self) -> None:
        """Begins to decode."""
        self._thread.start()

    def stop(self) -> None:
        """Decodes no more; what is decoded can still be taken. From any thread."""
        self._stopped.set()
        self._queue.end()

    def close(self) -> None:
        """Ends at once. A device that hangs is left to its thread."""
        self._stopped.set()
        self._queue.stop()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._queue.take()) is not None:
            yield frame

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while (frame := await self._queue.take_async()) is not None:
            yield frame

    # On the thread.

    def _run(self) -> None:
        try:
            import av
        except ImportError:
            self._queue.end(missing_extra("av"))
            return
        try:
            with self._open() as container:
                self._decode(container)
            error = None if self.decoded or self._stopped.is_set() else self._unreadable("it has no pictures")
        except (av.FFmpegError, OSError) as problem:
            error = self._unreadable(getattr(problem, "strerror", None) or str(problem), problem)
        except AclserveError as problem:
            error = problem
        except Exception as problem:  # the consumer must not wait for ever
            error = self._unreadable(f"{type(problem).__name__}: {problem}", problem)
        self._queue.end(error)

    def _unreadable(self, why: str, cause: Exception | None = None) -> AclserveError:
        cls = NotFound if isinstance(cause, FileNotFoundError) else FailedPrecondition
        after = f" after {self.decoded} frames" if self.decoded else ""
        error = cls(f"cannot read {self.name}{after}: {why}", reason="SOURCE_UNREADABLE")
        error.__cause__ = cause
        return error

    def _open(self) -> InputContainer:
        import av

        options = dict(self._options)
        if self.is_device:
            return av.open(self._source, format="v4l2", options=options)
        if not self.is_address:
            return av.open(self._source, options=options)
        if self._source.startswith("rtsp"):
            options.setdefault("rtsp_transport", "tcp")
        return av.open(self._source, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))

    def _decode(self, container: InputContainer) -> None:
        import av

        if not container.streams.video:
            raise self._unreadable("it has no video stream")
        stream = container.streams.video[0]
        if not self._live:
            stream.thread_type = "AUTO"  # decodes several frames at a time, which are late by as many
        self.rate = float(stream.average_rate) if stream.average_rate else None
        for packet in container.demux(stream):
            try:
                pictures = packet.decode()
            except av.InvalidDataError:
                self.damaged += 1
                continue
            for picture in pictures:
                if not self._give(picture):
                    return

    def _give(self, picture: av.VideoFrame) -> bool:
        """Hands one picture over; False when no more are wanted."""
        if self._live and not self.is_device and not self.is_address:
            self._wait_until_due(picture.time)
        if self._stopped.is_set():
            return False
        image: NDArray[Any] = picture.to_ndarray(format="rgb24")
        frame = Frame(self.decoded, image, time.time_ns(), picture.time)
        self.decoded += 1
        return self._queue.put(frame) and self.decoded != self._limit

    def _wait_until_due(self, position_s: float | None) -> None:
        if position_s is None:
            return
        if self._first_s is None:
            self._first_s, self._begin_s = position_s, time.monotonic()
        due = self._begin_s + (position_s - self._first_s) / self._speed
        self._stopped.wait(max(0.0, due - time.monotonic()))
