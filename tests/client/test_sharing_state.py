"""The rules of a stream whose items are in shared memory, driven by hand: nothing is lost or mixed up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aclserve_client as ac
from aclserve.v1 import model_pb2 as pb
from aclserve_client.resume import Resumption
from aclserve_client.shared_memory import SharedObject
from aclserve_client.sharing import Share
from client.stream_states import answer, opened, ready

LOST = ac.Unavailable("gone", reason="CONNECTION_LOST")


def item(number, size=400):
    return ac.Item({"x": np.full(size, number % 251, np.uint8)})


def new_share(count, size_bytes=2048):
    share = Share(SharedObject(size_bytes), f"region-{count}", "lease", 300)
    share._parts.memory.unlink()
    return share


def shared(window=4, resumption=False, **options):
    options = ac.Options(resume_attempts=1000, resume_timeout=None, **options)
    state = opened(window, resumption=Resumption(options) if resumption else None)
    state.attach(new_share(0))
    return state


def content(state, message):
    """What the server reads for an item; from shared memory only in the region of its own connection."""
    (tensor,) = message.inputs
    if tensor.WhichOneof("source") == "data":
        return tensor.data
    assert state._share is not None
    assert tensor.region.region_id == state._share.region_id
    where = tensor.region
    return bytes(state._share._parts.memory.view(where.offset_bytes, (where.length_bytes,), np.dtype(np.uint8)))


def refuse(state, item_id, reason="REGION_NOT_FOUND"):
    answer(state, item_id, error=pb.ItemError(code=5, reason=reason, message="gone"))


def test_the_stream_stays_open_for_sending_until_items_in_shared_memory_are_answered():
    state = shared()
    state.add(item(1))
    state.finish()
    assert [i.id for i in state.next_message().items.items] == ["0"]
    assert not state.sending_is_over
    refuse(state, "0")
    message = state.next_message()
    assert message.items.items[0].inputs[0].data == bytes([1]) * 400
    assert state.sending_is_over
    answer(state, "0")
    assert state.take().error is None
    assert state.take() is None


def test_a_second_failure_is_the_items_answer():
    state = shared()
    state.add(item(1))
    for _ in range(2):
        assert state.next_message() is not None
        refuse(state, "0")
    assert state.take().error.reason == "REGION_NOT_FOUND"
    assert state.next_message() is None


def test_a_server_going_away_is_not_sent_to_again():
    state = shared()
    state.add(item(1))
    state.next_message()
    state.receive(pb.StreamInferResponse(going_away=pb.GoingAway(last_accepted_id="0")))
    refuse(state, "0")
    assert state.take().error.reason == "REGION_NOT_FOUND"


def test_an_item_too_large_for_a_message_waits_for_room_and_fails_where_there_is_none_any_more():
    state = opened(8, max_message_bytes=700)
    share = new_share(0)
    state.attach(share)
    for number in range(2):
        assert state.admits(item(number, 900), reading_elsewhere=False)
        state.add(item(number, 900))
    assert not state.admits(item(2, 900), reading_elsewhere=False)
    with pytest.raises(ac.ResourceExhausted) as caught:
        state.add(item(2, 900))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    state.next_message()
    answer(state, "0")
    assert state.admits(item(2, 900), reading_elsewhere=False)
    refuse(state, "1")
    assert [state.take().error, state.take().error.reason] == [None, "MESSAGE_TOO_LARGE"]
    assert share.items == 0
    assert share.retired


def test_the_end_of_a_stream_gives_the_memory_up():
    for ending in ("end", "fail"):
        state = shared()
        share = state._share
        state.add(item(1))
        state.end() if ending == "end" else state.fail(LOST)
        assert share.retired
        assert share._parts.memory._map.closed


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.lists(st.sampled_from("aaasssrrcltxn"), max_size=80), st.randoms())
def test_every_item_gets_one_result_and_the_server_the_right_bytes(window, events, random):
    state, shares = shared(window, resumption=True), 1
    added, there, results, cancelled = [], {}, [], set()

    def send():
        message = state.next_message()
        for sent in message.items.items if message is not None else ():
            assert sent.id not in there
            there[sent.id] = sent

    def check_all():
        for item_id, message in there.items():
            assert content(state, message) == bytes([int(item_id) % 251]) * 400

    for event in [*events, "f"]:
        check_all()
        if event == "a" and state.free and state.admits(item(len(added)), reading_elsewhere=True):
            added.append(state.add(item(len(added))))
        elif event == "s":
            send()
        elif event in ("r", "x") and there:
            item_id = random.choice(list(there))
            del there[item_id]
            in_region = state._pending[item_id].placed is not None
            answer(state, item_id) if event == "r" or not in_region else refuse(state, item_id)
        elif event == "c" and added:
            cancelled.add(random.choice(added))
            state.cancel(cancelled)
        elif event == "t" and (result := state.take()) is not None:
            results.append(result)
        elif event in ("l", "n"):
            state.lose(LOST)
            there.clear()
            state.attach(new_share(shares) if event == "l" else None)
            shares += 1
            state.reopen()
            ready(state, random.randint(1, 6))
        elif event == "f":
            state.finish()
            while not state.ended:
                send()
                check_all()
                answer(state, *there)
                there.clear()
                if state.sending_is_over:
                    state.end()
    while (result := state.take()) is not None:
        results.append(result)
    assert sorted(result.id for result in results) == sorted(added)
    assert {result.id for result in results if result.error} <= cancelled
    assert state._share is None
