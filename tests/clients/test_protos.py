"""What is made of the .proto files for other languages, and what keeps the clients of a release working."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool

from tools import buf


@pytest.fixture(scope="session")
def generator(root: Path) -> Path:
    """The interpreter that has protoc."""
    python = root / ".venv-proto" / "bin" / "python"
    if not python.is_file():
        pytest.skip("needs the environment of the generators: make proto")
    return python


def test_the_protoset_has_both_services_with_imports_and_comments(root: Path, generator: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "aclserve.protoset"
    subprocess.run([generator, root / "tools" / "protoset.py", out], check=True, timeout=60)
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    pool = DescriptorPool()
    for file in files:  # fails where an import is not there yet
        pool.Add(file)
    stream = pool.FindServiceByName("aclserve.v1.ModelService").FindMethodByName("StreamInfer")
    assert stream.input_type.full_name == "aclserve.v1.StreamInferRequest"
    assert pool.FindServiceByName("aclserve.v1.DeviceService").methods
    assert pool.FindServiceByName("aclserve.v1.MemoryService").methods
    assert pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
    comments = {location.leading_comments for file in files for location in file.source_code_info.location}
    assert (
        " Describes one model: inputs, outputs, gears, sizes, how it is batched, and a request to start from.\n"
        in comments
    )


@pytest.fixture
def contract(root: Path, tmp_path: Path) -> Path:
    """A copy of the .proto files, with what buf needs."""
    if not (buf.TOOLS / "bin" / "buf").is_file():
        pytest.skip("needs buf: make check")
    shutil.copytree(root / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    shutil.copy(root / "buf.yaml", tmp_path)
    return tmp_path


def run_buf(folder: Path, check: str) -> subprocess.CompletedProcess[str]:
    program = buf.TOOLS / "bin" / "buf"
    return subprocess.run(
        [program, *buf.CHECKS[check]], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_contract_keeps_what_was_released(contract: Path) -> None:
    for check in buf.CHECKS:
        done = run_buf(contract, check)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("uint64 received_items = 1;", "uint64 received_items = 21;", "received_items"),
        ("uint64 received_items = 1;", "string received_items = 1;", "type"),
        ("uint64 received_items = 1;", "", "received_items"),
        ("rpc ListModels(", "rpc ListEverything(", "ListModels"),
        ("MODEL_STATE_READY = 3;", "MODEL_STATE_READY = 33;", "ModelState"),
    ],
)
def test_what_would_break_clients_is_refused(contract: Path, was: str, becomes: str, said: str) -> None:
    file = contract / "protos" / "aclserve" / "v1" / "model.proto"
    text, count = re.subn(re.escape(was), becomes, file.read_text(encoding="utf-8"), count=1)
    assert count == 1
    file.write_text(text, encoding="utf-8")
    done = run_buf(contract, "breaking")
    assert done.returncode != 0
    assert said in done.stdout
