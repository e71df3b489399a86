"""A client's token and TLS, without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aclserve.errors import InvalidArgument
from aclserve_client import AsyncClient, Client, Options, tls
from aclserve_client.cli import main
from aclserve_client.options import is_local


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:8001", True),
        ("[::1]:8001", True),
        ("localhost:8001", True),
        ("unix:/run/a.sock", True),
        ("unix-abstract:a", True),
        ("10.0.0.1:8001", False),
        ("server:8001", False),
        ("dns:///localhost:8001", False),
        ("localhost.example:8001", False),
    ],
)
def test_which_addresses_are_on_this_host(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_a_token_does_not_leave_the_host_in_plain_text() -> None:
    options = Options(token="secret")

    async def on_a_loop() -> None:
        AsyncClient("127.0.0.1:1,10.0.0.1:1", options)

    for make in (lambda: Client("127.0.0.1:1,10.0.0.1:1", options), lambda: asyncio.run(on_a_loop())):
        with pytest.raises(InvalidArgument) as caught:
            make()
        assert caught.value.reason == "TOKEN_NEEDS_TLS"
    Client("127.0.0.1:1", options).close()
    Client("10.0.0.1:1", Options(token="secret", credentials=tls())).close()
    assert "secret" not in repr(options)


@pytest.mark.parametrize("token", ["two words", "line\n", "ümlaut"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Options(token=token)
    assert token not in str(caught.value)


def test_files_of_tls(tmp_path: Path) -> None:
    for files in ((None, tmp_path, None), (tmp_path / "none", None, None)):
        with pytest.raises(InvalidArgument) as caught:
            tls(*files)
        assert caught.value.reason == "OPTIONS_INVALID"


def test_the_command_line_reads_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("secret\n")
    remote = ["--address", "10.0.0.1:1", "devices"]
    assert main(["--token-file", str(tmp_path / "none"), *remote]) == 2
    assert main(["--token-file", str(tmp_path / "token"), *remote]) == 2
    monkeypatch.setenv("ACLSERVE_TOKEN", "secret")
    assert main(remote) == 2
    shown = capsys.readouterr().err
    assert shown.count("TOKEN_NEEDS_TLS") == 2
    assert "secret" not in shown
