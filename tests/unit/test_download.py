"""Downloads that cannot be finished."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import LOCAL, Authenticator
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader
from tailrace.gateway.streaming.reader_counts import ReaderCounts, ReaderLimits
from tailrace.proto.errors import BlobUnknown, LogUnavailable, Refused


def build_reader() -> Reader:
    counts, admissions = ReaderCounts(ReaderLimits(1, 1, 1)), Admissions()
    authenticator = Authenticator(Settings(), ApiKeyCache())
    streams: Any = SimpleNamespace(authenticator=authenticator, counts=counts, admissions=admissions)
    request: Any = SimpleNamespace(principal=LOCAL, client=None, headers={}, scope={"query_string": b""})
    return Reader(streams, request)


@pytest.mark.parametrize(
    "why", [Refused("persistence_unavailable", "away"), LogUnavailable("away"), BlobUnknown("expired")], ids=repr
)
async def test_an_error_in_the_middle_truncates_the_body(why: Exception) -> None:
    """The last chunk is missing, so that no client takes it for the whole body; no traceback is logged."""
    sent: list[Message] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"half"
        raise why

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await send_deferred(Download(build_reader(), pieces(), {}))(scope, receive, send)
    assert [message.get("body") for message in sent] == [None, b"half"]
    assert sent[-1]["more_body"]
