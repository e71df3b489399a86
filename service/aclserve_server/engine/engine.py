"""The models of a server: their states, loading and unloading, and where an item goes.

All state belongs to the event loop; the device's part runs on the thread for calls that block.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from aclserve.errors import (
    AclserveError,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify
from aclserve_server.device.loading import ModelMemory
from aclserve_server.engine.contract import Sink, Ticket
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.items import Item
from aclserve_server.engine.loading import Prepared, RunOptions, Threads, load, prepare
from aclserve_server.engine.memory import MemoryManager, Pin
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.operations import Operations
from aclserve_server.engine.outcomes import Observer
from aclserve_server.engine.repository import Entry, ReadConfig, scan
from aclserve_server.engine.runner import Runner

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PRIVATE = re.compile(r"0x[0-9a-fA-F]+|(?:/[^\s/'\",;:]+){2,}/?")
_OM_MAGIC = b"IMOD"

Bake = Callable[[bytes, ModelConfig], bytes]
"""Compiles a configuration's gears into a model file, where the device takes uncompiled models."""


class State(Enum):
    """Where a model stands."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNAVAILABLE = "unavailable"


@dataclass(slots=True, eq=False)
class Record:
    """One version of a model. `file` is None for an upload, which is gone when it is unloaded."""

    name: str
    version: int
    config: ModelConfig
    file: Path | None
    state: State = State.UNLOADED
    reason: str = ""
    synchronous: bool = False
    prepared: Prepared | None = None
    runner: Runner | None = None
    pins: list[Pin] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load: `synchronous` None leaves it to the configuration; pins are the caller's work and weight memory."""

    synchronous: bool | None = None
    work: Pin | None = None
    weight: Pin | None = None


class Engine:
    """Models by name and version. Methods belong to the event loop."""

    def __init__(
        self,
        threads: Threads,
        memory: MemoryManager,
        options: RunOptions,
        *,
        root: Path,
        read_config: ReadConfig,
        bake: Bake | None,
        observe: Observer,
        changed: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`bake` is for the emulated device only, None for an NPU. `changed(name)` tells of changes of readiness."""
        self._threads = threads
        self._memory = memory
        self._options = options
        self._root = root
        self._read_config = read_config
        self._bake = bake
        self._observe = observe
        self._changed = changed
        self._hazards = Hazards()
        self.operations = Operations()  # loads and unloads on behalf of clients
        self._records: dict[tuple[str, int], Record] = {}
        self._latest: dict[str, Record] = {}

    def submit(self, item: Item, sink: Sink) -> Ticket:
        """Hands an item to its model; its one answer reaches `sink`. Raises what is wrong instead of answering."""
        record = self._records.get((item.model, item.version)) if item.version else self._latest.get(item.model)
        runner = None if record is None else record.runner
        if runner is None:
            raise self._absent(item.model, item.version)
        return runner.submit(item, sink)

    def records(self) -> list[Record]:
        """All versions of all models, by name and version."""
        return [self._records[key] for key in sorted(self._records)]

    def find(self, name: str, version: int) -> Record:
        """A model that is ready, the highest version for 0; raises why there is none."""
        record = self._records.get((name, version)) if version else self._latest.get(name)
        if record is None or record.state is not State.READY:
            raise self._absent(name, version)
        return record

    def is_ready(self, name: str) -> bool:
        """Whether some version of a model serves."""
        return name in self._latest

    def queue_rows(self, name: str) -> int:
        """Rows that wait for the version of a model that serves; any thread may ask."""
        record = self._latest.get(name)
        runner = None if record is None else record.runner
        return 0 if runner is None else runner.queue_rows

    def hurry(self) -> None:
        """Lets no item wait for company any more: the server stops."""
        for record in self._records.values():
            if record.runner is not None:
                record.runner.hurry()

    async def load_repository(self) -> None:
        """Reads the repository and loads the highest version of every model; a failure is the model's alone."""
        for entry in scan(self._root, self._read_config):
            self._list(entry)
        for name in sorted({name for name, _ in self._records}):
            record = self._highest(name)
            if record.state is State.UNLOADED:
                try:
                    await self._load(record, None, LoadOptions())
                except AclserveError as error:
                    log.warning("model %s is not served: %s", name, error)

    async def load(self, name: str, version: int, options: LoadOptions) -> Record:
        """Loads a model of the repository (the highest version for 0), after looking at the disk again."""
        entries = [entry for entry in scan(self._root, self._read_config) if entry.name == name]
        self._forget(name, {entry.version for entry in entries})
        for entry in entries:
            self._list(entry)
        record = self._records.get((name, version)) if version else self._highest(name)
        if record is None:
            raise self._absent(name, version)
        return await self._load(record, None, options)

    async def load_upload(self, name: str, model: bytes, options: LoadOptions) -> Record:
        """Loads a model from bytes and serves it as version 1 of `name`."""
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"{name[:200]!r} cannot be a model's name; use 1 to 128 letters, digits, '.', '_' and '-'",
                reason="MODEL_NAME_INVALID",
            )
        if any(known == name for known, _ in self._records):
            raise AlreadyExists(
                f"there is a model {name!r} already; choose another name", reason="MODEL_ALREADY_LOADED"
            )
        record = self._records[name, 1] = Record(name, 1, ModelConfig(name=name), None)
        try:
            return await self._load(record, model, options)
        except BaseException:
            self._records.pop((name, 1), None)
            raise

    async def query_size(self, source: str | bytes, version: int = 0) -> tuple[int, int]:
        """Work and weight bytes of a model: of the repository by name, or of an upload's bytes."""
        if isinstance(source, bytes):
            model: Path | bytes = source
            self._check_kind(source[:4])
        else:
            entries = [entry for entry in scan(self._root, self._read_config) if entry.name == source]
            wanted = [entry for entry in entries if version in (0, entry.version)]
            if not wanted or wanted[-1].file is None:
                raise self._absent(source, version)
            model = self._content(wanted[-1].file, wanted[-1].config)
        try:
            return await self._threads.blocking.run(lambda: self._threads.device.query_model_size(model))
        except AclError as error:
            raise _model_error(error) from error

    async def unload(self, name: str, version: int) -> None:
        """Unloads a model: it takes no more items, answers those it has, and frees what it held."""
        await self._unload(self.find(name, version))

    async def close(self) -> None:
        """Unloads everything, after the loads and unloads under way."""
        await self.operations.drain()
        for record in self.records():
            if record.state is State.READY:
                await self._unload(record)

    async def drain(self) -> None:
        """Returns when every admitted item of every model is answered; no new ones are taken meanwhile."""
        for record in self.records():
            if record.runner is not None:
                await record.runner.drain()

    def _forget(self, name: str, versions: set[int]) -> None:
        """Drops the records of a model whose versions are not on the disk any more, but for those in use."""
        for key, record in list(self._records.items()):
            if key[0] == name and key[1] not in versions and record.state in (State.UNLOADED, State.UNAVAILABLE):
                del self._records[key]

    def _list(self, entry: Entry) -> None:
        key = (entry.name, entry.version)
        known = self._records.get(key)
        if known is not None and known.state not in (State.UNLOADED, State.UNAVAILABLE):
            return
        record = self._records[key] = Record(entry.name, entry.version, entry.config, entry.file)
        if entry.config.unknown:
            log.warning(
                "model %s: config.pbtxt has fields without effect: %s", entry.name, ", ".join(entry.config.unknown)
            )
        if entry.problem:
            record.state, record.reason = State.UNAVAILABLE, entry.problem

    def _highest(self, name: str) -> Record:
        versions = [record for (known, _), record in self._records.items() if known == name]
        if not versions:
            raise self._absent(name, 0)
        usable = [record for record in versions if record.file is not None] or versions
        return max(usable, key=lambda record: record.version)

    async def _load(self, record: Record, upload: bytes | None, options: LoadOptions) -> Record:
        if record.state in (State.READY, State.LOADING, State.UNLOADING):
            raise AlreadyExists(
                f"model {record.name!r} version {record.version} is {record.state.value}; unload it first",
                reason="MODEL_ALREADY_LOADED",
            )
        if record.file is None and upload is None:
            raise self._absent(record.name, record.version)
        asked = options.synchronous
        record.synchronous = asked if asked is not None else record.config.execution_mode == "sync"
        record.state, record.reason = State.LOADING, ""
        try:
            await self._bring_up(record, upload, options)
        except BaseException as error:
            record.state = State.UNAVAILABLE
            record.reason = error.message if isinstance(error, AclserveError) else "loading was interrupted"
            raise
        record.state = State.READY
        record.pins = [pin for pin in (options.work, options.weight) if pin is not None]
        self._elect(record.name)
        log.info("model %s version %d is ready", record.name, record.version)
        return record

    async def _bring_up(self, record: Record, upload: bytes | None, options: LoadOptions) -> None:
        threads = self._threads
        try:
            prepared = await threads.blocking.run(
                lambda: self._prepare(record, upload, options), discard=lambda unwanted: unwanted.close()
            )
        except AclError as error:
            raise _model_error(error) from error
        try:
            runner = await prepared.start(record.name, threads, self._options, self._hazards, self._observe)
        except BaseException:
            await threads.blocking.run(prepared.close)
            raise
        record.prepared, record.runner = prepared, runner

    def _prepare(self, record: Record, upload: bytes | None, options: LoadOptions) -> Prepared:
        """On the blocking thread: load, decide, allocate."""
        device = self._threads.device
        if upload is not None:
            self._check_kind(upload[:4])
            source: Path | bytes = upload
        else:
            assert record.file is not None
            source = self._content(record.file, record.config)
        memory = None
        if options.work is not None or options.weight is not None:
            memory = ModelMemory(
                options.work.buffer if options.work else None, options.weight.buffer if options.weight else None
            )
        models, weights = load(device, source, memory, 1 if memory is not None else record.config.instance_count)
        try:
            return prepare(device, models, weights, record.config, record.synchronous, self._options, self._memory.pin)
        except BaseException:
            for model in models:
                model.close()
            if weights is not None:
                weights.close()
            raise

    def _content(self, file: Path, config: ModelConfig) -> Path | bytes:
        """What to load: the file, or its bytes with the configuration's gears compiled in."""
        with file.open("rb") as stream:
            self._check_kind(stream.read(4))
        if self._bake is not None and config.has_gears:
            return self._bake(file.read_bytes(), config)
        return file

    def _check_kind(self, magic: bytes) -> None:
        """Tells what an NPU cannot load, before AscendCL answers with a bare number; the emulated device tells
        itself.
        """
        if self._bake is None and magic != _OM_MAGIC:
            raise InvalidArgument(
                "this is not an offline model (OM), and an NPU runs nothing else; convert an ONNX file with "
                "`atc --framework=5 --model=model.onnx --output=model --soc_version=<chip>`",
                reason="MODEL_INVALID",
            )

    async def _unload(self, record: Record) -> None:
        prepared, runner = record.prepared, record.runner
        assert prepared is not None
        assert runner is not None
        record.state = State.UNLOADING
        self._elect(record.name)
        await runner.drain()

        def free() -> None:
            runner.close()
            prepared.close()

        record.prepared = record.runner = None
        try:
            await self._threads.blocking.run(free)
        finally:
            pins, record.pins = record.pins, []
            for pin in pins:
                pin.release()
            record.state = State.UNLOADED
            if record.file is None:
                del self._records[record.name, record.version]
        log.info("model %s version %d is unloaded", record.name, record.version)

    def _elect(self, name: str) -> None:
        """Finds the version that serves where none is named."""
        ready = [r for (known, _), r in self._records.items() if known == name and r.state is State.READY]
        if ready:
            self._latest[name] = max(ready, key=lambda record: record.version)
        else:
            self._latest.pop(name, None)
        self._changed(name)

    def _absent(self, name: str, version: int) -> AclserveError:
        """Why a model cannot serve."""
        known = [record for (other, _), record in sorted(self._records.items()) if other == name]
        which = f"model {name[:200]!r}" + (f" version {version}" if version else "")
        if not known:
            names = ", ".join(sorted(self._latest)[:20]) or "none"
            return NotFound(f"there is no {which}; ready are: {names}", reason="MODEL_NOT_FOUND")
        if version and all(record.version != version for record in known):
            versions = ", ".join(str(record.version) for record in known)
            return NotFound(f"there is no {which}; there are versions {versions}", reason="MODEL_NOT_FOUND")
        record = next((r for r in known if r.version == version), known[-1])
        because = f": {record.reason}" if record.reason else "; load it first"
        return FailedPrecondition(f"{which} is {record.state.value}{because}", reason="MODEL_NOT_READY")


def _model_error(error: AclError) -> AclserveError:
    """A failed load, told with the runtime's own reason where that names nothing private."""
    told = classify(error)
    text = _PRIVATE.sub("...", error.text).strip()
    if text and isinstance(told, InvalidArgument):
        return InvalidArgument(f"{told.message}: {text[:500]}", reason=told.reason, metadata=told.metadata)
    return told
