"""Encryption of the entries of a turn with `store: false` (PROTOCOL R113).

The key is in the turn's request. Overwriting this one entry makes all others unreadable.
"""

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# No JSON begins with this byte.
MARK = b"\x01"
NONCE_BYTES = 12
KEY_BITS = 128
CIPHERS_MAX = 1024


def new_key() -> bytes:
    """Returns a random key."""
    return AESGCM.generate_key(KEY_BITS)


def is_encrypted(payload: bytes) -> bool:
    """Returns whether `payload` was returned by `encrypt`."""
    return payload[:1] == MARK


def encrypt(key: bytes, subject: str, payload: bytes) -> bytes:
    """Encrypts an entry's `payload`, which `decrypt` accepts on no other `subject`. AES-GCM with a random nonce."""
    nonce = os.urandom(NONCE_BYTES)
    return MARK + nonce + _cipher(key).encrypt(nonce, payload, subject.encode())


def decrypt(key: bytes, subject: str, payload: bytes) -> bytes | None:
    """Returns what was encrypted. None if it was encrypted with another key, for another subject, or changed."""
    nonce, content = payload[len(MARK) : len(MARK) + NONCE_BYTES], payload[len(MARK) + NONCE_BYTES :]
    try:
        return _cipher(key).decrypt(nonce, content, subject.encode())
    except (InvalidTag, ValueError):
        # ValueError: the payload is too short for a nonce.
        return None


@lru_cache(CIPHERS_MAX)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(key)
