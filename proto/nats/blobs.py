"""The door to what was lifted out of requests (PROTOCOL R33): put, renew, read, purge. It looks into none of it.

A blob is its chunks, and a mark that is stored after them and tells how long it is. Both are named by tenant and
content, and a subject keeps one message: whoever stores a blob again changes nothing but its age, also while another
does so, or reads it. NATS's object store gives each put new names and takes the old chunks away from under its
readers, and nats-py's waits for ever for one that is gone.

A mark is stored only where the one before it is still the one that its writer saw before the first chunk. So what is
purged, which is condemned first, loses the chunks of that life, and none of the next.

A chunk is well below what any server takes, and the next waits for its acknowledgement: nothing of a client's size is
ever published, and the appends of the turns that share the connection pass by.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg

from tailrace.proto import subjects
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown, LogFull, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.replay import WOKEN_WAIT_S
from tailrace.proto.subjects import BODIES

CHUNK_BYTES = 512 * 1024
TRY_TIMEOUT_S = 2.0
TRY_AGAIN_S = 0.05
# Of a blob that others store or condemn at the same time.
TRIES_MAX = 5
# Nobody was seen to be behind for longer. A doomed blob's chunks are on their way out, or have expired before its mark.
BEHIND_MAX_S = 1.0
# For one chunk, or one mark: a leader is elected in this time, and clients of gateways do not wait for longer.
TIMEOUT_S = 10.0

UNKNOWN = "there is no such blob, or it has expired"
CONTENDED = "a picture, document or long text is stored and deleted at the same time, again and again"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
FULL = "the store of pictures, documents and long texts is full: they leave it by age, or give BODIES more bytes"


T = TypeVar("T")


class Size(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a mark tells. One that is doomed may be read, and whoever refers to it stores all of it again."""

    bytes: int
    """0 while it is stored for the first time: no such blob is there yet."""
    is_doomed: bool = False


class Mark(msgspec.Struct, frozen=True):
    """A mark, as the stream's leader shows it; or that there is none."""

    class Message(msgspec.Struct, frozen=True):
        seq: Seq
        time: datetime
        data: bytes

        @property
        def size(self) -> Size:
            return _size.decode(self.data)

    message: Message | None = None


_size = msgspec.json.Decoder(Size)
_mark = msgspec.json.Decoder(Mark)


class BlobStore:
    """Safe to share in a process. Each call raises LogUnavailable when NATS does not answer in bounded time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._life: timedelta | None = None

    async def put(self, tenant: Tenant, lifted: Mapping[str, bytes]) -> None:
        """Stores what is not there, or is past half its life; raises LogFull."""
        for sha256, content in lifted.items():
            for _ in range(TRIES_MAX):
                marked = await self._last(tenant, sha256)
                if marked is not None and not await self._ends_soon(marked):
                    break
                # "There is none" is no fence: it is true again after others have stored and purged the blob.
                seen = marked.seq if marked else await self._mark(tenant, sha256, Size(0), BEFORE_FIRST)
                if seen is not None and await self._store(tenant, sha256, content, seen):
                    break
            else:
                raise LogUnavailable(CONTENDED)

    async def renew(self, tenant: Tenant, blobs: Iterable[Blob]) -> None:
        """Stores again what is past half its life; raises BlobUnknown for what is gone, LogFull.

        So a conversation that goes on keeps its pictures.
        """
        for blob in blobs:
            if await self._ends_soon(await self._marked(tenant, blob.sha256)):
                await self.put(tenant, {blob.sha256: await self.read(tenant, blob)})

    async def mark_deleted(self, tenant: Tenant, sha256: str) -> Seq | None:
        """Has whoever refers to the blob from now on store all of it again; returns what `purge` is told.

        None when there is no such blob.
        """
        for _ in range(TRIES_MAX):
            marked = await self._last(tenant, sha256)
            if marked is None or not marked.size.bytes:
                return None
            if marked.size.is_doomed:
                return marked.seq
            doomed = Size(marked.size.bytes, is_doomed=True)
            try:
                seq = await self._mark(tenant, sha256, doomed, marked.seq)
            except LogFull:
                # To the byte: a sign is longer than what it takes the place of. Who comes in this very moment sees
                # none, and its turn fails with `blob_expired`; but a full store must not be kept from being emptied.
                return marked.seq
            if seq is not None:
                return seq
        raise LogUnavailable(CONTENDED)

    async def purge(self, tenant: Tenant, sha256: str, condemned: Seq) -> None:
        """Removes all of what was condemned, and nothing of what was stored again after that."""
        await self._purge(subjects.chunks(tenant, sha256), condemned)
        await self._purge(subjects.blob(tenant, sha256), condemned)

    async def size(self, tenant: Tenant, sha256: str) -> int:
        """How many bytes the blob has; raises BlobUnknown."""
        return (await self._marked(tenant, sha256)).size.bytes

    async def read(self, tenant: Tenant, blob: Blob) -> bytes:
        """The whole blob; raises BlobUnknown."""
        if await self.size(tenant, blob.sha256) != blob.bytes:
            raise BlobUnknown(UNKNOWN)
        return b"".join([chunk async for chunk in self.chunks(tenant, blob)])

    async def chunks(self, tenant: Tenant, blob: Blob) -> AsyncGenerator[bytes, None]:
        """The chunks of a blob of that size; raises BlobUnknown when it is purged meanwhile.

        Raises LogUnavailable, after the last one, if they are not the blob's.
        """
        digest = hashlib.sha256()
        for number in range(-(-blob.bytes // CHUNK_BYTES)):
            chunk = await self._chunk(tenant, blob.sha256, number)
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != blob.sha256:
            raise LogUnavailable("a blob's chunks are not what its name says")

    async def _ends_soon(self, marked: Mark.Message) -> bool:
        if marked.size.is_doomed or not marked.size.bytes:
            return True
        return datetime.now(UTC) - marked.time > await self._half_life()

    async def _store(self, tenant: Tenant, sha256: str, content: bytes, seen: Seq) -> bool:
        """Stores a blob whose last mark was `seen`; False when there is another by now, and this may be in pieces."""
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            await self._publish(subjects.chunk(tenant, sha256, number), content[start : start + CHUNK_BYTES])
        return await self._mark(tenant, sha256, Size(len(content)), seen) is not None

    async def _mark(self, tenant: Tenant, sha256: str, size: Size, seen: Seq) -> Seq | None:
        """The mark's sequence; None when the one that was `seen` is not the last. That may be this very one."""
        payload = msgspec.json.encode(size)
        return await self._publish(subjects.blob(tenant, sha256), payload, {EXPECTED: str(seen)}) or None

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> Seq:
        """Stored twice is stored once: what is unclear is simply sent again. 0 when the fence did not hold."""

        def stored(reply: Msg) -> Seq | None:
            answer = pub_ack.decode(reply.data)
            if answer.error is None:
                return answer.seq
            if answer.error.err_code in pub_ack.FULL_CODES:
                raise LogFull(FULL)
            return BEFORE_FIRST if headers is not None and answer.error.err_code in pub_ack.FENCE_CODES else None

        return await self._ask(subject, payload, stored, headers)

    async def _purge(self, subject: str, upto: Seq) -> None:
        query = msgspec.json.encode({"filter": subject, "seq": upto + 1})

        def purged(reply: Msg) -> bool | None:
            return True if pub_ack.decode(reply.data).error is None else None

        await self._ask(f"$JS.API.STREAM.PURGE.{BODIES}", query, purged)

    async def _marked(self, tenant: Tenant, sha256: str) -> Mark.Message:
        """The blob's mark; raises BlobUnknown, once that was said twice."""
        for wait_s in (WOKEN_WAIT_S, 0.0):
            marked = await self._last(tenant, sha256)
            if marked is not None and marked.size.bytes:
                return marked
            await asyncio.sleep(wait_s)
        raise BlobUnknown(UNKNOWN)

    async def _last(self, tenant: Tenant, sha256: str) -> Mark.Message | None:
        """The mark as it stands: asked of the stream's leader, who is never behind its own acknowledgements."""

        def shown(reply: Msg) -> Mark | None:
            error = pub_ack.decode(reply.data).error
            if error is None:
                return _mark.decode(reply.data)
            return Mark() if error.err_code == pub_ack.NOT_FOUND else None

        query = msgspec.json.encode({"last_by_subj": subjects.blob(tenant, sha256)})
        return (await self._ask(f"$JS.API.STREAM.MSG.GET.{BODIES}", query, shown)).message

    async def _chunk(self, tenant: Tenant, sha256: str, number: int) -> bytes:
        """Any follower may answer, and may be behind the mark: what is not there yet is asked for again."""

        def held(reply: Msg) -> bytes:
            return b"" if "Status" in (reply.headers or {}) else reply.data

        begun = asyncio.get_running_loop().time()
        subject = subjects.chunk(tenant, sha256, number)
        while not (chunk := await self._ask(f"$JS.API.DIRECT.GET.{BODIES}.{subject}", b"", held)):
            is_doomed = (await self._marked(tenant, sha256)).size.is_doomed
            waited_s = asyncio.get_running_loop().time() - begun
            if is_doomed and waited_s >= BEHIND_MAX_S:
                raise BlobUnknown(UNKNOWN)
            if waited_s >= TIMEOUT_S:
                raise LogUnavailable("a blob's chunk cannot be read")
            await asyncio.sleep(TRY_AGAIN_S)
        return chunk

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        answer: Callable[[Msg], T | None],
        headers: dict[str, str] | None = None,
    ) -> T:
        """What `answer` makes of the first reply that it makes something of; it is asked for until then."""
        why = "it is behind, or has no leader"
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            try:
                reply = await self._connection.request(subject, payload, timeout_s=TRY_TIMEOUT_S, headers=headers)
            except LogUnavailable as error:
                why = str(error)
            else:
                if (answered := answer(reply)) is not None:
                    return answered
            await asyncio.sleep(TRY_AGAIN_S)
        raise LogUnavailable(f"the store of pictures and long texts does not answer: {why}")

    async def _half_life(self) -> timedelta:
        if self._life is None:
            try:
                config = (await self._connection.jetstream.stream_info(BODIES)).config
            except nats.errors.Error as error:
                raise LogUnavailable(f"the stream {BODIES} does not answer: {type(error).__name__}") from error
            # A stream without an age keeps what it has.
            self._life = timedelta(seconds=config.max_age) if config.max_age else timedelta.max
        return self._life / 2
