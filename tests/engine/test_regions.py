"""The registry of shared-memory regions: who may name what, what is refused, and when an object is closed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from aclserve.errors import (
    AclserveError,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from aclserve_server.engine.items import RegionSlice
from aclserve_server.engine.regions import MAX_NAME_BYTES, RegionPin, Regions
from aclserve_server.engine.shared_objects import MAX_KEY_BYTES
from shared_object import FOLDER, SharedObject, open_descriptors, shared_object

CONTENT = bytes(range(256)) * 4
HUGE = (1 << 64) - 1


@pytest.fixture
def shared() -> Iterator[SharedObject]:
    with shared_object(CONTENT) as made:
        yield made


@pytest.fixture
def regions() -> Iterator[Regions]:
    before = open_descriptors()
    made = Regions(enabled=True, max_per_owner=3)
    yield made
    made.close()
    assert open_descriptors() == before
    use = made.use()
    assert (use.regions, use.descriptors, use.pins) == (0, 0, 0)


def reason(error: pytest.ExceptionInfo[AclserveError]) -> str:
    return error.value.reason


def read(pin: RegionPin, size: int) -> bytes:
    target = bytearray(size)
    pin.read_into(memoryview(target))
    return bytes(target)


def test_a_region_is_read_and_written_in_place(regions: Regions, shared: SharedObject) -> None:
    before = open_descriptors()
    region = regions.register("mine", "a", shared.key, 100, 600, CONTENT[100:164])
    assert (region.name, region.key, region.offset_bytes, region.size_bytes) == ("a", shared.key, 100, 600)
    assert regions.find("mine", "a") is region
    source = regions.pin("mine", RegionSlice("a", 50, 0), 200)
    target = regions.pin("mine", RegionSlice("a", 300, 0), 200, output=True)
    assert region.pins == 2
    assert read(source, 200) == CONTENT[150:350]
    target.write(memoryview(b"\xee" * 200))
    assert shared.read(0, 1024) == CONTENT[:400] + b"\xee" * 200 + CONTENT[600:]
    for pin in (source, target):
        pin.release()
        pin.release()
    use = regions.use()
    assert (region.pins, use.pins, use.read_bytes, use.written_bytes) == (0, 0, 200, 200)
    assert len(open_descriptors() - before) == 1
    regions.unregister("mine", "a")
    assert open_descriptors() == before


def test_owners_do_not_see_each_other(regions: Regions, shared: SharedObject) -> None:
    for owner in ("", "mine", "other"):
        regions.register(owner, "same", shared.key, 0, 10)
    regions.register("other", "another", shared.key, 0, 20)
    assert [region.name for region in regions.list("other")] == ["another", "same"]
    assert [region.size_bytes for region in regions.list("mine")] == [10]
    assert regions.find("mine", "another") is None
    for owner in ("mine", "", "nobody"):
        with pytest.raises(NotFound) as refused:
            regions.pin(owner, RegionSlice("another", 0, 0), 1)
        assert reason(refused) == "REGION_NOT_FOUND"
        with pytest.raises(NotFound):
            regions.unregister(owner, "another")
    regions.end_owner("mine")
    assert regions.list("mine") == []
    assert regions.use().regions == 3


def test_a_region_in_use_stays(regions: Regions, shared: SharedObject) -> None:
    before = open_descriptors()
    for name in "abc":
        regions.register("mine", name, shared.key, 0, 100)
    pin = regions.pin("mine", RegionSlice("b", 0, 0), 100)
    with pytest.raises(FailedPrecondition) as refused:
        regions.unregister("mine", "b")
    assert reason(refused) == "REGION_IN_USE"
    with pytest.raises(FailedPrecondition, match="1 of 3 regions") as refused:
        regions.unregister_all("mine")
    assert reason(refused) == "REGION_IN_USE"
    assert [region.name for region in regions.list("mine")] == ["b"]
    regions.end_owner("mine")
    assert regions.list("mine") == []
    assert len(open_descriptors() - before) == 1
    assert read(pin, 100) == CONTENT[:100]
    pin.release()
    assert open_descriptors() == before
    regions.unregister_all("mine")


def test_the_number_of_regions_is_bounded(shared: SharedObject) -> None:
    regions = Regions(enabled=True, max_per_owner=2, max_total=3)
    for name in "ab":
        regions.register("mine", name, shared.key, 0, 1)
    with pytest.raises(ResourceExhausted, match="2 regions are registered") as refused:
        regions.register("mine", "c", shared.key, 0, 1)
    assert reason(refused) == "TOO_MANY_REGIONS"
    held = regions.pin("mine", RegionSlice("a", 0, 0), 1)
    regions.end_owner("mine")
    for name in "ab":
        regions.register("other", name, shared.key, 0, 1)
    with pytest.raises(ResourceExhausted, match="of this server") as refused:
        regions.register("third", "a", shared.key, 0, 1)
    assert reason(refused) == "TOO_MANY_REGIONS"
    held.release()
    regions.register("third", "a", shared.key, 0, 1)
    regions.close()
    assert regions.use().descriptors == 0


@pytest.mark.parametrize(
    "key", ["", "/", ".", "/.", "..", "/..", "//x", "/a/b", "../etc/passwd", "a\0b", "/" + "n" * 256]
)
def test_a_key_is_one_name(regions: Regions, key: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        regions.register("mine", "a", key, 0, 1)
    assert reason(refused) == "REGION_KEY_INVALID"


def test_objects_of_a_server_s_own_are_refused(regions: Regions) -> None:
    with pytest.raises(InvalidArgument) as refused:
        regions.register("mine", "a", "/triton_python_backend_shm_region_0", 0, 1)
    assert reason(refused) == "REGION_KEY_INVALID"


def test_what_is_no_object_of_bytes_is_not_visible(regions: Regions, shared: SharedObject) -> None:
    """Alike for all, so that nobody learns what others have: absent, a link, a pipe, a folder, not to be opened."""
    names = [f"aclserve-test-{kind}-{os.getpid()}" for kind in ("absent", "link", "pipe", "folder", "closed")]
    link, pipe, folder, closed = (FOLDER / name for name in names[1:])
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        link.symlink_to(shared.path)
        os.mkfifo(pipe)
        folder.mkdir()
        closed.write_bytes(b"x" * 10)
        closed.chmod(0o000)
        messages = set()
        tried = names if os.getuid() else names[:-1]  # root may open anything
        for name in [*tried, "n" * MAX_KEY_BYTES]:
            with pytest.raises(NotFound) as refused:
                regions.register("mine", "a", f"/{name}", 0, 1)
            assert reason(refused) == "REGION_NOT_VISIBLE"
            messages.add(refused.value.message.replace(name, ""))
        assert len(messages) == 1
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        for path in (link, pipe, closed):
            path.unlink(missing_ok=True)
        folder.rmdir()


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1025), (1024, 1), (1025, 1), (HUGE, 1), (0, HUGE), (HUGE, HUGE), (1 << 63, 1 << 63), (HUGE - 1023, 1024)],
)
def test_a_region_lies_inside_its_object(regions: Regions, shared: SharedObject, offset: int, size: int) -> None:
    with pytest.raises(OutOfRange) as refused:
        regions.register("mine", "a", shared.key, offset, size)
    assert reason(refused) == "RANGE_OUTSIDE_REGION"


@pytest.mark.parametrize(
    ("offset", "length", "need"),
    [(100, 0, 1), (99, 0, 2), (101, 0, 1), (0, 101, 101), (HUGE, 0, 1), (HUGE, HUGE, 1), (1 << 63, 1 << 63, 1)],
)
def test_a_slice_lies_inside_its_region(
    regions: Regions, shared: SharedObject, offset: int, length: int, need: int
) -> None:
    region = regions.register("mine", "a", shared.key, 10, 100)
    part = RegionSlice("a", offset, length)
    with pytest.raises(OutOfRange) as refused:
        regions.pin("mine", part, need)
    assert reason(refused) == "RANGE_OUTSIDE_REGION"
    with pytest.raises((OutOfRange, FailedPrecondition)) as refused:
        regions.pin("mine", part, need, output=True)
    assert reason(refused) == ("RANGE_OUTSIDE_REGION" if offset + length > 100 else "REGION_TOO_SMALL")
    assert region.pins == 0


def test_an_output_s_range_is_as_long_as_can_be_where_the_need_is_unknown(
    regions: Regions, shared: SharedObject
) -> None:
    regions.register("mine", "a", shared.key, 10, 100)
    for part, need, length in ((RegionSlice("a", 30, 0), 0, 70), (RegionSlice("a", 30, 5), 0, 5)):
        pin = regions.pin("mine", part, need, output=True)
        assert pin.length_bytes == length
        pin.release()
    with pytest.raises(FailedPrecondition) as refused:
        regions.pin("mine", RegionSlice("a", 0, 5), 6, output=True)
    assert reason(refused) == "REGION_TOO_SMALL"
    assert refused.value.metadata["needed_bytes"] == "6"


def test_an_object_that_shrinks_is_an_error_and_is_never_lengthened(regions: Regions, shared: SharedObject) -> None:
    regions.register("mine", "a", shared.key, 0, 1024)
    pin = regions.pin("mine", RegionSlice("a", 100, 0), 200)
    shared.truncate(150)
    with pytest.raises(FailedPrecondition) as refused:
        read(pin, 200)
    assert reason(refused) == "REGION_SHRANK"
    with pytest.raises(FailedPrecondition) as refused:
        pin.write(memoryview(bytes(200)))
    assert reason(refused) == "REGION_SHRANK"
    assert shared.size == 150
    assert shared.read(100, 50) == CONTENT[100:150]
    shared.truncate(0)
    with pytest.raises(FailedPrecondition):
        read(pin, 1)
    pin.release()
    use = regions.use()
    assert (use.read_bytes, use.written_bytes) == (0, 0)


def test_the_probe_tells_another_object(regions: Regions, shared: SharedObject) -> None:
    for probe in (b"", CONTENT[7:8], CONTENT[7:71]):
        regions.register("mine", "a", shared.key, 7, 64, probe)
        regions.unregister("mine", "a")
    descriptors = open_descriptors()
    for probe in (b"x", CONTENT[:64]):
        with pytest.raises(FailedPrecondition) as refused:
            regions.register("mine", "a", shared.key, 7, 64, probe)
        assert reason(refused) == "REGION_DIFFERS"
    for size, probe in ((1000, bytes(65)), (3, bytes(4))):
        with pytest.raises(InvalidArgument) as wrong:
            regions.register("mine", "a", shared.key, 0, size, probe)
        assert reason(wrong) == "PROBE_TOO_LONG"
    assert open_descriptors() == descriptors


def test_names_and_sizes_are_checked(regions: Regions, shared: SharedObject) -> None:
    for name in ("", "n" * (MAX_NAME_BYTES + 1), "é" * MAX_NAME_BYTES):
        with pytest.raises(InvalidArgument) as refused:
            regions.register("mine", name, shared.key, 0, 1)
        assert reason(refused) == "REGION_NAME_INVALID"
    with pytest.raises(InvalidArgument) as refused:
        regions.register("mine", "a", shared.key, 0, 0)
    assert reason(refused) == "SIZE_IS_ZERO"
    regions.register("mine", "a", shared.key, 0, 1)
    with pytest.raises(AlreadyExists) as known:
        regions.register("mine", "a", shared.key, 0, 1)
    assert reason(known) == "REGION_EXISTS"


def test_nothing_is_opened_while_it_is_off(shared: SharedObject) -> None:
    regions = Regions(enabled=False, max_per_owner=3)
    before = open_descriptors()
    with pytest.raises(FailedPrecondition, match="--system-shared-memory") as refused:
        regions.register("mine", "a", shared.key, 0, 1)
    assert reason(refused) == "SHARED_MEMORY_OFF"
    with pytest.raises(FailedPrecondition) as refused:
        regions.pin("mine", RegionSlice("a", 0, 0), 1)
    assert reason(refused) == "SHARED_MEMORY_OFF"
    regions.unregister_all("mine")
    regions.end_owner("mine")
    assert regions.list("mine") == []
    assert open_descriptors() == before
    regions.close()


def test_an_unlinked_object_is_still_the_client_s(regions: Regions, shared: SharedObject) -> None:
    regions.register("mine", "a", shared.key, 0, 100)
    shared.path.unlink()
    pin = regions.pin("mine", RegionSlice("a", 0, 0), 100)
    assert read(pin, 100) == CONTENT[:100]
    pin.release()
