"""watch_disconnect: notices that the client of a request has disconnected, without a task if it can."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tailrace.gateway.http.http_protocol import watch_disconnect
from tailrace.proto.runtime.flag import Flag
from tests.harness.until import until


class Request:
    """A request of uvicorn, whose connection can be closed."""

    def __init__(self, *, more_body: bool = False) -> None:
        given: Any = ({"method": "GET"}, asyncio.Transport(), FlowControl(asyncio.Transport()), *[None] * 8)
        self.cycle = RequestResponseCycle(*given)
        self.cycle.message_event = Flag()  # type: ignore[assignment]
        self.cycle.waiting_for_100_continue = False
        # As when the headers and the end of the body have arrived.
        self.cycle.message_event.set()
        self.cycle.more_body = more_body
        self.receive: Any = self.cycle.receive
        self.calls = 0

    def note(self) -> None:
        self.calls += 1

    def close(self) -> None:
        self.cycle.disconnected = True
        self.cycle.message_event.set()


async def test_a_disconnect_is_noticed_at_once_and_needs_no_task() -> None:
    request = Request()
    watch_disconnect(request.receive, request.note)
    assert len(asyncio.all_tasks()) == 1
    assert request.calls == 0
    request.close()
    assert request.calls == 1


async def test_a_client_that_has_disconnected_before_is_noticed() -> None:
    request = Request()
    request.close()
    watch_disconnect(request.receive, request.note)
    assert request.calls == 1


@pytest.mark.parametrize("more_body", [False, True])
async def test_a_watch_that_has_ended_notices_nothing(*, more_body: bool) -> None:
    request = Request(more_body=more_body)
    watch_disconnect(request.receive, request.note)()
    await asyncio.sleep(0)
    request.close()
    await asyncio.sleep(0.01)
    assert request.calls == 0


async def test_a_body_that_still_arrives_is_no_disconnect() -> None:
    """It is dropped, so that the client can go on to send it."""
    request = Request(more_body=True)
    watch_disconnect(request.receive, request.note)
    for _ in range(3):
        request.cycle.body += b"more"
        request.cycle.message_event.set()
        await until(lambda: not request.cycle.body)
    assert request.calls == 0
    request.close()
    await until(lambda: request.calls)


async def test_another_server_is_watched_by_a_task() -> None:
    disconnected, calls = asyncio.Event(), list[int]()

    async def receive() -> Message:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    watch_disconnect(receive, lambda: calls.append(1))
    disconnected.set()
    await until(lambda: calls)
