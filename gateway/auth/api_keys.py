"""A cache of the KV bucket KEYS: all API keys, and the limits and settings that operators have given to tenants.

The gateway loads the whole bucket before its first request. After that it follows the live feed and, because a live
feed may lose messages, asks the leader every second for the last sequence. While NATS is unreachable the cached keys
stay valid; after a reconnect the gateway loads the whole bucket again.
"""

import asyncio
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import structlog
from starlette.requests import Request

from tailrace.gateway.auth.api_key import KEY_ID, ApiKey, hash_key
from tailrace.gateway.auth.api_key_store import ApiKeyStore, RecordChange
from tailrace.gateway.auth.limits import GivenLimits, Unreadable
from tailrace.gateway.auth.principal import NoKey, Principal
from tailrace.gateway.http.scope import scopes_of
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.ownership import WHOLE, Scope, Users
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.runtime.race import is_set_within

logger = structlog.get_logger()

POLL_INTERVAL_S = 1.0
FIRST_KEY_TEXT = "An API key has existed, so every request needs a credential: docs/AUTH.md, When a key is needed\n"


class ApiKeyCache:
    """All API keys, found by the hash of the key or by the key's id, and the limits of tenants that have their own."""

    def __init__(self, first_key_file: str = "") -> None:
        """`first_key_file` remembers outside NATS that a key has existed: the bucket may be lost."""
        self._first_key_file = Path(first_key_file) if first_key_file else None
        self._made_at: datetime | None = None
        self._last = BEFORE_FIRST
        self._changes: dict[str, RecordChange] = {}
        self._principals: dict[str, Principal] = {}
        self._watchers: dict[str | None, set[Flag]] = {}
        """Flags by key id; under None, those of requests without a credential, which the first key ends."""
        self.limits: dict[Tenant, GivenLimits | Unreadable] = {}
        """The limits that operators have given to tenants. Those that were read before a record is unreadable stay."""
        self.private: set[Tenant] = set()
        """The tenants whose users are private."""
        self.is_used = self._first_key_file is not None and self._first_key_file.exists()
        """Whether a key has ever existed, revoked or not: from then on every request needs a credential."""

    @property
    def is_empty(self) -> bool:
        """Whether the bucket holds no key, revoked or not."""
        return all(change.record is None for change in self._changes.values())

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        """Returns the principal of the API key `token`, or None."""
        # A lookup by the hash of the whole key takes the same time for a wrong key that begins like a right one.
        return self._principals.get(hash_key(token))

    def find(self, key_id: str) -> Principal | NoKey:
        """Returns the principal of the key with this id, or why there is none."""
        if KEY_ID.fullmatch(key_id) is None:
            return NoKey.OTHER
        record = self._record(key_id)
        return _principal(record) if record is not None and _is_good(record) else NoKey.ENDED

    def find_successor(self, key_id: str) -> Principal | NoKey:
        """Returns the principal of the key; once it has ended, of the key that rotations have made for it."""
        passed = set[str]()
        while (found := self.find(key_id)) is NoKey.ENDED:
            passed.add(key_id)
            record = self._record(key_id)
            if record is None or record.replaced_by is None or record.replaced_by in passed:
                break
            key_id = record.replaced_by
        return found

    def users_of(self, tenant: Tenant) -> Users:
        """Returns whether the users of a tenant are private."""
        return "private" if tenant in self.private else "shared"

    def ids_counted_as(self, key_id: str | None) -> list[str]:
        """Returns the ids of the keys that share the limits of this key after rotations; else the id itself, or ""."""
        known = self._record(key_id or "")
        if known is None:
            return [key_id or ""]
        name = known.counted_as or known.id
        records = [change.record for change in self._changes.values() if change.record is not None]
        return [record.id for record in records if name in (record.id, record.counted_as)]

    def is_ended(self, key_id: str | None) -> bool:
        """Returns whether `key_id` has the form of an API key's id and the key is unknown, revoked or expired."""
        if key_id is None or KEY_ID.fullmatch(key_id) is None:
            return False
        return not _is_good(self._record(key_id))

    def _record(self, key_id: str) -> ApiKey | None:
        change = self._changes.get(key_id)
        return None if change is None else change.record

    def watch(self, key_id: str | None) -> Flag:
        """Returns a flag that is set when the key is revoked, or reaches an expiry that was set after this call.

        With None it is set when the bucket gets its first key: from then on every request needs a credential. With the
        name of a tenant's setting of users, it is set when they become private.
        The caller passes the flag to `unwatch` when it no longer needs it.
        """
        ended = Flag()
        if self.is_used if key_id is None else self.is_ended(key_id):
            ended.set()
        # Ids of other credentials are unbounded and cannot be revoked: do not keep a set for each.
        if key_id in self._changes or key_id is None or subjects.tenant_of_users(key_id) is not None:
            self._watchers.setdefault(key_id, set()).add(ended)
        return ended

    def unwatch(self, key_id: str | None, ended: Flag) -> None:
        """Releases a flag that `watch` has returned."""
        if key_id in self._watchers:
            self._watchers[key_id].discard(ended)
            if not self._watchers[key_id]:
                del self._watchers[key_id]

    async def load(self, keys: ApiKeyStore) -> None:
        """Loads the whole bucket. Keys that it no longer holds end; settings of tenants stay. Raises LogUnavailable."""
        position, changes = await keys.snapshot()
        # A change from the live feed may be newer than `changes`, but only if the bucket is the same.
        is_same_bucket = position.made_at == self._made_at
        newer = {key_id for key_id, known in self._changes.items() if is_same_bucket and known.seq > position.last}
        for key_id in self._changes.keys() - {change.id for change in changes} - newer:
            lost = self._changes[key_id]
            if lost.record is not None:
                self._put(RecordChange(BEFORE_FIRST, key_id, None))
            elif not is_same_bucket:
                # The limits of a tenant, or its private users: the next change has a lower sequence.
                self._changes[key_id] = lost._replace(seq=BEFORE_FIRST)
        for change in changes:
            known = self._changes.get(change.id)
            # A server that lags behind has older records, such as that of a key before its revocation.
            if known is None or known.seq < change.seq or not is_same_bucket:
                self._put(change)
        self._made_at, self._last = position.made_at, changes[-1].seq if changes else BEFORE_FIRST

    async def follow(self, keys: ApiKeyStore, connection: Connection) -> None:
        """Keeps the cache current until it is cancelled. Call `load` first."""
        reconnected = asyncio.Event()
        unregister = connection.on_reconnected(reconnected.set)
        subscription = await keys.watch(self._on_change)
        must_reload = False
        try:
            while True:
                await is_set_within(reconnected, POLL_INTERVAL_S)
                must_reload |= reconnected.is_set()
                # Clear before polling: polling fails at once while NATS is away, and this loop would never yield.
                reconnected.clear()
                with suppress(LogUnavailable):
                    await self._poll(keys, must_reload=must_reload)
                    must_reload = False
        finally:
            unregister()
            await connection.unsubscribe(subscription)

    async def _poll(self, keys: ApiKeyStore, *, must_reload: bool) -> None:
        position = await keys.position()
        if must_reload or position.made_at != self._made_at:
            await self.load(keys)
        elif position.last > self._last:
            for change in await keys.changes_after(self._last):
                self._last = change.seq
                await self._on_change(change)

    async def _on_change(self, change: RecordChange) -> None:
        known = self._changes.get(change.id)
        if known is None or known.seq < change.seq:
            self._put(change)

    def _put(self, change: RecordChange) -> None:
        known = self._changes.get(change.id)
        if change.is_unreadable and (known is None or known.seq != change.seq):
            logger.warning(
                "an entry of the bucket KEYS cannot be read: a key is not valid, limits stay as they were",
                entry=change.id,
                seq=change.seq,
            )
        if change.tenant is not None:
            self._changes[change.id] = change
            if change.limits is not None:
                self.limits[change.tenant] = change.limits
            else:
                self.limits.setdefault(change.tenant, Unreadable.LIMITS)
            return
        if (tenant := subjects.tenant_of_users(change.id)) is not None:
            self._changes[change.id] = change
            if change.users != "private":
                self.private.discard(tenant)
            elif tenant not in self.private:
                self.private.add(tenant)
                # The streams of its users: each goes on where it was, if it is the user's own.
                self._end(change.id)
            return
        if known is not None and known.record is not None:
            self._principals.pop(known.record.sha256, None)
        self._changes[change.id] = change
        # Also a key that was deleted, or cannot be read: requests needed one.
        if KEY_ID.fullmatch(change.id) is not None and not self.is_used:
            self.is_used = True
            self._remember_first_key()
            self._end(None)
        if change.record is not None and _is_good(change.record):
            self._principals[change.record.sha256] = _principal(change.record)
            if known is not None and known.record is not None and known.record.expires_at != change.record.expires_at:
                self._end_later(change.record)
        else:
            self._end(change.id)

    def _remember_first_key(self) -> None:
        try:
            if self._first_key_file is not None:
                self._first_key_file.write_text(FIRST_KEY_TEXT, encoding="utf-8")
        except OSError as error:
            # The next start tries again.
            message = "this file cannot be written: after a loss of all keys, requests may be served without one"
            logger.error(message, path=str(self._first_key_file), why=error.strerror)  # noqa: TRY400

    def _end(self, key_id: str | None) -> None:
        for ended in self._watchers.pop(key_id, ()):
            ended.set()

    def _end_later(self, record: ApiKey) -> None:
        """Ends the open streams of a key when it expires: a rotation has set the expiry after they began."""
        if record.expires_at is not None and record.id in self._watchers:
            loop, wait_s = asyncio.get_running_loop(), record.expires_at - time.time()
            for ended in self._watchers[record.id]:
                loop.call_later(wait_s, ended.set)


def _is_good(record: ApiKey | None) -> bool:
    return record is not None and record.is_good(time.time())


def _principal(record: ApiKey) -> Principal:
    return Principal(
        Scope(record.tenant, WHOLE),
        record.id,
        scopes_of(record.scopes),
        until=record.expires_at,
        limits=record.limits,
        counted_as=record.counted_as,
    )
