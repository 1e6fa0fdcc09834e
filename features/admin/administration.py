"""Changes of keys, and of tenants' limits and settings, by operators, each with an entry in the audit log.

The command line and the gateway's routes both use it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from tailrace.features.admin.audit_log import Action, Actor, AuditEntry, AuditLog
from tailrace.features.admin.key_store import KeyStore, StoredRecords
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.features.common.process_reports import ANSWER_S, ask_gateways, does_know
from tailrace.gateway.auth.api_key import KEY_ID, ApiKey
from tailrace.gateway.auth.limits import GivenLimits, parse_limits, require_useful
from tailrace.gateway.http.scope import ADMIN_SCOPE, ScopeName
from tailrace.proto.errors import LogUnavailable, Refused, TailraceError
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Rpc
from tailrace.proto.nats.connection import Connection
from tailrace.proto.ownership import Users
from tailrace.proto.subjects import PERSISTENCE

# A key that ends sooner leaves too little time to create another one.
LASTING_S = 24 * 3600


class Revocation(NamedTuple):
    """A revoked key. `is_last`: no valid key is left."""

    record: ApiKey
    was_revoked_before: bool
    is_last: bool


class Administration:
    """Operators' commands. Every change raises LogUnavailable, and is not made, if the audit log cannot store it."""

    def __init__(self, connection: Connection) -> None:
        self._keys = KeyStore(connection)
        self.audit = AuditLog(connection)
        self._rpc = Rpc(connection)

    async def list_keys(self) -> list[ApiKey]:
        """Returns all keys, oldest first, including revoked ones. Raises LogUnavailable."""
        return sorted(await self._keys.list_keys(), key=lambda key: (key.created_at, key.id))

    async def read_all(self) -> StoredRecords:
        """Returns all keys, limits and settings of tenants. Raises LogUnavailable."""
        return await self._keys.read_all()

    async def create_key(
        self,
        actor: Actor,
        tenant: Tenant,
        name: str,
        scopes: Iterable[ScopeName],
        limits: Mapping[str, float] | None = None,
        life_s: int | None = None,
    ) -> tuple[NewKey, bool]:
        """Creates a key; returns it, and whether it is the first key. From the first key on, all requests need one.

        Without `life_s` it does not expire. Raises Refused for limits that are not valid.
        """
        if limits:
            _check(limits)
        is_first = not await self._keys.list_keys()
        now = int(time.time())
        made = new_key(
            tenant,
            now=now,
            name=name,
            scopes=scopes,
            limits=dict(limits) if limits else None,
            expires_at=None if life_s is None else now + life_s,
        )
        async with self._record_change(
            actor, "key.create", made.record.tenant, made.record.id, None, without_hash(made.record)
        ):
            await self._keys.create(made.record)
        return made, is_first

    async def revoke_key(self, actor: Actor, key_id: str, *, may_be_last: bool) -> Revocation | None:
        """Revokes a key. Returns None if there is no such key.

        Raises Refused for the last key with the scope `admin`, unless `may_be_last`: the caller needs no key to
        create an admin key.
        """
        if (record := await self._find(key_id)) is None:
            return None
        now = int(time.time())
        keys = await self._keys.list_keys()
        is_last = not any(key.id != key_id and key.is_good(now) for key in keys)
        if record.revoked_at is not None:
            return Revocation(record, was_revoked_before=True, is_last=is_last)
        must_leave_admin = ADMIN_SCOPE in record.scopes and record.is_good(now) and not may_be_last
        if must_leave_admin and not _leaves_admin(keys, key_id, now):
            raise _last_admin_key(key_id)
        after = msgspec.structs.replace(record, revoked_at=now)
        async with self._record_change(
            actor, "key.revoke", record.tenant, key_id, without_hash(record), without_hash(after)
        ):
            # Again, because other admin keys may be revoked at the same time.
            if must_leave_admin and not await self._keys.announce_revocation(
                key_id, lambda found: _leaves_admin(found, key_id, now)
            ):
                raise _last_admin_key(key_id)
            revoked = await self._keys.revoke(key_id, now)
        return revoked and Revocation(*revoked, is_last=is_last)

    async def rotate_key(self, actor: Actor, key_id: str, grace_s: int = 0) -> NewKey | None:
        """Replaces a valid key by a new one with the same rights. The old key stays valid for `grace_s`.

        Returns None if there is no such valid key. Raises Refused for a key that another rotation has replaced.

        The new key is stored first, and then its id in the record of the old key. Only from then on does the new key
        count as another admin key. So if this process ends in between, the old key stays valid and can be rotated
        again. If several rotations of a key run at the same time, one stores the id of its key, and the others revoke
        their keys.
        """
        now = int(time.time())
        if (old := await self._find(key_id)) is None or not old.is_good(now):
            return None
        if old.replaced_by is not None:
            raise _key_replaced(key_id)
        made = new_key(
            old.tenant,
            now=now,
            name=old.name,
            scopes=(),
            limits=old.limits,
            expires_at=None if old.expires_at is None else now + old.expires_at - old.created_at,
        )
        # The scopes as they are stored: a newer version may have some that this one does not know.
        record = msgspec.structs.replace(
            made.record, scopes=old.scopes, replaces=key_id, counted_as=old.counted_as or key_id
        )
        async with self._record_change(
            actor, "key.rotate", old.tenant, key_id, without_hash(old), without_hash(record)
        ):
            await self._keys.create(record)
            if not await self._keys.replace(key_id, record.id, now, grace_s):
                await self._keys.revoke(record.id, now)
                raise _key_replaced(key_id)
        return NewKey(made.secret, record)

    async def tenant_limits(self) -> dict[Tenant, GivenLimits]:
        """Returns the tenants' own limits, by tenant. Raises LogUnavailable."""
        return await self._keys.list_limits()

    async def set_tenant_limits(
        self, actor: Actor, tenant: Tenant, limits: Mapping[str, float], expected: Mapping[str, float] | None = None
    ) -> None:
        """Replaces the tenant's own limits; without any, the limits of the settings apply.

        Raises Refused, also if the tenant's limits differ from `expected`, unless that is None.
        """
        _check(limits)
        before = (await self._keys.list_limits()).get(tenant)
        async with self._record_change(actor, "limits.set", tenant, tenant, before, dict(limits)):
            if not await self._keys.set_limits(tenant, dict(limits), expected):
                raise Refused(
                    "limits_changed", f"another request has changed the limits of {tenant}: read them, and try again"
                )

    async def private_tenants(self) -> set[Tenant]:
        """Returns the tenants whose users are private. Raises LogUnavailable."""
        return await self._keys.list_private()

    async def set_tenant_users(self, actor: Actor, tenant: Tenant, users: Users, expected: Users | None = None) -> None:
        """Sets whether the users of a tenant are private.

        Raises Refused if a gateway or a persistence process that runs does not know the setting, or if it differs from
        `expected`, unless that is None.
        """
        if users == "private":
            await self._require_known()
        before = "private" if tenant in await self._keys.list_private() else "shared"
        async with self._record_change(actor, "tenant.set", tenant, tenant, {"users": before}, {"users": users}):
            if not await self._keys.set_users(tenant, users, expected):
                raise Refused(
                    "users_changed", f"another request has changed the users of {tenant}: read them, and try again"
                )

    async def _require_known(self) -> None:
        """Raises Refused if a process of an older version runs: it would show the users of a tenant each other's turns.

        All gateways and persistence processes answer (PROTOCOL R29, R81).
        """
        gateways, persistence = await asyncio.gather(
            ask_gateways(self._rpc), self._rpc.every_health(PERSISTENCE, wait_s=ANSWER_S)
        )
        if not gateways or not all(does_know(report, "users") for report in (*gateways, *persistence)):
            raise Refused(
                "gateways_outdated",
                "a gateway or persistence process of an older version runs, which would show private users each "
                "other's turns: upgrade all processes, and try again",
            )

    async def _find(self, key_id: str) -> ApiKey | None:
        return await self._keys.get(key_id) if KEY_ID.fullmatch(key_id) else None

    @asynccontextmanager
    async def _record_change(
        self,
        actor: Actor,
        action: Action,
        tenant: Tenant,
        target: str,
        before: dict[str, Any] | None,
        after: dict[str, Any] | None,
    ) -> AsyncIterator[None]:
        """Stores the entry, and then runs the block, which makes the change. A failure is stored as well."""
        entry = AuditEntry(
            at=datetime.now(UTC),
            action=action,
            by=actor.by,
            address=actor.address,
            tenant=tenant,
            target=target,
            before=before,
            after=after,
        )
        await self.audit.append(entry)
        try:
            yield
        except TailraceError as error:
            with suppress(LogUnavailable):
                await self.audit.append(msgspec.structs.replace(entry, at=datetime.now(UTC), error=str(error)))
            raise


def _leaves_admin(keys: Iterable[ApiKey], key_id: str, now: int) -> bool:
    """Returns whether an admin key is left when the key `key_id` is gone.

    Keys that end within a day, are being replaced, or were made by an incomplete rotation do not count.
    """
    by_id = {key.id: key for key in keys}

    def is_complete(key: ApiKey) -> bool:
        """Returns True, unless an incomplete rotation has made the key."""
        old = by_id.get(key.replaces or "")
        return old is None or old.replaced_by == key.id

    return any(
        ADMIN_SCOPE in key.scopes and key.is_good(now + LASTING_S) and key.replaced_by is None and is_complete(key)
        for key in by_id.values()
        if key.id != key_id
    )


def _last_admin_key(key_id: str) -> Refused:
    return Refused(
        "last_admin_key",
        f"{key_id} is the last key with the scope `{ADMIN_SCOPE}` that is valid for another day: create or rotate one "
        "first, or revoke it with `tailrace keys revoke`",
    )


def _key_replaced(key_id: str) -> Refused:
    return Refused("key_replaced", f"{key_id} has ended, or is being replaced by another key: rotate that key")


def _check(limits: Mapping[str, float]) -> None:
    """Raises Refused for limits that are unknown, out of range, or without effect."""
    try:
        require_useful(limits)
        parse_limits(limits)
    except ValueError as error:
        raise Refused("request_invalid", f"`limits`: {error}", param="limits") from error


def without_hash(record: ApiKey) -> dict[str, Any]:
    """Returns a key without its hash, which operators do not need."""
    shown: dict[str, Any] = msgspec.to_builtins(record)
    del shown["sha256"]
    return shown
