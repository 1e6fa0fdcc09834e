"""base64url without padding (RFC 4648, section 5; RFC 7515, section 2)."""

import base64
import re

ENCODED = re.compile(rb"[A-Za-z0-9_-]*={0,2}")


def encode(content: bytes) -> str:
    """Returns base64url of `content`, without the padding `=`."""
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def decode(text: str | bytes) -> bytes:
    """Decodes `text`, which may lack its padding. Raises ValueError, also for characters of another alphabet."""
    encoded = text.encode() if isinstance(text, str) else text
    if not ENCODED.fullmatch(encoded):
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
