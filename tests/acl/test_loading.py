"""Finding and opening the library: where it looks, what it says when something does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aclserve_server.acl.abi import PROTOTYPES, REQUIRED
from aclserve_server.acl.errors import LibraryError, Unsupported
from aclserve_server.acl.install import DEFAULT_ROOTS, environment_problems, find_installation
from aclserve_server.acl.library import open_library

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
ALL = [row["name"] for row in FACTS["functions"]]
RUNTIME = [row["name"] for row in FACTS["functions"] if row["library"] == "libacl_rt.so"]
MODEL = [row["name"] for row in FACTS["functions"] if row["library"] == "libacl_mdl.so"]

Build = Callable[..., Path]


@pytest.fixture
def build(probes: ModuleType, compiled: Path, tmp_path: Path) -> Build:
    """Link a library at a path below the test's folder that exports the functions given."""

    def link(place: str, names: list[str]) -> Path:
        library: Path = probes.link(compiled, tmp_path / place, names)
        return library

    return link


@pytest.fixture
def cann(probe_folder: Path, tmp_path: Path) -> Path:
    """A CANN root with the whole library, as set_env.sh of 8.1 leaves it."""
    return _root(tmp_path / "cann", probe_folder)


def _root(root: Path, probe_folder: Path) -> Path:
    (root / "lib64").mkdir(parents=True)
    shutil.copy(probe_folder / "libascendcl.so", root / "lib64")
    (root / "set_env.sh").touch()
    return root


def _environment(root: Path) -> dict[str, str]:
    """What `source set_env.sh` sets, as far as it matters here."""
    return {
        "LD_LIBRARY_PATH": f"{root}/lib64:{root}/lib64/plugin/opskernel",
        "ASCEND_OPP_PATH": f"{root}/opp",
        "ASCEND_HOME_PATH": str(root),
        "ASCEND_TOOLKIT_HOME": str(root),
    }


def test_by_file_folder_and_root(cann: Path) -> None:
    file = cann / "lib64" / "libascendcl.so"
    for path in (file, cann / "lib64", cann):
        library = open_library(str(path), {})
        assert library.path == str(file)
        assert not library.missing


def test_search_order(probe_folder: Path, tmp_path: Path) -> None:
    """The environment's roots, then LD_LIBRARY_PATH, then the default roots, then the home folder."""
    places = {
        "ASCEND_HOME_PATH": tmp_path / "a",
        "ASCEND_TOOLKIT_HOME": tmp_path / "b",
        "LD_LIBRARY_PATH": tmp_path / "c",
        "default": tmp_path / "d",
        "HOME": tmp_path / "e",
    }
    roots = [_root(place / "Ascend/cann" if name == "HOME" else place, probe_folder) for name, place in places.items()]
    environ = {name: str(place) for name, place in places.items() if name != "default"}
    environ["LD_LIBRARY_PATH"] = f":/nowhere:{places['LD_LIBRARY_PATH']}/lib64"
    for root in roots:
        assert find_installation(None, environ, [str(places["default"])]).root == root
        (root / "lib64" / "libascendcl.so").unlink()
    with pytest.raises(LibraryError):
        find_installation(None, environ, [str(places["default"])])


def test_default_roots_are_the_documented_ones() -> None:
    assert DEFAULT_ROOTS == (
        "/usr/local/Ascend/cann",
        "/usr/local/Ascend/ascend-toolkit/latest",
        "/usr/local/Ascend/nnrt/latest",
    )


def test_no_library_lists_every_place_and_the_way_without_an_npu(tmp_path: Path) -> None:
    environ = {
        "ASCEND_HOME_PATH": f"{tmp_path}/home-path",
        "ASCEND_TOOLKIT_HOME": f"{tmp_path}/toolkit",
        "LD_LIBRARY_PATH": f"{tmp_path}/one:{tmp_path}/two",
        "HOME": f"{tmp_path}/me",
    }
    with pytest.raises(LibraryError) as caught:
        open_library(None, environ, [f"{tmp_path}/root"])
    message = str(caught.value)
    for place in ("home-path/lib64", "toolkit/lib64", "one", "two", "root/lib64", "me/Ascend/cann/lib64"):
        assert f"\n  {tmp_path}/{place}\n" in message
    assert "me/Ascend/ascend-toolkit/latest/lib64" in message
    assert "me/Ascend/nnrt/latest/lib64" in message
    assert "`--acl-library emulator`" in message


@pytest.mark.parametrize("path", ["absent.so", "absent/libascendcl.so", "."])
def test_a_path_without_a_library(path: str, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="--acl-library emulator") as caught:
        open_library(str(tmp_path / path), {})
    assert str(tmp_path / path) in str(caught.value)


def test_all_missing_functions_are_reported_at_once(build: Build) -> None:
    gone = ["aclrtMalloc", "aclmdlExecuteAsync", "aclmdlSetDatasetTensorDesc", "aclrtGetMemUsageInfo"]
    file = build("libascendcl.so", [name for name in ALL if name not in gone])
    with pytest.raises(LibraryError) as caught:
        open_library(str(file), {})
    message = str(caught.value)
    assert str(file) in message
    assert "3 functions" in message
    assert "aclrtMalloc (in every CANN from 5.0 on)" in message
    assert "aclmdlExecuteAsync (in every CANN from 5.0 on)" in message
    assert "aclmdlSetDatasetTensorDesc (first in 5.0.2)" in message
    assert "aclrtGetMemUsageInfo" not in message


def test_a_library_of_another_kind_lacks_everything(build: Build) -> None:
    with pytest.raises(LibraryError) as caught:
        open_library(str(build("libother.so", [])), {})
    assert all(f"\n  {name} (" in str(caught.value) for name in REQUIRED)


def test_the_oldest_cann_with_all_required_functions_is_enough(build: Build) -> None:
    old = [name for name in ALL if PROTOTYPES[name].since in ("5.0", "5.0.2", "5.0.3")]
    library = open_library(str(build("libascendcl.so", old)), {})
    assert library.missing == set(ALL) - set(old)
    with pytest.raises(Unsupported, match=r"this CANN has no aclrtStreamAbort \(first in 8\.1\.RC1\)"):
        library.aclrtStreamAbort(None)


def test_split_libraries_alone(build: Build, recorder: ModuleType) -> None:
    """The 9.x layout: each function comes from the library that has it."""
    runtime = build("lib64/libacl_rt.so", RUNTIME)
    model = build("lib64/libacl_mdl.so", MODEL)
    library = open_library(str(runtime.parent), {})
    assert library.path == str(runtime)
    assert not library.missing
    probes = [recorder.Probe(file) for file in (runtime, model)]
    library.aclrtSetDevice(1)
    library.aclmdlUnload(2)
    assert [probe.names() for probe in probes] == [["aclrtSetDevice"], ["aclmdlUnload"]]


def test_compatibility_library_first_then_the_split_ones(build: Build, recorder: ModuleType) -> None:
    first = build("libascendcl.so", ["aclInit", "aclrtSetDevice"])
    runtime, _ = build("libacl_rt.so", RUNTIME), build("libacl_mdl.so", MODEL)
    for path in (first, first.parent):
        library = open_library(str(path), {})
        assert library.path == str(first)
        assert not library.missing
    library.aclrtSetDevice(1)
    library.aclrtResetDevice(1)
    assert recorder.Probe(first).names() == ["aclrtSetDevice"]
    assert recorder.Probe(runtime).names() == ["aclrtResetDevice"]


def test_split_libraries_are_left_alone_when_nothing_is_missing(cann: Path) -> None:
    (cann / "lib64" / "libacl_rt.so").write_text("opening this would fail")
    assert not open_library(str(cann), {}).missing


def test_one_split_library_without_the_other(build: Build) -> None:
    with pytest.raises(LibraryError, match="aclmdlExecute "):
        open_library(str(build("libacl_rt.so", RUNTIME).parent), {})


def test_a_file_that_is_no_library(cann: Path) -> None:
    (cann / "lib64" / "libascendcl.so").write_text("not an ELF file")
    with pytest.raises(LibraryError, match="cannot be opened") as caught:
        open_library(None, {"ASCEND_HOME_PATH": str(cann)}, [])
    assert str(cann / "lib64" / "libascendcl.so") in str(caught.value)
    assert f"source {cann}/set_env.sh" in str(caught.value)


def test_a_missing_dependency_with_a_right_environment_points_at_the_driver(cann: Path) -> None:
    (cann / "lib64" / "libascendcl.so").write_text("not an ELF file")
    with pytest.raises(LibraryError, match="/usr/local/Ascend/driver/lib64"):
        open_library(None, _environment(cann), [])


def test_a_right_environment_is_silent(cann: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = open_library(None, _environment(cann), [])
    assert library.environment_hint == ""
    assert caplog.messages == []


def test_a_link_to_the_root_is_the_root(cann: Path, tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    latest.symlink_to(cann)
    installation = find_installation(str(latest), {})
    assert environment_problems(installation, _environment(cann)) == ()
    assert environment_problems(find_installation(None, _environment(latest), []), _environment(latest)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"LD_LIBRARY_PATH": None}, "{root}/lib64 is not on LD_LIBRARY_PATH"),
        ({"LD_LIBRARY_PATH": "/usr/lib"}, "{root}/lib64 is not on LD_LIBRARY_PATH"),
        ({"ASCEND_OPP_PATH": None}, "ASCEND_OPP_PATH is not set"),
        ({"ASCEND_TOOLKIT_HOME": "/opt/other"}, "ASCEND_TOOLKIT_HOME names another root, /opt/other"),
    ],
)
def test_an_environment_that_does_not_fit_is_said_with_the_line_that_repairs_it(
    change: dict[str, str | None], words: str, cann: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {key: value for key, value in (_environment(cann) | change).items() if value is not None}
    library = open_library(None, environ, [])
    [message] = caplog.messages
    assert message == library.environment_hint
    assert words.format(root=cann) in message
    assert message.endswith(f"source {cann}/set_env.sh")


def test_missing_functions_mention_the_environment_too(build: Build, tmp_path: Path) -> None:
    build("cann/lib64/libascendcl.so", MODEL)
    with pytest.raises(LibraryError, match="ASCEND_OPP_PATH is not set") as caught:
        open_library(str(tmp_path / "cann"), {})
    assert f"source {tmp_path}/cann/set_env.sh" in str(caught.value)


def test_set_env_beside_the_toolkit(probe_folder: Path, tmp_path: Path) -> None:
    """Packages up to 8.3 keep the script one folder above `latest`."""
    root = _root(tmp_path / "ascend-toolkit" / "latest", probe_folder)
    (root / "set_env.sh").rename(root.parent / "set_env.sh")
    library = open_library(str(root), {})
    assert library.environment_hint.endswith(f"source {tmp_path}/ascend-toolkit/set_env.sh")


def test_a_folder_outside_any_root_makes_no_demands(probe_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_library(str(probe_folder), {}).environment_hint == ""
    assert caplog.messages == []


def test_importing_the_room_opens_nothing(tmp_path: Path) -> None:
    """Nothing of AscendCL is touched at import time, whatever the environment names."""
    code = (
        "import aclserve_server.acl.library, aclserve_server.acl.install;"
        "print('ascendcl' in open('/proc/self/maps').read())"
    )
    environ = {"PATH": os.environ["PATH"], "ASCEND_HOME_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
