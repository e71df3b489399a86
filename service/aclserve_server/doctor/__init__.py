"""`aclserve doctor`: looks at what a server runs on and how it is set up, and tells what is wrong with the fix for it.

Everything that is looked at is an argument: a file system's root, an environment, options, a library. Nothing is
changed; the device is opened in a process of its own, or asked of the server that has it open.
"""

from __future__ import annotations

from aclserve_server.doctor.checkup import Checkup
from aclserve_server.doctor.findings import Diagnosis, Finding, Level, Setting
from aclserve_server.doctor.host import Host

__all__ = ["Checkup", "Diagnosis", "Finding", "Host", "Level", "Setting"]
