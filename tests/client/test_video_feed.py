"""One source and its stream: what is in hand is bounded, failures come after the answers. The stream is played here."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from aclserve.errors import InvalidArgument, NotFound, Unavailable
from aclserve_client import Result, StreamSummary
from aclserve_client.stream_data import Dropped, DropReason
from aclserve_client.video import Frame, SourceTotals, _Feed
from aclserve_client.video_config import VideoConfig

CONFIG = VideoConfig("x", 4, 2)


class PlayedStream:
    """Answers the items in the order of sending, when `answers` says so; all that is left once `finish` was called."""

    def __init__(self, refuse_from: int | None = None) -> None:
        self.refuse_from = refuse_from
        self.sent: asyncio.Queue[str | None] = asyncio.Queue()
        self.finished = False
        self.answers = asyncio.Semaphore(0)
        self.summary = StreamSummary(0, 0, 0)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def send(self, inputs, *, id, outputs, capture_time_ns):
        assert inputs["x"].shape == CONFIG.shape
        if self.refuse_from is not None and int(id) >= self.refuse_from:
            raise Unavailable("going away", reason="SERVER_GOING_AWAY")
        self.sent.put_nowait(id)

    async def finish(self):
        self.finished = True
        self.sent.put_nowait(None)
        self.answers.release()

    async def results(self):
        while True:
            if not self.finished:
                await self.answers.acquire()
            number = await self.sent.get()
            if number is None:
                return
            dropped = Dropped(DropReason.OLDEST, 5) if int(number) % 3 == 2 else None
            yield Result(number, {} if dropped else {"y": np.zeros(1)}, dropped=dropped)


def frame(number):
    return Frame(number, np.zeros((2, 4, 3), np.uint8), number)


async def counted(frames, taken):
    for item in frames:
        taken.append(item.number)
        yield item


def feed(frames, stream, in_hand=3):
    totals = SourceTotals("played")
    return _Feed(0, frames, stream, CONFIG, totals, in_hand), totals


def test_no_more_frames_are_taken_than_may_be_in_hand():
    """The caller takes one result at a time: so many frames, and no more, have been taken from the source by then."""

    async def run():
        taken, handed = [], []
        stream = PlayedStream()
        one, totals = feed(counted(map(frame, range(12)), taken), stream)

        async def hand_out(result):
            handed.append(result.number)
            assert len(taken) <= len(handed) - 1 + 3
            stream.answers.release()

        stream.answers.release()
        await one.run(hand_out)
        return handed, totals

    handed, totals = asyncio.run(run())
    assert handed == list(range(12))
    assert (totals.sent, totals.succeeded, totals.dropped, totals.drops) == (12, 8, 4, {"oldest": 4})
    assert totals.answered == totals.sent


@pytest.mark.parametrize(
    ("frames", "refuse_from", "error"),
    [([7, 7], None, InvalidArgument), ([0, 1, 2], 2, Unavailable), ([0, 1, None], None, NotFound)],
    ids=["a number twice", "a server that goes away", "a source that breaks"],
)
def test_what_was_sent_is_answered_before_the_failure_is_raised(frames, refuse_from, error):
    async def source():
        for number in frames:
            if number is None:
                raise NotFound("unplugged", reason="SOURCE_UNREADABLE")
            yield frame(number)

    async def run():
        handed = []
        one, totals = feed(source(), PlayedStream(refuse_from))

        async def hand_out(result):
            handed.append(result.number)

        with pytest.raises(error):
            await one.run(hand_out)
        return handed, totals

    handed, totals = asyncio.run(run())
    assert handed == list(dict.fromkeys(frames))[: len(handed)]
    assert totals.sent == totals.answered == len(handed) == (1 if frames[0] == 7 else 2)
