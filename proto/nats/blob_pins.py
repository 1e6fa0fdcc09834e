"""BlobPins: which blobs somebody is about to refer to, so that a deletion leaves them alone. It knows none of them.

A request is in the log a moment after its blobs were found to be there. Whoever purges a blob condemns it first, and
looks for holds after that; whoever refers to one holds it first, and looks at its mark after that. So one of the two
sees the other, whatever comes between (PROTOCOL R34, ADR 15).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import msgspec
import nats.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import CLAIMS_STREAM

TRY_TIMEOUT_S = 2.0
# Nobody takes that long from storing a blob to asking: who held it has died.
HELD_MAX = timedelta(minutes=10)
# So many of one blob that are too old are passed over; then it counts as held, until the bucket has forgotten them.
PASSED_MAX = 100


class BlobPin(msgspec.Struct, frozen=True):
    """One, as the bucket's leader shows it."""

    class Message(msgspec.Struct, frozen=True):
        seq: int
        time: datetime

    message: Message


_hold = msgspec.json.Decoder(BlobPin)


class BlobPins:
    """Safe to share in a process. Each call raises LogUnavailable when NATS does not answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._holders: set[tuple[Tenant, str]] = set()

    async def pin(self, tenant: Tenant, holder: str, blobs: Iterable[str]) -> None:
        """Pins the blobs of these SHA-256 for `holder`, say a turn that is about to be asked. In its `until_asked`."""
        names = [subjects.blob_pin(tenant, holder, sha256) for sha256 in blobs]
        if not names:
            return
        self._holders.add((tenant, holder))
        try:
            await asyncio.gather(*(self._connection.jetstream.publish(name, b"") for name in names))
        except nats.errors.Error as error:
            raise LogUnavailable(f"pictures and long texts cannot be held: {type(error).__name__}") from error

    @asynccontextmanager
    async def release_after(self, tenant: Tenant, holder: str) -> AsyncIterator[None]:
        """Lets go, after the block, of what `holder` has taken in it.

        Not when the block raises LogUnavailable: what it asked may be stored yet, and its holds go by their age.
        """
        try:
            yield
        except LogUnavailable:
            self._holders.discard((tenant, holder))
            raise
        except BaseException:
            await self._drop(tenant, holder)
            raise
        await self._drop(tenant, holder)

    async def is_pinned(self, tenant: Tenant, sha256: str) -> bool:
        """Whether anybody is about to refer to the blob: asked of the bucket's leader, who is never behind."""
        seq = 1
        for _ in range(PASSED_MAX):
            query = msgspec.json.encode({"seq": seq, "next_by_subj": subjects.blob_pins_of(tenant, sha256)})
            reply = await self._connection.request(
                f"$JS.API.STREAM.MSG.GET.{CLAIMS_STREAM}", query, timeout_s=TRY_TIMEOUT_S
            )
            error = pub_ack.decode(reply.data).error
            if error is not None and error.err_code == pub_ack.NOT_FOUND:
                return False
            if error is not None:
                raise LogUnavailable(f"what is held cannot be seen: {error.description}")
            found = _hold.decode(reply.data).message
            if datetime.now(UTC) - found.time <= HELD_MAX:
                return True
            seq = found.seq + 1
        return True

    async def _drop(self, tenant: Tenant, holder: str) -> None:
        if (tenant, holder) not in self._holders:
            return
        self._holders.discard((tenant, holder))
        query = msgspec.json.encode({"filter": subjects.blob_pins_by(tenant, holder)})
        # Whoever asked has been answered, or refused: a hold that stays is no reason to tell them otherwise.
        with suppress(LogUnavailable):
            await self._connection.request(f"$JS.API.STREAM.PURGE.{CLAIMS_STREAM}", query, timeout_s=TRY_TIMEOUT_S)
