"""The items of a stream, as its state keeps them, and their results."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from aclserve.errors import AclserveError, Internal, InvalidArgument, ResourceExhausted, Unavailable
from aclserve.tensors import array_from_tensor
from aclserve.v1 import model_pb2 as pb
from aclserve_client import convert, data
from aclserve_client.sharing import Placed, Share
from aclserve_client.stream_data import StreamSummary

_ITEM_OVERHEAD_BYTES = 16
"""Room for an item's tag and length, and for the message around it."""


@dataclass(slots=True, eq=False)
class Entry:
    """An item that is not answered. `message` is there as long as it may leave, and not above `size_bytes`.

    placed: where the item's large tensors are in shared memory.
    """

    id: str
    message: pb.InferItem | None
    size_bytes: int
    inline_bytes: int
    placed: Placed | None = None
    on_its_way: bool = False
    taken_back: bool = False

    def release(self) -> None:
        """The server is done with the item: its shared memory is free."""
        if self.placed is not None:
            self.placed.release()


def make_entry(item: data.Item, item_id: str, share: Share | None = None) -> Entry:
    """An item that is to leave, with its large tensors in a region where there is one with room."""
    placed = share.place(item) if share is not None else None
    try:
        sent = placed.item if placed is not None else item
        message = pb.InferItem(**convert.item_fields(sent))
        message.id = item_id
        return Entry(item_id, message, convert.size_bound(sent), convert.inline_bytes(sent), placed)
    except BaseException:
        if placed is not None:
            placed.release()
        raise


def check_size(entry: Entry, limit: int) -> None:
    """Raises `ResourceExhausted`, reason MESSAGE_TOO_LARGE, and releases an item above the bytes of a message."""
    if entry.size_bytes <= limit or entry.message is None:
        return
    size = entry.message.ByteSize() + _ITEM_OVERHEAD_BYTES
    if size > limit:
        entry.release()
        raise ResourceExhausted(
            f"item {entry.id!r} takes {size} bytes; one message may have {limit}", reason="MESSAGE_TOO_LARGE"
        )


def unlooked_at() -> AclserveError:
    """The error of an item that a server going away did not take."""
    return Unavailable(
        "the server is shutting down and takes no further item; send it elsewhere", reason="SERVER_GOING_AWAY"
    )


def unanswered(item_id: str) -> AclserveError:
    """The error of an item that a server forgot."""
    return Internal(f"the server ended the stream without answering item {item_id!r}", reason="ITEM_NOT_ANSWERED")


def counted(outcomes: Counter[str]) -> StreamSummary:
    """The totals of all servers, as far as their answers arrived: by drop reason, "failed" and "succeeded"."""
    drops = {reason: count for reason, count in outcomes.items() if reason not in ("failed", "succeeded")}
    succeeded, failed = outcomes["succeeded"], outcomes["failed"]
    return StreamSummary(outcomes.total(), succeeded, failed, sum(drops.values()), drops)


def result_of(message: pb.InferResult, entry: Entry | None) -> data.Result:
    """A result; one that this version cannot read is an error of its item, not of the stream."""
    read = array_from_tensor if entry is None or entry.placed is None else entry.placed.read
    try:
        return convert.result_from_wire(message, read)
    except AclserveError as error:
        return data.Result(id=message.id, error=error)


def as_item(item: data.Inputs | data.Item) -> data.Item:
    """An item, given as such or as its inputs alone."""
    return item if isinstance(item, data.Item) else data.Item(item)


def group_size(pack: int, window: int) -> int:
    """How many items `map` sends at a time: a message's worth, but so that two fit into the window."""
    if pack < 1:
        raise InvalidArgument(f"pack must be 1 or more, got {pack}", reason="OPTIONS_INVALID")
    return min(pack, max(1, window // 2))
