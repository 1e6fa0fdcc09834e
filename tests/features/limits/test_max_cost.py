"""`max_cost`: a turn stops at that cost and keeps its text, and each protocol reports a limit that its clients know."""

import asyncio
import re
from typing import Any

import pytest

from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.model_event import Put, from_event
from tailrace.proto import events
from tailrace.proto.errors import BackendError
from tailrace.proto.usage import CallUsage
from tests.harness.generator_in_loop import words
from tests.harness.own_system import OwnSystem
from tests.integration.conftest import Gateway

# A word of eight characters by Sonnet 5.5 costs 23,000 nano-dollars: the limit is the prompt and about forty words.
NANO_USD = 1_000_000
BODY = {"message": "#sim words=2000 rate=0", "model": "claude-sonnet-5-5", "max_cost": NANO_USD / 1e9}


@pytest.mark.rule("R41")
async def test_a_turn_stops_at_its_max_cost_and_keeps_its_text(gateway: Gateway) -> None:
    """Completed, with the cost of the tokens up to the one that exceeded it."""
    accepted = (await gateway.client.post("/v1/turns", json=BODY)).json()
    stream = await gateway.client.get(accepted["links"]["events"])
    turn = (await gateway.client.get(accepted["links"]["self"])).json()
    assert (turn["outcome"], turn["stop_reason"], turn["usage_is_estimated"]) == ("completed", "max_cost", True)
    assert NANO_USD <= round(turn["cost_usd"] * 1e9) <= 1.1 * NANO_USD
    assert words(2000).startswith(turn["text"])
    assert 10 <= turn["text"].count(" ") <= 60
    assert '"stop_reason":"max_cost"' in stream.text
    assert "".join(re.findall(r'"type":"delta","text":"([^"]*)"', stream.text)) == turn["text"]


async def test_the_call_is_closed_at_max_cost(own: OwnSystem) -> None:
    """The model would have gone on for an hour."""
    async with own.running_generator():
        key = await own.append_request("words=9000 rate=100", max_cost_nano_usd=NANO_USD)
        turn = await own.wait_for_end(key)
        await own.wait_for_open_streams(0)
    assert (turn.outcome, turn.stop.stop_reason, turn.attempt) == ("completed", "max_cost", 1)
    assert await own.calls() == 1
    assert turn.end is not None
    assert turn.end.cost_nano_usd >= NANO_USD


def block(kind: str) -> events.Event:
    return events.BlockStart(0, {"type": kind, kind: ""})


HALF: list[events.Event] = [block("text"), events.BlockDelta(0, events.TextDelta("Half an answer"))]
FORCED = {"tools": [{"name": name, "input_schema": {}} for name in "fg"], "options": {"tool_choice": {"type": "any"}}}


@pytest.mark.rule("R70")
@pytest.mark.parametrize(
    ("given", "before", "begin", "delta"),
    [
        ({}, HALF, block("thinking"), events.ThinkingDelta("1234567")),
        (FORCED, [], block("text"), events.TextDelta('{"a":1,')),
    ],
    ids=["thinking of a continuation", "text that may be a forced call"],
)
async def test_text_that_is_not_stored_counts(
    own: OwnSystem,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    before: list[events.Event],
    begin: events.Event,
    delta: events.Delta,
) -> None:
    """Without the limit, the second call would go on for ever."""
    start = events.MessageStart(events.MessageHead("msg_1", usage=CallUsage(input_tokens=10)))
    calls = 0

    async def stream(_: AnthropicApi, _call: Call, put: Put) -> None:
        nonlocal calls
        calls += 1
        for event in [start, *before] if calls == 1 else [start, begin]:
            put(from_event(event))
        if calls == 1:
            raise BackendError("backend_broken", "the call broke off")
        while True:
            await asyncio.sleep(0)
            put(from_event(events.BlockDelta(0, delta)))

    monkeypatch.setattr(AnthropicApi, "stream", stream)
    async with own.running_generator():
        turn = await own.answer("words=1", model=BODY["model"], max_cost_nano_usd=NANO_USD, **given)
    text = "Half an answer" if before else ""
    assert (turn.outcome, turn.stop.stop_reason, turn.text, calls) == ("completed", "max_cost", text, 2)
    assert turn.end is not None
    # A delta of seven bytes is two tokens of 10,000 nano-dollars.
    assert NANO_USD <= turn.end.cost_nano_usd < NANO_USD + 2 * 10_000


MESSAGES = [{"role": "user", "content": BODY["message"]}]
# The body of a request, and how the stream of its answer reports the limit.
PROTOCOLS: dict[str, tuple[dict[str, object], str]] = {
    "/v1/messages": ({"messages": MESSAGES, "max_tokens": 4000, "stream": True}, '"stop_reason":"max_tokens"'),
    "/v1/chat/completions": ({"messages": MESSAGES, "stream": True}, '"finish_reason":"length"'),
    "/v1/responses": ({"input": BODY["message"], "stream": True}, '"reason":"max_output_tokens"'),
    "/api/chat": (
        {"messages": [{"role": "user", "parts": [{"type": "text", "text": BODY["message"]}]}]},
        '"finishReason":"length"',
    ),
}


@pytest.mark.parametrize("path", PROTOCOLS)
async def test_every_protocol_accepts_max_cost_and_reports_a_limit_that_its_clients_know(
    gateway: Gateway, path: str
) -> None:
    """As a field of the body, which is not sent to the model. Here it is below the unit of the counters."""
    body, reported = PROTOCOLS[path]
    body = {"model": BODY["model"], "max_cost": 1e-12, **body}
    answered = await gateway.client.post(path, json=body)
    assert answered.status_code == 200, answered.text
    # `warnings` and the metadata of the AI SDK have the exact reason.
    shown = re.sub(r'"warnings":\s*\[.*?\]|"stop_reason":\s*"max_cost"', "", answered.text, flags=re.DOTALL)
    assert (reported in shown, "max_cost" in shown) == (True, False)
    turn = (await gateway.client.get(f"/v1/turns/{answered.headers['tailrace-turn']}")).json()
    assert (turn["outcome"], turn["stop_reason"], turn["attempts"]) == ("completed", "max_cost", 1)
    refused = await gateway.client.post(path, json=body | {"max_cost": -1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
