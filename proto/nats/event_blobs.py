"""Events that are too large for an entry: stored as chunks in the stream BODIES, with a stub in the entry (R120).

The log client stores and completes them, so all other code sees whole events. The subjects of the chunks contain the
turn, so they can be removed with it. No other turn refers to them.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from tailrace.proto import long_strings, subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Event, EventBlob, StoredEntry
from tailrace.proto.entry_encryption import EncryptionKeys, is_encrypted
from tailrace.proto.errors import BlobUnknown, LogError, LogUnavailable
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import chunks
from tailrace.proto.nats.chunks import CHUNK_BYTES
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.replay import ask_twice
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.subjects import BODIES

logger = structlog.get_logger()

# The entry, its encryption and its headers need some space below nats-server's default `max_payload` of 1 MiB.
INLINE_BYTES_MAX = 1_000_000
# A page ends after this many bytes of events: the caller reads the next page when it is done with them.
PAGE_BYTES_MAX = 32 * 2**20
# The events that one process loads at the same time. Further reads wait, fairly by tenant.
LOADED_BYTES_MAX = 128 * 2**20
# A stub leaves out longer strings and deeper values.
TEXT_CHARS_MAX = 256
LEVELS_MAX = 4
STUB_BYTES_MAX = 16 * 1024
UNKNOWN_STUB = msgspec.Raw(b'{"type":"large_event"}')


def is_stub(stored: StoredEntry) -> bool:
    """Returns whether the entry is one whose event is in a blob."""
    return type(stored.entry) is Event and stored.entry.blob is not None


class EventBlobs:
    """The large events of all turns. Every method raises LogUnavailable after a bounded time."""

    def __init__(self, connection: Connection, keys: EncryptionKeys) -> None:
        """`keys` has the keys of the turns whose entries are read and written."""
        self._connection = connection
        self._leader = Leader(connection, BODIES)
        self._keys = keys
        self._loading = FairSemaphore(LOADED_BYTES_MAX)

    async def put(self, key: TurnKey, entry: Event) -> Event:
        """Stores the event of `entry`; returns the entry with a stub. Raises LogFull, LogUnavailable.

        Storing the same event again changes nothing, and gives the same entry.
        """
        turn, content = subjects.entries(key), bytes(entry.event)
        name = await asyncio.to_thread(_name_of, content, self._keys.valid(turn))
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            subject = subjects.event_chunk(key, name, number)
            chunk = self._keys.encrypt(turn, subject, content[start : start + CHUNK_BYTES])
            await chunks.publish(self._connection, subject, chunk)
        blob = EventBlob(name, len(content))
        return msgspec.structs.replace(entry, event=await _stub_of(content), blob=blob)

    async def complete(self, key: TurnKey, page: Sequence[StoredEntry]) -> list[StoredEntry]:
        """Returns the entries with whole events: at least one, and none after PAGE_BYTES_MAX of large events.

        A stub whose event has expired stays as it is. Raises LogUnavailable.
        """
        whole, size = list[StoredEntry](), 0
        for stored in page:
            entry = stored.entry
            if isinstance(entry, Event) and entry.blob is not None:
                size += entry.blob.bytes
                if whole and size > PAGE_BYTES_MAX:
                    break
                entry = msgspec.structs.replace(entry, event=await self._load(key, entry, entry.blob), blob=None)
                stored = StoredEntry(stored.seq, stored.at, entry)  # noqa: PLW2901  # the same entry
            whole.append(stored)
        return whole

    async def forget(self, key: TurnKey, entry: Event) -> None:
        """Removes the event of `entry` from a turn that was purged while the event was stored. Does not raise."""
        content = bytes(entry.event)
        # Only as far as possible: the other chunks expire.
        with suppress(LogError):
            name = await asyncio.to_thread(_name_of, content, self._keys.valid(subjects.entries(key)))
            for number in range(-(-len(content) // CHUNK_BYTES)):
                # A generator may not purge. An empty message replaces the chunk.
                await chunks.publish(self._connection, subjects.event_chunk(key, name, number), b"")

    async def purge(self, key: TurnKey) -> None:
        """Removes the large events of a turn. Raises LogUnavailable."""
        await chunks.retry(partial(self._leader.purge, subjects.event_chunks(key)))

    async def _load(self, key: TurnKey, entry: Event, blob: EventBlob) -> msgspec.Raw:
        try:
            async with self._loading.reserve(blob.bytes, tenant=key.tenant):
                return msgspec.Raw(await self._read(key, blob))
        except BlobUnknown:
            logger.warning("a large event of a turn has expired: it is left out", turn=key.turn, bytes=blob.bytes)
            return entry.event

    async def _read(self, key: TurnKey, blob: EventBlob) -> bytes:
        read = [await self._read_chunk(key, blob, number) for number in range(-(-blob.bytes // CHUNK_BYTES))]
        content = b"".join(read)
        if len(content) != blob.bytes:
            raise LogUnavailable(f"an event of {key.turn} has {len(content)} bytes instead of {blob.bytes}: retry")
        return content

    async def _read_chunk(self, key: TurnKey, blob: EventBlob, number: int) -> bytes:
        """Returns a chunk in clear. Any follower may answer and lag behind the entry: a missing chunk is read again.

        Raises BlobUnknown when the stream's leader does not have it, either.
        """
        subject, began = subjects.event_chunk(key, blob.name, number), asyncio.get_running_loop().time()
        while not (chunk := await chunks.read(self._connection, subject)):
            waited_s = asyncio.get_running_loop().time() - began
            if waited_s >= chunks.BEHIND_MAX_S:
                found = await ask_twice(partial(self._leader.last, subject))
                if found is None or not found.data:
                    raise BlobUnknown(f"an event of {key.turn} has expired")
            if waited_s >= chunks.TIMEOUT_S:
                raise LogUnavailable(f"an event of {key.turn} cannot be read: retry")
            await asyncio.sleep(chunks.TRY_AGAIN_S)
        if not is_encrypted(chunk):
            return chunk
        return self._keys.decrypt(subjects.entries(key), subject, chunk)


def _name_of(content: bytes, encryption_key: bytes | None) -> str:
    """Returns the name of an event's blob, for a thread. With a key, the name tells nothing about the content."""
    digest = hashlib.sha256(encryption_key or b"")
    digest.update(content)
    return digest.hexdigest()


async def _stub_of(content: bytes) -> msgspec.Raw:
    """Returns an event of the same type with the short fields only, which an older version reads."""
    try:
        rest, strings = await long_strings.replace_long_strings(content)
        stub = msgspec.json.encode(_shorten(msgspec.json.decode(rest), strings, LEVELS_MAX))
    except DECODE_ERRORS:
        return UNKNOWN_STUB
    return msgspec.Raw(stub) if len(stub) <= STUB_BYTES_MAX else UNKNOWN_STUB


def _shorten(value: Any, left_out: dict[str, str], levels: int) -> Any:
    match value:
        case dict() if levels:
            return {
                name: _shorten(inner, left_out, levels - 1)
                for name, inner in value.items()
                if len(name) <= TEXT_CHARS_MAX and name not in left_out
            }
        case dict():
            return {}
        case list():
            return []
        case str() if value in left_out or len(value) > TEXT_CHARS_MAX:
            return ""
        case _:
            return value
