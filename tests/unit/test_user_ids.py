"""The ids of end users that the model's API receives."""

import re

import pytest

from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import NewTurn, build_entry
from tailrace.gateway.turns.user_ids import CHARS_MAX
from tailrace.proto.entries import Message
from tailrace.proto.ids import SessionId

SIGNER = TokenSigner(b"s" * 32)
POSITION = Position(session=SessionId("s"), new=[Message("user", "hi")])
PERSONAL = [
    "ann@example.com",
    "Ann <ann@example.com>",
    "mailto:ann@example.com",
    '{"email": "ann@localhost"}',
    "größe@exämple.com",
    "+47 22 33 44 55",
    "+1 (555) 010-9999",
    "tel:+4722334455",
    "u" * (CHARS_MAX + 1),
    "half \ud800@b",
]
HARMLESS = [
    "ann",
    "u" * CHARS_MAX,
    "@ann",
    "ann@",
    "a @ b",
    "+1",
    "20261129",
    "555-0199",
    "8d1f2c2e-0000-7000-8000-000000000001",
    '{"device_id": "d1", "session_id": "s1"}',
    "",
]


def sent_id(user: str, signer: TokenSigner = SIGNER) -> object:
    """Returns the `user_id` of the request entry for a turn of `user`, whose other metadata stays."""
    turn = NewTurn(message="hi", options={"metadata": {"user_id": user, "more": 1}}, user=user or None)
    entry = build_entry(turn, POSITION, 10, Offer(), pseudonym=signer.pseudonym)
    assert entry.user == (user or None)
    assert entry.options is not None
    assert entry.options["metadata"]["more"] == 1
    return entry.options["metadata"]["user_id"]


@pytest.mark.rule("R39")
@pytest.mark.parametrize("user", PERSONAL)
def test_an_id_that_the_api_refuses_is_replaced_by_a_stable_pseudonym(user: str) -> None:
    """It is the same in every process with the secret, and another one for another user or secret."""
    found = sent_id(user)
    assert re.fullmatch(r"user_[A-Za-z0-9_-]{43}", str(found))
    assert found == sent_id(user, TokenSigner(b"s" * 32))
    assert found not in (sent_id(user + "x"), sent_id(user, TokenSigner(b"t" * 32)))


@pytest.mark.rule("R39")
@pytest.mark.parametrize("user", HARMLESS)
def test_any_other_id_is_sent_as_it_is(user: str) -> None:
    assert sent_id(user) == user


@pytest.mark.parametrize("metadata", [None, "ann@example.com", {}, {"user_id": None}, {"user_id": 7}])
def test_metadata_without_an_id_stay_as_they_are(metadata: object) -> None:
    """The API decides about a value that is no text."""
    turn = NewTurn(message="hi", options={"metadata": metadata})
    assert build_entry(turn, POSITION, 10, Offer(), pseudonym=SIGNER.pseudonym).options == {"metadata": metadata}
