"""Idempotency keys: the first request that claims a key names its turn, later requests find that turn."""

import hashlib

import msgspec

from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import CLAIMS


class Claim(msgspec.Struct, frozen=True):
    """The turn of an idempotency key, and the SHA-256 of the request body that the key was used with."""

    turn: TurnId
    body_sha256: str


_decoder = msgspec.json.Decoder(Claim)


class Claims:
    """The claims of all tenants. A claim is kept no longer than the log keeps its turn."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, CLAIMS, "the idempotency key")

    async def claim(self, tenant: Tenant, key: str, mine: Claim) -> Claim:
        """Stores `mine` unless `key` is claimed. Returns the valid claim. Raises LogUnavailable.

        The name in the bucket is a hash, because a client's key may have any characters.
        """
        return _decoder.decode(await self._bucket.create(_name(tenant, key), msgspec.json.encode(mine)))

    async def find(self, tenant: Tenant, key: str) -> Claim | None:
        """Returns the claim of `key`, or None, which may be a moment old. Raises LogUnavailable."""
        found = await self._bucket.get(_name(tenant, key))
        return _decoder.decode(found.data) if found is not None else None


def _name(tenant: Tenant, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
