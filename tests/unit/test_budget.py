"""What an answer has cost while it is being said is what its log adds up to, and it is closed at what it may cost."""

import msgspec
import pytest
from hypothesis import given

from tailrace.generators.budget import CostMeter, closing, is_spent
from tailrace.generators.plan import Complete, CutOff, MakeAttempt, plan, plan_after_check
from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Event, Request
from tailrace.proto.events import (
    BlockDelta,
    BlockStart,
    InputJsonDelta,
    MessageHead,
    MessageStart,
    TextDelta,
    ThinkingDelta,
)
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.usage import CallUsage
from tests.handwritten import Handwritten
from tests.made_up import MadeUp, logs

DOLLAR = 10**9
# Sonnet 5.5: 2,000 and 10,000 nano-dollars a token.
START = MessageStart(MessageHead("msg_1", "claude-sonnet-5-5", CallUsage(input_tokens=100)))
INPUT = 100 * 2000


def heard(*said: events.Event, max_cost_nano_usd: int | None = None, takes: int = 1) -> Turn:
    log = Handwritten()
    log.ask(max_cost_nano_usd=max_cost_nano_usd)
    for _ in range(takes):
        log.take()
    log.hear(*said)
    return log.turn


@given(logs())
def test_a_meter_never_says_less_than_the_log_adds_up_to(log: MadeUp) -> None:
    """Over attempts that broke off, whatever was said, also what fits no block, and no backend lets through."""
    turn, meter = EMPTY_TURN, None
    for stored in log.valid:
        turn = fold([stored], turn)
        match stored.entry:
            case Attempt() if turn.request is not None:
                meter = CostMeter(msgspec.structs.replace(turn.request, max_cost_nano_usd=DOLLAR), turn)
            case Event(event=raw) if meter is not None:
                meter.add(raw)
            case _:
                continue
        assert meter is not None
        assert meter.cost_nano_usd >= build_end(turn, "completed").cost_nano_usd


def test_a_meter_says_at_each_event_what_the_log_adds_up_to() -> None:
    """So a generator, and whoever folds after it, agree when it is enough."""
    log = Handwritten()
    log.ask(max_cost_nano_usd=DOLLAR)
    for _ in range(2):
        log.take()
        request = log.turn.request
        assert request is not None
        meter = CostMeter(request, log.turn)
        said: list[events.Event] = [
            START,
            BlockStart(0, {"type": "thinking", "thinking": ""}),
            BlockDelta(0, ThinkingDelta("hm, hm, hm")),
            BlockStart(1, {"type": "text", "text": "The"}),
            BlockDelta(1, TextDelta(" sky is")),
            BlockStart(2, {"type": "tool_use", "id": "t", "name": "look", "input": {}}),
            BlockDelta(2, InputJsonDelta('{"where": "up"')),
            events.MessageDelta(events.StopReason(), events.UsageSoFar(output_tokens=7)),
            BlockDelta(2, InputJsonDelta("}")),
        ]
        for event in said:
            log.hear(event)
            meter.add(msgspec.Raw(events.encode(event)))
            assert meter.cost_nano_usd == build_end(log.turn, "completed").cost_nano_usd > 0


@pytest.mark.rule("R41")
@pytest.mark.parametrize(("chars", "is_closed"), [(0, False), (7 * 15 - 7, False), (7 * 15, True), (7 * 20, True)])
def test_an_answer_that_has_cost_what_it_may_is_closed(chars: int, is_closed: bool) -> None:
    """Thirty tokens for a hundred characters and five, at 10,000 each, and what was asked before."""
    turn = heard(START, BlockStart(0, {"type": "text", "text": ""}), BlockDelta(0, TextDelta("x" * chars)))
    turn = msgspec.structs.replace(turn, request=limited(turn, INPUT + 30 * 10_000))
    assert (plan(turn, 5) == CutOff()) is is_closed
    assert is_spent(turn) is is_closed


def limited(turn: Turn, max_cost_nano_usd: int) -> Request:
    assert turn.request is not None
    return msgspec.structs.replace(turn.request, max_cost_nano_usd=max_cost_nano_usd)


@pytest.mark.rule("R41")
def test_what_is_closed_is_a_whole_message_of_what_was_said() -> None:
    """Every block that was open has its stop, and the answer a stop reason: then only its end is missing."""
    said: list[events.Event] = [
        START,
        BlockStart(0, {"type": "thinking", "thinking": ""}),
        BlockDelta(0, ThinkingDelta("hm")),
        BlockStart(1, {"type": "tool_use", "id": "t", "name": "look", "input": {}}),
        BlockDelta(1, InputJsonDelta('{"wh')),
    ]
    turn = heard(*said, max_cost_nano_usd=1)
    log = Handwritten()
    log.ask(max_cost_nano_usd=1)
    log.take()
    log.hear(*said)
    for raw in closing(turn):
        event = events.decode(raw)
        assert not isinstance(event, events.UnknownEvent)
        log.hear(event)
    assert all(block.is_closed for block in log.turn.blocks)
    assert log.turn.stop.stop_reason == "max_cost"
    assert plan(log.turn, 5) == Complete()
    assert log.turn.usage.output_tokens == turn.usage.output_tokens
    assert log.turn.is_usage_estimated


@pytest.mark.rule("R41")
def test_a_taken_over_turn_that_has_cost_what_it_may_makes_no_call() -> None:
    """Also when there is no attempt left: it is an answer that was cut, and none that failed."""
    turn = heard(START, BlockStart(0, {"type": "text", "text": ""}), max_cost_nano_usd=INPUT)
    assert plan(turn, 5) == plan(turn, 1) == CutOff()
    assert isinstance(plan(heard(START, max_cost_nano_usd=INPUT + 1), 5), MakeAttempt)
    assert isinstance(plan(heard(max_cost_nano_usd=1), 5), MakeAttempt)


def test_an_answer_is_not_asked_for_again_when_its_money_is_spent() -> None:
    """It does not fit its schema, and says so."""
    whole: list[events.Event] = [START, events.MessageDelta(events.StopReason("end_turn"))]
    assert isinstance(plan_after_check(heard(*whole), "no JSON", 5), MakeAttempt)
    assert plan_after_check(heard(*whole, max_cost_nano_usd=INPUT), "no JSON", 5) == Complete(schema_valid=False)


def test_without_a_price_or_a_limit_nothing_is_spent() -> None:
    """A model that nobody knows the price of is never cut."""
    turn = heard(START, max_cost_nano_usd=1)
    assert turn.request is not None
    unknown = msgspec.structs.replace(turn.request, model="nobody")
    assert not is_spent(msgspec.structs.replace(turn, request=unknown))
    assert not CostMeter(unknown, turn).is_passed
    assert not is_spent(heard(START))


def test_what_was_left_out_is_paid_for_as_well() -> None:
    """A continuation's thoughts and repeated words: no reader is told them, and the model has said them."""
    log = Handwritten()
    log.ask(max_cost_nano_usd=DOLLAR)
    log.take()
    log.hear(START, BlockStart(0, {"type": "text"}))
    assert log.turn.request is not None
    meter = CostMeter(log.turn.request, log.turn)
    piece = events.encode(BlockDelta(0, TextDelta("1234567")))
    meter.add(piece, left_out=70)
    log.store(Event(prev=log.chain.last, attempt=1, event=piece, left_out=70))
    assert meter.usage.output_tokens == log.turn.calls[-1].output_tokens == 22
