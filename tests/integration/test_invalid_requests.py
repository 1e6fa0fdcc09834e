"""Invalid requests: each gets an error response with a code and a message, and never a traceback."""

import json

import pytest

from tests.harness.raw_http import RawConnection, error_of
from tests.harness.route_table import MESSAGE
from tests.integration.conftest import KEY, Gateway, on_shared_loop

JSON = {"content-type": "application/json"}


def nested_list(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


DIGITS = b"9" * 5000
# tests/unit/test_read_body.py has the mistakes in JSON and in types.
BODIES = {
    "long integer inside": (b'{"message": "hi", "system": [{"a": %b}]}' % DIGITS, "request_invalid"),
    "long exponent": (b'{"message": "hi", "system": [{"a": 1e%b}]}' % DIGITS, "request_invalid"),
    "many betas": (json.dumps({"message": "hi", "betas": ["a"] * 65}).encode(), "request_invalid"),
    "verbatim without full_history": (b'{"message": "hi", "verbatim": true}', "request_invalid"),
    "deep inside": (b'{"message": "hi", "system": [{"a": %b}]}' % nested_list(90_000), "json_invalid"),
}


@on_shared_loop
@pytest.mark.parametrize(("body", "code"), BODIES.values(), ids=BODIES)
async def test_a_body_that_is_not_a_request_is_refused(shared_gateway: Gateway, body: bytes, code: str) -> None:
    answer = await shared_gateway.client.post("/v1/turns", content=body, headers=JSON)
    assert error_of(answer)[:2] == (400, code)


@on_shared_loop
@pytest.mark.parametrize("number", ["1e999", "9" * 5000], ids=["float", "integer"])
async def test_a_number_that_is_too_large_is_refused_in_an_unknown_field(shared_gateway: Gateway, number: str) -> None:
    """Anthropic's route passes unknown fields to the model."""
    body = f'{{"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [], "x": {number}}}'.encode()
    answer = await shared_gateway.client.post("/v1/messages", content=body, headers=JSON)
    assert error_of(answer)[:2] == (400, "request_invalid")


# What a model has written in a call. A client of OpenAI's protocols sends it back as the text that it is, and a page as
# `JSON.stringify` writes it.
ARGUMENTS = r'{"a": "\ud83d", "n": 1e400}'
HALF = {"a": "\ud83d"}
QUESTION = {"role": "user", "content": "hi"}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": HALF}]}
CALLED = [QUESTION, CALL, {"role": "user", "content": [RESULT]}]
FUNCTION = {"name": "f", "arguments": ARGUMENTS}
UI_CALL = {"type": "tool-f", "toolCallId": "t", "state": "output-available", "input": HALF, "output": 1}
CHAT_CALL = {"role": "assistant", "tool_calls": [{"id": "t", "type": "function", "function": FUNCTION}]}
ITEMS = [{"type": "function_call", "call_id": "t", **FUNCTION}]
MODEL = {"model": "claude-sonnet-5-5", "stream": True}
SENT_BACK: dict[str, dict[str, object]] = {
    "/v1/turns": {"messages": CALLED},
    "/v1/messages": {**MODEL, "max_tokens": 9, "messages": CALLED},
    "/api/chat": {
        "messages": [
            {"role": "user", "parts": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "parts": [UI_CALL]},
        ]
    },
    "/v1/chat/completions": {
        **MODEL,
        "messages": [QUESTION, CHAT_CALL, {"role": "tool", "tool_call_id": "t", "content": "r"}],
    },
    "/v1/responses": {
        **MODEL,
        "input": [QUESTION, *ITEMS, {"type": "function_call_output", "call_id": "t", "output": "r"}],
    },
}


@on_shared_loop
@pytest.mark.rule("R125")
@pytest.mark.parametrize(("path", "body"), SENT_BACK.items(), ids=SENT_BACK)
async def test_a_client_may_send_back_odd_json_that_the_model_has_written(
    shared_gateway: Gateway, path: str, body: dict[str, object]
) -> None:
    """Otherwise every later request of its conversation would be refused."""
    content = json.dumps(body).encode()
    async with shared_gateway.client.stream("POST", path, content=content, headers=JSON) as answer:
        assert answer.status_code in (200, 202), await answer.aread()


VALID_BODY: dict[str, object] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}
HI: dict[str, object] = {"message": "hi"}
NOPE = {"message": "hi", "options": {"tool_choice": {"type": "tool", "name": "nope"}}}


@on_shared_loop
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/turns", NOPE),
        ("/v1/messages", {**VALID_BODY, "tool_choice": {"type": "any"}}),
        ("/v1/chat/completions", {**VALID_BODY, "tool_choice": "required"}),
        ("/v1/responses", {"input": "hi", "tool_choice": {"type": "function", "name": "nope"}}),
        ("/v1/turn-batches", {"requests": [{"custom_id": "a", "params": NOPE}]}),
    ],
)
async def test_a_tool_choice_of_an_absent_tool_is_refused(
    shared_gateway: Gateway, path: str, body: dict[str, object]
) -> None:
    answer = await shared_gateway.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert "`tool_choice`" in answer.json()["error"]["message"]


def input_of(custom_id: str, given: dict[str, object]) -> dict[str, object]:
    return {"requests": [{"custom_id": custom_id, "params": HI | given}]}


# The model would not get the name.
NAMED = {"messages": [{"role": "user", "content": "hi", "name": "Ann"}]}
UI = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
PREFILLED_UI = {"role": "assistant", "parts": [{"type": "text", "text": "hi"}]}
# The blank message is left out, unless it is the last one.
BLANK_UI = [
    {"role": "system", "parts": [{"type": "text", "text": "s"}]},
    {"role": "user", "parts": [{"type": "text", "text": " "}]},
]
BLANK_MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": " "}]


@on_shared_loop
@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("turns", "max_tokens", HI | {"max_tokens": 0}),
        ("turns", "max_tokens", HI | {"max_tokens": "5"}),
        ("turns", "messages[0].content", {"messages": [{"role": "user", "content": []}]}),
        ("turns", "messages[0].name", NAMED),
        ("turns", "prompt", HI | {"prompt": {"name": "unknown"}}),
        ("turns", "model", HI | {"model": "unknown"}),
        *(("turns", "max_cost", HI | {"max_cost": cost}) for cost in (0, -1, 1e9, "1", True)),
        ("turns", "max_cost", HI | {"options": {"max_cost": 1}}),
        *(("turns", "user", HI | {"user": user}) for user in ("", "x" * 513, "a\nb", "\0")),
        ("turns", None, []),
        ("turn-batches", "requests[0].params.max_tokens", input_of("a", {"max_tokens": 0})),
        ("turn-batches", "requests[0].params.max_tokens", input_of("a", {"max_tokens": "5"})),
        ("turn-batches", "requests[0].params.messages[0].name", {"requests": [{"custom_id": "a", "params": NAMED}]}),
        ("turn-batches", "requests[0].custom_id", input_of("a b", {})),
        ("chat/completions", "n", VALID_BODY | {"n": 2}),
        ("chat/completions", "max_completion_tokens", VALID_BODY | {"max_tokens": None, "max_completion_tokens": 0}),
        ("chat/completions", "max_tokens", VALID_BODY | {"max_tokens": 0}),
        ("chat/completions", "session_id", VALID_BODY | {"session_id": "a b"}),
        ("chat/completions", "project_id", VALID_BODY | {"project_id": "a b"}),
        ("chat/completions", "safety_identifier", VALID_BODY | {"safety_identifier": "s" * 513}),
        ("chat/completions", "messages[1].content", VALID_BODY | {"messages": BLANK_MESSAGES}),
        ("responses", "max_output_tokens", {"input": "hi", "max_output_tokens": 0}),
        ("responses", "max_output_tokens", {"input": "hi", "max_output_tokens": 0, "background": True}),
        ("responses", "session_id", {"input": "hi", "session_id": "a b"}),
        ("responses", "conversation", {"input": "hi", "conversation": "a b"}),
        ("responses", "conversation", {"input": "x", "conversation": "a", "previous_response_id": "b"}),
        ("responses", "previous_response_id", {"input": "hi", "previous_response_id": "resp_1"}),
        ("responses", "user", {"input": "hi", "user": "u" * 513}),
        ("responses", "input", {"input": " "}),
        ("responses", "input", {"input": []}),
        ("messages/batches", "requests", {"requests": []}),
        ("messages/batches", "requests[0].custom_id", {"requests": [{"custom_id": "a b", "params": MESSAGE}]}),
        ("messages/batches", "requests[1].custom_id", {"requests": [{"custom_id": "a", "params": MESSAGE}] * 2}),
        ("messages", "metadata.user_id", MESSAGE | {"metadata": {"user_id": "a\nb"}}),
        ("projects", "name", {}),
        *(("projects", "name", {"name": name}) for name in ("", "x" * 201)),
        ("projects", "description", {"name": "Rivers", "description": "x" * 10_001}),
        ("projects", "id", {"name": "Rivers", "id": "a/b"}),
        ("projects", "path", {"name": "Rivers", "path": "/tmp"}),
        ("/chat", "message", {"message": 5}),
        ("/ai/chat", "messages", {"messages": []}),
        ("/ai/chat", "messages[0].role", {"messages": [{"role": "tool", "content": "x"}]}),
        ("/ai/chat", "messages[1].content", {"messages": BLANK_MESSAGES}),
        ("/api/chat", "messages", {}),
        ("/api/chat", "messages", {"messages": []}),
        ("/api/chat", "messages", {"messages": [PREFILLED_UI]}),
        ("/api/chat", "messages[0].parts", {"messages": [{"role": "user", "parts": []}]}),
        ("/api/chat", "messages[0].role", {"messages": [{"role": "robot", "parts": []}]}),
        ("/api/chat", "messages[2].parts", {"messages": [*BLANK_UI, {"role": "user", "parts": []}]}),
        ("/api/chat", "messages[1].parts", {"messages": [*BLANK_UI, {"role": "assistant", "parts": []}]}),
        ("/api/chat", "id", UI | {"id": "a b"}),
        ("/api/chat", "idempotency_key", UI | {"idempotency_key": "a b"}),
        ("/api/chat", "session_id", UI | {"session_id": "a b"}),
        ("/api/chat", "project_id", UI | {"project_id": "a b"}),
        *(("/api/start-job", None, body) for body in ({}, {"prompt": "a", "message": "b"})),
        ("/api/start-job", "prompt", {"prompt": ""}),
        ("/api/start-job", "message", {"message": ""}),
    ],
)
async def test_a_refusal_names_the_field_as_the_client_does(
    shared_gateway: Gateway, path: str, param: str | None, body: object
) -> None:
    """Also of a rule that is not in the types, and in every client protocol."""
    answer = await shared_gateway.client.post(path if path.startswith("/") else f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code // 100, error["param"]) == (4, param)
    if param and not path.startswith("turn") and "batches" not in path and answer.status_code == 400:
        assert f"`{param}`" in error["message"]


@on_shared_loop
async def test_a_parameter_of_an_earlier_version_is_ignored_and_named(shared_gateway: Gateway) -> None:
    """`pace` is gone: a client that still sends it gets its stream."""
    answer = await shared_gateway.client.get("/v1/models?pace=2")
    assert (answer.status_code, answer.headers["tailrace-ignored"]) == (200, "pace")


@on_shared_loop
@pytest.mark.parametrize(
    ("method", "path", "param", "hint"),
    [
        (
            "GET",
            "/v1/usage?from_=2026-01-01",
            "from_",
            "(did you mean from?); there are after, by, format, from, key, limit, metadata[NAME], model, page, project",
        ),
        ("HEAD", "/v1/usage?from_=2026-01-01", None, ""),
        ("GET", "/healthz?x", "x", "there are none"),
        ("POST", "/v1/turns?dialect=text&AFTER=1", "AFTER", "there are after, dialect"),
        ("POST", f"/v1/messages?beta=true&{'x' * 9999}=1", "x" * 64, "there are after, beta"),
        ("GET", "/v1/models?beta=true&api-version=2026-01-01", None, ""),
        ("GET", "/v1/models?lifecycle[]=active&lifecycle[]=retired", None, ""),
        ("GET", "/v1/models?lifecycle[]=asleep", "lifecycle[]", "must be one of active, deprecated, retired"),
        *(("GET", f"/v1/models?limit={limit}", "limit", "from 1 to 1000") for limit in ("0", "1001", "", "+1")),
        ("GET", "/v1/models?after_id=claude-unknown", "after_id", "must be ids of listed models"),
        ("GET", "/v1/models?before_id=", "after_id", "`before_id` must be ids of listed models"),
        ("GET", "/v1/turns?metadata=x", "metadata", "send `metadata[NAME]=VALUE`"),
        ("GET", "/v1/turns?metadata[]=a", "metadata[]", "(did you mean metadata[NAME]?)"),
        ("GET", "/v1/turns?from=yesterday", "from", "must be a day such as 2026-01-31"),
        ("GET", "/v1/sessions?metadata[team]=a", "metadata[team]", "there are after, limit, min_age_s, page"),
        ("GET", "/v1/usage?by=metadata.", "by", "or `metadata.NAME`"),
        ("GET", "/v1/usage?from=2026-02-01&to=2026-01-01", "from", "is 2026-02-01, after `to`, 2026-01-01"),
        ("GET", "/v1/usage?from=2024-01-01&to=2025-01-01", "from", "are 367 days: usage reads at most 366 at once"),
        *(
            ("GET", f"/v1/usage?to={day}", "to", "must be a day such as 2026-01-31")
            for day in ("", "20260101", "1969-12-31", "9999-12-31")
        ),
        ("GET", "/v1/usage?limit=0", "limit", "limit"),
        ("GET", "/v1/batches?user=ann", "user", "there are after, api-version, limit"),
        ("GET", "/v1/messages/batches?user=ann", "user", "there are after_id, before_id, beta, limit"),
        ("GET", "/v1/turns?metadata[a]=x&metadata[a]=y&metadata[b]=z", "metadata[a]", "repeated: send it once"),
        ("DELETE", "/v1/users?user=ann&user=bob", "user", "repeated: send it once"),
        ("GET", "/v1/messages/batches?limit=1&limit=2", "limit", "repeated: send it once"),
        ("POST", "/v1/turns?dialect=text&dialect=text", "dialect", "repeated: send it once"),
        (
            "GET",
            f"/v1/turns?q={'%20'.join(map(str, range(51)))}",
            "q",
            "has 51 different words, and at most 50 are allowed",
        ),
        ("GET", f"/v1/turns?q={'word%20' * 201}", "q", "has 1,005 characters, and at most 1,000 are allowed"),
    ],
)
async def test_an_invalid_query_is_refused_with_what_is_valid(
    shared_gateway: Gateway, method: str, path: str, param: str | None, hint: str
) -> None:
    """Those that SDKs add by themselves are known."""
    answer = await shared_gateway.client.request(method, path, json={})
    if param is None:
        assert answer.status_code == (400 if method == "HEAD" else 200)
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["message"]) == (400, error_of(answer)[2])
    # Anthropic's error body has no field `param`.
    assert error.get("param", param) == param
    assert hint in error_of(answer)[2]


FIELDS = "`modell` (did you mean model?); there are message, messages, model, system, max_tokens, tools"
# The request, and what the error message names.
REQUESTS: dict[str, tuple[object, str]] = {
    "unknown field": (HI | {"modell": "x"}, FIELDS),
    "unknown role": (
        {"messages": [{"role": "tool", "content": "a"}]},
        "`messages[0].role`; there are assistant, system, user",
    ),
    "unknown on_interrupt": (HI | {"on_interrupt": "panic"}, "`on_interrupt`; there are continue, fail, restart"),
    "unknown on_disconnect": (HI | {"on_disconnect": "panic"}, "on_disconnect"),
    "negative grace": (HI | {"on_disconnect": "grace:-1"}, "on_disconnect"),
    "fraction as grace": (HI | {"on_disconnect": "grace:1.5"}, "on_disconnect"),
    "Arabic digit as grace": (HI | {"on_disconnect": "grace:٣"}, "on_disconnect"),
    "max_tokens too large": (HI | {"max_tokens": 10**9}, "max_tokens"),
    "no message": ({}, "is required: send one of them"),
    "message and messages": (HI | {"messages": []}, "both `message` and `messages` were sent"),
    "no messages": ({"messages": []}, "messages"),
    "empty message": ({"message": ""}, "message"),
    "blank message": ({"message": " \n "}, "message"),
    "empty text": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": ""}]},
        "messages[1].content",
    ),
    "system is an image": (HI | {"system": [{"type": "image"}]}, "`system[0]` is not a text block"),
    "no user message": ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    "deep output_config": (
        {"messages": [{"role": "user", "content": "a", "output_config": {"a": json.loads(nested_list(60))}}]},
        "levels deep",
    ),
    "deep tool": (HI | {"tools": [{"a": json.loads(nested_list(60))}]}, "levels deep"),
}


@on_shared_loop
@pytest.mark.parametrize(("body", "named"), REQUESTS.values(), ids=REQUESTS)
async def test_the_error_names_the_invalid_field(shared_gateway: Gateway, body: object, named: str) -> None:
    status, code, message = error_of(await shared_gateway.client.post("/v1/turns", json=body))
    assert (status, code) == (400, "request_invalid")
    assert named in message


@on_shared_loop
async def test_an_unknown_dialect_is_refused_with_the_known_ones(shared_gateway: Gateway) -> None:
    answer = await shared_gateway.client.post("/v1/turns?dialect=esperanto", json=HI)
    status, code, message = error_of(answer)
    assert (status, code, answer.json()["error"]["param"]) == (400, "dialect_unknown", "dialect")
    assert "tailrace, text, anthropic" in message


# Encoded in ways that HTTP libraries would normalize.
INVALID_TURN_IDS = [
    *("*", "%3E", ".", "..", "%2e", "%2E%2e", "a.b", "a.*", "%20", "a%20b", "%0d%0a", "a%0d%0aset-cookie:%20x"),
    *("%00", "a%00", "ünïcödé", "%F0%9F%8C%8A", "%ff", "A", "x" * 65, "x" * 4000, "$JS", "%24JS.API", "a%2Fb", "%5c"),
]


@on_shared_loop
async def test_an_invalid_turn_id_is_404_like_an_unknown_one(shared_gateway: Gateway) -> None:
    """No character from a client becomes part of a subject."""
    for turn in INVALID_TURN_IDS:
        for method, suffix in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            async with RawConnection.open(shared_gateway.port) as raw:
                await raw.send(f"{method} /v1/turns/{turn}{suffix} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n")
                answer = await raw.answer()
            if "ü" in turn:
                # Not a valid request line.
                assert answer.status_code == 400
            else:
                assert error_of(answer)[:2] in {(404, "turn_not_found"), (404, "route_not_found")}, (turn, suffix)


@on_shared_loop
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/nothing", None),
        ("GET", "/v1/turns//events", None),
        ("POST", "/v1/turns/", None),
        ("GET", "/healthz/", None),
        ("PUT", "/v1/turns", "GET, HEAD, POST"),
        ("OPTIONS", "/v1/turns", "GET, HEAD, POST"),
        ("PUT", "/v1/sessions/x", "DELETE, GET, HEAD, PATCH"),
        ("GET", "/v1/turn-batches/x/cancel", "POST"),
    ],
)
async def test_an_unknown_route_is_404_and_a_wrong_method_405_with_all_methods_of_the_path(
    shared_gateway: Gateway, method: str, path: str, allowed: str | None
) -> None:
    answer = await shared_gateway.client.request(method, path)
    status, code, message = error_of(answer)
    assert (status, code) == ((405, "method_not_allowed") if allowed else (404, "route_not_found"))
    assert answer.headers.get("allow") == allowed
    if allowed:
        assert message == f"{method} is not allowed on this route; use {allowed}."


@on_shared_loop
async def test_a_route_that_only_openai_has_is_404_with_advice(shared_gateway: Gateway) -> None:
    """tests/unit/test_absent_routes.py has all advice."""
    status, code, message = error_of(await shared_gateway.client.post("/v1/embeddings", json={"input": "x"}))
    assert (status, code) == (404, "route_not_found")
    assert "Claude has no embeddings: send these requests to a provider that has them" in message


@on_shared_loop
@pytest.mark.parametrize("value", ["unknown", "", "*", "a.b", "x\x00y", "x" * 5000, "🌊", "' OR 1=1 --", "\r\n"])
async def test_an_unknown_session_or_parent_is_404(shared_gateway: Gateway, value: str) -> None:
    for name, code in (("session", "session_not_found"), ("parent", "parent_not_found")):
        answer = await shared_gateway.client.post("/v1/turns", json={"message": "and?", name: value})
        assert error_of(answer)[:2] == (404, code)
        assert answer.json()["error"]["param"] == name
