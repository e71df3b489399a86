"""Helpers to drive a `StreamState` by hand."""

from __future__ import annotations

import numpy as np

import aclserve_client as ac
from aclserve.v1 import model_pb2 as pb
from aclserve_client.streams import StreamState

X = {"x": np.zeros(4, np.float32)}


def opened(window=4, max_message_bytes=0, *, window_bytes=0, policy=0, resumption=None, **options):
    state = StreamState(pb.StreamConfig(model="m"), ac.Options(**options), resumption)
    ready(state, window, window_bytes, policy=policy, max_message_bytes=max_message_bytes)
    return state


def ready(state, window=4, window_bytes=0, **fields):
    """The configuration leaves, and the server answers it."""
    assert state.next_message().config.model == "m"
    message = pb.StreamReady(max_pending_items=window, max_pending_bytes=window_bytes, **fields)
    state.receive(pb.StreamInferResponse(ready=message))


def narrow(state, window, window_bytes=0):
    """The server states another window."""
    window = pb.StreamWindow(max_pending_items=window, max_pending_bytes=window_bytes)
    state.receive(pb.StreamInferResponse(window=window))


def go_away(state, last_accepted_id=""):
    state.receive(pb.StreamInferResponse(going_away=pb.GoingAway(last_accepted_id=last_accepted_id)))


def admits(state, item=None, reading_elsewhere=False):
    return state.admits(item or ac.Item(X), reading_elsewhere=reading_elsewhere)


def add(state, count=1, **fields):
    return [state.add(ac.Item(X, **fields)) for _ in range(count)]


def answer(state, *ids, error=None, dropped=None):
    outcome = {"error": error} if error else {"dropped": dropped} if dropped else {"outputs": pb.Outputs()}
    results = [pb.InferResult(id=item_id, **outcome) for item_id in ids]
    state.receive(pb.StreamInferResponse(results=pb.ResultList(results=results)))


def sent(state):
    """The ids of the items of each message that is there to send."""
    messages = []
    while (message := state.next_message()) is not None:
        messages.append([item.id for item in message.items.items])
    return messages


def taken(state):
    """The results that are there."""
    results = []
    while (result := state.take()) is not None:
        results.append(result)
    return results
