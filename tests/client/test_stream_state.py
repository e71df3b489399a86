"""The rules of a stream, without network: each invariant of `StreamState`, and a random walk over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aclserve_client as ac
from aclserve.v1 import model_pb2 as pb
from aclserve_client import convert
from aclserve_client.stream_items import as_item, group_size
from aclserve_client.streams import StreamState
from client.stream_states import X, add, admits, answer, go_away, narrow, opened, sent, taken


def test_the_configuration_goes_first_and_items_wait_for_ready():
    state = StreamState(pb.StreamConfig(model="m"), ac.Options())
    assert state.window.items == state.free == 0
    assert not admits(state)
    assert state.next_message().HasField("config")
    assert state.next_message() is None


def test_not_more_than_the_window_is_pending():
    state = opened(window=3)
    add(state, 3)
    assert (state.free, state.pending) == (0, 3)
    assert not admits(state)
    sent(state)
    assert state.free == 0  # on their way is pending too
    answer(state, "1")
    assert (state.free, state.pending) == (1, 2)
    assert admits(state)


def test_items_that_wait_together_leave_together():
    state = opened(window=20, pack_items=3)
    assert add(state, 7) == list("0123456")
    assert sent(state) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_a_message_is_bounded_in_bytes_and_a_large_item_travels_alone():
    state = opened(window=20, pack_bytes=2 * convert.size_bound(ac.Item(X)))
    add(state, 2)
    state.add(ac.Item({"x": np.zeros(1000)}))
    add(state, 3)
    assert sent(state) == [["0", "1"], ["2"], ["3", "4"], ["5"]]


def test_an_item_above_the_servers_message_limit_is_refused_here():
    state = opened(max_message_bytes=500)
    with pytest.raises(ac.ResourceExhausted) as caught:
        state.add(ac.Item({"x": np.zeros(100)}, id="big"))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert add(state) == ["0"]  # the stream goes on, and no position was used up


def test_the_window_may_shrink_and_grow_at_any_time():
    state = opened(window=4, pack_items=2)
    add(state, 4)
    assert [item.id for item in state.next_message().items.items] == ["0", "1"]
    narrow(state, 1)
    assert state.next_message() is None  # two are on their way, more than the window
    assert not admits(state)
    answer(state, "0")
    assert state.next_message() is None
    answer(state, "1")
    assert sent(state) == [["2"]]
    narrow(state, 3)
    assert sent(state) == [["3"]]
    assert (state.free, admits(state)) == (1, True)
    narrow(state, 0)  # a window without room would be the end of the stream
    assert state.window.items == 1


def test_the_window_in_bytes():
    item = ac.Item(X)
    state = opened(window=9, window_bytes=2 * convert.inline_bytes(item))
    add(state, 2)
    assert not admits(state)
    assert admits(state, ac.Item({"x": ac.Zeros((1 << 20,))}))  # what the server makes takes no bytes of the window
    assert sent(state) == [["0", "1"]]
    answer(state, "1")
    assert admits(state)
    assert not admits(state, ac.Item({"x": np.zeros(5, np.float32)}))
    answer(state, "0")
    assert admits(state, ac.Item({"x": np.zeros(1000)}))  # alone it may be larger than the window
    add(state, 2)
    narrow(state, 9, 1)
    assert sent(state) == [["2"]]
    answer(state, "2")
    assert sent(state) == [["3"]]
    narrow(state, 9)
    assert admits(state)


@pytest.mark.parametrize("policy", ["wait", "drop_oldest", "drop_newest", "latest_only"])
def test_where_the_policy_drops_the_server_sees_items_beyond_the_window(policy):
    item, number = ac.Item(X), convert.enum_to_wire(ac.FramePolicy, policy)
    state = opened(window=2, window_bytes=2 * convert.inline_bytes(item), policy=number)
    assert state.window.limit == (2 if policy == "wait" else 34)
    bounds = []
    for window in (2, 100):
        narrow(state, window)
        while admits(state):
            add(state)
            sent(state)
        bounds.append(state.pending)
    assert bounds == ([2, 100] if policy == "wait" else [34, 200])


def test_map_goes_on_when_the_window_becomes_smaller_than_its_group():
    state = opened(window=16)
    assert state.has_room(8)
    narrow(state, 3)
    assert state.has_room(8)
    add(state, 2)
    assert state.has_room(8)
    add(state)
    assert not state.has_room(8)


def test_an_answer_to_nothing_is_no_result():
    state = opened()
    add(state)
    answer(state, "0", "0", "7")
    assert [result.id for result in taken(state)] == ["0"]


def test_dropped_items():
    state = opened()
    add(state)
    answer(state, "0", dropped=pb.Dropped(reason=pb.DROP_REASON_SUPERSEDED, age_ns=2_500_000))
    (result,) = taken(state)
    assert (result.error, result.outputs) == (None, {})
    assert result.dropped == ac.Dropped(ac.DropReason.SUPERSEDED, 2_500_000)
    with pytest.raises(ac.Cancelled, match=r"'0' was dropped .* after 2.5 ms \(superseded\)") as caught:
        result.raise_for_error()
    assert caught.value.reason == "ITEM_DROPPED"
    assert caught.value.metadata == {"drop_reason": "superseded", "age_ns": "2500000"}
    summary = pb.StreamSummary(received_items=1, dropped_items=1, drops={"SUPERSEDED": 1})
    state.receive(pb.StreamInferResponse(summary=summary))
    assert state.summary == ac.StreamSummary(1, 0, 0, 1, {"superseded": 1})
    assert state.summary.drops[ac.DropReason.SUPERSEDED] == 1


def test_ids():
    state = opened(window=9)
    assert add(state, id="mine") == ["mine"]
    assert add(state) == ["1"]
    with pytest.raises(ac.AlreadyExists) as caught:
        add(state, id="mine")
    assert caught.value.reason == "DUPLICATE_ITEM_ID"
    sent(state)
    answer(state, "mine")
    assert add(state, id="mine") == ["mine"]  # it is not pending any more


def test_cancel_goes_behind_the_items_it_means():
    state = opened(window=9)
    add(state, 2)
    state.cancel(["1", "unknown"])
    state.cancel(["unknown"])
    add(state)
    assert [item.id for item in state.next_message().items.items] == ["0", "1"]
    assert state.next_message().cancel.ids == ["1"]
    assert [item.id for item in state.next_message().items.items] == ["2"]
    assert state.next_message() is None


def test_finish_sends_what_waits_and_then_nothing():
    state = opened()
    add(state, 2)
    state.finish()
    assert not state.sending_is_over
    assert sent(state) == [["0", "1"]]
    assert state.sending_is_over
    with pytest.raises(ac.FailedPrecondition) as caught:
        state.check_sendable()
    assert caught.value.reason == "STREAM_FINISHED"


def test_results_and_summary():
    state = opened()
    add(state, 2)
    sent(state)
    answer(state, "1", error=pb.ItemError(code=3, reason="SHAPE_MISMATCH", message="m"))
    answer(state, "0")
    first, second = state.take(), state.take()
    assert (first.id, first.error.reason) == ("1", "SHAPE_MISMATCH")
    with pytest.raises(ac.InvalidArgument):
        first.raise_for_error()
    assert (second.id, second.error) == ("0", None)
    assert state.take() is None
    state.receive(pb.StreamInferResponse(summary=pb.StreamSummary(received_items=2, succeeded_items=1, failed_items=1)))
    assert not state.drained
    state.end()
    assert state.drained
    assert state.summary == ac.StreamSummary(2, 1, 1)


def test_a_result_that_cannot_be_read_is_its_items_error():
    state = opened()
    add(state)
    tensor = {"name": "y", "data_type": 77, "data": b"1"}
    result = pb.InferResult(id="0", outputs=pb.Outputs(tensors=[tensor]))
    state.receive(pb.StreamInferResponse(results=pb.ResultList(results=[result])))
    assert state.take().error.reason == "DATA_TYPE_UNSUPPORTED"


def test_going_away():
    state = opened(window=9, pack_items=2)
    add(state, 4)
    state.next_message()
    go_away(state, "0")
    assert (state.going_away, state.last_accepted_id) == (True, "0")
    assert state.next_message() is None
    assert state.sending_is_over
    with pytest.raises(ac.Unavailable) as caught:
        admits(state)
    assert caught.value.reason == "SERVER_GOING_AWAY"
    answer(state, "0")
    state.end()
    results = [state.take() for _ in range(4)]
    assert [result.id for result in results] == ["0", "1", "2", "3"]
    assert [result.error and result.error.reason for result in results] == [None] + ["SERVER_GOING_AWAY"] * 3
    assert state.drained


def test_an_end_that_leaves_items_out_answers_them():
    state = opened()
    add(state)
    state.end()
    state.end()
    assert state.take().error.reason == "ITEM_NOT_ANSWERED"
    assert state.take() is None
    with pytest.raises(ac.FailedPrecondition, match="ended"):
        state.check_sendable()


def test_a_broken_stream_gives_what_came_and_then_its_error():
    state = opened()
    add(state, 2)
    answer(state, "0")
    state.lose(ac.Unavailable("gone", reason="CONNECTION_LOST"))
    state.lose(ac.Internal("later", reason="X"))
    state.end()
    assert state.take().id == "0"
    for call in (state.take, state.take, state.check_sendable):
        with pytest.raises(ac.Unavailable, match="gone"):
            call()


def test_results_that_nobody_reads_are_bounded():
    state = opened(window=2, max_unread_results=3)
    for number in range(4):  # twice the window is more than the option
        add(state)
        answer(state, str(number))
    assert state.unread_full
    assert state.free == 0
    with pytest.raises(ac.ResourceExhausted) as caught:
        admits(state)
    assert caught.value.reason == "RESULTS_NOT_READ"
    assert not admits(state, reading_elsewhere=True)
    state.take()
    assert admits(state)


def test_what_map_sends_at_a_time():
    assert [group_size(8, window) for window in (1, 2, 3, 8, 16, 100)] == [1, 1, 1, 4, 8, 8]
    with pytest.raises(ac.InvalidArgument):
        group_size(0, 10)
    item = ac.Item(X)
    assert as_item(item) is item
    assert as_item(X).inputs is X


@settings(max_examples=150)
@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.sampled_from("aaasrctw"), max_size=60), st.randoms())
def test_every_item_gets_one_result_in_any_order_of_events(window, pack, events, random):
    state = opened(window=window, pack_items=pack)
    added, on_the_server, results, left = [], [], [], []
    for event in events:
        if event == "a" and state.free:
            added += add(state)
            assert state.pending <= window
        elif event == "c" and added:
            state.cancel(random.sample(added, 1))
        elif event == "s" and (message := state.next_message()) is not None:
            ids = [item.id for item in message.items.items]
            assert len(ids) <= pack
            left += ids
            on_the_server += ids
            assert len(on_the_server) <= window or not ids
        elif event == "r" and on_the_server:
            answer(state, on_the_server.pop(random.randrange(len(on_the_server))))
        elif event == "t" and (result := state.take()) is not None:
            results.append(result.id)
        elif event == "w":
            window = random.randint(1, 6)
            narrow(state, window)
    state.finish()
    narrow(state, 100)
    while not state.sending_is_over:
        left += [item.id for item in state.next_message().items.items]
    state.end()
    results += [result.id for result in taken(state)]
    assert left == added
    assert sorted(results) == sorted(added)
    assert state.drained
