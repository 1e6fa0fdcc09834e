"""Creates, changes and lists API keys, and tenants' limits and settings, in the bucket KEYS.

A revoked key keeps its record, so that each reader of the bucket learns of it, whenever it reads.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.api_key_store import (
    ENDING,
    READ_TRIES,
    SHARED,
    STALE_WAIT_S,
    ApiKeyStore,
    decode_key,
    decode_limits,
)
from tailrace.gateway.auth.limits import GivenLimits
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.ownership import Users
from tailrace.proto.subjects import KEYS

CHANGE_TRIES = 10

_ids_decoder = msgspec.json.Decoder(list[str])


class StoredRecords(NamedTuple):
    """The keys, including revoked ones; the own limits of tenants; and the tenants whose users are private."""

    keys: list[ApiKey]
    limits: dict[Tenant, GivenLimits]
    private: set[Tenant]


class KeyStore(ApiKeyStore):
    """The API keys of all tenants, with functions that change them."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._bucket = Bucket(connection, KEYS, "the API key")

    async def create(self, record: ApiKey) -> None:
        """Stores a new key. After LogUnavailable the key may be stored, but its secret has not been shown."""
        await self._bucket.create(record.id, msgspec.json.encode(record))

    async def revoke(self, key_id: str, now: int) -> tuple[ApiKey, bool] | None:
        """Revokes a key. Returns its record and whether it was revoked before, or None if there is no such key.

        After LogUnavailable the key may still be valid.
        """

        def revoke(record: ApiKey) -> ApiKey:
            return record if record.revoked_at is not None else msgspec.structs.replace(record, revoked_at=now)

        changed = await self._change(key_id, revoke)
        return changed and (changed[1], changed[0].revoked_at is not None)

    async def replace(self, key_id: str, successor: str, now: int, grace_s: int) -> bool:
        """Stores that `successor` replaces a key, which is revoked (`grace_s` 0), or expires in `grace_s` or sooner.

        Returns False, and changes nothing, if the key has ended or another key replaces it. Raises LogUnavailable.
        """

        def replace(record: ApiKey) -> ApiKey:
            if record.replaced_by is not None or not record.is_good(now):
                return record
            if grace_s == 0:
                return msgspec.structs.replace(record, replaced_by=successor, revoked_at=now)
            until = min(now + grace_s, record.expires_at or now + grace_s)
            return msgspec.structs.replace(record, replaced_by=successor, expires_at=until)

        changed = await self._change(key_id, replace)
        return changed is not None and changed[1].replaced_by == successor

    async def announce_revocation(self, key_id: str, is_allowed: Callable[[list[ApiKey]], bool]) -> bool:
        """Stores that a key is about to be revoked, if `is_allowed` accepts the keys that no earlier call has stored.

        Returns whether it was stored. The ids of such keys are in one record, which each call changes by its revision.
        So of two keys that are revoked at once, the second call knows of the first, whose key may still be valid. If
        the caller then does not revoke the key, later calls do not count it any more; it can still be revoked. Raises
        LogUnavailable.
        """
        for _ in range(READ_TRIES):
            found = await self._bucket.get(ENDING)
            _, changes = await self.snapshot()
            newest = {change.id: change for change in changes}
            # A server that has this revision has all that was stored before, such as earlier revocations.
            if (found.revision if found else None) == (newest[ENDING].seq if ENDING in newest else None):
                keys = {change.id: change.record for change in newest.values() if change.record is not None}
                stored = _ids_decoder.decode(found.data) if found else []
                # A key that is revoked by now stays out of the count without this record.
                ending = {one for one in stored if one in keys and keys[one].revoked_at is None} - {key_id}
                if not is_allowed([record for record in keys.values() if record.id not in ending]):
                    return False
                ids = msgspec.json.encode(sorted({*ending, key_id}))
                if await self._bucket.update(ENDING, ids, found.revision if found else 0):
                    return True
            await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("the key is not revoked, because other clients are revoking keys: retry")

    async def get(self, key_id: str) -> ApiKey | None:
        """Returns the record of a key; None if there is none, or it cannot be decoded. Raises LogUnavailable."""
        found = await self._bucket.get(key_id)
        return None if found is None else decode_key(found.data)

    async def _change(self, key_id: str, change: Callable[[ApiKey], ApiKey]) -> tuple[ApiKey, ApiKey] | None:
        """Stores the changed record of a key. Returns the old and the new record, or None if there is no such key."""
        for _ in range(CHANGE_TRIES):
            # A record that cannot be decoded authenticates no request.
            if (found := await self._bucket.get(key_id)) is None or (record := decode_key(found.data)) is None:
                return None
            changed = change(record)
            if changed == record or await self._bucket.update(key_id, msgspec.json.encode(changed), found.revision):
                return record, changed
        raise LogUnavailable("the key may not be changed, because other clients are changing it: retry")

    async def set_limits(
        self, tenant: Tenant, limits: GivenLimits, expected: Mapping[str, float] | None = None
    ) -> bool:
        """Replaces the limits of a tenant. Raises LogUnavailable.

        Returns False, and changes nothing, if they differ from `expected`, unless that is None.
        """
        name = subjects.limits_of_tenant(tenant)
        for _ in range(CHANGE_TRIES):
            found = await self._bucket.get(name)
            # Limits that cannot be read were listed as none, and are set anew.
            if expected is not None and ((found and decode_limits(found.data)) or {}) != expected:
                return False
            if await self._bucket.update(name, msgspec.json.encode(limits), 0 if found is None else found.revision):
                return True
        raise LogUnavailable("the limits may not be changed, because other clients are changing them: retry")

    async def set_users(self, tenant: Tenant, users: Users, expected: Users | None = None) -> bool:
        """Sets whether the users of a tenant are private. Raises LogUnavailable.

        Returns False, and changes nothing, if the setting differs from `expected`, unless that is None.
        """
        name = subjects.users_of_tenant(tenant)
        for _ in range(CHANGE_TRIES):
            found = await self._bucket.get(name)
            before: Users = "shared" if found is None or found.data in (b"", SHARED) else "private"
            if expected not in (None, before):
                return False
            if await self._bucket.update(name, msgspec.json.encode(users), 0 if found is None else found.revision):
                return True
        raise LogUnavailable("the tenant may not be changed, because other clients are changing it: retry")

    async def read_all(self) -> StoredRecords:
        """Returns all records, by one read of the bucket. Raises LogUnavailable."""
        _, changes = await self.snapshot()
        tenants = ((subjects.tenant_of_users(change.id), change.users) for change in changes)
        return StoredRecords(
            [change.record for change in changes if change.record is not None],
            {change.tenant: change.limits for change in changes if change.tenant is not None and change.limits},
            {tenant for tenant, users in tenants if tenant is not None and users == "private"},
        )

    async def list_private(self) -> set[Tenant]:
        """Returns the tenants whose users are private. Raises LogUnavailable."""
        return (await self.read_all()).private

    async def list_limits(self) -> dict[Tenant, GivenLimits]:
        """Returns the limits of all tenants that have some of their own. Raises LogUnavailable."""
        return (await self.read_all()).limits

    async def list_keys(self) -> list[ApiKey]:
        """Returns every key, including revoked ones. Raises LogUnavailable."""
        return (await self.read_all()).keys
