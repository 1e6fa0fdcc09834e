"""Requests of Anthropic's Messages API: their conversion to turns, and what is passed on."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from tailrace.gateway.clients.anthropic.request import MessagesRequest, beta_names, build_turn
from tailrace.gateway.turns.request_body import TOP_LEVEL_FIELDS, NewTurn
from tailrace.proto.entries import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1).filter(lambda name: name not in TOP_LEVEL_FIELDS)
BODY = {
    "model": "claude-opus-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}],
    "stream": True,
}


def asked(body: dict[str, object], **headers: str) -> NewTurn:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return build_turn(msgspec.convert(body, MessagesRequest), body, Headers(raw=raw))


def test_messages_become_a_turn_unchanged() -> None:
    """Without a session header it creates one; the model gets exactly these messages."""
    assert asked(BODY) == NewTurn(
        model="claude-opus-5-5",
        max_tokens=100,
        messages=[Message("user", "hi"), Message("system", "Be brief.")],
        create_session=True,
        full_history=True,
        verbatim=True,
        on_busy="branch",
    )


@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_every_other_field_becomes_an_option(fields: dict[str, object]) -> None:
    """Also one that this version does not know, with any value."""
    assert asked(BODY | fields) == msgspec.structs.replace(asked(BODY), options=fields or None)


def test_max_cost_is_not_passed_on() -> None:
    """Anthropic's API would refuse the field."""
    told = asked(BODY | {"max_cost": 0.5, "metadata": {"user_id": "u"}})
    assert (told.max_cost, told.options, told.metadata) == (0.5, {"metadata": {"user_id": "u"}}, None)


def test_system_and_tools_become_fields_of_the_turn() -> None:
    """Blocks with `cache_control` and server tools are unchanged."""
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    tools = [{"type": "web_search_20260209", "name": "web_search", "max_uses": 2}]
    told = asked(BODY | {"system": system, "tools": tools})
    assert (told.system, told.tools, told.options) == (system, tools, None)


def test_headers_set_session_project_version_and_betas() -> None:
    named = {"x_session_id": "s:1", "x_project_id": "p.1", "anthropic_version": "2023-06-01"}
    told = asked(BODY, **named, anthropic_beta="a-2025-01-01,b-2026-02-02")
    assert (told.session, told.project, told.api_version) == ("s:1", "p.1", "2023-06-01")
    assert told.betas == ["a-2025-01-01", "b-2026-02-02"]


def test_beta_names_are_deduplicated() -> None:
    """In one header or in several, with any spaces: HTTP treats them alike (RFC 9110, 5.3)."""
    assert beta_names(["a, b ,,a", "c", "", "b"]) == ["a", "b", "c"]
