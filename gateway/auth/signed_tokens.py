"""What gateways sign and believe when it comes back: tickets, access tokens, refresh tokens. Pure.

`{kind}{fields}.{MAC}`: the kind is a prefix that scanners for leaked secrets can look for, the fields are JSON in
base64url, the MAC is HMAC-SHA256 over all that stands before it. There is one algorithm, and nothing in a token
chooses it. Fields can be read by whoever holds one: none of them is a secret.
"""

import base64
import hashlib
import hmac
from typing import TypeVar

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.ids import Tenant, TurnId


class Ticket(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Lets its holder read one turn. Times are Unix seconds.

    `key` is the name of the credential that made it; `has_key` whether that is an API key, with which it ends.
    `once`: a name of its own, for a ticket that one reader may use; empty for one that many may.
    """

    tenant: Tenant
    turn: TurnId
    key: str | None
    has_key: bool
    begin_by: int
    until: int
    once: str = ""


class Access(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A login's short token, for the API key of that name."""

    key: str
    until: int


class Refresh(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A login's long one: good once, for the next access token."""

    login: str
    key: str
    generation: int
    until: int


KINDS: dict[type[msgspec.Struct], bytes] = {Ticket: b"trt_", Access: b"tra_", Refresh: b"trr_"}
S = TypeVar("S", Ticket, Access, Refresh)


class Signature:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, signed: Ticket | Access | Refresh) -> str:
        said = KINDS[type(signed)] + base64.urlsafe_b64encode(msgspec.json.encode(signed)).rstrip(b"=")
        return f"{said.decode()}.{self._mac(said)}"

    def read(self, token: bytes, kind: type[S]) -> S | None:
        """What was signed; None for what is no `kind` of ours. How long it is good is for the caller to say."""
        said, _, mac = token.rpartition(b".")
        if not (said.startswith(KINDS[kind]) and hmac.compare_digest(mac, self._mac(said).encode())):
            return None
        fields = said.removeprefix(KINDS[kind])
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(fields + b"=" * (-len(fields) % 4)), type=kind)
        except DECODE_ERRORS:
            # Ours, of a version that had other fields.
            return None

    def proof(self, token: str) -> str:
        """What only this server could tell to whoever began with `token`: 128 bits, in what an `id:` may hold."""
        return self._mac(b"reader " + token.encode())[:22]

    def _mac(self, said: bytes) -> str:
        digest = hmac.digest(self._secret, said, hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
