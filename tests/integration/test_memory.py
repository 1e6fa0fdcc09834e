"""Memory of a gateway process: no request body or pipeline of requests makes it grow by 20 MB (S14, S15)."""

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
UNKNOWN_KEY = "unknown-key"


def resident(pid: int) -> int:
    """Returns the bytes of memory that a process has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
async def process(nats_url: str, tenant: Tenant, tmp_path: Path) -> AsyncIterator[processes.Process]:
    async with processes.gateway(tmp_path, nats_url, TAILRACE_API_KEYS=api_keys(tenant)) as process:
        yield process


def reset_peak(pid: int) -> None:
    """Resets the peak that `peak` returns (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """Returns the most bytes of memory that a process has had."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def post(port: int, key: str, pieces: Iterator[bytes], *framing: str) -> bytes:
    """Sends as much of a request as the gateway accepts; returns the status line."""
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


# API key, body and framing, status of the response, and how far the memory may grow meanwhile.
Attack = tuple[str, Callable[[], tuple[Any, ...]], bytes, int]
ATTACKS: dict[str, Attack] = {
    "100 MB by length": (KEY, lambda: sized(b"a" * MB, 100), b"413", GROWS_MAX),
    "100 MB by length, unknown key": (UNKNOWN_KEY, lambda: sized(b"a" * MB, 100), b"401", GROWS_MAX),
    "100 MB in chunks, unknown key": (UNKNOWN_KEY, lambda: (chunked(b"a" * MB, 100), CHUNKS), b"401", GROWS_MAX),
    "a bomb": (KEY, lambda: (*sized(BOMB), "content-encoding: gzip"), b"415", GROWS_MAX),
    "deep JSON": (KEY, lambda: sized(DEEP), b"400", GROWS_MAX),
    # The gateway holds it until it is too large.
    "100 MB in chunks": (KEY, lambda: (chunked(b"a" * MB, 100), CHUNKS), b"413", BODY_BYTES_MAX + GROWS_MAX),
}


@pytest.mark.rule("S14")
async def test_pipelined_requests_do_not_fill_the_memory(process: processes.Process) -> None:
    """Behind a running stream: each request of 26 bytes would take a kilobyte, ten thousand of them 10 MB."""
    port = int(process.url.rpartition(":")[2])
    await post(port, KEY, *sized(b'{"message": ""}'))
    before = resident(process.pid)
    body = b'{"message": "hi"}'
    head = f"POST /v1/turns HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"
    stream = f"{head}accept: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    writers = []
    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(stream)
        assert b"200" in await reader.readline()
        writer.write(b"GET / HTTP/1.1\r\nhost:x\r\n\r\n" * 10_000)
        writers.append(writer)
    for _ in range(3):
        # After these responses the gateway has received everything that was sent before.
        assert b"400" in await post(port, KEY, *sized(b"{"))
    grown = peak(process.pid) - before
    for writer in writers:
        writer.transport.abort()
    print(f"{grown / MB:.1f} MB")
    assert grown < GROWS_MAX


@pytest.mark.rule("S15")
async def test_large_and_deep_bodies_do_not_fill_the_memory(process: processes.Process) -> None:
    """100 MB, a compression bomb and deeply nested JSON are refused, and their memory is released."""
    port = int(process.url.rpartition(":")[2])
    await post(port, KEY, *sized(b'{"message": ""}'))
    before = resident(process.pid)
    for name, (key, body, expected, grows_max) in ATTACKS.items():
        grown_by = []
        for _ in range(3):
            reset_peak(process.pid)
            status = await post(port, key, *body())
            meanwhile, then = peak(process.pid) - before, resident(process.pid) - before
            print(f"{name}: {meanwhile / MB:.1f} MB meanwhile, {then / MB:.1f} MB then")
            assert status.split()[1] == expected, name
            assert meanwhile < grows_max, name
            grown_by.append(then)
        # The allocator may keep the memory of one body for the next; it must not take more for each.
        assert max(grown_by) - grown_by[0] < GROWS_MAX / 10, name
        assert grown_by[-1] < max(grows_max - GROWS_MAX, GROWS_MAX), name
