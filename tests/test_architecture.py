"""Which package may import what. The rules stand in the tables below; everything else is refused.

rpc -> engine -> device -> acl      downward only; emulator knows only the tables of acl
client and server never import each other; they meet in the contract, `aclserve`
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("protos", "service", "client")
SERVER, CLIENT = "aclserve_server", "aclserve_client"
OURS = ("aclserve", SERVER, CLIENT)

ERRORS = "aclserve.errors"
ACL = f"{SERVER}.acl"
DEVICE = f"{SERVER}.device"
ENGINE = f"{SERVER}.engine"
RPC = f"{SERVER}.rpc"

ALLOWED: dict[str, tuple[str, ...]] = {
    # package or module: what of ours it may import, besides itself
    "aclserve": (),
    ERRORS: (),
    "aclserve.tensors": (ERRORS, "aclserve.v1"),
    "aclserve.v1": (),
    CLIENT: ("aclserve",),
    SERVER: (),
    ACL: (ERRORS,),
    f"{SERVER}.emulator": (f"{ACL}.abi", f"{ACL}.types", f"{ACL}.codes"),
    DEVICE: (ERRORS, ACL),
    f"{SERVER}.access": (ERRORS,),
    ENGINE: (ERRORS, f"{SERVER}.access", DEVICE, ACL),
    RPC: (
        "aclserve",
        f"{SERVER}.access",
        ENGINE,
        DEVICE,
        ACL,
        f"{SERVER}.kserve",
        f"{SERVER}.logs",
        f"{SERVER}.doctor.findings",
    ),
    f"{SERVER}.doctor": (
        ERRORS,
        f"{SERVER}.access",
        f"{ENGINE}.repository",
        f"{ENGINE}.devices",
        DEVICE,
        ACL,
        f"{SERVER}.emulator",
        f"{SERVER}.inspect",
        f"{SERVER}.config",
        f"{SERVER}.device_list",
        f"{SERVER}.options",
        f"{SERVER}.unix_socket",
    ),
    f"{SERVER}.doctor.findings": (),
    f"{SERVER}.emulated": (f"{SERVER}.config", f"{SERVER}.emulator", f"{ENGINE}.model_config"),
    f"{SERVER}.kserve": (),
    f"{SERVER}.config": (f"{SERVER}.options", f"{SERVER}.device_list"),
    f"{SERVER}.device_list": (),
    f"{SERVER}.options": (),
    f"{SERVER}.allocator": (),
    f"{SERVER}.logs": (),
    f"{SERVER}.metrics": (ENGINE, DEVICE, ACL),
    f"{SERVER}.plan": (ERRORS, ENGINE, f"{SERVER}.options"),
    f"{SERVER}.plan.measure": (ERRORS, "aclserve.v1", f"{SERVER}.kserve"),
    f"{SERVER}.profiling": (),
    f"{SERVER}.inspect": (),
    f"{SERVER}.supervisor": (
        f"{SERVER}.config",
        f"{SERVER}.metrics",
        f"{SERVER}.rpc.health",
        f"{SERVER}.rpc.ports",
    ),
    f"{SERVER}.surrender": (ERRORS, ACL, DEVICE),
    f"{SERVER}.unix_socket": (),
    f"{SERVER}.server": ("aclserve", SERVER),
    f"{SERVER}.cli": (ERRORS, SERVER),
    f"{SERVER}.polling": (),
    f"{SERVER}.__main__": (f"{SERVER}.cli", f"{SERVER}.polling"),
    f"{SERVER}.worker": (SERVER,),
}
"""The longest name that fits decides."""

ALONE = ("aclserve", SERVER)
"""Rows for the package's own __init__ only, not for what lies in it: each room there has a row of its own."""

CONFINED: dict[str, tuple[str, ...]] = {
    # a library: the only packages and modules that may import it
    "ctypes": (ACL, f"{SERVER}.emulator", DEVICE, f"{SERVER}.allocator"),
    "grpc": (RPC, f"{SERVER}.server", f"{SERVER}.plan.measure", CLIENT, "aclserve.v1", f"{SERVER}.kserve"),
    "grpc_health": (RPC, f"{SERVER}.server"),
    "grpc_reflection": (RPC, f"{SERVER}.server"),
    "grpc_status": (RPC,),
    "google.protobuf": (
        RPC,
        f"{SERVER}.emulator",
        f"{SERVER}.inspect",
        f"{SERVER}.plan.measure",
        CLIENT,
        "aclserve.v1",
        f"{SERVER}.kserve",
    ),
    "google.rpc": (RPC, CLIENT),
    "onnx": (f"{SERVER}.emulator", f"{SERVER}.inspect"),
    "onnxruntime": (f"{SERVER}.emulator",),
    "prometheus_client": (f"{SERVER}.metrics", f"{SERVER}.supervisor", f"{SERVER}.server"),
    "opentelemetry": (f"{RPC}.tracing",),
    "pyinstrument": (f"{SERVER}.profiling",),
    "uvloop": (f"{SERVER}.server", f"{SERVER}.cli"),
    "rich": (CLIENT,),
    "matplotlib": (CLIENT, f"{SERVER}.plan.picture"),
}

BIG_TABLES = ("acl/abi.py", "acl/codes.py", "acl/types.py")
MOST_LINES = 400


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(module: str, is_package: bool, source: str) -> Iterator[str]:
    """Full names of what a module imports; for `from a import b`, a.b."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            base = prefix if node.level else node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """The arrows of a module that no rule allows."""
    rooms = (name for name in ALLOWED if module == name or (inside(module, name) and name not in ALONE))
    room = max(rooms, key=len, default=None)
    if room is None:
        return [f"{module} is in no room that the table knows"]
    allowed = ALLOWED[room] if room in ALONE else (room, *ALLOWED[room])
    found = []
    for name in imports(module, is_package, source):
        ours = any(inside(name, package) for package in OURS)
        astray = ours and not any(inside(name, package) for package in allowed)
        smuggled = any(
            inside(name, library) and not any(inside(module, home) for home in homes)
            for library, homes in CONFINED.items()
        )
        if astray or smuggled:
            found.append(f"{module} imports {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            parts = path.relative_to(ROOT / source).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_every_arrow_is_allowed() -> None:
    found = [
        fault
        for module, path in modules()
        for fault in faults(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("aclserve_server.engine.batching", "from aclserve_server.rpc import wire"),
        ("aclserve_server.engine.batching", "def late():\n    from aclserve_server import rpc"),
        ("aclserve_server.engine.batching", "from ..rpc.wire import scan"),
        ("aclserve_server.engine.batching", "import grpc.aio"),
        ("aclserve_server.engine.batching", "from aclserve.v1 import model_pb2"),
        ("aclserve_server.engine.batching", "import ctypes"),
        ("aclserve_server.rpc.wire", "from ctypes import c_void_p"),
        ("aclserve_server.device.model", "import aclserve_server.engine.items"),
        ("aclserve_server.device.model", "import aclserve_server.emulator"),
        ("aclserve_server.acl.library", "from aclserve_server.device.device import Device"),
        ("aclserve_server.emulator.runtime", "from aclserve_server.acl.library import Library"),
        ("aclserve_server.emulator.runtime", "import aclserve.errors"),
        ("aclserve_server.config", "import aclserve_server.server"),
        ("aclserve_server.supervisor.fleet", "from aclserve_server.server import Server"),
        ("aclserve_server.supervisor.process", "from aclserve_server.acl.library import open_library"),
        ("aclserve_server.rpc.model", "import aclserve_client"),
        ("aclserve_client.stream", "from aclserve_server.engine import items"),
        ("aclserve.errors", "import aclserve.v1.model_pb2"),
        ("aclserve.tensors", "import aclserve_client"),
        ("aclserve_server", "from aclserve_server.server import run"),
        ("aclserve_server.novelty", "import json"),
    ],
)
def test_a_forbidden_arrow_is_found(module: str, source: str) -> None:
    assert len(faults(module, source)) == 1


def test_allowed_arrows_are_not_found() -> None:
    assert (
        faults(
            "aclserve_server.rpc.model", "import grpc\nfrom aclserve.v1 import model_pb2\nfrom ..engine import items"
        )
        == []
    )
    assert (
        faults("aclserve_server.emulator.runtime", "import ctypes\nfrom aclserve_server.acl.types import Stream") == []
    )
    assert faults("aclserve_server.acl", "from .library import Library", is_package=True) == []


def test_the_contract_imports_nothing_and_errors_only_the_standard_library() -> None:
    package = (ROOT / "protos/aclserve/__init__.py").read_text(encoding="utf-8")
    assert list(imports("aclserve", True, package)) == []
    errors = (ROOT / "protos/aclserve/errors.py").read_text(encoding="utf-8")
    roots = {name.split(".")[0] for name in imports(ERRORS, False, errors)}
    assert roots <= {"__future__", "collections", "dataclasses", "enum", "typing"}


def test_only_the_composition_root_and_the_command_line_read_the_environment() -> None:
    readers = [
        module
        for module, path in modules()
        if inside(module, SERVER)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and ast.unparse(node.value) == "os"
    ]
    assert set(readers) <= {f"{SERVER}.server", f"{SERVER}.cli", f"{SERVER}.__main__"}


def test_acl_stays_boring() -> None:
    found = [
        (module, name)
        for module, path in modules()
        if inside(module, ACL)
        for name in imports(module, path.name == "__init__.py", path.read_text(encoding="utf-8"))
        if inside(name, "numpy") or inside(name, "onnx") or inside(name, "asyncio")
    ]
    assert found == []


def test_files_are_short() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for _, path in modules()
        if "_pb2" not in path.name and not path.as_posix().endswith(BIG_TABLES)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}
