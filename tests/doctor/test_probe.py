"""The process that opens library and device: on the emulated device, and on libraries that hang, crash and refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from aclserve_server.acl.abi import PROTOTYPES
from aclserve_server.acl.library import Library
from aclserve_server.doctor import probe
from aclserve_server.doctor.device import check_outcome
from aclserve_server.doctor.findings import Level, local
from aclserve_server.doctor.probe import Outcome, Request
from aclserve_server.emulator import Emulator, EmulatorConfig
from aclserve_server.emulator.config import PlannedFault
from doctor.machine import healthy

TIMEOUT_S = 120.0
HANG_S = 3.0
"""For each step, of which aclInit alone takes any time here."""

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int is(const char *what) { const char *how = getenv("FAKE_ACL"); return how && !strcmp(how, what); }
int aclInit(const char *path)
{
    puts("{\\"step\\": \\"a library that prints\\"}");
    fflush(stdout);
    if (is("hang")) for (;;) pause();
    if (is("crash")) abort();
    return is("stub") ? 100039 : is("nothing") ? 500000 : 0;
}
const char *aclGetRecentErrMsg(void) { return is("stub") ? (const char *)100039 : "open device 0 failed"; }
const char *aclrtGetSocName(void) { return "Ascend310P3"; }
int aclrtGetDeviceCount(unsigned *count) { *count = 1; return 0; }
int aclrtSetDevice(int device) { return is("held") ? 507033 : 0; }
int aclrtGetMemInfo(int kind, size_t *left, size_t *all) { *left = 1 << 20; *all = 1 << 30; return 0; }
"""
OWN = ("aclInit", "aclGetRecentErrMsg", "aclrtGetSocName", "aclrtGetDeviceCount", "aclrtSetDevice", "aclrtGetMemInfo")


def build(library: Path, source: str, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "these tests need a C compiler"
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(library), *flags]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return library


def source(leave_out: Sequence[str] = ()) -> str:
    others = [name for name in PROTOTYPES if name not in OWN and name not in leave_out]
    return SOURCE + "".join(f"int {name}(void) {{ return 0; }}\n" for name in others)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fake") / "libascendcl.so", source())


def run(library: Path, how: str = "", device: int | None = 0, timeout_s: float = TIMEOUT_S) -> Outcome:
    return probe.run(Request(str(library), None, device), {**os.environ, "FAKE_ACL": how}, timeout_s)


def found(outcome: Outcome, root: Path) -> dict[str, tuple[Level, str, str]]:
    findings = check_outcome(healthy(root).host(), outcome, emulated=False)
    return {finding.check: (finding.level, local(finding.text), local(finding.fix)) for finding in findings}


def test_a_library_that_works_and_prints(library: Path, tmp_path: Path) -> None:
    outcome = run(library)
    assert (outcome.step, outcome.ended) == ("done", "")
    assert (outcome.library, outcome.count, outcome.soc_name, outcome.opened) == (
        str(library), 1, "Ascend310P3", True,
    )  # fmt: skip
    assert outcome.memory == (("DDR", 1 << 20, 1 << 30), ("HBM", 1 << 20, 1 << 30))
    assert str(library) in outcome.loaded
    assert found(outcome, tmp_path)["device.memory"][0] is Level.WARNING
    unopened = run(library, "held", device=None)
    assert (unopened.step, unopened.ended, unopened.opened) == ("done", "", False)


@pytest.mark.parametrize(
    ("how", "step", "check", "text", "fix"),
    [
        ("stub", "aclInit", "cann.stub", "100039 (ACL_ERROR_COMPILING_STUB_MODE)", "devlib"),
        ("nothing", "aclInit", "library.open", "500000", "driver is loaded"),
        ("held", "aclrtSetDevice", "device.open", "open device 0 failed", "another process or container"),
        ("crash", "aclInit", "library.open", "aclInit died of SIGABRT", "fit together"),
    ],
)
def test_libraries_that_fail(
    library: Path, tmp_path: Path, how: str, step: str, check: str, text: str, fix: str
) -> None:
    outcome = run(library, how)
    assert outcome.step == step
    level, told, do = found(outcome, tmp_path)[check]
    assert level is Level.ERROR
    assert text in told
    assert fix in do


def test_a_library_that_hangs_is_given_up(library: Path, tmp_path: Path) -> None:
    outcome = run(library, "hang", timeout_s=HANG_S)
    assert (outcome.step, outcome.ended) == ("aclInit", "hung")
    assert "aclInit did not come in time" in found(outcome, tmp_path)["library.open"][1]
    marks = [Path(f"/proc/{pid}/environ") for pid in os.listdir("/proc") if pid.isdecimal() and int(pid) != os.getpid()]
    assert not any(_holds(mark, b"FAKE_ACL=hang") for mark in marks)


def _holds(file: Path, content: bytes) -> bool:
    try:
        return content in file.read_bytes()
    except OSError:
        return False


def test_a_library_without_functions(tmp_path: Path) -> None:
    lacking = build(tmp_path / "lib/libascendcl.so", source(["aclrtMalloc", "aclmdlExecuteAsync"]))
    level, text, fix = found(run(lacking), tmp_path / "root")["library.functions"]
    assert level is Level.ERROR
    assert "aclrtMalloc" in text
    assert "aclmdlExecuteAsync" in text
    assert "5.0.3" in fix


def test_a_library_of_another_toolkit(tmp_path: Path) -> None:
    torn = build(tmp_path / "lib/libascendcl.so", source() + "int rtOther(void); int use(void) { return rtOther(); }\n")
    level, text, fix = found(run(torn), tmp_path / "root")["cann.mixed"]
    assert level is Level.ERROR
    assert "rtOther" in text
    assert "set_env.sh of one only" in fix


def test_a_library_that_lacks_the_drivers(tmp_path: Path) -> None:
    """The driver has it, but its folder is on no path."""
    root = tmp_path / "root"
    hal = build(tmp_path / "libascend_hal.so", "int drvOpen(void) { return 0; }")
    needs = source() + "int drvOpen(void); int use(void) { return drvOpen(); }\n"
    library = build(tmp_path / "lib/libascendcl.so", needs, f"-L{tmp_path}", "-lascend_hal")
    hal.unlink()
    level, text, fix = found(run(library), root)["library.open"]
    assert level is Level.ERROR
    assert "needs libascend_hal.so" in text
    assert "put /usr/local/Ascend/driver/lib64/driver on LD_LIBRARY_PATH" in fix


def test_no_library(tmp_path: Path) -> None:
    (tmp_path / "libascendcl.so").write_bytes(b"text")
    outcome = run(tmp_path / "libascendcl.so")
    assert (outcome.step, outcome.ended, outcome.library) == ("opening the library", "failed", "")
    assert found(outcome, tmp_path / "root")["library.open"][0] is Level.ERROR


def test_the_emulated_device_in_a_process_of_its_own() -> None:
    machine = {"run_mode": "host", "memory_bytes": 64 << 20, "profile": "8.5", "device_count": 2}
    outcome = probe.run(Request(emulator=machine, device=1), os.environ, TIMEOUT_S)
    assert (outcome.step, outcome.ended, outcome.library) == ("done", "", "emulator")
    assert (outcome.count, outcome.run_mode, outcome.soc_name, outcome.opened) == (2, "host", "Ascend310P3", True)
    assert outcome.memory


def examine(*faults: PlannedFault) -> dict[str, object]:
    """The probe's work in this process; the emulated device has nothing left afterwards."""
    facts: dict[str, object] = {}
    with Emulator(EmulatorConfig(faults=faults, memory_bytes=64 << 20)) as emulator:
        library = Library.from_addresses("emulator", emulator.addresses())
        probe.examine(lambda: library, 0, facts.update)
        assert not any(emulator.ledger().values())
        assert not emulator.errors
    return json.loads(json.dumps(facts))


@pytest.mark.parametrize(
    ("function", "code", "step"),
    [
        ("aclInit", 500000, "aclInit"),
        ("aclrtGetRunMode", 507899, "aclInit"),
        ("aclrtGetVersion", 500000, "aclrtGetVersion"),
        ("aclrtGetDeviceCount", 207004, "aclrtGetDeviceCount"),
        ("aclrtSetDevice", 507033, "aclrtSetDevice"),
        ("aclrtGetMemInfo", 507899, "aclrtGetMemInfo"),
    ],
)
def test_each_call_that_fails_is_told_and_leaves_nothing(function: str, code: int, step: str) -> None:
    facts = examine(PlannedFault(function, code))
    assert (facts["step"], facts["ended"], facts["call"], facts["code"]) == (step, "failed", function, code)


def test_nothing_is_left_where_all_goes_well() -> None:
    facts = examine()
    assert facts["step"] == "done"
    assert "ended" not in facts


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "gone"))
    outcome = probe.run(Request(), os.environ, TIMEOUT_S)
    assert (outcome.step, outcome.ended) == ("starting a process", "failed")
    assert "gone" in outcome.text


def test_what_a_child_says_is_not_trusted() -> None:
    assert probe._collect(b'noise\n[1]\n{"step": "aclInit", "other": 1}\n{"soc', "hung") == Outcome("aclInit", "hung")
