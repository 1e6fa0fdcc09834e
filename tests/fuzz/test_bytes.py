"""Bytes on a raw socket: the gateway answers or closes soon, without a 5xx, and stays alive.

The cases here are few and the same each time; `make fuzz` runs more, and prints the seed.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.gateway.http import http_protocol, read_body
from tailrace.proto.ids import Tenant
from tests.fuzz.bytes import malformed_requests, mutate_requests, well_formed_requests
from tests.harness import processes
from tests.harness.processes import Process
from tests.harness.system import System
from tests.integration.conftest import KEY, api_keys

COUNT = int(os.environ.get("FUZZ_BYTES", "75"))
SEED = int(os.environ.get("FUZZ_SEED", "7"))
# Most of them wait, to be given up.
AT_ONCE = 300
STATUS = re.compile(rb"(?:^|\r\n)HTTP/1\.1 (\d{3}) ")
# What may be said of a gateway that has no room, and of the turn of a model that is away.
ALLOWED = {503, 507}
# Longer than the gateway waits for headers, a body, or the rest of a body. A connection that is open then is idle.
SILENCE_S = max(http_protocol.HEADERS_TIMEOUT_S, http_protocol.ANSWERED_TIMEOUT_S, read_body.RATE_WINDOW_S) + 2
DEADLINE_S = SILENCE_S + 15
LAST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def attacked_gateway(system: System, generator: Process, persistence: Process) -> AsyncIterator[Process]:
    """A gateway process, whose heartbeats keep a stream from looking idle."""
    del generator, persistence
    given = {"TAILRACE_API_KEYS": api_keys(Tenant("fuzzed")), "TAILRACE_STREAM_LIFE_S": 2}
    async with processes.gateway(system.folder, system.nats_url, **given) as process:
        yield process


async def statuses(port: int, sent: bytes) -> list[int]:
    """Returns the statuses of the responses to `sent`.

    Fails if the gateway neither answers nor closes, and if an idle connection does not serve a further request.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, last = b"", None

    async def send() -> None:
        try:
            writer.write(sent)
            await writer.drain()
        except ConnectionError:
            pass

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        piece = await reader.read(65536)
                except TimeoutError:
                    writer.write(LAST)
                    last = await reader.read()
                    break
                if not piece:
                    break
                received += piece
    except ConnectionError:
        pass
    except TimeoutError:
        pytest.fail(f"no end after {DEADLINE_S} s: {sent[:300]!r}; received {received[-300:]!r}")
    finally:
        sending.cancel()
        writer.close()
    assert last is None or last.startswith(b"HTTP/1.1 200 "), (sent[:300], received[-300:], last)
    return [int(status) for status in STATUS.findall(received)]


async def is_alive(process: Process) -> bool:
    port = int(process.url.rpartition(":")[2])
    return await statuses(port, LAST) == [200] and not process.is_gone


async def attack(process: Process, requests: list[bytes]) -> None:
    """Sends all of them, some at once. Fails for a 5xx, a connection without an end, and an unhealthy gateway."""
    port, room = int(process.url.rpartition(":")[2]), asyncio.Semaphore(AT_ONCE)
    before = len(process.find_lines("request broke"))

    async def send_and_check(sent: bytes) -> str:
        async with room:
            found = await statuses(port, sent)
        wrong = [status for status in found if status >= 500 and status not in ALLOWED]
        return f"{wrong} for {sent[:1000]!r}" if wrong else ""

    answers = await asyncio.gather(*(send_and_check(sent) for sent in requests))
    assert [answer for answer in answers if answer] == []
    assert process.find_lines("request broke")[before:] == []
    assert await is_alive(process)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(120)
async def test_a_good_request_is_answered(attacked_gateway: Process) -> None:
    """The mutated requests begin with accepted ones."""
    port = int(attacked_gateway.url.rpartition(":")[2])
    found = await asyncio.gather(*(statuses(port, sent) for sent in well_formed_requests(KEY)))
    assert found == [[200], [404], [200], [202], [100, 200], [202], [405], [200]]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(120 + COUNT)
async def test_malformed_bytes_break_nothing(attacked_gateway: Process) -> None:
    """Request smuggling, floods, and mutated requests with a printed seed."""
    print(f"FUZZ_SEED={SEED} FUZZ_BYTES={COUNT}")
    made = [
        *malformed_requests(KEY).values(),
        *malformed_requests("nobodys").values(),
        *mutate_requests(well_formed_requests(KEY), SEED, COUNT),
    ]
    await attack(attacked_gateway, made)
