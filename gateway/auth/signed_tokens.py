"""Tokens that gateways sign and verify, such as the access tokens and refresh tokens of logins. Pure.

The format is `{kind}{fields}.{mac}` (PROTOCOL R39): a prefix that scanners for leaked secrets can find, the fields as
JSON in base64url, and HMAC-SHA256 over everything before the dot. Nothing in a token chooses the algorithm. The fields
are readable by the holder of the token; none of them is secret. docs/DEPENDENCIES.md says why this is not a library.
"""

import hashlib
import hmac
from typing import ClassVar, TypeVar

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.runtime import base64url


class Signed(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The fields of a token. Each kind of token is a subclass."""

    prefix: ClassVar[bytes]
    """The beginning of the tokens of this kind."""


S = TypeVar("S", bound=Signed)


class TokenSigner:
    """Signs and reads tokens with one secret, which all gateways share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, fields: Signed) -> str:
        """Returns the signed token."""
        payload = fields.prefix + base64url.encode(msgspec.json.encode(fields)).encode()
        return f"{payload.decode()}.{self._mac(payload)}"

    def read(self, token: bytes, kind: type[S]) -> S | None:
        """Returns the fields of a token with a valid signature; else None. Does not check the expiry."""
        payload, _, mac = token.rpartition(b".")
        if not (payload.startswith(kind.prefix) and hmac.compare_digest(mac, self._mac(payload).encode())):
            return None
        fields = payload.removeprefix(kind.prefix)
        try:
            return msgspec.json.decode(base64url.decode(fields), type=kind)
        except DECODE_ERRORS:
            # Signed by a release with other fields.
            return None

    def proof(self, token: str) -> str:
        """Returns 128 bits that only a server with the secret can derive, in characters that an SSE `id:` may hold."""
        return self._mac(b"reader " + token.encode())[:22]

    def pseudonym(self, user: str) -> str:
        """Returns the id under which Anthropic knows an end user: always the same, and opaque (PROTOCOL R39)."""
        return "user_" + self._mac(b"user " + user.encode("utf-8", "surrogatepass"))

    def _mac(self, payload: bytes) -> str:
        return base64url.encode(hmac.digest(self._secret, payload, hashlib.sha256))
