"""Unix domain sockets as addresses: every kind that gRPC knows, both clients, the command line, and a real server."""

from __future__ import annotations

import asyncio
import json
import os
import uuid

import numpy as np
import pytest

import aclserve_client as ac
from aclserve_client import cli
from serving import elementwise, put_model, serving

X = {"x": np.ones((2, 3), np.float32)}


def use(address, model="echo", inputs=X):
    """A call and a stream of each client."""
    with ac.Client(address) as client:
        found = [client.infer(model, inputs)]
        with client.stream(model) as stream:
            found += stream.map([inputs] * 3)

    async def main():
        async with ac.AsyncClient(address) as client, client.stream(model) as stream:
            return [await client.infer(model, inputs), *[result async for result in stream.map([inputs] * 3)]]

    found += asyncio.run(asyncio.wait_for(main(), 60))
    assert len(found) == 8
    assert all(result.error is None for result in found)


@pytest.mark.parametrize("kind", ["unix:{}", "unix://{}", "relative", "abstract"])
def test_every_kind_of_address(make_server, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    address = {"relative": "unix:s.sock", "abstract": f"unix-abstract:aclserve-{uuid.uuid4().hex}"}.get(
        kind, kind.format(tmp_path / "s.sock")
    )
    server = make_server(address=address)
    assert server.port == 1  # gRPC's answer for a socket that has no port
    use(address)
    assert cli.main(["--address", address, "devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["server"]["version"] == "0.1.0"


def test_a_socket_stands_in_for_a_port(server, tmp_path):
    with ac.Client(f"unix:{tmp_path}/gone.sock,{server.address}") as client:
        assert client.infer("echo", X).error is None


def test_a_socket_where_nobody_listens_is_told(tmp_path):
    with ac.Client(f"unix:{tmp_path}/none.sock") as client, pytest.raises(ac.Unavailable) as caught:
        client.infer("echo", X)
    assert caught.value.reason == "CONNECTION_FAILED"
    assert f"cannot reach an aclserve server at unix:{tmp_path}/none.sock" in caught.value.message


def test_the_server_takes_its_own_socket(tmp_path):
    put_model(tmp_path / "models", "same", elementwise("Identity", ("rows", 3)))
    path = tmp_path / "s.sock"
    with serving(tmp_path / "models", unix_socket=str(path)):
        assert os.stat(path).st_mode & 0o777 == 0o600
        use(f"unix:{path}", "same")
