"""What is signed is believed, and nothing else is: not a bit of it changed, nor one kind for another."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.auth.signed_tokens import KINDS, Access, Refresh, Ticket, TokenSigner
from tailrace.proto.ids import Tenant, TurnId

OURS = TokenSigner(b"s" * 32)
TICKET = Ticket(tenant=Tenant("t"), turn=TurnId("1"), key="key_1", has_key=True, begin_by=5, until=9, once="o")
SIGNED: list[Ticket | Access | Refresh] = [
    TICKET,
    Access(key="key_1", until=9),
    Refresh(login="l", key="key_1", generation=3, until=9),
]


@pytest.mark.rule("R39")
@pytest.mark.parametrize("signed", SIGNED)
def test_what_was_signed_is_read_as_its_kind_alone(signed: Any) -> None:
    """By whoever has the secret: any gateway."""
    token = OURS.sign(signed).encode()
    assert {kind: TokenSigner(b"s" * 32).read(token, kind) for kind in KINDS} == {  # type: ignore[type-var]
        kind: signed if kind is type(signed) else None for kind in KINDS
    }
    assert TokenSigner(b"x" * 32).read(token, type(signed)) is None


@pytest.mark.rule("R39")
@pytest.mark.rule("S13")
@pytest.mark.parametrize("signed", SIGNED)
def test_not_a_character_of_it_can_be_changed(signed: Any) -> None:
    """Nor left out, nor put before or after it: base64 has several ways to say the same, and none of them counts."""
    token = OURS.sign(signed).encode()
    changed = {token[:n] + bytes([token[n] ^ bit]) + token[n + 1 :] for n in range(len(token)) for bit in (1, 2, 32)}
    shorter = {token[:n] + token[n + 1 :] for n in range(len(token))} | {token[:n] for n in range(len(token))}
    longer = {token + more for more in (b"=", b"A", b".", b"\n", b" ")} | {b" " + token, token[:4] + token}
    assert [one for one in (changed | shorter | longer) - {token} if OURS.read(one, type(signed)) is not None] == []


def test_what_others_call_signed_is_nothing() -> None:
    """No algorithm is named in a token, so none can be chosen by one: `none`, or a hash that nobody keyed."""
    fields = base64.urlsafe_b64encode(json.dumps(["t", "1", None, False, 5, 9, ""]).encode()).rstrip(b"=")
    for token in (
        b"",
        b".",
        b"trt_",
        b"trt_.",
        b"trt_" + fields,
        b"trt_" + fields + b".",
        b"trt_" + fields + b"." + fields,
        b"eyJhbGciOiJub25lIn0." + fields + b".",
        fields + b"." + OURS._mac(fields).encode(),
        b"\0" * 100,
        b"\xff\xfe.\xff",
        b"trt_" + b"A" * 100_000 + b"." + b"A" * 43,
    ):
        assert OURS.read(token, Ticket) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_not(token: bytes) -> None:
    """A stranger sends anything."""
    assert all(OURS.read(token, kind) is None for kind in KINDS)  # type: ignore[type-var]


def test_fields_of_another_version_are_no_token() -> None:
    """Rightly signed, and not understood: whoever holds it asks for another."""
    said = b"trt_" + base64.urlsafe_b64encode(msgspec.json.encode(["t", 5])).rstrip(b"=")
    assert OURS.read(said + b"." + OURS._mac(said).encode(), Ticket) is None


@pytest.mark.rule("R39")
def test_a_proof_is_one_tokens_and_one_secrets() -> None:
    """In what an `id:` may hold, and a dot is not in it: the cursor stands behind one."""
    token, other = OURS.sign(TICKET), OURS.sign(msgspec.structs.replace(TICKET, once="p"))
    proofs = [OURS.proof(token), OURS.proof(other), TokenSigner(b"x").proof(token)]
    assert len(set(proofs)) == 3
    assert all(len(proof) == 22 and proof.replace("-", "a").replace("_", "a").isalnum() for proof in proofs)
    # A proof is no part of what it proves: nobody who has the token has it.
    assert OURS.proof(token) not in token
