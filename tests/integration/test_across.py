"""A turn that was begun in one dialect is taken up in each other: a cursor belongs to the turn, not to a dialect."""

import asyncio
import json
from typing import NamedTuple

import httpx2

from tailrace.gateway.clients.registry import DIALECTS
from tests.harness.displayed_text import SAYS
from tests.harness.generator_in_loop import words
from tests.harness.sse_parser import EventStream, Sent
from tests.integration.conftest import Gateway

TEXT = words(40)
# A job's last event says all of it, whatever was said before.
SAYS_ALL = {"job"}
# Bare text has no place for a cursor, and a response counts its events: what is begun there is taken up there.
WITHOUT_CURSOR = {"text", "openai-responses"}


class Begun(NamedTuple):
    """What somebody was shown before the cut, and the id that it came with."""

    dialect: str
    text: str
    cursor: int


def cursor_of(event: Sent) -> int | None:
    """Its id; where the protocol has no ids, what the chunk says."""
    if event.id is not None or not event.data.startswith("{"):
        return event.id
    cursor: int | None = json.loads(event.data).get("cursor")
    return cursor


async def begin(gateway: Gateway, turn: str, dialect: str, ids: int) -> Begun:
    """Reads until so many ids have come, and goes away in mid-answer."""
    async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?dialect={dialect}") as response:
        return await shown(response, dialect, ids)


async def shown(response: httpx2.Response, dialect: str, ids: int) -> Begun:
    """What comes until so many ids have come."""
    stream, seen = EventStream(), list[Sent]()
    async for received in response.aiter_raw():
        seen += stream.feed(received)
        found = [place for place, event in enumerate(seen) if cursor_of(event) is not None]
        if len(found) >= ids:
            break
    last = found[ids - 1]
    cursor = cursor_of(seen[last])
    assert cursor is not None
    return Begun(dialect, SAYS[dialect](b"".join(event.raw for event in seen[: last + 1])), cursor)


async def test_a_turn_begun_in_one_dialect_is_taken_up_in_each_other(gateway: Gateway) -> None:
    """While it runs, at any id that was ever sent: both halves together are the text, in every pair."""
    turn = (await gateway.client.post("/v1/turns", json={"message": "#sim words=40 rate=40"})).json()["turn"]
    begun = await asyncio.gather(
        *(begin(gateway, turn, one, ids) for one in sorted(set(DIALECTS) - WITHOUT_CURSOR) for ids in (5, 11))
    )

    async def rest(one: Begun, dialect: str) -> tuple[Begun, str, str]:
        url = f"/v1/turns/{turn}/events?dialect={dialect}"
        response = await gateway.client.get(url, headers={"last-event-id": str(one.cursor)})
        assert response.status_code == 200, response.text
        return one, dialect, SAYS[dialect](response.content)

    ends = await asyncio.gather(*(rest(one, dialect) for one in begun for dialect in DIALECTS))
    assert all(0 < len(one.text) < len(TEXT) for one in begun)
    expected = [
        (one, dialect, TEXT if dialect in SAYS_ALL else TEXT.removeprefix(one.text))
        for one in begun
        for dialect in DIALECTS
    ]
    assert ends == expected


async def test_a_turn_begun_by_use_chat_is_taken_up_in_each_other_dialect(gateway: Gateway) -> None:
    """`POST /api/chat`, cut in mid-answer: its last id is a cursor in every dialect."""
    asked = {"messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "#sim words=40 rate=40"}]}]}
    async with gateway.client.stream("POST", "/api/chat", json=asked) as response:
        begun = await shown(response, "ui", 9)
        turn = response.headers["tailrace-turn"]
    assert 0 < len(begun.text) < len(TEXT)

    async def rest(dialect: str) -> str:
        url = f"/v1/turns/{turn}/events?dialect={dialect}"
        told = await gateway.client.get(url, headers={"last-event-id": str(begun.cursor)})
        assert told.status_code == 200, told.text
        return SAYS[dialect](told.content)

    rests = dict(zip(DIALECTS, await asyncio.gather(*map(rest, DIALECTS)), strict=True))
    assert rests == {name: TEXT if name in SAYS_ALL else TEXT.removeprefix(begun.text) for name in DIALECTS}
    job = await gateway.client.get(f"/api/stream/{turn}", headers={"last-event-id": str(begun.cursor)})
    assert SAYS["job"](job.content) == TEXT
    response = await gateway.client.get(f"/v1/responses/resp_{turn}?stream=true")
    assert SAYS["openai-responses"](response.content) == TEXT
