"""POST /v1/messages: repeated requests of Claude Code, sessions, and refused requests."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anthropic
import httpx2
import pytest

from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway, on_shared_loop

SESSION = "8d7a4b8e-3f43-4c4c-9d0c-5a3c7d0f6f10"
CLAUDE_CODE = {"x-claude-code-session-id": SESSION}
BODY: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "#sim words=3 rate=0"}],
}


async def post(gateway: Gateway, headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
    answer = await gateway.client.post("/v1/messages", json=BODY | more, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def turn_of(answer: httpx2.Response) -> str:
    turn: str = answer.headers["tailrace-turn"]
    return turn


async def test_repeated_request_of_claude_code_is_one_turn(gateway: Gateway, second_gateway: Gateway) -> None:
    """At any gateway. Another body, session or client, and other headers, are other requests.

    A subagent has its own session: in the main one it would start a branch.
    """
    first = await post(gateway, CLAUDE_CODE)
    again = await post(second_gateway, CLAUDE_CODE)
    assert (turn_of(again), again.content) == (turn_of(first), first.content)
    assert first.headers["x-session-id"] == f"claude-code:{SESSION}"
    others = [
        await post(gateway, CLAUDE_CODE, max_tokens=99),
        await post(gateway, CLAUDE_CODE | {"anthropic-beta": "context-1m-2025-08-07"}),
        await post(gateway, CLAUDE_CODE | {"anthropic-version": "2026-10-21"}),
        await post(gateway, CLAUDE_CODE | {"x-project-id": "p"}),
        await post(gateway, {"x-claude-code-session-id": new_id()}),
        await post(gateway),
        await post(gateway),
        subagent := await post(gateway, CLAUDE_CODE | {"x-claude-code-agent-id": "a1b2"}),
    ]
    assert len({turn_of(first), *map(turn_of, others)}) == 9
    assert subagent.headers["x-session-id"] == f"claude-code:{SESSION}:a1b2"


async def test_third_request_of_claude_code_without_stream_is_the_same_turn(gateway: Gateway) -> None:
    """After two clean ends, Claude Code 2.1.332 leaves `stream` out and lowers `max_tokens` from 128,000 to 64,000.

    A request that differs only below that number is another one, for example after an answer that was cut by it.
    """
    headers = {"x-claude-code-session-id": new_id()}
    streamed = [await post(gateway, headers, max_tokens=128_000, stream=True) for _ in range(2)]
    fallback = await post(gateway, headers, max_tokens=64_000)
    assert {turn_of(answer) for answer in (*streamed, fallback)} == {turn_of(streamed[0])}
    assert "".join(block["text"] for block in fallback.json()["content"]) == words(3)
    other = await post(gateway, headers, max_tokens=8_000)
    assert turn_of(other) != turn_of(fallback)


def budget(tokens: int) -> dict[str, Any]:
    return {"thinking": {"budget_tokens": tokens, "type": "enabled", "display": "omitted"}}


async def test_third_request_of_claude_code_with_a_lower_thinking_budget_is_the_same_turn(gateway: Gateway) -> None:
    """Recorded with claude-opus-4-6 and MAX_THINKING_TOKENS=100000. Any other budget is another request."""
    headers, model = {"x-claude-code-session-id": new_id()}, {"model": "claude-opus-4-6"}
    streamed = await post(gateway, headers, max_tokens=128_000, stream=True, **model, **budget(100_000))
    fallback = await post(gateway, headers, max_tokens=64_000, **model, **budget(63_999))
    assert turn_of(fallback) == turn_of(streamed)
    others = [await post(gateway, headers, max_tokens=64_000, **model, **more) for more in (budget(1_024), {})]
    assert len({turn_of(streamed), *map(turn_of, others)}) == 3


async def test_repeated_request_returns_the_project_of_its_turn(gateway: Gateway) -> None:
    """The project that the repeated request names is ignored."""
    key = {"idempotency-key": new_id()}
    first = await post(gateway, key | {"x-project-id": "rivers"})
    again = [await post(gateway, key | other) for other in ({"x-project-id": "lakes"}, {})]
    assert [turn_of(answer) for answer in again] == [turn_of(first)] * 2
    assert [answer.headers.get("x-project-id") for answer in (first, *again)] == ["rivers"] * 3


@on_shared_loop
@pytest.mark.rule("R133")
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"])
@pytest.mark.parametrize("name", ["anthropic-workspace-id", "anthropic-user-profile-id"])
async def test_no_client_chooses_the_account_of_a_call(shared_gateway: Gateway, path: str, name: str) -> None:
    """Nor its batches and token counts."""
    body = {"requests": [{"custom_id": "a", "params": BODY}]} if path.endswith("batches") else BODY
    answer = await shared_gateway.client.post(path, json=body, headers={name: "x"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert name in answer.json()["error"]["message"]


async def test_the_api_gets_its_own_id_of_the_previous_answer(gateway: Gateway, claude: str) -> None:
    """The client knows that of Tailrace. Of an answer that the log does not have, the API gets nothing."""

    async def sent_after(name: str | None) -> tuple[httpx2.Response, Any]:
        answer = await post(gateway, diagnostics={"previous_message_id": name})
        async with httpx2.AsyncClient(trust_env=False) as client:
            last = (await client.get(f"{claude}/_sim/last")).json()
        return answer, last["body"]["diagnostics"]["previous_message_id"]

    first, sent = await sent_after(None)
    assert (sent, "tailrace-ignored" in first.headers) == (None, False)
    second, sent = await sent_after(first.json()["id"])
    assert sent.startswith("msg_")
    assert sent != first.json()["id"]
    assert "tailrace-ignored" not in second.headers
    for name in (f"msg_{new_id()}", "msg_ä", "x", "msg_*"):
        unknown, sent = await sent_after(name)
        assert (sent, unknown.headers["tailrace-ignored"]) == (None, "diagnostics.previous_message_id")


@on_shared_loop
async def test_a_request_that_only_fills_the_cache_is_refused(shared_gateway: Gateway) -> None:
    """With the advice to request one token."""
    answer = await shared_gateway.client.post("/v1/messages", json=BODY | {"max_tokens": 0})
    assert (answer.status_code, "Send 1" in answer.json()["error"]["message"]) == (400, True)


@on_shared_loop
@pytest.mark.parametrize("session", ["", "a b", "a:b", "x" * 200, "ünïcödé".encode().decode("latin-1")])
async def test_invalid_session_id_of_claude_code_is_ignored(shared_gateway: Gateway, session: str) -> None:
    """Each POST is then a turn of its own, as for other clients."""
    headers = [(b"x-claude-code-session-id", session.encode("latin-1"))]
    sent = [await shared_gateway.client.post("/v1/messages", json=BODY, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in sent] == [200, 200]
    assert turn_of(sent[0]) != turn_of(sent[1])


async def test_request_after_a_turn_that_lost_its_readers_is_a_new_turn(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a limit, after which the last turn is returned again."""
    monkeypatch.setattr("tailrace.protocols.anthropic.claude_code.TURNS_MAX", 3)
    turns = []
    endless = BODY | {"stream": True, "messages": [{"role": "user", "content": "#sim words=9999 rate=50"}]}
    for _ in range(4):
        async with gateway.client.stream("POST", "/v1/messages", json=endless, headers=CLAUDE_CODE) as answer:
            turns.append(turn_of(answer))
            await cancel(system_log, ScopedKey.whole(TurnKey(tenant, TurnId(turns[-1]))), "on_disconnect")
            assert b"the turn was cancelled" in await answer.aread()
    assert len(set(turns)) == 3
    assert turns[-1] == turns[-2]
    request = (await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, TurnId(turns[0]))))).request
    assert request is not None
    assert request.on_disconnect == "grace:60"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"max_tokens": None}, "Expected `int`, got `null` - at `max_tokens`"),
        ({"model": 5}, "Expected `str | null`, got `int` - at `model`"),
        ({"messages": []}, "`messages` has no message"),
        ({"messages": [{"role": "user", "content": "hi", "name": "x"}]}, "unknown field `name` - at `messages[0]`"),
        ({"messages": [*BODY["messages"], {"role": "assistant", "content": "A"}]}, "End with a user message"),
        (
            {
                "model": "claude-haiku-4-5",
                "messages": [*BODY["messages"], {"role": "assistant", "content": "A"}],
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "must not end with a message of the assistant if a schema is requested",
        ),
        ({"betas": ["x"]}, "`anthropic-beta` is not an option: send it as a field of its own"),
        ({"max_tokens": 10**7}, "`max_tokens` must be from 1 to 128000"),
    ],
)
@on_shared_loop
async def test_invalid_request_is_refused(shared_gateway: Gateway, more: dict[str, Any], sentence: str) -> None:
    """With the error body that Anthropic's clients know."""
    answer = await shared_gateway.client.post("/v1/messages", json=BODY | more)
    error = answer.json()["error"]
    assert (answer.status_code, answer.json()["type"], error["type"]) == (400, "error", "invalid_request_error")
    assert sentence in error["message"]


@on_shared_loop
@pytest.mark.parametrize(
    "headers", [{"anthropic-version": "latest"}, {"anthropic-beta": "a\xe9"}, {"x-session-id": "a b"}]
)
async def test_invalid_header_is_refused(shared_gateway: Gateway, headers: dict[str, str]) -> None:
    """It would become a header of another request, or a name."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await shared_gateway.client.post("/v1/messages", json=BODY, headers=raw)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "request_invalid", *headers)


@on_shared_loop
async def test_managed_agents_get_advice_on_the_paths_of_sessions(shared_gateway: Gateway) -> None:
    """Tailrace has sessions of its own there, whose answers this SDK cannot read."""
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=shared_gateway.url, max_retries=0) as sdk:
        sessions = sdk.beta.sessions
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(sessions.create, agent="agent_1", environment_id="env_1"),
            partial(sessions.retrieve, "session_1"),
            partial(sessions.delete, "session_1"),
            partial(sessions.archive, "session_1"),
            partial(sessions.events.send, "session_1", events=[]),
            partial(sessions.events.stream, "session_1"),
            sessions.list,
            partial(sessions.events.list, "session_1"),
            partial(sdk.beta.dreams.retrieve, "dream_1"),
            partial(sdk.beta.agents.retrieve, "agent_1"),
        ]
        for call in calls:
            with pytest.raises(anthropic.NotFoundError, match="in your own program") as refused:
                await call()
            assert refused.value.type == "not_found_error"
    # Without the header, they are Tailrace's.
    assert (await shared_gateway.client.post("/v1/sessions", json={})).status_code != 404


@on_shared_loop
async def test_managed_agents_get_advice_without_a_key_of_this_server(shared_gateway: Gateway) -> None:
    """An Anthropic key is none: a 401 would hide why the SDK cannot be used. With a wrong method, there is no route."""
    headers = {"anthropic-beta": "managed-agents-2026-04-01", "authorization": "Bearer sk-ant-none"}
    for method, path in (
        ("GET", "/v1/sessions"),
        ("GET", "/v1/sessions/a"),
        ("PUT", "/v1/sessions"),
        ("GET", "/v1/sessions/a/x"),
    ):
        answer = await shared_gateway.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found"), path
        assert "in your own program" in answer.json()["error"]["message"]
    del headers["anthropic-beta"]
    assert (await shared_gateway.client.get("/v1/sessions", headers=headers)).status_code == 401
