"""The minimum rate of a request body, without a server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from tailrace.gateway.http import read_body
from tailrace.gateway.http.read_body import MinimumRate
from tailrace.proto.errors import Refused


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes a second are 20 bytes in each window."""
    monkeypatch.setattr(read_body, "RATE_WINDOW_S", 0.2)


async def pieces(count: int, size: int, every_s: float) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(every_s)
        yield b"x" * size


async def read(arriving: AsyncIterator[bytes], *, rate_min: int = 100, pause_s: float = 0) -> int:
    """Bytes of the body, read by an endpoint that is busy for `pause_s` after each piece."""

    async def receive() -> Message:
        piece = await anext(arriving, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    size, rate, has_more = 0, MinimumRate(rate_min), True
    async with asyncio.timeout(5):
        while has_more:
            message = await rate.next(receive)
            size, has_more = size + len(message["body"]), message["more_body"]
            await asyncio.sleep(pause_s)
    return size


@pytest.mark.parametrize(
    ("count", "size", "every_s", "pause_s"),
    [(12, 20, 0.05, 0), (2, 1, 0.05, 0), (5, 1, 0, 0.1)],
    ids=["many windows", "fewer bytes than a window requires", "time that the gateway takes is not counted"],
)
async def test_a_body_at_the_minimum_rate_is_read(count: int, size: int, every_s: float, pause_s: float) -> None:
    assert await read(pieces(count, size, every_s), pause_s=pause_s) == count * size


async def test_a_silent_client_is_rejected_within_a_window() -> None:
    """However much it has sent before: the memory of a large body is shared."""

    async def silent() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await asyncio.Event().wait()

    with pytest.raises(Refused, match="too slowly") as refused:
        await read(silent())
    assert refused.value.code == "body_timeout"


async def test_a_dripping_client_is_rejected() -> None:
    """A byte now and then does not extend the window."""
    with pytest.raises(Refused, match="100 bytes a second"):
        await read(pieces(1000, 1, 0.02))
