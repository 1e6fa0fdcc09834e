"""What other processes apply, as their reports say."""

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS


class _Known(msgspec.Struct, frozen=True):
    """The field `knows` of a report. Older versions report none."""

    knows: tuple[str, ...] = ()


def does_know(report: bytes, name: str) -> bool:
    """Returns whether the gateway or persistence process of this report applies `name` (PROTOCOL R29, R76)."""
    try:
        return name in msgspec.json.decode(report, type=_Known).knows
    except DECODE_ERRORS:
        return False
