"""Encryption of the entries of a turn with `store: false` (PROTOCOL R113).

The key is in the turn's request. Overwriting this one entry makes all others unreadable.
"""

import os
from collections import OrderedDict
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# No JSON begins with this byte.
MARK = b"\x01"
NONCE_BYTES = 12
KEY_BITS = 128
CIPHERS_MAX = 1024
# The keys that a process remembers. Another turn's key is read again from its request when it is needed.
KEYS_MAX = 10_000


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


class EncryptionKeys:
    """The keys of the turns whose requests this process has read last, by turn."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()

    def add(self, turn: str, key: bytes) -> None:
        """Remembers a key of the turn with the filter `turn`. A turn with a fork may have several."""
        known = self._keys.pop(turn, ())
        self._keys[turn] = known if key in known else (*known, key)
        if len(self._keys) > KEYS_MAX:
            self._keys.popitem(last=False)

    def decrypt(self, turn: str, subject: str, payload: bytes) -> bytes:
        """Returns what was encrypted with any known key of the turn; nothing if that is not possible."""
        tried = (decrypt(key, subject, payload) for key in self._keys.get(turn, ()))
        return next((content for content in tried if content is not None), b"")
