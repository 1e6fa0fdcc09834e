"""Reports of other processes, which name the settings and formats that they apply."""

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.ids import LOCAL, TurnId, TurnKey
from tailrace.proto.nats import Rpc

# How long processes have to answer.
ANSWER_S = 1.0
# A gateway reports the same for any turn.
ANY_TURN = TurnKey(LOCAL, TurnId("-"))


class _Known(msgspec.Struct, frozen=True):
    """The field `knows` of a report. Older versions report none."""

    knows: tuple[str, ...] = ()


async def ask_gateways(rpc: Rpc) -> list[bytes]:
    """Returns the reports of the gateways, this one included, that answer within ANSWER_S. Raises LogUnavailable."""
    return await rpc.collect_readers(ANY_TURN, wait_s=ANSWER_S)


def does_know(report: bytes, name: str) -> bool:
    """Returns whether the gateway or persistence process of this report applies `name` (PROTOCOL R29, R76)."""
    try:
        return name in msgspec.json.decode(report, type=_Known).knows
    except DECODE_ERRORS:
        return False
