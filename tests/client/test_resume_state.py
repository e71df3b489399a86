"""Opening a lost stream again, without network: when, how often, and that every item still gets one result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aclserve_client as ac
from aclserve.v1 import model_pb2 as pb
from aclserve_client.resume import MAX_BACKOFF_S, Resumption, is_resumable
from client.stream_states import X, add, admits, answer, go_away, opened, ready, sent, taken

LOST = ac.Unavailable("gone", reason="CONNECTION_LOST")


def resumption(clock=lambda: 0.0, jitter=lambda: 1.0, **options):
    return Resumption(ac.Options(**options), clock, jitter)


def resumed(window=4, **options):
    return opened(window, resumption=resumption(**options))


def reopen(state, window=4):
    assert state.lost
    state.reopen()
    ready(state, window)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST, True),
        (ac.Unavailable("x", reason="SERVER_GOING_AWAY"), True),
        (ac.Cancelled("x", reason="CANCELLED"), True),  # a server that was stopped under the call
        (ac.AclserveError("stream removed", reason="UNKNOWN"), True),
        (ac.Internal("RST_STREAM", reason="INTERNAL"), True),
        (ac.DeadlineExceeded("x", reason="STREAM_NOT_READY"), True),
        (ac.ResourceExhausted("x", reason="TOO_MANY_STREAMS", retry_delay=1), True),
        (ac.ResourceExhausted("x", reason="MESSAGE_TOO_LARGE"), False),
        (ac.Cancelled("x", reason="STREAM_CLOSED"), False),
        (ac.DeadlineExceeded("x", reason="DEADLINE_EXCEEDED"), False),
        (ac.Internal("x", reason="INTERNAL_ERROR"), False),
        (ac.NotFound("x", reason="MODEL_NOT_FOUND"), False),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
def test_which_errors_are_worth_another_attempt(error, expected):
    assert is_resumable(error) is expected


def test_waits_double_up_to_a_bound_and_begin_anew_after_progress():
    resuming = resumption(retry_backoff=0.5, resume_attempts=6, resume_timeout=None)
    resuming.opened()
    assert [resuming.delay_after(LOST) for _ in range(7)] == [0.5, 1, 2, 4, MAX_BACKOFF_S, MAX_BACKOFF_S, None]
    resuming.progress()
    assert resuming.delay_after(LOST) == 0.5
    assert resumption(jitter=lambda: 0.0, retry_backoff=0.5).delay_after(LOST) == 0.25


def test_the_servers_wish_counts_and_a_hand_over_needs_no_wait():
    resuming = resumption(retry_backoff=0.5)
    gone = ac.Unavailable("x", reason="SERVER_GOING_AWAY")
    assert [resuming.delay_after(gone), resuming.delay_after(gone)] == [0, 1]  # nobody has taken over yet
    busy = ac.Unavailable("x", reason="BUSY", retry_delay=7)
    assert [resuming.delay_after(busy, remaining) for remaining in (None, 7.1, 7)] == [7, 7, None]


def test_an_interruption_has_a_deadline():
    now = [0.0]
    resuming = resumption(lambda: now[0], retry_backoff=1.0, timeout=5.0, resume_timeout=60.0)
    assert resuming.delay_after(LOST) == 1
    now[0] = 4.0
    assert resuming.delay_after(LOST) is None  # it never was open: `timeout` counts
    resuming.opened()
    resuming.progress()
    assert [resuming.delay_after(LOST), resuming.delay_after(LOST)] == [1, 2]
    now[0] = 63.9
    assert resuming.delay_after(LOST) is None


def test_what_was_not_answered_leaves_again_in_order():
    state = resumed(window=5)
    add(state, 3)
    assert sent(state) == [["0", "1", "2"]]
    add(state)
    answer(state, "1")
    state.lose(LOST)
    assert state.lost
    assert state.sending_is_over
    assert state.next_message() is None
    assert admits(state)  # the caller need not know
    assert add(state) == ["4"]
    state.reopen()
    assert not state.sending_is_over
    ready(state, window=3)
    assert sent(state) == [["0", "2", "3"]]  # and no more than the new window
    answer(state, "2", "1")
    assert sent(state) == [["4"]]
    answer(state, "0", "3", "4")
    assert [result.id for result in taken(state)] == ["1", "2", "0", "3", "4"]
    state.finish()
    state.end()
    assert (state.resumptions, state.summary) == (1, ac.StreamSummary(5, 5, 0))


def test_after_going_away_the_rest_is_for_the_next_server():
    state = resumed(window=9)
    add(state, 2)
    sent(state)
    add(state)
    go_away(state, "0")
    assert (state.going_away, state.last_accepted_id) == (True, "0")
    assert state.next_message() is None
    assert add(state) == ["3"]
    state.receive(pb.StreamInferResponse(summary=pb.StreamSummary(received_items=1)))
    answer(state, "0")
    assert (state.lost, state.summary) == (False, None)
    state.end()
    assert (state.lost, state.resume_after) == (True, 0)
    reopen(state)
    assert not state.going_away
    assert sent(state) == [["1", "2", "3"]]
    state.finish()
    answer(state, "1", error=pb.ItemError(code=3, reason="SHAPE_MISMATCH"))
    answer(state, "2", dropped=pb.Dropped(reason=pb.DROP_REASON_OLDEST))
    go_away(state, "3")
    answer(state, "3")
    state.end()
    assert (state.ended, state.lost) == (True, False)  # all is answered: there is nothing to go on with
    assert state.summary == ac.StreamSummary(4, 2, 1, 1, {"oldest": 1})


def test_losing_a_stream_that_has_all_its_answers_is_its_end():
    state = resumed()
    add(state)
    sent(state)
    state.finish()
    answer(state, "0")
    state.lose(LOST)
    assert state.ended
    assert [result.id for result in taken(state)] == ["0"]
    assert state.summary == ac.StreamSummary(1, 1, 0)


def test_what_was_taken_back_is_not_sent_again():
    state = resumed()
    add(state, 3)
    sent(state)
    state.cancel(["1"])
    state.lose(LOST)
    (result,) = taken(state)
    assert (result.id, result.error.reason) == ("1", "ITEM_CANCELLED")
    reopen(state)
    assert sent(state) == [["0", "2"]]


def test_a_stream_that_cannot_be_opened_again_fails_with_the_last_error():
    state = resumed(resume_attempts=2)
    add(state)
    sent(state)
    for attempt in range(3):
        assert not state.ended
        state.lose(ac.Unavailable(f"attempt {attempt}", reason="CONNECTION_FAILED"))
        state.lose(ac.Internal("a late word of the same call", reason="X"))
        if attempt < 2:
            state.reopen()
            assert state.next_message().HasField("config")
    with pytest.raises(ac.Unavailable, match="attempt 2") as caught:
        state.take()
    assert caught.value.__notes__ == ["the stream was lost 3 times in a row and is given up"]


def test_other_errors_end_the_stream():
    state = resumed()
    state.lose(ac.InvalidArgument("no", reason="STREAM_CONFIG_INVALID"))
    with pytest.raises(ac.InvalidArgument):
        state.check_sendable()


def test_idle_streams_are_opened_again_without_end():
    state = resumed(resume_attempts=1)
    for _ in range(5):
        state.lose(LOST)
        reopen(state)
    assert state.resumptions == 5


def test_buffers_are_refused():
    state = resumed()
    buffer = ac.BufferRef("b", (4,), "float32")
    for item in (ac.Item({"x": buffer}), ac.Item(X, outputs={"y": buffer})):
        with pytest.raises(ac.InvalidArgument, match="one server only") as caught:
            state.add(item)
        assert caught.value.reason == "NOT_RESUMABLE"
    assert state.add(ac.Item(X, outputs={"y": None})) == "0"


def test_inputs_are_kept_only_where_they_may_leave_again():
    plain, resuming = opened(), resumed()
    for state in (plain, resuming):
        state.add(ac.Item({"x": np.zeros(1000)}))
        sent(state)
    assert plain._pending["0"].message is None
    assert resuming._pending["0"].message.ByteSize() > 8000
    answer(resuming, "0")
    assert resuming._pending == {}


@settings(max_examples=300)
@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.sampled_from("aaassrrctlg"), max_size=80), st.randoms())
def test_every_item_gets_one_result_whatever_is_lost(window, pack, events, random):
    state = resumed(window, resume_attempts=1000, resume_timeout=None)
    state.pack_items = pack
    added, on_the_server, results, cancelled = [], [], [], set()
    for event in [*events, *"f"]:
        if event == "a" and state.free:
            added += add(state)
        elif event == "s" and (message := state.next_message()) is not None:
            on_the_server += [item.id for item in message.items.items]
            assert len(on_the_server) <= window
            assert len(set(on_the_server)) == len(on_the_server)
        elif event == "r" and on_the_server:
            answer(state, on_the_server.pop(random.randrange(len(on_the_server))))
        elif event == "c" and added:
            ids = random.sample(added, 1)
            cancelled.update(ids)
            state.cancel(ids)
        elif event == "t" and (result := state.take()) is not None:
            results.append(result)
        elif event in ("l", "g"):
            if event == "g":
                go_away(state)
                answer(state, *on_the_server)
                state.end()
            else:
                state.lose(LOST)
            on_the_server.clear()
            window = random.randint(1, 6)
            reopen(state, window)
        elif event == "f":
            state.finish()
            while not state.ended:
                while (message := state.next_message()) is not None:
                    on_the_server += [item.id for item in message.items.items]
                answer(state, *on_the_server)
                on_the_server.clear()
                if state.sending_is_over:
                    state.end()
    results += taken(state)
    assert sorted(result.id for result in results) == sorted(added)
    assert {result.id for result in results if result.error} <= cancelled
    assert state.summary.received_items == len(added)
