"""The cutting proxy: each cut happens at its byte."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.harness.cutting_proxy import Cut, Cutting

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


async def receive(proxy: Cutting) -> tuple[bytes, str]:
    """Returns what one connection received, and how it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"go\n")
    received = b""
    try:
        while some := await reader.read(4096):
            received += some
    except ConnectionResetError:
        return received, "rst"
    finally:
        writer.close()
    return received, "fin"


async def test_each_cut_breaks_one_connection_at_its_byte(port: int) -> None:
    cuts = [Cut(0, "fin"), Cut(1000, "rst"), Cut(100_000, "fin"), Cut(7, "rst")]
    async with Cutting(port, cuts) as proxy:
        seen = [await receive(proxy) for _ in range(5)]
    assert seen == [(SENT[: cut.after_bytes], cut.how) for cut in cuts] + [(SENT, "fin")]
    assert (proxy.left, proxy.connections) == ([], 5)


async def test_unused_cut_is_reported(port: int) -> None:
    cut = Cut(len(SENT))
    async with Cutting(port, [cut]) as proxy:
        assert await receive(proxy) == (SENT, "fin")
    assert proxy.left == [cut]


@pytest.mark.parametrize(("place", "cut_at"), [(255, 255), (256, 258), (257, 258), (258, 258), (259, 259)])
async def test_protected_bytes_are_not_cut(port: int, place: int, cut_at: int) -> None:
    async with Cutting(port, [Cut(place)], whole=b"\xff\x00\x01") as proxy:
        assert await receive(proxy) == (SENT[:cut_at], "rst")
