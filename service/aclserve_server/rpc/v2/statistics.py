"""ModelStatistics."""

from __future__ import annotations

from typing import Any

import grpc.aio

from aclserve_server.engine.engine import Engine
from aclserve_server.engine.records import Record, State
from aclserve_server.engine.statistics import BatchStatistics, Spent
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.versions import version_from_text, version_to_text

Context = grpc.aio.ServicerContext[Any, Any]

MEMORY_TYPE = "NPU"
"""What `MemoryUsage.type` says of a model's memory on the device."""


class StatisticsCalls:
    """`device_id` is the device's, whose memory models hold."""

    def __init__(self, engine: Engine, device_id: int) -> None:
        self._engine = engine
        self._device_id = device_id

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        records = self._wanted(request.name, version_from_text(request.version))
        return pb.ModelStatisticsResponse(model_stats=[statistics_to_proto(one, self._device_id) for one in records])

    def _wanted(self, name: str, version: int) -> list[Record]:
        """The versions that serve: of all models, of one, or just one; raises why there is none of that name."""
        if name:
            found = self._engine.find(name, version)
            if version:
                return [found]
        return [one for one in self._engine.records() if one.state is State.READY and name in ("", one.name)]


def statistics_to_proto(record: Record, device_id: int) -> pb.ModelStatistics:
    """One version since it was loaded. Nothing is cached here, so hits and misses are 0."""
    done = record.statistics
    return pb.ModelStatistics(
        name=record.name,
        version=version_to_text(record.version),
        last_inference=done.last_inference_ms,
        inference_count=done.inference_count,
        execution_count=done.execution_count,
        inference_stats=pb.InferStatistics(
            success=_spent(done.success),
            fail=_spent(done.fail),
            queue=_spent(done.queue),
            compute_input=_spent(done.compute_input),
            compute_infer=_spent(done.compute_infer),
            compute_output=_spent(done.compute_output),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[_batch(rows, batch) for rows, batch in done.sizes()],
        memory_usage=_memory(record, device_id),
    )


def _spent(spent: Spent) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=spent.count, ns=spent.ns)


def _batch(rows: int, batch: BatchStatistics) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=rows,
        compute_input=pb.StatisticDuration(count=batch.count, ns=batch.compute_input_ns),
        compute_infer=pb.StatisticDuration(count=batch.count, ns=batch.compute_infer_ns),
        compute_output=pb.StatisticDuration(count=batch.count, ns=batch.compute_output_ns),
    )


def _memory(record: Record, device_id: int) -> list[pb.MemoryUsage]:
    """What the model itself holds on the device, without its slots; nothing where AscendCL cannot tell."""
    prepared = record.prepared
    if prepared is None:
        return []
    description, count = prepared.model.description, len(prepared.instances)
    copies = 1 if prepared.weights is not None else count
    size = description.work_bytes * count + description.weight_bytes * copies
    return [pb.MemoryUsage(type=MEMORY_TYPE, id=device_id, byte_size=size)] if size else []
