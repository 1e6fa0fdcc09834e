"""Reads of a turn or a session that may not exist."""

from collections.abc import Awaitable
from typing import TypeVar

from tailrace.proto.errors import Refused

R = TypeVar("R")

NOT_FOUND = ("turn_not_found", "session_not_found")


async def read_or_none(read: Awaitable[R]) -> R | None:
    """Returns the result of `read`; None if the turn or session does not exist. Raises Refused for other reasons."""
    try:
        return await read
    except Refused as refused:
        if refused.code not in NOT_FOUND:
            raise
        return None
