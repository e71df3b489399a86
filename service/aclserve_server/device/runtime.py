"""The AscendCL runtime of this process."""

from __future__ import annotations

from contextlib import ExitStack
from ctypes import byref, c_int32, c_uint32
from typing import Literal

from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.acl.types import aclCANNPackageName, aclCANNPackageVersion, aclrtRunMode
from aclserve_server.device.owned import Children, Owned

RunMode = Literal["host", "device"]

_REPEAT_INITIALIZE = 100002
_REPEAT_FINALIZE = 100037


class Runtime(Owned):
    """AscendCL between aclInit and aclFinalize. Close it before the interpreter ends."""

    def __init__(self, library: Library, initialised: bool, run_mode: RunMode) -> None:
        super().__init__("AscendCL runtime")
        self.library = library
        self.run_mode: RunMode = run_mode
        self.children = Children("device")
        self._initialised = initialised

    @classmethod
    def open(cls, library: Library) -> Runtime:
        """Initialise AscendCL; a process where somebody else did so already is fine."""
        with ExitStack() as stack:
            initialised = _initialise(library)
            stack.callback(_finalise, library, initialised)
            mode = c_uint32()
            library.aclrtGetRunMode(byref(mode))
            runtime = cls(library, initialised, "host" if mode.value == aclrtRunMode.ACL_HOST else "device")
            stack.pop_all()
            return runtime

    def device_count(self) -> int:
        """How many devices this process may use; their ids are 0 to count - 1."""
        self._require_open()
        count = c_uint32()
        self.library.aclrtGetDeviceCount(byref(count))
        return count.value

    def soc_name(self) -> str:
        """The chip's name, such as Ascend310P3 (of device 0 where there are several)."""
        self._require_open()
        return self.library.aclrtGetSocName() or ""

    def acl_version(self) -> str:
        """The version of the ACL interface ("1.13.0" is CANN 8.1)."""
        self._require_open()
        major, minor, patch = c_int32(), c_int32(), c_int32()
        self.library.aclrtGetVersion(byref(major), byref(minor), byref(patch))
        return f"{major.value}.{minor.value}.{patch.value}"

    def cann_version(self) -> str:
        """The version of the CANN package, or "" before 8.1, which cannot tell."""
        self._require_open()
        if not self.library.has("aclsysGetCANNVersion"):
            return ""
        version = aclCANNPackageVersion()
        try:
            self.library.aclsysGetCANNVersion(aclCANNPackageName.ACL_PKG_NAME_CANN, byref(version))
        except AclError:  # an installation without version files; nothing depends on it
            return ""
        return bytes(version.version).decode("utf-8", "replace")

    def _release(self) -> None:
        with ExitStack() as stack:
            stack.callback(_finalise, self.library, self._initialised)
            stack.callback(self.children.close)


def _initialise(library: Library) -> bool:
    """Whether this call initialised AscendCL (rather than finding it so)."""
    try:
        library.aclInit(None)
    except AclError as error:
        if error.code != _REPEAT_INITIALIZE:
            raise
        return False
    return True


def _finalise(library: Library, initialised: bool) -> None:
    """Undo `_initialise`: where somebody else initialised, only take our reference back (8.5 and later count them)."""
    try:
        if initialised:
            library.aclFinalize()
        elif library.has("aclFinalizeReference"):
            library.aclFinalizeReference(None)
    except AclError as error:
        if error.code != _REPEAT_FINALIZE:
            raise
