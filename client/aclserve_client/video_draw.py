"""Results on pictures: boxes and names, an output video, and a preview image. Needs the extra `aclserve[video]`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import InvalidArgument
from aclserve_client.video_detect import Detection
from aclserve_client.video_frames import missing_extra

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import OutputContainer

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
CODECS = ("libx264", "mpeg4")
"""The codecs of an output video, by preference; otherwise the one that its kind of file is known for."""

TICKS_PER_S = 1000
PREVIEW_HEIGHT = 480
PREVIEW_INTERVAL_S = 0.5


def draw(image: NDArray[np.uint8], detections: Sequence[Detection], caption: str = "") -> NDArray[np.uint8]:
    """A copy of the picture with boxes, names, scores and a caption; what has no box stands on the left."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise missing_extra("pillow") from None
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = max(1, round(min(width, height) / 240))
    font = ImageFont.load_default(size=7.0 * unit + 6)
    labels = list(dict.fromkeys(item.label for item in detections))
    line_y = float(2 * unit)

    def write(x: float, y: float, text: str, background: str) -> float:
        """Writes text on a coloured ground inside the picture; the height it takes."""
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = right - left + 4 * unit, bottom - top + 4 * unit
        x, y = min(max(x, 0), max(0, width - wide)), min(max(y, 0), max(0, height - high))
        pen.rectangle((x, y, x + wide, y + high), fill=background)
        pen.text((x + 2 * unit - left, y + 2 * unit - top), text, fill="white", font=font)
        return high

    for item in detections:
        colour = COLOURS[labels.index(item.label) % len(COLOURS)]
        text = f"{item.label} {item.score:.2f}"
        if item.box is None:
            line_y += write(2 * unit, line_y, text, colour) + unit
            continue
        x1, y1, x2, y2 = item.box[0] * width, item.box[1] * height, item.box[2] * width, item.box[3] * height
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2 * unit)
        _, top, _, bottom = pen.textbbox((0, 0), text, font=font)
        write(x1, y1 - (bottom - top) - 4 * unit, text, colour)
    if caption:
        write(0, height, caption, "#303030")
    return np.asarray(picture)


class VideoWriter:
    """An output video; its kind follows from the name. Frames of another size are fitted to the first one's.

    Frames that are earlier than the last one are left out. From one thread at a time; `close` completes the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.frames = 0
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._first_s: float | None = None
        self._last = -1

    def write(self, image: NDArray[np.uint8], position_s: float | None, rate: float | None = None) -> None:
        """Adds a picture (uint8 RGB) at a time of the video. Where that is not known they are spaced by `rate` (25)."""
        try:
            import av
        except ImportError:
            raise missing_extra("av") from None
        if self._stream is None:
            self._open(image.shape[1], image.shape[0], rate or 25.0)
        assert self._stream is not None
        assert self._container is not None
        tick = self._tick(position_s, rate or 25.0)
        if tick <= self._last:
            return
        picture: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        picture = picture.reformat(self._stream.width, self._stream.height, "yuv420p")
        picture.pts, picture.time_base = tick, Fraction(1, TICKS_PER_S)
        self._container.mux(self._stream.encode(picture))
        self._last = tick
        self.frames += 1

    def _tick(self, position_s: float | None, rate: float) -> int:
        if position_s is None:
            return max(0, self._last) + round(TICKS_PER_S / rate)
        if self._first_s is None:
            self._first_s = position_s
        return round((position_s - self._first_s) * TICKS_PER_S)

    def _open(self, width: int, height: int, rate: float) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            container = av.open(str(self.path), "w")
        except (ValueError, OSError, av.FFmpegError) as error:
            raise InvalidArgument(f"cannot write a video to {self.path}: {error}", reason="OUTPUT_INVALID") from error
        known = container.supported_codecs
        names = [name for name in CODECS if name in av.codecs_available and av.Codec(name, "w").canonical_name in known]
        codec = names[0] if names else container.default_video_codec
        stream: Any = container.add_stream(codec, Fraction(rate).limit_denominator(1001))
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        if codec == "libx264":
            stream.options = {"preset": "veryfast"}
        else:
            stream.bit_rate = round(0.15 * width * height * rate)
        self._container, self._stream = container, stream

    def close(self) -> None:
        """Completes the file; nothing is written where there was no frame."""
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = self._stream = None


class Preview:
    """An image file that shows the latest picture of each source, side by side; renewed every half second.

    The file is replaced as a whole, so a viewer never sees half of it. From one thread at a time.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = Path(path)
        self._clock = clock
        self._latest: dict[int, NDArray[np.uint8]] = {}
        self._next_s = -math.inf

    def show(self, source: int, image: NDArray[np.uint8]) -> None:
        """The source's latest picture (uint8 RGB)."""
        self._latest[source] = image
        if self._clock() >= self._next_s:
            self.save()
            self._next_s = self._clock() + PREVIEW_INTERVAL_S

    def save(self) -> None:
        """Writes the file now, where there is anything to show."""
        from PIL import Image

        tiles = [Image.fromarray(self._latest[source]) for source in sorted(self._latest)]
        if not tiles:
            return
        high = min(PREVIEW_HEIGHT, *(tile.height for tile in tiles), PREVIEW_HEIGHT)
        tiles = [tile.resize((max(1, round(tile.width * high / tile.height)), high)) for tile in tiles]
        sheet = Image.new("RGB", (sum(tile.width for tile in tiles), high))
        x = 0
        for tile in tiles:
            sheet.paste(tile, (x, 0))
            x += tile.width
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.part{self.path.suffix}")
        try:
            sheet.save(partial)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"cannot write a picture to {self.path}: {error}", reason="OUTPUT_INVALID") from error
        partial.replace(self.path)
