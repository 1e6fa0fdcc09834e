"""The pace of a replay: with `?pace=`, stored entries are sent with their original pauses instead of at once."""

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial, wraps
from typing import Any

import msgspec
from starlette.requests import Request

from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import Route, query
from tailrace.gateway.streaming.endings import BROKEN, StreamEnding
from tailrace.gateway.streaming.response import EventStream
from tailrace.gateway.streaming.writer import FRAMES_MAX, TurnWriter
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.settings import NoSettings

SPEED = re.compile(r"[1-9][0-9]{0,2}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9]")
PACE = query(
    "pace",
    "The replay speed: 1 is the original; by default as fast as possible.",
    type="string",
    pattern=f"^({SPEED.pattern})$",
)
# The routes that stream one turn.
PACED = {
    ("POST", "/v1/turns"),
    ("GET", "/v1/turns/{turn}/events"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/chat/stream"),
    ("POST", "/chat"),
    ("POST", "/ai/chat"),
    ("POST", "/api/chat"),
}


class Pace:
    """The schedule of a replay: the intervals between entries are those of the log, divided by the speed."""

    def __init__(self, speed: float) -> None:
        """`speed`: a multiple of the speed at which the turn was written."""
        self._speed = speed
        self._began: tuple[float, datetime] | None = None

    def due_in_s(self, stored: StoredEntry, now: float) -> float:
        """Returns the seconds until `stored` is due; 0 or less: it is due. `now` is the loop's time."""
        if self._began is None:
            self._began = (now, stored.at)
        began, first = self._began
        return began + (stored.at - first).total_seconds() / self._speed - now

    def count_due(self, entries: Sequence[StoredEntry], position: int, most: int, now: float) -> int:
        """Returns how many of `entries` from `position` on are due, at most `most`."""
        until = min(position + most, len(entries))
        return next((n for n in range(position, until) if self.due_in_s(entries[n], now) > 0), until) - position


class PacedWriter(TurnWriter):
    """Writes each entry when it is due."""

    def __init__(self, *arguments: Any, pace: Pace, heartbeat_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pace = pace
        self._heartbeat_s = heartbeat_s

    async def step(self) -> StreamEnding | bool:
        entries, now = self.feed.entries, asyncio.get_running_loop().time
        if not await self.write_stored(self._pace.count_due(entries, self.position, FRAMES_MAX, now())):
            return BROKEN
        if self.position == len(entries):
            return self.feed.ending or await self.feed.wait_for_change(self.position)
        wait_s = self._pace.due_in_s(entries[self.position], now())
        await asyncio.sleep(min(max(wait_s, 0), self._heartbeat_s))
        return wait_s <= self._heartbeat_s


def parse_pace(text: str) -> Pace:
    """Returns the value of `?pace=`, where 1 is the original speed. Raises Refused."""
    if SPEED.fullmatch(text) is None:
        raise Refused("request_invalid", "`pace` is a multiple of the original speed: from 0.001 to 999")
    return Pace(float(text))


def paced(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `endpoint` with the parameter `pace`, which a response that is no stream ignores."""

    @wraps(endpoint)
    async def respond(request: Request, **services: Any) -> Any:
        text = request.query_params.get("pace")
        pace = parse_pace(text) if text is not None else None
        response = await endpoint(request, **services)
        if pace is not None and isinstance(response, EventStream):
            response.write_with(partial(PacedWriter, pace=pace, heartbeat_s=response.heartbeat_s))
        return response

    return respond


def wrap(route: Route) -> Route:
    """Returns a route that streams one turn with the parameter `pace`, and any other route as it is."""
    if (route.method, route.path) not in PACED:
        return route
    return msgspec.structs.replace(route, endpoint=paced(route.endpoint), parameters=(*route.parameters, PACE))


FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), wrap=wrap)
