"""The door to what was lifted out of requests (PROTOCOL R33): put, renew, read. It looks into none of it.

A blob is its chunks, and a mark that is stored after them and tells how long it is. Both are named by tenant and
content, and a subject keeps one message: whoever stores a blob again changes nothing but its age, also while another
does so, or reads it. NATS's object store gives each put new names and takes the old chunks away from under its
readers, and nats-py's waits for ever for one that is gone.

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

from proto import subjects
from proto.blobs import Blob
from proto.errors import BlobUnknown, LogFull, LogUnavailable
from proto.ids import Tenant
from proto.log import ack
from proto.log.connection import Connection
from proto.subjects import BODIES

CHUNK_BYTES = 512 * 1024
TRY_TIMEOUT_S = 2.0
TRY_AGAIN_S = 0.05
# For one chunk, or one mark: a leader is elected in this time (FACTS), and clients of gateways do not wait for longer.
TIMEOUT_S = 10.0

UNKNOWN = "there is no such blob, or it has expired"
FULL = "the store of pictures, documents and long texts is full: they leave it by age, or give BODIES more bytes"


T = TypeVar("T")


class Size(msgspec.Struct, frozen=True):
    """What a mark tells."""

    bytes: int


class Mark(msgspec.Struct, frozen=True):
    """A mark, as the stream's leader shows it."""

    class Message(msgspec.Struct, frozen=True):
        time: datetime
        data: bytes

    message: Message


_size = msgspec.json.Decoder(Size)
_mark = msgspec.json.Decoder(Mark)


class Bodies:
    """Safe to share in a process. Each call raises LogUnavailable when NATS does not answer in bounded time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._life: timedelta | None = None

    async def put(self, tenant: Tenant, lifted: Mapping[str, bytes]) -> None:
        """Stores what is not there, or is past half its life; raises LogFull."""
        for sha256, content in lifted.items():
            try:
                is_needed = await self._ends_soon(await self._marked(tenant, sha256))
            except BlobUnknown:
                is_needed = True
            if is_needed:
                await self._store(tenant, sha256, content)

    async def renew(self, tenant: Tenant, blobs: Iterable[Blob]) -> None:
        """Stores again what is past half its life; raises BlobUnknown for what is gone, LogFull.

        So a conversation that goes on keeps its pictures.
        """
        for blob in blobs:
            if await self._ends_soon(await self._marked(tenant, blob.sha256)):
                await self._store(tenant, blob.sha256, await self.read(tenant, blob))

    async def size(self, tenant: Tenant, sha256: str) -> int:
        """How many bytes the blob has; raises BlobUnknown."""
        return _size.decode((await self._marked(tenant, sha256)).data).bytes

    async def read(self, tenant: Tenant, blob: Blob) -> bytes:
        """The whole blob; raises BlobUnknown."""
        if await self.size(tenant, blob.sha256) != blob.bytes:
            raise BlobUnknown(UNKNOWN)
        return b"".join([chunk async for chunk in self.chunks(tenant, blob)])

    async def chunks(self, tenant: Tenant, blob: Blob) -> AsyncGenerator[bytes, None]:
        """The chunks of a blob of that size. Raises LogUnavailable, after the last one, if they are not the blob's."""
        digest = hashlib.sha256()
        for number in range(-(-blob.bytes // CHUNK_BYTES)):
            chunk = await self._chunk(subjects.chunk(tenant, blob.sha256, number))
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != blob.sha256:
            raise LogUnavailable("a blob's chunks are not what its name says")

    async def _ends_soon(self, marked: Mark.Message) -> bool:
        return datetime.now(UTC) - marked.time > await self._half_life()

    async def _store(self, tenant: Tenant, sha256: str, content: bytes) -> None:
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            await self._publish(subjects.chunk(tenant, sha256, number), content[start : start + CHUNK_BYTES])
        await self._publish(subjects.blob(tenant, sha256), msgspec.json.encode(Size(len(content))))

    async def _publish(self, subject: str, payload: bytes) -> None:
        """Stored twice is stored once: what is unclear is simply sent again."""

        def stored(reply: Msg) -> bool | None:
            error = ack.decode(reply.data).error
            if error is not None and error.err_code in ack.FULL_CODES:
                raise LogFull(FULL)
            return True if error is None else None

        await self._ask(subject, payload, stored)

    async def _marked(self, tenant: Tenant, sha256: str) -> Mark.Message:
        """Asks the stream's leader, who is never behind its own acknowledgements; raises BlobUnknown."""

        def shown(reply: Msg) -> Mark.Message | None:
            error = ack.decode(reply.data).error
            if error is not None and error.err_code == ack.NOT_FOUND:
                raise BlobUnknown(UNKNOWN)
            return _mark.decode(reply.data).message if error is None else None

        query = msgspec.json.encode({"last_by_subj": subjects.blob(tenant, sha256)})
        return await self._ask(f"$JS.API.STREAM.MSG.GET.{BODIES}", query, shown)

    async def _chunk(self, subject: str) -> bytes:
        """Any follower may answer, and may be behind the mark: what is not there yet is asked for again."""

        def held(reply: Msg) -> bytes | None:
            return None if "Status" in (reply.headers or {}) else reply.data

        return await self._ask(f"$JS.API.DIRECT.GET.{BODIES}.{subject}", b"", held)

    async def _ask(self, subject: str, payload: bytes, answer: Callable[[Msg], T | None]) -> T:
        """What `answer` makes of the first reply that it makes something of; it is asked for until then."""
        why = "it is behind, or has no leader"
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            try:
                reply = await self._connection.request(subject, payload, timeout_s=TRY_TIMEOUT_S)
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
