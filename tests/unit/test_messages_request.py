"""Requests of Anthropic's Messages API: every field is passed on. tests/golden/requests has the cases."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.turns.request_body import TOP_LEVEL_FIELDS, new_messages
from tailrace.proto.entries import Message
from tailrace.protocols.anthropic.request import beta_names
from tests.golden.requests import build_turn
from tests.harness.strategies import JSON

# `thread` is refused. Hypothesis tries it, because the code has this word.
KNOWN = {*TOP_LEVEL_FIELDS, "thread"}
FIELDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1).filter(lambda name: name not in KNOWN)


@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_every_other_field_becomes_an_option(fields: dict[str, object]) -> None:
    """Also one that this version does not know, with any value."""
    plain = build_turn("messages", {}).turn
    assert build_turn("messages", fields).turn == msgspec.structs.replace(plain, options=fields or None)


def test_output_config_of_a_message_reaches_the_request_entry() -> None:
    """Claude Code 2.1.332 sends it. If it is refused, Claude Code sends each first request again without it."""
    message = {"role": "system", "content": "Be brief.", "output_config": {"effort": "low"}}
    turn = build_turn("messages", {"messages": [{"role": "user", "content": "hi"}, message]}).turn
    assert new_messages(turn)[1] == Message("system", "Be brief.", {"effort": "low"})


def test_beta_names_of_several_headers_are_deduplicated() -> None:
    """HTTP treats one header and several alike (RFC 9110, 5.3)."""
    assert beta_names(["a, b ,,a", "c", "", "b"]) == ["a", "b", "c"]
