"""Where CANN is installed, which files hold AscendCL, and whether the environment fits the installation.

Only looks at names and files; opening is `library.py`'s work. Everything the answer depends on is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aclserve_server.acl.errors import LibraryError

LIBRARY = "libascendcl.so"
"""The library of every CANN up to 8.5, and the compatibility library of 9.x."""

SPLIT_LIBRARIES = ("libacl_rt.so", "libacl_mdl.so")
"""The libraries that 9.x documents for `acl_rt.h` and `acl_mdl.h`; a symbol is taken from whichever has it."""

ROOT_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
DEFAULT_ROOTS = (
    "/usr/local/Ascend/cann",
    "/usr/local/Ascend/ascend-toolkit/latest",
    "/usr/local/Ascend/nnrt/latest",
)
_HOME_ROOTS = ("Ascend/cann", "Ascend/ascend-toolkit/latest", "Ascend/nnrt/latest")

WITHOUT_NPU = "On a machine without an NPU start with `--acl-library emulator`."


@dataclass(frozen=True, slots=True)
class Installation:
    """The files to open, in order, all of one folder; `root` is the CANN root, None where the folder is in none."""

    files: tuple[Path, ...]
    root: Path | None

    @property
    def folder(self) -> Path:
        return self.files[0].parent


def find_installation(
    path: str | None, environ: Mapping[str, str], roots: Iterable[str] = DEFAULT_ROOTS
) -> Installation:
    """The installation to use.

    `path` is a library file, a folder with one, or a CANN root; None searches the environment's roots, LD_LIBRARY_PATH,
    and the places CANN installs to. Raises LibraryError that lists every place looked at.
    """
    if path:
        return _at_path(Path(path).expanduser())
    places = list(dict.fromkeys(_places(environ, roots)))
    for folder in places:
        files = _files_in(folder)
        if files:
            return Installation(files, _root_of(folder))
    looked = "".join(f"\n  {folder}" for folder in places)
    raise LibraryError(
        f"no AscendCL library ({LIBRARY} or {SPLIT_LIBRARIES[0]}) was found. Looked in:{looked}\n"
        "Where CANN is installed somewhere else, run `source <its root>/set_env.sh` before the start or give the "
        f"library with `--acl-library PATH`. {WITHOUT_NPU}"
    )


def environment_problems(installation: Installation, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What in `environ` does not fit the installation's root; () where all fits or the folder is in no CANN root.

    LD_LIBRARY_PATH counts as it was when the process started: the runtime opens its plugins through it.
    """
    root = installation.root
    if root is None:
        return ()
    problems = []
    folder = installation.folder.resolve()
    on_path = {Path(entry).resolve() for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry}
    if folder not in on_path:
        problems.append(f"{installation.folder} is not on LD_LIBRARY_PATH")
    if not environ.get("ASCEND_OPP_PATH"):
        problems.append("ASCEND_OPP_PATH is not set")
    for name in ROOT_VARIABLES:
        other = environ.get(name)
        if other and (Path(other) / "lib64").resolve() != folder:
            problems.append(f"{name} names another root, {other}")
    return tuple(problems)


def describe_problems(installation: Installation, problems: Iterable[str]) -> str:
    """One sentence with the line that repairs the environment; "" without problems."""
    listed = "; ".join(problems)
    if not listed or installation.root is None:
        return ""
    script = _set_env(installation.root)
    return f"the environment does not fit {installation.root}: {listed}. Before the start run: source {script}"


def _at_path(path: Path) -> Installation:
    if path.is_dir():
        for folder in (path, path / "lib64"):
            files = _files_in(folder)
            if files:
                return Installation(files, _root_of(folder))
        raise LibraryError(f"{path} holds no {LIBRARY} and no {SPLIT_LIBRARIES[0]}, nor does its lib64. {WITHOUT_NPU}")
    if not path.is_file():
        raise LibraryError(f"there is no AscendCL library at {path}. {WITHOUT_NPU}")
    path = path.absolute()
    others = tuple(file for file in _files_in(path.parent) if file.name in SPLIT_LIBRARIES and file != path)
    return Installation((path, *others), _root_of(path.parent))


def _places(environ: Mapping[str, str], roots: Iterable[str]) -> Iterable[Path]:
    for name in ROOT_VARIABLES:
        if environ.get(name):
            yield Path(environ[name]) / "lib64"
    for entry in environ.get("LD_LIBRARY_PATH", "").split(":"):
        if entry:
            yield Path(entry)
    for root in roots:
        yield Path(root) / "lib64"
    home = environ.get("HOME")
    if home:
        for root in _HOME_ROOTS:
            yield Path(home) / root / "lib64"


def _files_in(folder: Path) -> tuple[Path, ...]:
    folder = folder.absolute()
    return tuple(folder / name for name in (LIBRARY, *SPLIT_LIBRARIES) if (folder / name).is_file())


def _root_of(folder: Path) -> Path | None:
    """CANN keeps its libraries in `lib64` of the root (of `<root>/<arch>-linux` behind a link)."""
    root = folder.absolute().parent
    if folder.name == "lib64" or (root / "set_env.sh").is_file():
        return root
    return None


def _set_env(root: Path) -> Path:
    """The script is in the root; packages up to 8.3 also have one beside `latest`, one folder up."""
    for folder in (root, *root.parents[:2]):
        if (folder / "set_env.sh").is_file():
            return folder / "set_env.sh"
    return root / "set_env.sh"
