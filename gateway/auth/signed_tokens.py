"""Tokens that gateways make and verify: tickets, and the access tokens and refresh tokens of logins.

The format of a signed token is `{kind}{fields}.{mac}` (PROTOCOL R39): a prefix that scanners for leaked secrets can
find, the fields as JSON in base64url, and HMAC-SHA256 over everything before the dot. Its holder can read the fields.
An encrypted token is `{kind}{content}`, which only gateways can read: AES-GCM authenticates it. Nothing in a token
chooses the algorithm. docs/DEPENDENCIES.md says why this is not a library.
"""

import hashlib
import hmac
from typing import ClassVar, TypeVar

import msgspec

from tailrace.proto import entry_encryption
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.runtime import base64url

# A gateway that reads encrypted tokens reports this name (PROTOCOL R76).
ENCRYPTED_TOKENS = "encrypted_tokens"


class Signed(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The fields of a token. Each kind of token is a subclass."""

    prefix: ClassVar[bytes]
    """The beginning of the tokens of this kind."""


S = TypeVar("S", bound=Signed)


class TokenSigner:
    """Makes and reads tokens with one secret, which all gateways share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # No token, proof or pseudonym is the MAC of this text.
        self._key = hmac.digest(secret, b"encryption key", hashlib.sha256)

    def sign(self, fields: Signed) -> str:
        """Returns the signed token."""
        payload = fields.prefix + base64url.encode(msgspec.json.encode(fields)).encode()
        return f"{payload.decode()}.{self._mac(payload)}"

    def encrypt(self, fields: Signed) -> str:
        """Returns the encrypted token."""
        kind = fields.prefix.decode()
        return kind + base64url.encode(entry_encryption.encrypt(self._key, kind, msgspec.json.encode(fields)))

    def read(self, token: bytes, kind: type[S]) -> S | None:
        """Returns the fields of a token that `sign` or `encrypt` has returned; else None. Does not check the expiry."""
        payload, dot, mac = token.rpartition(b".")
        if not token.startswith(kind.prefix) or (dot and not hmac.compare_digest(mac, self._mac(payload).encode())):
            return None
        try:
            content = base64url.decode((payload if dot else token).removeprefix(kind.prefix))
            return msgspec.json.decode(content if dot else self._decrypt(token, content, kind), type=kind)
        except DECODE_ERRORS:
            # Not ours, or made by a release with other fields.
            return None

    def _decrypt(self, token: bytes, encrypted: bytes, kind: type[Signed]) -> bytes:
        """Returns the JSON in an encrypted token; nothing if it is not ours."""
        # One content has several spellings in base64, and `decrypt` does not check the first byte.
        is_exact = kind.prefix + base64url.encode(encrypted).encode() == token
        if not (is_exact and entry_encryption.is_encrypted(encrypted)):
            return b""
        return entry_encryption.decrypt(self._key, kind.prefix.decode(), encrypted) or b""

    def proof(self, token: str) -> str:
        """Returns 128 bits that only a server with the secret can derive, in characters that an SSE `id:` may hold."""
        return self._mac(b"reader " + token.encode())[:22]

    def pseudonym(self, user: str) -> str:
        """Returns the id under which Anthropic knows an end user: always the same, and opaque (PROTOCOL R39)."""
        return "user_" + self._mac(b"user " + user.encode("utf-8", "surrogatepass"))

    def _mac(self, payload: bytes) -> str:
        return base64url.encode(hmac.digest(self._secret, payload, hashlib.sha256))
