"""The doctor of a server that runs. It starts no process, since none may be forked once AscendCL is loaded, and opens
nothing: the device is asked through the server's own threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from aclserve.errors import AclserveError
from aclserve_server.acl.errors import AclError
from aclserve_server.doctor.checkup import Checkup
from aclserve_server.doctor.findings import Diagnosis
from aclserve_server.doctor.probe import Outcome, loaded_libraries
from aclserve_server.engine.devices import DeviceDirectory, DeviceSnapshot

PATIENCE_S = 5.0
"""How long the device may take to answer; one that does not is a finding."""


class ServerDoctor:
    """Looks at one server, on its event loop and in a thread for files. Callers at the same time share one look."""

    def __init__(
        self, devices: DeviceDirectory, known: Outcome, prepare: Callable[[Callable[[int], Outcome]], Checkup]
    ) -> None:
        """`known` is what the server knows of its library; `prepare` makes the checkup with the device's answer."""
        self._devices = devices
        self._known = known
        self._prepare = prepare
        self._look: asyncio.Task[Diagnosis] | None = None

    async def diagnose(self) -> Diagnosis:
        """All checks, without what names this machine. A caller that leaves ends no other's look."""
        if self._look is None:
            self._look = asyncio.create_task(self._diagnose())
            self._look.add_done_callback(self._looked)
        return await asyncio.shield(self._look)

    def _looked(self, look: asyncio.Task[Diagnosis]) -> None:
        self._look = None
        if not look.cancelled():
            look.exception()  # who still waits gets it; nobody may

    async def _diagnose(self) -> Diagnosis:
        outcome = await self._ask()
        diagnosis = await asyncio.to_thread(lambda: self._prepare(lambda _device: outcome).run())
        return diagnosis.read(publicly=True)

    async def _ask(self) -> Outcome:
        known = dataclasses.replace(self._known, step="aclrtGetMemInfo")
        try:
            (snapshot,) = await asyncio.wait_for(self._devices.list_devices(), PATIENCE_S)
        except TimeoutError:
            return dataclasses.replace(known, ended="hung")
        except AclError as error:
            return dataclasses.replace(known, ended="failed", call=error.call, code=error.code, text=error.text)
        except AclserveError as error:
            return dataclasses.replace(known, ended="failed", text=error.message)
        return answered(known, snapshot)


def answered(known: Outcome, snapshot: DeviceSnapshot) -> Outcome:
    """What is known once the device has answered."""
    kinds = {use.attribute.name.removeprefix("ACL_").removesuffix("_MEM"): use for use in snapshot.memory}
    memory = tuple((kind, kinds[kind].free_bytes, kinds[kind].total_bytes) for kind in ("DDR", "HBM") if kind in kinds)
    return dataclasses.replace(
        known,
        step="done",
        loaded=tuple(loaded_libraries()),
        run_mode=snapshot.run_mode,
        count=1,
        soc_name=snapshot.soc_name,
        opened=True,
        memory=memory,
    )
