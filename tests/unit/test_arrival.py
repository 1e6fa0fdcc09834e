"""A body that comes slowly, or not at all: what is between its sender and the route, without a server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from tailrace.gateway.http import slow_body
from tailrace.gateway.http.slow_body import SlowBodyTimeout
from tailrace.proto.errors import Refused

SCOPE: Scope = {"type": "http", "method": "POST", "headers": []}
WHOLE: Message = {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 100 bytes a second are 20 bytes in each stretch."""
    monkeypatch.setattr(slow_body, "STRETCH_S", 0.2)


async def send(_: Message) -> None: ...


def sending(count: int, size: int, every_s: float, then: Callable[[], Any] = lambda: WHOLE) -> Receive:
    """A sender of `count` pieces; what it does `then`."""
    left = count

    async def receive() -> Message:
        nonlocal left
        if not left:
            ended: Message = then()
            return ended
        left -= 1
        await asyncio.sleep(every_s)
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    return receive


async def silence() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def received(receive: Receive, *, rate_min: int = 100, pause_s: float = 0) -> int:
    """Bytes of the body, as a route reads it that is busy for `pause_s` after each piece."""
    size = 0

    async def route(_: Scope, receive: Receive, _send: Send) -> None:
        nonlocal size
        while True:
            message = await receive()
            size += len(message["body"])
            if not message["more_body"]:
                return
            await asyncio.sleep(pause_s)

    async with asyncio.timeout(5):
        await SlowBodyTimeout(route, rate_min)(SCOPE, receive, send)
    return size


async def test_a_body_that_keeps_coming_may_take_its_time() -> None:
    """Many stretches long: what counts is that each of them brings something."""
    assert await received(sending(12, 20, 0.05)) == 240


async def test_a_sender_that_falls_silent_is_refused_within_a_stretch() -> None:
    """However much it had sent before: the room of a large body is not its own."""
    brought = iter([b"x" * 1000])

    async def receive() -> Message:
        body = next(brought, None)
        return await silence() if body is None else {"type": "http.request", "body": body, "more_body": True}

    with pytest.raises(Refused, match="too slowly") as refused:
        await received(receive)
    assert refused.value.code == "body_timeout"


async def test_a_sender_that_drips_is_refused() -> None:
    """A byte now and then is no sign of life."""
    with pytest.raises(Refused, match="100 bytes a second"):
        await received(sending(1000, 1, 0.02))


async def test_a_small_body_has_a_stretch_of_its_own() -> None:
    """It need not have as many bytes as a stretch wants."""
    assert await received(sending(2, 1, 0.05)) == 2


async def test_what_we_take_our_time_for_is_not_the_senders() -> None:
    """A body that waits for room, or a gateway that is busy, has read nothing meanwhile."""
    assert await received(sending(5, 1, 0), pause_s=0.1) == 5


async def test_who_is_answered_without_being_read_is_only_listened_to() -> None:
    """A stream listens for as long as it lasts whether its client is there, which may owe a body."""

    async def route(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        listening = asyncio.ensure_future(receive())
        done, _pending = await asyncio.wait([listening], timeout=0.5)
        assert not done
        listening.cancel()

    await SlowBodyTimeout(route, 100)(SCOPE, silence, send)
