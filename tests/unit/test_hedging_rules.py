"""Which attempts may have a hedge, and which calls are counted although no entry holds their usage."""

import asyncio
from typing import cast

import pytest

from tailrace.generators.attempt_runner import Race
from tailrace.generators.backends.model_event import from_event
from tailrace.generators.hedging import Hedging, may_hedge
from tailrace.generators.plan import MakeAttempt
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import HedgeRpc, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.usage import Usage
from tests.harness.turn_builder import opening_events, request


@pytest.mark.rule("R51")
@pytest.mark.parametrize(
    ("number", "backend", "is_hedged"),
    [(1, "claude", True), (1, "litellm", True), (2, "claude", False), (9, "claude", False), (1, "claude_code", False)],
)
def test_only_a_first_attempt_without_side_effects_may_be_hedged(number: int, backend: str, is_hedged: bool) -> None:
    """So a turn has one hedge at most, and two calls of Claude Code never work in one folder."""
    assert may_hedge(number, backend) == is_hedged


class RecordedSettlement(Settlement):
    def __init__(self) -> None:
        self.added: list[tuple[str, int]] = []

    async def add(self, request: Request, name: str, usage: Usage, nano_usd: int) -> None:  # noqa: ARG002
        self.added.append((name, usage.input_tokens))


@pytest.mark.rule("R51")
@pytest.mark.parametrize("error", [asyncio.CancelledError(), LogUnavailable("no reply")])
@pytest.mark.parametrize("is_returned", [False, True])
async def test_a_first_call_that_stops_before_its_token_is_counted(error: BaseException, *, is_returned: bool) -> None:
    """Its `message_start` waits for the token. Once the buffer has returned it, it may be stored and counted."""
    settlement = RecordedSettlement()
    hedging = Hedging(cast("TurnLog", None), cast("HedgeRpc", None), settlement, name="one", after_s=1)
    turn = Turn(request=request(), backend="claude")
    race: Race = hedging.race(TurnKey(Tenant("tenant"), TurnId("turn-1")), turn, MakeAttempt(1, "fresh"), "lease")
    sink = race.wrap(race.buffer.put)
    for event in opening_events(input_tokens=7):
        sink(from_event(event))
    if is_returned:
        # The call has broken off.
        race.buffer.close()
        assert await race.buffer.next() is not None
    await race.finish(has_stored=False, error=error)
    assert settlement.added == ([] if is_returned else [("turn-1.1", 7)])
