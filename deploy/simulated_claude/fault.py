"""Selection of the fault that breaks a call, and after how many of its deltas. Pure.

There are three ways to count, for different tests:

- `KIND@N` is a position in the whole answer. Every call that sends delta N breaks right after it. A continuation that
  starts at N or later does not: the answer is interrupted once at N and then completed.
- `KIND@NxM` is a number of calls. Each of the first M calls of the turn breaks after N deltas of its own, wherever it
  started: `cut@50x3` interrupts three times in a row, `429x2` refuses twice and then answers.
- `KIND@N+` is a position that no call passes: a continuation that starts there breaks at once, so the turn fails.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

FaultKind = Literal[
    "401",
    "403",
    "429",
    "529",
    "500",
    "error",
    "cut",
    "stall",
    "pings",
    "eof",
    "garbage",
    "html",
    "credit",
    "unknown",
    "unlisted",
    "broken",
]
FAULT_KINDS: tuple[str, ...] = get_args(FaultKind)
HTTP_ONLY = ("401", "403", "html", "credit")
# Faults of a message batch: a call has no such fault.
BATCH_ONLY = ("unknown", "unlisted", "broken")
# Error types of the status faults and of `error`.
ERROR_TYPES = {
    "401": "authentication_error",
    "403": "permission_error",
    "429": "rate_limit_error",
    "529": "overloaded_error",
    "500": "api_error",
    "error": "overloaded_error",
    "credit": "invalid_request_error",
}


class Fault(msgspec.Struct, frozen=True):
    """A fault of the directive, as `KIND@NxM` or `KIND@N+` names it. `after` counts deltas."""

    kind: FaultKind
    after: int = 0
    calls: int | None = None  # None: every call
    lasts: bool = False


class Break(msgspec.Struct, frozen=True):
    """The fault of one call, after `after` deltas of its own."""

    kind: FaultKind
    after: int

    @property
    def is_http(self) -> bool:
        """Whether the fault is a complete HTTP response instead of a stream."""
        return self.after == 0 and self.kind in ("429", "529", "500", *HTTP_ONLY)


def first_break(faults: Sequence[Fault], start: int, deltas: int, call: int) -> Break | None:
    """Returns the first fault of call number `call` (from 1), which sends `deltas` deltas from delta `start` on."""
    breaks = [
        Break(fault.kind, after)
        for fault in faults
        if (after := deltas_before(fault, start, call)) is not None and after <= deltas
    ]
    return min(breaks, key=lambda b: b.after, default=None)


def deltas_before(fault: Fault, start: int, call: int) -> int | None:
    """Returns how many deltas of this call come before the fault; None if the call has no fault.

    `start` is the number of deltas that earlier calls have sent, `call` the number of the call from 1.
    """
    if fault.kind in BATCH_ONLY:
        return None
    if fault.calls is not None:
        return fault.after if call <= fault.calls else None
    if fault.lasts:
        return max(0, fault.after - start)
    is_passed = fault.after <= start and start > 0
    return None if is_passed else fault.after - start
