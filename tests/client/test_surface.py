"""The public surface: names, the parity of the two clients, and that no protobuf type shows."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import aclserve_client as ac
from aclserve.v1 import device_pb2, memory_pb2, model_pb2
from aclserve_client import rpcs

FOLDER = Path(ac.__file__).parent
PAIRS = [(ac.Client, ac.AsyncClient), (ac.Lease, ac.AsyncLease), (ac.Stream, ac.AsyncStream)]


def public(cls):
    return {name: member for name, member in vars(cls).items() if not name.startswith("_")}


def test_all_names_what_is_there():
    assert len(ac.__all__) == len(set(ac.__all__))
    assert set(ac.__all__) == {
        name
        for name, value in vars(ac).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_the_two_clients_have_the_same_verbs(pair):
    blocking, asynchronous = map(public, pair)
    assert blocking.keys() == asynchronous.keys()
    for name, member in blocking.items():
        if isinstance(member, property):
            assert isinstance(asynchronous[name], property)
            continue
        ours, theirs = inspect.signature(member), inspect.signature(asynchronous[name])
        assert list(ours.parameters) == list(theirs.parameters), name
        for parameter in ours.parameters.values():
            other = theirs.parameters[parameter.name]
            assert (parameter.default, parameter.kind) == (other.default, other.kind), (name, parameter.name)
        assert not inspect.iscoroutinefunction(member)


@pytest.mark.parametrize("cls", [cls for pair in PAIRS for cls in pair], ids=lambda cls: cls.__name__)
def test_no_stub_shows_in_a_signature_and_every_call_has_a_timeout(cls):
    for name, member in public(cls).items():
        function = member.fget if isinstance(member, property) else member
        assert function.__doc__, name
        assert "pb" not in str(inspect.signature(function)), name
        if cls not in (ac.Stream, ac.AsyncStream) and name not in ("close", "id"):
            assert "timeout" in inspect.signature(function).parameters, name


def test_values_are_frozen():
    values = [cls for name in ac.__all__ if dataclasses.is_dataclass(cls := getattr(ac, name)) and inspect.isclass(cls)]
    assert len(values) > 15
    assert all(cls.__dataclass_params__.frozen for cls in values)


def test_every_rpc_of_the_services_is_known_as_it_is():
    rows = {rpc.path: rpc for rpc in rpcs.RPCS}
    seen = set()
    for module in (device_pb2, memory_pb2, model_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                seen.add(path)
                if path == rpcs.KEEP_LEASE_ALIVE_PATH:
                    continue
                row = rows[path]
                assert row.request.DESCRIPTOR is method.input_type
                assert row.response.DESCRIPTOR is method.output_type
                kinds = ("unary", "stream")
                assert row.kind == f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
    assert rows.keys() | {rpcs.KEEP_LEASE_ALIVE_PATH} == seen


def test_only_reads_are_marked_as_reads():
    assert {rpc.path.rsplit("/", 1)[1] for rpc in rpcs.RPCS if rpc.is_read} == {
        "ListDevices", "GetServerInfo", "GetDiagnosis", "QueryMemory", "ListBuffers", "ReadBuffer",
        "ListModels", "GetModel", "QueryModelSize", "ListRegions",
    }  # fmt: skip


def test_the_package_imports_only_the_contract():
    allowed = {"aclserve", "aclserve_client", "grpc", "google", "numpy", "google_crc32c", "rich"}
    allowed |= sys.stdlib_module_names
    for_video = {"av", "PIL", "matplotlib"}  # the extra `video`
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            extra = for_video if "video" in file.name else set()
            assert {name.split(".")[0] for name in names} <= allowed | extra, file


def test_the_client_works_without_optional_packages(server):
    script = (
        "import sys\n"
        "for name in ('rich', 'google_crc32c', 'ml_dtypes'): sys.modules[name] = None\n"
        "import aclserve_client as ac, numpy as np\n"
        "with ac.Client(sys.argv[1]) as client, client.lease() as lease:\n"
        "    buffer = lease.allocate(3000); lease.write(buffer, bytes(3000)); print(len(lease.read(buffer)))\n"
        "    bits = np.ones((1, 3), np.uint16)\n"
        "    print(client.infer('echo', {'x': ac.Typed(bits, 'bfloat16')}).outputs['y'].dtype)\n"
    )
    path = [str(FOLDER.parent), str(FOLDER.parents[1] / "protos")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, server.address],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(path), "PATH": ""},
        check=False,
    )
    assert done.stdout.split() == ["3000", "uint16"], done.stderr
