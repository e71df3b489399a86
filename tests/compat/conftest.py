"""Real clients of the protocol. Where they are not installed they are now; `make compat-tools` does it before.

They are processes of their own: the stubs of these packages and the server's have the same names. What they cover of
the compatibility list: types, forms, outputs, errors, versions and streams in test_triton_client.py, shared memory in
test_triton_memory.py, states of the repository in test_triton_server.py, models in test_triton_models.py, the kserve
package in test_kserve.py, clients in Go and Java that have the protoset alone in test_protoset.py, the client in C++ in
test_perf_analyzer.py. The kits in other languages are for the native API (`make test-clients`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aclserve_server.emulator import EmulatorConfig
from aclserve_server.rpc.v2.datatypes import DATATYPES, SERVED
from compat.worker import Worker, request
from rpc.v2.v2_server import V2, v2
from serving import elementwise, put_model
from tools.compat import CompatError, install


@contextmanager
def running(client: str, script: str) -> Iterator[Worker]:
    try:
        python = install(client)
    except CompatError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{client} cannot be installed: {error}")
        pytest.skip(f"{client} cannot be installed: {str(error).splitlines()[-1]}")
    with Worker(python, script) as worker:
        yield worker


@pytest.fixture(scope="session")
def triton() -> Iterator[Worker]:
    """tritonclient."""
    with running("tritonclient", "triton_client.py") as worker:
        yield worker


@pytest.fixture(scope="session")
def kserve() -> Iterator[Worker]:
    """The kserve package."""
    with running("kserve", "kserve_client.py") as worker:
        yield worker


@pytest.fixture(scope="session")
def two_outputs() -> onnx.ModelProto:
    """total = a + b, difference = a - b."""
    names = ("a", "b", "total", "difference")
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in names}
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    graph = helper.make_graph(nodes, "two", [values["a"], values["b"]], [values["total"], values["difference"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, two_outputs: onnx.ModelProto) -> Path:
    """Models of all kinds that need no shared data."""
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise(), "version_policy { all {} }\n")
    put_model(root, "plain", elementwise("Neg"), version=3)
    put_model(root, "labelled", elementwise(), 'output [ { name: "y" label_filename: "names.txt" } ]\n')
    (root / "labelled" / "names.txt").write_text("ant\nbee\n\ndog\n")
    put_model(root, "two", two_outputs)
    put_model(root, "changing", elementwise())
    for name in SERVED:
        kind = helper.np_dtype_to_tensor_dtype(DATATYPES[name].dtype)
        put_model(root, f"of-{name}", elementwise("Identity", ("rows", "columns"), kind))
    return root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[V2]:
    options: dict[str, Any] = {"model_control_mode": "explicit", "load_model": ("*",), "system_shared_memory": True}
    with v2(repository, emulator=EmulatorConfig(memory_bytes=256 << 20), **options) as up:
        yield up


@pytest.fixture(scope="module")
def client(served: V2, triton: Worker) -> Iterator[Worker]:
    triton.do("connect", at=served.up.address)
    first = [request(f"of-{name}", {"x": np.zeros((1, 1), DATATYPES[name].dtype)}) for name in SERVED]
    triton.do("infer", way="sync", requests=first)  # from now on they hold what they hold
    yield triton
    triton.do("close")
