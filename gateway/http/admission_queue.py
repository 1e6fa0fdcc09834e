"""A rush: more requests at one moment than can be begun at one moment. First come, first served, a few at a time.

When a gateway is lost, all of its readers come to the others within a second or two, and each costs about a
millisecond before its first byte. Begun as they come, every turn of the event loop would take as long as all of them,
and whoever is being read to would stand still for seconds. So a few are begun in each turn of the loop, and the streams
go on in between.

Who would wait too long is told to come again, at a moment of its own: a crowd that is sent away together comes back
together. Waiting is counted from whoever stands first, so it is the machine that says how many it can admit. Whose
connection is one too many is told so here, too, where a page elsewhere may see it.
"""

import asyncio
from collections import deque
from collections.abc import Set as AbstractSet

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway import error_responses
from tailrace.gateway.http.retry_later import again_s

BEGUN_AT_ONCE = 8
# In a request's state: it came by a connection above the most that there may be.
EXCESS = "is_excess"
# Clients wait longer than that for a first byte, and proxies too.
WAIT_S_MAX = 5.0


class AdmissionQueue:
    """ASGI middleware. `urgent` are paths that are never kept waiting: who looks after this gateway asks there."""

    def __init__(self, app: ASGIApp, urgent: AbstractSet[str]) -> None:
        self._app = app
        self._urgent = urgent
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EXCESS in scope.get("state", ()):
            message = "as many connections are open here as may be: come again"
            await _refusal(message, scope, {"connection": "close"})(scope, receive, send)
            return
        if scope["path"] not in self._urgent:
            if self._is_too_long():
                await _refusal("too many ask at this moment", scope)(scope, receive, send)
                return
            await self._turn()
        await self._app(scope, receive, send)

    def _is_too_long(self) -> bool:
        return bool(self._waiting) and asyncio.get_running_loop().time() - self._waiting[0][0] > WAIT_S_MAX

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin)
        begun = loop.create_future()
        self._waiting.append((loop.time(), begun))
        await begun

    def _begin(self) -> None:
        for _ in range(min(BEGUN_AT_ONCE, len(self._waiting))):
            _, begun = self._waiting.popleft()
            if not begun.done():
                begun.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._begin)


def _refusal(message: str, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    return error_responses.response("server_busy", message, retry_after_s=again_s(), headers=headers, scope=scope)
