"""The HTTP client of the model's API: how long a read of a body may wait."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from tailrace.generators.backends.http_client import TimedBody

SILENCE_S = 0.05


class FakeBody(httpx2.AsyncByteStream):
    """A body of one chunk, of which the end comes with a lost connection when it is closed, as with aiohttp."""

    def __init__(self) -> None:
        self.is_closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"chunk"
        await self.is_closed.wait()
        raise httpx2.ConnectError("closed")

    async def aclose(self) -> None:
        self.is_closed.set()


async def test_only_the_time_in_which_a_read_waits_is_silence() -> None:
    """The reader of the first chunk may take its time; another task may read on."""
    source = FakeBody()
    chunks = aiter(TimedBody(source, SILENCE_S))
    assert await anext(chunks) == b"chunk"
    await asyncio.sleep(4 * SILENCE_S)
    assert not source.is_closed.is_set()
    with pytest.raises(httpx2.ReadTimeout):
        await asyncio.create_task(anext(chunks))  # type: ignore[arg-type]


async def test_an_error_before_the_limit_is_not_a_timeout() -> None:
    source = FakeBody()
    chunks = aiter(TimedBody(source, 10))
    assert await anext(chunks) == b"chunk"
    await source.aclose()
    with pytest.raises(httpx2.ConnectError):
        await anext(chunks)
