"""When items come. Each stream has a chance of its own, so that one more changes no other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from aclserve_server.plan.agenda import Agenda
from aclserve_server.plan.settings import Arrival, Traffic

Send = Callable[[int, int], None]
"""Has a client send so many items of so many rows; 0 rows stand for its own."""

Moment = tuple[float, int, int]
"""When, how many items, of how many rows."""


def moments(traffic: Traffic, streams: int, number: int, chance: random.Random) -> Iterator[Moment]:
    """When the client of stream `number`, of so many, has items ready, without end."""
    per_message = traffic.message_items
    rate = traffic.rate / traffic.streams
    if traffic.arrivals == "poisson":
        return _by_chance(rate / per_message, per_message, chance)
    if traffic.arrivals == "burst":
        return _by_chance(rate / traffic.burst_items, traffic.burst_items, chance)
    if traffic.arrivals == "constant":
        period = per_message / rate
        return _evenly(period, period * (number + 1) / streams, per_message, 0.0, chance)
    period = 1.0 / traffic.fps
    return _evenly(period, period * chance.random(), per_message, traffic.jitter, chance)


def _by_chance(rate: float, items: int, chance: random.Random) -> Iterator[Moment]:
    when = 0.0
    while True:
        when += chance.expovariate(rate)
        yield when, items, 0


def _evenly(period: float, first: float, items: int, jitter: float, chance: random.Random) -> Iterator[Moment]:
    turn = 0
    last = 0.0
    while True:
        when = first + turn * period
        if jitter:
            when = max(when + period * jitter * chance.uniform(-1.0, 1.0), last)
        last = when
        yield when, items, 0
        turn += 1


def names_of(trace: Sequence[Arrival]) -> list[str]:
    """The streams of a trace, in order of coming."""
    return list(dict.fromkeys(arrival.stream for arrival in trace))


def lines(trace: Sequence[Arrival], stream: str) -> Iterator[Moment]:
    """What a trace says of one stream."""
    return ((arrival.at, 1, arrival.rows) for arrival in trace if arrival.stream == stream)


def feed(agenda: Agenda, times: Iterator[Moment], end: float, send: Send) -> None:
    """Lets a client send at these times, up to the end."""
    entry = next(times, None)
    if entry is not None and entry[0] <= end:
        agenda.at(entry[0], partial(_fire, agenda, times, end, send, entry))


def _fire(agenda: Agenda, times: Iterator[Moment], end: float, send: Send, moment: Moment) -> None:
    send(*moment[1:])
    feed(agenda, times, end, send)
