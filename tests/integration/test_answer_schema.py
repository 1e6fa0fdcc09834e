"""Answers with a JSON schema: validated, requested once more when they do not fit, and reported as valid or not."""

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tailrace.proto.ids import new_id
from tailrace.proto.runtime.sandbox import PROCESSES_TENANT_MAX
from tests.harness.displayed_text import SAYS, data
from tests.harness.processes import Process
from tests.harness.readers import read
from tests.harness.requests import run_turn
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway
from tests.promises import Connected
from tests.unit.test_json_schema import SLOW_TO_READ, doubling

SCHEMA = {"type": "object", "properties": {"km": {"type": "integer"}}, "required": ["km"]}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
VALID, INVALID = '{"km":1230}', '{"km":"long"}'


def question(second: str = VALID, first: str | None = INVALID, line: str = "rate=0") -> str:
    """Returns a unique message whose answer is `first`, if there is one, and then `second`."""
    return f"#sim {line} json={second}" + (f" wrong={first}" if first else "") + f"\n{new_id()}"


async def post_and_read(gateway: Gateway, message: str, **body: Any) -> dict[str, Any]:
    """Returns the turn when it has ended."""
    return await run_turn(gateway, **{"message": message, "schema": SCHEMA} | body)


def events_of(received: Connected) -> list[dict[str, Any]]:
    return data(b"".join(frame.sent for frame in received.frames))


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
    # Models without structured outputs get the schema in the prompt.
    "without structured outputs": (question(), {"model": "claude-haiku-5-5"}, ("completed", VALID, True, 2)),
    "prompted": (question(), {"model": "claude-fable-5-2"}, ("completed", VALID, True, 2)),
    # It would be as short again.
    "cut short": (question(first=None), {"max_tokens": 1}, ("completed", VALID[:8], False, 1)),
    "schema that is too complex to check": (
        "#sim words=1 rate=0",
        {"schema": doubling(60), "model": "claude-fable-5-2"},
        ("completed", '{"query":"tailrace"}', None, 1),
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


MESSAGES = [{"role": "user", "content": "#sim words=1 rate=0"}]
WAITING: dict[str, dict[str, Any]] = {
    "/v1/turns": {"message": "#sim words=1 rate=0", "schema": SCHEMA},
    "/v1/messages": {
        "model": "claude-sonnet-5-5",
        "max_tokens": 99,
        "messages": MESSAGES,
        "output_config": {"format": FORMAT},
    },
}


@pytest.mark.usefixtures("one_cpu_second")
async def test_a_request_that_waits_too_long_for_the_schema_check_is_503(
    system: System, generator: Process, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow checks of the same tenant take all its processes. Afterwards the same request is accepted."""
    monkeypatch.setattr("tailrace.gateway.__main__.CHECK_WAIT_S", 0.2)
    gateway = await new_gateway(system.nats_url)
    slow: list[asyncio.Task[httpx2.Response]] = []
    refused: dict[str, httpx2.Response] = {}

    async def are_refused() -> bool:
        running = sum(not task.done() for task in slow)
        if running < PROCESSES_TENANT_MAX:
            for _ in range(PROCESSES_TENANT_MAX - running):
                posting = gateway.client.post("/v1/turns", json={"message": "Hi", "schema": SLOW_TO_READ})
                slow.append(asyncio.create_task(posting))
            return False
        requests = [(path, body) for path, body in WAITING.items() if path not in refused]
        answers = await asyncio.gather(*(gateway.client.post(path, json=body) for path, body in requests))
        for (path, _), answer in zip(requests, answers, strict=True):
            if answer.status_code == 503:
                refused[path] = answer
        return len(refused) == len(WAITING)

    await until(are_refused)
    for answer in refused.values():
        assert (answer.json()["error"]["code"], answer.headers["retry-after"]) == ("server_busy", "2")
        assert "tailrace-turn" not in answer.headers
    codes = {(await one).json()["error"]["code"] for one in slow}
    assert {"schema_invalid"} <= codes <= {"schema_invalid", "server_busy"}
    for path, body in WAITING.items():
        assert (await gateway.client.post(path, json=body)).status_code in (200, 202)


async def test_a_reader_gets_a_reset_and_every_dialect_the_second_answer(gateway: Gateway) -> None:
    turn = (await post_and_read(gateway, question()))["turn"]
    events = events_of(await read(gateway.client, turn))
    types = [event["type"] for event in events]
    assert types.count("reset") == 1
    assert types.index("reset") > types.index("delta")
    assert (types[-1], events[-1]["schema_valid"]) == ("done", True)
    for dialect, text_of in SAYS.items():
        answer = await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}")
        assert text_of(answer.content) == VALID, dialect


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}}},
        ),
        ("/v1/messages", {"max_tokens": 99, "output_config": {"format": FORMAT}}),
    ],
)
async def test_schemas_of_other_protocols_are_validated(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": question()}]
    answer = await gateway.client.post(path, json={"model": "claude-haiku-5-5", "messages": messages} | body)
    assert answer.status_code == 200, answer.text
    assert json.dumps(VALID)[1:-1] in answer.text
    turn = (await gateway.client.get(f"/v1/turns/{answer.headers['tailrace-turn']}")).json()
    assert fields(turn) == ("completed", VALID, True, 2)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"$ref": "http://127.0.0.1:1/x"}, {"enum": ["x" * 70_000]}, SLOW_TO_READ],
    ids=["invalid", "remote", "long", "slow"],
)
@pytest.mark.usefixtures("one_cpu_second")
async def test_an_unusable_schema_is_refused_and_uses_no_idempotency_key(
    gateway: Gateway, schema: dict[str, Any]
) -> None:
    headers = {"idempotency-key": new_id()}
    body = {"message": question(), "schema": schema}
    answer = await gateway.client.post("/v1/turns", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "schema_invalid")
    answer = await gateway.client.post("/v1/turns", json=body | {"schema": SCHEMA}, headers=headers)
    assert answer.status_code == 202
