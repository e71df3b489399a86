"""Brings one version of a model up and takes it down again: the device's part of a load, then the runner's.

Nothing here knows of other models; `Engine` decides what is loaded, and when a version begins to serve.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from aclserve.errors import AclserveError, FailedPrecondition, InvalidArgument
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify
from aclserve_server.device.loading import ModelMemory, ModelSource
from aclserve_server.engine.contract import PinFunction, RegionPinFunction
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.items import Item
from aclserve_server.engine.labels import read_labels
from aclserve_server.engine.loading import Prepared, RunOptions, Threads, load, prepare
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.outcomes import Account, Observe
from aclserve_server.engine.records import LoadOptions, Record
from aclserve_server.engine.repository import Repository
from aclserve_server.engine.room import free_bytes, missing_bytes
from aclserve_server.engine.runner import Runner
from aclserve_server.engine.warmup import Unobserved, make_items, warm_up

log = logging.getLogger(__name__)

_PRIVATE = re.compile(r"0x[0-9a-fA-F]+|(?:/[^\s/'\",;:]+){2,}/?")
_OM_MAGIC = b"IMOD"

Content = bytes | memoryview

LOAD_PATIENCE = 10
"""How many times as long as an execution a load or an unload may take before the device counts as hung."""

Bake = Callable[[Callable[[], bytes], ModelConfig], bytes | None]
"""Compiles a configuration's gears into a model file, where the device takes uncompiled models: gets what reads the
file, and returns None where there is nothing to compile.
"""

Leaked = Callable[[str, int], None]
"""Told of a model that gave back fewer bytes than it took, and how many are missing."""


class Loader:
    """Loads for one engine. Methods belong to the event loop."""

    def __init__(
        self,
        threads: Threads,
        options: RunOptions,
        pins: tuple[PinFunction, RegionPinFunction],
        repository: Repository,
        *,
        bake: Bake | None,
        observe: Observe,
        leaked: Leaked,
    ) -> None:
        """`bake` is for the emulated device only, None for an NPU."""
        self._threads = threads
        self._options = options
        self._pins = pins
        self._repository = repository
        self._bake = bake
        self._observe = observe
        self._leaked = leaked
        self._hazards = Hazards()
        self._runners: set[Runner] = set()
        self._lost: AclserveError | None = None

    async def bring_up(self, record: Record, content: Content | None, options: LoadOptions) -> None:
        """Loads a record's file, or `content`, makes its runner and warms it up; on failure nothing is left of it."""
        threads = self._threads
        config = record.config
        if config.notes:
            log.warning(
                "model %s: its configuration asks for more than there is: %s", record.name, "; ".join(config.notes)
            )
        asked = options.synchronous
        record.synchronous = asked if asked is not None else config.execution_mode == "sync"
        try:
            prepared, items = await threads.blocking.run(
                lambda: self._prepare(record, content, options), discard=lambda unwanted: unwanted[0].close()
            )
        except AclError as error:
            raise _model_error(error) from error
        except OSError as error:
            raise _unreadable(error) from error
        try:
            runner = await prepared.start(record.name, threads, self._options, self._hazards, Unobserved())
        except BaseException:
            await threads.blocking.run(prepared.close, cleanup=True)
            raise
        self._enlist(runner)
        runner.version = record.version
        record.prepared, record.runner = prepared, runner
        try:
            await warm_up(runner, items, len(prepared.instances))
        except BaseException:
            await self._free(record)
            raise
        runner.account = Account(self._observe(record.name, record.version))

    def lose(self, error: AclserveError) -> None:
        """The device is lost: all items there are get `error`, and all later ones."""
        self._lost = error
        for runner in self._runners:
            runner.lose(error)
        for runner in list(self._runners):
            runner.flush()

    def _enlist(self, runner: Runner) -> None:
        """Keeps a runner until it is taken down, also before it serves and when it serves no more."""
        self._runners.add(runner)
        if self._lost is not None:
            runner.lose(self._lost)
            runner.flush()

    async def take_down(self, record: Record) -> None:
        """Answers the items a record has, takes no more, and frees what it held. What fails there is raised last."""
        try:
            await self._free(record)
        finally:
            pins, record.pins = record.pins, []
            for pin in pins:
                pin.release()
            kept, record.kept = record.kept, None
            if kept is not None:
                kept.release()

    async def query_size(self, source: Path | Content, config: ModelConfig) -> tuple[int, int]:
        """Work and weight bytes of a model file or of a model's bytes."""

        def query() -> tuple[int, int]:
            self._threads.blocking.be_patient(LOAD_PATIENCE)
            self._check_kind(source)
            return self._threads.device.query_model_size(self._baked(source, config))

        try:
            return await self._threads.blocking.run(query)
        except AclError as error:
            raise _model_error(error) from error
        except OSError as error:
            raise _unreadable(error) from error

    async def _free(self, record: Record) -> None:
        prepared, runner = record.prepared, record.runner
        assert prepared is not None
        assert runner is not None
        await runner.drain()
        device = self._threads.device

        def free() -> int:
            before: int | None = None
            after: int | None = None
            self._threads.blocking.be_patient(LOAD_PATIENCE)
            with suppress(AclError):  # what cannot be measured is freed all the same
                before = free_bytes(device)
            with ExitStack() as stack:
                stack.callback(prepared.close)
                stack.callback(runner.close)
            with suppress(AclError):
                after = free_bytes(device)
            freed = prepared.taken_bytes if before is None or after is None else after - before
            return missing_bytes(prepared.taken_bytes, prepared.device_bytes, freed)

        known = prepared.device_bytes
        record.prepared = record.runner = None
        self._runners.discard(runner)
        try:
            missing = await self._threads.blocking.run(free, cleanup=True)
        except AclError:
            self._tell_leak(record, known)
            raise
        if missing:
            self._tell_leak(record, missing)

    def _tell_leak(self, record: Record, missing: int) -> None:
        log.warning(
            "model %s version %d is unloaded, but about %d bytes of device memory did not come back; a restart of the "
            "server frees them",
            record.name,
            record.version,
            missing,
        )
        self._leaked(record.name, missing)

    def _prepare(self, record: Record, content: Content | None, options: LoadOptions) -> tuple[Prepared, list[Item]]:
        """On the blocking thread: read, load, decide, allocate."""
        self._threads.blocking.be_patient(LOAD_PATIENCE)
        device = self._threads.device
        config = record.config
        source = record.file if content is None else content
        assert source is not None
        record.kind = self._check_kind(source)
        record.label_sets = read_labels(record.name, config, self._repository)
        memory = None
        if options.work is not None or options.weight is not None:
            memory = ModelMemory(
                options.work.buffer if options.work else None, options.weight.buffer if options.weight else None
            )
        before = free_bytes(device)
        count = 1 if memory is not None else config.instance_count
        models, weights = load(device, self._baked(source, config), memory, count)
        with ExitStack() as undo:
            if weights is not None:
                undo.callback(weights.close)
            for model in models:
                undo.callback(model.close)
            prepared = prepare(device, models, weights, config, record.synchronous, self._options, *self._pins)
            undo.pop_all()
            undo.callback(prepared.close)
            after = free_bytes(device)
            prepared.taken_bytes = 0 if before is None or after is None else before - after
            items = make_items(record.name, config.warmups, prepared.contract, self._repository)
            undo.pop_all()
        return prepared, items

    def _baked(self, source: Path | Content, config: ModelConfig) -> ModelSource:
        """What to load: the file or its bytes; with the configuration's gears compiled in where it has some."""
        if self._bake is None:
            return source
        baked = self._bake(lambda: source.read_bytes() if isinstance(source, Path) else bytes(source), config)
        return source if baked is None else baked

    def _check_kind(self, source: Path | Content) -> str:
        """What kind of file it is. Tells what an NPU cannot load, before AscendCL answers with a bare number; the
        emulated device tells itself.
        """
        if isinstance(source, Path):
            with source.open("rb") as stream:
                magic = stream.read(4)
        else:
            magic = bytes(source[:4])
        if self._bake is None and magic != _OM_MAGIC:
            raise InvalidArgument(
                "this is not an offline model (OM), and an NPU runs nothing else; convert an ONNX file with "
                "`atc --framework=5 --model=model.onnx --output=model --soc_version=<chip>`",
                reason="MODEL_INVALID",
            )
        return "om" if magic == _OM_MAGIC else "onnx"


def _unreadable(error: OSError) -> AclserveError:
    return FailedPrecondition(
        f"the model's file cannot be read: {error.strerror or 'it is gone'}; see that it is there, and load it again",
        reason="MODEL_NOT_READY",
    )


def _model_error(error: AclError) -> AclserveError:
    """A failed load, told with the runtime's own reason where that names nothing private."""
    told = classify(error)
    text = _PRIVATE.sub("...", error.text).strip()
    if text and isinstance(told, InvalidArgument):
        return InvalidArgument(f"{told.message}: {text[:500]}", reason=told.reason, metadata=told.metadata)
    return told
