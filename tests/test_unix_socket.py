"""The unix domain socket: who gets the file, who may use it, and that it is gone at the end."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from aclserve.v1 import model_pb2
from aclserve_server.cli import ready_line
from aclserve_server.config import Config
from aclserve_server.server import Addresses
from aclserve_server.unix_socket import MAX_PATH_BYTES, SocketFile, claim, owner_only
from e2e.raw import Raw, array_of, item, tensor
from serving import elementwise, put_model, rows, serving


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="acl") as made:
        yield Path(made)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put_model(tmp_path, "relu", elementwise("Relu"))
    return tmp_path


def dead_socket(path: Path) -> None:
    """What a server leaves that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_both_addresses_serve_and_the_file_goes_at_the_stop(repository: Path, folder: Path) -> None:
    path = folder / "s"
    mask = os.umask(0)
    os.umask(mask)
    with serving(repository, unix_socket=str(path)) as service:
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        request = model_pb2.InferRequest(model="relu", inputs=[tensor("x", rows(1, 2))])
        for address in (f"unix:{path}", service.address):
            with Raw(address) as raw:
                np.testing.assert_array_equal(array_of(raw.infer(request).outputs.tensors[0]), rows(1, 2))
                stream = raw.stream(model_pb2.StreamConfig(model="relu"))
                stream.items(item("a", tensor("x", rows(3, 1))))
                (result,) = stream.finish()
                np.testing.assert_array_equal(array_of(result.outputs.tensors[0]), rows(3, 1))
        assert service.server.addresses is not None
        assert service.server.addresses.unix_socket == str(path)
    assert os.umask(mask) == mask
    assert not path.exists()


def test_a_dead_server_s_file_is_taken_over(repository: Path, folder: Path) -> None:
    path = folder / "s"
    dead_socket(path)
    with serving(repository, unix_socket=str(path)), grpc.insecure_channel(f"unix:{path}") as channel:
        grpc.channel_ready_future(channel).result(30)
    assert not path.exists()


def test_a_live_server_s_file_is_left_alone(repository: Path, folder: Path) -> None:
    path = folder / "s"
    with serving(repository, unix_socket=str(path)), grpc.insecure_channel(f"unix:{path}") as channel:
        grpc.channel_ready_future(channel).result(30)
        with (
            pytest.raises(OSError, match=r"--unix-socket: a server listens on .*/s already"),
            serving(repository, unix_socket=str(path)),
        ):
            pass
        with Raw(f"unix:{path}") as raw:
            raw.infer(model_pb2.InferRequest(model="relu", inputs=[tensor("x", rows(1, 2))]))
    assert not path.exists()


def test_a_busy_server_counts_as_live(folder: Path) -> None:
    """One whose backlog is full refuses nobody: it makes them wait."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(0)
        with pytest.raises(OSError, match="a server listens"):
            claim(str(path))
    assert claim(str(path)) == path
    assert not path.exists()


def test_what_cannot_be_a_socket_s_path_is_told(folder: Path) -> None:
    file = folder / "file"
    file.write_text("precious")
    for path, told in (
        (file, "is there already and is no socket"),
        (folder, "is there already and is no socket"),
        (folder / "absent" / "s", "there is no folder"),
        (folder / ("n" * MAX_PATH_BYTES), f"expected at most {MAX_PATH_BYTES}"),
    ):
        with pytest.raises(OSError, match=told) as refused:
            claim(str(path))
        assert str(refused.value).startswith("--unix-socket: ")
    assert file.read_text() == "precious"
    link = folder / "link"
    link.symlink_to(file)
    with pytest.raises(OSError, match="is no socket"):
        claim(str(link))


def test_another_server_s_file_is_not_removed(folder: Path) -> None:
    path = folder / "s"
    dead_socket(path)
    mine = SocketFile(path)
    path.unlink()
    mine.remove()
    path.write_text("another's")
    mine.remove()
    assert path.exists()


def test_a_relative_path_is_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert claim("s") == folder / "s"


def test_the_mask_is_put_back(folder: Path) -> None:
    mask = os.umask(0o022)
    try:
        with pytest.raises(FileNotFoundError), owner_only(), (folder / "file").open("w"):
            (folder / "absent").stat()
        assert os.umask(0o022) == 0o022
        assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o600
    finally:
        os.umask(mask)


def test_the_ready_line_names_it_only_where_there_is_one() -> None:
    config = Config(model_repository=Path())
    without = ready_line(config, Addresses("127.0.0.1", 1, 2), "emulator")
    assert without == "ready grpc=127.0.0.1:1 metrics=127.0.0.1:2 device=0 acl=emulator"
    named = ready_line(config, Addresses("127.0.0.1", 1, 2, "/run/s"), "emulator")
    assert named == "ready grpc=127.0.0.1:1 metrics=127.0.0.1:2 unix=/run/s device=0 acl=emulator"
