"""A disk that refuses every write of the log and the profile; clients notice nothing, and the stop is in order.

Nothing else writes to a disk: uploads are kept in host memory, and the repository is only read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from aclserve.v1 import model_pb2
from e2e.raw import Raw, array_of, tensor
from serving import elementwise, put_model, rows

ROOT = Path(__file__).parents[2]


def full() -> Path:
    """A file that every write to fails, as on a disk that is full."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("this system has no /dev/full")
    return path


def test_a_disk_that_refuses_all_writes(tmp_path: Path) -> None:
    put_model(tmp_path / "models", "one", elementwise())
    (tmp_path / "profile.json").symlink_to(full())
    command = [sys.executable, "-m", "aclserve_server", "serve", "--acl-library", "emulator", "--port", "0"]
    command += ["--metrics-port", "0", "--model-repository", str(tmp_path / "models")]
    command += ["--profile", str(tmp_path / "profile.json")]
    command += ["--log-level", "debug", "--log-format", "json", "--model-control-mode", "explicit"]
    command += ["--load-model", "one"]
    paths = os.pathsep.join(str(ROOT / name) for name in ("protos", "service"))
    with (
        full().open("w") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split("grpc=127.0.0.1:")[1].split()[0]
            with Raw(f"127.0.0.1:{port}") as raw:
                for model in ("one", uploaded(raw)):
                    request = model_pb2.InferRequest(model=model, inputs=[tensor("x", rows(1, 2))])
                    answer = raw.infer(request)
                    assert array_of(answer.outputs.tensors[0]).tolist() == rows(1, 2).tolist()
                with pytest.raises(grpc.RpcError):
                    raw.infer(model_pb2.InferRequest(model="none"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def uploaded(raw: Raw) -> str:
    """A model that was uploaded: uploads are kept in host memory, under the lease's quota."""
    lease = raw.lease()
    upload = raw.upload(lease, elementwise().SerializeToString())
    source = model_pb2.ModelSource(upload_id=upload)
    raw.call("models", "LoadModel", model_pb2.LoadModelRequest(source=source, name="uploaded"), lease)
    return "uploaded"
