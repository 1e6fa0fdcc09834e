"""The code does with requests, usage and errors what docs/CLAUDE_API.md says."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from starlette.datastructures import Headers

from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import build_entry, new_messages
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.generators.backends.api_errors import Reason, error_from_reason
from tailrace.generators.continuation import build_call
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Event, Failure
from tailrace.proto.errors import CODES, Refused
from tailrace.proto.ids import SessionId
from tailrace.protocols.anthropic.request import MessagesRequest, build_turn
from tailrace.protocols.common.failure import error_type
from tests.harness.turn_builder import Handwritten, raw
from tools.api_surface import Group, read_table

TABLE = read_table()
QUESTION = {"role": "user", "content": "hi"}
BODY: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": [QUESTION]}
# Values of the types that the gateway checks; other fields have any value.
VALUES: dict[str, Any] = {"system": "Be brief.", "stream": True, "content": "hi", "role": "user"}
CALL_IDS = {"type": "tool_result", "tool_use_id": "toolu_1", "content": []}


def of_verdict(group: str, *verdicts: str) -> list[str]:
    """Returns the names in a group of the table that have one of the verdicts."""
    return [name for name, row in TABLE[group].rows.items() if row.verdict in verdicts]


def sent(fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Returns the body and the betas with which the model's API is called for a client's request. Raises Refused."""
    body = BODY | dict(fields)
    turn = build_turn(msgspec.convert(body, MessagesRequest), body, Headers(headers))
    entry = build_entry(turn, Position(session=SessionId("s"), new=new_messages(turn)), 10, Offer(), pseudonym=str)
    call = build_call(entry)
    pieces = asyncio.run(encode_body(call, model=call.model, stream=True))
    return msgspec.json.decode(b"".join(pieces)), call.betas or []


@pytest.mark.parametrize("name", of_verdict("request_fields", "passed"))
def test_a_field_that_is_passed_reaches_the_api_unchanged(name: str) -> None:
    value = {"of_tomorrow": [1, None]}
    assert sent({name: value})[0][name] == value


@pytest.mark.parametrize("name", of_verdict("message_params", "passed"))
def test_a_field_of_a_message_reaches_the_api_unchanged(name: str) -> None:
    roles = {"user", "assistant", "system"}
    more = {"role": name} if name in roles else {name: VALUES.get(name, {"effort": "low"})}
    # A system message precedes an answer, or is the last one.
    messages = [QUESTION, QUESTION | more, *([] if name == "system" else [QUESTION])]
    assert sent({"messages": messages})[0]["messages"] == messages


@pytest.mark.parametrize("name", of_verdict("request_blocks", "passed", "used"))
def test_a_content_block_reaches_the_api_unchanged(name: str) -> None:
    """Whatever fields it has: the API checks them."""
    block = {"type": name, "of_tomorrow": 1} | (CALL_IDS if name == "tool_result" else {})
    messages = [{"role": "user", "content": [block]}]
    assert sent({"messages": messages})[0]["messages"] == messages


@pytest.mark.parametrize("name", of_verdict("tools", "passed"))
def test_a_tool_reaches_the_api_unchanged(name: str) -> None:
    tools = [{"type": name, "name": "x", "of_tomorrow": 1}]
    assert sent({"tools": tools})[0]["tools"] == tools


@pytest.mark.parametrize("name", of_verdict("request_parts", "passed"))
def test_a_part_of_a_field_reaches_the_api_unchanged(name: str) -> None:
    field = {"edits": [{"type": name, "of_tomorrow": 1}]}
    assert sent({"context_management": field})[0]["context_management"] == field


@pytest.mark.parametrize("name", [*of_verdict("request_fields", "refused"), *of_verdict("request_parts", "refused")])
def test_what_is_refused_gets_an_advice(name: str) -> None:
    """The two parts are kinds of `thread`."""
    with pytest.raises(Refused, match=r"not supported: \w+"):
        sent({"thread": {"type": name}})


def test_headers_do_what_the_table_says() -> None:
    for name in of_verdict("headers", "refused"):
        with pytest.raises(Refused, match=r"not supported: \w+"):
            sent({}, {name: "x"})
    for name in of_verdict("headers", "replaced"):
        assert sent({}, {name: "x"}) == sent({})
    assert of_verdict("headers", "passed") == ["anthropic-beta"]
    assert sent({}, {"anthropic-beta": "of-tomorrow"})[1] == ["of-tomorrow"]


@pytest.mark.parametrize("name", of_verdict("error_types", "used"))
def test_an_error_of_the_api_comes_back_with_its_advice(name: str) -> None:
    """The SDK chooses what to do by the type: what concerns the server's key is no fault of the client's."""
    error = error_from_reason(Reason(name, "no"))
    repeats = "repeated" in TABLE["error_types"].rows[name].note or name == "conflict_error"
    assert CODES[error.code].is_retryable is repeats
    shown = error_type(Failure(error.code, error.message))
    assert shown in TABLE["error_types"].rows or shown == "request_too_large"


def paths_of(group: Group) -> Iterator[tuple[str, ...]]:
    for name in group.rows:
        yield tuple(name.split("."))


@pytest.mark.parametrize("path", [*paths_of(TABLE["usage_fields"])], ids=".".join)
def test_a_usage_field_is_shown_as_the_api_sent_it(path: tuple[str, ...]) -> None:
    value: Any = 7 if path[-1].endswith(("tokens", "requests")) else "x"
    for name in reversed(path[1:]):
        value = {name: value}
    usage = {path[0]: [value] if path[0] == "iterations" else value}
    log = Handwritten()
    log.store_request()
    log.store_attempt()
    start = {"id": "msg_1", "model": "claude-sonnet-5-5", "usage": {"input_tokens": 1, "output_tokens": 1} | usage}
    opening = raw({"type": "message_start", "message": start})
    log.store(Event(prev=log.chain.last, attempt=1, event=opening))
    end = build_end(log.turn, "completed")
    shown = msgspec.structs.asdict(end.usage) | (end.envelope or {}).get("usage", {})
    assert shown[path[0]] == usage[path[0]]
