"""Which fields of a model's configuration have a meaning here, and what happens instead where one has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

READ_FIELDS = frozenset(
    f"inference.{message}.{field}"
    for message, fields in {
        "ModelConfig": "name platform version_policy max_batch_size input output instance_group default_model_filename "
        "dynamic_batching parameters model_warmup backend",
        "ModelConfig.ParametersEntry": "key value",
        "ModelDynamicBatching": "preferred_batch_size max_queue_delay_microseconds default_queue_policy",
        "ModelInput": "name data_type dims reshape",
        "ModelInstanceGroup": "count",
        "ModelOutput": "name data_type dims reshape label_filename",
        "ModelParameter": "string_value",
        "ModelQueuePolicy": "timeout_action default_timeout_microseconds allow_timeout_override max_queue_size",
        "ModelTensorReshape": "shape",
        "ModelVersionPolicy": "latest all specific",
        "ModelVersionPolicy.Latest": "num_versions",
        "ModelVersionPolicy.Specific": "versions",
        "ModelWarmup": "name batch_size inputs count",
        "ModelWarmup.Input": "data_type dims zero_data random_data input_data_file",
        "ModelWarmup.InputsEntry": "key value",
    }.items()
    for field in fields.split()
)
"""The fields that are read; the message has others, which are for answers to clients."""

_NOTES = {
    "optimization": "the model runs as it was compiled",
    "sequence_batching": "items are independent; a client keeps a sequence's state and sends it along",
    "ensemble_scheduling": "a client calls one model after the other",
    "cc_model_filenames": "default_model_filename names the file",
    "metric_tags": "metrics have the labels model and version",
    "model_transaction_policy": "an item has one answer",
    "response_cache": "every item is executed",
    "model_repository_agents": "files are taken as they are",
    "runtime": "this server runs the model",
    "instance_group.name": "instances have numbers",
    "instance_group.kind": "instances run on this server's device",
    "instance_group.gpus": "instances run on this server's device",
    "instance_group.profile": "a model's gears are used by their sizes",
    "instance_group.rate_limiter": "instances run whenever they have work",
    "instance_group.passive": "every instance takes work",
    "instance_group.host_policy": "the host decides",
    "instance_group.secondary_devices": "instances run on this server's device",
    "input.format": "the shape tells the layout",
    "input.is_shape_tensor": "every input is data",
    "input.allow_ragged_batch": "items of one execution have equal shapes",
    "input.optional": "every input is required",
    "input.is_non_linear_format_io": "tensors lie row by row",
    "output.is_shape_tensor": "every output is data",
    "output.is_non_linear_format_io": "tensors lie row by row",
    "dynamic_batching.preserve_ordering": "a stream asks for order by itself",
    "dynamic_batching.priority_levels": "there are three levels, and an item names its own",
    "dynamic_batching.default_priority_level": "an item without a level has the middle one",
    "dynamic_batching.priority_queue_policy": "default_queue_policy holds for all levels",
    "dynamic_batching.default_queue_policy.timeout_action": "an item whose time is over is refused",
    "batch_input": "the model's inputs are what clients send",
    "batch_output": "the model's outputs are what clients get",
    "model_operations": "the device has the operations it has",
    "model_metrics": "histograms have the server's own buckets",
}


def note(path: str) -> str:
    """What happens instead of what a field asks for, in words that begin with the field."""
    return f"{path}: {_NOTES.get(path, 'it is not known here and has no effect')}"


def unread(message: Any, path: str = "") -> Iterator[str]:
    """The paths of the fields that are set in a message and have no meaning here; a path may come several times."""
    for field, value in message.ListFields():
        name = path + field.name
        if field.full_name not in READ_FIELDS:
            if not _says_nothing(value):
                yield name
        elif field.message_type is not None:
            yield from _unread_inside(field, value, name)


def _says_nothing(value: Any) -> bool:
    """Whether a value is one message without a field, such as the model_transaction_policy of an answer."""
    return hasattr(value, "ByteSize") and value.ByteSize() == 0


def _unread_inside(field: Any, value: Any, name: str) -> Iterator[str]:
    if field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            for key in value:
                yield from unread(value[key], f"{name}.value.")
    elif field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
        for part in value:
            yield from unread(part, f"{name}.")
    else:
        yield from unread(value, f"{name}.")
