"""RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import grpc.aio
from google.protobuf import json_format

from aclserve.errors import InvalidArgument, Unimplemented
from aclserve_server.engine.engine import Engine
from aclserve_server.engine.model_config import ConfigProblem, ModelConfig
from aclserve_server.engine.records import LoadOptions, Record, State
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.kserve import model_config_pb2
from aclserve_server.rpc.model_config import MAX_FILE_BYTES, model_config_from_message
from aclserve_server.rpc.model_config_fields import note
from aclserve_server.rpc.v2.versions import version_to_text

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

MAX_PARAMETERS = 64
"""Parameters of one load: a configuration and files."""

_STATES = {
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.UNLOADING: "UNLOADING",
    State.UNAVAILABLE: "UNAVAILABLE",
}


class RepositoryCalls:
    """`max_files_bytes` bounds the files of one load together."""

    def __init__(self, engine: Engine, max_files_bytes: int) -> None:
        self._engine = engine
        self._max_files_bytes = max_files_bytes

    async def index(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        await self._refresh()
        return pb.RepositoryIndexResponse(
            models=[
                index_to_proto(record)
                for record in self._engine.records()
                if record.state is State.READY or not request.ready
            ]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest, context: Context) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        name = _model_name(request.model_name)
        options = load_options(name, request.parameters, self._max_files_bytes)
        await self._engine.operations.finish(self._engine.load_all(name, options))
        return pb.RepositoryModelLoadResponse()

    async def unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        name = _model_name(request.model_name)
        for key, value in request.parameters.items():
            if key != "unload_dependents":
                raise _unknown(key, "unload_dependents (no model here depends on another)")
            _typed(key, value, "bool_param")
        await self._engine.operations.finish(self._engine.unload_all(name))
        return pb.RepositoryModelUnloadResponse()

    async def _refresh(self) -> None:
        """Lists what is new on disk; not while a load is under way, which the look at the disk would wait for."""
        engine = self._engine
        if engine.control_mode == "poll" or len(engine.operations):
            return
        try:
            await engine.refresh()
        except ValueError as error:
            log.warning("the repository's index may be old: %s", error)


def index_to_proto(record: Record) -> pb.RepositoryIndexResponse.ModelIndex:
    """One version. A model that was never asked for has no state, one that was unloaded is UNAVAILABLE."""
    state = _STATES.get(record.state, "UNAVAILABLE" if record.reason else "")
    return pb.RepositoryIndexResponse.ModelIndex(
        name=record.name, version=version_to_text(record.version), state=state, reason=record.reason
    )


def load_options(name: str, parameters: Mapping[str, pb.ModelRepositoryParameter], max_files_bytes: int) -> LoadOptions:
    """What the parameters of a load ask for; raises InvalidArgument. Whether the files fit is for the engine to say."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidArgument(
            f"{len(parameters)} parameters were given, expected at most {MAX_PARAMETERS}", reason="PARAMETER_UNKNOWN"
        )
    config: ModelConfig | None = None
    files: dict[str, bytes] = {}
    for key, value in sorted(parameters.items()):
        if key == "config":
            config = _config(name, _typed(key, value, "string_param"))
        elif key.startswith("file:"):
            files[key.removeprefix("file:")] = _typed(key, value, "bytes_param")
        else:
            raise _unknown(key, "config and file:<version>/<name>")
    size = sum(map(len, files.values()))
    if size > max_files_bytes:
        raise InvalidArgument(
            f"the files have {size} bytes together, expected at most {max_files_bytes}; put the model into the "
            "repository, or raise --max-upload-bytes",
            reason="FILES_TOO_LARGE",
            metadata={"got_bytes": size, "max_bytes": max_files_bytes},
        )
    return LoadOptions(config=config, files=files)


def _config(name: str, text: str) -> ModelConfig:
    if len(text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        raise _config_problem(f"longer than {MAX_FILE_BYTES} bytes")
    message = model_config_pb2.ModelConfig()
    try:
        told = json.loads(text)
        if not isinstance(told, dict):
            raise _config_problem(f"a JSON {type(told).__name__}, expected an object")
        unknown = tuple(dict.fromkeys(_drop_unknown(told, model_config_pb2.ModelConfig.DESCRIPTOR, "")))
        json_format.ParseDict(told, message)
        config = model_config_from_message(message, name)
    except json_format.ParseError as error:
        raise _config_problem(str(error)) from error
    except (ConfigProblem, json.JSONDecodeError) as error:
        raise _config_problem(str(error)) from error
    except RecursionError as error:
        raise _config_problem("its values are nested too deeply") from error
    return replace(config, unknown=(*unknown, *config.unknown), notes=(*map(note, unknown), *config.notes))


def _drop_unknown(told: dict[str, Any], message: Any, place: str) -> Iterator[str]:
    """Takes the fields that the message lacks out of its JSON form, and tells their paths."""
    fields = {name: field for field in message.fields for name in (field.name, field.json_name)}
    for key in list(told):
        field = fields.get(key)
        path = f"{place}{key}"
        if field is None:
            del told[key]
            yield path[:200]
            continue
        kind, value = field.message_type, told[key]
        if kind is None:
            continue
        if kind.GetOptions().map_entry:
            kind = kind.fields_by_name["value"].message_type
            value = list(value.values()) if isinstance(value, dict) else []
        for one in value if isinstance(value, list) else [value]:
            if kind is not None and isinstance(one, dict):
                yield from _drop_unknown(one, kind, f"{path}.")


def _config_problem(problem: str) -> InvalidArgument:
    return InvalidArgument(f"`config` cannot be used: {problem[:500]}", reason="MODEL_CONFIG_INVALID")


def _typed(key: str, value: pb.ModelRepositoryParameter, kind: str) -> Any:
    got = value.WhichOneof("parameter_choice")
    if got != kind:
        raise InvalidArgument(
            f"parameter {key[:100]!r} was given as {got or 'nothing'}, expected {kind}", reason="PARAMETER_INVALID"
        )
    return getattr(value, kind)


def _unknown(key: str, known: str) -> InvalidArgument:
    return InvalidArgument(
        f"there is no parameter {key[:100]!r} of this call; there are {known}", reason="PARAMETER_UNKNOWN"
    )


def _model_name(name: str) -> str:
    if not name.strip():
        raise InvalidArgument(
            f"got model name {name[:100]!r}, expected the name of a model's folder in the repository",
            reason="MODEL_NAME_INVALID",
        )
    return name


def _check_repository(name: str) -> None:
    if name:
        raise Unimplemented(
            f"repository {name[:100]!r} was named; this server has one repository, so leave repository_name empty",
            reason="REPOSITORY_UNKNOWN",
        )
