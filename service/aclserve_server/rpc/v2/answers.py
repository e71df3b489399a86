"""What a request asked to see of its outputs."""

from __future__ import annotations

from aclserve.errors import InvalidArgument
from aclserve_server.engine.engine import Record
from aclserve_server.engine.items import Result
from aclserve_server.rpc.v2.classification import classify
from aclserve_server.rpc.v2.wire_in import V2Item


def check_classified(item: V2Item) -> None:
    """Refuses classes that are to be written into shared memory: their length is known only afterwards."""
    for wanted in item.outputs:
        if item.top_k and wanted.name in item.top_k and (wanted.region is not None or wanted.buffer is not None):
            raise InvalidArgument(
                f"output {wanted.name[:100]!r} is asked for as classes and into shared memory; ask for one of the two",
                reason="CLASSIFICATION_INTO_REGION",
            )


def shown(item: V2Item, record: Record, result: Result) -> Result:
    """The result with the outputs that were asked for as classes turned into those."""
    if item.top_k and result.outputs is not None:
        result.outputs = [
            classify(output, item.top_k[output.name], record.labels(output.name), batched=record.batches_rows)
            if output.name in item.top_k
            else output
            for output in result.outputs
        ]
    return result
