"""Blobs in the stream BODIES (PROTOCOL R33): put, renew, read, mark as deleted, purge.

A blob is a number of chunks and a mark, which is stored after them and has the blob's length. Subjects consist of the
tenant and the content's SHA-256 and keep one message, so that storing a blob again only renews its age, also while
another process stores or reads it. (NATS's object store gives each put new names and deletes the old chunks under its
readers, and nats-py's client then waits for ever.)

A mark is stored with a fence: the mark that its writer saw before the first chunk must still be the last. So a purge,
which marks the blob as deleted first, removes only chunks that were stored before that.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

import msgspec

from tailrace.proto import subjects
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown, LogFull, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import chunks
from tailrace.proto.nats.chunks import BEHIND_MAX_S, CHUNK_BYTES, TRY_AGAIN_S
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.replay import WOKEN_WAIT_S
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import BODIES

# For a blob that other processes store or mark as deleted at the same time.
TRIES_MAX = 5

UNKNOWN = "the blob does not exist or has expired: send its content again"
CONTENDED = "a picture, document or long text is being stored and deleted at the same time: retry"


class MarkContent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A mark's content. A blob marked as deleted may be read; a new request stores it again."""

    bytes: int
    """The length of the blob; 0 while it does not exist, because it is being stored for the first time, or purged."""
    is_deleted: bool = msgspec.field(default=False, name="is_doomed")


class Mark(NamedTuple):
    """A blob's last mark."""

    seq: Seq
    time: datetime
    content: MarkContent


_decode_content = msgspec.json.Decoder(MarkContent).decode


class BlobStore:
    """All blobs. May be shared within a process. Every method raises LogUnavailable after a bounded time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._leader = Leader(connection, BODIES)
        self._lifetime: timedelta | None = None

    async def put(self, tenant: Tenant, contents: Mapping[str, bytes], *, is_renewed: bool = False) -> None:
        """Stores the blobs that do not exist or are past half of their lifetime; all if `is_renewed`. Raises LogFull.

        `contents` has the blobs by SHA-256. A renewed blob has its whole lifetime before it. Raises LogUnavailable.
        """
        for sha256, content in contents.items():
            for _ in range(TRIES_MAX):
                marked = await self._last(tenant, sha256)
                if marked is not None and not is_renewed and not await self._ends_soon(marked):
                    break
                # Sequence 0 is not a safe fence: it is valid again after others have stored and purged the blob.
                seen = marked.seq if marked else await self._store_mark(tenant, sha256, MarkContent(0), BEFORE_FIRST)
                if seen is not None and await self._store_blob(tenant, sha256, content, seen):
                    break
            else:
                raise LogUnavailable(CONTENDED)

    async def renew(self, tenant: Tenant, blobs: Iterable[Blob]) -> None:
        """Stores blobs again that are past half of their lifetime. Raises BlobUnknown, LogFull.

        So a conversation that continues keeps its pictures.
        """
        for blob in blobs:
            if await self._ends_soon(await self._require_mark(tenant, blob.sha256)):
                await self.put(tenant, {blob.sha256: await self.read(tenant, blob)})

    async def mark_deleted(self, tenant: Tenant, sha256: str) -> Seq | None:
        """Marks the blob as deleted: later requests store it again. Returns the sequence for `purge`.

        Returns None if the blob does not exist. Raises LogUnavailable.
        """
        for _ in range(TRIES_MAX):
            marked = await self._last(tenant, sha256)
            if marked is None:
                return None
            if marked.content.is_deleted:
                return marked.seq
            if not marked.content.bytes:
                return None
            deleted = MarkContent(marked.content.bytes, is_deleted=True)
            try:
                seq = await self._store_mark(tenant, sha256, deleted, marked.seq)
            except LogFull:
                # The new mark is longer than the old one, and the stream is full to the byte. Purging goes on, because
                # it frees space; a request at this moment does not see the mark and fails with `blob_expired`.
                return marked.seq
            if seq is not None:
                return seq
        raise LogUnavailable(CONTENDED)

    async def purge(self, tenant: Tenant, sha256: str, marked_at: Seq) -> None:
        """Removes the chunks and the mark up to `marked_at`, and nothing that was stored after it.

        Raises LogUnavailable.
        """
        await self._purge(subjects.chunks(tenant, sha256), marked_at)
        # After a SIGKILL, nats-server has the mark again that the purged mark had replaced: a removal by
        # `max_msgs_per_subject` leaves no trace in its file. Therefore two marks are stored, which both say that the
        # blob does not exist.
        for _ in range(2):
            seq = await self._store_mark(tenant, sha256, MarkContent(0, is_deleted=True), marked_at)
            if seq is None:
                return
            marked_at = seq
        await self._purge(subjects.blob(tenant, sha256), marked_at)

    async def size(self, tenant: Tenant, sha256: str) -> int:
        """Returns the blob's length in bytes. Raises BlobUnknown."""
        return (await self._require_mark(tenant, sha256)).content.bytes

    async def read(self, tenant: Tenant, blob: Blob) -> bytes:
        """Returns the whole blob. Raises BlobUnknown."""
        if await self.size(tenant, blob.sha256) != blob.bytes:
            raise BlobUnknown(UNKNOWN)
        return b"".join([chunk async for chunk in self.chunks(tenant, blob)])

    async def chunks(self, tenant: Tenant, blob: Blob) -> AsyncGenerator[bytes, None]:
        """Yields the blob's chunks. Raises BlobUnknown if it is purged meanwhile.

        Raises LogUnavailable after the last chunk if their hash is not the blob's.
        """
        digest = hashlib.sha256()
        for number in range(-(-blob.bytes // CHUNK_BYTES)):
            chunk = await self._chunk(tenant, blob.sha256, number)
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != blob.sha256:
            raise LogUnavailable(f"the chunks of blob {blob.sha256} do not have its hash: retry")

    async def _ends_soon(self, marked: Mark) -> bool:
        if marked.content.is_deleted or not marked.content.bytes:
            return True
        return datetime.now(UTC) - marked.time > await self.lifetime() / 2

    async def _store_blob(self, tenant: Tenant, sha256: str, content: bytes, seen: Seq) -> bool:
        """Stores a blob whose last mark was `seen`. Returns False if there is a newer mark: the blob may be partial."""
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            await self._publish(subjects.chunk(tenant, sha256, number), content[start : start + CHUNK_BYTES])
        return await self._store_mark(tenant, sha256, MarkContent(len(content)), seen) is not None

    async def _store_mark(self, tenant: Tenant, sha256: str, content: MarkContent, seen: Seq) -> Seq | None:
        """Stores a mark. Returns its sequence, or None if `seen` is not the last mark: perhaps this one is stored."""
        payload = msgspec.json.encode(content)
        return await self._publish(subjects.blob(tenant, sha256), payload, seen) or None

    async def _publish(self, subject: str, payload: bytes, fence: Seq | None = None) -> Seq:
        """See chunks.publish."""
        return await chunks.publish(self._connection, subject, payload, fence)

    async def _purge(self, subject: str, upto: Seq) -> None:
        await chunks.retry(partial(self._leader.purge, subject, upto))

    async def _require_mark(self, tenant: Tenant, sha256: str) -> Mark:
        """Returns the blob's mark. Raises BlobUnknown after two reads without one."""
        for wait_s in (WOKEN_WAIT_S, 0.0):
            marked = await self._last(tenant, sha256)
            if marked is not None and marked.content.bytes:
                return marked
            await asyncio.sleep(wait_s)
        raise BlobUnknown(UNKNOWN)

    async def _last(self, tenant: Tenant, sha256: str) -> Mark | None:
        """Returns the blob's last mark from the stream's leader, which never lags behind its acknowledgements."""
        found = await chunks.retry(partial(self._leader.last, subjects.blob(tenant, sha256)))
        return None if found is None else Mark(found.seq, found.time, _decode_content(found.data))

    async def _chunk(self, tenant: Tenant, sha256: str, number: int) -> bytes:
        """Reads one chunk. Any follower may answer and lag behind the mark, so a missing chunk is read again."""
        subject = subjects.chunk(tenant, sha256, number)
        started = asyncio.get_running_loop().time()
        while not (chunk := await chunks.read(self._connection, subject)):
            is_deleted = (await self._require_mark(tenant, sha256)).content.is_deleted
            waited_s = asyncio.get_running_loop().time() - started
            if is_deleted and waited_s >= BEHIND_MAX_S:
                raise BlobUnknown(UNKNOWN)
            if waited_s >= chunks.TIMEOUT_S:
                raise LogUnavailable(f"a chunk of blob {sha256} cannot be read: retry")
            await asyncio.sleep(TRY_AGAIN_S)
        return chunk

    async def lifetime(self) -> timedelta:
        """Returns how long a blob is kept; timedelta.max if blobs never expire. Raises LogUnavailable."""
        if self._lifetime is None:
            max_age = (await self._connection.stream_info(BODIES)).config.max_age
            # Without max_age, blobs never expire.
            self._lifetime = timedelta(microseconds=max_age // 1000) if max_age else timedelta.max
        return self._lifetime
