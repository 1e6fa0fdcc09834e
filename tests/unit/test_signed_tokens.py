"""Signed tokens: tickets, access tokens and refresh tokens."""

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.logins.logins import Access, Refresh
from tailrace.features.tickets.tickets import Ticket
from tailrace.gateway.auth.signed_tokens import Signed, TokenSigner
from tailrace.proto.ids import Tenant, TurnId

OURS = TokenSigner(b"s" * 32)
TICKET = Ticket(
    tenant=Tenant("tenant-of-acme"),
    turn=TurnId("1"),
    key="key_1",
    has_key=True,
    begin_by=5,
    until=9,
    once="o",
    user="ann@example.com",
)
SIGNED: list[Ticket | Access | Refresh] = [
    TICKET,
    Access(key="key_1", until=9),
    Refresh(login="l", key="key_1", generation=3, until=9),
]

KINDS: list[type[Signed]] = [Ticket, Access, Refresh]


def mac_of(payload: bytes) -> bytes:
    return base64.urlsafe_b64encode(hmac.digest(b"s" * 32, payload, "sha256")).rstrip(b"=")


@pytest.mark.rule("R39")
@pytest.mark.parametrize("signed", SIGNED)
def test_a_token_is_read_as_its_own_kind_only(signed: Any) -> None:
    """By every gateway that has the secret, the key of an HMAC-SHA256 over all before the dot."""
    token = OURS.sign(signed).encode()
    payload, _, mac = token.rpartition(b".")
    assert mac == mac_of(payload)
    assert {kind: TokenSigner(b"s" * 32).read(token, kind) for kind in KINDS} == {
        kind: signed if kind is type(signed) else None for kind in KINDS
    }
    assert TokenSigner(b"x" * 32).read(token, type(signed)) is None


@pytest.mark.rule("R39")
def test_an_encrypted_token_shows_nothing_and_is_read_as_its_own_kind_only() -> None:
    """By every gateway that has the secret. Each token is another one, and as short as a signed one."""
    token, other = OURS.encrypt(TICKET).encode(), OURS.encrypt(TICKET).encode()
    assert token.startswith(b"trt_")
    assert b"." not in token
    assert len(token) <= len(OURS.sign(TICKET)) + 2
    shown = base64.urlsafe_b64decode(token.removeprefix(b"trt_") + b"==")
    assert [name for name in (b"key_1", b"tenant", b"acme", b"ann@", b"example") if name in token + shown] == []
    assert token != other
    readers = (TokenSigner(b"s" * 32), TokenSigner(b"x" * 32))
    assert [one.read(token, Ticket) for one in readers] == [TICKET, None]
    assert [OURS.read(token, kind) for kind in (Access, Refresh)] == [None, None]
    as_login = OURS.encrypt(SIGNED[1]).encode().replace(b"tra_", b"trr_")
    assert [OURS.read(as_login, kind) for kind in KINDS] == [None, None, None]


MAKERS = [OURS.sign, OURS.encrypt]


@pytest.mark.rule("R39")
@pytest.mark.rule("S13")
@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize("make", MAKERS)
def test_a_changed_token_is_not_valid(signed: Any, make: Callable[[Signed], str]) -> None:
    """Other spellings of the same base64 are refused, too."""
    token = make(signed).encode()
    assert OURS.read(token, type(signed)) == signed
    changed = {token[:n] + bytes([token[n] ^ bit]) + token[n + 1 :] for n in range(len(token)) for bit in (1, 2, 32)}
    shorter = {token[:n] + token[n + 1 :] for n in range(len(token))} | {token[:n] for n in range(len(token))}
    longer = {token + more for more in (b"=", b"A", b".", b"\n", b" ")} | {b" " + token, token[:4] + token}
    assert [one for one in (changed | shorter | longer) - {token} if OURS.read(one, type(signed)) is not None] == []


def test_a_token_without_our_mac_is_not_valid() -> None:
    """A token names no algorithm, so it cannot choose `none` or a hash without a key."""
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
        fields + b"." + mac_of(fields),
        b"\0" * 100,
        b"\xff\xfe.\xff",
        b"trt_" + b"A" * 100_000 + b"." + b"A" * 43,
        b"trt_AQ",
        b"trt_" + b"A" * 100_000,
        b"AQ" + b"A" * 100,
    ):
        assert OURS.read(token, Ticket) is None


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_no_error(token: bytes) -> None:
    assert all(OURS.read(token, kind) is None for kind in KINDS)


def test_a_token_with_unknown_fields_is_not_valid() -> None:
    """Its signature is right, but another release made it."""
    payload = b"trt_" + base64.urlsafe_b64encode(msgspec.json.encode(["t", 5])).rstrip(b"=")
    assert OURS.read(payload + b"." + mac_of(payload), Ticket) is None


@pytest.mark.rule("R39")
def test_a_proof_depends_on_token_and_secret() -> None:
    """It may stand in an `id:` and contains no dot."""
    token, other = OURS.sign(TICKET), OURS.sign(msgspec.structs.replace(TICKET, once="p"))
    proofs = [OURS.proof(token), OURS.proof(other), TokenSigner(b"x").proof(token)]
    assert len(set(proofs)) == 3
    assert all(len(proof) == 22 and proof.replace("-", "a").replace("_", "a").isalnum() for proof in proofs)
    # The proof cannot be read from the token.
    assert OURS.proof(token) not in token
