"""Large events of a model in the generator: in steps, with the same result, and within a limit of memory."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tailrace.generators.backends import large_events
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.large_events import LARGE_BYTES, LargeEventMemory, cut, restore
from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.proto.errors import BackendError
from tailrace.proto.long_strings import PIECE_BYTES

pytestmark = pytest.mark.rule("R120")

TEXT = 'a "quoted" \\ line\nü€😀 ' * 30_000
USAGE = {"input_tokens": 3, "output_tokens": 1}
RESULT = {"type": "web_fetch_tool_result", "tool_use_id": "s", "content": {"data": TEXT, "n": [1, {"x": TEXT}]}}
START: dict[str, Any] = {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": USAGE}}
TEXT_BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
EVENTS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([START], {"type": "content_block_start", "index": 0, "content_block": RESULT}),
    ([START, TEXT_BLOCK], {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}),
    ([START, TEXT_BLOCK], {"type": "content_block_delta", "index": 0, "delta": {"type": "newer", "more": TEXT}}),
    ([START], {"type": "newer", "more": TEXT}),
    ([], {"type": "message_start", "message": {**START["message"], "content": [RESULT], "stop_reason": "end_turn"}}),
]


async def read_large(order: EventOrder, data: bytes) -> list[ModelEvent]:
    rest, strings = await cut(data)
    assert strings
    assert len(rest) < 1000
    event = read_event(rest)
    assert event is not None
    return [await restore(one, data, rest, strings) for one in order.accept(event)]


def begun(events: Sequence[dict[str, Any]]) -> EventOrder:
    order = EventOrder()
    for one in events:
        event = read_event(json.dumps(one).encode())
        assert event is not None
        order.accept(event)
    return order


@pytest.mark.parametrize(("before", "event"), EVENTS)
@pytest.mark.parametrize("is_ascii", [True, False])
async def test_a_large_event_is_read_as_a_small_one(
    before: list[dict[str, Any]], event: dict[str, Any], *, is_ascii: bool
) -> None:
    """Its checks, its decoded fields and its bytes."""
    data = json.dumps(event, ensure_ascii=is_ascii).encode()
    assert len(data) > LARGE_BYTES
    whole = read_event(data)
    assert whole is not None
    expected, found = begun(before).accept(whole), await read_large(begun(before), data)
    assert [(one.event, one.kind, one.index) for one in found] == [(one.event, one.kind, one.index) for one in expected]
    assert [json.loads(bytes(one.raw)) for one in found] == [json.loads(bytes(one.raw)) for one in expected]
    if len(found) == 1:
        assert bytes(found[0].raw) == data


async def test_other_turns_go_on_while_a_large_event_is_read() -> None:
    """The event loop runs other tasks after each piece: their leases are renewed."""
    data = json.dumps({"type": "newer", "more": "x" * 30_000_000}).encode()
    turns, is_done = 0, False

    async def renew() -> None:
        nonlocal turns
        while not is_done:
            turns += 1
            await asyncio.sleep(0)

    renewing = asyncio.create_task(renew())
    (event,) = await read_large(begun([START]), data)
    is_done = True
    await renewing
    assert bytes(event.raw) == data
    assert turns >= len(data) // PIECE_BYTES


async def test_an_event_with_too_many_values_is_refused() -> None:
    data = json.dumps({"type": "newer", "n": [1] * 500_000}).encode()
    with pytest.raises(BackendError) as refused:
        await cut(data)
    assert refused.value.code == "backend_event_too_large"


async def test_the_memory_of_large_events_is_bounded() -> None:
    """A third one waits until one of two is stored."""
    memory, has_third = LargeEventMemory(), asyncio.Event()
    first, second = memory.reserve("a"), memory.reserve("b")
    await first.__aenter__()
    await second.__aenter__()

    async def reserve() -> None:
        async with memory.reserve("c"):
            has_third.set()

    third = asyncio.create_task(reserve())
    await asyncio.sleep(0)
    assert not has_third.is_set()
    await first.__aexit__(None, None, None)
    await third
    await second.__aexit__(None, None, None)
    assert large_events.MEMORY_BYTES < 512 * 2**20
