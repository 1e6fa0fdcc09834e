"""Memory for large bodies that arrive at the same moment, and their decoding in steps, without a server."""

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, cast

import msgspec
import pytest
import structlog.testing
from starlette.requests import Request
from starlette.types import Message

from tailrace.features.auto_idempotency.gateway import derive_key
from tailrace.features.count_tokens.records import PromptFields
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.http import error_responses, large_bodies
from tailrace.gateway.http.json_response import json_response, large_json_response
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodies
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.generators import load_blobs
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import blobs, long_strings, service
from tailrace.proto.entries import Message as PromptMessage
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.testing import MemoryClaims

MEMORY_BYTES = 24 * SMALL_BYTES_MAX
BODY_BYTES_MAX = 2 * SMALL_BYTES_MAX


class Shape(msgspec.Struct):
    text: str


def body_reader(timeout_s: float = 1) -> BodyReader:
    memory = LargeBodies(bytes_max=MEMORY_BYTES, timeout_s=timeout_s)
    return BodyReader(memory, bytes_max=BODY_BYTES_MAX, timeout_s=5, rate_min=1)


def large_request(rest: asyncio.Event | None = None) -> Request:
    """A body that is larger than a small one, of undeclared size. Its end arrives when `rest` is set."""
    pieces = [b"x" * (SMALL_BYTES_MAX + 1), b""]

    async def receive() -> Message:
        if rest is not None and len(pieces) == 1:
            await rest.wait()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)


async def test_the_loop_runs_while_large_bodies_are_decoded() -> None:
    """Several bodies take no longer steps than one."""
    bodies, pieces = body_reader(), 4
    text = "x" * pieces * long_strings.PIECE_BYTES
    raw = msgspec.json.encode(Shape(text))
    happened: list[str] = []

    async def decode() -> None:
        assert await bodies.decode(raw, Shape) == Shape(text)
        happened.append("body")

    async def stream() -> None:
        while happened.count("body") < 3:
            happened.append("delta")
            await asyncio.sleep(0)

    await asyncio.gather(stream(), *(decode() for _ in range(3)))
    between = " ".join(happened).split("body")[:3]
    assert [each.count("delta") >= pieces for each in between] == [True] * 3


async def count_loop_turns(work: Awaitable[object]) -> int:
    """Returns how often the loop runs other tasks during `work`."""
    turns, working = 0, asyncio.ensure_future(work)
    while not working.done():
        turns += 1
        await asyncio.sleep(0)
    await working
    return turns


async def test_the_loop_runs_while_a_key_auto_is_derived_and_a_large_response_is_encoded() -> None:
    pieces = 4
    text = "x" * pieces * long_strings.PIECE_BYTES
    deriving = derive_key(cast("Any", None), MemoryClaims(), LOCAL, NewTurn(message=text))
    assert await count_loop_turns(deriving) >= pieces
    assert await count_loop_turns(large_json_response(Shape(text))) >= pieces
    large, plain = await large_json_response(Shape(text)), json_response(Shape(text))
    assert (large.status_code, large.body, large.headers) == (plain.status_code, plain.body, plain.headers)


async def test_a_large_body_that_is_not_json_is_refused() -> None:
    raw = msgspec.json.encode(Shape("x" * BODY_BYTES_MAX))
    for wrong in (raw[:-1], raw[:-2], raw.replace(b"xxxx", b"\xff\xff\xff\xff", 1), raw.replace(b"xx", b"\\x", 1)):
        with pytest.raises(Refused, match="not valid JSON"):
            await body_reader().decode(wrong, Shape)
    with pytest.raises(Refused, match="`text` occurs twice"):
        await body_reader().decode(raw.replace(b"{", b'{"text":"a",'), Shape)
    with pytest.raises(Refused, match="unknown field `other`"):
        await body_reader().decode(raw.replace(b"text", b"other"), StrictShape)


class StrictShape(Shape, forbid_unknown_fields=True):
    pass


async def test_memory_is_released_when_the_endpoint_fails() -> None:
    """Otherwise a few failures would block all large requests."""
    bodies = body_reader()

    async def fail() -> None:
        async with AsyncExitStack() as holder:
            await bodies.read(large_request(), Tenant("a"), holder)
            assert bodies.large_bodies.free < MEMORY_BYTES - BODY_BYTES_MAX
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert bodies.large_bodies.free == MEMORY_BYTES


async def test_a_silent_tenant_blocks_no_other_tenant() -> None:
    """One tenant can reserve half of the memory for arriving bodies; its next request is rejected."""
    rest = asyncio.Event()
    bodies = body_reader(timeout_s=0.1)

    async def post(tenant: str, *, is_silent: bool) -> None:
        async with AsyncExitStack() as holder:
            await bodies.read(large_request(rest if is_silent else None), Tenant(tenant), holder)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(post("a", is_silent=True))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert bodies.large_bodies.free == MEMORY_BYTES - 3 * BODY_BYTES_MAX
        with pytest.raises(Refused, match="repeat the request after Retry-After"):
            await post("a", is_silent=False)
        await post("b", is_silent=False)
        rest.set()
    assert bodies.large_bodies.free == MEMORY_BYTES


class TextStore:
    """Has one blob."""

    text = b"x" * (blobs.INLINE_BYTES_MAX + 1)

    async def read(self, *_: object) -> bytes:
        return self.text


@pytest.mark.parametrize("kind", ["body", "call"])
async def test_complete_bodies_and_calls_take_turns_by_tenant(kind: str) -> None:
    """There is memory for one of them at a time."""
    size = len(TextStore.text)
    bodies = LargeBodies(bytes_max=2 * large_bodies.COPIES * size, timeout_s=5)
    loader = BlobLoader(TextStore(), FairSemaphore(load_blobs.COPIES * size))  # type: ignore[arg-type]  # all it needs
    call, _ = blobs.lift(PromptFields([PromptMessage("user", TextStore.text.decode())]))
    order: list[str] = []

    async def process(tenant: Tenant) -> None:
        async with AsyncExitStack() as holder:
            if kind == "body":
                await bodies.reserve_copies(holder, tenant, size)
            else:
                await holder.enter_async_context(loader.load(tenant, call))
            order.append(tenant)
            await asyncio.sleep(0)

    await asyncio.gather(*(process(Tenant(name)) for name in "aaaabb"))
    assert "".join(order) == "aababa"


async def test_of_requests_that_hold_memory_one_waits_for_more_and_the_next_is_refused_at_once() -> None:
    """Both would wait for each other, and a request of another tenant behind them."""
    size = 3 * SMALL_BYTES_MAX
    bodies = LargeBodies(bytes_max=2 * large_bodies.COPIES * 3 * size, timeout_s=5)
    order: list[str] = []

    async def process(name: str, added: int) -> None:
        try:
            async with AsyncExitStack() as holder:
                await bodies.reserve_copies(holder, Tenant(name), size)
                await asyncio.sleep(0)
                if added:
                    await bodies.reserve_more(holder, Tenant(name), added, held=size)
                order.append(name)
        except Refused as refused:
            order.append(f"{name}: {refused.code}")

    async with asyncio.TaskGroup() as group:
        for name, added in (("a", 2 * size), ("b", 2 * size), ("c", 0), ("d", 0)):
            group.create_task(process(name, added))
    assert order == ["b: server_busy", "c", "a", "d"]
    assert bodies.free == 2 * large_bodies.COPIES * 3 * size


async def test_a_request_does_not_wait_for_the_memory_that_it_holds() -> None:
    bodies, size = LargeBodies(bytes_max=MEMORY_BYTES, timeout_s=5), MEMORY_BYTES // 4
    async with asyncio.timeout(1), AsyncExitStack() as holder:
        await bodies.reserve_copies(holder, Tenant("a"), size)
        await bodies.reserve_more(holder, Tenant("a"), size, held=size)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")], ids=repr)
async def test_a_request_without_memory_is_refused_and_may_be_repeated(error: Exception) -> None:
    refused = await error_responses.handle_unexpected_error(large_request(), error)
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert b'"server_busy"' in refused.body


async def test_a_connection_without_memory_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """uvloop closes it, and with thousands of them tracebacks would fill the log."""
    message = "Fatal error on transport TCPTransport"
    with structlog.testing.capture_logs() as lines:
        for error in (MemoryError(), OSError("another")):
            service.log_loop_error(
                asyncio.get_running_loop(), {"message": f"{message}\nprotocol: …", "exception": error}
            )
    assert [(line["event"], line["where"]) for line in lines] == [("no memory", message)]
    assert [one.exc_info[0] for one in caplog.records if one.exc_info is not None] == [OSError]
