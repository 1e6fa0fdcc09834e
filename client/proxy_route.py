"""An ASGI route of your app that adds the key and passes Tailrace's streams on: for FastAPI, Starlette and others.

    app.mount("/api/tailrace", tailrace.proxy(may_use=may_use))

A page uses it with `tailrace.js`: `ask(question, {url: "/api/tailrace"})`.
"""

import inspect
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import anyio
import httpx2

from tailrace.client.clients import UNLIMITED, WITHOUT_PROXY, require_client
from tailrace.client.core import SILENCE_S, URL, require_url
from tailrace.client.errors import TailraceError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# What tailrace.js and session.js need: ask, read, steer, cancel; a session's turns, their stream, and decisions about
# its tool calls; to upload a file, and to read the long parts of a question that is asked again.
# A GET of /v1/turns would list all users' turns. `..` is no name.
NAME = r"(?!\.{1,2}(?:/|$))[\w.:-]+"
ROUTES = [
    re.compile(rf"POST /v1/(turns|files|turns/[\w-]+/(steer|cancel)|sessions/{NAME}/(cancel|calls/[\w-]+))", re.ASCII),
    re.compile(rf"GET /v1/(turns/[\w-]+(/events)?|sessions/{NAME}/(events|turns|calls)|blobs/[0-9a-f]+)", re.ASCII),
]
REQUEST_HEADERS = ("accept", "cache-control", "content-type", "idempotency-key", "last-event-id", "user-agent")
RESPONSE_HEADERS = ("cache-control", "content-type", "location", "retry-after", "tailrace-turn", "x-accel-buffering")
BODY_BYTES_MAX = 32 * 1024 * 1024


class ProxiedRequest(NamedTuple):
    """A request that wants to pass. With its ASGI scope, `starlette.requests.Request(request.scope)` has the login."""

    method: str
    path: str
    """The path at the gateway, such as `/v1/turns`."""
    headers: Mapping[str, str]
    """The headers, with names in lower case."""
    body: bytes
    scope: Mapping[str, Any]

    def json(self) -> Any:
        """Returns the body of a POST, such as that of a turn with its session. Raises ValueError."""
        return json.loads(self.body)


MayUse = Callable[[ProxiedRequest], bool | Awaitable[bool]]


class Proxy:
    """The ASGI app. `aclose` closes the connections to the gateway."""

    def __init__(self, url: str, key: str | None, may_use: MayUse, http: httpx2.AsyncClient | None) -> None:
        require_url(url)
        self._url = url
        self._key = key
        self._may_use = may_use
        self._http = http or httpx2.AsyncClient(limits=UNLIMITED, mounts=WITHOUT_PROXY)
        require_client(self._http, httpx2.AsyncClient)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        if scope["type"] != "http":
            raise RuntimeError(f"a proxy has no part in {scope['type']!r}: mount it in an app")
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        if not any(route.fullmatch(f"{method} {path}") for route in ROUTES):
            await refuse(send, 404, "route_not_found", "this route is not passed on")
            return
        try:
            body = await read_body(receive)
        except ConnectionResetError:
            return
        if body is None:
            await refuse(send, 413, "body_too_large", f"the body has more than {BODY_BYTES_MAX} bytes")
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = ProxiedRequest(method, path, headers, body, scope)
        try:
            answer = self._may_use(request)
            is_allowed = await answer if inspect.isawaitable(answer) else answer
        except PermissionError as error:
            await refuse(send, 403, "forbidden", str(error) or "you may not use this")
            return
        except TailraceError as error:
            if error.status not in (404, 410):
                raise
            # The check has looked for a turn or a session that does not exist.
            is_allowed = False
        except Exception as error:
            # An HTTPException of Starlette or FastAPI becomes its response there.
            if not hasattr(error, "status_code"):
                await refuse(send, 500, "internal_error", "the check of this request failed: nothing was sent on")
            raise
        if is_allowed is not True:
            await refuse(send, 404, "not_found", "not found")
            return
        await self._pass_on(request, scope["query_string"], receive, send)

    async def _pass_on(self, request: ProxiedRequest, query: bytes, receive: Receive, send: Send) -> None:
        headers = {name: request.headers[name] for name in REQUEST_HEADERS if name in request.headers}
        headers["accept-encoding"] = "identity"
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        url = self._url + quote(request.path, safe="/:") + (f"?{query.decode('latin-1')}" if query else "")
        content = request.body if request.method == "POST" else None
        sent = self._http.build_request(request.method, url, headers=headers, content=content, timeout=SILENCE_S)
        cuts: list[TailraceError] = []
        async with anyio.create_task_group() as group:

            async def relay() -> None:
                try:
                    await self._relay(sent, send)
                except TailraceError as cut:
                    cuts.append(cut)
                group.cancel_scope.cancel()

            group.start_soon(relay)
            # The stream ends with its reader, so that `on_disconnect` has its effect.
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()
        for cut in cuts:
            raise cut

    async def _relay(self, request: httpx2.Request, send: Send) -> None:
        """Sends the response. Raises TailraceError if it is cut: the server then cuts the connection of its client."""
        try:
            response = await self._http.send(request, stream=True, follow_redirects=False)
        except httpx2.TransportError:
            await refuse(
                send, 502, "gateway_unreachable", "Tailrace cannot be reached: try again", ("retry-after", "1")
            )
            return
        try:
            passed = [(name, response.headers[name]) for name in RESPONSE_HEADERS if name in response.headers]
            encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in passed]
            await send({"type": "http.response.start", "status": response.status_code, "headers": encoded})
            try:
                async for part in response.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except httpx2.TransportError:
                cut = TailraceError("the gateway's response was cut, and so is this one", is_temporary=True)
                # Starlette's BaseHTTPMiddleware, which is FastAPI's `@app.middleware("http")`, ends the body before
                # it raises our error. A message that ASGI does not have is an error at once, there and in each server.
                with suppress(Exception):
                    await send({"type": "tailrace.cut", "reason": str(cut)})
                raise cut from None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()


def proxy(
    url: str | None = None, key: str | None = None, *, may_use: MayUse, http: httpx2.AsyncClient | None = None
) -> Proxy:
    """Returns an ASGI app to mount in yours, which passes requests for Tailrace on with the key.

    `url` is by default TAILRACE_URL or http://127.0.0.1:8000, and `key` TAILRACE_KEY. `may_use` decides, for each
    request, whether it may pass: a function of a ProxiedRequest, which may be asynchronous. Only `True` lets it pass;
    otherwise the client gets 404, and 403 after a PermissionError. After any other error nothing is sent on, either.
    """
    given = (url or os.environ.get("TAILRACE_URL") or URL).rstrip("/")
    return Proxy(given, key or os.environ.get("TAILRACE_KEY"), may_use, http)


async def read_body(receive: Receive) -> bytes | None:
    """Returns the body of a request, None if it is too large. Raises ConnectionResetError if the client is gone."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def refuse(send: Send, status: int, code: str, message: str, *headers: tuple[str, str]) -> None:
    """Sends an error in the format of docs/ERRORS.md."""
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    sent = [("content-type", "application/json"), ("content-length", str(len(body))), ("cache-control", "no-store")]
    encoded = [(name.encode(), value.encode()) for name, value in (*sent, *headers)]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})
