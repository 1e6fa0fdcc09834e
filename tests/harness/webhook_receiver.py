"""A webhook receiver: an HTTP(S) server that keeps the requests and answers with given responses."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self

import msgspec
from aiohttp import web
from aiohttp.web import Request, Response, StreamResponse


class ReceivedWebhook(NamedTuple):
    """One POST."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded

    @property
    def turn(self) -> str:
        return self.headers["webhook-id"]


Answer = Callable[[ReceivedWebhook, Request], Awaitable[StreamResponse]]


def answer_with(number: int, **headers: str) -> Answer:
    async def answer(_: ReceivedWebhook, __: Request) -> Response:
        return Response(status=number, headers=headers)

    return answer


def answer_after(wait_s: float) -> Answer:
    async def answer(_: ReceivedWebhook, __: Request) -> Response:
        await asyncio.sleep(wait_s)
        return Response(status=204)

    return answer


async def hang(_: ReceivedWebhook, request: Request) -> Response:
    """Sends no response until the client disconnects."""
    await asyncio.Event().wait()
    raise AssertionError


class Receiver:
    """`async with Receiver() as receiver:` accepts all POSTs. `answers` are the responses to the next ones."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.received: list[ReceivedWebhook] = []
        self.answers: list[Answer] = []
        self.answer: Answer = answer_with(204)
        self._context = context

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=0)
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        await web.SockSite(self._runner, self._listening, ssl_context=self._context).start()
        self.port: int = self._listening.getsockname()[1]
        scheme = "https" if self._context else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        # A server that closes between accepting a connection and making its transport leaks it (CPython gh-109564).
        asyncio.get_running_loop().remove_reader(self._listening)
        await asyncio.sleep(0)
        await self._runner.cleanup()

    @property
    def turns(self) -> list[str]:
        """The turns of the POSTs, in order."""
        return [webhook.turn for webhook in self.received]

    async def _take(self, request: Request) -> StreamResponse:
        webhook = ReceivedWebhook(request.headers, await request.read())
        self.received.append(webhook)
        answer = self.answers.pop(0) if self.answers else self.answer
        return await answer(webhook, request)
