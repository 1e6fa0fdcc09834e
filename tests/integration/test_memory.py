"""What a body can make of a gateway's memory, of the process as it runs: less than 20 MB, whoever sends what (S15)."""

import asyncio
import gzip
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tailrace.gateway.settings import Settings
from tailrace.proto.ids import Tenant
from tests.harness import processes
from tests.integration.conftest import KEY, api_keys

MB = 2**20
GROWS_MAX = 20 * MB
BODY_BYTES_MAX = Settings().body_bytes_max
STRANGER = "nobodys-key"


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
async def process(nats_url: str, tenant: Tenant, tmp_path: Path) -> AsyncIterator[processes.Process]:
    async with processes.gateway(tmp_path, nats_url, TAILRACE_API_KEYS=api_keys(tenant)) as process:
        yield process


def forget_the_most(pid: int) -> None:
    """From now on `most` is of what comes (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def most(pid: int) -> int:
    """Bytes of memory that it has had at once."""
    told = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert told is not None
    return int(told[1]) * 1024


async def post(port: int, key: str, pieces: Iterator[bytes], *framing: str) -> bytes:
    """The status line that came, having sent as much as was taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = ["POST /v1/turns HTTP/1.1", "host: localhost", f"x-api-key: {key}", "content-type: application/json"]
    with suppress(ConnectionError):
        writer.write("\r\n".join([*head, *framing, "", ""]).encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    status = b""
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(10):
            status = await reader.readline()
    writer.transport.abort()
    return status


def chunked(piece: bytes, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


BOMB = gzip.compress(b" " * 100 * MB)
DEEP = b'{"message": "x", "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
CHUNKS = "transfer-encoding: chunked"


def sized(body: bytes, count: int = 1) -> tuple[Iterator[bytes], str]:
    return iter([body] * count), f"content-length: {count * len(body)}"


# What is sent by whom, what is answered, and what may be held of it meanwhile.
Attack = tuple[str, Callable[[], tuple[Any, ...]], bytes, int]
ATTACKS: dict[str, Attack] = {
    "100 MB by length": (KEY, lambda: sized(b"a" * MB, 100), b"413", GROWS_MAX),
    "100 MB by length, a stranger's": (STRANGER, lambda: sized(b"a" * MB, 100), b"401", GROWS_MAX),
    "100 MB in chunks, a stranger's": (STRANGER, lambda: (chunked(b"a" * MB, 100), CHUNKS), b"401", GROWS_MAX),
    "a bomb": (KEY, lambda: (*sized(BOMB), "content-encoding: gzip"), b"415", GROWS_MAX),
    "deep JSON": (KEY, lambda: sized(DEEP), b"400", GROWS_MAX),
    # It is a body of ours up to where it becomes too large.
    "100 MB in chunks": (KEY, lambda: (chunked(b"a" * MB, 100), CHUNKS), b"413", BODY_BYTES_MAX + GROWS_MAX),
}


@pytest.mark.rule("S14")
async def test_no_queue_of_requests_makes_a_gateway_much_larger(process: processes.Process) -> None:
    """Behind an answer that goes on: each of 26 bytes would be a kilobyte, a quarter of a megabyte of them 10 MB."""
    port = int(process.url.rpartition(":")[2])
    await post(port, KEY, *sized(b'{"message": ""}'))
    before = resident(process.pid)
    asked = b'{"message": "hi"}'
    head = f"POST /v1/turns HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"
    stream = f"{head}accept: text/event-stream\r\ncontent-length: {len(asked)}\r\n\r\n".encode() + asked
    writers = []
    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(stream)
        assert b"200" in await reader.readline()
        writer.write(b"GET / HTTP/1.1\r\nhost:x\r\n\r\n" * 10_000)
        writers.append(writer)
    for _ in range(3):
        # Whoever is answered afterwards has come afterwards.
        assert b"400" in await post(port, KEY, *sized(b"{"))
    grown = most(process.pid) - before
    for writer in writers:
        writer.transport.abort()
    print(f"{grown / MB:.1f} MB")
    assert grown < GROWS_MAX


@pytest.mark.rule("S15")
async def test_no_body_makes_a_gateway_much_larger(process: processes.Process) -> None:
    """FAULTS S15: 100 MB, a bomb, brackets without end are refused; nothing of them is held, or kept."""
    port = int(process.url.rpartition(":")[2])
    await post(port, KEY, *sized(b'{"message": ""}'))
    before = resident(process.pid)
    for name, (key, body, expected, grows_max) in ATTACKS.items():
        kept = []
        for _ in range(3):
            forget_the_most(process.pid)
            status = await post(port, key, *body())
            meanwhile, then = most(process.pid) - before, resident(process.pid) - before
            print(f"{name}: {meanwhile / MB:.1f} MB meanwhile, {then / MB:.1f} MB then")
            assert status.split()[1] == expected, name
            assert meanwhile < grows_max, name
            kept.append(then)
        # The allocator may keep what one of them took, for the next; it does not take more for each.
        assert max(kept) - kept[0] < GROWS_MAX / 10, name
        assert kept[-1] < max(grows_max - GROWS_MAX, GROWS_MAX), name
