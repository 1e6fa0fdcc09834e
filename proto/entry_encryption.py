"""Encryption of the entries of a turn with `store: false` (PROTOCOL R113).

The key is in the turn's request. Overwriting this one entry makes all others unreadable.
"""

import os
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq

T = TypeVar("T")

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
    """Encrypts an entry's `payload` for `subject`; `decrypt` accepts no other subject. AES-GCM with a random nonce."""
    nonce = os.urandom(NONCE_BYTES)
    return MARK + nonce + _cipher(key).encrypt(nonce, payload, subject.encode())


def decrypt(key: bytes, subject: str, payload: bytes) -> bytes | None:
    """Returns the decrypted payload; None if it has another key or another subject, or was changed."""
    nonce, content = payload[len(MARK) : len(MARK) + NONCE_BYTES], payload[len(MARK) + NONCE_BYTES :]
    try:
        return _cipher(key).decrypt(nonce, content, subject.encode())
    except (InvalidTag, ValueError):
        # ValueError: the payload is too short for a nonce.
        return None


@lru_cache(CIPHERS_MAX)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(key)


class ValidRequest(NamedTuple):
    """The earliest request that was found of a turn."""

    seq: Seq
    encryption_key: bytes | None


class EncryptionKeys:
    """The keys of the turns whose requests this process has read last, by the filter of the turn's entries."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()
        self._valid: OrderedDict[str, ValidRequest] = OrderedDict()

    def add(self, turn: str, key: bytes) -> None:
        """Remembers a key with which entries of the turn may be encrypted. A turn with a fork may have several."""
        known = self._keys.get(turn, ())
        _remember(self._keys, turn, known if key in known else (*known, key))

    def add_valid(self, turn: str, seq: Seq, key: bytes | None) -> None:
        """Remembers the key of the turn's request at `seq`, with which new entries are encrypted; None: they are not.

        Of several requests, only the first is valid. `seq` must be the first that the caller could find.
        """
        request = ValidRequest(seq, key)
        known = self._valid.get(turn, request)
        _remember(self._valid, turn, known if known.seq <= seq else request)
        if key is not None:
            self.add(turn, key)

    def has_valid(self, turn: str) -> bool:
        """Returns whether this process knows the turn's valid request, which says if its entries are encrypted."""
        return turn in self._valid

    def valid(self, turn: str) -> bytes | None:
        """Returns the key with which new entries of the turn are encrypted; None: they are not.

        Raises LogUnavailable if the turn's request is not known, or has been forgotten.
        """
        if (request := self._valid.get(turn)) is None:
            raise LogUnavailable(f"the request of {turn} is not known, which may have a key for this entry: retry")
        self._valid.move_to_end(turn)
        return request.encryption_key

    def encrypt(self, turn: str, subject: str, payload: bytes) -> bytes:
        """Returns the payload of a new entry of the turn as NATS is to store it. Raises LogUnavailable like `valid`."""
        request = self._valid.get(turn)
        key = self.valid(turn) if request is None else request.encryption_key
        return payload if key is None else encrypt(key, subject, payload)

    def decrypt(self, turn: str, subject: str, payload: bytes) -> bytes:
        """Returns the plaintext, decrypted with any known key of the turn; nothing if no key fits."""
        tried = (decrypt(key, subject, payload) for key in self._keys.get(turn, ()))
        return next((content for content in tried if content is not None), b"")


def _remember(known: OrderedDict[str, T], turn: str, value: T) -> None:
    known[turn] = value
    known.move_to_end(turn)
    if len(known) > KEYS_MAX:
        known.popitem(last=False)
