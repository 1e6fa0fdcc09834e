"""Memory for large bodies that arrive at the same moment, without a server."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from starlette.requests import Request
from starlette.types import Message

from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodies
from tailrace.gateway.http.read_body import BodyReader
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant

MEMORY_BYTES = 10 * SMALL_BYTES_MAX


def body_reader(timeout_s: float = 1) -> BodyReader:
    memory = LargeBodies(bytes_max=MEMORY_BYTES, timeout_s=timeout_s)
    return BodyReader(memory, bytes_max=2 * SMALL_BYTES_MAX, timeout_s=5, rate_min=1)


def large_request() -> Request:
    """A complete body that is larger than a small one, of undeclared size."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * (SMALL_BYTES_MAX + 1), "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)


async def test_large_bodies_are_decoded_one_in_each_turn_of_the_loop() -> None:
    """Each blocks the loop for a moment: streams are served between two of them."""
    happened: list[str] = []
    bodies = body_reader()

    async def post() -> None:
        async with AsyncExitStack() as holder:
            await bodies.read(large_request(), Tenant("a"), holder)
            happened.append("body")

    async def stream() -> None:
        while happened.count("body") < 5:
            happened.append("delta")
            await asyncio.sleep(0)

    await asyncio.gather(stream(), *(post() for _ in range(5)))
    between = "".join(each[0] for each in happened).strip("d").split("b")
    assert [each != "" for each in between[1:-1]] == [True] * 4
    assert bodies.large_bodies.free == MEMORY_BYTES


async def test_memory_is_released_when_the_endpoint_fails() -> None:
    """Otherwise a few failures would block all large requests."""
    bodies = body_reader()

    async def fail() -> None:
        async with AsyncExitStack() as holder:
            await bodies.read(large_request(), Tenant("a"), holder)
            assert bodies.large_bodies.free == MEMORY_BYTES - 2 * SMALL_BYTES_MAX
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert bodies.large_bodies.free == MEMORY_BYTES


async def test_a_silent_tenant_blocks_no_other_tenant() -> None:
    """One tenant can reserve half of the memory; its next request is rejected."""
    silent = asyncio.Event()
    bodies = body_reader(timeout_s=0.1)

    async def post(tenant: str) -> None:
        async with AsyncExitStack() as holder:
            await bodies.read(large_request(), Tenant(tenant), holder)
            await silent.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(post("a"))
        await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="send it again"):
            async with asyncio.timeout(1):
                await post("a")
        others = [group.create_task(post("b")) for _ in range(2)]
        done, _pending = await asyncio.wait(others, timeout=0.2)
        assert (done, bodies.large_bodies.free) == (set(), MEMORY_BYTES - 8 * SMALL_BYTES_MAX)
        silent.set()
    assert bodies.large_bodies.free == MEMORY_BYTES
