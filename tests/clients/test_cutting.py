"""The cutting proxy: each cut happens at its byte, and nothing outlives the proxy."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import closing, suppress

import pytest

from tests.harness.cutting_proxy import Cut, Cutting, seeded

SENT = bytes(range(256)) * 1000


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server that answers each line with the same bytes and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(SENT)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def received(proxy: Cutting) -> tuple[bytes, str]:
    """Returns what one connection received, and how it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"go\n")
    got = b""
    try:
        while some := await reader.read(4096):
            got += some
    except ConnectionResetError:
        return got, "rst"
    finally:
        writer.close()
    return got, "fin"


async def test_each_cut_breaks_one_connection_at_its_byte(port: int) -> None:
    cuts = [Cut(0, "fin"), Cut(1000, "rst"), Cut(100_000, "fin"), Cut(7, "rst")]
    async with Cutting(port, cuts) as proxy:
        seen = [await received(proxy) for _ in range(5)]
    assert seen == [(SENT[: cut.after_bytes], cut.how) for cut in cuts] + [(SENT, "fin")]
    assert (proxy.left, proxy.connections) == ([], 5)


async def test_proxy_closes_everything_at_its_end(port: int) -> None:
    """Also new connections, and connections that read nothing."""
    async with Cutting(port) as proxy:
        clients = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(5)]
    for reader, writer in clients:
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert proxy._carrying == {}
    gc.collect()


@pytest.mark.parametrize("turns", range(6))
async def test_connection_opened_at_the_end_is_closed(port: int, turns: int) -> None:
    """asyncio accepts in several iterations of its loop, and the proxy may end between them."""
    with socket.socket() as client:
        async with Cutting(port) as proxy:
            client.connect(("127.0.0.1", proxy.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        for _ in range(6):
            await asyncio.sleep(0)
        assert proxy._carrying == {}
        with suppress(ConnectionError):
            assert client.recv(1) == b""


@pytest.mark.parametrize("turns", range(8))
async def test_connection_closed_at_the_end_leaves_nothing_open(turns: int) -> None:
    """The connection closes in several iterations of the loop when the proxy ends."""

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            writer.write(await reader.readline())
            await reader.read()

    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        async with Cutting(server.sockets[0].getsockname()[1]) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"go\n")
            assert await reader.readline() == b"go\n"
            writer.close()
            for _ in range(turns):
                await asyncio.sleep(0)
        gc.collect()


async def test_unused_cut_is_reported(port: int) -> None:
    cut = Cut(len(SENT))
    async with Cutting(port, [cut]) as proxy:
        assert await received(proxy) == (SENT, "fin")
    assert proxy.left == [cut]


@pytest.mark.parametrize(("place", "cut_at"), [(255, 255), (256, 258), (257, 258), (258, 258), (259, 259)])
async def test_protected_bytes_are_not_cut(port: int, place: int, cut_at: int) -> None:
    async with Cutting(port, [Cut(place)], whole=b"\xff\x00\x01") as proxy:
        assert await received(proxy) == (SENT[:cut_at], "rst")


def test_seed_gives_the_same_cuts() -> None:
    assert seeded(7, 9, bytes_max=500, bytes_min=100) == seeded(7, 9, bytes_max=500, bytes_min=100)
    assert seeded(7, 9, bytes_max=500) != seeded(8, 9, bytes_max=500)
    assert all(100 <= cut.after_bytes <= 500 for cut in seeded(7, 99, bytes_max=500, bytes_min=100))
