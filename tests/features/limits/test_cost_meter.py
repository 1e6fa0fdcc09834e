"""The cost limit: the meter counts as the fold does, and an answer that reaches its limit is completed."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given

from tailrace.features.limits.cost_meter import CostMeter
from tailrace.features.structured_output.forced_calls import write_forced_call
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Sink, from_event
from tailrace.generators.continuation import build_mapper
from tailrace.generators.dropped_text import DroppedTextMeter
from tailrace.generators.plan import AppendEvents, Complete, MakeAttempt, closing_events, plan, plan_after_check
from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Event
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
from tests.harness.cost_limits import cut_at_cost, limit_cost
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import Handwritten, attempted_turn

DOLLAR = 10**9
# Sonnet 5.5: 2,000 and 10,000 nano-dollars a token.
START = MessageStart(MessageHead("msg_1", "claude-sonnet-5-5", CallUsage(input_tokens=100)))
INPUT = 100 * 2000
SEARCH = DOLLAR // 100


def turn_with(*answer: events.Event, max_cost_nano_usd: int | None = None) -> Turn:
    return attempted_turn(*answer, max_cost_nano_usd=max_cost_nano_usd).turn


@given(logs())
def test_the_meter_never_counts_less_than_the_fold(log: MadeUp) -> None:
    """Over attempts that broke off, also with events that fit no block, which no backend lets through."""
    turn, meter = EMPTY_TURN, None
    for stored in log.valid:
        turn = fold([stored], turn)
        match stored.entry:
            case Attempt() if turn.request is not None:
                meter = CostMeter(msgspec.structs.replace(turn.request, max_cost_nano_usd=DOLLAR), turn)
            case Event(event=raw) if meter is not None:
                meter.add(events.decode(raw))
            case _:
                continue
        assert meter is not None
        assert meter.cost_nano_usd >= build_end(turn, "completed").cost_nano_usd


def test_the_meter_equals_the_fold_after_each_event() -> None:
    """So a generator and one that takes over agree when the limit is reached."""
    log = Handwritten()
    log.store_request(max_cost_nano_usd=DOLLAR)
    for _ in range(2):
        log.store_attempt()
        request = log.turn.request
        assert request is not None
        meter = CostMeter(request, log.turn)
        answer: list[events.Event] = [
            START,
            BlockStart(0, {"type": "thinking", "thinking": ""}),
            BlockDelta(0, ThinkingDelta("hm, hm, hm")),
            BlockStart(1, {"type": "text", "text": "The"}),
            BlockDelta(1, TextDelta(" sky is")),
            BlockStart(2, {"type": "tool_use", "id": "t", "name": "look", "input": {}}),
            BlockDelta(2, InputJsonDelta('{"where": "up"')),
            events.MessageDelta(events.StopReason(), events.UsageSoFar(output_tokens=7)),
            BlockDelta(2, InputJsonDelta("}")),
            # Further calls of the same attempt. The usage of the second is unknown at its start.
            MessageStart(MessageHead("msg_2", "claude-sonnet-5-5", CallUsage())),
            BlockStart(3, {"type": "text", "text": ""}),
            BlockDelta(3, TextDelta("It scatters.")),
            events.MessageDelta(events.StopReason(), events.UsageSoFar()),
            START,
            BlockStart(4, {"type": "text", "text": "Light"}),
        ]
        for event in answer:
            log.store_events(event)
            meter.add(event)
            assert meter.cost_nano_usd == build_end(log.turn, "completed").cost_nano_usd > 0
            assert meter.calls == [*log.turn.calls[-len(meter.calls) :]]
        assert len(meter.calls) == 3


@pytest.mark.rule("R41")
@pytest.mark.parametrize(("chars", "is_closed"), [(0, False), (7 * 15 - 7, False), (7 * 15, True), (7 * 20, True)])
def test_an_answer_at_its_cost_limit_is_completed(chars: int, is_closed: bool) -> None:
    """105 characters are 30 tokens at 10,000 nano-dollars each, plus the prompt."""
    text: list[events.Event] = [BlockStart(0, {"type": "text", "text": ""}), BlockDelta(0, TextDelta("x" * chars))]
    turn = turn_with(START, *text, max_cost_nano_usd=INPUT + 30 * 10_000)
    assert isinstance(plan(turn, 5, cut_at_cost(turn)), AppendEvents) is is_closed


@pytest.mark.rule("R41")
def test_closing_events_complete_the_message() -> None:
    """Each open block gets a stop and the message a stop reason: then only the `end` is missing."""
    answer: list[events.Event] = [
        START,
        BlockStart(0, {"type": "thinking", "thinking": ""}),
        BlockDelta(0, ThinkingDelta("hm")),
        BlockStart(1, {"type": "tool_use", "id": "t", "name": "look", "input": {}}),
        BlockDelta(1, InputJsonDelta('{"wh')),
    ]
    log = attempted_turn(*answer, max_cost_nano_usd=1)
    turn = log.turn
    for event in closing_events(turn, "max_cost"):
        assert not isinstance(event.event, events.UnknownEvent)
        log.store_events(event.event)
    assert all(block.is_closed for block in log.turn.blocks)
    assert log.turn.stop.stop_reason == "max_cost"
    assert plan(log.turn, 5) == Complete()
    assert log.turn.usage.output_tokens == turn.usage.output_tokens
    assert log.turn.is_usage_estimated


@pytest.mark.rule("R41")
def test_a_taken_over_turn_at_its_cost_limit_makes_no_call() -> None:
    """Also without attempts left: the answer was cut, it did not fail."""
    turn = turn_with(START, BlockStart(0, {"type": "text", "text": ""}), max_cost_nano_usd=INPUT)
    assert plan(turn, 5, cut_at_cost(turn)) == AppendEvents(closing_events(turn, "max_cost"))
    assert isinstance(plan(turn, 1, cut_at_cost(turn)), AppendEvents)
    for cheaper in (turn_with(START, max_cost_nano_usd=INPUT + 1), turn_with(max_cost_nano_usd=1)):
        assert isinstance(plan(cheaper, 5, cut_at_cost(cheaper)), MakeAttempt)


def test_an_answer_over_budget_is_not_repeated_for_its_schema() -> None:
    """It does not fit its schema, and says so."""
    whole: list[events.Event] = [START, events.MessageDelta(events.StopReason("end_turn"))]
    turn, over = turn_with(*whole), turn_with(*whole, max_cost_nano_usd=INPUT)
    assert isinstance(plan_after_check(turn, "no JSON", 5, cut_at_cost(turn)), MakeAttempt)
    assert plan_after_check(over, "no JSON", 5, cut_at_cost(over)) == Complete(schema_valid=False)


def test_without_a_price_or_a_limit_nothing_is_over_budget() -> None:
    """An answer of a model without a known price is never cut."""
    turn = turn_with(MessageStart(MessageHead("msg_1", "unknown", CallUsage(input_tokens=100))), max_cost_nano_usd=1)
    assert turn.request is not None
    unknown = msgspec.structs.replace(turn.request, model="unknown")
    assert cut_at_cost(msgspec.structs.replace(turn, request=unknown)) is None
    assert CostMeter(unknown, turn).cost_nano_usd == 0
    assert cut_at_cost(turn_with(START)) is None


THINKS = BlockStart(0, {"type": "thinking", "thinking": ""})
WRITES = BlockStart(0, {"type": "text", "text": ""})
FORCED = {"tools": [{"name": name, "input_schema": {}} for name in "fg"], "options": {"tool_choice": {"type": "any"}}}


@pytest.mark.rule("R70")
@pytest.mark.parametrize(
    ("stored", "given", "begin", "delta"),
    [
        ([START, WRITES, BlockDelta(0, TextDelta("The sky"))], {}, THINKS, ThinkingDelta("1天空")),
        ([], FORCED, WRITES, TextDelta('{"a":1,')),
    ],
    ids=["thinking of a continuation", "text that may be a forced call"],
)
@pytest.mark.parametrize("deltas", [10, 1000])
def test_text_that_is_not_stored_counts_after_the_call(
    stored: list[events.Event], given: dict[str, Any], begin: BlockStart, delta: events.Delta, deltas: int
) -> None:
    """The call ends at its cost limit, or breaks off before: the log has the cost of all that the model has sent."""
    limit = 2 * INPUT + 500 * 2 * 10_000
    log = attempted_turn(*stored, max_cost_nano_usd=limit, **given)
    if stored:
        log.store_attempt("continue")
    turn, request = log.turn, log.turn.request
    assert request is not None

    def store(event: ModelEvent) -> None:
        prev, attempt = log.chain.last, log.chain.attempt
        log.store(
            Event(prev=prev, attempt=attempt, event=event.raw, is_hidden=event.is_hidden, left_out=event.left_out)
        )

    meter = DroppedTextMeter(store)
    inner = (lambda sink: build_mapper(request, turn).wrap(sink)) if stored else (lambda sink: sink)
    sink = meter.wrap(lambda sink: limit_cost(write_forced_call(inner(sink), request, turn), request, turn))
    sent = 0
    answer: list[events.Event] = [START, begin, *[BlockDelta(0, delta)] * deltas]
    with suppress(CloseCall):
        for event in answer:
            sent += isinstance(event, BlockDelta)
            sink(from_event(event))
    meter.report()
    assert log.turn.calls[-1].output_tokens == 2 * sent
    assert cut_at_cost(log.turn) == ("max_cost" if sent < deltas else None)
    assert (sent < deltas) is (deltas == 1000)


def test_text_that_is_stored_is_not_reported_as_left_out() -> None:
    """It would be charged twice."""
    stored: list[ModelEvent] = []
    meter = DroppedTextMeter(stored.append)

    def wrap(sink: Sink) -> Sink:
        def send(event: ModelEvent) -> None:
            sink(event)

        return send

    sent = [from_event(one) for one in (START, BlockStart(0, {"type": "text"}), BlockDelta(0, TextDelta("1234567")))]
    sink = meter.wrap(wrap)
    for event in sent:
        sink(event)
    meter.report()
    assert stored == sent


def test_text_that_is_left_out_is_counted() -> None:
    """A continuation's thoughts and repeated text are not stored, but charged."""
    log = attempted_turn(START, BlockStart(0, {"type": "text"}), max_cost_nano_usd=DOLLAR)
    assert log.turn.request is not None
    meter = CostMeter(log.turn.request, log.turn)
    piece = BlockDelta(0, TextDelta("1234567"))
    meter.add(piece, left_out=70)
    log.store(Event(prev=log.chain.last, attempt=1, event=events.encode(piece), left_out=70))
    assert meter.usage.output_tokens == log.turn.calls[-1].output_tokens == 22


@pytest.mark.rule("R41")
def test_limit_cost_closes_the_call_after_the_event_that_reaches_the_limit() -> None:
    """The event itself is stored. A turn at its limit makes no call."""
    log = attempted_turn(max_cost_nano_usd=INPUT + 1)
    passed: list[ModelEvent] = []
    assert log.turn.request is not None
    sink = limit_cost(passed.append, log.turn.request, log.turn)
    sink(from_event(START))
    with pytest.raises(CloseCall):
        sink(from_event(BlockStart(0, {"type": "text", "text": "The sky"})))
    assert len(passed) == 2
    log.store_events(START)
    log.store_attempt()
    with pytest.raises(CloseCall):
        limit_cost(passed.append, msgspec.structs.replace(log.turn.request, max_cost_nano_usd=INPUT), log.turn)


@pytest.mark.rule("R23")
def test_a_search_counts_from_its_result_until_the_model_reports_it() -> None:
    """Also of a call that has broken off. A search that has failed is free."""
    searches = {"web_search_requests": 1}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    failed = {**found, "content": {"type": "web_search_tool_result_error", "error_code": "unavailable"}}
    log = Handwritten()
    log.store_request(max_cost_nano_usd=DOLLAR)
    log.store_attempt()
    log.store_events(START, BlockStart(0, failed), BlockStart(1, found), BlockStart(2, found))
    assert log.turn.bill.total.cost_nano_usd == INPUT + 2 * SEARCH
    assert cut_at_cost(log.turn) is None
    log.store_attempt()
    log.store_events(START, BlockStart(3, found))
    assert log.turn.bill.total.cost_nano_usd == 2 * INPUT + 3 * SEARCH
    log.store_events(events.MessageDelta(events.StopReason(), events.UsageSoFar(server_tool_use=searches)))
    assert log.turn.bill.total.cost_nano_usd == 2 * INPUT + 3 * SEARCH


@pytest.mark.rule("R41")
def test_a_search_that_reaches_the_limit_ends_the_answer() -> None:
    """The next search is not made."""
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    request = turn_with(START, max_cost_nano_usd=INPUT + SEARCH).request
    assert request is not None
    sent: list[ModelEvent] = []
    sink = limit_cost(sent.append, request, turn_with())
    sink(from_event(START))
    with pytest.raises(CloseCall):
        sink(from_event(BlockStart(0, found)))
