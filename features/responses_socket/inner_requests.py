"""Requests that a WebSocket sends to the gateway's own HTTP application, with the credential of its handshake.

So a message has the same authentication, limits, steps and errors as the HTTP request that it stands for.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Message

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http import sse
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.http.media_type import JSON
from tailrace.gateway.turns.idempotency_key import AUTO
from tailrace.proto.runtime.flag import Flag

# The entries of ASGI's scope that describe the connection.
OF_CONNECTION = ("asgi", "http_version", "server", "client", "scheme", "root_path", "state")
# The headers of the handshake that say something about it alone. The SDKs' count of repetitions is one of them.
DROPPED = ("sec-", "x-stainless-", "content-")
DROPPED_NAMES = frozenset(
    {"upgrade", "connection", "origin", "accept", "accept-encoding", "transfer-encoding", "expect", "last-event-id"}
)
KEY = "idempotency-key"

OnEvent = Callable[[bytes], Awaitable[None]]
"""Receives the JSON of each event."""


class Answer(NamedTuple):
    """The response to an inner request. `body` is empty for a stream of events."""

    status: int
    headers: Headers
    body: bytes
    is_whole: bool
    """Whether the response has ended; False if it was cut."""


class InnerRequests:
    """Sends requests for one WebSocket. `gone` is set when its client has disconnected, which ends the responses."""

    def __init__(self, handshake: ApiRequest, gone: Flag) -> None:
        self._app = send_deferred(handshake.app)
        self._scope = {name: handshake.scope[name] for name in OF_CONNECTION if name in handshake.scope}
        self._headers = [(name, value) for name, value in handshake.headers.raw if _is_kept(name.decode("latin-1"))]
        self._key = handshake.headers.get(KEY)
        self.gone = gone

    async def post(
        self, path: str, body: bytes, on_event: OnEvent | None = None, *, idempotency_key: str | None = None
    ) -> Answer:
        """Sends a POST with a JSON `body`. `on_event` receives the events of a stream."""
        # Over HTTP, a client sends the key `auto` with each of its requests.
        key = idempotency_key or (AUTO if on_event is not None and self._key == AUTO else None)
        headers = {"content-type": JSON, "content-length": str(len(body)), **({} if key is None else {KEY: key})}
        return await self._send("POST", path, "", headers, body, on_event)

    async def get(self, path: str, query: str, on_event: OnEvent) -> Answer:
        """Sends a GET for a stream, whose events `on_event` receives."""
        return await self._send("GET", path, query, {}, b"", on_event)

    async def _send(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, on_event: OnEvent | None
    ) -> Answer:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        accept = sse.MEDIA_TYPE if on_event is not None else JSON
        scope = {
            **self._scope,
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [*self._headers, (b"accept", accept.encode()), *raw],
        }
        arriving = [{"type": "http.request", "body": body, "more_body": False}]
        status, answered, pieces, is_whole, rest = 500, Headers(), list[bytes](), False, b""

        async def receive() -> Message:
            if arriving:
                return arriving.pop()
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, answered, is_whole, rest
            if message["type"] == "http.response.start":
                status, answered = message["status"], Headers(raw=message["headers"])
                return
            is_whole = not message.get("more_body", False)
            if on_event is None or status != 200:
                pieces.append(message.get("body", b""))
                return
            # The data of an event is one line (sse.py). Comments and other fields are left out.
            *lines, rest = (rest + message.get("body", b"")).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    await on_event(line.removeprefix(b"data: "))

        await self._app(scope, receive, send)
        return Answer(status, answered, b"".join(pieces), is_whole)


def _is_kept(name: str) -> bool:
    return name not in DROPPED_NAMES and name != KEY and not name.startswith(DROPPED)
