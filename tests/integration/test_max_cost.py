"""A turn that may cost so much stops there, with its text kept; each protocol's client is told of a limit it knows."""

import re

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.nats import Connection, TurnLog
from tests.harness.generator_in_loop import ask, ended, modes, open_streams, shorten_lease, stats, words, working
from tests.harness.killable_generator import killed_after
from tests.integration.conftest import Gateway

# By Sonnet 5.5 a word of eight characters costs 23,000 nano-dollars: some forty of them, and what was asked.
NANO_USD = 1_000_000
BODY = {"message": "#sim words=2000 rate=0", "model": "claude-sonnet-5-5", "max_cost": NANO_USD / 1e9}


@pytest.mark.rule("R41")
async def test_a_turn_stops_at_what_it_may_cost_and_keeps_its_text(gateway: Gateway) -> None:
    """Completed, cut, and paid for: not a token more than the one that passed it."""
    accepted = (await gateway.client.post("/v1/turns", json=BODY)).json()
    stream = await gateway.client.get(accepted["links"]["events"])
    turn = (await gateway.client.get(accepted["links"]["self"])).json()
    assert (turn["outcome"], turn["stop_reason"], turn["usage_is_estimated"]) == ("completed", "max_cost", True)
    assert NANO_USD <= round(turn["cost_usd"] * 1e9) <= 1.1 * NANO_USD
    assert words(2000).startswith(turn["text"])
    assert 10 <= turn["text"].count(" ") <= 60
    assert '"stop_reason":"max_cost"' in stream.text
    assert "".join(re.findall(r'"type":"delta","text":"([^"]*)"', stream.text)) == turn["text"]


async def test_what_may_cost_next_to_nothing_is_cut_at_once(gateway: Gateway) -> None:
    """Also at less than what is counted in: one call is made, and is paid for."""
    accepted = (await gateway.client.post("/v1/turns", json={**BODY, "max_cost": 1e-12})).json()
    await gateway.client.get(accepted["links"]["events"])
    turn = (await gateway.client.get(accepted["links"]["self"])).json()
    assert (turn["outcome"], turn["stop_reason"], turn["attempts"]) == ("completed", "max_cost", 1)


async def test_the_call_is_closed_and_nothing_more_is_paid_for(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str
) -> None:
    """The model would have gone on for an hour."""
    async with working(own_server.url, own_claude):
        key = await ask(own_log, "words=9000 rate=100", max_cost_nano_usd=NANO_USD)
        turn = await ended(own_log, key)
        await open_streams(own_claude, 0)
    assert (turn.outcome, turn.stop.stop_reason, turn.attempt) == ("completed", "max_cost", 1)
    assert (await stats(own_claude))["calls"] == 1
    assert turn.end is not None
    assert turn.end.cost_nano_usd >= NANO_USD


@pytest.mark.timeout(60)
async def test_a_turn_whose_generator_died_on_its_money_is_closed_by_another_without_a_call(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str
) -> None:
    """Killed after any entry: the text that was shown stays, and no call is made once there is no money left."""
    await shorten_lease(own_connection, 0.2)
    for appends in (2, 3, 5, 8):
        calls = (await stats(own_claude))["calls"]
        key = await ask(own_log, "words=900 rate=0 thinking=2", max_cost_nano_usd=NANO_USD)
        await killed_after(appends, own_server.url, own_claude)
        left = await own_log.turn(key)
        async with working(own_server.url, own_claude):
            turn = await ended(own_log, key)
        assert (turn.outcome, turn.stop.stop_reason) == ("completed", "max_cost"), appends
        assert turn.text.startswith(left.text) or "restart" in await modes(own_log, key)
        assert turn.end is not None
        # The second call's prompt may pass it; no third one is made.
        assert (await stats(own_claude))["calls"] - calls <= 2


async def test_each_protocol_tells_a_limit_that_its_clients_know(gateway: Gateway) -> None:
    """The SDKs read a whole message that was cut."""
    accepted = (await gateway.client.post("/v1/turns", json={**BODY, "message": f"{BODY['message']} tag=y"})).json()
    turn = f"/v1/turns/{accepted['turn']}/events"
    await gateway.client.get(turn)
    bodies = {
        name: (await gateway.client.get(f"{turn}?dialect={name}")).text
        for name in ("anthropic", "openai-chat", "openai-responses", "ui", "text")
    }
    assert '"stop_reason":"max_tokens"' in bodies["anthropic"]
    assert '"type":"message_stop"' in bodies["anthropic"]
    assert bodies["anthropic"].count("content_block_start") == bodies["anthropic"].count("content_block_stop")
    assert '"finish_reason":"length"' in bodies["openai-chat"]
    assert "[DONE]" in bodies["openai-chat"]
    assert '"reason":"max_output_tokens"' in bodies["openai-responses"]
    assert '"finishReason":"length"' in bodies["ui"]
    assert not [name for name, body in bodies.items() if "max_cost" in body]


ASKED = [{"role": "user", "content": BODY["message"]}]
PROTOCOLS: dict[str, dict[str, object]] = {
    "/v1/messages": {"messages": ASKED, "max_tokens": 4000},
    "/v1/chat/completions": {"messages": ASKED},
    "/v1/responses": {"input": BODY["message"]},
    "/api/chat": {"messages": [{"role": "user", "parts": [{"type": "text", "text": BODY["message"]}]}]},
}


@pytest.mark.parametrize("path", PROTOCOLS)
async def test_every_protocol_takes_what_an_answer_may_cost(gateway: Gateway, path: str) -> None:
    """As a field of its body, of which the model hears nothing."""
    body = {"model": BODY["model"], "max_cost": BODY["max_cost"], **PROTOCOLS[path]}
    answered = await gateway.client.post(path, json=body)
    assert answered.status_code == 200, answered.text
    turn = (await gateway.client.get(f"/v1/turns/{answered.headers['tailrace-turn']}")).json()
    assert (turn["outcome"], turn["stop_reason"]) == ("completed", "max_cost")
    refused = await gateway.client.post(path, json=body | {"max_cost": -1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")


async def test_it_is_not_passed_on_to_the_model_as_an_option(gateway: Gateway) -> None:
    """Where it would be a field that nobody there knows."""
    refused = await gateway.client.post("/v1/turns", json={"message": "hi", "options": {"max_cost": 1}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
    assert "place of its own" in refused.json()["error"]["message"]


@pytest.mark.parametrize("max_cost", [0, -1, 1e9, "1", True])
async def test_a_cost_is_a_number_of_dollars(gateway: Gateway, max_cost: object) -> None:
    """Above nothing, and below what nobody has."""
    refused = await gateway.client.post("/v1/turns", json={**BODY, "max_cost": max_cost})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
