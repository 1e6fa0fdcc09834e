"""The keys of the bucket KEYS, as this gateway knows them: all of them, since before its first request.

What is stored is heard of at once, and asked for every second, because a live feed may miss. While NATS is away what is
known stays true; after a reconnect all of it is read again.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from starlette.requests import Request

from tailrace.gateway.auth.principal import Principal
from tailrace.proto.api_key import KEY_ID, ApiKey, hash_key, scopes_of
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.nats import Connection
from tailrace.proto.nats.api_keys import ApiKeyStore, KeyChange

LOOK_EVERY_S = 1.0


class ApiKeyCache:
    def __init__(self) -> None:
        self._made_at: datetime | None = None
        self._last = BEFORE_FIRST
        self._known: dict[str, KeyChange] = {}
        self._callers: dict[str, Principal] = {}
        self._watching: dict[str, set[asyncio.Event]] = {}
        self.is_used = False
        """Whether there has ever been a key here, be it revoked: then no door is open any more."""

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        # The hash of the whole key is looked up: equal beginnings mean nothing, and a hit's time tells nothing.
        return self._callers.get(hash_key(token))

    def named(self, name: str) -> Principal | None:
        """Who the key of that name speaks for, unless it was revoked or has expired."""
        known = self._known.get(name)
        return (
            _caller(known.record) if known is not None and known.record is not None and not self.is_gone(name) else None
        )

    def is_gone(self, name: str | None) -> bool:
        """Whether `name` is that of a key of this kind, and nobody's any more, or has expired."""
        if name is None or KEY_ID.fullmatch(name) is None:
            return False
        known = self._known.get(name)
        return known is None or not _is_good(known.record)

    @contextmanager
    def watched(self, name: str | None) -> Iterator[asyncio.Event]:
        """An event that is set when the key `name` is revoked. When it expires its Principal says."""
        gone = asyncio.Event()
        if self.is_gone(name):
            gone.set()
        # Other kinds of credential have names without end, and end by themselves.
        events = self._watching.setdefault(name, set()) if name in self._known else set()
        events.add(gone)
        try:
            yield gone
        finally:
            events.discard(gone)

    async def load(self, keys: ApiKeyStore) -> None:
        """Reads all that is stored, and forgets what is not. Raises LogUnavailable."""
        place, changes = await keys.snapshot()
        # Of another bucket, what was heard before means nothing; of the same, it may be newer than what was read.
        is_same = place.made_at == self._made_at
        newer = {name for name, known in self._known.items() if is_same and known.seq > place.last}
        for name in self._known.keys() - {change.id for change in changes} - newer:
            self._put(KeyChange(BEFORE_FIRST, name, None))
        for change in changes:
            if change.id not in newer:
                self._put(change)
        self._made_at, self._last = place.made_at, changes[-1].seq if changes else BEFORE_FIRST

    async def keep_up(self, keys: ApiKeyStore, connection: Connection) -> None:
        """Hears of what is stored, until it is cancelled. `load` has been called before."""
        reconnected = asyncio.Event()
        take_back = connection.on_reconnected(reconnected.set)
        hearing = await keys.watch(self._heard)
        has_missed = False
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await reconnected.wait()
                has_missed |= reconnected.is_set()
                # Before the look, which fails at once while NATS is away: nothing else would ever run again here.
                reconnected.clear()
                with suppress(LogUnavailable):
                    await self._look(keys, is_all=has_missed)
                    has_missed = False
        finally:
            take_back()
            await connection.unsubscribe(hearing)

    async def _look(self, keys: ApiKeyStore, *, is_all: bool) -> None:
        place = await keys.position()
        if is_all or place.made_at != self._made_at:
            await self.load(keys)
        elif place.last > self._last:
            for change in await keys.changes_after(self._last):
                self._last = change.seq
                await self._heard(change)

    async def _heard(self, change: KeyChange) -> None:
        known = self._known.get(change.id)
        if known is None or known.seq < change.seq:
            self._put(change)

    def _put(self, change: KeyChange) -> None:
        known = self._known.get(change.id)
        if known is not None and known.record is not None:
            self._callers.pop(known.record.sha256, None)
        self._known[change.id] = change
        self.is_used = self.is_used or change.record is not None
        if change.record is not None and _is_good(change.record):
            self._callers[change.record.sha256] = _caller(change.record)
        else:
            for gone in self._watching.pop(change.id, ()):
                gone.set()


def _is_good(record: ApiKey | None) -> bool:
    return record is not None and record.is_good(time.time())


def _caller(record: ApiKey) -> Principal:
    return Principal(record.tenant, record.id, scopes_of(record.scopes), until=record.expires_at, limits=record.limits)
