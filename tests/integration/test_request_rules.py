"""Requests with a history that Claude's API refuses: the refusal that the client gets, and the next turn."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.generators.continuation import BEGINNING
from tailrace.proto.ids import new_id
from tests.harness.sse_parser import parse
from tests.integration.conftest import Gateway, on_shared_loop

pytestmark = on_shared_loop

Json = dict[str, Any]
MODEL, OLDER = "claude-opus-5-5", "claude-opus-4-8"
THINKS = "#sim words=2 thinking=2 rate=0"
MARK = {"cache_control": {"type": "ephemeral"}}
LOOK = {"name": "look", "input_schema": {"type": "object"}}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def result(call: Json) -> Json:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "1"}]}


async def ask(gateway: Gateway, session: str, messages: list[Json], **more: Any) -> httpx2.Response:
    """`POST /v1/messages`, with a conversation that the client keeps itself."""
    body = {"model": MODEL, "max_tokens": 100, "messages": messages} | more
    return await gateway.client.post("/v1/messages", json=body, headers={"x-session-id": session})


async def talk(gateway: Gateway, session: str, **more: Any) -> list[Json]:
    """Returns a conversation with thinking."""
    answered = await ask(gateway, session, [user(THINKS)], **more)
    return [user(THINKS), {"role": "assistant", "content": answered.json()["content"]}]


async def tampered(gateway: Gateway, session: str) -> tuple[list[Json], Json]:
    first, answer = await talk(gateway, session)
    thinking, *rest = answer["content"]
    thinking = thinking | {"signature": f"{thinking['signature'][:-8]}AAAAAAAA"}
    return [first, answer | {"content": [thinking, *rest]}, user(THINKS)], {}


async def of_another_model(gateway: Gateway, session: str) -> tuple[list[Json], Json]:
    return [*await talk(gateway, session), user(THINKS)], {"model": OLDER}


async def taken_out(gateway: Gateway, session: str) -> tuple[list[Json], Json]:
    """The client takes out the thinking before a call. A newer model would answer nevertheless."""
    question, fields = user(f"{THINKS} tool=look"), {"tools": [LOOK], "model": OLDER}
    thinking, *rest = (await ask(gateway, session, [question], **fields)).json()["content"]
    assert thinking["type"] == "thinking"
    return [question, {"role": "assistant", "content": rest}, result(rest[-1])], fields


async def with_five_marks(gateway: Gateway, session: str) -> tuple[list[Json], Json]:
    before = await talk(gateway, session)
    blocks = [{"type": "text", "text": f"{THINKS} {number}", **MARK} for number in range(5)]
    return [*before, {"role": "user", "content": blocks}], {}


async def with_a_container(gateway: Gateway, session: str) -> tuple[list[Json], Json]:
    return [*await talk(gateway, session), user(THINKS)], {"container": "container_other"}


REFUSED: dict[str, tuple[Callable[[Gateway, str], Awaitable[tuple[list[Json], Json]]], str]] = {
    "tampered signature": (tampered, "messages.1.content.0: Invalid `signature` in `thinking` block."),
    "thinking taken out": (taken_out, "Expected `thinking` or `redacted_thinking`, but found"),
    "five marks": (with_five_marks, "A maximum of 4 blocks with cache_control may be provided. Found 5."),
    "foreign container": (with_a_container, "container: Container container_other was not found"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("is_streaming", [False, True], ids=["json", "stream"])
async def test_a_client_gets_the_refusal_of_the_api_and_goes_on(
    shared_gateway: Gateway,
    build: Callable[[Gateway, str], Awaitable[tuple[list[Json], Json]]],
    message: str,
    *,
    is_streaming: bool,
) -> None:
    """In Anthropic's envelope. Its next request has the conversation as it should be."""
    session = new_id()
    messages, fields = await build(shared_gateway, session)
    refused = await ask(shared_gateway, session, messages, stream=is_streaming, **fields)
    if is_streaming and refused.status_code == 200:
        found: Json = msgspec.json.decode(parse(refused.content)[-1].data)
    else:
        assert refused.status_code == 400, refused.text
        found = refused.json()
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert message in found["error"]["message"]
    begun = await talk(shared_gateway, session)
    assert (await ask(shared_gateway, session, [*begun, user(THINKS)])).status_code == 200


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
async def test_a_session_goes_on_after_a_refusal_of_the_api(
    shared_gateway: Gateway, build: Callable[[Gateway, str], Awaitable[tuple[list[Json], Json]]], message: str
) -> None:
    """Its own next question does not repeat what was refused."""
    messages, fields = await build(shared_gateway, new_id())
    fields = {"options": {"container": fields["container"]}} if "container" in fields else fields
    session = new_id()
    body: Json = {"session": session, "create_session": True, "model": MODEL}
    refused = await run_turn(shared_gateway, body | {"messages": messages} | fields)
    assert (refused["outcome"], refused["error"]["code"]) == ("failed", "backend_refused_request")
    assert message in refused["error"]["message"]
    assert (await run_turn(shared_gateway, body | {"message": THINKS}))["outcome"] == "completed"


async def run_turn(gateway: Gateway, body: Json) -> Json:
    """Returns the record of a turn after its end."""
    posted = await gateway.client.post("/v1/turns", json=body)
    assert posted.status_code == 202, posted.text
    await gateway.client.get(f"/v1/turns/{posted.json()['turn']}/events")
    record: Json = (await gateway.client.get(f"/v1/turns/{posted.json()['turn']}")).json()
    return record


async def test_thinking_of_another_model_is_passed_on(shared_gateway: Gateway, claude: str) -> None:
    """The API leaves it out without an error."""
    session = new_id()
    messages, fields = await of_another_model(shared_gateway, session)
    assert (await ask(shared_gateway, session, messages, **fields)).status_code == 200
    assert (await last_call(claude))["body"]["messages"] == messages


async def last_call(claude: str) -> Json:
    async with httpx2.AsyncClient(trust_env=False) as asking:
        found: Json = (await asking.get(f"{claude}/_sim/last")).json()
    return found


# The product adds a sentence to the question for a forced call, which this model does not support.
FORCED: Json = {"tools": [LOOK], "tool_choice": {"type": "tool", "name": "look"}}
CLEAR_AT = "mid-conversation-system-clear-at-2026-08-21"
OUTPUT_CONFIG = "mid-conversation-output-config-2026-07-01"
CLEARED = {"role": "system", "content": "Hurry.", "clear_at": "next_user_message"}
LOW = {"role": "system", "output_config": {"effort": "low"}}


def kinds_of(call: Json) -> list[str]:
    """Returns the types of all blocks of the assistant in the messages of a call."""
    messages = [message for message in call["body"]["messages"] if message["role"] == "assistant"]
    return [block["type"] for message in messages for block in message["content"]]


@pytest.mark.rule("R140")
async def test_a_tool_loop_without_a_session_goes_on_after_a_forced_call(shared_gateway: Gateway, claude: str) -> None:
    """The client cannot know what Tailrace had added to its question, and sends thinking that the API refuses."""
    body = {"model": MODEL, "max_tokens": 100, "messages": [user(THINKS)]}
    answered = (await shared_gateway.client.post("/v1/messages", json=body | FORCED)).json()
    assert [block["type"] for block in answered["content"]] == ["thinking", "tool_use"]
    messages = [user(THINKS), {"role": "assistant", "content": answered["content"]}, result(answered["content"][-1])]
    again = await shared_gateway.client.post("/v1/messages", json=body | {"messages": messages, "tools": [LOOK]})
    assert (again.status_code, again.json()["stop_reason"]) == (200, "end_turn")
    assert kinds_of(await last_call(claude)) == ["tool_use"]


@pytest.mark.rule("R140")
async def test_an_unstored_response_goes_on_after_a_forced_call(shared_gateway: Gateway, claude: str) -> None:
    """As with `store: false`, the client sends the encrypted reasoning back."""
    function = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    body: Json = {"model": MODEL, "store": False, "include": ["reasoning.encrypted_content"], "tools": [function]}
    question: Json = {"role": "user", "content": THINKS}
    forced = body | {"input": [question], "tool_choice": {"type": "function", "name": "look"}}
    output = (await shared_gateway.client.post("/v1/responses", json=forced)).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    done = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "1"}
    again = await shared_gateway.client.post("/v1/responses", json=body | {"input": [question, *output, done]})
    assert (again.status_code, again.json()["status"]) == (200, "completed"), again.text
    assert kinds_of(await last_call(claude)) == ["tool_use"]


@pytest.mark.rule("R140")
async def test_thinking_of_a_client_is_passed_on_unchanged(shared_gateway: Gateway, claude: str) -> None:
    """In a session and without one; the API accepts it after the same prompt."""
    for session in ({"x-session-id": new_id()}, {}):
        body: Json = {"model": MODEL, "max_tokens": 100, "messages": [user(THINKS)]}
        for _ in range(2):
            answered = await shared_gateway.client.post("/v1/messages", json=body, headers=session)
            assert answered.status_code == 200, answered.text
            assert (await last_call(claude))["body"]["messages"] == body["messages"]
            body["messages"] += [{"role": "assistant", "content": answered.json()["content"]}, user(THINKS)]


@pytest.mark.rule("R140")
async def test_thinking_of_another_conversation_is_refused_once(shared_gateway: Gateway, claude: str) -> None:
    """A client has begun a session with it. Later turns leave it out, and keep that of their own answers."""
    begun = await talk(shared_gateway, new_id(), system="Be brief.")
    body: Json = {"session": new_id(), "create_session": True, "model": MODEL}
    for number, messages in enumerate(([*begun, user(THINKS)], [user(THINKS)], [user(THINKS)])):
        before = await count_refused(claude)
        assert (await run_turn(shared_gateway, body | {"messages": messages}))["outcome"] == "completed"
        assert await count_refused(claude) - before == (number == 0)
    assert kinds_of(await last_call(claude)) == ["text", "thinking", "text", "thinking", "text"]


async def count_refused(claude: str) -> int:
    """Returns how many requests the API has refused."""
    async with httpx2.AsyncClient(trust_env=False) as asking:
        return sum((await asking.get(f"{claude}/_sim/stats")).json()["refused"].values())


async def test_a_client_sees_which_thinking_the_api_has_dropped(shared_gateway: Gateway) -> None:
    """In each format that has the field, and in the record. The choice `drop_block` and its beta are passed on."""
    client, wanted = shared_gateway.client, {"block_binding": {"prefix_mismatch_behavior": "drop_block"}}
    begun = await talk(shared_gateway, new_id())
    body: Json = {"model": MODEL, "max_tokens": 100, "messages": [*begun, user(THINKS)], "system": "Be brief."}
    body |= {"thinking": {"type": "adaptive", **wanted}}
    beta = {"anthropic-beta": "thinking-binding-controls-2026-08-01"}
    dropped = {"type": "thinking_dropped", "path": "messages.1.content.0", "reason": "prefix_binding_mismatch"}
    answered = await client.post("/v1/messages", json=body, headers=beta)
    assert answered.json()["input_transformations"] == [dropped]
    streamed = await client.post("/v1/messages", json=body | {"stream": True}, headers=beta)
    assert msgspec.json.decode(parse(streamed.content)[0].data)["message"]["input_transformations"] == [dropped]
    turn = streamed.headers["tailrace-turn"]
    assert (await client.get(f"/v1/turns/{turn}")).json()["envelope"]["message"]["input_transformations"] == [dropped]
    response = await client.get(f"/v1/responses/resp_{turn}")
    assert response.json()["input_transformations"] == [dropped]
    events = parse((await client.get(f"/v1/responses/resp_{turn}", params={"stream": "true"})).content)
    assert msgspec.json.decode(events[-1].data)["response"]["input_transformations"] == [dropped]


@pytest.mark.rule("R132")
@pytest.mark.parametrize("protocol", ["turns", "chat", "responses", "ui"])
async def test_a_later_turn_sends_system_messages_as_they_were_sent(
    shared_gateway: Gateway, claude: str, protocol: str
) -> None:
    """With the betas that they need, and with the thinking after them."""
    session, client = new_id(), shared_gateway.client
    first = {"session": session, "create_session": True, "model": MODEL, "messages": [user(THINKS), CLEARED, LOW]}
    record = await run_turn(shared_gateway, first)
    assert record["outcome"] == "completed", record["error"]
    match protocol:
        case "turns":
            await run_turn(shared_gateway, {"session": session, "message": THINKS, "model": MODEL})
        case "chat":
            body: Json = {"model": MODEL, "session_id": session, "messages": [user(THINKS)]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        case "responses":
            body = {"model": MODEL, "input": THINKS, "previous_response_id": f"resp_{record['turn']}"}
            assert (await client.post("/v1/responses", json=body)).json()["status"] == "completed"
        case "ui":
            shown = (await client.get(f"/api/chat/{session}/messages")).json()
            asked = {"id": "u", "role": "user", "parts": [{"type": "text", "text": THINKS}]}
            body = {"id": session, "messages": [*shown, asked], "model": MODEL}
            assert (await client.post("/api/chat", json=body)).status_code == 200
    call = await last_call(claude)
    assert call["body"]["messages"][1:3] == [CLEARED, LOW]
    assert call["betas"].split(",") == [CLEAR_AT, OUTPUT_CONFIG]
    assert kinds_of(call) == ["thinking", "text"]


@pytest.mark.rule("R132")
async def test_a_page_that_greets_goes_on_with_its_thinking(shared_gateway: Gateway, claude: str) -> None:
    """Only the model gets a message of the user before the greeting, which is the same in each turn."""
    client, chat = shared_gateway.client, new_id()
    shown: list[Json] = [{"id": "a", "role": "assistant", "parts": [{"type": "text", "text": "Hello."}]}]
    for number in range(2):
        shown.append({"id": f"u{number}", "role": "user", "parts": [{"type": "text", "text": THINKS}]})
        assert (await client.post("/api/chat", json={"id": chat, "messages": shown, "model": MODEL})).status_code == 200
        shown = (await client.get(f"/api/chat/{chat}/messages")).json()
    assert [message["role"] for message in shown] == ["assistant", "user", "assistant", "user", "assistant"]
    *greeted, answer, question = (await last_call(claude))["body"]["messages"]
    assert [*greeted, question] == [user(BEGINNING), {"role": "assistant", "content": "Hello."}, *[user(THINKS)] * 2]
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]


@pytest.mark.rule("R132")
@pytest.mark.parametrize("is_queued", [False, True])
async def test_an_older_model_gets_no_field_that_it_may_refuse(
    shared_gateway: Gateway, claude: str, *, is_queued: bool
) -> None:
    """So a session goes on after a change of the model, also if the turn was queued."""
    session = new_id()
    question = user(f"{THINKS} wait=1") if is_queued else user(THINKS)
    first = {"session": session, "create_session": True, "model": MODEL, "messages": [question, CLEARED, LOW]}
    posted = await shared_gateway.client.post("/v1/turns", json=first)
    if not is_queued:
        await shared_gateway.client.get(f"/v1/turns/{posted.json()['turn']}/events")
    second = {"session": session, "message": THINKS, "model": OLDER, "on_busy": "queue"}
    assert (await run_turn(shared_gateway, second))["outcome"] == "completed"
    call = await last_call(claude)
    assert [message["role"] for message in call["body"]["messages"]] == ["user", "assistant", "user"]
    assert call["betas"] is None


@pytest.mark.rule("R132")
async def test_system_messages_of_a_clients_own_conversation_stay(shared_gateway: Gateway, claude: str) -> None:
    """Its model decides."""
    session = new_id()
    messages = [user(THINKS), CLEARED]
    for _ in range(2):
        answered = await ask(shared_gateway, session, messages, model=OLDER)
        assert answered.status_code == 200, answered.text
        assert (await last_call(claude))["body"]["messages"] == messages
        messages = [*messages, {"role": "assistant", "content": answered.json()["content"]}, user(THINKS)]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/messages", {"metadata": {"user_id": 10_000 * "u"}, "messages": [user(THINKS)]}, "metadata.user_id"),
        ("/v1/chat/completions", {"user": 10_000 * "u", "messages": [user(THINKS)]}, "user"),
        ("/v1/responses", {"safety_identifier": 10_000 * "u", "input": THINKS}, "safety_identifier"),
        ("/v1/turns", {"user": 10_000 * "u", "message": THINKS}, "user"),
    ],
)
async def test_a_very_long_id_of_a_user_is_refused(shared_gateway: Gateway, path: str, body: Json, field: str) -> None:
    """In the envelope of the protocol. A shorter one is sent as a pseudonym."""
    answered = await shared_gateway.client.post(path, json={"model": MODEL, "max_tokens": 100} | body)
    error = answered.json()["error"]
    assert (answered.status_code, field in error["message"]) == (400, True)
    assert error["type" if path != "/v1/turns" else "code"] in ("invalid_request_error", "request_invalid")
