"""Shared-memory regions: ranges of POSIX shared-memory objects that clients of this host read and write too.

    register -> in its owner's table -> name gone (unregister, the lease's end) -> last pin released -> object closed

An object is opened once, when it is registered. One that is sealed against shrinking is mapped and made known to the
device (`mapping`), which then works where the client's bytes are, without a copy. Of others, bytes move with `preadv`
and `pwrite` straight between the object and a slot: one copy, during which other threads run. What a client has cut off
meanwhile is a short read, and so the error of one item.

The registry belongs to the event loop. A pin's `read_into` and `write` may be called on any thread until its `release`,
which belongs to the loop again.

An owner can name any object that the server's user may open, not just its own: this is for clients that trust each
other. The object's mode is what keeps other users of the host out.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from aclserve.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from aclserve_server.access.principal import scoped
from aclserve_server.engine.items import RegionSlice
from aclserve_server.engine.mapping import Mapper, Mapping
from aclserve_server.engine.shared_objects import check_object, open_object

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 256
MAX_PROBE_BYTES = 64

_OFF = "shared memory is off on this server; send the bytes, or start it with --system-shared-memory"


@dataclass(slots=True, eq=False)
class Region:
    """A range of an object. `pins` counts the tensors of inferences under way that lie in it."""

    name: str
    key: str
    offset_bytes: int
    size_bytes: int
    descriptor: int
    pins: int = 0
    gone: bool = False
    mapping: Mapping | None = None


@dataclass(frozen=True, slots=True)
class RegionUse:
    """Totals over all owners, for metrics. `descriptors` counts regions whose name is gone too, `read_bytes` and
    `written_bytes` what inferences have moved so far.
    """

    regions: int
    descriptors: int
    pins: int
    read_bytes: int
    written_bytes: int


class RegionPin:
    """Keeps a range of a region readable and writable until `release`, which is idempotent."""

    __slots__ = ("_region", "_release", "length_bytes", "read_bytes", "slice", "written_bytes")

    def __init__(
        self, region: Region, part: RegionSlice, length_bytes: int, release: Callable[[RegionPin, Region], None]
    ) -> None:
        self.slice = part
        self.length_bytes = length_bytes
        self.read_bytes = self.written_bytes = 0
        self._region = region
        self._release: Callable[[RegionPin, Region], None] | None = release

    def read_into(self, view: memoryview) -> None:
        """Fills a writable view of bytes from the range's beginning.

        Raises FailedPrecondition: REGION_SHRANK, REGION_IO_FAILED; the view's content is then undefined.
        """
        descriptor, start, done = self._region.descriptor, self._start, 0
        while done < view.nbytes:
            try:
                count = os.preadv(descriptor, [view[done:]], start + done)
            except OSError as error:
                raise self._failed("read", error) from error
            if not count:
                raise self._shrank(view.nbytes)
            done += count
        self.read_bytes += done

    def write(self, view: memoryview) -> None:
        """Writes a view of bytes to the range's beginning; never lengthens the object. Raises as `read_into` does."""
        descriptor, start, done = self._region.descriptor, self._start, 0
        try:
            if os.fstat(descriptor).st_size < start + view.nbytes:
                raise self._shrank(view.nbytes)
            while done < view.nbytes:
                done += os.pwrite(descriptor, view[done:], start + done)
        except OSError as error:
            raise self._failed("written", error) from error
        self.written_bytes += done

    def release(self) -> None:
        """The range is not used any more."""
        release, self._release = self._release, None
        if release is not None:
            release(self, self._region)

    @property
    def device_address(self) -> int:
        """Where the device finds the range; 0 where it cannot."""
        mapping = self._region.mapping
        return mapping.device_address + self._start if mapping is not None and mapping.device_address else 0

    @property
    def _start(self) -> int:
        return self._region.offset_bytes + self.slice.offset_bytes

    def _shrank(self, size_bytes: int) -> FailedPrecondition:
        return FailedPrecondition(
            f"the shared memory of region {self._region.name!r} has become shorter: {size_bytes} bytes from offset "
            f"{self.slice.offset_bytes} are not there any more; keep its size while it is registered",
            reason="REGION_SHRANK",
            metadata={"region": self._region.name, "offset_bytes": self.slice.offset_bytes, "length_bytes": size_bytes},
        )

    def _failed(self, what: str, error: OSError) -> FailedPrecondition:
        return FailedPrecondition(
            f"the shared memory of region {self._region.name!r} cannot be {what}: {os.strerror(error.errno or 0)}",
            reason="REGION_IO_FAILED",
            metadata={"region": self._region.name},
        )


class Regions:
    """The regions of all owners: a lease's id, or "" for the clients that have none. Belongs to the event loop."""

    def __init__(
        self, enabled: bool, max_per_owner: int, *, max_total: int | None = None, mapper: Mapper | None = None
    ) -> None:
        """`max_total` bounds the open objects of all owners; None: a third of the descriptors this process may have,
        of which a mapped object takes two. `mapper`: maps those that may be mapped; None: none is.
        """
        self.enabled = enabled
        self._max_per_owner = max_per_owner
        self._max_total = max_total or max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3, 1)
        self._mapper = mapper
        self._owners: dict[str, dict[str, Region]] = {}
        self._descriptors = 0
        self._pins = 0
        self._read_bytes = self._written_bytes = 0

    def use(self) -> RegionUse:
        """Totals for metrics."""
        count = sum(map(len, self._owners.values()))
        return RegionUse(count, self._descriptors, self._pins, self._read_bytes, self._written_bytes)

    def register(
        self, owner: str, name: str, key: str, offset_bytes: int, size_bytes: int, probe: bytes = b""
    ) -> Region:
        """Opens the object `key` and gives its range a name.

        `probe` is what the range begins with. Raises FailedPrecondition (SHARED_MEMORY_OFF, REGION_DIFFERS),
        InvalidArgument (REGION_NAME_INVALID, REGION_KEY_INVALID, SIZE_IS_ZERO, PROBE_TOO_LONG), AlreadyExists
        (REGION_EXISTS), ResourceExhausted (TOO_MANY_REGIONS), NotFound (REGION_NOT_VISIBLE), OutOfRange
        (RANGE_OUTSIDE_REGION).
        """
        if not self.enabled:
            raise FailedPrecondition(_OFF, reason="SHARED_MEMORY_OFF")
        if not 1 <= len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
            raise InvalidArgument(
                f"a region's name has 1 to {MAX_NAME_BYTES} bytes; got {len(name)} characters",
                reason="REGION_NAME_INVALID",
            )
        if size_bytes < 1:
            raise InvalidArgument("a region of 0 bytes was asked for; expected 1 or more", reason="SIZE_IS_ZERO")
        if len(probe) > min(MAX_PROBE_BYTES, size_bytes):
            raise InvalidArgument(
                f"the probe has {len(probe)} bytes; expected at most {MAX_PROBE_BYTES}, and no more than the region",
                reason="PROBE_TOO_LONG",
                metadata={"got_bytes": len(probe), "max_bytes": min(MAX_PROBE_BYTES, size_bytes)},
            )
        known = self._owners.get(scoped(owner), {})
        if name in known:
            raise AlreadyExists(
                f"there is a region {name!r} already; unregister it first, or choose another name",
                reason="REGION_EXISTS",
                metadata={"region": name},
            )
        self._check_count(len(known))
        shared = open_object(key)
        try:
            check_object(shared, key, offset_bytes, size_bytes, probe)
        except BaseException:
            os.close(shared.descriptor)
            raise
        region = Region(name, key, offset_bytes, size_bytes, shared.descriptor)
        if self._mapper is not None and shared.sealed:
            region.mapping = self._mapper.map(shared.descriptor, offset_bytes + size_bytes)
        self._descriptors += 1
        self._owners.setdefault(scoped(owner), {})[name] = region
        return region

    def unregister(self, owner: str, name: str) -> None:
        """Forgets a region and closes its object. Raises NotFound (REGION_NOT_FOUND), FailedPrecondition
        (REGION_IN_USE).
        """
        region = self._find(owner, name)
        if region.pins:
            raise FailedPrecondition(
                f"region {name!r} is in use by an inference; wait for its answer",
                reason="REGION_IN_USE",
                metadata={"region": name, "pins": region.pins},
            )
        self._drop(owner, region)

    def unregister_all(self, owner: str) -> None:
        """Forgets an owner's regions, but for those in use: raises FailedPrecondition, REGION_IN_USE, if some are."""
        regions = self.list(owner)
        for region in regions:
            if not region.pins:
                self._drop(owner, region)
        left = sum(1 for region in regions if region.pins)
        if left:
            raise FailedPrecondition(
                f"{left} of {len(regions)} regions are in use by inferences and stay; wait for the answers",
                reason="REGION_IN_USE",
                metadata={"left": left},
            )

    def find(self, owner: str, name: str) -> Region | None:
        """An owner's region."""
        return self._owners.get(scoped(owner), {}).get(name)

    def list(self, owner: str) -> list[Region]:
        """An owner's regions, by name."""
        regions = self._owners.get(scoped(owner), {})
        return [regions[name] for name in sorted(regions)]

    def pin(self, owner: str, part: RegionSlice, need_bytes: int, *, output: bool = False) -> RegionPin:
        """Keeps a range for an inference: at least `need_bytes` of it, 0 where that is not known yet.

        Raises NotFound (REGION_NOT_FOUND) and OutOfRange (RANGE_OUTSIDE_REGION); for an output that does not fit
        FailedPrecondition (REGION_TOO_SMALL).
        """
        if not self.enabled:
            raise FailedPrecondition(_OFF, reason="SHARED_MEMORY_OFF")
        region = self._find(owner, part.name)
        offset, length = part.offset_bytes, part.length_bytes or (0 if output else need_bytes)
        if offset + length > region.size_bytes:
            raise _outside(region, offset, length)
        available = part.length_bytes or region.size_bytes - offset
        if available < need_bytes:
            raise region_too_small(part, available, need_bytes)
        region.pins += 1
        self._pins += 1
        return RegionPin(region, part, part.length_bytes or need_bytes or available, self._unpin)

    def end_owner(self, owner: str) -> None:
        """The owner is gone, and with it its regions' names; objects in use are closed with their last pin."""
        for region in self.list(owner):
            self._drop(owner, region)

    def close(self) -> None:
        """Forgets all regions."""
        for owner in list(self._owners):
            self.end_owner(owner)
        if self._mapper is not None:
            self._mapper.close()
        if self._pins:
            log.warning("%d ranges of shared memory are still in use at the end", self._pins)

    def _check_count(self, held: int) -> None:
        if held >= self._max_per_owner:
            raise _too_many(f"{held} regions are registered, the most that one owner may have", self._max_per_owner)
        if self._descriptors >= self._max_total:
            raise _too_many("all regions of this server are taken by its clients", self._max_total)

    def _find(self, owner: str, name: str) -> Region:
        region = self.find(owner, name)
        if region is None:
            raise NotFound(
                f"there is no region {name[:MAX_NAME_BYTES]!r}: it was never registered, or not by you, or is "
                "unregistered; register it first, and show the same lease in every call",
                reason="REGION_NOT_FOUND",
                metadata={"region": name[:MAX_NAME_BYTES]},
            )
        return region

    def _drop(self, owner: str, region: Region) -> None:
        regions = self._owners[scoped(owner)]
        del regions[region.name]
        if not regions:
            del self._owners[scoped(owner)]
        region.gone = True
        self._settle(region)

    def _unpin(self, pin: RegionPin, region: Region) -> None:
        region.pins -= 1
        self._pins -= 1
        self._read_bytes += pin.read_bytes
        self._written_bytes += pin.written_bytes
        self._settle(region)

    def _settle(self, region: Region) -> None:
        if region.gone and not region.pins:
            self._descriptors -= 1
            if region.mapping is not None and self._mapper is not None:
                self._mapper.unmap(region.mapping)
            os.close(region.descriptor)


def region_too_small(part: RegionSlice, available_bytes: int, need_bytes: int) -> FailedPrecondition:
    """The error for an output that is longer than its range."""
    return FailedPrecondition(
        f"the output has {need_bytes} bytes, its range of region {part.name!r} {available_bytes}; give it a larger one",
        reason="REGION_TOO_SMALL",
        metadata={"region": part.name, "available_bytes": available_bytes, "needed_bytes": need_bytes},
    )


def _outside(region: Region, offset_bytes: int, length_bytes: int) -> OutOfRange:
    return OutOfRange(
        f"{length_bytes} bytes from offset {offset_bytes} were asked for; region {region.name!r} has "
        f"{region.size_bytes} bytes",
        reason="RANGE_OUTSIDE_REGION",
        metadata={
            "region": region.name,
            "offset_bytes": offset_bytes,
            "length_bytes": length_bytes,
            "region_bytes": region.size_bytes,
        },
    )


def _too_many(what: str, most: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{what}; unregister some, or put several tensors into one",
        reason="TOO_MANY_REGIONS",
        metadata={"max_regions": most},
    )
