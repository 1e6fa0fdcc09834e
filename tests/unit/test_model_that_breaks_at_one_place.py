"""A model that begins anew in each attempt and breaks off at the same place: the turn fails after few paid calls."""

from itertools import chain
from typing import Any

import msgspec
import pytest

from tailrace.generators.backends.model_event import from_event
from tailrace.generators.continuation import prepare_call
from tailrace.generators.plan import AppendEvents, Fail, MakeAttempt, plan
from tailrace.proto import events
from tailrace.proto.entries import Event
from tests.harness.turn_builder import Handwritten, attempt, block_events, opening_events

ATTEMPTS_MAX = 5
TEXT = {"type": "text", "text": ""}
CALL = {"type": "server_tool_use", "id": "srvtoolu_{n}", "name": "web_search", "input": {}}
QUERY = events.InputJsonDelta('{"query": "tides"}')
RESULT = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_{n}", "content": []}
PAIR = [(CALL, QUERY), (RESULT,)]
HALF_CALL = (CALL, events.InputJsonDelta('{"que'))


def text(*pieces: str) -> tuple[Any, ...]:
    return (TEXT, *(events.TextDelta(piece) for piece in pieces))


def run_until_it_fails(answer: list[events.Event]) -> Handwritten:
    """Runs a turn whose every call sends `answer`, with ids of its own, and breaks off."""
    log = Handwritten()
    log.store_request()
    while not isinstance(action := plan(log.turn, ATTEMPTS_MAX), Fail):
        mapped = []
        match action:
            case AppendEvents(closing):
                mapped = closing
            case MakeAttempt(number, mode):
                _, mapper = prepare_call(log.turn, mode)
                log.store(attempt(log.chain, mode))
                sent = [msgspec.json.encode(event).replace(b"{n}", b"%d" % number) for event in answer]
                for event in map(from_event, map(events.decode_strictly, sent)):
                    mapped += mapper.map(event) if mapper is not None else [event]
            case _:
                raise AssertionError(action)
        for one in mapped:
            prev, number = log.chain.last, log.chain.attempt
            log.store(Event(prev=prev, attempt=number, event=one.raw, is_hidden=one.is_hidden))
    return log


@pytest.mark.rule("R73")
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([text("ab", "c"), text("de", "f")], id="two texts"),
        pytest.param([text("a"), text("b"), text("a")], id="a text that is there twice"),
        pytest.param(PAIR, id="a call and its result"),
        pytest.param([*PAIR, HALF_CALL], id="a call, its result, and half a call"),
        pytest.param([*PAIR, text("It is", " high.")], id="a call, its result, and a text"),
        pytest.param([*PAIR, *PAIR], id="a call that is made twice"),
        pytest.param([HALF_CALL], id="half a call"),
        pytest.param([text("abc"), *PAIR], id="a text and a call"),
        pytest.param([text("abc"), text("def"), HALF_CALL], id="two texts and half a call"),
    ],
)
@pytest.mark.parametrize("is_open", [False, True], ids=["", "the last block stays open"])
def test_a_model_that_breaks_off_at_one_place_is_not_called_again_and_again(
    answer: list[tuple[Any, ...]], *, is_open: bool
) -> None:
    """Texts without a tool are not stored again, either. The stop of an open text before a continuation may count."""
    whole = [*chain.from_iterable(block_events(index, *block) for index, block in enumerate(answer))]
    log = run_until_it_fails([*opening_events()[:1], *(whole[:-1] if is_open else whole)])
    assert log.turn.attempt in (1 + ATTEMPTS_MAX, 2 + ATTEMPTS_MAX)
    if all(start is TEXT for start, *_ in answer):
        assert len(log.turn.blocks) == len(answer)
