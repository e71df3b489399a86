"""A machine as a folder: a driver, CANN, device nodes and the kernel's files, made as data."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aclserve_server.config import options
from aclserve_server.doctor.host import Host, Space
from aclserve_server.doctor.settings import Options

GIB = 1 << 30
NODES = ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc")


def elf(machine: int = 62) -> bytes:
    """The beginning of a shared library, for an `e_machine`."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little")


@dataclass
class Machine:
    """A root folder with a user who is not root: rights count as the modes of others say."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    shm: Space | None = field(default_factory=lambda: Space(8 * GIB, 8 * GIB))

    def write(self, path: str, content: str | bytes = "") -> Path:
        place = Path(path) if path.startswith(str(self.root)) else self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()

    def host(self) -> Host:
        return Host(
            self.environ, self.root, user="serving", machine="x86_64", access=may_others, space=lambda path: self._shm()
        )

    def _shm(self) -> Space:
        if self.shm is None:
            raise FileNotFoundError("/dev/shm")
        return self.shm

    def cann(self, name: str, version: str) -> Path:
        """Installs CANN below /usr/local/Ascend; its root."""
        root = self.root / "usr/local/Ascend" / name
        self.write(str(root / "lib64/libascendcl.so"), elf())
        self.write(str(root / "set_env.sh"))
        self.write(str(root / "opp/version.info"))
        self.write(
            str(root / "x86_64-linux/ascend_toolkit_install.info"),
            f"package_name=Ascend-cann-toolkit\nversion={version}\narch=x86_64\nos=linux\n",
        )
        return root

    def source(self, root: Path) -> None:
        """What set_env.sh of a CANN root does."""
        self.environ |= {
            "ASCEND_HOME_PATH": str(root),
            "ASCEND_TOOLKIT_HOME": str(root),
            "ASCEND_OPP_PATH": str(root / "opp"),
            "LD_LIBRARY_PATH": f"{root}/lib64:{root}/lib64/plugin/opskernel",
        }


def may_others(path: Path, mode: int) -> bool:
    try:
        return stat.S_IMODE(path.stat().st_mode) & mode == mode
    except OSError:
        return False


def healthy(root: Path) -> Machine:
    """A host with two cards, driver and CANN 8.1, and the environment as it should be."""
    machine = Machine(root)
    machine.write("/etc/ascend_install.info", "UserName=HwHiAiUser\nDriver_Install_Path_Param=/usr/local/Ascend\n")
    machine.write("/usr/local/Ascend/driver/version.info", "Version=24.1.rc3\nascendhal_version=7.35.23\n")
    machine.write("/usr/local/Ascend/driver/lib64/driver/libascend_hal.so", elf())
    for name in NODES:
        machine.write(f"/dev/{name}").chmod(0o666)
    machine.source(machine.cann("ascend-toolkit/latest", "8.1.RC1"))
    machine.write("/proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {32 << 20} kB\n")
    machine.write("/proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\nMax open files  65536  524288  files\n")
    machine.write("/proc/net/tcp", "  sl  local_address rem_address   st\n")
    return machine


def given(values: Mapping[str, object] | None = None, problems: tuple[str, ...] = ()) -> Options:
    """Options at their defaults, but for some."""
    return Options({option.name: option.default for option in options()} | dict(values or {}), {}, problems)
