"""The parts of a model's configuration that stand for themselves: versions, queue, warm-up.

Each takes the parsed message and `problem(place, words)`, which makes the error for a place in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aclserve_server.engine.model_config import (
    ConfigProblem,
    QueuePolicy,
    VersionPolicy,
    Warmup,
    WarmupInput,
    WarmupSource,
)

MAX_WARMUPS = 64
MAX_WARMUP_RUNS = 1000
MAX_TIMEOUT_US = 3_600_000_000
MAX_VERSIONS = 1024

Problem = Callable[[str, str], ConfigProblem]


def is_file_name(name: str) -> bool:
    """Whether a text names a file of its own folder and nothing else."""
    return 0 < len(name) <= 255 and name not in (".", "..") and not set(name) & set("/\\\0")


def version_policy(message: Any, problem: Problem) -> VersionPolicy:
    """Which versions are served; the highest one where nothing is stated."""
    choice = message.version_policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(None)
    if choice == "latest":
        number = message.version_policy.latest.num_versions
        if number < 1:
            raise problem("version_policy[0].latest", f"num_versions is {number}; expected 1 or more")
        return VersionPolicy(number)
    if choice == "specific":
        versions = tuple(sorted(set(message.version_policy.specific.versions)))
        if not versions or versions[0] < 1 or len(versions) > MAX_VERSIONS:
            stated = str(list(versions[:5]))
            raise problem(
                "version_policy[0].specific", f"versions are {stated}; expected 1 to {MAX_VERSIONS} of them, each 1 up"
            )
        return VersionPolicy(None, versions)
    return VersionPolicy()


def queue_policy(message: Any, problem: Problem) -> QueuePolicy:
    """What may wait in the model's queue."""
    policy = message.dynamic_batching.default_queue_policy
    timeout = int(policy.default_timeout_microseconds)
    if timeout > MAX_TIMEOUT_US:
        place = "dynamic_batching[0].default_queue_policy[0].default_timeout_microseconds"
        raise problem(
            place, f"default_timeout_microseconds is {timeout}; expected at most {MAX_TIMEOUT_US} (one hour), or 0"
        )
    return QueuePolicy(policy.max_queue_size, timeout / 1e6, policy.allow_timeout_override)


def warmups(message: Any, dtypes: Mapping[int, np.dtype[Any]], problem: Problem) -> tuple[Warmup, ...]:
    """The samples that are run before the model is ready."""
    if len(message.model_warmup) > MAX_WARMUPS:
        raise problem("model_warmup", f"{len(message.model_warmup)} samples; expected at most {MAX_WARMUPS}")
    return tuple(
        _warmup(sample, f"model_warmup[{at}]", dtypes, problem) for at, sample in enumerate(message.model_warmup)
    )


def _warmup(sample: Any, place: str, dtypes: Mapping[int, np.dtype[Any]], problem: Problem) -> Warmup:
    if sample.count > MAX_WARMUP_RUNS:
        raise problem(f"{place}.count", f"count is {sample.count}; expected at most {MAX_WARMUP_RUNS}")
    if not sample.inputs:
        raise problem(place, f"the sample {sample.name!r} has no inputs; expected each of the model's")
    inputs = tuple(_input(sample, name, place, dtypes, problem) for name in sorted(sample.inputs))
    return Warmup(sample.name, max(sample.batch_size, 1), max(sample.count, 1), inputs)


def _input(sample: Any, name: str, place: str, dtypes: Mapping[int, np.dtype[Any]], problem: Problem) -> WarmupInput:
    given = sample.inputs[name]
    what = f"input {name!r} of the sample {sample.name!r}"
    dtype = dtypes.get(given.data_type)
    if dtype is None:
        raise problem(place, f"{what} has no data_type that is served; expected a type of numbers, or TYPE_BOOL")
    if any(size < 0 for size in given.dims):
        raise problem(place, f"{what} has dims {list(given.dims)}; expected sizes of 0 or more")
    choice = given.WhichOneof("input_data_type")
    sources: dict[str, WarmupSource] = {"zero_data": "zero", "random_data": "random", "input_data_file": "file"}
    if choice is None or not getattr(given, choice):
        raise problem(place, f"{what} has no data; expected zero_data: true, random_data: true or input_data_file")
    file = given.input_data_file
    if file and not is_file_name(file):
        raise problem(place, f"{what} names {file[:100]!r}; expected the name of a file in the folder warmup")
    return WarmupInput(name, dtype, tuple(given.dims), sources[choice], file)
