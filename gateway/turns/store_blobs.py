"""Stores the strings of a request that are too long for the log as blobs, before it stores the request."""

import asyncio
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from tailrace.gateway.auth.admission import Admission, Admissions
from tailrace.gateway.http.read_body import VALUES_MAX, count_values
from tailrace.proto import blobs, entries
from tailrace.proto.errors import BlobUnknown, LogUnavailable, Refused
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import BlobPins, BlobStore

EXPIRED = (
    "a picture, document or long text of this conversation has expired: "
    "send it again in a new session, or continue from a turn before it (`parent`)"
)
TOO_LARGE = (
    "the conversation has more than {most} bytes of pictures, documents and long texts: "
    "start a new session, or continue from an earlier turn (`parent`)"
)
TOO_MANY = (
    "the conversation has more than {most} JSON values: start a new session, or continue from an earlier `parent`"
)


class RequestBlobs:
    """Stores the long strings of request entries; all strings of an entry together may have `bytes_max` bytes."""

    def __init__(
        self,
        store: BlobStore,
        pins: BlobPins,
        admissions: Admissions,
        bytes_max: int,
    ) -> None:
        self._store = store
        self._pins = pins
        self._admissions = admissions
        self._bytes_max = bytes_max

    async def store_blobs(
        self,
        own: TurnKey,
        entry: entries.Request,
        body_bytes: int,
        admission: Admission | None,
        held: AsyncExitStack,
    ) -> tuple[entries.Request, int]:
        """Returns a turn's entry with references to its long strings, which are stored, and its size.

        `body_bytes` is the size of the request. Blobs are pinned for `own` until `held` is closed. Raises as `lift`
        does.
        """
        # A long body or conversation is not encoded here: that would take milliseconds in the event loop.
        is_short = not entry.history and body_bytes <= blobs.INLINE_BYTES_MAX
        if is_short and blobs.has_no_blobs(encoded := entries.encode(entry)):
            if admission is not None:
                await admission.count_stored_bytes(len(encoded))
            return entry, len(encoded)
        await held.enter_async_context(self.hold_pins(own))
        return await self.lift(own, entry, admission, is_counted=True)

    def hold_pins(self, key: TurnKey) -> AbstractAsyncContextManager[None]:
        """Releases the pins of `put` and `lift` for `key` after the block, unless it raises LogUnavailable."""
        return self._pins.release_after(key.tenant, key.turn)

    async def lift(
        self, own: TurnKey, request: entries.Request, admission: Admission | None, *, is_counted: bool = False
    ) -> tuple[entries.Request, int]:
        """Returns `request` with references to its long strings, which are stored, and the size of its entry.

        Blobs of the session are renewed. All of them are pinned for `own` until the turn is stored
        (proto/nats/blob_pins.py). `is_counted`: the entry counts for the limit of stored bytes, like its blobs. Raises
        Refused when a blob has expired, or all together are larger than a body may be; LogFull, LogUnavailable.
        """
        # In a thread: to hash 30 MB takes 15 ms, in which the loop would serve no stream.
        entry, lifted, size, found = await asyncio.to_thread(_lift, request)
        if sum(blob.bytes for blob in found) > self._bytes_max:
            raise Refused("body_too_large", TOO_LARGE.format(most=self._bytes_max))
        pinned, more = {blob.sha256 for blob in found}, size if is_counted else 0
        await self.put(own, lifted, pinned, admission, more_bytes=more)
        try:
            await self._store.renew(own.tenant, {blob for blob in found if blob.sha256 not in lifted})
        except BlobUnknown as error:
            raise Refused("blob_expired", EXPIRED) from error
        return entry, size

    async def put(
        self,
        key: TurnKey,
        contents: Mapping[str, bytes],
        pinned: AbstractSet[str],
        admission: Admission | None,
        *,
        more_bytes: int = 0,
        is_renewed: bool = False,
    ) -> None:
        """Stores blobs, by SHA-256, after they are counted and pinned for `key`. `is_renewed`: see BlobStore.put.

        `more_bytes` are counted with them. Raises Refused, LogFull, LogUnavailable.
        """
        size, share = sum(map(len, contents.values())), self._admissions.limiter.blob_share
        if size:
            share.check(key.tenant, size)
        if admission is not None and size + more_bytes:
            await admission.count_stored_bytes(size + more_bytes)
        await self._pins.pin(key.tenant, key.turn, pinned)
        try:
            await self._store.put(key.tenant, contents, is_renewed=is_renewed)
        except LogUnavailable:
            # Perhaps all blobs are stored, and only the last acknowledgement is missing.
            share.add(key.tenant, size)
            raise
        share.add(key.tenant, size)


def _lift(request: entries.Request) -> tuple[entries.Request, dict[str, bytes], int, list[blobs.Blob]]:
    entry, lifted = blobs.lift(request)
    encoded = entries.encode(entry)
    if count_values(encoded) > VALUES_MAX:
        raise Refused("body_too_large", TOO_MANY.format(most=VALUES_MAX))
    return entry, lifted, len(encoded), blobs.references(entry)
