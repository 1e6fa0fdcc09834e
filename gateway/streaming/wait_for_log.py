"""A reader that comes back while the log is away: held with heartbeats, and then given its stream. It knows no entry.

To an EventSource every status but 200 is final, so a 503 that would be gone in a second costs it
the rest of the turn (ADR 13).
"""

import asyncio
from typing import Protocol

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.clients.dialect import Dialect
from tailrace.gateway.dependencies import Gateway, caller_of
from tailrace.gateway.streaming.event_stream import disconnected, piece
from tailrace.proto.errors import CODES, CursorUnknown, LogError, LogUnavailable, Refused, TurnUnknown

# Well under the second after which whoever is told to come back does.
AGAIN_S = 0.5


class Held(Protocol):
    """A response in a dialect that is not there yet: a `Stream`, or what finds one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def look(self) -> None:
        """Returns when it is worth a try; raises TurnUnknown, CursorUnknown, LogUnavailable."""

    async def begin(self, send: Send, status: int) -> None:
        """Sends the status and the headers."""


class WaitForLog:
    """The response to a reader that comes back: `stream`, as soon as there can be one.

    From a gateway that drains it is a heartbeat and an end, after which the reader comes back to another: a clean end,
    or, in a dialect that needs a word for it, a break. So it is when its credential ends, and then it is refused. What
    is wrong with the request is raised while nothing was sent; after that the response ends, and the next one says it.
    """

    def __init__(self, gateway: Gateway, stream: Held, dialect: Dialect) -> None:
        self._gateway = gateway
        self._stream = stream
        self._heartbeat = dialect.heartbeat
        self._is_self_delimited = dialect.is_self_delimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(send)
        with self._gateway.streams.count_reader(scope), self._gateway.door.watch(caller_of(Request(scope))) as ended:
            await self._hold(scope, receive, response, ended)

    async def _hold(self, scope: Scope, receive: Receive, response: "_Response", ended: asyncio.Event) -> None:
        while not (self._gateway.draining.is_set() or ended.is_set()):
            try:
                await self._stream(scope, receive, response)
            except (LogError, Refused) as error:
                if not CODES[error.code].is_retryable:
                    if not response.is_begun:
                        raise
                    break
            else:
                return
            await self._stream.begin(response, 200)
            with metrics.HELD.track_inprogress():
                is_left = await self._is_left(receive, response, ended)
            if is_left:
                return
        await self._stream.begin(response, 200)
        await response(piece(self._heartbeat, more=not self._is_self_delimited))

    async def _is_left(self, receive: Receive, send: Send, ended: asyncio.Event) -> bool:
        """Beats until the log answers again, or there is nothing to wait for; whether the reader went away first."""
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(disconnected(receive))
            over = {
                leaving,
                group.create_task(self._is_back()),
                group.create_task(self._gateway.draining.wait()),
                group.create_task(ended.wait()),
            }
            done: set[asyncio.Task[object]] = set()
            while not done:
                await send(piece(self._heartbeat, more=True))
                done, _ = await asyncio.wait(
                    over, timeout=self._gateway.settings.heartbeat_s, return_when=asyncio.FIRST_COMPLETED
                )
            for task in over:
                task.cancel()
        return leaving in done

    async def _is_back(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            if not self._gateway.connection.is_up:
                continue
            try:
                await self._stream.look()
            except LogUnavailable:
                continue
            except (TurnUnknown, CursorUnknown):
                pass
            return


class _Response:
    """A `send` that begins the response once: who was held has the headers of its stream already."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.is_begun:
                return
            # Who may not have it after all is told so by what is raised here: then nothing has begun.
            await self._send(message)
            self.is_begun = True
            return
        await self._send(message)
