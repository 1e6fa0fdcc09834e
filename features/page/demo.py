"""The demo of the page `/` under `tailrace up`: the list of its processes, and the route that kills one of them.

ASGI middleware, which exists only if TAILRACE_DEMO is set. It serves browsers of this machine alone, and passes each
question to `up` (deploy/local/demo.py), which has made the token that the page sends. A page of another origin, a host
name that was rebound to this address, and a page behind a proxy are refused first.
"""

import asyncio
import os
import re
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.gateway.http.json_response import json_response
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.runtime import ip_address

PATH = "/demo/processes"
TOKEN = "tailrace-demo"  # noqa: S105  # the header that carries it
# The process id of the gateway that sends a response, so that the page can show which one streams to it.
PROCESS = "tailrace-process"
PID = re.compile(r"[0-9]{1,10}")
# A proxy sends at least one of these, unless configured otherwise.
PROXY_HEADERS = frozenset(
    (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")
)
ANSWER_S_MAX = 5.0

# Each request of the gateway is checked, and most have the same two addresses.
is_loopback = lru_cache(maxsize=64)(ip_address.is_loopback)


class DemoProcess(msgspec.Struct, frozen=True):
    """A process of `up`. `pid` is None while it is started again. `role` is `gateway` or `generators` if it can be
    killed here."""

    name: str
    role: str
    pid: int | None


class Question(msgspec.Struct, frozen=True):
    """One line to `up`: kills `process`, if it still has the id `pid`, and then lists the processes."""

    token: str
    process: str | None = None
    pid: int | None = None


class Processes(msgspec.Struct, frozen=True):
    """The line with which `up` answers: the processes, or the code of an error with its message."""

    processes: list[DemoProcess] = []
    code: str = ""
    message: str = ""


def demo_middleware(socket: str) -> list[Middleware]:
    """Returns the middleware of the demo; an empty list without a socket of `up`."""
    return [Middleware(Demo, socket=socket)] if socket else []


class Demo:
    """Serves `PATH`. `socket` is the path of the Unix socket of `up`."""

    def __init__(self, app: ASGIApp, socket: str) -> None:
        self._app = app
        self._socket = socket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        problem = refusal(request)
        if scope["path"] == PATH:
            response = error_responses.response(*problem) if problem is not None else await self._answer(request)
            await response(scope, receive, send)
        elif problem is not None:
            await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, _add_process(send))

    async def _answer(self, request: Request) -> ASGIApp:
        if request.method not in ("GET", "POST"):
            return error_responses.response("method_not_allowed", f"{PATH} takes GET and POST")
        process, pid = (request.query_params.get(name) for name in ("process", "pid"))
        if request.method == "POST" and not (process and PID.fullmatch(pid or "")):
            return error_responses.response("request_invalid", "name the process: ?process=generator-1&pid=123")
        kill = {"process": process, "pid": int(pid or 0)} if request.method == "POST" else {}
        question = Question(request.headers.get(TOKEN, ""), **kill)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                answer = await self._ask(question)
        except (OSError, TimeoutError, *DECODE_ERRORS):
            return error_responses.response("server_busy", "`tailrace up` does not answer")
        if answer.code:
            return error_responses.response(answer.code, answer.message)
        return json_response(answer.processes)

    async def _ask(self, question: Question) -> Processes:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(msgspec.json.encode(question) + b"\n")
            return msgspec.json.decode(await reader.readline(), type=Processes)
        finally:
            writer.close()


def refusal(request: Request) -> tuple[str, str] | None:
    """Returns the code and the message if `request` may not come from a page of this machine; None if it does."""
    host = request.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name) or request.client is None or not is_loopback(request.client.host):
        return "host_refused", "The demo serves this machine alone: open it at the address that `tailrace up` printed."
    if not PROXY_HEADERS.isdisjoint(name for name, _ in request.headers.raw):
        return "host_refused", "The demo is not served through a proxy: open the address that `tailrace up` printed."
    # A browser sends `Origin` with every POST.
    if request.method == "POST" and request.headers.get("origin") != f"{request.scope['scheme']}://{host}":
        return "origin_refused", "Only the page of this gateway may send this request."
    return None


def _add_process(send: Send) -> Send:
    """Returns `send`, which adds the process id to the headers of the response."""

    async def send_with_process(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[PROCESS] = str(os.getpid())
        await send(message)

    return send_with_process
