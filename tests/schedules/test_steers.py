"""Messages that are put into running answers at the same moment, on the simulator, with each kind of fault."""

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from tailrace.features.steer.steering import Steering
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Claim
from tailrace.testing import MemoryClaims
from tests.schedules.steers import CLIENTS, MESSAGES, SteerSchedule, judge

SEEDS = 120
SEEDS_FOR_A_MUTANT = 200
HAPPENINGS = {"killed", "successor", "later", "next turn", "completed", "cancelled"}


def play(seed: int) -> SteerSchedule:
    schedule = SteerSchedule(seed)
    schedule.play()
    return schedule


@pytest.mark.no_cover
@pytest.mark.timeout(240)
@pytest.mark.rule("R137")
def test_each_accepted_message_is_in_the_conversation_once_and_in_one_order() -> None:
    """Whatever gateway or generator is killed, and whatever is lost, late or stale."""
    broken, happened = list[str](), Counter[str]()
    for seed in range(SEEDS):
        schedule = play(seed)
        verdict = judge(schedule)
        broken += [] if verdict.is_green else [verdict.evidence]
        happened.update(happenings(schedule))
        assert len(schedule.acknowledged) == CLIENTS * MESSAGES, seed
    assert broken == []
    assert happened.keys() >= HAPPENINGS


def happenings(schedule: SteerSchedule) -> list[str]:
    """Returns what has happened in a schedule."""
    happened = ["killed"] if any(gateway.name.endswith("'") for gateway in schedule.gateways) else []
    for key in schedule.turns:
        turn = schedule.turn(key)
        assert turn.end is not None
        assert turn.request is not None
        happened.append("successor" if turn.end.successor else turn.end.outcome)
        if turn.request.parent is not None:
            before = schedule.turn(key._replace(turn=turn.request.parent)).end
            if not turn.request.is_queued:
                happened.append("next turn")
            elif before is not None and before.successor is None:
                happened.append("later")
    return happened


async def grant_each_claim(self: MemoryClaims, tenant: Tenant, key: str, mine: Claim) -> Claim:
    await self.put(tenant, key, mine)
    return mine


async def identify_none(*_: object) -> bytes:
    return new_id().encode()


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "two messages have one place": (MemoryClaims, "claim", grant_each_claim),
    "a repeated request is a new one": (Steering, "_identify", identify_none),
}


@pytest.mark.no_cover
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_judge_sees_each_broken_rule(name: str) -> None:
    with patch.object(*MUTANTS[name]):
        evidence = (judge(play(seed)) for seed in range(SEEDS_FOR_A_MUTANT))
        assert any(not verdict.is_green for verdict in evidence)
