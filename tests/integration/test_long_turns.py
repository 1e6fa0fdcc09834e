"""Rendering of a long turn in pieces, between which the event loop runs."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from tailrace.gateway.streaming import fanout, frame_writer
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.proto.entries import Stored
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_writer import Writer
from tests.integration.conftest import Gateway

AT_ONCE = 4


@pytest.mark.parametrize(
    "path",
    [
        "/v1/turns/{turn}/events",
        "/v1/turns/{turn}/events?dialect=job&after={last}",
        "/v1/responses/resp_{turn}?stream=true&starting_after=30",
    ],
)
async def test_a_long_turn_is_rendered_in_pieces(
    monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway, log: TurnLog, key: TurnKey, path: str
) -> None:
    """Entries before the cursor too: rendering 10,000 entries at once blocked the loop for a quarter of a second."""
    monkeypatch.setattr(frame_writer, "FRAMES_MAX", AT_ONCE)
    writer = Writer(log, key)
    await writer.open(*["word "] * 40)
    last = writer.chain.last
    await writer.end()
    rendered: Counter[int] = Counter()
    turns = 0

    frames = fanout.TurnFeed.frames

    def count_renderings(self: fanout.TurnFeed, dialect: Dialect, *bounds: int) -> list[Frame]:
        def render(state: Any, stored: Stored) -> tuple[Frame, Any]:
            rendered[turns] += 1
            return dialect.render(state, stored)

        return frames(self, dialect._replace(render=render), *bounds)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(fanout.TurnFeed, "frames", count_renderings)
    counting = asyncio.create_task(count())
    answer = await lone_gateway.client.get(path.format(turn=key.turn, last=last))
    counting.cancel()
    assert answer.status_code == 200
    assert rendered.total() > 40
    assert max(rendered.values()) <= AT_ONCE
