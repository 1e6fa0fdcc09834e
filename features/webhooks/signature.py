"""Signing keys and signatures of webhooks: Standard Webhooks version 1 (https://www.standardwebhooks.com). Pure.

Each tenant's secret is derived from the operator's key and the tenant's name: no secret is stored, and a tenant that
knows its own cannot compute another's. While a key is rotated, old and new key both sign.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant

KEY_CHARS_MIN = 32
# Separates this use of the key from any other.
PURPOSE = b"tailrace webhook secret\0"


def parse_keys(text: str) -> Sequence[bytes]:
    """Returns the keys of the setting, newest first. Raises SettingsInvalid for a key that is too short."""
    found = [key.strip().encode() for key in text.split(",") if key.strip()]
    if any(len(key) < KEY_CHARS_MIN for key in found):
        raise SettingsInvalid(
            f"TAILRACE_WEBHOOK_KEY: {KEY_CHARS_MIN} characters or more; make one with `openssl rand -hex 32`"
        )
    return found


def derive_secret(key: bytes, tenant: Tenant) -> bytes:
    """Returns the tenant's signing secret, 32 bytes."""
    return hmac.digest(key, PURPOSE + tenant.encode(), hashlib.sha256)


def format_secret(secret: bytes) -> str:
    """Returns the secret as receivers' libraries expect it: `whsec_` and base64."""
    return f"whsec_{base64.b64encode(secret).decode()}"


def sign(webhook_id: str, at_s: int, body: bytes, secrets: Sequence[bytes]) -> Mapping[str, str]:
    """Returns the headers for `body` (JSON), sent at `at_s` seconds of Unix time, with one signature a secret."""
    at, text = datetime.fromtimestamp(at_s, UTC), body.decode()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(Webhook(secret).sign(webhook_id, at, text) for secret in secrets),
    }
