"""Memory of processes: attacks on a gateway (S14, S15), a limit of the system, and the bound for large bodies."""

import asyncio
import gzip
import hashlib
import os
import re
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT
from typing import Any

import httpx2
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tailrace.gateway.settings import Settings as GatewaySettings
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import STREAM
from tests.harness import processes
from tests.harness.freeze import freeze
from tests.harness.system import Settings, System
from tests.integration.conftest import KEY, Gateway, api_keys

MB = 2**20
GROWS_MAX = 20 * MB
BODY_BYTES_MAX = GatewaySettings().body_bytes_max
UNKNOWN_KEY = "unknown-key"


def resident(pid: int) -> int:
    """Returns the bytes of memory that a process has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
async def process(nats_url: str, tenant: Tenant, tmp_path: Path) -> AsyncIterator[processes.Process]:
    async with processes.gateway(tmp_path, nats_url, TAILRACE_API_KEYS=api_keys(tenant)) as process:
        yield process


def in_status(pid: int, field: str) -> int:
    """Returns the bytes in a field of /proc/PID/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def reset_peak(pid: int) -> None:
    """Resets the peak that `peak` returns (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """Returns the most bytes of memory that a process has had."""
    return in_status(pid, "VmHWM")


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


def chunked_body(piece: bytes, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


@cache
def bomb() -> bytes:
    """Returns a small body that decompresses to 100 MB."""
    return gzip.compress(b" " * 100 * MB)


DEEP = b'{"message": "x", "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
CHUNKS = "transfer-encoding: chunked"


def sized_body(body: bytes, count: int = 1) -> tuple[Iterator[bytes], str]:
    return iter([body] * count), f"content-length: {count * len(body)}"


# API key, body and framing, status of the response, and how far the memory may grow meanwhile.
Attack = tuple[str, Callable[[], tuple[Any, ...]], bytes, int]
ATTACKS: dict[str, Attack] = {
    "100 MB by length": (KEY, lambda: sized_body(b"a" * MB, 100), b"413", GROWS_MAX),
    "100 MB by length, unknown key": (UNKNOWN_KEY, lambda: sized_body(b"a" * MB, 100), b"401", GROWS_MAX),
    "100 MB in chunks, unknown key": (UNKNOWN_KEY, lambda: (chunked_body(b"a" * MB, 100), CHUNKS), b"401", GROWS_MAX),
    "a bomb": (KEY, lambda: (*sized_body(bomb()), "content-encoding: gzip"), b"415", GROWS_MAX),
    "deep JSON": (KEY, lambda: sized_body(DEEP), b"400", GROWS_MAX),
    # The gateway holds it until it is too large.
    "100 MB in chunks": (KEY, lambda: (chunked_body(b"a" * MB, 100), CHUNKS), b"413", BODY_BYTES_MAX + GROWS_MAX),
}


@pytest.mark.rule("S14")
async def test_pipelined_requests_do_not_fill_the_memory(process: processes.Process) -> None:
    """Behind a running stream: each request of 26 bytes would take a kilobyte, ten thousand of them 10 MB."""
    port = int(process.url.rpartition(":")[2])
    await post(port, KEY, *sized_body(b'{"message": ""}'))
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
        assert b"400" in await post(port, KEY, *sized_body(b"{"))
    grown = peak(process.pid) - before
    for writer in writers:
        writer.transport.abort()
    print(f"{grown / MB:.1f} MB")
    assert grown < GROWS_MAX


@pytest.mark.rule("S15")
async def test_large_and_deep_bodies_do_not_fill_the_memory(process: processes.Process) -> None:
    """100 MB, a compression bomb and deeply nested JSON are refused, and their memory is released."""
    port = int(process.url.rpartition(":")[2])
    await post(port, KEY, *sized_body(b'{"message": ""}'))
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
        # The allocator may keep the memory of one body, from any round on. A leak takes more in each round.
        assert min(after - before for before, after in pairwise(grown_by)) < GROWS_MAX / 10, name
        assert grown_by[-1] < max(grows_max - GROWS_MAX, GROWS_MAX), name


COMPLETED = '"outcome":"completed"'
SMALL = {"message": "#sim words=1 rate=0"}
LARGE_BYTES = 31_000_000
# Memory that is not counted: the interpreter's lists and buffers, and freed memory that the allocator keeps.
SLACK_BYTES = 64 * MB


def large_body(number: int) -> dict[str, Any]:
    """A request with a picture of its own. The model begins to answer a second later."""
    source = {"type": "base64", "media_type": "image/png", "data": str(number) * LARGE_BYTES}
    line = {"type": "text", "text": "#sim words=1 rate=0 wait=1"}
    return {"messages": [{"role": "user", "content": [{"type": "image", "source": source}, line]}]}


def client_of(process: processes.Process, key: str = KEY) -> httpx2.AsyncClient:
    headers = {"x-api-key": key}
    return httpx2.AsyncClient(base_url=process.url, headers=headers, timeout=60, trust_env=False, verify=False)


async def test_a_gateway_that_cannot_allocate_refuses_large_bodies_and_serves_small_ones(
    process: processes.Process, log: TurnLog, tenant: Tenant
) -> None:
    """The system gives it 100 MB more than it has at rest. When it may have more, large bodies are accepted."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
    async with client_of(process) as client:

        async def refuse(number: int) -> None:
            answer = await client.post("/v1/turns", json=large_body(number))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
            assert "retry-after" in answer.headers

        accepted = [(await client.post("/v1/turns", json=SMALL)).status_code]
        limit = in_status(process.pid, "VmSize") + 100 * MB
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, hard))
        async with asyncio.TaskGroup() as group:
            refused = [group.create_task(refuse(number)) for number in range(6)]
            while not all(task.done() for task in refused):
                accepted.append((await client.post("/v1/turns", json=SMALL)).status_code)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (hard, hard))
        accepted.append((await client.post("/v1/turns", json=large_body(0))).status_code)
    assert set(accepted) == {202}
    info = await log.connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.>")
    assert len(info.state.subjects or {}) == len(accepted)
    assert process.find_lines("nats connection lost") == []
    assert b"Traceback" not in process.printed.read_bytes()


async def test_a_body_that_cannot_be_buffered_is_503(monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway) -> None:
    """The HTTP parser hides the MemoryError of its callback behind an error of its own."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(HttpToolsProtocol, "on_body", fail)
    answer = await lone_gateway.client.post("/v1/turns", json=SMALL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
    assert "retry-after" in answer.headers


async def test_large_bodies_of_several_tenants_stay_below_the_setting(tmp_path: Path) -> None:
    """Gateway and generator have memory for one body of 31 MB; the others wait, and all turns are completed.

    The generator is stopped until all turns are stored, so that it could load them all at once.
    """
    keys = {"first": "sk-first", "second": "sk-second"}
    hashes = (f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in keys.items())
    most = {"gateway-0": 320 * MB, "generator-0": 160 * MB}
    settings: Settings = {
        "gateway": {
            "TAILRACE_API_KEYS": ",".join(hashes),
            "TAILRACE_LARGE_BYTES_MAX": most["gateway-0"],
            "TAILRACE_LARGE_TIMEOUT_S": 60,
        },
        "generator": {"TAILRACE_LARGE_BYTES_MAX": most["generator-0"]},
    }
    async with (
        System(tmp_path, settings=settings, sync="default", log_bytes=2**31) as system,
        AsyncExitStack() as stack,
    ):
        await system.start(persistence=False)
        clients = [await stack.enter_async_context(client_of(system.gateways[0], key)) for key in keys.values()]

        async def post(client: httpx2.AsyncClient, body: dict[str, Any]) -> str:
            return str((await client.post("/v1/turns", json=body)).json()["links"]["events"])

        assert COMPLETED in (await clients[0].get(await post(clients[0], SMALL))).text
        before = {name: resident(pid) for name, pid in system.pids.items()}
        for pid in system.pids.values():
            reset_peak(pid)
        bodies = [(client, large_body(number)) for number in range(2) for client in clients]
        [generator] = system.generators
        freeze(generator)
        links = await asyncio.gather(*(post(*one) for one in bodies))
        generator.signal(SIGCONT)
        answers = await asyncio.gather(*(client.get(link) for (client, _), link in zip(bodies, links, strict=True)))
        assert [answer.text for answer in answers if COMPLETED not in answer.text] == []
        for name, pid in system.pids.items():
            grown = peak(pid) - before[name]
            print(f"{name}: {before[name] / MB:.0f} MB before, grew by {grown / MB:.0f} MB")
            assert grown < most[name] + SLACK_BYTES, name
