"""The parts of shared memory: the arena, the object and its name, and where an item's tensors are put."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aclserve_client as ac
from aclserve.v1 import model_pb2 as pb
from aclserve.v1 import tensor_pb2
from aclserve_client import convert, shared_memory
from aclserve_client.shared_memory import ALIGNMENT, Arena, SharedObject, SharedParts
from aclserve_client.sharing import Share, output_bytes

OBJECTS = Path("/dev/shm")


@pytest.fixture
def share():
    share = Share(SharedObject(1 << 20), "region", "lease", 1000)
    share._parts.memory.unlink()
    yield share
    share.close()


def left(*keys):
    """The objects that still have their name."""
    return [key for key in keys if (OBJECTS / key[1:]).exists()]


@given(st.lists(st.one_of(st.integers(1, 700), st.integers(-20, -1)), max_size=80))
def test_parts_never_overlap_and_come_back_whole(steps):
    arena, taken = Arena(2048), []
    for step in steps:
        if step > 0:
            room = arena.largest_bytes
            offset = arena.take(step)
            assert (offset is None) == (room < -(-step // ALIGNMENT) * ALIGNMENT)
            if offset is not None:
                assert offset % ALIGNMENT == 0
                assert 0 <= offset <= offset + step <= 2048
                assert all(end <= offset or offset + step <= begin for begin, end in taken)
                taken.append((offset, offset + step))
        elif taken:
            arena.give_back(taken.pop(step % len(taken))[0])
        assert arena.parts == len(taken)
    for begin, _ in taken:
        arena.give_back(begin)
    assert arena.largest_bytes == 2048


def test_the_memory_outlives_the_name_and_not_the_object():
    memory = SharedObject(10_000)
    path = OBJECTS / memory.key[1:]
    assert path.stat().st_mode & 0o777 == 0o600
    probe = memory.probe()
    assert len(set(probe)) > 4
    assert path.read_bytes()[:32] == probe
    memory.unlink()
    assert not path.exists()
    memory.view(9_999, (1,), np.dtype(np.uint8))[:] = 7
    before = len(os.listdir("/proc/self/fd"))
    memory.close()
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2  # the map has one of its own


def test_a_machine_without_shared_memory_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "none")
    with pytest.raises(ac.FailedPrecondition, match="no shared memory of 4096 bytes can be made here") as caught:
        SharedObject(4096)
    assert caught.value.reason == "SHARED_MEMORY_UNAVAILABLE"
    assert "Options.shared_memory_bytes" in caught.value.message


def test_memory_is_reserved_before_it_is_written(monkeypatch):
    """Memory that a full /dev/shm does not have would end the process with SIGBUS."""
    parts = SharedParts(SharedObject(8 << 20))
    first = parts.take(1000)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert parts.take(2 << 20) is None
    second = parts.take(1000)  # in what is reserved already
    assert parts.parts == 2
    first.release()
    first.release()
    second.release()
    assert parts.parts == 0
    parts.retire()
    monkeypatch.setattr(shared_memory.secrets, "token_hex", lambda count: f"full-{os.getpid()}")
    with pytest.raises(ac.FailedPrecondition):
        SharedObject(4096)
    assert left(parts.memory.key, f"/aclserve-full-{os.getpid()}") == []


def test_a_part_that_is_not_settled_is_nobodys_and_ends_the_region():
    parts = SharedParts(SharedObject(1 << 20))
    first, second = parts.take(100), parts.take(100)
    first.release(settled=False)
    assert parts.take(100) is None
    assert not parts.has_room(1)
    assert not parts.memory._map.closed
    second.release()
    assert parts.memory._map.closed
    assert left(parts.memory.key) == []


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.arange(2000, dtype=np.float32).reshape(2, 1000), "float32"),
        (np.arange(2000, dtype=">i4"), "int32"),
        (np.arange(4000, dtype=np.int64)[::2].reshape(1000, 2).T, "int64"),
        (np.arange(3000) % 3 == 0, "bool"),
        (ac.Typed(np.arange(2000, dtype=np.uint16), "bfloat16"), "bfloat16"),
    ],
    ids=["float", "big-endian", "not contiguous", "bool", "bfloat16"],
)
def test_tensors_are_in_the_region_as_on_the_wire(share, array, dtype):
    item = ac.Item({"x": array, "small": np.ones(3, np.int8)}, "id", outputs=["y"])
    plain = pb.InferItem(**convert.item_fields(item))
    placed = share.place(item)
    sent = pb.InferItem(**convert.item_fields(placed.item))
    assert sent.inputs[1] == plain.inputs[1]
    assert sent.outputs == plain.outputs
    where = sent.inputs[0].region
    assert (sent.inputs[0].shape, sent.inputs[0].data_type) == (plain.inputs[0].shape, plain.inputs[0].data_type)
    assert convert.dtype_name(sent.inputs[0].data_type) == dtype
    assert where.region_id == "region"
    assert where.length_bytes == len(plain.inputs[0].data)
    content = share._parts.memory.view(where.offset_bytes, (where.length_bytes,), np.dtype(np.uint8))
    assert bytes(content) == plain.inputs[0].data
    assert pb.InferItem(**convert.item_fields(placed.inline())) == plain
    assert share.inline_bytes(item) == 3
    assert convert.inline_bytes(placed.item) == 3


def test_what_is_small_or_finds_no_room_travels_in_the_message(share):
    assert share.place(ac.Item({"x": np.zeros(999, np.uint8)})) is None
    assert share.place(ac.Item({"x": ac.Zeros((1000,)), "y": ac.BufferRef("b", (5000,))})) is None
    large = ac.Item({"x": np.zeros(600_000, np.uint8)})
    placed = share.place(large)
    assert share.inline_bytes(large) == 600_000
    assert share.place(large) is None
    placed.release()
    assert share.inline_bytes(large) == 0
    assert share.place(large) is not None
    assert share.items == 1


def described(**fields):
    specs = tuple(
        ac.TensorSpec(name, dtype, shape, "ND", size)
        for name, dtype, shape, size in (
            ("rows", "float32", (-1, 500), 8 * 2000),
            ("varies", "uint8", (-1, -1), 5000),
            ("unknown", "uint8", (-1, -1), 0),
            ("fixed", "int64", (250,), 0),
            ("scalar", "int64", (), 8),
            ("new", "unknown(99)", (9000,), 0),
        )
    )
    defaults = dict.fromkeys(ac.ModelDescription.__dataclass_fields__)
    return ac.ModelDescription(**{**defaults, "outputs": specs, "batching": ac.Batching.ROWS, **fields})


def test_outputs_have_the_room_that_they_may_need():
    item = ac.Item({"x": np.zeros((3, 4))})
    sizes = output_bytes(described(), item)
    assert sizes == {"rows": 6000, "varies": 5000, "unknown": 0, "fixed": 3 * 8, "scalar": 8, "new": 0}
    assert output_bytes(described(batching=ac.Batching.NONE), item)["rows"] == 8 * 2000
    assert output_bytes(described(), ac.Item({"x": ac.Zeros((5, 2))}))["rows"] == 10_000


@pytest.mark.parametrize(
    ("outputs", "shared", "inline"),
    [
        (None, ["rows", "varies"], ["unknown", "fixed", "scalar", "new"]),
        (["scalar", "rows"], ["rows"], ["scalar"]),
        ({"rows": None, "varies": ac.BufferRef("b")}, ["rows"], ["varies"]),
        (["rows", "rows"], [], ["rows", "rows"]),
        (["nonsense"], [], ["nonsense"]),
    ],
)
def test_large_outputs_are_directed_into_the_region(share, outputs, shared, inline):
    placed = share.place(ac.Item({"x": np.zeros((3, 400))}, outputs=outputs), described())
    sent = convert.outputs_to_wire(placed.item.outputs)
    assert [wanted.name for wanted in sent if wanted.HasField("region")] == shared
    assert [wanted.name for wanted in sent if not wanted.HasField("region")] == inline
    slices = [(ref.offset_bytes, ref.length_bytes) for wanted in sent if (ref := wanted.region).region_id]
    x = convert.item_fields(placed.item)["inputs"][0].region
    slices = sorted([*slices, (x.offset_bytes, x.length_bytes)])
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(slices))


def test_an_output_is_a_copy_and_only_from_where_it_was_asked_to(share):
    placed = share.place(ac.Item({"x": np.zeros((3, 4))}, outputs=["rows"]), described())
    where = convert.outputs_to_wire(placed.item.outputs)[0].region
    content = np.arange(1500, dtype=np.float32).reshape(3, 500)
    share._parts.memory.view(where.offset_bytes, (3, 500), np.dtype(np.float32))[:] = content
    fields = {"name": "rows", "data_type": tensor_pb2.DATA_TYPE_FLOAT32, "shape": [3, 500]}
    result = placed.read(tensor_pb2.Tensor(**fields, region=where))
    placed.release()
    share.close()
    np.testing.assert_array_equal(result, content)
    assert not result.flags.writeable
    for change in (
        {"shape": [4, 500]},
        {"name": "other"},
        {"shape": [-1, 500]},
        {"data_type": 99},
        {"region": tensor_pb2.RegionSlice(region_id="region", offset_bytes=where.offset_bytes + 64)},
        {"region": tensor_pb2.RegionSlice(region_id="r", offset_bytes=where.offset_bytes)},
    ):
        with pytest.raises(ac.InvalidArgument):
            placed.read(tensor_pb2.Tensor(**{**fields, "region": where, **change}))


def test_a_killed_process_leaves_nothing_behind(make_server):
    server = make_server(shared_memory=True)
    script = (
        "import sys, time, numpy as np, aclserve_client as ac\n"
        "client = ac.Client(sys.argv[1], ac.Options(shared_memory=True))\n"
        "x = np.ones((9000, 3), np.float32)\n"
        "client.infer('echo', {'x': x})\n"
        "client.stream('echo').__enter__().send({'x': x})\n"
        "print('sent', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, server.address], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "sent\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert len(server.regions.keys) == 2
    assert left(*server.regions.keys) == []
