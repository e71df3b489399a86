"""The models of a server: where an item goes, and who may load and unload what.

All state belongs to the event loop; the disk is read and the device's part runs on the thread for calls that block.
What changes a model holds the model's lock, so that loads, reloads and unloads of one name come one after the other.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from aclserve.errors import AclserveError, AlreadyExists, FailedPrecondition, InvalidArgument
from aclserve_server.engine.changes import Changes, Wanted, check_idle
from aclserve_server.engine.contract import Sink, Ticket
from aclserve_server.engine.items import Item
from aclserve_server.engine.loader import LOAD_PATIENCE, Bake, Content, Leaked, Loader
from aclserve_server.engine.loading import RunOptions, Threads
from aclserve_server.engine.memory import MemoryManager, UploadPin
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.operations import Operations
from aclserve_server.engine.outcomes import Observe, Observer
from aclserve_server.engine.records import ControlMode, LoadOptions, Record, State
from aclserve_server.engine.regions import Regions
from aclserve_server.engine.registry import Registry
from aclserve_server.engine.repository import Entry, ReadConfig, Repository, given_files

__all__ = ["Bake", "ControlMode", "Engine", "LoadOptions", "Record", "State"]

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")

ALL_MODELS = "*"
"""In the list of models to load at the start: all there are."""


class Engine:
    """Models by name and version. Methods belong to the event loop."""

    def __init__(
        self,
        threads: Threads,
        memory: MemoryManager,
        regions: Regions,
        options: RunOptions,
        *,
        root: Path,
        read_config: ReadConfig,
        bake: Bake | None,
        observe: Observe,
        changed: Callable[[str], None] = lambda name: None,
        leaked: Leaked = lambda name, size_bytes: None,
        control_mode: ControlMode = "none",
        load_models: tuple[str, ...] = (),
        strict_config: bool = False,
    ) -> None:
        """`bake` is for the emulated device only, None for an NPU. `changed(name)` tells of changes of readiness.

        `load_models` are loaded at the start in the control mode "explicit"; "*" stands for all. `strict_config` takes
        a field without a meaning for a mistake.
        """
        self._threads = threads
        self._observe = observe
        self._load_models = load_models
        self._repository = Repository(root, read_config, strict_config)
        pins = memory.pin, regions.pin
        loader = Loader(threads, options, pins, self._repository, bake=bake, observe=observe, leaked=leaked)
        self._loader = loader
        self._registry = Registry(changed)
        self._changes = Changes(self._registry, loader)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.control_mode: ControlMode = control_mode
        self.operations = Operations()  # loads and unloads on behalf of clients

    # ---- items

    def submit(self, item: Item, sink: Sink) -> Ticket:
        """Hands an item to its model; its one answer reaches `sink`. Raises what is wrong instead of answering."""
        record = self._registry.get(item.model, item.version)
        runner = None if record is None or record.state is not State.READY else record.runner
        if runner is None:
            error = self._registry.absent(item.model, item.version)
            self._observe("", 0).answered(error.code_name)
            raise error
        return runner.submit(item, sink)

    def company_rows(self, model: str, version: int) -> int:
        """How many rows alike items of one message may bring to a model together; 0: each goes alone."""
        record = self._registry.get(model, version)
        runner = None if record is None else record.runner
        return 0 if runner is None else runner.company_rows

    def observer(self, model: str, version: int) -> Observer:
        """Where an item is counted that never reaches its model: beside the model's own, or nobody's."""
        record = self._registry.get(model, version)
        runner = None if record is None else record.runner
        return self._observe("", 0) if runner is None else runner.account.observer

    def hurry(self) -> None:
        """Lets no item wait for company any more: the server stops."""
        for record in self.records():
            if record.runner is not None:
                record.runner.hurry()

    def lose(self, error: AclserveError) -> None:
        """The device is lost: every item there is gets `error`, whether it waits or runs, and every later one."""
        self._loader.lose(error)

    async def drain(self) -> None:
        """Returns when every admitted item of every model is answered; no new ones are taken meanwhile."""
        for record in self.records():
            if record.runner is not None:
                await record.runner.drain()

    # ---- what there is

    def records(self) -> list[Record]:
        """All versions of all models, by name and version."""
        return self._registry.all()

    def find(self, name: str, version: int) -> Record:
        """A model that is ready, the highest version for 0; raises why there is none."""
        return self._registry.find(name, version)

    def is_ready(self, name: str) -> bool:
        """Whether some version of a model serves."""
        return self._registry.is_ready(name)

    @property
    def all_ready(self) -> bool:
        """Whether every model serves that somebody asked for and nobody unloaded."""
        return self._registry.all_ready

    def queue_rows(self, name: str) -> int:
        """Rows that wait for the version of a model that serves; any thread may ask."""
        record = self._registry.get(name, 0)
        runner = None if record is None else record.runner
        return 0 if runner is None else runner.queue_rows

    async def scan(self, only: str | None = None, config: ModelConfig | None = None) -> list[Entry]:
        """What the repository holds, of all models or of one; `config` is used instead of that one's own."""

        def look() -> list[Entry]:
            self._threads.blocking.be_patient(LOAD_PATIENCE)  # disks may be slow
            return self._repository.scan(only, config)

        return await self._threads.blocking.run(look)

    async def refresh(self) -> None:
        """Looks at the repository, lists what is new there and forgets what is gone; loads and unloads nothing."""
        self._note(await self.scan(), None)

    async def query_size(self, source: str | Content, version: int = 0) -> tuple[int, int]:
        """Work and weight bytes of a model: of the repository by name, or of an upload's bytes."""
        if not isinstance(source, str):
            return await self._loader.query_size(source, ModelConfig(name=""))
        entries = await self.scan(source)
        wanted = [entry for entry in entries if version in (0, entry.version) and (version or entry.chosen)]
        if not wanted or wanted[-1].file is None:
            raise self._registry.absent(source, version)
        return await self._loader.query_size(wanted[-1].file, wanted[-1].config)

    # ---- loading

    async def load_repository(self) -> list[Entry]:
        """Reads the repository and loads what the control mode says; a failure is the model's alone.

        Returns what it found. Raises `ValueError` for a model that was to be loaded and is not there.
        """
        found = await self.scan()
        names = sorted({entry.name for entry in found})
        asked = set(self._load_models)
        for name in sorted(asked - {ALL_MODELS, *names}):
            there = ", ".join(names[:20]) or "none"
            raise ValueError(f"--load-model: there is no model {name!r} in the repository; there are: {there}")
        self._note(found, None)
        for name in names:
            if self.control_mode == "explicit" and not asked & {ALL_MODELS, name}:
                continue
            async with self._lock(name):
                try:
                    await self._changes.bring([e for e in found if e.name == name and e.chosen], LoadOptions())
                except AclserveError as error:
                    log.warning("model %s is not served: %s", name, error.message)
        return found

    async def load(self, name: str, version: int, options: LoadOptions) -> Record:
        """Loads one version of a model of the repository that is not loaded (0: the highest that its policy serves),
        after looking at the disk again.
        """
        self._refuse_polled(name)
        for known in self._registry.of(name):
            if version == known.version or (not version and known.state is not State.READY):
                check_idle(known)  # at once, instead of waiting for what is under way
        async with self._lock(name):
            entries = await self.scan(name, options.config)
            self._note(entries, name)
            at = version or max((e.version for e in entries if e.chosen and not e.problem), default=0)
            record = self._registry.get(name, at)
            check_idle(record)
            if record is None or record.file is None:
                raise self._registry.absent(name, version)
            return await self._changes.load(record, None, options)

    async def load_upload(self, name: str, upload: UploadPin, options: LoadOptions) -> Record:
        """Loads a model from a client's upload and serves it as version 1 of `name`. Takes over the pin."""
        pin: UploadPin | None = upload
        try:
            _check_name(name)
            if self._registry.of(name):
                raise AlreadyExists(
                    f"there is a model {name!r} already; choose another name", reason="MODEL_ALREADY_LOADED"
                )
            record = Record(name, 1, ModelConfig(name=name), None, origin="upload")
            self._registry.put(record)
            try:
                await self._changes.load(record, upload.data, options)
            except BaseException:
                self._registry.drop(record)
                raise
            if self._threads.device.run_mode == "host":  # where the device may read it until it is unloaded
                record.kept, pin = upload, None
            return record
        finally:
            if pin is not None:
                pin.release()

    async def load_all(self, name: str, options: LoadOptions) -> None:
        """Loads the versions of a model that its policy serves, anew if they are loaded. Raises the first failure.

        Only in the control mode "explicit": `FailedPrecondition`, reason MODEL_CONTROL_REFUSED, in others.
        """
        self._refuse_unless_explicit()
        _check_name(name)
        if options.files and options.config is None:
            raise InvalidArgument(
                "files of a model were given without its configuration; give both", reason="MODEL_FILE_INVALID"
            )
        async with self._lock(name):
            self._refuse_upload(name)
            if options.files:
                assert options.config is not None
                given = given_files(name, options.config, options.files)
                records = [Record(name, version, options.config, None, origin="given") for version in given]
                wanted: Wanted = [(record, given[record.version]) for record in records]
                await self._changes.replace(name, wanted, options)
                return
            entries = await self.scan(name, options.config)
            self._note(entries, name)
            if not entries:
                raise self._registry.absent(name, 0)
            await self._changes.bring([entry for entry in entries if entry.chosen], options)

    async def unload(self, name: str, version: int) -> None:
        """Unloads one version: it takes no more items, answers those it has, and frees what it held."""
        if self._registry.find(name, version).origin == "repository":
            self._refuse_polled(name)
        async with self._lock(name):
            await self._changes.unload(self._registry.find(name, version))

    async def unload_all(self, name: str) -> None:
        """Unloads all versions of a model. Only in the control mode "explicit", as `load_all`."""
        self._refuse_unless_explicit()
        async with self._lock(name):
            records = self._registry.of(name)
            if not records:
                raise self._registry.absent(name, 0)
            await self._changes.retire(records)

    async def follow(self, name: str, entries: list[Entry]) -> None:
        """Makes a model what the repository says of it: loads what is new or changed, unloads what is gone.

        What cannot be used takes nothing away. Raises the first failure.
        """
        async with self._lock(name):
            self._refuse_upload(name)
            if any(entry.version for entry in entries):
                self._note(entries, name)
                await self._changes.bring([e for e in entries if e.chosen], LoadOptions(), changed_only=True)
            else:
                await self._changes.retire(self._registry.of(name))
            self._note(entries, name)

    async def close(self) -> None:
        """Unloads everything, after the loads and unloads under way."""
        await self.operations.drain()
        await self._changes.retire(self.records())

    def _note(self, entries: list[Entry], name: str | None) -> None:
        """Lists what was found of one model, or of all, and forgets what is gone."""
        self._registry.forget({(entry.name, entry.version) for entry in entries}, name)
        for entry in entries:
            self._registry.note(entry)

    def _lock(self, name: str) -> asyncio.Lock:
        """Whoever changes a model holds it; kept as long as somebody holds it or waits for it."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _refuse_polled(self, name: str) -> None:
        if self.control_mode == "poll":
            raise FailedPrecondition(
                f"model {name[:200]!r} follows the repository, which the server looks at by itself; change it there, "
                "or start the server with --model-control-mode explicit",
                reason="MODEL_CONTROL_REFUSED",
            )

    def _refuse_unless_explicit(self) -> None:
        if self.control_mode != "explicit":
            raise FailedPrecondition(
                f"explicit model load / unload is not allowed in the control mode {self.control_mode!r}; start the "
                "server with --model-control-mode explicit",
                reason="MODEL_CONTROL_REFUSED",
            )

    def _refuse_upload(self, name: str) -> None:
        if any(record.origin == "upload" for record in self._registry.of(name)):
            raise AlreadyExists(
                f"model {name!r} was made of an upload; unload it first, or choose another name",
                reason="MODEL_ALREADY_LOADED",
            )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:200]!r} cannot be a model's name; use 1 to 128 letters, digits, '.', '_' and '-'",
            reason="MODEL_NAME_INVALID",
        )
