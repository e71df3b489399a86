"""All checks in order. One that fails itself is a finding, too: it keeps no other from being made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from aclserve_server.doctor.cann import check_cann, check_driver, locate
from aclserve_server.doctor.device import check_outcomes, reached
from aclserve_server.doctor.findings import Diagnosis, Finding, note, ok, warning
from aclserve_server.doctor.host import Host
from aclserve_server.doctor.models import check_models
from aclserve_server.doctor.nodes import check_nodes
from aclserve_server.doctor.ports import check_ports
from aclserve_server.doctor.probe import Outcome
from aclserve_server.doctor.resources import check_resources
from aclserve_server.doctor.settings import Options, ReadTls, check_options
from aclserve_server.engine.repository import ReadConfig, Repository

log = logging.getLogger(__name__)

MAX_FINDINGS = 1000


@dataclass(frozen=True)
class Checkup:
    """What is looked at: a machine, options, and how the device is asked. `read_config` and `read_tls` read files.

    `serving`: this is the running server's own process, whose ports are taken by itself.
    """

    version: str
    host: Host
    given: Options
    ask_device: Callable[[int], Outcome]
    read_config: ReadConfig
    read_tls: ReadTls
    serving: bool = False

    def run(self) -> Diagnosis:
        """Makes all checks. Reads files and asks the device: for a thread that may block."""
        findings = list(islice(self._findings(), MAX_FINDINGS))
        return Diagnosis(self.version, tuple(findings), self.given.settings())

    def _findings(self) -> Iterator[Finding]:
        host, given = self.host, self.given
        values, emulated = given.values, given.emulated
        yield from guarded("options", check_options(host, given, self.read_tls))
        if emulated:
            yield ok("cann.library", "the emulated device was chosen: driver, CANN and device nodes are not looked at")
        else:
            yield from guarded("driver", check_driver(host))
            yield from guarded("cann", check_cann(host, values["acl_library"]))
            yield from guarded(
                "nodes", check_nodes(host, given.devices, "--devices" if values["devices"] else "--device")
            )
        # A search that found nothing has said all there is to say.
        lost = not emulated and isinstance(locate(host, values["acl_library"]), str)
        outcomes = {} if lost else self._ask()
        yield from guarded("device", check_outcomes(host, outcomes, emulated=emulated))
        yield from guarded("resources", check_resources(host, values, emulated=emulated))
        if self.serving:
            yield ok("ports.port", "the server listens")
        else:
            yield from guarded("ports", check_ports(host, values, given.devices))
        if not any("--model-repository" in problem for problem in given.problems):
            yield from guarded("models", self._models(next((found.soc_name for found in outcomes.values()), "")))

    def _ask(self) -> dict[int, Outcome]:
        """What becomes of each device, up to one that the library does not come to, or hangs at."""
        outcomes: dict[int, Outcome] = {}
        for device in self.given.devices:
            outcome = outcomes[device] = self.ask_device(device)
            if not reached(outcome) or outcome.ended == "hung":
                break
        return outcomes

    def _models(self, soc_name: str) -> Iterator[Finding]:
        values = self.given.values
        root = Path(values["model_repository"])
        if not root.is_dir():
            yield note("models.repository", "the folder of --model-repository is not there", "make it, or name another")
            return
        repository = Repository(root, self.read_config, bool(values["strict_config"]))
        yield from check_models(self.host, repository, emulated=self.given.emulated, soc_name=soc_name)


def guarded(area: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; where looking fails by itself, what there was and a warning in place of the rest."""
    try:
        yield from findings
    except Exception:
        log.exception("the checks of %s failed", area)
        yield warning(f"{area}.unchecked", "these checks could not be made", "the log says why; please report it")
