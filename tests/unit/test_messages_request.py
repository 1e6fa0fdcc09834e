"""The body of POST /v1/messages as a question: what is passed on, and how it came."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from tailrace.gateway.clients.anthropic.request import MessagesRequest, beta_names, build_turn
from tailrace.gateway.turns.request_body import NAMED, NewTurn
from tailrace.proto.entries import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1).filter(lambda name: name not in NAMED)
BODY = {
    "model": "claude-opus-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}],
    "stream": True,
}


def asked(body: dict[str, object], **headers: str) -> NewTurn:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return build_turn(msgspec.convert(body, MessagesRequest), body, Headers(raw=raw))


def test_a_question_is_told_as_it_came_in_a_place_of_its_own() -> None:
    """Without a session it begins one; the conversation that it tells is all that the model is told."""
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
def test_every_other_field_is_the_apis_to_judge(fields: dict[str, object]) -> None:
    """Also one that is newer than this version, with whatever it holds."""
    assert asked(BODY | fields) == msgspec.structs.replace(asked(BODY), options=fields or None)


def test_what_it_may_cost_is_ours_to_heed() -> None:
    """A field that the model's API does not know, and would refuse."""
    told = asked(BODY | {"max_cost": 0.5, "metadata": {"user_id": "u"}})
    assert (told.max_cost, told.options, told.metadata) == (0.5, {"metadata": {"user_id": "u"}}, None)


def test_system_and_tools_have_their_own_place() -> None:
    """Blocks with `cache_control`, and tools that the API runs itself, as they are."""
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    tools = [{"type": "web_search_20260209", "name": "web_search", "max_uses": 2}]
    told = asked(BODY | {"system": system, "tools": tools})
    assert (told.system, told.tools, told.options) == (system, tools, None)


def test_headers_say_the_session_the_project_the_version_and_the_betas() -> None:
    named = {"x_session_id": "s:1", "x_project_id": "p.1", "anthropic_version": "2023-06-01"}
    told = asked(BODY, **named, anthropic_beta="a-2025-01-01,b-2026-02-02")
    assert (told.session, told.project, told.api_version) == ("s:1", "p.1", "2023-06-01")
    assert told.betas == ["a-2025-01-01", "b-2026-02-02"]


def test_a_beta_that_is_named_twice_is_asked_for_once() -> None:
    """In one header or in several, with any spaces: HTTP makes no difference (RFC 9110, 5.3)."""
    assert beta_names(["a, b ,,a", "c", "", "b"]) == ["a", "b", "c"]
