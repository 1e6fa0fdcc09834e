"""BudgetReader: reads the counters of budgets that have changed, as many as there are in one request."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.counters import UPTO
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.stream_info import StreamInfo
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import BUDGETS

# Of the counters that are named in one request.
NAMED_MAX = 500


class Counted(NamedTuple):
    """The value of a counter after its last increment, which was stored at `at`, and the `upto` of that increment."""

    value: int
    seq: Seq
    at: datetime
    upto: datetime | None = None


class Changes(NamedTuple):
    """Counters by their subjects."""

    counted: dict[str, Counted]
    now: datetime
    """A time of the server's clock, at which the counters had no later increment."""
    created: datetime
    """When the stream was created."""
    is_new: bool
    """Whether that was since the last read."""


class _Value(msgspec.Struct):
    val: int


_decode = msgspec.json.Decoder(_Value, strict=False).decode


class BudgetReader:
    """Reads the stream BUDGETS. Every method raises LogUnavailable."""

    def __init__(self, connection: Connection, reader: DirectReader) -> None:
        """`reader` reads BUDGETS. It keeps a subscription, so that a process has one."""
        self._connection = connection
        self._reader = reader
        self._leader = Leader(connection, BUDGETS)
        self._upto = BEFORE_FIRST
        self._created: datetime | None = None

    async def read(self, subject: str) -> Changes:
        """Returns one counter, or none if it has no increment."""
        info = await self._info()
        message = await self._leader.last(subject)
        found = dict[str, Counted]()
        if message is not None:
            found[subject] = Counted(_decode(message.data).val, message.seq, message.time)
        return Changes(found, info.ts, info.created, is_new=False)

    async def oldest(self, subject: str) -> Counted:
        """Returns a counter after its oldest increment that is still stored.

        The names of later ones are known, also after a restart of the server.
        """
        page = await self._reader.page(subject, Seq(1), 1)
        if not page.messages:
            raise LogUnavailable("a server of the counters lags behind: retry")
        return _counted(page.messages[0])[1]

    async def read_changed(self, filters_at: Callable[[datetime], Sequence[str]]) -> Changes:
        """Returns the counters that have changed since the last call, of those that `filters_at(now)` includes."""
        info = await self._info()
        is_new = info.created != self._created or info.state.last_seq < self._upto
        first = BEFORE_FIRST if is_new else self._upto
        found, upto = dict[str, Counted](), info.state.last_seq
        if is_new or upto > first:
            found, upto = await self._read(filters_at(info.ts), Seq(first + 1))
            # A follower that lags behind would show an older value as the last one.
            if found and upto < info.state.last_seq:
                raise LogUnavailable("a server of the counters lags behind: retry")
        self._created, self._upto = info.created, min(upto, info.state.last_seq)
        return Changes(found, info.ts, info.created, is_new)

    async def _info(self) -> StreamInfo:
        return await self._connection.stream_info(BUDGETS)

    async def _read(self, filters: Sequence[str], first: Seq) -> tuple[dict[str, Counted], Seq]:
        """Returns the counters, and up to which sequence of the stream; 0: not known, as it has none of them."""
        last = await self._reader.last(filters, first)
        if last is not None:
            return dict(map(_counted, last.messages)), last.upto
        names = await self._subjects(filters)
        found, reached = dict[str, Counted](), list[Seq]()
        for start in range(0, len(names), NAMED_MAX):
            some, upto = await self._read(names[start : start + NAMED_MAX], first)
            found |= some
            reached.append(upto)
        return found, min(reached, default=BEFORE_FIRST)

    async def _subjects(self, filters: Iterable[str]) -> list[str]:
        found = list[str]()
        for one in filters:
            total, offset = 1, 0
            while offset < total:
                info = await self._connection.stream_info(BUDGETS, subjects=one, offset=offset)
                found += info.state.subjects
                total, offset = info.total, offset + len(info.state.subjects)
                if not info.state.subjects:
                    break
        return found


def _counted(message: Message) -> tuple[str, Counted]:
    headers = message.headers or {}
    at = datetime.fromisoformat(headers["Nats-Time-Stamp"])
    upto = datetime.fromisoformat(headers[UPTO]) if UPTO in headers else None
    return headers["Nats-Subject"], Counted(_decode(message.data).val, Seq(int(headers["Nats-Sequence"])), at, upto)
