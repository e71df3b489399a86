"""Leases: ids, expiry, limits. Pure bookkeeping; time is an argument and nothing here calls the device.

    Leases --(secret id)--> Lease --(random ids)--> ClientBuffer, Upload

A lease lives until its time to live has passed since the last renewal, or until it is released. From then on its id and
the ids of all it held are unknown. A lease belongs to the principal who opened it: to others, too, its id is unknown.
What is pinned then stays charged to its quota until the last pin is gone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from aclserve.errors import InvalidArgument, NotFound, ResourceExhausted, Unauthenticated
from aclserve_server.access.principal import CURRENT, Principal
from aclserve_server.engine.holdings import RETRY_DELAY_S, ClientBuffer, PrincipalQuota, Quota, Upload

MIN_TTL_S = 1.0
DEFAULT_TTL_S = 60.0


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What clients may hold at the most. `max_buffers_per_lease` counts uploads too."""

    max_leases: int
    max_lease_device_bytes: int
    max_lease_host_bytes: int
    max_ttl_s: float
    max_upload_bytes: int
    max_buffers_per_lease: int = 4096


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease as its owner sees it, at one moment."""

    id: str
    ttl_s: float
    remaining_s: float
    device_bytes: int
    device_quota_bytes: int
    host_bytes: int
    host_quota_bytes: int


@dataclass(slots=True, eq=False)
class Lease:
    """One owner's memory. `expires_at` is on the table's clock; `allocating` counts what is on its way."""

    id: str
    ttl_s: float
    expires_at: float
    device: Quota
    host: Quota
    owner: Principal | None = None
    buffers: dict[str, ClientBuffer] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    allocating: int = 0
    ended: bool = False

    def info(self, now: float) -> LeaseInfo:
        """What the owner may know."""
        device, host = self.device, self.host
        assert device.limit_bytes is not None
        assert host.limit_bytes is not None
        return LeaseInfo(
            self.id,
            self.ttl_s,
            max(self.expires_at - now, 0.0),
            device.used_bytes,
            device.limit_bytes,
            host.used_bytes,
            host.limit_bytes,
        )

    def buffer(self, buffer_id: str) -> ClientBuffer:
        """Raises NotFound, reason BUFFER_NOT_FOUND, alike for unknown, freed and foreign buffers."""
        found = self.buffers.get(buffer_id)
        if found is None:
            raise NotFound(
                "this lease has no such buffer: it was never allocated, or was freed, or belongs to another lease",
                reason="BUFFER_NOT_FOUND",
                metadata={"buffer_id": buffer_id},
            )
        return found

    def upload(self, upload_id: str) -> Upload:
        """Raises NotFound, reason UPLOAD_NOT_FOUND, also for an upload that is not complete."""
        found = self.uploads.get(upload_id)
        if found is None or not found.complete:
            raise NotFound(
                "this lease has no such upload: send the file with UploadModel and use the id that it returns",
                reason="UPLOAD_NOT_FOUND",
                metadata={"upload_id": upload_id},
            )
        return found


class Leases:
    """The table of leases. `end` is told every lease that expires, at the moment that is noticed."""

    def __init__(self, limits: MemoryLimits, ids: Callable[[], str], end: Callable[[Lease], object]) -> None:
        self.device_total = Quota("device")
        self.host_total = Quota("host")
        self._limits = limits
        self._ids = ids
        self._end = end
        self._leases: dict[str, Lease] = {}
        self._shares: dict[Principal, tuple[Quota, Quota]] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def create(self, ttl_s: float | None, now: float) -> Lease:
        """Opens a lease for the principal of the call; None means 60 s, or the limit where that is less.

        Raises InvalidArgument (LEASE_TTL_OUT_OF_RANGE) and ResourceExhausted (TOO_MANY_LEASES, QUOTA_EXCEEDED).
        """
        limits = self._limits
        if ttl_s is None:
            ttl_s = min(DEFAULT_TTL_S, limits.max_ttl_s)
        if not MIN_TTL_S <= ttl_s <= limits.max_ttl_s:
            raise InvalidArgument(
                f"a time to live of {ttl_s:g} s was asked for; expected {MIN_TTL_S:g} s to {limits.max_ttl_s:g} s",
                reason="LEASE_TTL_OUT_OF_RANGE",
                metadata={"ttl_s": f"{ttl_s:g}", "min_ttl_s": f"{MIN_TTL_S:g}", "max_ttl_s": f"{limits.max_ttl_s:g}"},
            )
        if len(self._leases) >= limits.max_leases:
            self.expire(now)
        if len(self._leases) >= limits.max_leases:
            raise ResourceExhausted(
                f"all {limits.max_leases} leases of this server are taken; try again when one has ended",
                reason="TOO_MANY_LEASES",
                metadata={"max_leases": limits.max_leases},
                retry_delay=RETRY_DELAY_S,
            )
        owner = CURRENT.get()
        if owner is not None:
            owner.check_known()
            owner.take_lease(RETRY_DELAY_S)
        device, host = self._shares_of(owner)
        lease = Lease(
            self._ids(),
            ttl_s,
            now + ttl_s,
            Quota("device", limits.max_lease_device_bytes, device),
            Quota("host", limits.max_lease_host_bytes, host),
            owner,
        )
        self._leases[lease.id] = lease
        return lease

    def find(self, lease_id: str, now: float) -> Lease:
        """Raises Unauthenticated (LEASE_REQUIRED) for "", NotFound (LEASE_NOT_FOUND) for unknown and expired ones."""
        if not lease_id:
            raise Unauthenticated(
                "this needs a lease: call CreateLease and send the lease's id in the metadata key aclserve-lease",
                reason="LEASE_REQUIRED",
            )
        lease = self._leases.get(lease_id)
        if lease is not None and lease.expires_at <= now:
            self.remove(lease)
            self._end(lease)
            lease = None
        owner = CURRENT.get()
        if lease is None or lease.owner is not owner:
            raise lease_not_found()
        if owner is not None:
            owner.check_known()
        return lease

    def remove(self, lease: Lease) -> None:
        """Forgets a lease: from here on its id is unknown."""
        lease.ended = True
        if self._leases.pop(lease.id, None) is not None and lease.owner is not None:
            lease.owner.leases -= 1

    def expire(self, now: float) -> float | None:
        """Ends what is due and returns when the next lease will be, None when there is none."""
        for lease in [lease for lease in self._leases.values() if lease.expires_at <= now]:
            self.remove(lease)
            self._end(lease)
        return min((lease.expires_at for lease in self._leases.values()), default=None)

    def clear(self) -> None:
        """Ends all leases."""
        for lease in list(self._leases.values()):
            self.remove(lease)
            self._end(lease)

    def _shares_of(self, owner: Principal | None) -> tuple[Quota, Quota]:
        """What a principal's leases are charged for together; those of nobody only count for the totals."""
        if owner is None:
            return self.device_total, self.host_total
        if owner not in self._shares:
            device = PrincipalQuota("device", owner, self.device_total)
            self._shares[owner] = device, PrincipalQuota("host", owner, self.host_total)
        return self._shares[owner]

    @property
    def upload_count(self) -> int:
        """Uploads of all leases, those under way included."""
        return sum(len(lease.uploads) for lease in self._leases.values())

    def check_count(self, lease: Lease) -> None:
        """Raises ResourceExhausted, reason LEASE_QUOTA_EXCEEDED, when the lease holds as many things as it may."""
        held = len(lease.buffers) + len(lease.uploads) + lease.allocating
        if held >= self._limits.max_buffers_per_lease:
            raise ResourceExhausted(
                f"the lease holds {held} buffers and uploads, the most it may; free some, or use fewer and larger ones",
                reason="LEASE_QUOTA_EXCEEDED",
                metadata={"buffers": held, "max_buffers": self._limits.max_buffers_per_lease},
            )


def ids_of(replica: str) -> Callable[[], str]:
    """What makes secret ids. They begin with the replica's name, where it has one, and a dot, which no secret has: a
    proxy that reads the part before it knows which server has the lease.
    """
    return (lambda: f"{replica}.{secrets.token_urlsafe()}") if replica else secrets.token_urlsafe


def lease_not_found() -> NotFound:
    """The one answer for leases that are unknown, expired or released."""
    return NotFound(
        "there is no such lease: it has expired, was released, or never was; all it held is freed. Create a new one",
        reason="LEASE_NOT_FOUND",
    )
