"""How fast a stored turn is told: at once, or as it was written, by the times of its entries. It waits for nothing."""

import re
from collections.abc import Sequence
from datetime import datetime

from starlette.requests import Request

from tailrace.proto.entries import Stored
from tailrace.proto.errors import Refused

PACE = re.compile(r"[1-9][0-9]{0,2}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9]")


class Pace:
    """When each entry is due: as long after the first that its reader gets as it was written after that."""

    def __init__(self, speed: float) -> None:
        """`speed`: how many times as fast as it was written."""
        self._speed = speed
        self._began: tuple[float, datetime] | None = None

    def due_in_s(self, stored: Stored, now: float) -> float:
        """How long `stored` has to wait yet, where `now` is the loop's time; 0 or less: it is due."""
        if self._began is None:
            self._began = (now, stored.at)
        began, first = self._began
        return began + (stored.at - first).total_seconds() / self._speed - now

    def due(self, entries: Sequence[Stored], position: int, most: int, now: float) -> int:
        """How many of `entries` from `position` on are due, up to `most`."""
        until = min(position + most, len(entries))
        return next((n for n in range(position, until) if self.due_in_s(entries[n], now) > 0), until) - position


def pace_of(request: Request) -> Pace | None:
    """What `?pace=` asks for: a number, 1 being as it was written; None: at once. Raises Refused."""
    text = request.query_params.get("pace")
    if text is None:
        return None
    if PACE.fullmatch(text) is None:
        raise Refused("request_invalid", "`pace` is how many times as fast as it was written: 0.001 to 999")
    return Pace(float(text))
