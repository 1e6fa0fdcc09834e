"""Large bodies that come at the same moment: what is between them and the route, without a server."""

import asyncio

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodyLimit, let_go
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant

ROOM_BYTES = 10 * SMALL_BYTES_MAX


def of(tenant: str) -> Scope:
    return {"type": "http", "method": "POST", "headers": [(b"tenant", tenant.encode())]}


async def receive() -> Message:
    """A large body, all of it."""
    return {"type": "http.request", "body": b"x" * (SMALL_BYTES_MAX + 1), "more_body": False}


async def send(_: Message) -> None: ...


def large_bodies(route: ASGIApp, timeout_s: float = 1) -> LargeBodyLimit:
    return LargeBodyLimit(
        route, ROOM_BYTES, 2 * SMALL_BYTES_MAX, timeout_s, whose=lambda request: Tenant(request.headers["tenant"])
    )


async def test_of_large_bodies_that_are_there_at_once_one_is_handed_over_at_a_time() -> None:
    """Each holds up the loop for a moment: between two of them, all others have their turn."""
    happened: list[str] = []

    async def route(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        happened.append("body")
        await send({"type": "http.response.start", "status": 202, "headers": []})

    async def stream() -> None:
        while happened.count("body") < 5:
            happened.append("delta")
            await asyncio.sleep(0)

    large = large_bodies(route)
    await asyncio.gather(stream(), *(large(of("a"), receive, send) for _ in range(5)))
    between = "".join(each[0] for each in happened).strip("d").split("b")
    assert [each != "" for each in between[1:-1]] == [True] * 4
    assert large.free == ROOM_BYTES


async def test_a_route_that_breaks_gives_its_room_back() -> None:
    """Or a few mistakes of ours would stop all large requests."""

    async def route(_: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        assert large.free == ROOM_BYTES - 2 * SMALL_BYTES_MAX
        raise ZeroDivisionError

    large = large_bodies(route)
    with pytest.raises(ZeroDivisionError):
        await large(of("a"), receive, send)
    assert large.free == ROOM_BYTES


async def test_an_answer_that_waits_for_the_model_takes_no_room() -> None:
    """Its body is in the log by then. That its client goes away, which it listens for, takes none either."""

    async def route(scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        await let_go(scope)
        assert large.free == ROOM_BYTES
        await receive()
        assert large.free == ROOM_BYTES

    large = large_bodies(route)
    await large(of("a"), receive, send)


async def test_a_tenant_that_falls_silent_shuts_no_other_out() -> None:
    """Half of the room is the most that one can hold: the next of its own is told to come again."""
    silent = asyncio.Event()

    async def route(_: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        await silent.wait()

    large = large_bodies(route, timeout_s=0.1)
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(large(of("a"), receive, send))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="send it again"):
            async with asyncio.timeout(1):
                await large(of("a"), receive, send)
        others = [group.create_task(large(of("b"), receive, send)) for _ in range(2)]
        done, _pending = await asyncio.wait(others, timeout=0.2)
        assert (done, large.free) == (set(), ROOM_BYTES - 8 * SMALL_BYTES_MAX)
        silent.set()
    assert large.free == ROOM_BYTES
