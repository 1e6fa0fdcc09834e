"""EventSource: posts a turn until it is accepted, and reads it to its end, over as many connections as it takes."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx2

from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId
from tests.harness.readers import ENDS, frames
from tests.harness.sse_parser import EventStream, SseEvent
from tests.promises import ReaderConnection

RETRY_MS = 500


def ignore(*_: object) -> None:
    pass


class EventSource:
    """A client of gateways that come and go. `gateways` returns the HTTP clients of those that take new requests."""

    def __init__(self, gateways: Callable[[], Sequence[httpx2.AsyncClient]]) -> None:
        self._gateways = gateways

    async def post(
        self, key: str, message: str, on_refused: Callable[[str], None] = ignore, session: str | None = None
    ) -> TurnId:
        """Returns the turn when it is accepted; before, calls `on_refused` with the reason of each failure.

        `session` is created if it does not exist.
        """
        body = {"message": message} | ({"session": session, "create_session": True} if session else {})
        while True:
            gateway = random.choice(self._gateways())
            try:
                headers = {"idempotency-key": f"{key}-{'k' * 16}"}
                response = await gateway.post("/v1/turns", json=body, headers=headers)
            except httpx2.HTTPError as error:
                if isinstance(error, httpx2.ConnectError) and gateway not in self._gateways():
                    # It left the rotation after it was chosen. A proxy, too, sends the request to another gateway.
                    continue
                on_refused(repr(error))
            else:
                if response.status_code == 202:
                    return TurnId(response.json()["turn"])
                on_refused(f"{response.status_code} {response.text}")
            await asyncio.sleep(RETRY_MS / 1000)

    async def read(
        self, turn: TurnId, on_entry: Callable[[], Any] = ignore, on_cut: Callable[[], Any] = ignore
    ) -> tuple[ReaderConnection, ...]:
        """Returns the connections, of which the last has the turn's end. Waits between them as `retry:` says."""
        connections: list[ReaderConnection] = []
        while True:
            cursor = next((one.frames[-1].seq for one in reversed(connections) if one.frames), BEFORE_FIRST)
            events, is_ended = await self._connect(turn, cursor, on_entry)
            connections.append(ReaderConnection(cursor, tuple(frames(events)), "ended" if is_ended else "cut"))
            if is_ended:
                return tuple(connections)
            on_cut()
            retry_ms = next((event.retry_ms for event in events if event.retry_ms is not None), RETRY_MS)
            await asyncio.sleep(retry_ms / 1000)

    async def _connect(self, turn: TurnId, cursor: Seq, on_entry: Callable[[], Any]) -> tuple[list[SseEvent], bool]:
        """Reads one connection to its end; returns its events, and whether they have the turn's end."""
        events: list[SseEvent] = []
        headers = {"last-event-id": str(cursor)} if cursor else {}
        with suppress(httpx2.HTTPError):
            async with random.choice(self._gateways()).stream(
                "GET", f"/v1/turns/{turn}/events", headers=headers
            ) as response:
                if response.status_code != 200:
                    return events, response.status_code == 204
                stream = EventStream()
                async for received in response.aiter_raw():
                    new = stream.feed(received)
                    events += new
                    if any(event.id is not None for event in new):
                        on_entry()
        return events, bool(events) and events[-1].data.startswith(ENDS)
