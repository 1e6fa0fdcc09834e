"""append_cancellation: what it returns when it loses the fence. Real cancellations are tested in tests/integration."""

from typing import Any

from tailrace.proto.entries import Entry
from tailrace.proto.errors import FenceLost
from tailrace.proto.fold import Turn
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.ownership import ScopedKey
from tests.harness.turn_builder import KEY, started_turn
from tests.harness.virtual_time import run


class ContestedLog:
    """A log whose reads return `turns` in order, and in which each append loses the fence."""

    def __init__(self, *turns: Turn) -> None:
        self._turns = list(turns)

    async def read_turn_direct(self, *_: Any) -> Turn:
        return self._turns.pop(0)

    async def append(self, *_: Any, timeout_s: float) -> Entry:
        raise FenceLost(f"lost within {timeout_s} s")


def test_a_stale_read_does_not_hide_that_a_generator_has_ended_the_turn() -> None:
    """The first read after the generator's `end` comes from a replica that is behind, so another append is refused."""
    turn = started_turn("a")
    running = turn.turn
    turn.end("cancelled")
    log: Any = ContestedLog(running, running, turn.turn)
    losses_seen = []

    async def on_fence_lost(losses: int) -> bool:
        losses_seen.append(losses)
        return losses == 1

    assert run(
        append_cancellation(log, ScopedKey.whole(KEY), on_fence_lost, cause="request", by=None, timeout_s=1)
    ) == (turn.turn, True)
    assert losses_seen == [1, 2]


def test_a_turn_that_another_process_has_ended_was_not_running() -> None:
    turn = started_turn("a")
    running = turn.turn
    turn.end("completed")
    log: Any = ContestedLog(running, turn.turn)
    assert run(append_cancellation(log, ScopedKey.whole(KEY), cause="request", by=None, timeout_s=1)) == (
        turn.turn,
        False,
    )
