"""A server on a socket for each test that asks for one."""

from __future__ import annotations

import pytest

from client.echo_server import EchoServer


@pytest.fixture
def make_server():
    """Makes servers that are stopped at the end of the test."""
    servers = []

    def make(**options):
        servers.append(EchoServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def server(make_server):
    return make_server()
