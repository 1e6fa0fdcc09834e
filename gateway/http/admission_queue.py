"""Admission queue: starts a few requests in each turn of the event loop, first in, first out.

When a gateway dies, all its readers reconnect to the others within a second or two, and each costs about a millisecond
before its first byte. If all of them were started at once, one turn of the loop would take seconds, in which no stream
is served.

A request that would wait too long is rejected with a random retry delay: clients that are rejected together would
otherwise return together. The wait of the first request in the queue counts, so the machine's speed sets the limit.
"""

import asyncio
from collections import deque
from collections.abc import Set as AbstractSet

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.gateway.http.retry_later import retry_delay_s

STARTED_PER_TURN = 8
# Clients and proxies wait longer than this for a first byte.
WAIT_S_MAX = 5.0
CONNECTIONS_REACHED = "this gateway has reached its limit of connections: retry later"


class AdmissionQueue:
    """ASGI middleware. `urgent` are paths that never wait: health checks and metrics."""

    def __init__(self, app: ASGIApp, urgent: AbstractSet[str]) -> None:
        self._app = app
        self._urgent = urgent
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in self._urgent:
            loop = asyncio.get_running_loop()
            if not self._waiting:
                loop.call_soon(self._start_some)
            elif loop.time() - self._waiting[0][0] > WAIT_S_MAX:
                await _refusal("this gateway is starting too many requests: retry later", scope)(scope, receive, send)
                return
            started = loop.create_future()
            self._waiting.append((loop.time(), started))
            await started
        await self._app(scope, receive, send)

    def _start_some(self) -> None:
        for _ in range(min(STARTED_PER_TURN, len(self._waiting))):
            _, started = self._waiting.popleft()
            if not started.done():
                started.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._start_some)


async def refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application for connections above the limit: rejects each request and closes the connection."""
    await _refusal(CONNECTIONS_REACHED, scope, {"connection": "close"})(scope, receive, send)


def _refusal(message: str, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    return error_responses.response("server_busy", message, retry_after_s=retry_delay_s(), headers=headers, scope=scope)
