"""Interruptions: a disconnect, a drain, an expired credential or a time limit ends a response early."""

import asyncio

import pytest
from starlette.types import Message

from tailrace.gateway.streaming.endings import AGED, DRAINED, EXPIRED, LEFT, StreamEnding
from tailrace.gateway.streaming.response import Interruptions
from tailrace.proto.runtime.flag import Flag


class Client:
    """The receiving side of a request."""

    def __init__(self) -> None:
        self.has_left = asyncio.Event()

    async def receive(self) -> Message:
        await self.has_left.wait()
        return {"type": "http.disconnect"}


async def end_after(client: Client, draining: Flag, expired: Flag, interruption: StreamEnding) -> None:
    """Causes one interruption after 10 ms."""
    await asyncio.sleep(0.01)
    {LEFT: client.has_left.set, DRAINED: draining.set, EXPIRED: expired.set}[interruption]()


@pytest.mark.parametrize("interruption", [LEFT, DRAINED, EXPIRED], ids=lambda one: one.report)
async def test_an_interruption_cancels_the_work_and_is_its_cause(interruption: StreamEnding) -> None:
    client, draining, expired = Client(), Flag(), Flag()
    is_cancelled = False

    async def work() -> None:
        nonlocal is_cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    async with Interruptions(client.receive, draining, expired) as interruptions, asyncio.TaskGroup() as group:
        group.create_task(end_after(client, draining, expired, interruption))
        assert (await interruptions.run(work(), 30)).interruption is interruption
        assert is_cancelled
        # Work that starts after the interruption is cancelled at its first `await` that waits.
        assert (await interruptions.run(work())).interruption is interruption


async def test_a_disconnect_is_the_cause_even_if_the_gateway_drains_as_well() -> None:
    client, draining = Client(), Flag()
    async with Interruptions(client.receive, draining, Flag()) as interruptions:
        client.has_left.set()
        await asyncio.sleep(0.01)
        draining.set()
        assert (await interruptions.run(asyncio.sleep(30))).interruption is LEFT


async def test_the_result_the_time_limit_and_the_errors_of_the_work_are_distinguished() -> None:
    """Also a TimeoutError of the work itself, which is not the time limit of the response."""

    async def fail() -> None:
        raise TimeoutError("of the work")

    async with Interruptions(Client().receive, Flag(), Flag()) as interruptions:
        assert await interruptions.run(asyncio.sleep(0, "result"), 30) == (None, "result")
        assert (await interruptions.run(asyncio.sleep(30), 0.01)).interruption is AGED
        with pytest.raises(TimeoutError, match="of the work"):
            await interruptions.run(fail(), 30)


async def test_cancelling_the_response_is_no_interruption() -> None:
    async def respond() -> None:
        async with Interruptions(Client().receive, Flag(), Flag()) as interruptions:
            await interruptions.run(asyncio.sleep(30), 30)

    responding = asyncio.create_task(respond())
    await asyncio.sleep(0.01)
    responding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await responding
