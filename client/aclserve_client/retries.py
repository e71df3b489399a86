"""When a failed call is made again: the rules of gRPC's service config and of the server's push-back. No network here.

gRPC itself retries within one channel only, so the client counts for itself: its next attempt may go to another
address. The rules are gRPC's (proposal A6): a policy for each method, waits that grow by a factor up to a bound and
vary by a fifth, the server's `grpc-retry-pushback-ms` before them, and a budget that stops retries where most calls
fail.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from aclserve.errors import AclserveError, InvalidArgument, Unavailable

PUSHBACK_KEY = "grpc-retry-pushback-ms"

MAX_ATTEMPTS = 5
"""What gRPC makes of a service config's larger `maxAttempts`."""

MAX_BACKOFF_S = 10.0
"""The longest wait of a policy made from options."""

UNTOUCHED = frozenset({"CONNECTION_FAILED", "SERVER_GOING_AWAY"})
"""Reasons of `Unavailable` which say that no server has looked at the call."""

_SECONDS = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)s")
_CODES = {code.name: code.value[0] for code in grpc.StatusCode}


@dataclass(frozen=True)
class Policy:
    """How a method's calls are tried again. `attempts` count the first one; backoffs are seconds; `codes` numbers."""

    attempts: int
    initial_backoff: float
    max_backoff: float
    multiplier: float
    codes: frozenset[int]


NEVER = Policy(1, 0.0, 0.0, 1.0, frozenset())


class Budget:
    """`retryThrottling`: a failure takes a token, a success gives a part of one back; below half, none retries."""

    def __init__(self, max_tokens: float, ratio: float) -> None:
        self._most = self._tokens = max_tokens
        self._ratio = ratio

    def succeeded(self) -> None:
        """A call was answered."""
        self._tokens = min(self._most, self._tokens + self._ratio)

    def failed(self) -> bool:
        """An attempt failed in a way that a policy retries; whether a retry is still in the budget."""
        self._tokens = max(0.0, self._tokens - 1.0)
        return self._tokens > self._most / 2


class ServiceConfig:
    """The parts `retryPolicy` and `retryThrottling` of a gRPC service config."""

    def __init__(self, text: str) -> None:
        """`text` is JSON, or "" for nothing. Raises `InvalidArgument`, reason OPTIONS_INVALID."""
        self._policies: dict[str, Policy | None] = {}
        self._throttling: tuple[float, float] | None = None
        try:
            self._read(json.loads(text) if text else {})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidArgument(
                f"service_config is no gRPC service config: {error!r}; expected JSON such as "
                '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.1s", '
                '"maxBackoff": "5s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}',
                reason="OPTIONS_INVALID",
            ) from error

    def policy(self, path: str) -> Policy | None:
        """What it says of a method, by "/service/method": its own entry, its service's or all methods'. None where
        there is no entry, or the one that counts has no `retryPolicy`.
        """
        service = path[: path.rindex("/") + 1]
        for name in (path, service, ""):
            if name in self._policies:
                return self._policies[name]
        return None

    def budget(self) -> Budget | None:
        """A new budget for retries; None where it sets no bound."""
        return None if self._throttling is None else Budget(*self._throttling)

    def _read(self, config: Mapping[str, Any]) -> None:
        for method in config.get("methodConfig", ()):
            policy = _policy(method["retryPolicy"]) if "retryPolicy" in method else None
            for name in method["name"]:
                service = name.get("service", "")
                self._policies[f"/{service}/{name.get('method', '')}" if service else ""] = policy
        throttling = config.get("retryThrottling")
        if throttling is not None:
            most, ratio = float(throttling["maxTokens"]), float(throttling["tokenRatio"])
            if not (0 < most <= 1000 and ratio > 0):
                raise ValueError("retryThrottling needs 0 < maxTokens <= 1000 and tokenRatio > 0")
            self._throttling = most, ratio


def _policy(given: Mapping[str, Any]) -> Policy:
    policy = Policy(
        min(int(given["maxAttempts"]), MAX_ATTEMPTS),
        _seconds(given["initialBackoff"]),
        _seconds(given["maxBackoff"]),
        float(given["backoffMultiplier"]),
        frozenset(_CODES[str(code).upper()] for code in given["retryableStatusCodes"]),
    )
    least = min(policy.initial_backoff, policy.max_backoff, policy.multiplier)
    if policy.attempts < 2 or not policy.codes or least <= 0:
        raise ValueError("retryPolicy needs 2 or more attempts, a code, and numbers above 0")
    return policy


def _seconds(text: str) -> float:
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f"got {text!r}, expected seconds such as '0.1s'")
    return float(match[1])


def reads_policy(attempts: int, backoff: float) -> Policy:
    """The policy of reads where the service config says nothing of them."""
    return Policy(attempts, backoff, max(backoff, MAX_BACKOFF_S), 2.0, frozenset({Unavailable.code}))


def pushback_of(metadata: Any) -> float | None:
    """The server's wish in a failed call's trailing metadata: seconds, below 0 for "not again", None for no wish."""
    for key, value in metadata or ():
        if key == PUSHBACK_KEY:
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            return int(text) / 1000 if re.fullmatch(r"\d{1,9}", text) else -1.0
    return None


class Retry:
    """Counts the attempts of one call and tells whether to try again.

    `elsewhere`: other addresses there are. `jitter` gives numbers in [0, 1).
    """

    def __init__(
        self,
        policy: Policy,
        *,
        elsewhere: int = 0,
        budget: Budget | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._left = policy.attempts - 1
        self._elsewhere = elsewhere
        self._budget = budget
        self._jitter = jitter
        self._backoff = policy.initial_backoff

    def succeeded(self) -> None:
        """The call was answered."""
        if self._budget is not None:
            self._budget.succeeded()

    def delay_after(self, error: AclserveError, remaining: float | None, pushback: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None when the error is final.

        `remaining`: seconds until the call's deadline. `pushback` is as `pushback_of` has it; without one the error's
        own wish counts.
        """
        if self._elsewhere > 0 and isinstance(error, Unavailable) and error.reason in UNTOUCHED:
            self._elsewhere -= 1
            return 0.0
        if error.code not in self._policy.codes:
            return None
        allowed = self._budget is None or self._budget.failed()
        wish = error.retry_delay if pushback is None else pushback
        if wish is None:
            delay = self._backoff * (0.8 + 0.4 * self._jitter())
            self._backoff = min(self._backoff * self._policy.multiplier, self._policy.max_backoff)
        else:
            delay, self._backoff = wish, self._policy.initial_backoff
        if not allowed or self._left <= 0 or delay < 0 or (remaining is not None and delay >= remaining):
            return None
        self._left -= 1
        return delay
