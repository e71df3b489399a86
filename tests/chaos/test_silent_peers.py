"""Peers that are gone without a word: a connection that never says what it is, and one that died in a call."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aclserve_server.rpc import ports
from aclserve_server.rpc.guard import Guard
from aclserve_server.rpc.health import Health
from chaos import http2

PATIENCE_S = 60


@asynccontextmanager
async def health(**waits: float) -> AsyncIterator[tuple[Health, int]]:
    """A server of health, whose watchers stand for streams; and its port."""
    server, served = ports.make_server(1 << 20, **waits), Health()
    guard: Any = Guard(server)
    served.add_to_server(guard)
    port = ports.open_port(server, "--port", "127.0.0.1", 0)
    await server.start()
    try:
        yield served, port
    finally:
        await server.stop(None)


async def until_closed(sock: socket.socket) -> None:
    """Reads what comes, without a word, until the server gives the connection up."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    async with asyncio.timeout(PATIENCE_S):
        try:
            while await loop.sock_recv(sock, 1 << 16):
                pass
        except ConnectionError:
            pass


async def turns(condition: Callable[[], bool]) -> None:
    """Lets the loop do its work until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what changes it is the server's own and tells nobody
            await asyncio.sleep(0)


def watch(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    http2.hello(sock)
    sock.sendall(http2.request(1, http2.WATCH) + http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(5)))
    return sock


def test_a_peer_that_does_not_answer_is_given_up_with_all_it_holds() -> None:
    async def main() -> None:
        async with health(keepalive_s=1.0, keepalive_timeout_s=0.5) as (served, port):
            with watch(port) as sock:
                await turns(lambda: served.watchers == 1)
                await until_closed(sock)
            await turns(lambda: not served.watchers)

    asyncio.run(main())


def test_a_connection_that_says_nothing_is_given_up() -> None:
    async def main() -> None:
        async with health(handshake_s=0.5) as (_, port):
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
                await until_closed(sock)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["KEEPALIVE_S", "KEEPALIVE_TIMEOUT_S", "HANDSHAKE_S"])
def test_the_server_s_own_bounds_are_minutes_at_the_most(name: str) -> None:
    assert 1 <= getattr(ports, name) <= 120
