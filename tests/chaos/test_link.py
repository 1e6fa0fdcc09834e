"""A link does what it is told, counts what it did, and is whole again afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from tests.chaos.link import Failure, Link
from tests.harness.stop_server import stop
from tests.harness.until import until

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# Nothing comes in this time, or it would have.
SILENCE_S = 0.2


@pytest_asyncio.fixture
async def link() -> AsyncIterator[Link]:
    """To a server that says what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(1000):
                writer.write(piece)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with Link("there", server.sockets[0].getsockname()[1]) as link:
        yield link
    await stop(server)


async def connected(link: Link) -> Peer:
    peer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await said(peer, b"hello") == b"hello"
    return peer


async def said(peer: Peer, what: bytes, within_s: float = 5.0) -> bytes:
    """What comes back of it; nothing when nothing does."""
    reader, writer = peer
    writer.write(what)
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await reader.readexactly(len(what))
    return b""


async def test_who_is_cut_off_is_reset_and_nobody_gets_through_until_it_is_mended(link: Link) -> None:
    reader, writer = await connected(link)
    link.fail("cut")
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    again, writer = await asyncio.open_connection("127.0.0.1", link.port)
    with pytest.raises(ConnectionResetError):
        await again.read(1)
    writer.close()
    assert link.felt == {"cut": 2}
    link.mend()
    _, writer = await connected(link)
    writer.close()
    await until(lambda: not link.carries)


@pytest.mark.parametrize("failure", ["delay", "throttle"])
async def test_what_is_late_comes_whole(link: Link, failure: Failure) -> None:
    peer = await connected(link)
    link.fail(failure)
    assert await said(peer, b"x" * 300, 0.01) == b""
    assert await said(peer, b"") == b""
    assert await peer[0].readexactly(300) == b"x" * 300
    assert link.felt == {failure: 600}
    link.mend()
    assert await said(peer, b"again") == b"again"
    peer[1].close()


async def test_a_black_hole_tells_nobody_and_gives_back_what_it_held(link: Link) -> None:
    peer = await connected(link)
    link.fail("blackhole")
    assert await said(peer, b"there?", SILENCE_S) == b""
    newcomer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await said(newcomer, b"me too", SILENCE_S) == b""
    link.mend()
    assert await peer[0].readexactly(6) == b"there?"
    assert await newcomer[0].readexactly(6) == b"me too"
    assert link.felt == {"blackhole": 6}
    for _, writer in (peer, newcomer):
        writer.close()


async def test_whoever_missed_an_answer_is_reset_when_it_is_mended(link: Link) -> None:
    """What came after would make no sense; who asked nothing meanwhile has missed nothing."""
    peer, quiet = await connected(link), await connected(link)
    link.fail("deaf")
    assert await said(peer, b"there?", SILENCE_S) == b""
    assert link.felt == {"deaf": 6}
    link.mend()
    with pytest.raises(ConnectionResetError):
        await peer[0].read(1)
    assert await said(quiet, b"here") == b"here"
    for _, writer in (peer, quiet):
        writer.close()
