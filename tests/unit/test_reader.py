"""Reader and serve: a disconnect, a drain, an expired credential or a time limit ends a response early."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message

from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.streaming.endings import AGED, DRAINED, EXPIRED, LEFT, WHOLE, StreamEnding
from tailrace.gateway.streaming.reader import Reader
from tailrace.gateway.streaming.response import serve
from tailrace.proto.runtime.flag import Flag


class Client:
    """The receiving side of a request."""

    def __init__(self) -> None:
        self.has_left = asyncio.Event()

    async def receive(self) -> Message:
        await self.has_left.wait()
        return {"type": "http.disconnect"}


@asynccontextmanager
async def open_reader(
    client: Client | None = None, draining: Flag | None = None, expired: Flag | None = None
) -> AsyncIterator[Reader]:
    """A reader whose interruptions are watched for."""
    authenticator = SimpleNamespace(watch=lambda _: (expired or Flag(), None), unwatch=lambda *_: None)
    streams = SimpleNamespace(authenticator=authenticator)
    reader = Reader(
        cast("Any", streams),
        cast("Any", SimpleNamespace(principal=LOCAL, client=None, headers={}, scope={"query_string": b""})),
    )
    async with reader.open((client or Client()).receive, draining or Flag(), is_counted=False):
        yield reader


async def wait_for_ever() -> bool:
    await asyncio.Event().wait()
    return True


async def end_after(client: Client, draining: Flag, expired: Flag, interruption: StreamEnding) -> None:
    """Causes one interruption after 10 ms."""
    await asyncio.sleep(0.01)
    {LEFT: client.has_left.set, DRAINED: draining.set, EXPIRED: expired.set}[interruption]()


@pytest.mark.parametrize("interruption", [LEFT, DRAINED, EXPIRED], ids=lambda one: one.report)
async def test_an_interruption_cancels_the_work_and_is_its_cause(interruption: StreamEnding) -> None:
    client, draining, expired = Client(), Flag(), Flag()
    is_cancelled = False

    async def step() -> bool:
        nonlocal is_cancelled
        try:
            return await wait_for_ever()
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    async with open_reader(client, draining, expired) as reader, asyncio.TaskGroup() as group:
        group.create_task(end_after(client, draining, expired, interruption))
        assert await serve(reader, step, life_s=30) is interruption
        assert is_cancelled
        # A step that starts after the interruption is cancelled at its first `await` that waits.
        assert await serve(reader, step) is interruption


async def test_a_disconnect_is_the_cause_even_if_the_gateway_drains_as_well() -> None:
    client, draining = Client(), Flag()
    async with open_reader(client, draining) as reader:
        client.has_left.set()
        await asyncio.sleep(0.01)
        draining.set()
        assert await serve(reader, wait_for_ever) is LEFT


async def test_the_end_the_time_limit_and_the_errors_of_a_step_are_distinguished() -> None:
    """Also a TimeoutError of the step itself, which is not the time limit of the response."""

    async def fail() -> bool:
        raise TimeoutError("of the step")

    async def end() -> StreamEnding:
        return WHOLE

    async with open_reader() as reader:
        assert await serve(reader, end, life_s=30) is WHOLE
        assert await serve(reader, wait_for_ever, life_s=0.01) is AGED
        with pytest.raises(TimeoutError, match="of the step"):
            await serve(reader, fail, life_s=30)


async def test_a_heartbeat_follows_each_silence_and_nothing_else() -> None:
    done: list[str] = []
    results: Iterator[StreamEnding | bool] = iter((True, False, True, WHOLE))

    async def step() -> StreamEnding | bool:
        done.append("step")
        return next(results)

    async def beat() -> None:
        done.append("heartbeat")

    async with open_reader() as reader:
        assert await serve(reader, step, beat) is WHOLE
    assert done == ["step", "step", "heartbeat", "step", "step"]


async def test_cancelling_the_response_is_no_interruption() -> None:
    async def respond() -> None:
        async with open_reader() as reader:
            await serve(reader, wait_for_ever, life_s=30)

    responding = asyncio.create_task(respond())
    await asyncio.sleep(0.01)
    responding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await responding
