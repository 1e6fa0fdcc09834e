"""Requests of OpenAI's two protocols: the unsupported parameters. tests/golden/requests has the cases."""

import json
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from tailrace.gateway.http import read_body
from tailrace.gateway.turns.request_body import MessageParam, check_turn
from tailrace.proto.errors import Refused
from tailrace.protocols.common.unsupported import Unsupported, unsupported_fields
from tailrace.protocols.openai.chat_request import ChatCompletionRequest
from tailrace.protocols.openai.responses_input import conversation_of, items_of
from tailrace.protocols.openai.responses_request import ResponseRequest
from tests.golden.requests import HI, build_turn
from tests.harness.strategies import JSON, TEXTS


class Api(NamedTuple):
    name: str
    path: str
    unsupported: dict[str, Unsupported]
    supported: set[str]
    of_sdk: set[str]


APIS = [
    Api(
        "chat",
        "/v1/chat/completions",
        unsupported_fields(ChatCompletionRequest),
        set(ChatCompletionRequest.__struct_fields__),
        set(CompletionCreateParamsStreaming.__annotations__),
    ),
    Api(
        "responses",
        "/v1/responses",
        unsupported_fields(ResponseRequest),
        set(ResponseRequest.__struct_fields__),
        set(ResponseCreateParamsBase.__annotations__) | {"stream"},
    ),
]
ROWS = [(api.name, name, one) for api in APIS for name, one in api.unsupported.items()]


@pytest.mark.parametrize(("api", "name", "row"), ROWS, ids=[f"{api}: {name}" for api, name, _ in ROWS])
def test_unsupported_parameter_is_ignored_or_refused(api: str, name: str, row: Unsupported) -> None:
    """As its field says; values that ask for nothing special are accepted."""
    for idle in (None, *row.allowed):
        assert build_turn(api, {name: idle}).ignored == []
    if row.is_refused:
        with pytest.raises(Refused, match=f"`{name}` is not supported") as refused:
            build_turn(api, {name: "something"})
        assert row.reason in refused.value.message
    else:
        assert build_turn(api, {name: "something"}).ignored == [name]


INNER = [
    ("chat", "web_search_options", "search_context_size", "high", "medium"),
    ("responses", "reasoning", "context", "all_turns", "auto"),
    ("responses", "text", "verbosity", "high", "medium"),
]


@pytest.mark.parametrize(("api", "field", "name", "value", "idle"), INNER)
def test_an_unsupported_parameter_in_an_object_is_named_with_its_path(
    api: str, field: str, name: str, value: str, idle: str
) -> None:
    assert build_turn(api, {field: {name: value}}).ignored == [f"{field}.{name}"]
    assert build_turn(api, {field: {name: idle}}).ignored == []


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
def test_every_parameter_of_openais_sdk_is_known(api: Api) -> None:
    """It is either supported, or its field says why it is not."""
    assert {"model", "stream", "moderation"} <= api.of_sdk
    assert api.of_sdk <= api.supported


PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "file", "refusal", "x"])}) | JSON
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": TEXTS | st.lists(PARTS, max_size=2),
        "tool_call_id": TEXTS,
        "tool_calls": JSON,
        "refusal": TEXTS,
    },
)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
@given(data=st.data())
def test_any_body_becomes_a_turn_or_is_refused(api: Api, data: st.DataObject) -> None:
    names = sorted(api.supported - {"model"})
    fields = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=3))
    messages = data.draw(st.lists(MESSAGES | JSON, max_size=3))
    with suppress(Refused):
        body = {**fields, "messages" if api.name == "chat" else "input": [HI, *messages]}
        check_turn(build_turn(api.name, body).turn)


@pytest.mark.parametrize("content", ["a", [{"type": "text", "text": "a"}]])
def test_document_of_blocks_is_listed_as_json(content: object) -> None:
    """OpenAI has no part for it, which another protocol has stored."""
    document = {"type": "document", "source": {"type": "content", "content": content}}
    (item,) = items_of("turn-1", [MessageParam("user", [document])])
    (part,) = item["content"]
    assert (part["type"], json.loads(part["text"])) == ("input_text", document)


def test_listed_input_items_equal_the_input() -> None:
    """Sending the items that a response lists gives the same conversation again."""
    image = {"type": "base64", "media_type": "image/png", "data": "aaaa"}
    documents: list[dict[str, Any]] = [
        {"source": {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}},
        {"source": {"type": "url", "url": "https://a.example/b.pdf"}},
        {"source": {"type": "text", "media_type": "text/plain", "data": "a"}, "title": "b"},
    ]
    call = {"type": "tool_use", "id": "c1", "name": "n", "input": {}}
    seen = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "seen"}]}
    messages = [
        MessageParam("user", "hi"),
        MessageParam("assistant", [{"type": "text", "text": "ok"}, call]),
        MessageParam("user", [seen]),
        MessageParam(
            "user",
            [
                {"type": "image", "source": image},
                {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
                *({"type": "document", **document} for document in documents),
            ],
        ),
    ]
    items = items_of("turn-1", messages)
    kinds = ["message", "message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in items] == kinds
    assert len({item["id"] for item in items}) == len(items)
    body = json.dumps({"model": "m", "input": items}).encode()
    assert conversation_of(read_body.decode(body, ResponseRequest).input).messages == messages
