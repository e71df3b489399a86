"""Whether items go through shared memory, and the verbs for it.

Registering a region whose first bytes are random tells whether a server can share. Streams have a region each, for as
long as their connection; calls of `infer` share one, under a lease that they renew by the way. Where the memory of a
call that was given up may still be in use, nobody gets it any more: the next item goes into a new region.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from aclserve.errors import AclserveError, Cancelled, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from aclserve.v1 import memory_pb2, model_pb2
from aclserve_client import convert, data, rpcs, verbs
from aclserve_client.options import Options, SharedMemory
from aclserve_client.retries import UNTOUCHED
from aclserve_client.rpcs import Step, Steps
from aclserve_client.shared_memory import SharedObject
from aclserve_client.sharing import Placed, Share, lost_region

logger = logging.getLogger(__name__)

_MODELS = 64
_UNSETTLED = frozenset({
    *("CONNECTION_LOST", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "UNKNOWN", "INTERNAL", "ABORTED"),
})  # fmt: skip


class Sharing:
    """One client's use of shared memory. Thread-safe; `clock` is in seconds."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self.mode: SharedMemory = options.shared_memory
        self._size_bytes = options.shared_memory_bytes
        self._min_bytes = options.shared_memory_min_bytes
        self._clock = clock
        self._lock = threading.Lock()  # guards all that follows
        self._share: Share | None = None
        self._opening = False
        self._closed = False
        self._warned = False
        self._seals = True  # until a server sees only what has a name
        self._refused: set[str] = set()
        self._leases: list[str] = []
        self._models: dict[tuple[str, int], data.ModelDescription] = {}

    def wanted(self, mode: SharedMemory, address: str) -> bool:
        """Whether a region is to be opened at an address."""
        return mode is True or (mode == "auto" and address not in self._refused)

    def refused(self, error: AclserveError, mode: SharedMemory, address: str) -> None:
        """No region could be had: with "auto" that is logged, once; otherwise, and for a lost server, it is raised."""
        if mode is True or isinstance(error, Unavailable | DeadlineExceeded | Cancelled):
            raise error
        with self._lock:
            self._refused.add(address)
            warned, self._warned = self._warned, True
        if not warned:
            logger.warning(
                "no shared memory with %s, so tensors travel in messages: %s (%s). Start the server with "
                "--system-shared-memory on this host, in containers with one /dev/shm for both, or set shared_memory "
                "to False",
                address,
                error.message,
                error.reason,
            )

    def register(self, lease_id: str, ttl_s: float = 0) -> Steps[Share]:
        """A region under a lease: sealed memory, or such as has a name where the server cannot see the former.

        Its object has no name any more when this ends, however it ends.
        """
        if self._seals:
            try:
                return (yield from self._register(SharedObject(self._size_bytes, sealed=True), lease_id, ttl_s))
            except (NotFound, InvalidArgument) as error:
                if error.reason not in ("REGION_NOT_VISIBLE", "REGION_KEY_INVALID"):
                    raise
                logger.debug("the server cannot see sealed memory, so it has to copy: %s", error)
        share = yield from self._register(SharedObject(self._size_bytes), lease_id, ttl_s)
        self._seals = False
        return share

    def _register(self, memory: SharedObject, lease_id: str, ttl_s: float) -> Steps[Share]:
        try:
            request = memory_pb2.RegisterRegionRequest(
                key=memory.key, size_bytes=memory.size_bytes, probe=memory.probe()
            )
            answer = yield Step(rpcs.REGISTER_REGION, request, lease_id)
        except BaseException:
            memory.close()
            raise
        memory.unlink()
        share = Share(memory, answer.region.id, lease_id, self._min_bytes, ttl_s)
        share.renewed_at = self._clock()
        return share

    def register_for_stream(self, lease_id: str, model: str, version: int) -> Steps[Share]:
        """A region for a stream, which knows the sizes of the outputs of the stream's model."""
        share = yield from self.register(lease_id)
        try:
            if model:
                share.model = yield from verbs.describe(model, version)
        except AclserveError as error:  # the stream will say it; until then, outputs travel in messages
            logger.debug("the outputs of %s are not known: %s", model, error)
        except BaseException:
            share.close()
            raise
        return share

    def infer(self, item: data.Item, address: str) -> Steps[data.Result]:
        """Runs one item, through shared memory where that is wanted and worth it."""
        placed = (yield from self._place(item, address)) if self.wanted(self.mode, address) else None
        if placed is None:
            return (yield from infer(item))
        settled, connected = False, True
        try:
            try:
                result = yield from infer(placed.item, placed)
                settled = True
                return result
            except AclserveError as error:
                settled, connected = error.reason not in _UNSETTLED, not isinstance(error, Unavailable)
                if not lost_region(error) and error.reason not in UNTOUCHED:
                    raise
                logger.debug("the item is sent again, in a message: %s", error)
                self._forget(placed.share, item, release=connected)
                request = model_pb2.InferRequest(**convert.item_fields(placed.inline()))
        finally:
            if not settled:
                self._forget(placed.share, item, release=connected)
            placed.release(settled=settled)
        answer = yield Step(rpcs.INFER, request)
        return convert.result_from_wire(answer)

    def _place(self, item: data.Item, address: str) -> Generator[Step, Any, Placed | None]:
        model = yield from self._describe(item)
        large = convert.inline_bytes(item) >= self._min_bytes
        if not large and not any(spec.max_bytes >= self._min_bytes for spec in (model.outputs if model else ())):
            return None
        share = yield from self._current(address)
        return share.place(item, model) if share is not None else None

    def _describe(self, item: data.Item) -> Generator[Step, Any, data.ModelDescription | None]:
        """The item's model; None where the server does not tell, which running the item will explain."""
        key = item.model, item.version
        model = self._models.get(key)
        if model is None:
            try:
                model = yield from verbs.describe(*key)
            except AclserveError:
                return None
            with self._lock:
                while len(self._models) >= _MODELS:
                    del self._models[next(iter(self._models))]
                self._models[key] = model
        return model

    def _current(self, address: str) -> Generator[Step, Any, Share | None]:
        """The region of the calls of `infer`; None while another call opens it, or where there can be none."""
        with self._lock:
            share, now = self._share, self._clock()
            renew = share is not None and now - share.renewed_at > share.ttl_s / verbs.RENEWALS_PER_TTL
            if share is not None and renew:
                share.renewed_at = now
            if share is None and (self._opening or self._closed):
                return None
            self._opening = share is None
        if share is not None:
            return (yield from self._renewed(share)) if renew else share
        try:
            return (yield from self._open(address))
        except AclserveError as error:
            self.refused(error, self.mode, address)
            return None
        finally:
            self._opening = False

    def _renewed(self, share: Share) -> Generator[Step, Any, Share | None]:
        try:
            yield Step(rpcs.RENEW_LEASE, memory_pb2.RenewLeaseRequest(), share.lease_id)
            return share
        except AclserveError as error:
            logger.debug("the lease of the shared memory is gone, the next call takes another one: %s", error)
            self._forget(share, None, release=False)
            return None

    def _open(self, address: str) -> Steps[Share]:
        yield from self._release()
        lease = yield from verbs.create_lease(None)
        try:
            share = yield from self.register(lease.id, lease.ttl_s)
        except AclserveError:
            with self._lock:
                self._leases.append(lease.id)
            yield from self._release()
            raise
        with self._lock:
            if not self._closed:
                self._share = share
                return share
        share.close()
        raise Cancelled(f"the client of {address} was closed", reason="CLIENT_CLOSED")

    def _forget(self, share: Share, item: data.Item | None, *, release: bool) -> None:
        """The next call opens another region. `release`: it releases this one's lease, which otherwise expires."""
        with self._lock:
            if item is not None:
                self._models.pop((item.model, item.version), None)
            if self._share is share:
                self._share = None
                if release:
                    self._leases.append(share.lease_id)
        share.retire()

    def _release(self) -> Steps[None]:
        """Releases the leases of regions that are used no more; those that cannot be released expire."""
        while True:
            with self._lock:
                lease_id = self._leases.pop() if self._leases else None
            if lease_id is None:
                return
            try:
                yield Step(rpcs.RELEASE_LEASE, memory_pb2.ReleaseLeaseRequest(), lease_id)
            except AclserveError as error:
                logger.debug("a lease was not released, it will expire: %s", error)

    def close(self) -> Steps[None]:
        """Ends the sharing of `infer`."""
        with self._lock:
            self._closed = True
            share, self._share = self._share, None
            if share is not None:
                self._leases.append(share.lease_id)
        if share is not None:
            share.retire()
        yield from self._release()


def infer(item: data.Item, placed: Placed | None = None) -> Steps[data.Result]:
    """Runs one item: as it is, or as placed in a region."""
    request = model_pb2.InferRequest(**convert.item_fields(item))
    if placed is None:
        return convert.result_from_wire((yield Step(rpcs.INFER, request)))
    answer = yield Step(rpcs.INFER, request, placed.share.lease_id)
    return convert.result_from_wire(answer, placed.read)
