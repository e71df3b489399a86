"""What changes which versions of a model serve: loading, loading anew, unloading.

A reload never takes away what serves: the new versions are brought up beside the old ones, then all take their places
at once, and only then the old ones answer what they have and are unloaded. If one of the new fails, all old ones stay.

Whoever calls these methods holds the model's lock; see `Engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from aclserve.errors import AclserveError, AlreadyExists, FailedPrecondition
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify
from aclserve_server.engine.loader import Content, Loader
from aclserve_server.engine.records import LoadOptions, Record, State
from aclserve_server.engine.registry import Registry, record_of
from aclserve_server.engine.repository import Entry

log = logging.getLogger(__name__)

Wanted = list[tuple[Record, Content | None]]
"""Versions of one model to bring up, and the bytes of those that are not on disk."""

UNLOADED = "unloaded"
"""The reason of a version that was unloaded on purpose."""


class Changes:
    """The changes of one engine. Methods belong to the event loop."""

    def __init__(self, registry: Registry, loader: Loader) -> None:
        self._registry = registry
        self._loader = loader

    async def load(self, record: Record, content: Content | None, options: LoadOptions) -> Record:
        """Loads a version that is listed and not loaded."""
        check_idle(record)
        record.state, record.reason, record.wanted = State.LOADING, "", True
        if record.origin != "upload":
            self._registry.elect(record.name)
        try:
            await self._loader.bring_up(record, content, options)
        except BaseException as error:
            record.state, record.reason = State.UNAVAILABLE, _reason(error)
            raise
        record.state = State.READY
        record.pins = [pin for pin in (options.work, options.weight) if pin is not None]
        self._registry.elect(record.name)
        log.info("model %s version %d is ready", record.name, record.version)
        return record

    async def bring(self, entries: Collection[Entry], options: LoadOptions, *, changed_only: bool = False) -> None:
        """Loads the versions of one model that its policy serves, or loads them anew, and unloads its others.

        `changed_only` leaves those as they are whose files are. Where something serves, a problem of one version leaves
        everything as it was; where nothing does, the others are loaded. Raises the first problem.
        """
        name = next(iter(entries)).name
        serving = self._registry.serving(name)
        problem = next((entry.problem for entry in entries if entry.problem), "")
        error = FailedPrecondition(f"model {name!r} cannot be loaded: {problem}", reason="MODEL_NOT_READY")
        if problem:
            for record in self._registry.of(name):
                record.wanted = True
            _note_failure(serving, problem)
        if problem and serving:
            raise error
        stamps = {record.version: record.stamp for record in serving} if changed_only else {}
        kept = {entry.version for entry in entries if stamps.get(entry.version) == entry.stamp}
        fresh: Wanted = [(record_of(e), None) for e in entries if not e.problem and e.version not in kept]
        await self.replace(name, fresh, options, kept)
        if problem:
            raise error

    async def replace(self, name: str, wanted: Wanted, options: LoadOptions, kept: Collection[int] = ()) -> None:
        """Brings versions up and lets them serve; what else serves and is not to be kept is unloaded.

        Raises the first failure.
        """
        serving = {record.version: record for record in self._registry.serving(name)}
        if not serving:
            await self._load_each(wanted, options)
            return
        fresh: list[Record] = []
        for record, content in wanted:
            try:
                record.wanted = True
                await self._loader.bring_up(record, content, options)
                fresh.append(record)
            except BaseException as error:
                for done in fresh:
                    await self._take_down(done)
                _note_failure(serving.values(), _reason(error))
                if record.version not in serving:
                    record.state, record.reason = State.UNAVAILABLE, _reason(error)
                    self._registry.put(record)
                raise
        await self._switch(name, fresh, serving, kept)

    async def unload(self, record: Record) -> None:
        """Unloads a version that is ready; raises what goes wrong at that, and it is unloaded all the same."""
        record.state, record.wanted = State.UNLOADING, False
        self._registry.elect(record.name)
        try:
            await self._loader.take_down(record)
        except AclError as error:
            raise classify(error) from error
        finally:
            self._end(record)

    async def retire(self, records: Collection[Record]) -> None:
        """Unloads those that are ready, which stop serving together; what goes wrong is logged."""
        ready = [record for record in records if record.state is State.READY]
        for record in records:
            record.wanted = False
        await self._retire_all(ready)

    async def _load_each(self, wanted: Wanted, options: LoadOptions) -> None:
        """Each for itself: the failure of one keeps no other from serving."""
        failure: AclserveError | None = None
        for record, content in wanted:
            self._registry.put(record)
            try:
                await self.load(record, content, options)
            except AclserveError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _switch(self, name: str, fresh: list[Record], serving: dict[int, Record], kept: Collection[int]) -> None:
        """The one moment in which the new take the places of the old."""
        for record in fresh:
            record.state = State.READY
            self._registry.put(record)
        stay = {version for version in serving if version in kept}
        for version in stay:
            serving[version].reason = ""
        await self._retire_all([record for version, record in serving.items() if version not in stay], name)
        for record in fresh:
            log.info("model %s version %d is ready, loaded anew", record.name, record.version)

    async def _retire_all(self, records: list[Record], name: str = "") -> None:
        for record in records:
            record.state, record.wanted = State.UNLOADING, False
        for changed in {record.name for record in records} | ({name} if name else set()):
            self._registry.elect(changed)
        for record in records:
            await self._take_down(record)

    async def _take_down(self, record: Record) -> None:
        """Frees what a record held; what goes wrong is logged, since it concerns nobody's call."""
        try:
            await self._loader.take_down(record)
        except (AclError, AclserveError) as error:
            log.warning("model %s version %d: unloading went wrong: %s", record.name, record.version, error)
        finally:
            self._end(record)

    def _end(self, record: Record) -> None:
        record.state, record.reason = State.UNLOADED, UNLOADED
        if record.origin != "repository":
            self._registry.drop(record)
        log.info("model %s version %d is unloaded", record.name, record.version)


def check_idle(record: Record | None) -> None:
    """Raises `AlreadyExists`, reason MODEL_ALREADY_LOADED, for a version that is loaded, or on its way."""
    if record is not None and record.state in (State.READY, State.LOADING, State.UNLOADING):
        raise AlreadyExists(
            f"model {record.name!r} version {record.version} is {record.state.value}; unload it first",
            reason="MODEL_ALREADY_LOADED",
        )


def _note_failure(serving: Iterable[Record], why: str) -> None:
    for record in serving:
        record.reason = f"it could not be loaded anew: {why}"


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, AclserveError) else "loading was interrupted"
