"""Reads a model's `config.pbtxt` (protobuf text format, Triton's field names) into the engine's `ModelConfig`.

protobuf's parser does the reading; `pbtxt` finds the fields that have no meaning here, and the lines for messages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf import text_format

from aclserve_server.engine.model_config import ConfigProblem, ExecutionMode, ModelConfig, TensorConfig
from aclserve_server.kserve import model_config_pb2
from aclserve_server.rpc.model_config_fields import READ_FIELDS, note, unread
from aclserve_server.rpc.model_config_parts import is_file_name, queue_policy, version_policy, warmups
from aclserve_server.rpc.pbtxt import TextError, TextFields

__all__ = ["READ_FIELDS", "model_config_from_message", "parse_model_config", "read_model_config"]

MAX_FILE_BYTES = 1 << 20
MAX_DELAY_US = 3_600_000_000
MAX_INSTANCES = 256
MAX_GEARS = 128
"""AscendCL's own limit: ACL_MAX_BATCH_NUM, ACL_MAX_HW_NUM and ACL_MAX_SHAPE_COUNT are 128."""

PLATFORMS = ("onnxruntime_onnx", "ascend_om", "acl")
BACKENDS = ("onnxruntime", "acl")

DTYPES: dict[int, np.dtype[Any]] = {
    model_config_pb2.TYPE_BOOL: np.dtype(np.bool_),
    model_config_pb2.TYPE_UINT8: np.dtype(np.uint8),
    model_config_pb2.TYPE_UINT16: np.dtype(np.uint16),
    model_config_pb2.TYPE_UINT32: np.dtype(np.uint32),
    model_config_pb2.TYPE_UINT64: np.dtype(np.uint64),
    model_config_pb2.TYPE_INT8: np.dtype(np.int8),
    model_config_pb2.TYPE_INT16: np.dtype(np.int16),
    model_config_pb2.TYPE_INT32: np.dtype(np.int32),
    model_config_pb2.TYPE_INT64: np.dtype(np.int64),
    model_config_pb2.TYPE_FP16: np.dtype(np.float16),
    model_config_pb2.TYPE_FP32: np.dtype(np.float32),
    model_config_pb2.TYPE_FP64: np.dtype(np.float64),
    model_config_pb2.TYPE_BF16: np.dtype(ml_dtypes.bfloat16),
}
"""Triton's data types and NumPy's; TYPE_STRING has none here."""


def read_model_config(path: Path, model: str) -> ModelConfig:
    """Reads the configuration file of the model of that name; raises ConfigProblem, which never holds the path."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigProblem(None, f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigProblem(None, f"longer than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigProblem(data[: error.start].count(b"\n") + 1, "not UTF-8 text") from error
    return parse_model_config(text, model)


def parse_model_config(text: str, model: str) -> ModelConfig:
    """Reads the text of a configuration; raises ConfigProblem."""
    message = model_config_pb2.ModelConfig()
    try:
        fields = TextFields(text, model_config_pb2.ModelConfig.DESCRIPTOR, READ_FIELDS)
        text_format.Parse(fields.known, message)
    except TextError as error:
        raise ConfigProblem(error.line, str(error)) from error
    except text_format.ParseError as error:
        raise ConfigProblem(error.GetLine(), _parse_problem(str(error))) from error
    return _Reader(message, fields, model).config()


def model_config_from_message(message: Any, model: str) -> ModelConfig:
    """The same for a message of type `inference.ModelConfig` that came another way; its problems have no line."""
    return _Reader(message, _NoPlaces(tuple(dict.fromkeys(unread(message)))), model).config()


class _NoPlaces:
    """What a message without a text can tell of its fields."""

    def __init__(self, unknown: tuple[str, ...]) -> None:
        self.unknown = unknown

    def line(self, place: str) -> int | None:
        return None

    def map_line(self, field: str, key: str) -> int | None:
        return None


def _parse_problem(text: str) -> str:
    """protobuf's words, without its line and column, and with the names of an enum where one was expected."""
    problem = re.sub(r"^\d+:\d+ : ", "", text).removesuffix(".")
    match = re.search(r'Enum type "inference\.(\w+)" has no value named', problem)
    enum = match and model_config_pb2.DESCRIPTOR.enum_types_by_name.get(match[1])
    if enum:
        return f"{problem}; expected one of {', '.join(value.name for value in enum.values if value.number)}"
    return problem


class _Reader:
    """From the parsed message to the engine's configuration."""

    def __init__(self, message: Any, fields: TextFields | _NoPlaces, model: str) -> None:
        self._message = message
        self._fields = fields
        self._model = model

    def config(self) -> ModelConfig:
        """The configuration; raises ConfigProblem at the first field that cannot be used."""
        message = self._message
        if message.name and message.name != self._model:
            raise self._problem(
                "name", f"name is {message.name!r}; expected the name of the model's folder, {self._model!r}"
            )
        self._check_choice("platform", message.platform, PLATFORMS)
        self._check_choice("backend", message.backend, BACKENDS)
        size = message.max_batch_size if message.HasField("max_batch_size") else None
        if size is not None and size < 0:
            raise self._problem("max_batch_size", f"max_batch_size is {size}; expected 0 (no batching) or more")
        gathered = message.HasField("dynamic_batching")
        kinds = self._gears()
        unknown = self._unknown()
        return ModelConfig(
            name=self._model,
            backend=message.backend or message.platform,
            max_batch_size=size,
            inputs=self._tensors("input"),
            outputs=self._tensors("output"),
            dynamic_batching=gathered,
            preferred_batch_sizes=self._preferred(size) if gathered else (),
            max_queue_delay_us=self._delay() if gathered else None,
            instance_count=self._instances(),
            execution_mode=self._execution_mode(),
            dynamic_batch_size=tuple(gear[0] for gear in kinds["dynamic_batch_size"]),
            dynamic_image_size=tuple((gear[0], gear[1]) for gear in kinds["dynamic_image_size"]),
            dynamic_dims=kinds["dynamic_dims"],
            parameters=MappingProxyType(self._parameters()),
            file=self._file(),
            version_policy=version_policy(message, self._problem),
            queue_policy=queue_policy(message, self._problem),
            warmups=warmups(message, DTYPES, self._problem),
            unknown=unknown,
            notes=tuple(map(note, unknown)),
        )

    def _unknown(self) -> tuple[str, ...]:
        """The fields without effect, and those that have a value without one."""
        policy = self._message.dynamic_batching.default_queue_policy
        delays = policy.timeout_action != policy.REJECT
        more = ("dynamic_batching.default_queue_policy.timeout_action",) if delays else ()
        return (*self._fields.unknown, *more)

    def _file(self) -> str:
        name = str(self._message.default_model_filename)
        if name and not is_file_name(name):
            raise self._problem(
                "default_model_filename",
                f"default_model_filename is {name[:100]!r}; expected the name of a file in a version's folder",
            )
        return name

    def _problem(self, place: str, problem: str) -> ConfigProblem:
        return ConfigProblem(self._fields.line(place), problem)

    def _check_choice(self, field: str, value: str, choices: Iterable[str]) -> None:
        if value and value not in choices:
            raise self._problem(
                field, f"{field} is {value!r}; expected {' or '.join(map(repr, choices))}, or no {field}"
            )

    def _tensors(self, field: str) -> tuple[TensorConfig, ...]:
        found: dict[str, TensorConfig] = {}
        for index, tensor in enumerate(getattr(self._message, field)):
            place = f"{field}[{index}]"
            if not tensor.name:
                raise self._problem(place, f"an {field} without a name; expected name: the name of the model's tensor")
            if tensor.name in found:
                raise self._problem(place, f"{field} {tensor.name!r} is there twice; expected each tensor once")
            dtype = DTYPES.get(tensor.data_type)
            if dtype is None and tensor.data_type:
                kind = model_config_pb2.DataType.Name(tensor.data_type)
                raise self._problem(
                    f"{place}.data_type", f"{kind} is not served; expected a type of numbers, or TYPE_BOOL"
                )
            wrong = [size for size in tensor.dims if size < -1]
            if wrong:
                raise self._problem(f"{place}.dims", f"a size of {wrong[0]} in dims; expected -1 (any), 0 or more")
            labels = tensor.label_filename if field == "output" else ""
            if labels and not is_file_name(labels):
                raise self._problem(
                    f"{place}.label_filename",
                    f"label_filename is {labels[:100]!r}; expected the name of a file beside config.pbtxt",
                )
            reshape = self._reshape(tensor, place)
            dims = tuple(tensor.dims) or (None if reshape is None else ())
            found[tensor.name] = TensorConfig(tensor.name, dtype, dims, reshape, labels)
        return tuple(found.values())

    def _reshape(self, tensor: Any, place: str) -> tuple[int, ...] | None:
        if not tensor.HasField("reshape"):
            return None
        dims, shape = tuple(tensor.dims), tuple(tensor.reshape.shape)
        if min((*dims, *shape), default=0) < 0:
            problem = f"reshape {list(shape)} of dims {list(dims)}; expected sizes that are known, none of -1"
        elif math.prod(dims) != math.prod(shape):
            problem = f"reshape {list(shape)} of dims {list(dims)}; expected as many elements in both"
        else:
            return shape
        raise self._problem(f"{place}.reshape", problem)

    def _preferred(self, size: int | None) -> tuple[int, ...]:
        sizes = tuple(sorted(set(self._message.dynamic_batching.preferred_batch_size)))
        wrong = [value for value in sizes if value < 1 or (size is not None and value > size)]
        if wrong:
            top = "or more" if size is None else f"to max_batch_size, which is {size}"
            place = "dynamic_batching[0].preferred_batch_size"
            raise self._problem(place, f"a preferred_batch_size of {wrong[0]}; expected 1 {top}")
        return sizes

    def _delay(self) -> int | None:
        batching = self._message.dynamic_batching
        if not batching.HasField("max_queue_delay_microseconds"):
            return None
        delay = int(batching.max_queue_delay_microseconds)
        if delay > MAX_DELAY_US:
            place = "dynamic_batching[0].max_queue_delay_microseconds"
            raise self._problem(
                place, f"max_queue_delay_microseconds is {delay}; expected at most {MAX_DELAY_US} (one hour)"
            )
        return delay

    def _instances(self) -> int:
        total = 0
        for index, group in enumerate(self._message.instance_group):
            total += group.count or 1
            if group.count < 0 or total > MAX_INSTANCES:
                place = f"instance_group[{index}].count"
                raise self._problem(
                    place, f"count is {group.count}; expected 1 to {MAX_INSTANCES} instances in all groups"
                )
        return total or 1

    def _parameters(self) -> dict[str, str]:
        return {key: value.string_value for key, value in sorted(self._message.parameters.items())}

    def _execution_mode(self) -> ExecutionMode:
        mode = self._parameters().get("execution_mode", "async")
        if mode == "async":
            return "async"
        if mode == "sync":
            return "sync"
        raise self._parameter_problem("execution_mode", mode, '"async" or "sync"')

    def _gears(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        parameters = self._parameters()
        stated = [key for key in _GEARS if key in parameters]
        if len(stated) > 1:
            line = max((self._fields.map_line("parameters", key) or 0 for key in stated), default=0) or None
            raise ConfigProblem(line, f"parameters {' and '.join(stated)}; expected at most one kind of gears")
        return {key: self._gear_list(key, parameters[key]) if key in parameters else () for key in _GEARS}

    def _gear_list(self, key: str, text: str) -> tuple[tuple[int, ...], ...]:
        expected, gear_mark, is_right = _GEARS[key]
        gears: list[tuple[int, ...]] = []
        for part in text.split(gear_mark):
            values = tuple(int(value) if _NUMBER.fullmatch(value.strip()) else 0 for value in part.split(","))
            if not is_right(values) or min(values) < 1 or values in gears or len(values) != len((gears or [values])[0]):
                raise self._parameter_problem(key, text, expected)
            gears.append(values)
        if len(gears) > MAX_GEARS:
            raise self._parameter_problem(key, f"{len(gears)} gears", f"at most {MAX_GEARS}")
        return tuple(gears)

    def _parameter_problem(self, key: str, value: str, expected: str) -> ConfigProblem:
        shown = value if len(value) <= 100 else value[:100] + "..."
        return ConfigProblem(
            self._fields.map_line("parameters", key), f'parameter "{key}" is {shown!r}; expected {expected}'
        )


_NUMBER = re.compile(r"[0-9]{1,9}")

_GEARS: dict[str, tuple[str, str, Callable[[tuple[int, ...]], bool]]] = {
    "dynamic_batch_size": ('different rows from 1, such as "1,2,4"', ",", lambda values: len(values) == 1),
    "dynamic_image_size": (
        'different height,width pairs, such as "224,224;448,448"',
        ";",
        lambda values: len(values) == 2,
    ),
    "dynamic_dims": (
        'different lists of one length, with a size for each symbolic axis, such as "1,16;1,32"',
        ";",
        lambda values: len(values) >= 1,
    ),
}
"""Parameter -> what is expected, what separates gears, how many values a gear has."""
