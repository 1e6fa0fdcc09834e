"""Idempotency keys: the first request that claims a key names its turn, later requests find that turn."""

import asyncio
import hashlib
from typing import NamedTuple

import msgspec

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import STALE_WAIT_S, Bucket
from tailrace.proto.subjects import CLAIMS

REPLACE_TRIES = 10


class Claim(msgspec.Struct, frozen=True):
    """The turn of an idempotency key, and the SHA-256 of the request body that the key was used with."""

    turn: TurnId
    body_sha256: str


class StoredClaim(NamedTuple):
    """A claim of the bucket, with its revision."""

    claim: Claim
    revision: int


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

    async def replace(self, tenant: Tenant, key: str, deleted: Claim, mine: Claim) -> Claim:
        """Replaces the claim `deleted`, whose turn was deleted, by `mine`, unless another request has replaced it.

        Returns the valid claim. Raises LogUnavailable.
        """
        for _ in range(REPLACE_TRIES):
            found = await self.read(tenant, key)
            if found is None:
                return await self.claim(tenant, key, mine)
            if found.claim != deleted:
                return found.claim
            if await self.renew(tenant, key, found, mine) is not None:
                return mine
            # Another request has replaced it, and the server that answered the read lags behind (PROTOCOL R14).
            await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("the idempotency key was claimed again, but no server can read it yet: retry")

    async def find(self, tenant: Tenant, key: str) -> Claim | None:
        """Returns the claim of `key`, or None; may be a moment old. Raises LogUnavailable."""
        found = await self.read(tenant, key)
        return found.claim if found is not None else None

    async def read(self, tenant: Tenant, key: str) -> StoredClaim | None:
        """Like `find`, with the revision."""
        found = await self._bucket.get(_name(tenant, key))
        return StoredClaim(_decoder.decode(found.data), found.revision) if found is not None else None

    async def put(self, tenant: Tenant, key: str, mine: Claim) -> int:
        """Stores `mine`, also if `key` is claimed. Returns its revision. Raises LogUnavailable."""
        return await self._bucket.put(_name(tenant, key), msgspec.json.encode(mine))

    async def renew(self, tenant: Tenant, key: str, found: StoredClaim, mine: Claim | None = None) -> int | None:
        """Stores the claim again, or `mine` in its place. Returns the new revision; None if it has changed since.

        Of concurrent calls with the same claim, one returns a revision. Raises LogUnavailable.
        """
        return await self._bucket.update(_name(tenant, key), msgspec.json.encode(mine or found.claim), found.revision)

    async def remove(self, tenant: Tenant, key: str, revision: int) -> None:
        """Removes the claim that was stored at `revision`, if it has not changed since. Raises LogUnavailable."""
        await self._bucket.remove(_name(tenant, key), revision)


def _name(tenant: Tenant, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
