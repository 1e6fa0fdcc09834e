"""Each failure of the proxy, and the connections after it is mended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from tests.harness.proxy import Failure, Proxy
from tests.harness.stop_server import stop
from tests.harness.until import until

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# On loopback an echo takes less than a millisecond.
SILENCE_S = 0.2


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy of an echo server."""

    async def serve_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(1000):
                writer.write(piece)
        writer.close()

    server = await asyncio.start_server(serve_echo, "127.0.0.1", 0)
    async with Proxy("echo", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    await stop(server)


async def connect(proxy: Proxy) -> Peer:
    peer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await receive_echo(peer, b"hello") == b"hello"
    return peer


async def receive_echo(peer: Peer, what: bytes, within_s: float = 5.0) -> bytes:
    """Returns the echo, or nothing after `within_s`."""
    reader, writer = peer
    writer.write(what)
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await reader.readexactly(len(what))
    return b""


async def test_cut_resets_open_and_new_connections(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    proxy.fail("cut")
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    again, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises(ConnectionResetError):
        await again.read(1)
    writer.close()
    assert proxy.affected == {"cut": 2}
    proxy.restore()
    _, writer = await connect(proxy)
    writer.close()
    await until(lambda: not proxy.open_connections)


@pytest.mark.parametrize("failure", ["delay", "throttle"])
async def test_delay_and_throttle_lose_no_byte(proxy: Proxy, failure: Failure) -> None:
    peer = await connect(proxy)
    proxy.fail(failure)
    assert await receive_echo(peer, b"x" * 300, 0.01) == b""
    assert await receive_echo(peer, b"") == b""
    assert await peer[0].readexactly(300) == b"x" * 300
    assert proxy.affected == {failure: 600}
    proxy.restore()
    assert await receive_echo(peer, b"again") == b"again"
    peer[1].close()


async def test_blackhole_delivers_its_bytes_after_it_is_restored(proxy: Proxy) -> None:
    peer = await connect(proxy)
    proxy.fail("blackhole")
    assert await receive_echo(peer, b"there?", SILENCE_S) == b""
    newcomer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await receive_echo(newcomer, b"me too", SILENCE_S) == b""
    proxy.restore()
    assert await peer[0].readexactly(6) == b"there?"
    assert await newcomer[0].readexactly(6) == b"me too"
    assert (proxy.affected, proxy.held_back) == ({"blackhole": 6}, 1)
    for _, writer in (peer, newcomer):
        writer.close()


async def test_deaf_resets_the_connections_that_lost_bytes_when_it_is_restored(proxy: Proxy) -> None:
    peer, quiet = await connect(proxy), await connect(proxy)
    proxy.fail("deaf")
    assert await receive_echo(peer, b"there?", SILENCE_S) == b""
    assert proxy.affected == {"deaf": 6}
    proxy.restore()
    with pytest.raises(ConnectionResetError):
        await peer[0].read(1)
    assert await receive_echo(quiet, b"here") == b"here"
    for _, writer in (peer, quiet):
        writer.close()
