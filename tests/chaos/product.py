"""Which failures are tried: the product of calls, phases, run modes and codes, and what stands for it in short runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from aclserve_server.acl.abi import PROTOTYPES, Check
from aclserve_server.acl.errors import AclError
from aclserve_server.device import faults
from chaos.life import ALL_CODES, DEFERRED, REPRESENTATIVES, Loop, live

MODES = ("device", "host")
PHASES = ("start", "serve", "stop")
SINGLED_OUT = (100002, 100037, 100038, 107016, 145015, 200001, 200006, 207000)
"""Codes that single calls look for by number: a repeated start or stop, no AIPP, an attribute that is not there."""

NO_OBJECT = 500000
"""What a constructor's NULL is told as."""


@dataclass(frozen=True, order=True)
class Site:
    """A call (or a task that it submits) that a life makes `times` times in a phase."""

    mode: str
    phase: str
    function: str
    times: int
    task: bool = False

    @property
    def codes(self) -> tuple[int, ...]:
        """What it can be made to fail with: all codes of abi.json, or that there is no object."""
        return tuple(ALL_CODES) if PROTOTYPES[self.function].check is Check.STATUS else (NO_OBJECT,)


@dataclass(frozen=True, order=True)
class Case:
    """One failure: the `nth` call or task at a site."""

    site: Site
    code: int
    nth: int = 1

    def share(self, parts: int) -> int:
        """Which of so many parts it belongs to, however many calls another life makes."""
        site = self.site
        text = f"{site.mode} {site.phase} {site.function} {site.task} {self.code} {self.nth}"
        return crc32(text.encode()) % parts


def sites(loop: Loop, root: Path) -> list[Site]:
    """Every call of a life whose result can say that it failed, and every kind of task."""
    found = []
    for mode in MODES:
        quiet = live(loop, root, "", "", 1, mode=mode)
        assert quiet.started
        assert not quiet.refusals, quiet.refusals
        for phase in PHASES:
            for function, times in quiet.calls[phase].items():
                if PROTOTYPES[function].check in (Check.STATUS, Check.HANDLE):
                    found.append(Site(mode, phase, function, times))
                if function in DEFERRED and phase == "serve":
                    found.append(Site(mode, phase, function, times, task=True))
    return sorted(found)


def by_class(found: list[Site]) -> Iterator[Case]:
    """One code of each class at each site, at its first call and at a later one."""
    for site in found:
        codes = tuple(REPRESENTATIVES.values()) if len(site.codes) > 1 else site.codes
        for code in codes:
            yield Case(site, code)
            if site.times > 1:
                yield Case(site, code, (site.times + 1) // 2)


def behaviours(function: str) -> list[int]:
    """One code of each way that a function's failure can be treated; each other code is treated as one of them."""
    first: dict[object, int] = {}
    for code in ALL_CODES:
        error = AclError(function, code)
        told = faults.classify(error)
        ways = (faults.is_device_fatal(error), faults.is_not_accepted(error), faults.is_out_of_memory(error))
        first.setdefault((error.category, told.reason, told.retry_delay, *ways, code in SINGLED_OUT), code)
    return sorted({*first.values(), *SINGLED_OUT})


def by_behaviour(found: list[Site]) -> Iterator[Case]:
    """One code of each behaviour at each site: what the product of all codes and sites comes to."""
    for site in found:
        for code in behaviours(site.function) if len(site.codes) > 1 else site.codes:
            yield Case(site, code)


def sample(found: list[Site]) -> Iterator[Case]:
    """Each function in each phase once or twice: with a fatal code, and with one of another class in turn."""
    others = [code for category, code in REPRESENTATIVES.items() if code != 507901]
    seen: set[tuple[str, str, bool]] = set()
    for number, site in enumerate(sorted(found, key=lambda site: (site.function, site.phase, site.task, site.mode))):
        key = (site.function, site.phase, site.task)
        if key in seen and number % 3:
            continue
        seen.add(key)
        if len(site.codes) == 1:
            yield Case(site, NO_OBJECT)
        else:
            yield Case(site, others[number % len(others)] if number % 2 else 507901)


def everything(found: list[Site]) -> Iterator[Case]:
    """Every code at every site: hours."""
    for site in found:
        for code in site.codes:
            yield Case(site, code)
