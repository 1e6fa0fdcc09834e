"""Reads the record of a turn, from the log or, once the log has dropped it, from the database."""

from tailrace.gateway.dependencies import Gateway
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey


async def read_turn(gateway: Gateway, key: TurnKey) -> TurnRecord:
    """Returns the turn as far as it is stored. Raises Refused (`turn_not_found`) and LogUnavailable."""
    try:
        return record_from_fold(key, await gateway.log.turn(key))
    except TurnUnknown:
        return await gateway.history.past(key)
