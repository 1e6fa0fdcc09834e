"""The answer to a client that asked for no stream: one JSON body, once the turn has ended. It writes nothing before."""

import asyncio
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.dependencies import Gateway, caller_of
from tailrace.gateway.http.large_bodies import let_go
from tailrace.gateway.streaming.event_stream import disconnected
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.proto.errors import CODES, LogUnavailable, Refused
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey

GOES_ON = "the answer is not whole yet, and goes on: GET /v1/turns/{turn}, or send the same request with the same key"


class JsonAnswer:
    """The response. A turn that failed is raised as Refused, with its code; so is one that was cancelled."""

    def __init__(
        self, gateway: Gateway, key: TurnKey, body: Callable[[TurnRecord], bytes], headers: Mapping[str, str]
    ) -> None:
        self._gateway = gateway
        self._key = key
        self._body = body
        self._headers = {"cache-control": "no-store", "tailrace-turn": key.turn, **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await let_go(scope)
        caller = caller_of(Request(scope))
        async with self._gateway.lives.reading(self._key, BEFORE_FIRST) as live:
            with self._gateway.door.watch(caller) as unwanted:
                is_left = await self._is_left(live, receive, unwanted)
            if not is_left:
                told = record_from_fold(self._key, fold(live.entries))
        if is_left:
            self._gateway.departures.left(self._key)
            return
        require_completed(told)
        await Response(self._body(told), 200, self._headers, "application/json")(scope, receive, send)

    async def _is_left(self, live: TurnFeed, receive: Receive, unwanted: asyncio.Event) -> bool:
        """Waits for the turn's end; whether its reader went away first. Raises Refused when there is no waiting."""
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(ended(live, self._gateway.settings.heartbeat_s))
            leaving = group.create_task(disconnected(receive))
            draining = group.create_task(self._gateway.draining.wait())
            refusing = group.create_task(unwanted.wait())
            over = (ending, leaving, draining, refusing)
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            for task in over:
                task.cancel()
        if live.is_ended:
            return False
        if live.is_broken:
            raise LogUnavailable(GOES_ON.format(turn=self._key.turn))
        if unwanted.is_set():
            raise credential_invalid()
        if draining.done() and not draining.cancelled():
            raise Refused("draining", GOES_ON.format(turn=self._key.turn), retry_after_s=1)
        return True


async def ended(live: TurnFeed, look_every_s: float) -> None:
    """Returns when no more will come."""
    while not (live.is_ended or live.is_broken):
        await live.changed(len(live.entries), look_every_s)


def require_completed(told: TurnRecord) -> None:
    """Raises Refused, with why there is no whole answer."""
    match told.outcome:
        case "completed":
            return
        case "failed" if told.error is not None and told.error.code in CODES:
            raise Refused(told.error.code, told.error.message, retry_after_s=told.error.retry_after_s)
        case "cancelled":
            raise Refused(
                "turn_cancelled", f"turn {told.turn} was cancelled: GET /v1/turns/{told.turn} has what was said"
            )
        case _:
            raise Refused("internal", f"turn {told.turn} has no whole answer")
