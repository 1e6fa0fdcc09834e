"""How a webhook is signed, as Standard Webhooks says (https://www.standardwebhooks.com), version 1. Pure.

A tenant's secret is made of the operator's key and the tenant's name, so that nobody has to store one, and whoever has
one tenant's has no other's. While one key takes another's place, both sign: receivers change in their own time.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant

KEY_CHARS_MIN = 32
# So that the key may also be used for something else, some day.
PURPOSE = b"tailrace webhook secret\0"


def keys(text: str) -> Sequence[bytes]:
    """The keys of the setting, the newest first; raises SettingsInvalid for one that could be guessed."""
    found = [key.strip().encode() for key in text.split(",") if key.strip()]
    if any(len(key) < KEY_CHARS_MIN for key in found):
        raise SettingsInvalid(
            f"TAILRACE_WEBHOOK_KEY: at least {KEY_CHARS_MIN} characters, of `openssl rand -hex 32` for example"
        )
    return found


def secret(key: bytes, tenant: Tenant) -> bytes:
    return hmac.digest(key, PURPOSE + tenant.encode(), hashlib.sha256)


def shown(secret: bytes) -> str:
    """As receivers' libraries want it."""
    return f"whsec_{base64.b64encode(secret).decode()}"


def headers(webhook_id: str, at_s: int, body: bytes, secrets: Sequence[bytes]) -> Mapping[str, str]:
    """What goes with `body`, sent at `at_s` seconds of Unix time."""
    signed = b".".join([webhook_id.encode(), str(at_s).encode(), body])
    signatures = [base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode() for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
