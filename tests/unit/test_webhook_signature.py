"""Webhook signatures: Standard Webhooks version 1."""

import base64
import hashlib
import hmac
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


def receiver(key: bytes, tenant: Tenant) -> Webhook:
    return Webhook(signature.format_secret(signature.derive_secret(key, tenant)))


@given(st.dictionaries(st.text(), st.text()), st.text("abcdef0123456789-", min_size=1, max_size=64))
def test_a_receiver_verifies_a_signed_webhook(content: dict[str, str], webhook_id: str) -> None:
    """Any body under any id, with the secret that the command line shows."""
    body = msgspec.json.encode(content)
    headers = dict(signature.sign(webhook_id, int(time.time()), body, [signature.derive_secret(FIRST, OURS)]))
    assert receiver(FIRST, OURS).verify(body, headers) == content


def test_a_signature_is_an_hmac_of_id_time_and_body() -> None:
    """As the specification defines it, computed here without the library; the body is signed as UTF-8."""
    secret, body = signature.derive_secret(FIRST, OURS), '{"text":"\u00e9\U0001f30a"}'.encode()
    expected = hmac.digest(secret, b"turn-1.1767225600." + body, hashlib.sha256)
    assert signature.sign("turn-1", 1767225600, body, [secret]) == {
        "webhook-id": "turn-1",
        "webhook-timestamp": "1767225600",
        "webhook-signature": f"v1,{base64.b64encode(expected).decode()}",
    }


@pytest.mark.parametrize(
    ("other", "change"),
    [
        (receiver(FIRST, THEIRS), {}),
        (receiver(SECOND, OURS), {}),
        (receiver(FIRST, OURS), {"webhook-id": "other"}),
        (receiver(FIRST, OURS), {"webhook-timestamp": str(int(time.time()) - 3600)}),
        (receiver(FIRST, OURS), {"webhook-timestamp": str(int(time.time()) - 100)}),
    ],
    ids=["another tenant's secret", "another key", "another id", "expired", "another time"],
)
def test_a_changed_webhook_is_rejected(other: Webhook, change: dict[str, str]) -> None:
    """A tenant's secret does not verify another's webhooks; id, time and body are all signed."""
    body = b'{"type":"turn.completed"}'
    headers = dict(signature.sign("turn-1", int(time.time()), body, [signature.derive_secret(FIRST, OURS)]))
    with pytest.raises(WebhookVerificationError):
        other.verify(body, headers | change)
    with pytest.raises(WebhookVerificationError):
        receiver(FIRST, OURS).verify(body + b" ", headers)


def test_during_a_key_rotation_both_keys_sign() -> None:
    """Receivers with the secret of either key accept the webhook; the newest key is the first."""
    keys = signature.parse_keys(f" {SECOND.decode()} , {FIRST.decode()},")
    assert keys == [SECOND, FIRST]
    secrets = [signature.derive_secret(key, OURS) for key in keys]
    headers = dict(signature.sign("turn-1", int(time.time()), b"{}", secrets))
    for key in keys:
        receiver(key, OURS).verify(b"{}", headers)


def test_a_derived_secret_is_stable_and_long_enough() -> None:
    """It is not stored, so it must always be the same. The standard requires 24 to 64 bytes."""
    assert signature.derive_secret(FIRST, OURS) == signature.derive_secret(FIRST, OURS)
    assert len(signature.derive_secret(FIRST, OURS)) == 32
    assert signature.format_secret(bytes(32)) == "whsec_" + "A" * 43 + "="


@pytest.mark.parametrize("text", ["short", "k" * 31, f"{'k' * 32},short"])
def test_a_short_key_is_rejected(text: str) -> None:
    """The message says how to make a key, and does not contain the given one."""
    with pytest.raises(SettingsInvalid, match="openssl rand") as error:
        signature.parse_keys(text)
    assert "short" not in str(error.value)
    assert not signature.parse_keys("")
