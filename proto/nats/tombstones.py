"""Tombstones of deleted turns, in the bucket CLAIMS, which keeps them as long as the log keeps turns (PROTOCOL R35)."""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import msgspec
import nats.errors
import nats.js.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import CLAIMS_STREAM, EVERY_UNSTORED, TurnKey

TRY_TIMEOUT_S = 2.0


class Unstored(NamedTuple):
    """The note that a turn is to be erased, and when it was stored."""

    seq: Seq
    key: TurnKey
    noted_at: datetime
    run: bytes
    """Which run of the turn it is: see `run_of`."""


class _Reply(msgspec.Struct, frozen=True):
    class Message(msgspec.Struct, frozen=True):
        subject: str
        seq: int
        time: datetime
        data: bytes = b""

    message: Message


class Tombstones:
    """A tombstone is set before a turn's row is deleted, so that a repeated request does not bring the turn back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, turns: Iterable[TurnKey], run: bytes = b"") -> None:
        """Sets a tombstone for each of `turns`, with `run` as its content. After LogUnavailable some may be set."""
        names = [subjects.tombstone(key) for key in turns]
        try:
            await asyncio.gather(*(self._connection.jetstream.publish(name, run) for name in names))
        except nats.errors.Error as error:
            raise LogUnavailable(f"deleted turns cannot be marked ({type(error).__name__}): retry") from error

    async def exists(self, key: TurnKey) -> bool:
        """Returns whether the turn has a tombstone. Raises LogUnavailable."""
        return await self.find(key) is not None

    async def find(self, key: TurnKey) -> bytes | None:
        """Returns the content of the turn's tombstone, or None, read from the leader, which never lags.

        Raises LogUnavailable.
        """
        name = subjects.tombstone(key)
        try:
            return (await self._connection.jetstream.get_last_msg(CLAIMS_STREAM, name, direct=False)).data or b""
        except nats.js.errors.NotFoundError:
            return None
        except nats.errors.Error as error:
            raise LogUnavailable(f"deleted turns cannot be looked up ({type(error).__name__}): retry") from error

    async def note_unstored(self, key: TurnKey, run: bytes) -> None:
        """Notes that a run of a turn with `store: false` has ended. Raises LogUnavailable."""
        try:
            await self._connection.jetstream.publish(subjects.unstored(key), run)
        except nats.errors.Error as error:
            raise LogUnavailable(f"the erasure cannot be noted ({type(error).__name__}): retry") from error

    async def next_unstored(self, after: Seq) -> Unstored | None:
        """Returns the first note after a sequence, read from the leader, or None. Raises LogUnavailable."""
        query = msgspec.json.encode({"seq": after + 1, "next_by_subj": EVERY_UNSTORED})
        subject = f"$JS.API.STREAM.MSG.GET.{CLAIMS_STREAM}"
        reply = await self._connection.request(subject, query, timeout_s=TRY_TIMEOUT_S)
        error = pub_ack.decode(reply.data).error
        if error is not None and error.err_code == pub_ack.NOT_FOUND:
            return None
        if error is not None:
            raise LogUnavailable(f"the turns to erase cannot be read: {error.description}")
        found = msgspec.json.decode(reply.data, type=_Reply).message
        tenant, turn = found.subject.split(".")[-2:]
        return Unstored(Seq(found.seq), TurnKey(Tenant(tenant), TurnId(turn)), found.time, found.data)
