"""API keys in the bucket KEYS: create, revoke, list, and watch changes. Holds hashes of keys, not the keys.

A revoked key keeps its record, so that each reader of the bucket learns of it, whenever it reads.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tailrace.proto.api_key import ApiKey
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.connection import Connection, raise_if_cancelled
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import EVERY_KEY, EVERY_LIVE_KEY, KEYS, KEYS_STREAM

REVOKE_TRIES = 10
READ_TRIES = 10
STALE_WAIT_S = 0.02

_decoder = msgspec.json.Decoder(ApiKey)


class KeyChange(NamedTuple):
    """What is stored of the key `id` at `seq`. No record: the key was deleted, or its record cannot be decoded."""

    seq: Seq
    id: str
    record: ApiKey | None


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
        for _ in range(REVOKE_TRIES):
            if (found := await self._bucket.get(key_id)) is None:
                return None
            try:
                record = _decoder.decode(found.data)
            except DECODE_ERRORS:
                # A record that cannot be decoded authenticates no request.
                return None
            if record.revoked_at is not None:
                return record, True
            record = msgspec.structs.replace(record, revoked_at=now)
            if await self._bucket.update(key_id, msgspec.json.encode(record), found.revision):
                return record, False
        raise LogUnavailable("the key may not be revoked, because other clients are changing it: retry")

    async def list_keys(self) -> list[ApiKey]:
        """Returns every key, including revoked ones. Raises LogUnavailable."""
        _, changes = await self.snapshot()
        return [change.record for change in changes if change.record is not None]

    async def snapshot(self) -> tuple[KeyPosition, list[KeyChange]]:
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
        try:
            info = await self._connection.jetstream.stream_info(KEYS_STREAM)
        except nats.errors.Error as error:
            raise LogUnavailable(f"the API keys cannot be read ({type(error).__name__}): retry") from error
        finally:
            raise_if_cancelled()
        return KeyPosition(info.created, Seq(info.state.last_seq), info.state.messages)

    async def changes_after(self, seq: Seq) -> list[KeyChange]:
        """Returns what is stored after `seq`, oldest first; the latest may be missing. Raises LogUnavailable."""
        changes: list[KeyChange] = []
        is_last = False
        while not is_last:
            messages, is_last = await self._reader.page(EVERY_KEY, Seq(seq + 1))
            changes += [_change(message) for message in messages]
            seq = changes[-1].seq if changes else seq
        return changes

    async def watch(self, on_change: Callable[[KeyChange], Awaitable[None]]) -> Subscription:
        """Calls `on_change` after each change. A live feed: it may miss changes."""

        async def on_message(message: Msg) -> None:
            # Not a message whose reply subject a client has set to a subject of the feed: it was not stored.
            if _stored_subject(message).startswith(EVERY_KEY[:-1]):
                await on_change(_change(message))

        return await self._connection.subscribe(EVERY_LIVE_KEY, on_message)


def _stored_subject(message: Msg | Message) -> str:
    """Returns the subject on which a message was stored that was read or republished; "" if it was not stored."""
    return (message.headers or {}).get("Nats-Subject", "")


def _change(message: Msg | Message) -> KeyChange:
    headers = message.headers or {}
    key_id = _stored_subject(message).rpartition(".")[2]
    try:
        record = _decoder.decode(message.data)
    except DECODE_ERRORS:
        # A deletion, which has no payload, or not a record.
        record = None
    # A record under another name than its id could not be revoked.
    return KeyChange(Seq(int(headers["Nats-Sequence"])), key_id, record if record and record.id == key_id else None)
