"""Answers with a JSON schema: validated, requested once more when they do not fit, and reported as valid or not."""

from typing import Any

import httpx2
import pytest

from tailrace.features.common.sandbox import Sandbox
from tailrace.proto.errors import SandboxBusy
from tailrace.proto.ids import new_id
from tests.features.structured_output.test_json_schema import doubling
from tests.harness.displayed_text import SAYS, data
from tests.harness.readers import read
from tests.harness.requests import run_turn
from tests.integration.conftest import Gateway

SCHEMA = {"type": "object", "properties": {"km": {"type": "integer"}}, "required": ["km"]}
VALID, INVALID = '{"km":1230}', '{"km":"long"}'


def question(second: str = VALID, first: str | None = INVALID, line: str = "rate=0") -> str:
    """Returns a unique message whose answer is `first`, if there is one, and then `second`."""
    return f"#sim {line} json={second}" + (f" wrong={first}" if first else "") + f"\n{new_id()}"


async def post_and_read(gateway: Gateway, message: str, **body: Any) -> dict[str, Any]:
    """Returns the turn when it has ended."""
    return await run_turn(gateway, **{"message": message, "schema": SCHEMA} | body)


def fields(turn: dict[str, Any]) -> tuple[Any, ...]:
    return turn["outcome"], turn["text"], turn["schema_valid"], turn["attempts"]


@pytest.mark.rule("R60")
async def test_an_invalid_answer_is_requested_once_more_with_the_reason(gateway: Gateway, claude: str) -> None:
    """Usage and cost are those of both calls."""
    once, twice = [await post_and_read(gateway, question(first=first)) for first in (None, INVALID)]
    assert fields(once) == ("completed", VALID, True, 1)
    assert fields(twice) == ("completed", VALID, True, 2)
    assert twice["usage"]["input_tokens"] > 2 * once["usage"]["input_tokens"]
    assert twice["cost_usd"] > 2 * once["cost_usd"]
    async with httpx2.AsyncClient(base_url=claude, trust_env=False) as client:
        messages = (await client.get("/_sim/last")).json()["body"]["messages"]
    assert messages[-2] == {"role": "assistant", "content": INVALID}
    assert '["km"]: "long" is not of type "integer"' in messages[-1]["content"]


CASES: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "invalid twice": (question(second=INVALID), {}, ("completed", INVALID, False, 2)),
    # A model without structured outputs gets the schema in the prompt.
    "prompted": (question(), {"model": "claude-fable-5-2"}, ("completed", VALID, True, 2)),
    # It would be as short again.
    "cut short": (question(first=None), {"max_tokens": 1}, ("completed", VALID[:8], False, 1)),
    "schema that is too complex to check": (
        "#sim words=1 rate=0",
        {"schema": doubling(60), "model": "claude-fable-5-2"},
        ("completed", '"tailrace"', None, 1),
    ),
}


@pytest.mark.rule("R60")
@pytest.mark.parametrize("case", CASES)
async def test_whether_an_answer_is_requested_again(gateway: Gateway, case: str) -> None:
    message, body, expected = CASES[case]
    assert fields(await post_and_read(gateway, message, **body)) == expected


async def test_a_tool_call_and_a_cancelled_answer_are_not_validated(gateway: Gateway) -> None:
    tool = await post_and_read(gateway, question(first=None, line="rate=0 tool=look"), tools=[])
    assert (tool["stop_reason"], tool["schema_valid"], tool["attempts"]) == ("tool_use", None, 1)
    body = {"message": question(line="rate=1"), "schema": SCHEMA}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    cancelled = (await gateway.client.post(f"/v1/turns/{turn}/cancel")).json()
    assert (cancelled["outcome"], cancelled["schema_valid"]) == ("cancelled", None)


async def test_a_request_that_waits_too_long_for_the_schema_check_is_503(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No turn is created: afterwards the same request is accepted."""
    body = {"message": question(first=None), "schema": SCHEMA}

    async def fail(*_: object) -> bytes:
        raise SandboxBusy("no subprocess was free")

    with monkeypatch.context() as patched:
        patched.setattr(Sandbox, "run", fail)
        refused = await gateway.client.post("/v1/turns", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_busy")
    assert (refused.headers["retry-after"], "tailrace-turn" in refused.headers) == ("2", False)
    assert (await gateway.client.post("/v1/turns", json=body)).status_code == 202


async def test_a_reader_gets_a_reset_and_every_dialect_the_second_answer(gateway: Gateway) -> None:
    turn = (await post_and_read(gateway, question()))["turn"]
    received = await read(gateway.client, turn)
    events = data(b"".join(frame.sent for frame in received.frames))
    types = [event["type"] for event in events]
    assert types.count("reset") == 1
    assert types.index("reset") > types.index("delta")
    assert (types[-1], events[-1]["schema_valid"]) == ("done", True)
    for dialect, text_of in SAYS.items():
        answer = await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}")
        assert text_of(answer.content) == VALID, dialect


async def test_an_unusable_schema_is_refused_and_uses_no_idempotency_key(gateway: Gateway) -> None:
    headers, body = {"idempotency-key": new_id()}, {"message": question()}
    for schema in ({"type": "nothing"}, {"enum": ["x" * 70_000]}):
        answer = await gateway.client.post("/v1/turns", json=body | {"schema": schema}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "schema_invalid")
    answer = await gateway.client.post("/v1/turns", json=body | {"schema": SCHEMA}, headers=headers)
    assert answer.status_code == 202
