"""The waits of `up` and `tailrace restart` until processes are ready: health checks over a real socket."""

import asyncio
import io
import os
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from tailrace.deploy.local import rolling_restart
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.local.readiness import HealthCheck, Response, http_get, wait_ready, wait_serving
from tailrace.deploy.local.rolling_restart import RollingRestart
from tailrace.deploy.local.status_file import StatusFile
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tests.harness.until import until


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
        assert await wait_serving("127.0.0.1", port) == {}
        assert await http_get("127.0.0.1", port) == Response(200, "{}")


async def test_the_timeout_message_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many processes have more time together, and so has one that does not answer yet."""
    monkeypatch.setattr("tailrace.deploy.local.readiness.READY_S_MAX", 0.3)
    monkeypatch.setattr("tailrace.deploy.local.readiness.START_S_MAX", 0.2)
    monkeypatch.setattr("tailrace.deploy.local.readiness.IMPORT_S_MAX", 0.5)
    reported = list[str]()
    [unused] = find_free(1)
    start_again = "if the lines above name no error, the machine may be too busy: start it again"
    async with answering_server(http(200, "tailrace_ready 0.0\n")) as process:
        unready = HealthCheck(process, "/metrics", "tailrace_ready 1.0")
        for waiting, message in (
            (wait_serving("127.0.0.1", unused), "0.3 s: the gateway does not answer; see its lines above"),
            (wait_ready({"generator-2": unready}, print), f"0.3 s: {start_again}"),
            (wait_ready(dict.fromkeys("abc", unready), print), f"0.6 s: {start_again}"),
            (wait_ready({"silent": HealthCheck(unused, "/metrics")}, reported.append), f"0.6 s: {start_again}"),
        ):
            with pytest.raises(UpRefused) as refusal:
                await waiting
            assert str(refusal.value).partition("not ready after ")[2] == message
    assert reported == ["silent not ready after 0.3 s: still starting"]


async def test_the_wait_for_the_gateway_returns_the_parts_that_are_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` then serves what works: with a full log, stored turns can be read."""
    monkeypatch.setattr("tailrace.deploy.local.readiness.SERVING_S_MAX", 0.3)
    parts = '{"ok":false,"nats":{"ok":true},"log":{"ok":false,"detail":"96% of the log\'s bytes are used"}}'
    async with answering_server(http(503, parts)) as full:
        assert await wait_serving("127.0.0.1", full) == {"log": "96% of the log's bytes are used"}


async def test_up_waits_until_each_process_is_ready() -> None:
    """A gateway answers 200 as soon as one generator is ready, so the second one has its own check."""
    waiting, done = http(200, "tailrace_ready 0.0\n"), http(200, "tailrace_ready 1.0\n")
    async with answering_server(waiting, waiting, done) as process:
        question = HealthCheck(process, "/metrics", "tailrace_ready 1.0")
        await wait_ready({"generator-2": question}, print)
        assert await http_get("127.0.0.1", process) == Response(200, "tailrace_ready 1.0")


async def test_a_process_whose_start_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Persistence may migrate a large database for minutes: a start that is broken off would begin again."""
    monkeypatch.setattr("tailrace.deploy.local.readiness.READY_S_MAX", 0.3)
    monkeypatch.setattr("tailrace.deploy.local.readiness.START_S_MAX", 0.0)
    monkeypatch.setattr(rolling_restart, "ROLES", ["persistence"])
    # The server sends the same time in each response.
    starting, done = [
        http(200, f"tailrace_ready {ready}\ntailrace_event_loop_seconds {time.monotonic() + 60}\n")
        for ready in ("0.0", "1.0")
    ]
    waiting = [starting] * 10
    async with answering_server(*waiting, done) as process:
        reported = list[str]()
        await wait_ready({"persistence": HealthCheck(process, "/metrics", "tailrace_ready 1.0")}, reported.append)
    assert reported[0] == "persistence not ready after 0.3 s: still starting"

    async with answering_server(*waiting, done) as process, asyncio.TaskGroup() as tasks:
        command = ("sh", "-c", 'test "$1" = --check || exec sleep 60', "sh")
        check = HealthCheck(process, "/metrics", "tailrace_ready 1.0")
        spec = ProcessSpec("persistence", "persistence", command, os.environ, readiness=check)
        supervisor = Supervisor(tasks, Console(io.StringIO(), width=4, coloured=False))
        supervisor.start(spec)
        await until(lambda: supervisor.children["persistence"].pid)
        status = StatusFile(tmp_path, "http://127.0.0.1:1", supervisor)
        restart = RollingRestart([spec], supervisor, status, tmp_path, lambda *_: [spec])
        restart.requested.set()
        restarting = tasks.create_task(restart.run())
        await until(lambda: status.restart.ended)
        restarting.cancel()
        await supervisor.stop()
    assert status.restart.failure == ""


@pytest.mark.parametrize("answer", [b"HTTP/1.1 x y\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""])
async def test_another_protocol_on_the_port_is_not_ready(answer: bytes) -> None:
    async with answering_server(answer) as port:
        assert await http_get("127.0.0.1", port) == Response(0, "")
