"""Items that a model runs before it is ready, through the same queue and slots as any client's."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

from aclserve.errors import AclserveError, FailedPrecondition
from aclserve_server.device.description import TensorInfo
from aclserve_server.engine.contract import Contract, RowContract
from aclserve_server.engine.items import DropReason, Fill, Input, Item, Result
from aclserve_server.engine.model_config import Warmup, WarmupInput
from aclserve_server.engine.outcomes import BatchReport
from aclserve_server.engine.repository import WARMUP_FOLDER, Repository
from aclserve_server.engine.runner import Runner


class Unobserved:
    """The observer of items that nobody sent."""

    def batch(self, report: BatchReport) -> None:
        """Counts nothing."""

    def answered(self, code: str) -> None:
        """Counts nothing."""

    def dropped(self, reason: DropReason) -> None:
        """Counts nothing."""


def make_items(model: str, warmups: tuple[Warmup, ...], contract: Contract, repository: Repository) -> list[Item]:
    """One item for each run of each sample. Reads files: on a thread that may block.

    Raises `FailedPrecondition`, reason MODEL_WARMUP_FAILED.
    """
    items: list[Item] = []
    for sample in warmups:
        try:
            inputs = [_input(model, given, sample.rows, contract, repository) for given in sample.inputs]
        except (ValueError, OSError) as error:
            raise _failed(
                sample.name, str(error) if isinstance(error, ValueError) else "a file cannot be read"
            ) from error
        items += [Item(id=sample.name, model=model, inputs=inputs) for _ in range(sample.count)]
    return items


async def warm_up(runner: Runner, items: list[Item], instances: int) -> None:
    """Runs the items one after the other; where there are several instances, so often that each had every one.

    Raises `FailedPrecondition`, reason MODEL_WARMUP_FAILED.
    """
    rounds = 1 if instances == 1 else len(runner.slots)  # an idle runner takes its slots in turn
    for item in items:
        for _ in range(rounds):
            answer = _Answer()
            try:
                runner.submit(item, answer)
                result = await answer.future
            except AclserveError as error:
                raise _failed(item.id, error.message) from error
            if result.error is not None:
                raise _failed(item.id, result.error.message) from result.error


class _Answer:
    """The sink of one item."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def deliver(self, results: list[Result]) -> None:
        if not self.future.done():
            self.future.set_result(results[0])


def _input(model: str, given: WarmupInput, rows: int, contract: Contract, repository: Repository) -> Input:
    info = next((info for info in contract.inputs if info.name == given.name), None)
    if info is None:
        names = ", ".join(repr(info.name) for info in contract.inputs)
        raise ValueError(f"the model has no input {given.name!r}; its inputs are {names}")
    shape = _shape(given, info, rows, isinstance(contract, RowContract))
    if given.source == "file":
        path = repository.beside(model, given.file, WARMUP_FOLDER)
        return Input(given.name, given.dtype, shape, memoryview(_content(path, given, shape)))
    return Input(given.name, given.dtype, shape, fill=Fill(given.source == "random", seed=1))


def _shape(given: WarmupInput, info: TensorInfo, rows: int, counts_rows: bool) -> tuple[int, ...]:
    if len(given.dims) == len(info.shape) - 1 and (counts_rows or info.shape[0] < 0):
        return (rows, *given.dims)
    if rows > 1:
        raise ValueError(
            f"batch_size is {rows}, but {given.name!r} has no batch axis that dims {list(given.dims)} omit"
        )
    return given.dims


def _content(path: Path, given: WarmupInput, shape: tuple[int, ...]) -> bytes:
    """The file's bytes: one row, which is repeated, or the whole tensor."""
    row, whole = (math.prod(sizes) * given.dtype.itemsize for sizes in (given.dims, shape))
    size = path.stat().st_size
    if size not in (row, whole):
        raise ValueError(
            f"{given.file!r} has {size} bytes; dims {list(given.dims)} of {given.dtype} need {row}, for one row"
        )
    content = path.read_bytes()[:size]
    return content if size == whole else content * (whole // row)


def _failed(sample: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the warm-up sample {sample[:100]!r} failed: {why}", reason="MODEL_WARMUP_FAILED")
