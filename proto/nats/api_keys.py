"""The door to the bucket KEYS: make, revoke, and hear of API keys. It knows hashes of them, and judges nobody.

A revoked key keeps its record, so that everybody who reads the bucket learns of it, whenever that is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.kv import KeyValue

from tailrace.proto.api_key import ApiKey
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.connection import Connection, raise_if_cancelled
from tailrace.proto.nats.direct_get import DirectReader, is_stored_below, stored_subject
from tailrace.proto.subjects import EVERY_KEY, EVERY_LIVE_KEY, KEYS, KEYS_STREAM

TRIES = 10
STALE_WAIT_S = 0.02

_decoder = msgspec.json.Decoder(ApiKey)


class KeyChange(NamedTuple):
    """What is stored of the key `id` at `seq`; no record: it was deleted, or nobody can read it."""

    seq: Seq
    id: str
    record: ApiKey | None


class KeyPosition(NamedTuple):
    """How far the bucket has got. Another `made_at` is another bucket, whose numbers mean something else."""

    made_at: datetime | None
    last: Seq
    stored: int


class ApiKeyStore:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reads = DirectReader(connection, KEYS_STREAM)
        self._bucket: KeyValue | None = None

    async def create(self, record: ApiKey) -> None:
        """Stores a new key. Raises LogUnavailable, after which it may be stored: nobody has been shown its secret."""
        try:
            await (await self._open()).create(record.id, msgspec.json.encode(record))
        except nats.errors.Error as error:
            raise LogUnavailable(f"the key cannot be stored: {type(error).__name__}") from error

    async def revoke(self, key_id: str, now: int) -> tuple[ApiKey, bool] | None:
        """Revokes a key, once: its record then, and whether it was revoked already; None when there is no such key.

        Raises LogUnavailable.
        """
        for _ in range(TRIES):
            try:
                bucket = await self._open()
                entry = await bucket.get(key_id)
                record = _decoder.decode(entry.value or b"")
                was_before = record.revoked_at is not None
                if not was_before:
                    record = msgspec.structs.replace(record, revoked_at=now)
                    await bucket.update(key_id, msgspec.json.encode(record), last=entry.revision)
            except nats.js.errors.KeyWrongLastSequenceError:
                # Somebody else has just done something to it.
                continue
            except (nats.js.errors.KeyNotFoundError, nats.js.errors.InvalidKeyError, *DECODE_ERRORS):
                # What nobody can read opens nothing.
                return None
            except nats.errors.Error as error:
                raise LogUnavailable(f"the key may not be revoked: {type(error).__name__}. Try again") from error
            return record, was_before
        raise LogUnavailable("the key may not be revoked: others are changing it. Try again")

    async def list_keys(self) -> list[ApiKey]:
        """Every key there is, the revoked ones too. Raises LogUnavailable."""
        _, changes = await self.snapshot()
        return [change.record for change in changes if change.record is not None]

    async def snapshot(self) -> tuple[KeyPosition, list[KeyChange]]:
        """All that is stored, and where that was. Raises LogUnavailable."""
        for _ in range(TRIES):
            place = await self.position()
            changes = await self.changes_after(BEFORE_FIRST)
            # The leader has counted them. Who was read may be behind it (PROTOCOL R14).
            if len(changes) >= place.stored:
                return place, changes
            await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("the keys cannot be read: no server has all of them yet")

    async def position(self) -> KeyPosition:
        """How far the bucket has got, as its leader says. Raises LogUnavailable."""
        try:
            info = await self._connection.jetstream.stream_info(KEYS_STREAM)
        except nats.errors.Error as error:
            raise LogUnavailable(f"the keys cannot be read: {type(error).__name__}") from error
        finally:
            raise_if_cancelled()
        return KeyPosition(info.created, Seq(info.state.last_seq), info.state.messages)

    async def changes_after(self, seq: Seq) -> list[KeyChange]:
        """What is stored after `seq`, oldest first; maybe not the latest yet. Raises LogUnavailable."""
        changes: list[KeyChange] = []
        is_last = False
        while not is_last:
            messages, is_last = await self._reads.page(EVERY_KEY, Seq(seq + 1))
            changes += [_change(message) for message in messages]
            seq = changes[-1].seq if changes else seq
        return changes

    async def watch(self, heard: Callable[[KeyChange], Awaitable[None]]) -> Subscription:
        """Calls `heard` with what has just been stored. It may miss, as every live feed does."""

        async def hear_message(message: Msg) -> None:
            if is_stored_below(message, EVERY_KEY):
                await heard(_change(message))

        return await self._connection.subscribe(EVERY_LIVE_KEY, hear_message)

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._connection.jetstream.key_value(KEYS)
        return self._bucket


def _change(message: Msg) -> KeyChange:
    headers = message.headers or {}
    key_id = stored_subject(message).rpartition(".")[2]
    try:
        record = _decoder.decode(message.data)
    except DECODE_ERRORS:
        # Of a deletion, which has no payload, or of nobody that we know.
        record = None
    # A name that is not the record's own would be revoked in vain.
    return KeyChange(Seq(int(headers["Nats-Sequence"])), key_id, record if record and record.id == key_id else None)
