"""The base of all responses that are written while they are made, and the race that can end one early."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

from starlette.types import Message, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.runtime.race import run_until

T = TypeVar("T")
Cause = Literal["done", "disconnected", "draining", "expired", "timeout"]


class Ending(NamedTuple, Generic[T]):
    """The cause for which some work is over, and its result if it was completed."""

    cause: Cause
    result: T | None = None


class Interruptions:
    """Ends a response early when the client disconnects, the gateway drains, or the credential expires.

    Used as a context. It listens until it is left.
    """

    def __init__(self, receive: Receive, draining: asyncio.Event | None, expired: asyncio.Event) -> None:
        """`draining` is None for a response that a draining gateway completes."""
        self._receive = receive
        self._draining = draining
        self._expired = expired
        self._watching: dict[asyncio.Task[Any], Cause] = {}

    async def __aenter__(self) -> Self:
        self._watching[asyncio.create_task(_wait_for_disconnect(self._receive))] = "disconnected"
        if self._draining is not None:
            self._watching[asyncio.create_task(self._draining.wait())] = "draining"
        self._watching[asyncio.create_task(self._expired.wait())] = "expired"
        return self

    async def __aexit__(self, *_: object) -> None:
        for watching in self._watching:
            watching.cancel()
        await asyncio.wait(self._watching)

    @property
    def is_over(self) -> bool:
        """Whether the gateway drains or the credential has expired, so that nothing new should begin."""
        return (self._draining is not None and self._draining.is_set()) or self._expired.is_set()

    async def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> Ending[T]:
        """Runs `work` until it is done, an interruption comes, or `timeout_s` is over. Raises what `work` raises."""
        working = await run_until(work, *self._watching, timeout_s=timeout_s)
        if not working.cancelled():
            return Ending("done", working.result())
        # In the order in which they are watched: of a client that is gone nothing else matters.
        return Ending(next((cause for task, cause in self._watching.items() if task.done()), "timeout"))


class StreamedResponse:
    """An ASGI response whose body is written in `respond`. Errors before its first byte have an HTTP status."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)
        self._error_headers: dict[str, str] = {}
        self.is_begun = False

    def add_headers(self, headers: Mapping[str, str], *, are_for_errors: bool = True) -> None:
        """Adds headers; `are_for_errors`: an error that replaces this response has them, too."""
        self._headers.update(headers)
        if are_for_errors:
            self._error_headers.update(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.respond(scope, receive, send)
        except (Refused, LogError) as error:
            if self.is_begun:
                raise
            await error_responses.render_error(error, scope, self._error_headers)(scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def begin(self, send: Send, status: int) -> None:
        """Sends status and headers, once."""
        if not self.is_begun:
            raw = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            self.is_begun = True


def body(data: bytes, *, more: bool) -> Message:
    """Returns a part of a response's body; the last one unless there is `more`."""
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
