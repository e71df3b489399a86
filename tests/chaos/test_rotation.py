"""Certificates and tokens change under load: nobody who is right is refused, nobody loses an item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aclserve.errors import Unauthenticated
from aclserve_client import Client, Options
from aclserve_server.access.directory import entry, make_token
from certificates import Files, peer_name
from serving import Serving, elementwise, put_model, rows, serving

ROTATIONS = 6
ITEMS = 40
"""Items that each open stream sends between two changes."""


def write(file: Path, *tokens: str) -> None:
    """The file with one principal who has all these tokens."""
    first, *others = (entry("camera", token, ("infer",)) for token in tokens)
    digests = [text.split('"sha256:')[1].split('"')[0] for text in others]
    file.write_text(first.replace("tokens = [", "".join(["tokens = [", *(f'"sha256:{one}", ' for one in digests)])))


def read_again(up: Serving) -> None:
    async def check() -> bool:
        assert up.server.principals is not None
        return up.server.principals.check()

    assert up.run(check())


def test_certificates_and_tokens_rotate_under_streams(tmp_path: Path) -> None:
    """Streams go on over all changes; each new connection sees the newest certificate and needs a valid token."""
    put_model(tmp_path / "models", "one", elementwise())
    files = Files(tmp_path)
    files.make("ca")
    names = ("server-0", "server-1")
    for name in names:
        files.make(name)

    def show(number: int) -> None:
        for kind in ("key", "pem"):
            (tmp_path / f"live.{kind}").write_bytes(files.read(f"{names[number % 2]}.{kind}"))

    file, token = tmp_path / "principals.toml", make_token()
    show(0)
    write(file, token)
    tls = {"tls_cert": files.path("live.pem"), "tls_key": files.path("live.key")}
    with serving(tmp_path / "models", principals=str(file), **tls) as up:

        def connect(shown: str) -> Client:
            return Client(up.address, Options(credentials=files.credentials(), token=shown, retry_attempts=1))

        clients = [connect(token) for _ in range(3)]
        opened = [client.stream("one") for client in clients]
        streams = [stream.__enter__() for stream in opened]
        sent = 0
        for number in range(1, ROTATIONS + 1):
            for stream in streams:
                stream.send_many([{"x": rows(sent + index, 1)} for index in range(ITEMS)])
            sent += ITEMS
            old, token = token, make_token()
            write(file, token, old)
            read_again(up)
            for shown in (old, token):
                with connect(shown) as client:
                    assert client.models()[0].name == "one"
            write(file, token)
            show(number)
            read_again(up)
            assert peer_name(up.address, files) == names[number % 2]
            with connect(token) as client:
                assert client.models()[0].name == "one"
            with connect(old) as client, pytest.raises(Unauthenticated, match="does not know this token"):
                client.models()
        for stream in streams:
            stream.finish()
            answers = {result.id: result for result in stream.results()}
            assert len(answers) == sent == ROTATIONS * ITEMS
            for index in range(sent):
                assert answers[str(index)].error is None
                assert np.array_equal(answers[str(index)].outputs["y"], rows(index, 1))
        for entered, client in zip(opened, clients, strict=True):
            entered.__exit__(None, None, None)
            client.close()
