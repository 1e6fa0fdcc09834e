"""A turn read in one dialect and resumed in another: a cursor belongs to the turn and not to a dialect."""

import asyncio
import json
from typing import NamedTuple

from tailrace.features.gateway import DIALECTS
from tests.harness.displayed_text import SAYS
from tests.harness.generator_in_loop import words
from tests.harness.sse_parser import EventStream, SseEvent
from tests.integration.conftest import Gateway

TEXT = words(40)
# The last event of a job, and each state of it, has the whole text.
WITH_WHOLE_TEXT = {"job", "state"}
# Plain text has no cursor; a response counts its own events. A state comes four times a second, at most.
WITHOUT_CURSOR = {"text", "openai-responses", "state"}


class Beginning(NamedTuple):
    """The text that a reader has received, and the cursor of its last event."""

    text: str
    cursor: int


def cursor_of(event: SseEvent) -> int | None:
    """Returns the id of the event, or the cursor in its data where the protocol has no ids."""
    if event.id is not None or not event.data.startswith("{"):
        return event.id
    cursor: int | None = json.loads(event.data).get("cursor")
    return cursor


async def begin(gateway: Gateway, turn: str, dialect: str, cursors: int) -> Beginning:
    """Reads until that many cursors have arrived."""
    stream, seen = EventStream(), list[SseEvent]()
    async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?dialect={dialect}") as response:
        async for received in response.aiter_raw():
            seen += stream.feed(received)
            found = [index for index, event in enumerate(seen) if cursor_of(event) is not None]
            if len(found) >= cursors:
                break
    last = found[cursors - 1]
    cursor = cursor_of(seen[last])
    assert cursor is not None
    return Beginning(SAYS[dialect](b"".join(event.raw for event in seen[: last + 1])), cursor)


async def read_rest(gateway: Gateway, turn: str, cursor: int, dialect: str) -> str:
    headers = {"last-event-id": str(cursor)}
    response = await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}", headers=headers)
    assert response.status_code == 200, response.text
    return SAYS[dialect](response.content)


async def verify(gateway: Gateway, turn: str, beginning: Beginning) -> None:
    """Resumes in every dialect: both parts together are the text."""
    assert 0 < len(beginning.text) < len(TEXT)
    rests = await asyncio.gather(*(read_rest(gateway, turn, beginning.cursor, dialect) for dialect in DIALECTS))
    missing = TEXT.removeprefix(beginning.text)
    assert dict(zip(DIALECTS, rests, strict=True)) == {
        dialect: TEXT if dialect in WITH_WHOLE_TEXT else missing for dialect in DIALECTS
    }


async def test_a_running_turn_is_resumed_in_every_dialect_from_every_dialect(gateway: Gateway) -> None:
    turn = (await gateway.client.post("/v1/turns", json={"message": "#sim words=40 rate=40"})).json()["turn"]
    dialects = sorted(set(DIALECTS) - WITHOUT_CURSOR)
    beginnings = await asyncio.gather(
        *(begin(gateway, turn, dialect, cursors) for dialect in dialects for cursors in (5, 11))
    )
    await asyncio.gather(*(verify(gateway, turn, beginning) for beginning in beginnings))
