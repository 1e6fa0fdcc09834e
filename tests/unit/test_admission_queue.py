"""Admission queue: the order in which waiting requests begin, and which are refused."""

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.types import Message, Receive, Scope, Send

from tailrace.gateway.http import admission_queue
from tailrace.gateway.http.admission_queue import STARTED_PER_TURN, AdmissionQueue
from tailrace.gateway.http.error_responses import Envelope
from tailrace.gateway.http.retry_later import RETRY_S_MAX, RETRY_S_MIN


def build_request(path: str = "/v1/turns") -> Scope:
    return {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def send(_: Message) -> None: ...


async def test_waiting_requests_begin_in_order_with_streams_between_them() -> None:
    """A stream waits for at most STARTED_PER_TURN requests."""
    happened: list[int | str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        happened.append(int(scope["path"]))

    async def stream() -> None:
        while 99 not in happened:
            happened.append("delta")
            await asyncio.sleep(0)

    queue = AdmissionQueue(app, frozenset())
    await asyncio.gather(stream(), *(queue(build_request(str(n)), receive, send) for n in range(100)))
    assert [one for one in happened if one != "delta"] == list(range(100))
    runs = "".join("d" if one == "delta" else "r" for one in happened).strip("d").split("d")
    assert max(map(len, runs)) <= STARTED_PER_TURN


async def test_a_single_request_does_not_wait() -> None:
    begun: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.append(scope["path"])

    queue = AdmissionQueue(app, frozenset())
    waiting = [asyncio.ensure_future(queue(build_request(f"/{n}"), receive, send)) for n in range(20)]
    await asyncio.sleep(0)
    waiting[15].cancel()
    await asyncio.wait(waiting)
    assert len(begun) == 19
    async with asyncio.timeout(1):
        await queue(build_request("/alone"), receive, send)
    assert begun[-1] == "/alone"


async def test_a_request_that_would_wait_too_long_is_refused_but_a_health_check_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """503 with a random Retry-After, so that the clients do not return together."""
    monkeypatch.setattr(admission_queue, "WAIT_S_MAX", -1.0)
    begun: list[str] = []
    sent: list[Any] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.append(scope["path"])

    async def note(message: Message) -> None:
        sent.append(message)

    queue = AdmissionQueue(app, frozenset({"/healthz"}))
    first = asyncio.ensure_future(queue(build_request("/first"), receive, send))
    await asyncio.sleep(0)
    for _ in range(50):
        await queue(build_request("/late"), receive, note)
    await queue(build_request("/healthz"), receive, note)
    await first
    assert begun == ["/healthz", "/first"]
    starts, bodies = sent[::2], sent[1::2]
    assert {start["status"] for start in starts} == {503}
    assert msgspec.json.decode(bodies[0]["body"], type=Envelope).error.code == "server_busy"
    again = {int(dict(start["headers"])[b"retry-after"]) for start in starts}
    assert len(again) > 3
    assert min(again) >= RETRY_S_MIN
    assert max(again) <= RETRY_S_MAX
