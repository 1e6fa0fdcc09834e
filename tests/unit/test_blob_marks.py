"""The order of messages and the fences by which blobs are stored, renewed and purged (PROTOCOL R34)."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import pytest

from tailrace.proto.blobs import Blob
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import BlobStore, Connection
from tailrace.proto.nats.chunks import CHUNK_BYTES
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.pub_ack import FENCE_CODES, NOT_FOUND, Ack
from tailrace.proto.nats.stream_info import StreamConfig, StreamInfo, StreamState

ALICE = Tenant("alice")
CONTENT = b"x" * (CHUNK_BYTES + 1)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MARK, FIRST, SECOND = (f"bodies.alice.{SHA256}{end}" for end in ("", ".0", ".1"))
WHOLE = {"bytes": len(CONTENT)}
LIFETIME = timedelta(days=7)


class Stored(NamedTuple):
    seq: Seq
    data: bytes
    at: datetime


class Bodies:
    """A connection to a server whose stream BODIES keeps the last message of each subject."""

    def __init__(self) -> None:
        self.messages: dict[str, Stored] = {}
        self.published: list[tuple[str, Any, Seq | None]] = []
        """Each subject, payload (of a chunk: its length) and fence that was accepted."""
        self.now = datetime.now(UTC)
        self.before_store: Callable[[], None] = lambda: None
        self._seq = 0

    async def store(self, subject: str, payload: bytes, *, timeout_s: float, fence: Seq | None = None) -> Ack:
        del timeout_s
        self.before_store()
        last = self.messages[subject].seq if subject in self.messages else BEFORE_FIRST
        if fence not in (None, last):
            return Ack(error=Ack.Error(FENCE_CODES[0]))
        self._seq += 1
        self.messages[subject] = Stored(Seq(self._seq), payload, self.now)
        self.published.append((subject, json.loads(payload) if subject == MARK else len(payload), fence))
        return Ack(Seq(self._seq))

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> Message:
        del timeout_s
        if subject.startswith("$JS.API.DIRECT.GET.BODIES."):
            return Message(b"", b"", self.messages[subject.removeprefix("$JS.API.DIRECT.GET.BODIES.")].data)
        query = json.loads(payload)
        if subject == "$JS.API.STREAM.PURGE.BODIES":
            of_filter = (FIRST, SECOND) if query["filter"] == f"{MARK}.*" else (query["filter"],)
            is_gone = {one for one in of_filter if one in self.messages and self.messages[one].seq < query["seq"]}
            self.messages = {one: stored for one, stored in self.messages.items() if one not in is_gone}
            return Message(b"", b"", b"{}")
        assert subject == "$JS.API.STREAM.MSG.GET.BODIES"
        if (found := self.messages.get(query["last_by_subj"])) is None:
            return Message(b"", b"", json.dumps({"error": {"err_code": NOT_FOUND}}).encode())
        reply = {"subject": query["last_by_subj"], "seq": found.seq, "time": found.at.isoformat()}
        data = {"data": b64encode(found.data).decode()}
        return Message(b"", b"", json.dumps({"message": reply | data}).encode())

    async def stream_info(self, _stream: str) -> StreamInfo:
        config = StreamConfig(max_age=int(LIFETIME.total_seconds()) * 10**9)
        return StreamInfo(config, StreamState(), self.now, self.now)


@pytest.fixture
def bodies() -> Bodies:
    return Bodies()


@pytest.fixture
def blobs(bodies: Bodies) -> BlobStore:
    return BlobStore(cast("Connection", bodies))


@pytest.mark.rule("R34")
async def test_the_mark_comes_after_the_chunks_with_the_mark_before_them_as_its_fence(
    bodies: Bodies, blobs: BlobStore
) -> None:
    """Without a mark, one of 0 bytes comes first: sequence 0 would be a fence again after a purge."""
    await blobs.put(ALICE, {SHA256: CONTENT})
    chunks = [(FIRST, CHUNK_BYTES, None), (SECOND, 1, None)]
    assert bodies.published == [(MARK, {"bytes": 0}, 0), *chunks, (MARK, WHOLE, 1)]
    assert await blobs.read(ALICE, Blob(SHA256, len(CONTENT))) == CONTENT


@pytest.mark.rule("R34")
@pytest.mark.parametrize(
    ("age", "is_deleted", "is_stored_again"),
    [
        (LIFETIME / 2 - timedelta(hours=1), False, False),
        (LIFETIME / 2 + timedelta(hours=1), False, True),
        (timedelta(0), True, True),
    ],
)
async def test_a_blob_past_half_of_its_lifetime_or_marked_as_deleted_is_stored_again(
    bodies: Bodies, blobs: BlobStore, age: timedelta, is_deleted: bool, is_stored_again: bool
) -> None:
    bodies.now -= age
    await blobs.put(ALICE, {SHA256: CONTENT})
    if is_deleted:
        await blobs.mark_deleted(ALICE, SHA256)
    bodies.published.clear()
    await blobs.put(ALICE, {SHA256: CONTENT})
    assert [subject for subject, _, _ in bodies.published] == [FIRST, SECOND, MARK] * is_stored_again


@pytest.mark.rule("R34")
async def test_a_writer_whose_fence_is_refused_reads_the_mark_again(bodies: Bodies, blobs: BlobStore) -> None:
    """Another process has marked the blob as deleted between the chunks and the mark, which may have purged them."""
    await blobs.put(ALICE, {SHA256: CONTENT})
    deleted = json.dumps(WHOLE | {"is_doomed": True}).encode()

    def mark_deleted_before_the_mark() -> None:
        if [subject for subject, _, _ in bodies.published] == [FIRST, SECOND]:
            bodies.messages[MARK] = Stored(Seq(5), deleted, bodies.now)

    bodies.published.clear()
    bodies.before_store = mark_deleted_before_the_mark
    await blobs.put(ALICE, {SHA256: CONTENT}, is_renewed=True)
    assert [subject for subject, _, _ in bodies.published] == [FIRST, SECOND, FIRST, SECOND, MARK]
    assert bodies.published[-1][1:] == (WHOLE, 5)


@pytest.mark.rule("R34")
async def test_a_purge_stores_two_marks_of_no_bytes_and_purges_the_second(bodies: Bodies, blobs: BlobStore) -> None:
    await blobs.put(ALICE, {SHA256: CONTENT})
    marked = await blobs.mark_deleted(ALICE, SHA256)
    assert marked is not None
    bodies.published.clear()
    await blobs.purge(ALICE, SHA256, marked)
    gone = {"bytes": 0, "is_doomed": True}
    assert bodies.published == [(MARK, gone, marked), (MARK, gone, marked + 1)]
    assert bodies.messages == {}


@pytest.mark.rule("R34")
async def test_a_purge_leaves_a_blob_that_was_stored_after_its_mark(bodies: Bodies, blobs: BlobStore) -> None:
    await blobs.put(ALICE, {SHA256: CONTENT})
    marked = await blobs.mark_deleted(ALICE, SHA256)
    assert marked is not None
    await blobs.put(ALICE, {SHA256: CONTENT})
    await blobs.purge(ALICE, SHA256, marked)
    assert await blobs.read(ALICE, Blob(SHA256, len(CONTENT))) == CONTENT
