"""Signatures of webhooks, verified with the library that receivers use."""

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from tailrace.persistence.webhooks import signature
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant

FIRST, SECOND = b"k" * 32, b"l" * 32
OURS, THEIRS = Tenant("ours"), Tenant("theirs")


def receives(key: bytes, tenant: Tenant) -> Webhook:
    return Webhook(signature.format_secret(signature.derive_secret(key, tenant)))


@given(st.dictionaries(st.text(), st.text()), st.text("abcdef0123456789-", min_size=1, max_size=64))
def test_a_receivers_library_takes_what_was_signed(told: dict[str, str], webhook_id: str) -> None:
    """Any body under any id; the secret as the command line shows it."""
    body = msgspec.json.encode(told)
    headers = dict(signature.sign(webhook_id, int(time.time()), body, [signature.derive_secret(FIRST, OURS)]))
    assert receives(FIRST, OURS).verify(body, headers) == told


@pytest.mark.parametrize(
    ("receiver", "change"),
    [
        (receives(FIRST, THEIRS), {}),
        (receives(SECOND, OURS), {}),
        (receives(FIRST, OURS), {"webhook-id": "other"}),
        (receives(FIRST, OURS), {"webhook-timestamp": str(int(time.time()) - 3600)}),
        (receives(FIRST, OURS), {"webhook-timestamp": str(int(time.time()) - 100)}),
    ],
    ids=["another tenant's secret", "another key", "another id", "an old one", "another time"],
)
def test_what_was_not_signed_so_is_refused(receiver: Webhook, change: dict[str, str]) -> None:
    """One tenant's secret signs nothing of another's; id, time and body are all signed."""
    body = b'{"type":"turn.completed"}'
    at_s = int(time.time())
    headers = dict(signature.sign("turn-1", at_s, body, [signature.derive_secret(FIRST, OURS)]))
    with pytest.raises(WebhookVerificationError):
        receiver.verify(body, headers | change)
    with pytest.raises(WebhookVerificationError):
        receives(FIRST, OURS).verify(body + b" ", headers)


def test_while_a_key_is_replaced_receivers_of_both_take_it() -> None:
    """The operator's two keys both sign, the newest first."""
    keys = signature.parse_keys(f" {SECOND.decode()} , {FIRST.decode()},")
    assert keys == [SECOND, FIRST]
    body = b"{}"
    headers = dict(
        signature.sign("turn-1", int(time.time()), body, [signature.derive_secret(key, OURS) for key in keys])
    )
    for key in keys:
        receives(key, OURS).verify(body, headers)


def test_a_secret_is_always_the_same_and_long_enough() -> None:
    """It is stored nowhere: whoever has the key can show it again. 24 to 64 bytes is what the standard asks for."""
    assert signature.derive_secret(FIRST, OURS) == signature.derive_secret(FIRST, OURS)
    assert len(signature.derive_secret(FIRST, OURS)) == 32
    assert signature.format_secret(bytes(32)) == "whsec_" + "A" * 43 + "="


@pytest.mark.parametrize("text", ["short", "k" * 31, f"{'k' * 32},short"])
def test_a_key_that_could_be_guessed_is_refused(text: str) -> None:
    """The message says how to make one, and does not repeat what was given."""
    with pytest.raises(SettingsInvalid, match="openssl rand") as refused:
        signature.parse_keys(text)
    assert "short" not in str(refused.value)
    assert not signature.parse_keys("")
