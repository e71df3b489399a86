"""Principals: who calls, what they may call, and how much they may use at a time.

A principal is one object for as long as the server knows its name, however often the file is read again: so what it
uses is counted on, and what it owns stays its own. The call under way finds its principal in `CURRENT`, which the tasks
of the call inherit. Where authentication is off it is None, and nothing is counted. Event loop only.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from aclserve.errors import PermissionDenied, ResourceExhausted, Unauthenticated

INFER, MEMORY, ADMIN = "infer", "memory", "admin"
GROUPS = (INFER, MEMORY, ADMIN)
"""What can be granted: inference and what it needs to know; memory on device and host; whatever changes the server."""

ANYONE = "anyone"
"""Calls of every principal, whatever was granted."""

OPEN = "open"
"""Calls that need no principal: health."""

RETRY_DELAY_S = 0.1
"""When to ask again for what other calls of the same principal have to give back first."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a principal may use at a time; None sets no bound of its own."""

    max_streams: int | None = None
    max_items: int | None = None
    max_leases: int | None = None
    max_device_bytes: int | None = None
    max_host_bytes: int | None = None
    max_requests_per_s: float | None = None


class Principal:
    """One caller, by name. `streams`, `items` and `leases` are in use now. `known` until the file drops the name."""

    __slots__ = ("_filled_at", "_tokens", "groups", "items", "known", "leases", "name", "quotas", "streams")

    def __init__(self, name: str, groups: frozenset[str] = frozenset(), quotas: Quotas | None = None) -> None:
        self.name = name
        self.groups = groups
        self.quotas = quotas or Quotas()
        self.known = True
        self.streams = self.items = self.leases = 0
        self._tokens: float | None = None
        self._filled_at = 0.0

    def __repr__(self) -> str:
        return f"Principal({self.name!r})"

    def check_known(self) -> None:
        """Raises Unauthenticated, TOKEN_UNKNOWN, for who was taken out of the file while a call was under way."""
        if not self.known:
            raise Unauthenticated("the caller's access was withdrawn; ask for new credentials", reason="TOKEN_UNKNOWN")

    def check_group(self, group: str) -> None:
        """Raises PermissionDenied, GROUP_MISSING."""
        if group not in self.groups and group != ANYONE:
            held = ", ".join(sorted(self.groups)) or "none"
            raise PermissionDenied(
                f"this call needs the group {group!r}, which the caller has not been granted; it has {held}",
                reason="GROUP_MISSING",
                metadata={"group": group, "granted": held},
            )

    def take_request(self, now: float) -> None:
        """Counts a call against the rate: what one second allows may come at once. `now` is in seconds, any clock.

        Raises ResourceExhausted, QUOTA_EXCEEDED.
        """
        rate = self.quotas.max_requests_per_s
        if rate is None:
            return
        most = max(rate, 1.0)
        tokens = most if self._tokens is None else min(most, self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if tokens < 1.0:
            self._tokens = tokens
            raise self._exceeded("requests_per_s", f"{rate:g} calls in a second", (1.0 - tokens) / rate)
        self._tokens = tokens - 1.0

    def take_stream(self) -> None:
        """Counts an open streaming call until `streams` is lowered again. Raises as `take_request` does."""
        most = self.quotas.max_streams
        if most is not None and self.streams >= most:
            raise self._exceeded("streams", f"{most} streaming calls at a time")
        self.streams += 1

    def take_items(self, count: int) -> None:
        """Counts items in flight until `items` is lowered again. Raises as `take_request` does."""
        self.check_known()
        most = self.quotas.max_items
        if most is not None and self.items + count > most:
            raise self._exceeded("items", f"{most} items in flight")
        self.items += count

    def take_lease(self, retry_delay: float) -> None:
        """Counts a lease until `leases` is lowered again. Raises as `take_request` does."""
        most = self.quotas.max_leases
        if most is not None and self.leases >= most:
            raise self._exceeded("leases", f"{most} leases at a time", retry_delay)
        self.leases += 1

    def _exceeded(self, quota: str, allowed: str, retry_delay: float = RETRY_DELAY_S) -> ResourceExhausted:
        return ResourceExhausted(
            f"the caller may have {allowed}; try again when some have ended, or ask the operator for more",
            reason="QUOTA_EXCEEDED",
            metadata={"quota": quota},
            retry_delay=retry_delay,
        )


CURRENT: ContextVar[Principal | None] = ContextVar("principal", default=None)
"""The principal of the call under way; None where authentication is off, and outside of calls."""


def scoped(owner: str) -> str:
    """Whose a thing is that has no owner of its own (""): the caller's, so that principals do not see each other's."""
    principal = None if owner else CURRENT.get()
    return owner if principal is None else f"@{principal.name}"
