"""API keys and tenants' limits in the bucket KEYS: create, change, list, and watch. Holds hashes of keys, not the keys.

A revoked key keeps its record, so that each reader of the bucket learns of it, whenever it reads.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import msgspec

from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.limits import GivenLimits
from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import Connection, Msg, Subscription
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import EVERY_KEY, EVERY_LIVE_KEY, KEYS, KEYS_STREAM

CHANGE_TRIES = 10
READ_TRIES = 10
STALE_WAIT_S = 0.02
# The name of the record of the keys that are about to be revoked: a JSON list of their ids.
ENDING = "ending"

_decoder = msgspec.json.Decoder(ApiKey)
_ids_decoder = msgspec.json.Decoder(list[str])
_limits_decoder = msgspec.json.Decoder(GivenLimits)


class RecordChange(NamedTuple):
    """A change of the record `id` at `seq`: a key, or the limits of a tenant.

    Without both, the record was deleted, or cannot be decoded.
    """

    seq: Seq
    id: str
    record: ApiKey | None
    limits: GivenLimits | None = None
    is_unreadable: bool = False

    @property
    def tenant(self) -> Tenant | None:
        """The tenant that the limits are for; None for a key."""
        return subjects.tenant_of_limits(self.id)


class KeyPosition(NamedTuple):
    """The last sequence of the bucket. Another `made_at` means a new bucket, whose sequences start again."""

    made_at: datetime | None
    last: Seq
    stored: int


class ApiKeyStore:
    """The API keys of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = DirectReader(connection, KEYS_STREAM)
        self._bucket = Bucket(connection, KEYS, "the API key")

    async def create(self, record: ApiKey) -> None:
        """Stores a new key. After LogUnavailable it may be stored, but its secret has not been shown."""
        await self._bucket.create(record.id, msgspec.json.encode(record))

    async def revoke(self, key_id: str, now: int) -> tuple[ApiKey, bool] | None:
        """Revokes a key. Returns its record and whether it was revoked before, or None if there is no such key.

        Raises LogUnavailable: then it may not be revoked.
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
        """Stores that a key is about to be revoked, if `is_allowed` accepts the keys that were not about to be.

        Returns whether it was stored. The ids of such keys are one record, which each call changes by its revision. So
        of two keys that are revoked at once, the second call knows of the first, whose key may still be valid. If the
        caller then does not revoke the key, later calls do not count it any more; it can still be revoked. Raises
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
        return None if found is None else _decode(found.data)

    async def _change(self, key_id: str, change: Callable[[ApiKey], ApiKey]) -> tuple[ApiKey, ApiKey] | None:
        """Stores the changed record of a key. Returns it as it was and as it is, or None if there is no such key."""
        for _ in range(CHANGE_TRIES):
            # A record that cannot be decoded authenticates no request.
            if (found := await self._bucket.get(key_id)) is None or (record := _decode(found.data)) is None:
                return None
            changed = change(record)
            if changed == record or await self._bucket.update(key_id, msgspec.json.encode(changed), found.revision):
                return record, changed
        raise LogUnavailable("the key may not be changed, because other clients are changing it: retry")

    async def set_limits(
        self, tenant: Tenant, limits: GivenLimits, expected: Mapping[str, float] | None = None
    ) -> bool:
        """Replaces the limits of a tenant. Raises LogUnavailable.

        Returns False, and changes nothing, if they are not those that are `expected`; None: any.
        """
        name = subjects.limits_of_tenant(tenant)
        for _ in range(CHANGE_TRIES):
            found = await self._bucket.get(name)
            if expected is not None and (_limits_decoder.decode(found.data) if found else {}) != expected:
                return False
            if await self._bucket.update(name, msgspec.json.encode(limits), 0 if found is None else found.revision):
                return True
        raise LogUnavailable("the limits may not be changed, because other clients are changing them: retry")

    async def list_limits(self) -> dict[Tenant, GivenLimits]:
        """Returns the limits of all tenants that have some of their own. Raises LogUnavailable."""
        _, changes = await self.snapshot()
        return {change.tenant: change.limits for change in changes if change.tenant is not None and change.limits}

    async def list_keys(self) -> list[ApiKey]:
        """Returns every key, including revoked ones. Raises LogUnavailable."""
        _, changes = await self.snapshot()
        return [change.record for change in changes if change.record is not None]

    async def snapshot(self) -> tuple[KeyPosition, list[RecordChange]]:
        """Returns all stored records and the position up to which they are complete. Raises LogUnavailable."""
        for _ in range(READ_TRIES):
            position = await self.position()
            changes = await self.changes_after(BEFORE_FIRST)
            # The count is the leader's; the server that was read may lag behind it (PROTOCOL R14).
            if len(changes) >= position.stored:
                return position, changes
            await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("the API keys cannot be read, because no server has all of them yet: retry")

    async def position(self) -> KeyPosition:
        """Returns the bucket's position, from its leader. Raises LogUnavailable."""
        info = await self._connection.stream_info(KEYS_STREAM)
        return KeyPosition(info.created, info.state.last_seq, info.state.messages)

    async def changes_after(self, seq: Seq) -> list[RecordChange]:
        """Returns what is stored after `seq`, oldest first; the latest may be missing. Raises LogUnavailable."""
        changes: list[RecordChange] = []
        is_last = False
        while not is_last:
            messages, is_last, _ = await self._reader.page(EVERY_KEY, Seq(seq + 1))
            changes += [_change(message) for message in messages]
            seq = changes[-1].seq if changes else seq
        return changes

    async def watch(self, on_change: Callable[[RecordChange], Awaitable[None]]) -> Subscription:
        """Calls `on_change` after each change. A live feed: it may miss changes. Raises LogUnavailable."""

        async def on_message(message: Msg) -> None:
            # Not a message whose reply subject a client has set to a subject of the feed: it was not stored.
            if _stored_subject(message).startswith(EVERY_KEY[:-1]):
                await on_change(_change(message))

        return await self._connection.subscribe(EVERY_LIVE_KEY, on_message)


def _stored_subject(message: Msg | Message) -> str:
    """Returns the subject on which a message was stored that was read or republished; "" if it was not stored."""
    return (message.headers or {}).get("Nats-Subject", "")


def _change(message: Msg | Message) -> RecordChange:
    headers = message.headers or {}
    name = _stored_subject(message).removeprefix(EVERY_KEY[:-1])
    change = RecordChange(Seq(int(headers["Nats-Sequence"])), name, None)
    if change.tenant is not None:
        with suppress(*DECODE_ERRORS):
            change = change._replace(limits=_limits_decoder.decode(message.data))
    # A record under another name than its id could not be revoked.
    elif (record := _decode(message.data)) and record.id == name:
        change = change._replace(record=record)
    # A deletion has no payload.
    has_record = bool(message.data) and name != ENDING
    return change._replace(is_unreadable=has_record and change.record is None and change.limits is None)


def _decode(data: bytes) -> ApiKey | None:
    """Returns a key's record; None for a deletion, which has no payload, and for what is not a record."""
    try:
        return _decoder.decode(data)
    except DECODE_ERRORS:
        return None
