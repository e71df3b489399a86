"""The driver and CANN as files: which there are, which is used, and whether they and the environment fit together.

Nothing is opened as a library here; `probe` does that, in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from aclserve_server.acl.errors import LibraryError
from aclserve_server.acl.install import (
    DEFAULT_ROOTS,
    LIBRARY,
    ROOT_VARIABLES,
    SPLIT_LIBRARIES,
    Installation,
    environment_problems,
    find_installation,
)
from aclserve_server.doctor.findings import Finding, error, listed, note, ok, private, warning
from aclserve_server.doctor.host import Host, field

DRIVER = "/usr/local/Ascend/driver"
DRIVER_INFO = "/etc/ascend_install.info"
DRIVER_LIBRARY = "libascend_hal.so"
DRIVER_FOLDERS = ("lib64", "lib64/common", "lib64/driver")

STUB_FOLDERS = ("stub", "stubs", "devlib")
"""Folders of the toolkit with libraries of the same names, made for linking without a driver."""

INNER_FOLDERS = ("lib64", "runtime", "compiler", *STUB_FOLDERS)
"""Folders of an installation, besides `<arch>-linux`: several of them hold, or link to, the same libraries."""

ELF_MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv64"}

_IN_CONTAINER = (
    f"start the container with the host's driver: -v {DRIVER}/lib64:{DRIVER}/lib64 -v {DRIVER}/version.info:"
    f"{DRIVER}/version.info -v {DRIVER_INFO}:{DRIVER_INFO}, or with --runtime=ascend"
)
_RELEASE = re.compile(r"(\d+\.\d+)")


def driver_root(host: Host) -> Path:
    """Where the driver is: as its installer wrote it down, or the usual place."""
    stated = field(host.text(DRIVER_INFO), "Driver_Install_Path_Param")
    return host.at(Path(stated) / "driver" if stated.startswith("/") else DRIVER)


def check_driver(host: Host) -> Iterator[Finding]:
    """The driver's version and its library."""
    root = driver_root(host)
    version = field(host.text(root / "version.info"), "Version", "package_version")
    install = _IN_CONTAINER if host.in_container else "install the NPU's driver and firmware, then restart the host"
    if version:
        yield ok("driver.version", f"the driver is {version}")
    elif host.exists(root / "version.info"):
        yield warning("driver.version", "the driver's version.info states no version", install)
    else:
        place = private(host.named(root), "the driver's folder")
        yield error("driver.version", f"there is no driver: {place} holds no version.info", install)
    places = [root / folder / DRIVER_LIBRARY for folder in DRIVER_FOLDERS]
    found = [place for place in places if host.exists(place)]
    if found:
        yield ok("driver.library", f"{DRIVER_LIBRARY} is in {private(host.named(found[0].parent), 'the driver')}")
    else:
        yield error("driver.library", f"the driver's library {DRIVER_LIBRARY} is not there", install)


def locate(host: Host, path: str) -> Installation | str:
    """The installation that a server would use, or what is wrong in words."""
    try:
        return find_installation(path or None, host.environ, [str(host.at(root)) for root in DEFAULT_ROOTS])
    except LibraryError as problem:
        return str(problem)


def check_cann(host: Host, path: str) -> Iterator[Finding]:
    """Which CANN is used and its version; whether it is whole, of this machine, alone, and what the environment says.

    `path` is the option --acl-library.
    """
    used = locate(host, path)
    if isinstance(used, str):
        yield error(
            "cann.library",
            private(used, "no AscendCL library was found where --acl-library and the environment say"),
            "install CANN (toolkit or nnrt), `source <its root>/set_env.sh` before the start, or give --acl-library; "
            "without an NPU: --acl-library emulator",
        )
        return
    files = listed(file.name for file in used.files)
    yield ok("cann.library", f"{files} of {private(host.named(used.folder), 'the installation')}")
    yield _version(host, used)
    yield from _stub(host, used)
    yield from _architecture(host, used)
    yield from _environment(host, used)
    yield from _mixed(host, used)


def installation_version(host: Host, root: Path) -> str:
    """The release of a CANN root, such as "8.1.RC1", as its installer wrote it down; "" where nothing says so."""
    folders = [root / name for name in host.names(root) if name.endswith("-linux")]
    for folder in (*folders, root):
        for name in host.names(folder):
            if re.fullmatch(r"ascend_\w+_install\.info", name):
                version = field(host.text(folder / name), "version")
                if version:
                    return version
    found = re.search(r"_running_version=\[[^\]:]*:([^\]]+)\]", host.text(root / "version.cfg") or "")
    return found[1] if found else ""


def installation_home(folder: Path) -> Path:
    """The real folder of the release that a folder of libraries belongs to: what comes before its inner folders."""
    parts = folder.resolve().parts
    inner = (at for at, part in enumerate(parts) if part in INNER_FOLDERS or part.endswith("-linux"))
    return Path(*parts[: next(inner, len(parts))])


def _version(host: Host, used: Installation) -> Finding:
    if used.root is None:
        return note(
            "cann.version",
            "the library is in no CANN root, so its release cannot be told from files",
            "give the CANN root or its lib64 as --acl-library",
        )
    version = installation_version(host, used.root)
    if not version:
        return note("cann.version", "the CANN root has no file that states its release")
    found = _RELEASE.match(version)
    if found and tuple(map(int, found[1].split("."))) < (5, 0):
        return error("cann.version", f"CANN is {version}", "install 5.0.3 or later: older ones lack functions")
    return ok("cann.version", f"CANN is {version}")


def _stub(host: Host, used: Installation) -> Iterator[Finding]:
    parts = {*used.folder.parts, *used.folder.resolve().parts}
    if parts & set(STUB_FOLDERS):
        yield error(
            "cann.stub",
            f"{private(host.named(used.folder), 'the library found first')} holds stubs, made for linking without a "
            "driver: every call returns 100039",
            f"take that folder off LD_LIBRARY_PATH, and let lib64 of the CANN root stand there{_source(host, used)}",
        )
        return
    for entry in _library_path(host):
        if set(entry.parts) & set(STUB_FOLDERS):
            yield warning(
                "cann.stub",
                f"LD_LIBRARY_PATH has a folder of stubs, {private(entry, 'made for linking')}: a library that is "
                "opened later may come from there",
                "take it off LD_LIBRARY_PATH before the start",
            )
            return
    yield ok("cann.stub", "no stub libraries are in the way")


def _architecture(host: Host, used: Installation) -> Iterator[Finding]:
    for file in used.files:
        found = elf_machine(file)
        if not found:
            yield error(
                "cann.architecture",
                f"{private(host.named(file), file.name)} is no library: it does not begin as an ELF file does",
                "install CANN again; a link whose target is missing, or a file of Git LFS, looks like this",
            )
        elif found != host.machine:
            yield error(
                "cann.architecture",
                f"{file.name} is for {found}, this machine is {host.machine}",
                f"install the CANN package for {host.machine}",
            )


def elf_machine(file: Path) -> str:
    """The processor that an ELF file is for, as `uname -m` has it; "" for other files."""
    try:
        with file.open("rb") as stream:
            head = stream.read(20)
    except OSError:
        return ""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return ELF_MACHINES.get(number, f"processor {number}")


def _environment(host: Host, used: Installation) -> Iterator[Finding]:
    problems = list(environment_problems(used, host.environ))
    for problem in problems:
        private_part = problem.startswith(("/", *ROOT_VARIABLES))
        text = private(problem, _without_place(problem)) if private_part else problem
        yield warning("cann.environment", text, f"before the start{_source(host, used) or ' source set_env.sh'}")
    folder = host.environ.get("ASCEND_OPP_PATH")
    if folder and not host.exists(folder):
        yield error(
            "cann.operators",
            f"ASCEND_OPP_PATH names {private(folder, 'a folder')} that is not there: no operator would be found",
            f"install the operator package of this chip, then{_source(host, used) or ' source set_env.sh'}",
        )
    if not problems:
        yield ok("cann.environment", "the environment fits the installation")


def _without_place(problem: str) -> str:
    variable = problem.partition(" ")[0]
    if variable in ROOT_VARIABLES:
        return f"{variable} names another root than the library's"
    return "the library's folder is not on LD_LIBRARY_PATH"


def _mixed(host: Host, used: Installation) -> Iterator[Finding]:
    """Two installations at once: plugins and dependencies of one would be opened by the other."""
    folders = [*_library_path(host)]
    folders += [Path(host.environ[name]) / "lib64" for name in ROOT_VARIABLES if host.environ.get(name)]
    known = {installation_home(used.folder): used.folder}
    for folder in folders:
        if any((folder / name).is_file() for name in (LIBRARY, *SPLIT_LIBRARIES)):
            known.setdefault(installation_home(folder), folder)
    others = [folder for folder in known.values() if folder != used.folder]
    if not others:
        return
    named = listed(f"{private(host.named(one), 'another')}{_release(host, one)}" for one in [used.folder, *others])
    yield error(
        "cann.mixed",
        f"the environment mixes {len(others) + 1} CANN installations: {named}. Libraries of one that open those of the "
        "other fail with undefined symbols",
        f"start from a clean shell, and source the script of one only{_source(host, used)}",
    )


def _release(host: Host, folder: Path) -> str:
    version = installation_version(host, folder.parent)
    return f" ({version})" if version else ""


def _library_path(host: Host) -> Iterable[Path]:
    """The folders of LD_LIBRARY_PATH, as it was when the process started: later changes have no effect."""
    return [Path(entry) for entry in host.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]


def _source(host: Host, used: Installation) -> str:
    """How to set the environment up, as the end of a sentence; "" where no script is known."""
    root = used.root
    if root is None:
        return ""
    for folder in (root, *root.parents[:2]):
        if (folder / "set_env.sh").is_file():
            return f": source {private(host.named(folder / 'set_env.sh'), 'set_env.sh of the CANN root')}"
    return ""
