"""Each check on a machine made of files: healthy, then with one thing spoilt; what is not ok has a fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from aclserve_server.acl.abi import PROTOTYPES
from aclserve_server.doctor.cann import check_cann, check_driver
from aclserve_server.doctor.checkup import Checkup, guarded
from aclserve_server.doctor.device import FIXES, check_outcome
from aclserve_server.doctor.findings import Finding, Level, local, ok, private, public
from aclserve_server.doctor.host import Space
from aclserve_server.doctor.models import check_models, family
from aclserve_server.doctor.nodes import check_nodes
from aclserve_server.doctor.ports import check_ports
from aclserve_server.doctor.probe import Outcome, is_vendors
from aclserve_server.doctor.resources import check_resources
from aclserve_server.doctor.settings import check_options
from aclserve_server.engine.repository import Repository
from aclserve_server.rpc.model_config import read_model_config
from aclserve_server.rpc.ports import Certificates
from doctor.machine import Machine, elf, given, healthy
from serving import elementwise, put_model
from test_inspect import om_bytes

Spoil = Callable[[Machine], object]
Case = tuple[Spoil, str, Level, str, str]
"""What is spoilt; the check that tells, its level, and words of its text and of its fix."""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return healthy(tmp_path / "root")


def named(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        assert finding.level is Level.OK or finding.level is Level.NOTE or finding.fix, finding
        found.setdefault(finding.check, []).append(finding)
    return found


def sees(findings: Iterable[Finding], check: str, level: Level, text: str, fix: str = "") -> None:
    """One of the findings is this."""
    those = named(findings).get(check, [])
    assert any(f.level is level and re.search(text, local(f.text)) and re.search(fix, local(f.fix)) for f in those), (
        those
    )


def all_of(machine: Machine) -> list[Finding]:
    host, values = machine.host(), given().values
    return [
        *check_driver(host),
        *check_cann(host, ""),
        *check_nodes(host, [0]),
        *check_resources(host, values, emulated=False),
        *check_ports(host, values, [0]),
    ]


def test_nothing_is_wrong_with_a_healthy_machine(machine: Machine) -> None:
    findings = all_of(machine)
    assert {finding.level for finding in findings} == {Level.OK}
    sees(findings, "driver.version", Level.OK, "24.1.rc3")
    sees(findings, "cann.version", Level.OK, "8.1.RC1")
    sees(findings, "cann.library", Level.OK, r"libascendcl.so of /usr/local/Ascend/ascend-toolkit/latest/lib64")
    sees(findings, "nodes.devices", Level.OK, "2 device nodes: davinci0, davinci1")


def no_cann(machine: Machine) -> None:
    machine.remove("/usr/local/Ascend/ascend-toolkit/latest/lib64/libascendcl.so")


def stub_first(machine: Machine) -> None:
    root = machine.root / "usr/local/Ascend/ascend-toolkit/latest"
    machine.write(str(root / "devlib/libascendcl.so"), elf())
    machine.environ |= {"LD_LIBRARY_PATH": f"{root}/devlib:{root}/lib64"}
    del machine.environ["ASCEND_HOME_PATH"], machine.environ["ASCEND_TOOLKIT_HOME"]


def stub_later(machine: Machine) -> None:
    machine.environ["LD_LIBRARY_PATH"] += f":{machine.root}/usr/local/Ascend/ascend-toolkit/latest/x86_64-linux/stub"


def two_cann(machine: Machine) -> None:
    other = machine.cann("cann", "8.5.0")
    machine.environ["LD_LIBRARY_PATH"] += f":{other}/lib64"


def other_home(machine: Machine) -> None:
    machine.environ["ASCEND_TOOLKIT_HOME"] = str(machine.cann("cann", "8.5.0"))


def in_container(machine: Machine) -> None:
    machine.write("/.dockerenv")
    machine.remove("/dev/davinci0")
    machine.remove("/dev/davinci1")


def closed(machine: Machine) -> None:
    machine.write("/etc/group", f"root:x:0:\nnpuusers:x:{(machine.root / 'dev/davinci0').stat().st_gid or 1}:\n")
    (machine.root / "dev/davinci0").chmod(0o660)


def visible(text: str) -> Spoil:
    return lambda machine: machine.environ.update(ASCEND_RT_VISIBLE_DEVICES=text)


def limits(soft: int) -> Spoil:
    return lambda machine: machine.write("/proc/self/limits", f"Max open files  {soft}  4096  files\n")


LIBRARY = "/usr/local/Ascend/ascend-toolkit/latest/lib64/libascendcl.so"
SPOILT: dict[str, Case] = {
    "no driver": (
        lambda m: m.remove("/usr/local/Ascend/driver/version.info"),
        "driver.version", Level.ERROR, "/usr/local/Ascend/driver holds no version.info", "install the NPU's driver",
    ),
    "no driver library": (
        lambda m: m.remove("/usr/local/Ascend/driver/lib64/driver/libascend_hal.so"),
        "driver.library", Level.ERROR, "libascend_hal.so is not there", "install",
    ),
    "driver elsewhere": (
        lambda m: m.write("/etc/ascend_install.info", "Driver_Install_Path_Param=/opt/npu\n"),
        "driver.version", Level.ERROR, "/opt/npu/driver holds no version.info", "install",
    ),
    "no CANN": (no_cann, "cann.library", Level.ERROR, "Looked in", "set_env.sh"),
    "old CANN": (
        lambda m: m.cann("ascend-toolkit/latest", "3.3.0"), "cann.version", Level.ERROR, "CANN is 3.3.0", "5.0.3",
    ),
    "no release": (
        lambda m: m.remove("/usr/local/Ascend/ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info"),
        "cann.version", Level.NOTE, "no file that states its release", "",
    ),
    "stub first": (stub_first, "cann.stub", Level.ERROR, "devlib holds stubs.*100039", "take that folder off"),
    "stub on the path": (stub_later, "cann.stub", Level.WARNING, "a folder of stubs.*linux/stub", "LD_LIBRARY_PATH"),
    "another processor": (
        lambda m: m.write(LIBRARY, elf(183)),
        "cann.architecture", Level.ERROR, "is for aarch64, this machine is x86_64", "package for x86_64",
    ),
    "no ELF": (
        lambda m: m.write(LIBRARY, b"version https://git-lfs.github.com/spec/v1\n"),
        "cann.architecture", Level.ERROR, "libascendcl.so is no library", "install CANN again",
    ),
    "no environment": (
        lambda m: m.environ.clear(),
        "cann.environment", Level.WARNING, "is not on LD_LIBRARY_PATH", "source /usr/local/.*/latest/set_env.sh",
    ),
    "no operators' path": (
        lambda m: m.environ.pop("ASCEND_OPP_PATH"),
        "cann.environment", Level.WARNING, "ASCEND_OPP_PATH is not set", "set_env.sh",
    ),
    "operators gone": (
        lambda m: m.environ.update(ASCEND_OPP_PATH="/gone/opp"),
        "cann.operators", Level.ERROR, "ASCEND_OPP_PATH names /gone/opp", "install the operator package",
    ),
    "two CANN": (two_cann, "cann.mixed", Level.ERROR, r"2 CANN installations.*8\.1\.RC1.*8\.5\.0", "clean shell"),
    "roots of two": (other_home, "cann.mixed", Level.ERROR, r"2 CANN installations", "clean shell"),
    "no nodes in a container": (in_container, "nodes.devices", Level.ERROR, "no /dev/davinciN", "--device /dev"),
    "no manager": (
        lambda m: m.remove("/dev/davinci_manager"), "nodes.helpers", Level.ERROR, "/dev/davinci_manager", "npu-smi",
    ),
    "closed node": (
        closed, "nodes.permission", Level.ERROR, "serving may not read .* /dev/davinci0$", "usermod -aG .* serving",
    ),
    "visible word": (visible("all"), "nodes.visible", Level.ERROR, "'all' is no number", "=0,1"),
    "visible beyond": (visible("0,7"), "nodes.visible", Level.WARNING, "no device 7, and the rest", "ascending"),
    "visible descends": (visible("1,0"), "nodes.visible", Level.ERROR, "do not ascend", "ascending"),
    "visible blank": (visible("0, 1"), "nodes.visible", Level.WARNING, "' 1' is no number", "without blanks"),
    "visible empty": (visible(""), "nodes.visible", Level.WARNING, "is empty", "unset"),
    "void": (
        lambda m: m.environ.update(ASCEND_VISIBLE_DEVICES="void"), "nodes.visible", Level.WARNING, "void", "=0",
    ),
    "little memory": (
        lambda m: m.write("/proc/meminfo", "MemTotal: 999999 kB\nMemAvailable: 1024 kB\n"),
        "memory.available", Level.WARNING, "1.0 MiB of 976.6 MiB of the host", "--slots",
    ),
    "container's memory": (
        lambda m: (m.write("/sys/fs/cgroup/memory.max", "1073741824\n"),
                   m.write("/sys/fs/cgroup/memory.current", "1073000000\n")),
        "memory.available", Level.WARNING, "of 1.0 GiB of the container", "docker run --memory",
    ),
    "few files": (limits(64), "limits.open_files", Level.ERROR, "may open 64 files", "LimitNOFILE"),
    "some files": (limits(512), "limits.open_files", Level.WARNING, "may open 512 files", "ulimit -n"),
    "more files": (limits(1024), "limits.open_files", Level.NOTE, "may open 1024 files", "ulimit -n"),
    "no limits": (lambda m: m.remove("/proc/self/limits"), "limits.open_files", Level.NOTE, "cannot be told", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT.values(), ids=SPOILT.keys())
def test_what_is_spoilt_is_found_with_a_fix(machine: Machine, case: Case) -> None:
    spoil, check, level, text, fix = case
    spoil(machine)
    findings = all_of(machine)
    sees(findings, check, level, text, fix)
    assert any(finding.level is level for finding in findings)
    for finding in findings:
        for told in (public(finding.text), public(finding.fix)):
            assert str(machine.root) not in told
            assert "/opt/npu" not in told
            assert "serving" not in told


def test_folders_of_one_installation_are_not_mixed(machine: Machine) -> None:
    """Up to 8.3 `latest` is a folder of links into the release's own, and several inner folders have the library."""
    real = machine.root / "usr/local/Ascend/ascend-toolkit/8.1.RC1"
    (machine.root / "usr/local/Ascend/ascend-toolkit/latest").rename(real)
    machine.write(str(real / "runtime/lib64/libascendcl.so"), elf())
    latest = machine.root / "usr/local/Ascend/ascend-toolkit/latest"
    latest.mkdir()
    for name in ("lib64", "opp", "runtime", "set_env.sh", "x86_64-linux"):
        (latest / name).symlink_to(Path("../8.1.RC1") / name)
    machine.environ["LD_LIBRARY_PATH"] += f":{latest}/runtime/lib64:{real}/lib64"
    assert {finding.level for finding in check_cann(machine.host(), "")} == {Level.OK}


def test_a_relative_path_in_the_environment(machine: Machine) -> None:
    machine.environ["ASCEND_OPP_PATH"] = "opp"
    sees(check_cann(machine.host(), ""), "cann.operators", Level.ERROR, "names opp that is not there", "set_env.sh")


def test_a_device_that_the_process_cannot_use(machine: Machine) -> None:
    sees(
        check_nodes(machine.host(), [2]),
        "nodes.chosen",
        Level.ERROR,
        "--device names 2, and this process may use 2 devices",
        "below 2",
    )
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "1"
    assert "nodes.chosen" not in named(check_nodes(machine.host(), [0]))
    sees(
        check_nodes(machine.host(), [1]),
        "nodes.chosen",
        Level.ERROR,
        "--device names 1, and this process may use 1 device",
        "below 1",
    )


def test_boards_and_virtual_devices_have_other_nodes(machine: Machine) -> None:
    for name in ("devmm_svm", "davinci0", "davinci1", "davinci_manager"):
        machine.remove(f"/dev/{name}")
    for name in ("svm0", "vdavinci100", "davinci_manager_docker"):
        machine.write(f"/dev/{name}").chmod(0o666)
    assert {finding.level for finding in check_nodes(machine.host(), [0])} == {Level.OK}


@pytest.mark.parametrize(
    ("space", "wanted", "level"),
    [
        (Space(64 << 20, 64 << 20), True, Level.WARNING),
        (Space(8 << 30, 1 << 20), True, Level.WARNING),
        (Space(8 << 30, 4 << 30), True, Level.OK),
        (Space(64 << 20, 64 << 20), False, Level.OK),
        (None, True, Level.ERROR),
        (None, False, Level.OK),
    ],
)
def test_shared_memory_counts_when_clients_use_it(
    machine: Machine, space: Space | None, wanted: bool, level: Level
) -> None:
    machine.shm = space
    found = check_resources(machine.host(), given({"system_shared_memory": wanted}).values, emulated=False)
    sees(found, "shared_memory.size", level, "/dev/shm", "" if level is Level.OK else "tmpfs|--shm-size=1g")


def test_an_emulated_device_larger_than_the_memory(machine: Machine) -> None:
    values = given({"emulator_memory_bytes": 64 << 30}).values
    sees(check_resources(machine.host(), values, emulated=True), "memory.emulated", Level.NOTE, "64.0 GiB", "below")
    assert "memory.emulated" not in named(check_resources(machine.host(), values, emulated=False))


LISTENS = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 x\n"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.mark.parametrize(
    ("host", "address", "state", "taken"),
    [
        ("127.0.0.1", "0100007F:1F41", "0A", True),  # 127.0.0.1:8001
        ("127.0.0.1", "00000000:1F41", "0A", True),  # every address
        ("0.0.0.0", "0100007F:1F41", "0A", True),
        ("localhost", "0100007F:1F41", "0A", True),
        ("a.name", "0100000A:1F41", "0A", True),
        ("127.0.0.1", "0100007F:1F41", "01", False),  # a connection
        ("127.0.0.1", "0100007F:1F90", "0A", False),  # another port
        ("127.0.0.1", "0100000A:1F41", "0A", False),  # another address
        ("::1", "0100007F:1F41", "0A", False),
    ],
)  # fmt: skip
def test_ports_are_taken_by_who_listens_there(
    machine: Machine, host: str, address: str, state: str, taken: bool
) -> None:
    machine.write("/proc/net/tcp", HEAD + LISTENS.format(address, state, 77))
    found = list(check_ports(machine.host(), given({"host": host}).values, [0]))
    if taken:
        sees(found, "ports.port", Level.ERROR, "8001 is taken by another user's process", "ss -ltnp")
    else:
        sees(found, "ports.port", Level.OK, "8001 is free")
    sees(found, "ports.metrics_port", Level.OK, "8002 is free")


@pytest.mark.parametrize(
    ("host", "address", "taken"),
    [
        ("127.0.0.1", "0" * 32, True),  # [::] takes IPv4 as well
        ("::1", "00000000000000000000000001000000", True),
        ("127.0.0.1", "0000000000000000FFFF00000100007F", True),  # ::ffff:127.0.0.1
        ("127.0.0.1", "00000000000000000000000001000000", False),
    ],
)
def test_ports_of_ipv6(machine: Machine, host: str, address: str, taken: bool) -> None:
    machine.write("/proc/net/tcp6", HEAD + LISTENS.format(f"{address}:1F41", "0A", 77))
    (finding,) = named(check_ports(machine.host(), given({"host": host}).values, [0]))["ports.port"]
    assert (finding.level is Level.ERROR) == taken


def process(machine: Machine, command: str, inode: int = 77) -> None:
    machine.write("/proc/net/tcp", HEAD + LISTENS.format("0100007F:1F41", "0A", inode))
    machine.write("/proc/4242/comm", command.split()[0].rpartition("/")[2] + "\n")
    machine.write("/proc/4242/cmdline", command.replace(" ", "\0"))
    link = machine.root / "proc/4242/fd/5"
    link.parent.mkdir()
    link.symlink_to(f"socket:[{inode}]")


def test_who_took_a_port_is_named_on_the_host_only(machine: Machine) -> None:
    process(machine, "/usr/bin/tritonserver --grpc-port 8001")
    found = list(check_ports(machine.host(), given().values, [0]))
    sees(found, "ports.port", Level.ERROR, "taken by tritonserver, process 4242", "another port")
    assert not any("4242" in public(finding.text) for finding in found)


@pytest.mark.parametrize("command", ["python -m aclserve_server serve --port 8001", "python /bin/aclserve serve"])
def test_a_server_of_ours_that_runs_is_no_error(machine: Machine, command: str) -> None:
    process(machine, command)
    sees(check_ports(machine.host(), given().values, [0]), "ports.port", Level.NOTE, "an aclserve listens", "--port 0")


def test_port_options(machine: Machine) -> None:
    machine.write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "1024\n")
    values = given({"port": 80, "metrics_port": 0, "health_port": 9000}).values
    found = named(check_ports(machine.host(), values, [0]))
    assert found["ports.port"][0].level is Level.WARNING
    assert found["ports.metrics_port"][0].level is Level.OK
    assert found["ports.health_port"][0].level is Level.OK
    machine.remove("/proc/net/tcp")
    sees(check_ports(machine.host(), given().values, [0]), "ports.port", Level.NOTE, "cannot be told")


def test_the_unix_socket(machine: Machine) -> None:
    def look(path: str) -> Iterable[Finding]:
        return check_ports(machine.host(), given({"unix_socket": path}).values, [0])

    folder = machine.root / "run"
    sees(look("/run/a.sock"), "ports.unix_socket", Level.ERROR, "the folder of /run/a.sock is not there", "make it")
    folder.mkdir()
    folder.chmod(0o770)
    sees(look("/run/a.sock"), "ports.unix_socket", Level.ERROR, "may not write", "server's user")
    folder.chmod(0o777)
    sees(look("/run/a.sock"), "ports.unix_socket", Level.OK, "can be used")
    machine.write("/run/a.sock")
    sees(look("/run/a.sock"), "ports.unix_socket", Level.ERROR, "no socket", "another path")
    sees(look("/run/" + "a" * 120), "ports.unix_socket", Level.ERROR, "125 bytes, at most 107", "shorter")


def om_for(chip: str) -> bytes:
    """An OM file whose definition has the attribute that `atc` writes."""
    text = chip.encode()
    value = b"\x12" + bytes([len(text)]) + text
    entry = b"\x0a\x0bsoc_version\x12" + bytes([len(value)]) + value
    return om_bytes([[(0, b"\x0a\x04made" + b"\x2a" + bytes([len(entry)]) + entry + b"\x30\x01"), (1, b"w" * 64)]])


def look_at_models(machine: Machine, root: Path, *, emulated: bool = True, soc: str = "") -> list[Finding]:
    repository = Repository(root, read_model_config)
    return list(check_models(machine.host(), repository, emulated=emulated, soc_name=soc))


def test_models(machine: Machine, tmp_path: Path) -> None:
    root = tmp_path / "models"
    put_model(root, "good", elementwise(), "optimization { graph { level: 1 } }")
    put_model(root, "typo", elementwise(), "max_batch_size: many")
    (root / "empty" / "1").mkdir(parents=True)
    for name, content in (("npu", om_for("Ascend310P3")), ("cut", om_for("Ascend310P3")[:400]), ("text", b"hello")):
        file = root / name / "1" / ("model.onnx" if name == "text" else "model.om")
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    found = look_at_models(machine, root)
    sees(found, "models.repository", Level.OK, "6 versions of 6 models, 5 with errors")
    sees(found, "models.config", Level.NOTE, "model good version 1: .*optimization", "config.pbtxt")
    sees(found, "models.config", Level.ERROR, "model typo version 1: .*line 1", "correct")
    sees(found, "models.config", Level.ERROR, "model empty version 1: .*holds neither", "correct")
    sees(found, "models.file", Level.ERROR, "model cut version 1: the OM file is cut short", "copy")
    sees(found, "models.file", Level.ERROR, "model text version 1", "convert")
    sees(found, "models.format", Level.ERROR, "model npu version 1: .*Ascend310P3.* runs on an NPU only", "ONNX file")
    found = look_at_models(machine, root, emulated=False, soc="Ascend310P3")
    sees(found, "models.chip", Level.OK, "model npu version 1: built for Ascend310P3")
    sees(found, "models.format", Level.ERROR, "model good version 1", "atc .*--soc_version=Ascend310P3")


@pytest.mark.parametrize(
    ("chip", "soc", "level"),
    [
        ("Ascend310P3", "Ascend310P3", Level.OK),
        ("Ascend310P1", "Ascend310P3", Level.WARNING),
        ("Ascend310", "Ascend310P3", Level.ERROR),
        ("Ascend910B4", "Ascend910_9391", Level.ERROR),
        ("Ascend310P3", "", Level.NOTE),
    ],
)
def test_the_chip_of_an_om_file(machine: Machine, tmp_path: Path, chip: str, soc: str, level: Level) -> None:
    file = tmp_path / "models/npu/1/model.om"
    file.parent.mkdir(parents=True)
    file.write_bytes(om_for(chip))
    fix = f"soc_version={soc}" if level in (Level.WARNING, Level.ERROR) else ""
    sees(look_at_models(machine, tmp_path / "models", emulated=False, soc=soc), "models.chip", level, chip, fix)
    file.write_bytes(om_bytes([[(0, b"soc_version"), (1, b"w")]]))
    found = look_at_models(machine, tmp_path / "models", emulated=False, soc=soc)
    sees(found, "models.chip", Level.NOTE, "does not say which chip")


def test_families_of_chips() -> None:
    names = ["Ascend310", "Ascend310P3", "Ascend310B4", "Ascend910A", "Ascend910ProB", "Ascend910B4", "Ascend910_9391"]
    assert list(map(family, names)) == ["310", "310P", "310B", "910", "910", "910B", "910_93"]
    assert family("other") == "other"


def test_repositories_that_cannot_be_used(machine: Machine, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    sees(look_at_models(machine, root), "models.repository", Level.WARNING, "holds no model", "MODEL/VERSION")
    put_model(root, "closed", elementwise())
    (root / "closed/1/model.onnx").chmod(0o640)
    sees(look_at_models(machine, root), "models.file", Level.ERROR, "may not read its file", "r--")
    root.chmod(0o750)
    found = look_at_models(machine, root)
    sees(found, "models.repository", Level.ERROR, f"this user may not read {root}", "r-x")
    assert not any(str(root) in public(finding.text) for finding in found)
    root.chmod(0o755)


OUTCOMES = {
    "stub": (Outcome("aclInit", "failed", call="aclInit", code=100039), "cann.stub", "100039", "devlib"),
    "no chip": (Outcome("aclInit", "failed", call="aclInit", code=500000), "library.open", "500000", "driver is"),
    "held": (
        Outcome("aclrtSetDevice", "failed", count=1, call="aclrtSetDevice", code=507033, text="open device 0 failed"),
        "device.open", "507033.*open device 0 failed", "another process or container",
    ),
    "hidden": (
        Outcome("aclrtGetDeviceCount", "failed", call="aclrtGetDeviceCount", code=207004),
        "library.open", "207004", "ASCEND_RT_VISIBLE_DEVICES",
    ),
    "unknown": (Outcome("aclInit", "failed", call="aclInit", code=507041), "library.open", "507041", "collect logs"),
    "hangs": (Outcome("aclInit", "hung"), "library.open", "aclInit did not come in time", "npu-smi.*--timeout-s"),
    "crashes": (Outcome("aclrtSetDevice", "died of SIGSEGV"), "device.open", "died of SIGSEGV", "fit together"),
    "lacks": (
        Outcome("opening", "failed", text="/a/b.so cannot be opened: libascend_hal.so: cannot open shared object file"),
        "library.open", "needs libascend_hal.so", "put /usr/local/Ascend/driver/lib64/driver on LD_LIBRARY_PATH",
    ),
    "lacks another": (
        Outcome("opening", "failed", text="libc_sec.so: cannot open shared object file: No such file"),
        "library.open", "needs libc_sec.so", "nowhere in the driver's folders",
    ),
    "mixed": (
        Outcome("opening", "failed", text="/a/b/libx.so: undefined symbol: rtFoo"), "cann.mixed", "rtFoo", "set_env",
    ),
    "other": (
        Outcome("opening", "failed", text="x lacks 3 functions that aclserve needs"), "library.functions", "3", "5.0.3",
    ),
    "none": (Outcome("done", run_mode="host"), "device.count", "no device", "npu-smi"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTCOMES.values(), ids=OUTCOMES.keys())
def test_outcomes(machine: Machine, case: tuple[Outcome, str, str, str]) -> None:
    outcome, check, text, fix = case
    found = list(check_outcome(machine.host(), outcome, emulated=False))
    sees(found, check, Level.ERROR, text, fix)
    assert not any("/a/b" in public(finding.text) for finding in found)


def test_what_a_device_tells(machine: Machine) -> None:
    folders = [f"{machine.root}/usr/local/Ascend/{place}" for place in ("driver/lib64", "cann-8.5/lib64", "nnrt/lib64")]
    outcome = Outcome(
        "done",
        library="/x/libascendcl.so",
        missing=("aclAppLog",),
        loaded=(f"{folders[0]}/libascend_hal.so", f"{folders[1]}/libascendcl.so", f"{folders[1]}/libruntime.so"),
        acl_version="1.16.0",
        cann_version="8.5.0",
        run_mode="host",
        count=2,
        soc_name="Ascend310P3",
        opened=True,
        memory=(("DDR", 1 << 30, 20 << 30), ("HBM", 16 << 30, 20 << 30)),
    )
    found = list(check_outcome(machine.host(), outcome, emulated=False))
    known = len(PROTOTYPES)
    sees(found, "library.open", Level.OK, rf"{known - 1} of {known} functions, ACL 1.16.0 of CANN 8.5.0")
    sees(found, "library.functions", Level.NOTE, "aclAppLog")
    sees(found, "library.origins", Level.OK, f"2 libraries from {folders[1]}, 1 library from {folders[0]}")
    sees(found, "device.count", Level.OK, "2 devices .Ascend310P3., run mode host")
    sees(found, "device.memory", Level.WARNING, "1.0 GiB of 20.0 GiB DDR", "other processes")
    sees(found, "device.memory", Level.OK, "HBM")
    board = Outcome("done", library="x", loaded=(*outcome.loaded, "/usr/lib64/libc_sec.so", "/usr/lib64/libslog.so"))
    assert "library.mixed" not in named(check_outcome(machine.host(), board, emulated=False))
    mixed = Outcome("done", library="x", loaded=(*outcome.loaded, f"{folders[2]}/libgraph.so"))
    sees(
        check_outcome(machine.host(), mixed, emulated=False), "library.mixed", Level.ERROR, "2 CANN", "one installation"
    )


def test_names_of_the_vendors_libraries() -> None:
    names = ["libascendcl.so", "libacl_rt.so", "libascend_hal.so", "libruntime.so", "libge_executor.so", "libc_sec.so"]
    assert all(is_vendors(f"/x/{name}") for name in names)
    assert not any(map(is_vendors, ["/usr/lib/libc.so.6", "/x/libpython3.so", "/x/libruntime.py"]))


def test_codes_with_a_fix_are_codes_of_the_table() -> None:
    from aclserve_server.acl.codes import lookup

    assert not any(lookup(code).name.startswith("UNKNOWN") for code in FIXES)


def test_each_of_several_devices_is_asked_and_told_of(machine: Machine) -> None:
    asked: list[int] = []

    def ask(device: int) -> Outcome:
        asked.append(device)
        if device == 1:
            return Outcome("aclrtSetDevice", "failed", library="x", count=2, call="aclrtSetDevice", code=507033)
        if device == 3:
            return Outcome("starting a process", "failed", text="no more processes")
        memory = (("HBM", 1 << 30, 32 << 30),) if device else (("HBM", 30 << 30, 32 << 30),)
        return Outcome("done", library="x", count=2, soc_name="Ascend310P3", opened=True, memory=memory)

    def checkup(**values: object) -> list[Finding]:
        options = given({"devices": ("0-3",), "worker_port": 9000, "unix_socket": "/run/a.sock", **values})
        return list(Checkup("1", machine.host(), options, ask, read_model_config, Certificates).run().findings)

    machine.write("/proc/net/tcp", HEAD + LISTENS.format("0100007F:2329", "0A", 77))  # 127.0.0.1:9001
    (machine.root / "run").mkdir()
    (machine.root / "run").chmod(0o777)
    machine.write("/run/a.sock.1")
    found = checkup()
    assert asked == [0, 1, 2, 3]
    sees(
        found,
        "nodes.chosen",
        Level.ERROR,
        "--devices names 2, 3, and this process may use 2 devices",
        "--devices numbers below 2",
    )
    sees(found, "device.open", Level.OK, "device 0: the device was opened")
    sees(found, "device.open", Level.ERROR, "device 1: aclrtSetDevice failed with 507033", "npu-smi")
    sees(found, "library.open", Level.ERROR, "device 3: it cannot be opened: no more processes")
    sees(found, "device.memory", Level.WARNING, "device 2: 1.0 GiB of 32.0 GiB HBM", "--device")
    assert [finding.level for finding in named(found)["library.open"]] == [Level.OK, Level.ERROR]
    assert len(named(found)["device.count"]) == 1
    levels = [finding.level for finding in named(found)["ports.worker_port"]]
    assert levels == [Level.OK, Level.ERROR, Level.OK, Level.OK]
    sees(found, "ports.worker_port", Level.ERROR, r"port 9001 of device 1 \(--worker-port\) is taken by another")
    sees(found, "ports.unix_socket", Level.ERROR, "/run/a.sock.1 is there already and is no socket")
    assert [finding.level for finding in named(found)["ports.unix_socket"]] == [
        Level.OK,
        Level.ERROR,
        Level.OK,
        Level.OK,
    ]
    asked.clear()
    checkup(devices=())
    assert asked == [0]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome("aclInit", "failed", library="x", call="aclInit", code=100000), "^aclInit failed"),
        (Outcome("aclrtSetDevice", "hung", library="x"), "^aclrtSetDevice did not come"),
    ],
)
def test_a_library_that_does_not_open_or_hangs_is_asked_once(machine: Machine, outcome: Outcome, told: str) -> None:
    asked: list[int] = []

    def ask(device: int) -> Outcome:
        asked.append(device)
        return outcome

    options = given({"devices": ("0-2",)})
    found = Checkup("1", machine.host(), options, ask, read_model_config, Certificates).run().findings
    assert asked == [0]
    assert any(f.level is Level.ERROR and re.search(told, local(f.text)) for f in found)


def test_options(machine: Machine, tmp_path: Path) -> None:
    problem = "--model-repository: got '/srv/none', expected an existing folder: create it, or name another"
    found = list(check_options(machine.host(), given(problems=(problem,)), Certificates))
    sees(found, "options.value", Level.ERROR, "--model-repository: got '/srv/none', expected", "create it, or")
    assert not any("/srv/none" in public(finding.text) + public(finding.fix) for finding in found)
    file = tmp_path / "principals.toml"
    file.write_text("[principals.x]\ntokens = 7\n")
    file.chmod(0o644)
    values = {"principals": str(file), "tls_cert": "/gone.pem", "tls_key": str(file), "host": "0.0.0.0"}
    found = list(check_options(machine.host(), given(values), Certificates))
    sees(found, "options.principals", Level.ERROR, "tokens", "correct the file")
    sees(found, "options.file", Level.ERROR, "--tls-cert: /gone.pem is not there", "another file")
    values = {"tls_cert": str(file), "tls_key": str(file), "host": "0.0.0.0"}
    found = list(check_options(machine.host(), given(values), Certificates))
    sees(found, "options.tls", Level.ERROR, "cannot use", "correct the file")
    sees(found, "options.tls", Level.WARNING, "read the private key", "chmod")
    sees(found, "options.exposure", Level.WARNING, "everybody who reaches it", "--principals")


def test_a_check_that_fails_is_a_finding() -> None:
    def failing() -> Iterable[Finding]:
        yield ok("area.first", "done")
        raise ZeroDivisionError

    assert [finding.check for finding in guarded("area", failing())] == ["area.first", "area.unchecked"]


def test_a_whole_checkup_of_a_machine(machine: Machine, tmp_path: Path) -> None:
    root = tmp_path / "models"
    put_model(root, "good", elementwise())
    options = given({"model_repository": root})
    asked: list[int] = []

    def ask(device: int) -> Outcome:
        asked.append(device)
        return Outcome("done", library="x", count=1, soc_name="Ascend310P3", run_mode="host")

    def checkup() -> dict[str, list[Finding]]:
        made = Checkup("1.0", machine.host(), options, ask, read_model_config, Certificates)
        return named(made.run().findings)

    assert {name for name in checkup() if name.startswith(("driver", "cann", "nodes", "device", "ports"))} == {
        "driver.version", "driver.library", "cann.library", "cann.version", "cann.stub", "cann.environment",
        "nodes.devices", "nodes.permission", "device.count", "ports.port", "ports.metrics_port",
    }  # fmt: skip
    assert asked == [0]
    asked.clear()
    no_cann(machine)
    assert "cann.library" in checkup()
    assert not asked  # what cannot be found is not opened


def test_private_parts_have_two_readings() -> None:
    parts = private("/srv/x", "the folder"), private("a: \ue001b\n", "c")
    text = "see {}: {} at 0xdeadbeef in /home/me/x, /dev/shm".format(*parts)
    assert local(text) == "see /srv/x: a: b  at 0xdeadbeef in /home/me/x, /dev/shm"
    assert public(text) == "see the folder: c at ... in ..., /dev/shm"
    assert len(local("x" * 5000)) == len(public("x" * 5000)) == 1024
