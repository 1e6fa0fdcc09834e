"""Rules of requests in the simulated Claude, other than those of thinking."""

import base64
from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude import event
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.reply import parse_message, reply, stop_reason
from tailrace.deploy.simulated_claude.request import decode
from tailrace.deploy.simulated_claude.rules import find_known, refuse_request
from tailrace.deploy.simulated_claude.settings import Settings

Json = dict[str, Any]
ASK: Json = {"role": "user", "content": "x"}
GOOD: Json = {"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": [ASK]}
MARK = {"cache_control": {"type": "ephemeral"}}
CLEARED = {"clear_at": "next_user_message"}
IMAGES = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\0\0\0\0WEBPVP8 ",
}
CALLER = {"type": "code_execution_20260120", "tool_id": "srvtoolu_1"}
BY_CODE = {"type": "tool_use", "id": "t1", "name": "look", "input": {}, "caller": CALLER}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "1"}]}
WITH_CALL = [ASK, {"role": "assistant", "content": [BY_CODE]}, RESULT]
CONTAINER = f"container_sim0x{20 * '0'}"


def refusal(request: Json, settings: Settings | None = None, betas: str = "") -> str | None:
    """Returns the message of the refusal of a request, or None."""
    try:
        refuse_request(msgspec.json.encode(GOOD | request), settings or Settings(), betas)
    except Refusal as refused:
        return refused.message if refused.status == 400 else None
    return None


def marked(count: int) -> Json:
    """Returns a request with so many marks of the cache."""
    blocks = [{"type": "text", "text": str(number), **(MARK if number < count else {})} for number in range(6)]
    return {"messages": [{"role": "user", "content": blocks}]}


def image(label: str, data: bytes) -> Json:
    source = {"type": "base64", "media_type": label, "data": base64.b64encode(data + 40 * b"\0").decode()}
    return {"type": "image", "source": source}


def of_block(*blocks: Json) -> Json:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def user(name: object) -> Json:
    return {"metadata": {"user_id": name}}


REFUSED: list[tuple[Json, str]] = [
    (user("ann@example.com"), "metadata.user_id: user_id appears to contain an email address"),
    (user(10_000 * "u"), "metadata.user_id: String should have at most 256 characters"),
    ({"stop_sequences": ["x", "\n"]}, "stop_sequences: each stop sequence must contain non-whitespace"),
    ({"stop_sequences": [""]}, "stop_sequences: each stop sequence must contain non-whitespace"),
    (marked(5), "A maximum of 4 blocks with cache_control may be provided. Found 5."),
    (
        {"messages": [ASK, {"role": "system", "content": [{"type": "text", "text": "s", **MARK}], **CLEARED}]},
        "messages.1: `cache_control` is not permitted with `clear_at`",
    ),
    (marked(4) | MARK, "Found 5."),
    (marked(4) | {"system": [{"type": "text", "text": "s", **MARK}]}, "Found 5."),
    (marked(3) | {"tools": [{"name": "a", **MARK}, {"name": "b", **MARK}]}, "Found 5."),
    (
        of_block(image("image/jpeg", IMAGES["image/png"])),
        "using the image/jpeg media type, but the image appears to be",
    ),
    (
        of_block({"type": "tool_result", "tool_use_id": "t", "content": [image("image/gif", IMAGES["image/webp"])]}),
        "appears to be a image/webp image",
    ),
    (
        of_block({"type": "tool_result", "tool_use_id": "t", "content": [5]}),
        "messages.0.content.0.tool_result.content.0: Input should be an object",
    ),
    ({"messages": WITH_CALL}, "container_id is required when there are pending tool uses"),
    ({"messages": WITH_CALL, "container": {"skills": []}}, "container_id is required"),
    ({"container": "container_other"}, "container: Container container_other was not found"),
]
ACCEPTED: list[Json] = [
    {},
    user(256 * "u"),
    user("ann"),
    user(None),
    {"stop_sequences": ["\nHuman:"]},
    marked(4),
    of_block(
        {"type": "tool_use", "id": "t", "name": "n", "input": {"a": [MARK] * 9}},
    ),
    *(of_block(image(label, data)) for label, data in IMAGES.items()),
    of_block(image("image/png", b"unknown bytes")),
    of_block({"type": "image", "source": {"type": "url", "url": "https://page.example/1"}}),
    {"messages": WITH_CALL, "container": CONTAINER},
    {"messages": WITH_CALL, "container": {"id": CONTAINER}},
    {"messages": [*WITH_CALL, {"role": "assistant", "content": "Done."}, ASK]},
]


@pytest.mark.parametrize(("request_", "message"), REFUSED)
def test_a_request_that_breaks_a_rule_is_refused(request_: Json, message: str) -> None:
    assert message in (refusal(request_) or "")


@pytest.mark.parametrize("request_", ACCEPTED)
def test_a_request_that_keeps_the_rules_is_accepted(request_: Json) -> None:
    assert refusal(request_) is None


CLEAR_AT, OUTPUT_CONFIG = "mid-conversation-system-clear-at-2026-08-21", "mid-conversation-output-config-2026-07-01"
TOOL_CHANGES, INLINE_TOOLS = "mid-conversation-tool-changes-2026-07-01", "inline-tools-2026-09-15"
REMOVED = [{"type": "tool_removal", "tool": {"type": "tool_reference", "name": "look"}}]
DEFINED = [{"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "look"}}}]


@pytest.mark.parametrize(
    ("fields", "betas", "refused"),
    [
        ({"content": "b", "clear_at": "next_user_message"}, (CLEAR_AT,), "messages.1.clear_at: Extra inputs"),
        ({"content": [], "output_config": {"effort": "low"}}, (OUTPUT_CONFIG,), "messages.1.output_config: Extra"),
        ({"content": [], "output_config": {"effort": "low"}}, ("per-turn-control-2026-07-01",), "output_config: Extra"),
        ({"content": REMOVED}, (TOOL_CHANGES, INLINE_TOOLS), "messages.1.content.0: Input tag 'tool_removal'"),
        ({"content": DEFINED}, (INLINE_TOOLS,), "messages.1.content.0: Input tag 'tool_addition'"),
    ],
)
def test_a_field_of_a_system_message_needs_its_beta(fields: Json, betas: tuple[str, ...], refused: str) -> None:
    request = {"messages": [ASK, {"role": "system", **fields}]}
    for beta in {CLEAR_AT, OUTPUT_CONFIG, TOOL_CHANGES, INLINE_TOOLS} - {*betas}:
        if beta != OUTPUT_CONFIG or "output_config" not in fields:
            assert refused in (refusal(request, betas=beta) or "")
    assert [refusal(request, betas=f"a,{beta}") for beta in betas] == [None] * len(betas)


@pytest.mark.parametrize(
    ("server", "betas", "refused"),
    [
        ({}, "mcp-client-2025-11-20", None),
        ({}, "", "mcp_servers: Extra inputs are not permitted"),
        ({"url": "http://a.example"}, "mcp-client-2025-11-20", "mcp_servers.0.url: must start with https://"),
        ({"name": "b"}, "mcp-client-2025-11-20", "tools.0: MCP server 'a' is not in mcp_servers"),
        (
            {"authorization_token": "refused"},
            "mcp-client-2025-11-20",
            "Invalid authorization token for MCP server 'a'. Please check your token and try again.",
        ),
    ],
)
def test_an_mcp_server_is_checked(server: Json, betas: str, refused: str | None) -> None:
    servers = [{"type": "url", "name": "a", "url": "https://a.example", **server}]
    tools = [{"type": "mcp_toolset", "mcp_server_name": "a"}]
    assert refusal({"mcp_servers": servers, "tools": tools}, betas=betas) == refused


def test_an_effort_of_a_message_needs_thinking() -> None:
    request = {"messages": [ASK, {"role": "system", "content": [], "output_config": {"effort": "low"}}]}
    assert refusal(request, betas=OUTPUT_CONFIG) is None
    disabled = request | {"thinking": {"type": "disabled"}}
    assert "`effort` requires thinking" in (refusal(disabled, betas=OUTPUT_CONFIG) or "")


def test_a_container_expires() -> None:
    request = {"messages": WITH_CALL, "container": CONTAINER}
    settings = Settings(containers_from=1)
    assert refusal(request, settings) == f"container: Container {CONTAINER} has expired"


def test_what_a_case_contains_is_accepted_when_it_comes_back() -> None:
    """Cases have signatures and containers that no program has made."""
    lines = b'{"delta":{"type":"signature_delta","signature":"EqQB"}}\n{"delta":{"container":{"id":"container_01"}}}'
    settings = Settings(known=find_known(lines))
    thinking = {"type": "thinking", "thinking": "x", "signature": "EqQB"}
    talk = [ASK, {"role": "assistant", "content": [thinking, {"type": "text", "text": "1"}]}, ASK]
    request = {"messages": talk, "container": "container_01"}
    assert refusal(request, settings) is None
    assert refusal(request) == "container: Container container_01 was not found"
    assert refusal({"messages": talk}) == "messages.1.content.0: Invalid `signature` in `thinking` block."


@pytest.mark.parametrize("value", ["1e400", 5_000 * "9", '"\\ud800"', "1.5"])
def test_odd_json_is_checked_too(value: str) -> None:
    """The API accepts such values in the input of a call."""
    thinking = b'{"type":"thinking","thinking":"x","signature":"s"}'
    call = b'{"type":"tool_use","id":"t","name":"n","input":{"x":%b}}' % value.encode()
    body = b'{"model":"m","messages":[{"role":"assistant","content":[%b,%b]}]}' % (thinking, call)
    assert refuse_request(body, Settings(known={"s"})) is None
    with pytest.raises(Refusal, match="Invalid `signature`"):
        refuse_request(body, Settings())


def replied(line: str, *before: Json, **more: Any) -> tuple[list[Json], Json, str]:
    """Returns the events of the answer to a question, the same answer without a stream, and its stop reason."""
    body = msgspec.json.encode(GOOD | {"messages": [*before, {"role": "user", "content": line}]} | more)
    found = reply(parse_message(decode(body), body), 1)
    events = [msgspec.json.decode(frame.data.partition(b"data: ")[2]) for frame in event.frames(found)]
    return events, msgspec.json.decode(event.message(found)), stop_reason(found.part)


@pytest.mark.parametrize("words", [0, 2])
def test_a_model_refuses_to_go_on(words: int) -> None:
    events, message, reason = replied(f"#sim words=9 refuse={words}")
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"] == reason == "refusal"
    assert events[-2]["delta"]["stop_details"] == message["stop_details"]
    assert sum(one["type"] == "content_block_delta" for one in events) == words


def test_a_question_after_a_refused_one_is_refused() -> None:
    refused = {"role": "user", "content": "#sim words=9 refuse=2"}
    half = {"role": "assistant", "content": "w000000 w000001"}
    assert replied("#sim words=1", refused, half)[2] == "refusal"
    assert replied("#sim words=1")[2] == "end_turn"


def test_max_tokens_leaves_a_call_open() -> None:
    """As in the SDK's fixture incomplete_partial_json_response.txt. A text, and a whole call, are closed."""
    asked = "#sim words=3 tool=look"
    events, message, reason = replied(asked, max_tokens=4)
    assert reason == "max_tokens"
    assert events[-3]["type"] != "content_block_stop"
    assert message["content"][-1]["input"] == {}
    for most in (2, 3):
        assert replied(asked, max_tokens=most)[0][-3]["type"] == "content_block_stop"
    whole = replied(asked, max_tokens=100)
    assert whole[2] == "tool_use"
    assert whole[1]["content"][-1]["input"] == {"query": "tailrace"}


def test_an_account_is_empty() -> None:
    body = msgspec.json.encode(GOOD | {"messages": [{"role": "user", "content": "#sim fault=credit"}]})
    found = reply(parse_message(decode(body)), 1)
    assert found.breaks is not None
    assert found.breaks.is_http
    assert event.error_message(found.breaks.kind).startswith("Your credit balance is too low to access")
