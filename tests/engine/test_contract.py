"""Admission: what is wrong with an item is told with what was got and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aclserve.errors import AclserveError, InvalidArgument
from aclserve_server.device.description import Gear, ModelDescription, TensorInfo
from aclserve_server.engine.contract import Contract, FreeContract, RowContract, ShapeContract
from aclserve_server.engine.items import BufferSlice, Fill, Input, Item, OutputRequest, Result
from aclserve_server.engine.memory import Pin
from aclserve_server.engine.regions import Regions

FLOAT = np.dtype(np.float32)
NO_REGIONS = Regions(False, 1).pin


class Nowhere:
    def deliver(self, results: list[Result]) -> None:
        raise AssertionError("nothing is delivered at admission")


class Pins:
    """Stands for the clients' memory: counts what is pinned."""

    def __init__(self) -> None:
        self.live = 0

    def __call__(self, lease_id: str, part: BufferSlice, need_bytes: int, *, output: bool = False) -> Pin:
        self.live += 1
        return Pin(None, part.offset_bytes, need_bytes, self._unpin)  # type: ignore[arg-type]

    def _unpin(self) -> None:
        self.live -= 1


def info(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, FLOAT, "ND", shape, 0)


def describe(inputs: list[TensorInfo], outputs: list[TensorInfo], gears: list[Gear]) -> ModelDescription:
    return ModelDescription(tuple(inputs), tuple(outputs), tuple(gears), None, not gears, 0, 0)


def row_contract(pins: Pins | None = None, **options: Any) -> RowContract:
    gears = [(n, Gear("batch", (n,), ((n, 4), (n, 2)), ((n, 3),))) for n in (1, 2, 4, 8)]
    described = describe([info("a", -1, 4), info("b", -1, 2)], [info("y", -1, 3)], [gear for _, gear in gears])
    return RowContract(described, pins or Pins(), NO_REGIONS, gears, **options)


def tensor(name: str, *shape: int, dtype: Any = FLOAT, size: int | None = None) -> Input:
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return Input(name, np.dtype(dtype), shape, memoryview(bytes(wanted if size is None else size)))


def good(rows: int = 2) -> list[Input]:
    return [tensor("a", rows, 4), tensor("b", rows, 2)]


def refuse(contract: Contract, *inputs: Input, outputs: list[OutputRequest] | None = None) -> AclserveError:
    with pytest.raises(AclserveError) as caught:
        contract.admit(Item("1", inputs=list(inputs), outputs=outputs or []), Nowhere(), 0.0)
    return caught.value


def test_a_good_item_becomes_a_ticket_in_any_order_of_inputs() -> None:
    contract = row_contract()
    ticket = contract.admit(Item("7", inputs=good()[::-1], timeout_s=2.0), Nowhere(), 10.0)
    assert (ticket.item_id, ticket.rows, ticket.deadline) == ("7", 2, 12.0)
    assert [part.size_bytes for part in ticket.parts] == [32, 16]
    assert contract.gear_for(3)[0] == 4
    assert contract.output_shape(ticket, 0) == (2, 3)


@pytest.mark.parametrize(
    ("inputs", "reason", "said"),
    [
        ([tensor("a", 2, 4)], "INPUT_MISSING", "'b' is missing"),
        ([*good(), tensor("c", 2, 2)], "INPUT_UNKNOWN", "no input 'c'; its inputs are 'a', 'b'"),
        ([*good(), tensor("a", 2, 4)], "INPUT_DUPLICATE", "3 inputs"),
        (
            [tensor("a", 2, 4, dtype=np.float64), tensor("b", 2, 2)],
            "DATA_TYPE_MISMATCH",
            "float64, the model takes float32",
        ),
        ([tensor("a", 2, 5), tensor("b", 2, 2)], "SHAPE_MISMATCH", "[2, 5], the model takes [rows, 4]"),
        ([tensor("a"), tensor("b", 2, 2)], "SHAPE_MISMATCH", "[]"),
        ([tensor("a", -1, 4, size=0), tensor("b", 2, 2)], "SHAPE_MISMATCH", "[-1, 4]"),
        ([tensor("a", 2, 4), tensor("b", 3, 2)], "SHAPE_MISMATCH", "3 rows, the inputs before it 2"),
        (
            [tensor("a", 2, 4, size=31), tensor("b", 2, 2)],
            "TENSOR_SIZE_MISMATCH",
            "31 bytes; shape [2, 4] of float32 needs 32",
        ),
        (good(9), "TOO_MANY_ROWS", "9 rows, the model takes at most 8"),
    ],
)
def test_a_wrong_item_is_told_what_is_wrong(inputs: list[Input], reason: str, said: str) -> None:
    error = refuse(row_contract(), *inputs)
    assert isinstance(error, InvalidArgument)
    assert error.reason == reason
    assert said in error.message


def test_an_unknown_or_repeated_output_is_refused() -> None:
    contract = row_contract()
    assert refuse(contract, *good(), outputs=[OutputRequest("z")]).reason == "OUTPUT_UNKNOWN"
    assert refuse(contract, *good(), outputs=[OutputRequest("y"), OutputRequest("y")]).reason == "OUTPUT_DUPLICATE"


def test_the_single_input_of_a_model_needs_no_name() -> None:
    gear = Gear("static", (), ((1, 4),), ((1, 4),))
    contract = ShapeContract(describe([info("x", 1, 4)], [info("y", 1, 4)], [gear]), Pins(), NO_REGIONS)
    assert contract.admit(Item(inputs=[tensor("", 1, 4)]), Nowhere(), 0.0).gear is gear


def test_buffers_are_pinned_and_let_go_when_admission_fails() -> None:
    pins = Pins()
    contract = row_contract(pins)
    buffered = Input("a", FLOAT, (2, 4), None, BufferSlice("id", 64, 0))
    ticket = contract.admit(
        Item(inputs=[buffered, tensor("b", 2, 2)], outputs=[OutputRequest("y", BufferSlice("id", 0, 0))]),
        Nowhere(),
        0.0,
    )
    assert pins.live == 2
    ticket.release()
    ticket.release()
    assert pins.live == 0
    assert refuse(contract, buffered, tensor("b", 2, 2, size=3)).reason == "TENSOR_SIZE_MISMATCH"
    assert pins.live == 0
    wrong_length = Input("a", FLOAT, (2, 4), None, BufferSlice("id", 0, 31))
    assert refuse(contract, wrong_length, tensor("b", 2, 2)).reason == "TENSOR_SIZE_MISMATCH"


def test_fills_are_made_once_and_bounded() -> None:
    contract = row_contract()
    filled = [Input("a", FLOAT, (2, 4), fill=Fill(True, 3)), Input("b", FLOAT, (2, 2), fill=Fill(False, 0))]
    first, second = (contract.admit(Item(inputs=filled), Nowhere(), 0.0) for _ in range(2))
    assert first.parts[0].data is second.parts[0].data
    values = np.frombuffer(first.parts[0].data or b"", np.float32)
    assert ((values >= 0) & (values < 1)).all()
    assert len(set(values)) == 8
    assert bytes(first.parts[1].data or b"x") == bytes(16)


def test_a_model_that_mixes_rows_takes_only_the_rows_of_a_gear() -> None:
    contract = row_contract(mixes_rows=True)
    assert contract.admit(Item(inputs=good(4)), Nowhere(), 0.0).rows == 4
    error = refuse(contract, *good(3))
    assert error.reason == "SHAPE_MISMATCH"
    assert "1, 2, 4, 8" in error.message


def test_shapes_select_a_gear_or_are_told_which_there_are() -> None:
    gears = [Gear("height_width", (n, n), ((1, n, n),), ((1, n),)) for n in (8, 16)]
    contract = ShapeContract(describe([info("x", 1, -1, -1)], [info("y", 1, -1)], gears), Pins(), NO_REGIONS)
    assert contract.admit(Item(inputs=[tensor("x", 1, 16, 16)]), Nowhere(), 0.0).gear is gears[1]
    error = refuse(contract, tensor("x", 1, 9, 9))
    assert error.reason == "SHAPE_MISMATCH"
    assert "[1, 8, 8], [1, 16, 16]" in error.message


@pytest.mark.parametrize(
    ("inputs", "fix"),
    [
        ([tensor("a", 4), tensor("b", 2, 2)], "; add a leading batch axis: send [1, 4]"),
        ([tensor("a", 2, 2, 4), tensor("b", 2, 2)], "; reshape it: send [4, 4]"),
        ([tensor("a", 2, 4), tensor("b", 3, 2)], "; all must have as many: send 2 of each, or 3"),
        (good(17), "; send it in 3 items"),
        (
            [tensor("a", 2, 4, dtype=np.float64), tensor("b", 2, 2)],
            "; convert it to float32, in numpy with array.astype(",
        ),
        ([tensor("a", 2, 4, size=64), tensor("b", 2, 2)], "; the elements may be of 8 bytes each (float64 or int64)"),
        ([tensor("a", 2, 4, size=0), tensor("b", 2, 2)], "; no bytes came with it: send its 8 elements"),
    ],
)
def test_a_wrong_item_is_told_the_smallest_fix(inputs: list[Input], fix: str) -> None:
    assert fix in refuse(row_contract(), *inputs).message


def test_shapes_that_do_not_go_together_are_told_which_to_change() -> None:
    gears = [Gear("dims", (n, n), ((1, n), (n, 2)), ((1, n),)) for n in (8, 16)]
    contract = ShapeContract(
        describe([info("a", 1, -1), info("b", -1, 2)], [info("y", 1, -1)], gears), Pins(), NO_REGIONS
    )
    error = refuse(contract, tensor("a", 1, 16), tensor("b", 8, 2))
    assert error.message.endswith("compiled for [1, 8], [8, 2]; [1, 16], [16, 2]; send 'a' as [1, 8]")
    error = refuse(contract, tensor("a", 16), tensor("b", 8, 2))
    assert error.message.endswith("for [1, 8], [1, 16]; add a leading batch axis: send [1, 16]")


def test_free_shapes_are_free_only_where_the_model_says_so() -> None:
    contract = FreeContract(describe([info("x", 2, -1)], [info("y", -1, -1)], []), Pins(), NO_REGIONS)
    ticket = contract.admit(Item(inputs=[tensor("x", 2, 7)]), Nowhere(), 0.0)
    assert contract.output_shape(ticket, 0) is None
    assert "[2, any]" in refuse(contract, tensor("x", 3, 7)).message
    assert refuse(contract, tensor("x", 2, 7, 1)).reason == "SHAPE_MISMATCH"
