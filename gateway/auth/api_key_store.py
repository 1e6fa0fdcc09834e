"""Reads API keys, and tenants' limits and settings, in the bucket KEYS, and watches them. It holds only hashes of keys.

A revoked key keeps its record, so that each reader of the bucket learns of it, whenever it reads.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple

import msgspec

from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.limits import NAMES, GivenLimits, parse_limits
from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import Connection, Msg, Subscription
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.ownership import Users
from tailrace.proto.subjects import EVERY_KEY, EVERY_LIVE_KEY, KEYS_STREAM

READ_TRIES = 10
STALE_WAIT_S = 0.02
# The name of the record of the keys that are about to be revoked: a JSON list of their ids.
ENDING = "ending"

_decoder = msgspec.json.Decoder(ApiKey)
_limits_decoder = msgspec.json.Decoder(GivenLimits)
SHARED = msgspec.json.encode("shared")


class RecordChange(NamedTuple):
    """A change of the record `id` at `seq`: a key, the limits of a tenant, or whether its users are private.

    With none of them, the record was deleted, or cannot be decoded.
    """

    seq: Seq
    id: str
    record: ApiKey | None
    limits: GivenLimits | None = None
    users: Users | None = None
    is_unreadable: bool = False

    @property
    def tenant(self) -> Tenant | None:
        """The tenant that the limits are for; None for a key."""
        return subjects.tenant_of_limits(self.id)


class KeyPosition(NamedTuple):
    """The last sequence of the bucket. A different `made_at` means a new bucket, whose sequences start again."""

    made_at: datetime | None
    last: Seq
    stored: int


class ApiKeyStore:
    """The API keys of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = DirectReader(connection, KEYS_STREAM)

    async def snapshot(self) -> tuple[KeyPosition, list[RecordChange]]:
        """Returns all stored records and the position up to which they are complete. Raises LogUnavailable."""
        for _ in range(READ_TRIES):
            position = await self.position()
            changes = await self.changes_after(BEFORE_FIRST)
            # The count is the leader's; the server that was read may lag behind the leader (PROTOCOL R14).
            if len(changes) >= position.stored:
                return position, changes
            await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("the API keys cannot be read, because no server has all of them yet: retry")

    async def position(self) -> KeyPosition:
        """Returns the bucket's position, from its leader. Raises LogUnavailable."""
        info = await self._connection.stream_info(KEYS_STREAM)
        return KeyPosition(info.created, info.state.last_seq, info.state.messages)

    async def changes_after(self, seq: Seq) -> list[RecordChange]:
        """Returns the changes that are stored after `seq`, oldest first; the latest may be missing.

        Raises LogUnavailable.
        """
        changes: list[RecordChange] = []
        is_last = False
        while not is_last:
            messages, is_last, _ = await self._reader.page(EVERY_KEY, Seq(seq + 1))
            changes += [to_change(message) for message in messages]
            seq = changes[-1].seq if changes else seq
        return changes

    async def watch(self, on_change: Callable[[RecordChange], Awaitable[None]]) -> Subscription:
        """Calls `on_change` after each change. A live feed: it may miss changes. Raises LogUnavailable."""

        async def on_message(message: Msg) -> None:
            # A message that was not stored comes here if a client has named this feed as its reply subject: skip it.
            if _stored_subject(message).startswith(EVERY_KEY[:-1]):
                await on_change(to_change(message))

        return await self._connection.subscribe(EVERY_LIVE_KEY, on_message)


def _stored_subject(message: Msg | Message) -> str:
    """Returns the subject on which a read or republished message was stored; "" if it was not stored."""
    return (message.headers or {}).get("Nats-Subject", "")


def to_change(message: Msg | Message) -> RecordChange:
    """Returns the change that a message of the bucket, read or republished, means (PROTOCOL R38)."""
    headers = message.headers or {}
    name = _stored_subject(message).removeprefix(EVERY_KEY[:-1])
    change = RecordChange(Seq(int(headers["Nats-Sequence"])), name, None)
    if change.tenant is not None:
        change = change._replace(limits=decode_limits(message.data))
    elif subjects.tenant_of_users(name) is not None:
        # A record that cannot be read must not show a user's turns to the others.
        change = change._replace(users="shared" if message.data in (b"", SHARED) else "private")
    # A record under another name than its id could not be revoked.
    elif (record := decode_key(message.data)) and record.id == name:
        change = change._replace(record=record)
    # A deletion has no payload.
    has_record = bool(message.data) and name != ENDING
    is_read = (change.record, change.limits, change.users) != (None, None, None)
    return change._replace(is_unreadable=has_record and not is_read)


def decode_limits(data: bytes) -> GivenLimits | None:
    """Returns the limits of a tenant, none for a deletion; None for other bytes, and for limits that are not valid."""
    try:
        limits = _limits_decoder.decode(data or b"{}")
        # A newer version may have stored limits that this one does not know.
        parse_limits({name: limit for name, limit in limits.items() if name in NAMES})
    except DECODE_ERRORS:
        return None
    return limits


def decode_key(data: bytes) -> ApiKey | None:
    """Returns a key's record; None for a deletion, which has no payload, and for other bytes."""
    try:
        return _decoder.decode(data)
    except DECODE_ERRORS:
        return None
