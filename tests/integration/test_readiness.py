"""`up` waits until its processes are ready: health checks over a real socket."""

import asyncio
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import pytest

from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.local.readiness import HealthCheck, Response, http_get, wait_ready


@asynccontextmanager
async def answering_server(*answers: bytes) -> AsyncIterator[int]:
    """Serves `answers` one after the other, and then the last one always. Yields the port."""
    left = list(answers)

    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        # The client may disconnect at any time.
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def http(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_up_waits_until_the_gateway_answers_200() -> None:
    """Silence, garbage and 503 mean that it is not ready yet."""
    async with answering_server(b"", b"hello\r\n\r\n", http(503, "{}"), http(200, "{}")) as port:
        await wait_ready("127.0.0.1", port, {}, print)
        assert await http_get("127.0.0.1", port) == Response(200, "{}")


async def test_the_timeout_message_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of the gateway names the process that is missing."""
    monkeypatch.setattr("tailrace.deploy.local.readiness.READY_S_MAX", 0.3)
    [unused] = find_free(1)
    async with (
        answering_server(http(503, '{"persistence":"no answer"}')) as refusing,
        answering_server(http(200, "{}")) as ready,
        answering_server(http(200, "tailrace_ready 0.0\n")) as process,
    ):
        for port, checks, message in (
            (refusing, {}, 'the gateway answers {"persistence":"no answer"}'),
            (unused, {}, "the gateway does not answer; see its lines above"),
            (
                ready,
                {"generator-2": HealthCheck(process, "/metrics", "tailrace_ready 1.0")},
                "generator-2 did not become ready; see the lines above",
            ),
        ):
            with pytest.raises(UpRefused) as refusal:
                await wait_ready("127.0.0.1", port, checks, print)
            assert str(refusal.value) == f"not ready after 0.3 s: {message}"


async def test_up_waits_until_each_process_is_ready() -> None:
    """A gateway answers 200 as soon as one generator is ready, so the second one has its own check."""
    waiting, done = http(200, "tailrace_ready 0.0\n"), http(200, "tailrace_ready 1.0\n")
    async with answering_server(waiting, waiting, done) as process, answering_server(http(200, "{}")) as port:
        question = HealthCheck(process, "/metrics", "tailrace_ready 1.0")
        await wait_ready("127.0.0.1", port, {"generator-2": question}, print)
        assert await http_get("127.0.0.1", process) == Response(200, "tailrace_ready 1.0")


async def test_up_waits_for_a_process_whose_start_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Persistence may migrate a large database for minutes: a start that is broken off would begin again."""
    monkeypatch.setattr("tailrace.deploy.local.readiness.READY_S_MAX", 0.3)
    reported = list[str]()
    # The server sends the same time in each response.
    starting = http(200, f"tailrace_ready 0.0\ntailrace_event_loop_seconds {time.monotonic() + 60}\n")
    waiting, done = [starting] * 10, http(200, "tailrace_ready 1.0\n")
    async with answering_server(*waiting, done) as process, answering_server(http(200, "{}")) as port:
        checks = {"persistence": HealthCheck(process, "/metrics", "tailrace_ready 1.0")}
        await wait_ready("127.0.0.1", port, checks, reported.append)
    assert reported[0] == "persistence not ready after 0.3 s: still starting"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 x y\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""])
async def test_another_protocol_on_the_port_is_not_ready(answer: bytes) -> None:
    async with answering_server(answer) as port:
        assert await http_get("127.0.0.1", port) == Response(0, "")
