"""The HTTP client of the model's API: how long a read of a body may wait, and which bytes it receives."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from tailrace.generators.backends.http_client import HttpClient, TimedBody

SILENCE_S = 0.05
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK_BYTES = 4096
# aiohttp reads until it has more than 512 KiB, and stops in the middle of what it has read from the socket.
CHUNKS = 100
CHUNKS_ABOVE = (140, 155, 170, 185)
# As long as a large event takes to be stored.
STORED_S = 0.1
LINGER_0 = struct.pack("ii", 1, 0)
Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]


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


@asynccontextmanager
async def reading(chunks: int, end: Serve) -> AsyncIterator[TimedBody]:
    """Yields the body of an answer: its first byte was read, and its chunks wait. The server calls `end` after them."""
    has_read = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"1\r\nx\r\n")
        await has_read.wait()
        writer.write(b"%x\r\n%b\r\n" % (CHUNK_BYTES, b"x" * CHUNK_BYTES) * chunks)
        await end(writer)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, HttpClient() as client:
        response = await client.send(client.build_request("GET", url, timeout=httpx2.Timeout(10)), stream=True)
        assert isinstance(response.stream, TimedBody)
        assert await response.stream.read_until(bytes) == b"x"
        has_read.set()
        await asyncio.sleep(STORED_S)
        yield response.stream
        await response.aclose()


@pytest.mark.parametrize("chunks", CHUNKS_ABOVE)
async def test_all_that_has_arrived_is_received_while_the_server_is_silent(chunks: int) -> None:
    """aiohttp parses the rest of what it has read when its buffer is read: nothing else brings that rest."""
    size, is_received = 0, asyncio.Event()

    async def stay_silent(_: asyncio.StreamWriter) -> None:
        await is_received.wait()

    def receive(piece: bytes) -> bool | None:
        nonlocal size
        size += len(piece)
        return size == chunks * CHUNK_BYTES or None

    async with reading(chunks, stay_silent) as body:
        async with asyncio.timeout(5):
            assert await body.read_until(receive)
        is_received.set()


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_all_that_has_arrived_before_a_cut_is_received(*, is_reset: bool) -> None:
    """The cut comes while a large event is stored. aiohttp gives only its error then."""
    size = 0

    async def cut(writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        if is_reset:
            # A reset overtakes the bytes that have not arrived.
            await asyncio.sleep(STORED_S / 2)
            own: socket.socket = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)

    def receive(piece: bytes) -> None:
        nonlocal size
        size += len(piece)

    async with reading(CHUNKS, cut) as body:
        with pytest.raises(httpx2.ReadError):
            await body.read_until(receive)
    assert size == CHUNKS * CHUNK_BYTES
