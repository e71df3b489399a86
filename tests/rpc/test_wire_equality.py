"""The scanner against the generated classes: the same messages are taken, with the same contents, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aclserve.errors import InvalidArgument
from aclserve.v1 import model_pb2 as pb
from aclserve_server.rpc.wire import scan_infer_request, scan_stream_request
from aclserve_server.rpc.wire_templates import ITEMS, MESSAGES
from rpc import wire_messages as wire

EXAMPLES = int(os.environ.get("ACLSERVE_TEST_EXAMPLES", "150"))
REFUSED_BY_PROTOBUF = {"MALFORMED_MESSAGE", "INVALID_UTF8"}

often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="ACLSERVE_TEST_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def _no_templates() -> None:
    ITEMS.clear()
    MESSAGES.clear()


def check_unary(message: bytes) -> None:
    """Codec and generated class agree on an InferRequest."""
    try:
        parsed = pb.InferRequest.FromString(message)
    except DecodeError:
        with pytest.raises(InvalidArgument) as refused:
            scan_infer_request(message)
        assert refused.value.reason in REFUSED_BY_PROTOBUF
        return
    wrong = wire.reasons(parsed)
    if wrong:
        with pytest.raises(InvalidArgument) as refused:
            scan_infer_request(message)
        assert refused.value.reason in wrong
    else:
        item = scan_infer_request(message)
        assert wire.scanned_item(item) == wire.parsed_item(parsed)


def refusal_of_stream(message: bytes) -> str | None:
    """Why the codec does not take a StreamInferRequest, or an item of it that is not text."""
    try:
        scanned = scan_stream_request(message)
    except InvalidArgument as error:
        return error.reason
    errors = [item.error.reason for item in scanned if item.error is not None] if isinstance(scanned, list) else []
    return "INVALID_UTF8" if "INVALID_UTF8" in errors else None


def check_stream(message: bytes) -> None:
    """Codec and generated class agree on a StreamInferRequest."""
    try:
        parsed = pb.StreamInferRequest.FromString(message)
    except DecodeError:
        assert refusal_of_stream(message) in REFUSED_BY_PROTOBUF
        return
    kind = parsed.WhichOneof("request")
    if kind is None:
        with pytest.raises(InvalidArgument) as refused:
            scan_stream_request(message)
        assert refused.value.reason == "REQUEST_EMPTY"
        return
    scanned = scan_stream_request(message)
    if not isinstance(scanned, list):
        assert scanned == getattr(parsed, kind)
        return
    assert kind == "items"
    assert len(scanned) == len(parsed.items.items)
    for item, expected in zip(scanned, parsed.items.items, strict=True):
        wrong = wire.reasons(expected)
        if item.error is None:
            assert not wrong
            assert wire.scanned_item(item) == wire.parsed_item(expected)
        else:
            assert item.error.reason in wrong
            assert item.id == expected.id


@given(wire.items())
@often
def test_any_encoding_of_a_request_reads_as_protobuf_reads_it(message: bytes) -> None:
    for _ in range(3):  # walked, walked and learned, matched
        check_unary(message)


@given(wire.stream_requests())
@often
def test_any_encoding_of_a_stream_request_reads_as_protobuf_reads_it(message: bytes) -> None:
    for _ in range(3):
        check_stream(message)


@given(st.binary(max_size=60))
@often
def test_any_bytes_are_taken_or_refused_as_protobuf_does(message: bytes) -> None:
    for _ in range(3):
        check_unary(message)
        check_stream(message)


@st.composite
def broken(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """A message, and it with bytes cut off, changed, left out, put in or repeated."""
    message = draw(messages)
    variants = []
    for _ in range(draw(st.integers(1, 6))):
        variant = bytearray(message)
        for _ in range(draw(st.integers(1, 3))):
            at, upto = sorted(draw(st.tuples(st.integers(0, len(variant)), st.integers(0, len(variant)))))
            kind = draw(st.integers(0, 5))
            if kind == 0:
                del variant[at:]
            elif kind == 1 and at < len(variant):
                variant[at] = draw(st.integers(0, 255))
            elif kind == 2 and at < len(variant):
                variant[at] ^= 1 << draw(st.integers(0, 7))
            elif kind == 3:
                del variant[at : min(upto, at + 3)]
            elif kind == 4:
                variant[at:at] = draw(st.binary(max_size=3))
            else:
                variant[upto:upto] = variant[at:upto]
        variants.append(bytes(variant))
    return message, variants


@given(broken(wire.items()))
@often
def test_a_broken_request_is_taken_or_refused_as_protobuf_does(case: tuple[bytes, list[bytes]]) -> None:
    message, variants = case
    for _ in range(2):
        check_unary(message)
    for variant in variants:
        check_unary(variant)
        check_unary(variant)


@given(broken(wire.stream_requests()))
@often
def test_a_broken_stream_request_is_taken_or_refused_as_protobuf_does(case: tuple[bytes, list[bytes]]) -> None:
    message, variants = case
    for _ in range(2):
        check_stream(message)
    for variant in variants:
        check_stream(variant)
        check_stream(variant)


def plain_request(draw: st.DrawFn) -> pb.StreamInferRequest:
    """As clients send it: few layouts, changing ids, data and times."""
    request = pb.StreamInferRequest()
    for _ in range(draw(st.integers(1, 3))):
        item = request.items.items.add(
            id=draw(st.sampled_from(["", "a1", "a2", "ü"])), model=draw(st.sampled_from("mn"))
        )
        for name in draw(st.sampled_from(["x", "y", "xy"])):
            tensor = item.inputs.add(name=name, data_type=draw(st.sampled_from([2, 12])), shape=(1, 8))
            source = draw(st.integers(0, 4))
            if source == 0:
                tensor.buffer.buffer_id = draw(st.sampled_from(["b1", "b2"]))
                tensor.buffer.offset_bytes = draw(st.sampled_from([0, 64, 128]))
            elif source == 4:
                tensor.region.region_id = draw(st.sampled_from(["b1", "b2"]))
                tensor.region.offset_bytes = draw(st.sampled_from([0, 64, 128]))
            elif source == 1:
                tensor.fill.pattern = draw(st.sampled_from([1, 2]))
            else:
                tensor.data = draw(st.binary(min_size=8, max_size=8))
        if draw(st.booleans()):
            item.outputs.add(name="out")
        if draw(st.booleans()):
            item.timeout.seconds, item.timeout.nanos = draw(st.sampled_from([(1, 0), (0, 5), (1, 5), (0, 0)]))
        if draw(st.booleans()):
            item.capture_time.seconds = draw(st.sampled_from([0, 1_790_000_000, 1_790_000_001]))
            item.capture_time.nanos = draw(st.sampled_from([0, 5, 999_999_999]))
        item.version = draw(st.sampled_from([0, 3]))
    return request


@st.composite
def plain_requests(draw: st.DrawFn) -> list[bytes]:
    return [plain_request(draw).SerializeToString() for _ in range(draw(st.integers(2, 8)))]


@given(plain_requests())
@often
def test_messages_that_look_alike_are_told_apart(messages: list[bytes]) -> None:
    for message in messages * 2:
        check_stream(message)
        for item in pb.StreamInferRequest.FromString(message).items.items:
            check_unary(item.SerializeToString())


def rich_item() -> pb.InferItem:
    """One with every field, times last so that a change there may still be a time."""
    item = pb.InferItem(id="id-1", model="m", version=300, priority=2)
    item.inputs.add(name="x", data_type=12, shape=(1, 300), data=b"\x08\x01\x12\x00abc")
    item.inputs.add(name="y", data_type=2, buffer={"buffer_id": "b", "offset_bytes": 64, "length_bytes": 300})
    item.inputs.add(name="z", data_type=9, fill={"pattern": 2, "seed": 200})
    item.inputs.add(name="w", data_type=2, region={"region_id": "r", "offset_bytes": 200, "length_bytes": 64})
    item.outputs.add(name="o", buffer={"buffer_id": "c", "offset_bytes": 128})
    item.outputs.add(name="p", region={"region_id": "r", "offset_bytes": 300})
    item.timeout.seconds, item.timeout.nanos = 1, 500
    item.capture_time.seconds, item.capture_time.nanos = 1_790_000_000, 7
    return item


def single_changes(message: bytes) -> Iterator[bytes]:
    """Every message that differs in one place: a byte changed, left out, repeated, or the end cut off."""
    for at in range(len(message)):
        before, byte, after = message[:at], message[at], message[at + 1 :]
        others = {byte ^ 1 << bit for bit in range(8)} | {byte - 1 & 255, byte + 1 & 255, 0, 0x7F, 0x80, 0xFF}
        for other in others:
            yield before + bytes((other,)) + after
        yield before + after
        yield before + bytes((byte, byte)) + after
        yield before


@pytest.mark.parametrize("tail", [b"", b"\x2a\x02\x08\x01", b"\x43\x08\x01\x44\x38\x05"])
def test_every_single_change_of_a_request_is_taken_or_refused_as_protobuf_does(tail: bytes) -> None:
    message = rich_item().SerializeToString() + tail
    for _ in range(3):
        check_unary(message)
    for changed in single_changes(message):
        check_unary(changed)


def test_every_single_change_of_a_stream_request_is_taken_or_refused_as_protobuf_does() -> None:
    items = pb.ItemList(items=[rich_item(), rich_item()])
    for message in (
        pb.StreamInferRequest(items=pb.ItemList(items=[rich_item()])).SerializeToString(),
        pb.StreamInferRequest(items=items).SerializeToString(),
        pb.StreamInferRequest(config=pb.StreamConfig(model="m", order=1, version=300)).SerializeToString(),
        pb.StreamInferRequest(cancel=pb.CancelItems(ids=["a", "b"])).SerializeToString(),
    ):
        for _ in range(3):
            check_stream(message)
        for changed in single_changes(message):
            check_stream(changed)


@pytest.mark.parametrize(
    "cut", [b"\x08\x80", b"\x10\x80", b"\x18\x80", b"\x38\x80", b"\x88", b"\x45\0\0", b"\x41\0\0", b"\x43"]
)
@pytest.mark.parametrize("within", [(), (3,), (3, 5), (3, 6), (3, 7), (4,), (4, 2), (4, 3), (5,), (6,)])
@pytest.mark.parametrize("after", [b"\x01\x44\x44\x44\x44\x44\x44\x44\x44", b"\x00" * 9, b"\x44"])
def test_a_field_does_not_reach_past_the_message_it_is_in(cut: bytes, within: tuple[int, ...], after: bytes) -> None:
    """What lies behind the end of a submessage would complete its last field."""
    message = cut
    for field in reversed(within):
        message = bytes((field << 3 | 2, len(message))) + message
    for whole in (message + after, b"\x0a\x01a" + message + after):
        check_unary(whole)
        check_stream(b"\x12" + bytes((len(whole) + 2,)) + b"\x0a" + bytes((len(whole),)) + whole)
        inner = b"\x0a" + bytes((len(message),)) + message + after
        check_stream(b"\x12" + bytes((len(inner),)) + inner)


def test_times_within_a_known_layout_are_still_read() -> None:
    """A template compares all but the times; these must hold on their own."""
    for field in ("timeout", "capture_time"):
        item = pb.InferItem(id="a", **{field: {"seconds": 5, "nanos": 6}})
        plain = item.SerializeToString()
        for _ in range(3):
            check_unary(plain)
        assert plain.endswith(b"\x08\x05\x10\x06")
        for contents in (
            b"\x10\x06\x08\x05",
            b"\x08\x05\x08\x06",
            b"\x08\x85\x80\x00",
            b"\x10\x05\x10\x06",
            b"\x18\x05\x10\x06",
            b"\x08\x05\x10\x80",
            b"\x08\x05\x10",
            b"\x0a\x02\x10\x06",
            b"\x0a\x03\x10\x06",
            b"\x0b\x10\x06\x0c",
            b"\x80\x80\x80\x80",
            b"\xff\xff\xff\xff",
            b"\x88\x00\x05\x05",
            b"\x08" + b"\xff" * 9 + b"\x01\x10" + b"\xff" * 9 + b"\x01",
            b"\x08" + b"\xff" * 10 + b"\x01\x10" + b"\xff" * 8 + b"\x01",
        ):
            if len(contents) > 4:
                longer = pb.InferItem(id="a", **{field: {"seconds": -1, "nanos": -1}}).SerializeToString()
                for _ in range(3):
                    check_unary(longer)
            head = plain[: -4 - 1] + bytes((len(contents),))
            for _ in range(2):
                check_unary(head + contents)


def tensor_with(*sources: bytes) -> bytes:
    """An item with one input of these encoded fields."""
    body = b"\x10\x02" + b"".join(sources)
    return b"\x1a" + bytes((len(body),)) + body


def test_split_submessages_merge_and_leave_nothing_behind() -> None:
    offset, length = b"\x2a\x02\x10\x05", b"\x2a\x02\x18\x07"
    pattern, seed = b"\x32\x02\x08\x02", b"\x32\x02\x10\x09"
    near, far = b"\x3a\x02\x10\x05", b"\x3a\x02\x18\x07"
    alone, split = tensor_with(length), tensor_with(offset, length)
    region, merged, switched = tensor_with(far), tensor_with(near, far), tensor_with(offset, near, length, far)
    outputs = (
        b"\x22\x04\x1a\x02\x10\x05",
        b"\x22\x08\x1a\x02\x10\x05\x1a\x02\x18\x07",
        b"\x22\x08\x12\x02\x10\x05\x1a\x02\x18\x07",
    )
    for message in (region, alone, merged, switched, region, *outputs, region, switched) * 2:
        check_unary(message)
    filled, split_fill = tensor_with(pattern), tensor_with(pattern, seed)
    unset = tensor_with(pattern, b"\x22\x00", seed)
    for message in (alone, alone, alone, split, alone, split, filled, split_fill, unset, filled, split_fill) * 2:
        check_unary(message)


@pytest.mark.parametrize("tail", [b"\x12\x00", b"\x12\x02\x10\x05", b"\x12\x00\x12\x00"])
def test_a_list_that_is_split_keeps_its_item_where_the_last_part_has_none(tail: bytes) -> None:
    for message in (
        b"\x12\x08\x0a\x06\x0a\x04null" + tail,
        b"\x12\x00\x12\x09\x0a\x07\x0a\x01a\x1a\x02\x10\x01" + tail,
    ):
        for _ in range(4):
            check_stream(message)


CONTENTS = {0: b"\x05", 1: b"\x01" * 8, 2: b"\x01a", 5: b"\x01" * 4}


@pytest.mark.parametrize("wire_type", CONTENTS)
@pytest.mark.parametrize("number", [1, 20, (1 << 29) - 1, 1 << 29, (1 << 29) + 1, (1 << 29) + 20, (1 << 32) - 1])
def test_a_tag_has_32_bits(number: int, wire_type: int) -> None:
    field = wire.varint(number << 3 | wire_type) + CONTENTS[wire_type]
    for message in (field, b"\x43" + field + b"\x44", tensor_with(field)):
        check_unary(message)
        check_stream(message)
        check_stream(b"\x12" + bytes((len(message),)) + message)


@pytest.mark.parametrize("last", [0x01, 0x02, 0x7E, 0x7F])
def test_a_number_has_64_bits_and_what_is_above_is_dropped(last: int) -> None:
    number = b"\xff" * 9 + bytes((last,))
    for message in (
        b"\x38" + number,
        tensor_with(b"\x18" + number, b"\x1a\x0a" + number, b"\x2a\x0b\x18" + number),
        tensor_with(b"\x32\x0d\x08\x01\x10" + number),
        b"\x2a\x0b\x08" + number + b"\x32\x0b\x10" + number,
    ):
        check_unary(message)
