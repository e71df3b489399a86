"""Items whose large tensors lie in memory that client and server share. No network here.

An item's large inputs, and room for those of its outputs whose size is known, lie side by side in one part of a region.
The part is the item's until its answer is there; what is small, or does not fit, travels in the message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import AclserveError, InvalidArgument
from aclserve.tensors import DTYPES, data_type_of
from aclserve.v1 import tensor_pb2
from aclserve_client import convert, data
from aclserve_client.shared_memory import Part, RegionRef, SharedObject, SharedParts, aligned

_Large = tuple[NDArray[Any], int]
"""An array, and its data type on the wire."""


_LOST = frozenset({
    *("LEASE_NOT_FOUND", "LEASE_REQUIRED", "REGION_NOT_FOUND", "REGION_TOO_SMALL", "RANGE_OUTSIDE_REGION"),
    *("REGION_NOT_VISIBLE", "REGION_SHRANK", "REGION_IO_FAILED", "SHARED_MEMORY_OFF"),
})  # fmt: skip


def lost_region(error: AclserveError) -> bool:
    """True for an item that failed because of where its tensors were: it can be sent again, in a message."""
    return error.reason in _LOST


def output_bytes(model: data.ModelDescription, item: data.Item) -> dict[str, int]:
    """Bytes that each output of an item has at the most, in the model's order; 0 where that is not known."""
    rows = None
    if model.batching is data.Batching.ROWS:
        rows = next((shape[0] for value in item.inputs.values() if (shape := _shape(value))), None)
    return {spec.name: _spec_bytes(spec, rows) for spec in model.outputs}


def _spec_bytes(spec: data.TensorSpec, rows: int | None) -> int:
    dims = [rows if rows is not None else spec.shape[0], *spec.shape[1:]] if spec.shape else []
    if any(dim < 0 for dim in dims):
        return spec.max_bytes
    try:
        return DTYPES[convert.data_type_from_name(spec.dtype)].itemsize * math.prod(dims)
    except InvalidArgument:  # a type that this version does not know
        return 0


def _shape(value: data.Input) -> tuple[int, ...]:
    return tuple((value.array if isinstance(value, data.Typed) else value).shape)


class Share:
    """A region that the server has opened, with the lease it belongs to. Thread-safe.

    model: the description of the model of items that name none, where it is known.
    ttl_s, renewed_at: of the lease, where it is renewed by those who use it.
    """

    def __init__(self, memory: SharedObject, region_id: str, lease_id: str, min_bytes: int, ttl_s: float = 0) -> None:
        self.region_id = region_id
        self.lease_id = lease_id
        self.model: data.ModelDescription | None = None
        self.ttl_s = ttl_s
        self.renewed_at = 0.0
        self._parts = SharedParts(memory)
        self._min_bytes = min_bytes

    @property
    def items(self) -> int:
        """Items that have a part."""
        return self._parts.parts

    @property
    def retired(self) -> bool:
        """True when it takes no further item."""
        return self._parts.retired

    def retire(self) -> None:
        """Takes no further item; the memory is given up with the last one."""
        self._parts.retire()

    def close(self) -> None:
        """Gives the memory up. Not while another thread is in `place` or `read`."""
        self._parts.retire()
        self._parts.memory.close()

    def inline_bytes(self, item: data.Item) -> int:
        """Bytes of the item's inputs that would travel in its message if it were placed now."""
        if not self._parts.has_room(self._size(item)):
            return convert.inline_bytes(item)
        return convert.inline_bytes(item) - sum(array.nbytes for array, _ in self._large(item).values())

    def will_have_room(self, item: data.Item) -> bool:
        """True when the item finds no room now, but will when those before it are answered."""
        return self._parts.will_have_room(self._size(item))

    def _size(self, item: data.Item) -> int:
        inputs_bytes = sum(aligned(array.nbytes) for array, _ in self._large(item).values())
        return inputs_bytes + sum(self._room(item, self._model(item)).values())

    def place(self, item: data.Item, model: data.ModelDescription | None = None) -> Placed | None:
        """The item with its large tensors in a part of the region; None where it has none, or there is no room."""
        model = model or self._model(item)
        large, room = self._large(item), self._room(item, model)
        inputs_bytes = sum(aligned(array.nbytes) for array, _ in large.values())
        size = inputs_bytes + sum(room.values())
        part = self._parts.take(size) if size else None
        if part is None:
            return None
        try:
            return self._place(item, model, large, room, part)
        except BaseException:
            part.release()
            raise

    def _place(
        self,
        item: data.Item,
        model: data.ModelDescription | None,
        large: Mapping[str, _Large],
        room: Mapping[str, int],
        part: Part,
    ) -> Placed:
        inputs: dict[str, Any] = dict(item.inputs)
        offset = part.offset
        for name, (array, data_type) in large.items():
            inputs[name] = RegionRef(self.region_id, offset, array.nbytes, array.shape, data_type)
            dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
            np.copyto(self._parts.memory.view(offset, array.shape, dtype), array, casting="equiv")
            offset += aligned(array.nbytes)
        outputs: Any = item.outputs
        if room:
            names = item.outputs if item.outputs is not None else [spec.name for spec in model.outputs] if model else []
            outputs = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)
            for name, size in room.items():
                outputs[name] = RegionRef(self.region_id, offset, size)
                offset += size
        placed = dataclasses.replace(item, inputs=cast(data.Inputs, inputs), outputs=outputs)
        return Placed(self, placed, item.outputs, part)

    def view(self, ref: RegionRef) -> NDArray[Any]:
        """The region's bytes as a tensor. Do not hold on to it."""
        return self._parts.memory.view(ref.offset_bytes, ref.shape, DTYPES[ref.data_type])

    def _model(self, item: data.Item) -> data.ModelDescription | None:
        return self.model if not item.model and not item.version else None

    def _large(self, item: data.Item) -> dict[str, _Large]:
        """The inputs worth sharing. What cannot be sent is left to those who send it."""
        found: dict[str, _Large] = {}
        for name, value in item.inputs.items():
            array = value.array if isinstance(value, data.Typed) else value
            if not isinstance(array, np.ndarray) or array.nbytes < self._min_bytes:
                continue
            try:
                typed = isinstance(value, data.Typed)
                data_type = convert.data_type_from_name(value.dtype) if typed else data_type_of(array.dtype)
            except InvalidArgument:
                continue
            if DTYPES[data_type].itemsize == array.dtype.itemsize:
                found[name] = array, data_type
        return found

    def _room(self, item: data.Item, model: data.ModelDescription | None) -> dict[str, int]:
        """The outputs worth sharing, and the room that each needs."""
        if model is None or isinstance(item.outputs, str):
            return {}
        sizes = output_bytes(model, item)
        names = list(sizes if item.outputs is None else item.outputs)
        if len(set(names)) != len(names):
            return {}
        elsewhere = item.outputs if isinstance(item.outputs, Mapping) else {}
        return {
            name: aligned(sizes[name])
            for name in names
            if sizes.get(name, 0) >= self._min_bytes and elsewhere.get(name) is None
        }


class Placed:
    """An item in a region. `item` is what to send; its arrays are in the region."""

    def __init__(self, share: Share, item: data.Item, outputs: data.OutputChoice, part: Part) -> None:
        self.share = share
        self.item = item
        self._outputs = outputs
        self._part = part

    def read(self, tensor: tensor_pb2.Tensor) -> NDArray[Any]:
        """An output out of the region, as a read-only copy: the next item has the bytes as soon as this one is done.

        Raises `InvalidArgument`, reason TENSOR_NOT_INLINE, for a place that was not given for this output.
        """
        outputs: Any = self.item.outputs if isinstance(self.item.outputs, Mapping) else {}
        given, told = outputs.get(tensor.name), tensor.region
        if (
            not isinstance(given, RegionRef)
            or (told.region_id, told.offset_bytes) != (given.region_id, given.offset_bytes)
            or tensor.data_type not in DTYPES
            or convert.byte_count(tensor) > given.length_bytes
        ):
            raise InvalidArgument(
                f"the server put output {tensor.name!r} where it was not asked to", reason="TENSOR_NOT_INLINE"
            )
        where = dataclasses.replace(given, shape=tuple(tensor.shape), data_type=tensor.data_type)
        array = np.array(self.share.view(where), DTYPES[tensor.data_type])
        array.setflags(write=False)
        return array

    def inline(self) -> data.Item:
        """The item as it was given, over views of the region: to be sent in a message, or placed elsewhere."""
        inputs = {name: self._inline(value) for name, value in self.item.inputs.items()}
        return dataclasses.replace(self.item, inputs=inputs, outputs=self._outputs)

    def _inline(self, value: Any) -> data.Input:
        if not isinstance(value, RegionRef):
            return cast(data.Input, value)
        return data.Typed(self.share.view(value), convert.dtype_name(value.data_type))

    def release(self, *, settled: bool = True) -> None:
        """The item is answered, its part is free. Not `settled`: the server may be at it, and the region retires."""
        self._part.release(settled=settled)
