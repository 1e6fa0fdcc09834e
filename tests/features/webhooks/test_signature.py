"""Webhook signatures: Standard Webhooks version 1."""

import base64
import hashlib
import hmac
import time

import pytest
from standardwebhooks import Webhook

from tailrace.features.webhooks import signature
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant

FIRST, SECOND = b"k" * 32, b"l" * 32
OURS, THEIRS = Tenant("ours"), Tenant("theirs")


def test_a_signature_is_an_hmac_of_id_time_and_body() -> None:
    """As the specification defines it, computed here without the library; the body is signed as UTF-8."""
    secret, body = signature.derive_secret(FIRST, OURS), '{"text":"\u00e9\U0001f30a"}'.encode()
    expected = hmac.digest(secret, b"turn-1.1767225600." + body, hashlib.sha256)
    assert signature.sign("turn-1", 1767225600, body, [secret]) == {
        "webhook-id": "turn-1",
        "webhook-timestamp": "1767225600",
        "webhook-signature": f"v1,{base64.b64encode(expected).decode()}",
    }


def test_during_a_key_rotation_both_keys_sign() -> None:
    """Receivers with the secret of either key accept the webhook; the newest key is the first."""
    keys = signature.parse_keys(f" {SECOND.decode()} , {FIRST.decode()},")
    assert keys == [SECOND, FIRST]
    secrets = [signature.derive_secret(key, OURS) for key in keys]
    headers = dict(signature.sign("turn-1", int(time.time()), b"{}", secrets))
    for secret in secrets:
        Webhook(secret).verify(b"{}", headers)


def test_each_tenant_and_key_has_a_secret_of_32_bytes() -> None:
    """It is not stored, so it must always be the same. The standard requires 24 to 64 bytes."""
    given = [(FIRST, OURS), (SECOND, OURS), (FIRST, THEIRS)]
    secrets = [signature.derive_secret(*one) for one in given]
    assert secrets == [signature.derive_secret(*one) for one in given]
    assert [len(secret) for secret in set(secrets)] == [32, 32, 32]
    assert signature.format_secret(bytes(32)) == "whsec_" + "A" * 43 + "="


@pytest.mark.parametrize("text", ["short", "k" * 31, f"{'k' * 32},short"])
def test_a_short_key_is_rejected(text: str) -> None:
    """The message says how to make a key, and does not contain the given one."""
    with pytest.raises(SettingsInvalid, match="openssl rand") as error:
        signature.parse_keys(text)
    assert "short" not in str(error.value)
    assert not signature.parse_keys("")
