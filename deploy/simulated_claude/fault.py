"""Which fault breaks a call, and after how many of its deltas; it never breaks anything itself.

Two countings, each for what it makes easy to test:

- `KIND@N` is a place in the whole answer. Every call that sends delta N breaks right after it. A continuation that
  starts at N or later is past it: interrupted once at N, then complete.
- `KIND@NxM` is a number of calls. Each of the first M calls of the turn breaks after N deltas of its own, wherever it
  started: `cut@50x3` interrupts three times in a row, `429x2` refuses twice and then answers.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

FaultKind = Literal["429", "529", "500", "error", "cut", "stall", "eof", "garbage", "html"]
FAULT_KINDS: tuple[str, ...] = get_args(FaultKind)
HTTP_ONLY = ("html",)
# What the status faults, and `error`, are called in an error body.
ERROR_TYPES = {
    "429": "rate_limit_error",
    "529": "overloaded_error",
    "500": "api_error",
    "error": "overloaded_error",
}


class Fault(msgspec.Struct, frozen=True):
    kind: FaultKind
    after: int = 0
    calls: int | None = None  # None: every call


class Break(msgspec.Struct, frozen=True):
    """This call breaks in this way after so many deltas of its own."""

    kind: FaultKind
    after: int

    @property
    def is_http(self) -> bool:
        """It is answered as a whole response, before any stream."""
        return self.after == 0 and self.kind in ("429", "529", "500", "html")


def first_break(faults: Sequence[Fault], start: int, deltas: int, call: int) -> Break | None:
    """What breaks the `call`th call (from 1), which would send `deltas` deltas from delta `start` of the answer."""
    breaks = [
        Break(fault.kind, after)
        for fault in faults
        if (after := deltas_before(fault, start, call)) is not None and after <= deltas
    ]
    return min(breaks, key=lambda b: b.after, default=None)


def deltas_before(fault: Fault, start: int, call: int) -> int | None:
    if fault.calls is not None:
        return fault.after if call <= fault.calls else None
    is_passed = fault.after <= start and start > 0
    return None if is_passed else fault.after - start
